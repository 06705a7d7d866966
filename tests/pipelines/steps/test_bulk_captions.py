"""Captions in bulk: rounds of questions before the tasks run, through a fake of vLLM that keeps the contract of its
rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioning.dialogue import journal
from captioning.dialogue.conversation import Role
from captioning.engines.vllm import ERROR_COLUMN, VLLM
from captioning.prompt import load_prompt
from cluster.resources import Resources
from pipelines import inline
from pipelines.curation import Curation, run_segments
from pipelines.engine.shuffle import Rows
from pipelines.engine.step import RunError, TableFunction
from pipelines.engine.tables import split_task
from pipelines.engine.worker import Job, Worker
from pipelines.forgetting.request import forget
from pipelines.ledger import ledger
from pipelines.recipe import Recipe
from pipelines.steps import _bulk_captions
from pipelines.steps._bulk_captions import bulk_captions_of
from pipelines.steps.caption import JOURNAL_PREFIX, Caption, RewriteSettings, WindowSettings
from tests.support.fake_vllm import UID, Behaviour, answer_row, fake_build_processor
from tests.support.toy_captioner import Counting, ToyFrames
from tests.support.toy_recipes import final_rows, logged_calls, toy_file, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Split

pytestmark = pytest.mark.slow

NAMES = ["a-3", "b-0", "c-5", "broken-1", "d-1"]
N_CLIPS = 9
MODEL = VLLM(model="hf-hub:some/model")
KEPT = {*_bulk_captions.RETURNED, ERROR_COLUMN}
WRITER = VLLM(model="hf-hub:some/writer", max_images=0)


def make_recipe(
    folder: Path, caption: Caption | None, frames: ToyFrames | None = None, names: Sequence[str] = NAMES
) -> Recipe:
    """Return a recipe that ends in `caption`, if given, and write the files that are not there yet."""
    write_toys(folder, [name for name in names if not toy_file(folder, name).exists()])
    return toy_recipe(folder, [Measure(), Split(), frames or ToyFrames(), *([caption] if caption else [])])


def clips_of(curation: Curation) -> list[dict[str, Any]]:
    return [row for row in final_rows(curation) if row["clip_index"] is not None]


def uids_of(folder: Path, frames: ToyFrames | None = None, names: Sequence[str] = NAMES) -> list[str]:
    """Run all steps before the captions, and return the uids of the clips, sorted."""
    return sorted(row["uid"] for row in clips_of(run_segments(make_recipe(folder, None, frames, names), inline)))


class FakeExecutor:
    """An executor that runs tasks in this process and sends questions in bulk to the fake engine.

    `change` changes the rows that the engine returns.
    """

    rows: Callable[[list[pa.Table], list[str]], Rows] = staticmethod(inline.rows)
    map_tables: Callable[[Callable[[], TableFunction], list[pa.Table], Resources], Iterator[pa.Table]] = staticmethod(
        inline.map_tables
    )

    def __init__(
        self,
        behaviour: Behaviour,
        change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda rows: rows,
        one_by_one: bool = False,
    ) -> None:
        self._behaviour, self._change, self._one_by_one = behaviour, change, one_by_one
        self.rounds: list[tuple[Role, int]] = []

    def run_tasks(self, job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        bulk = bulk_captions_of(job)
        if bulk is not None:

            def count_open(numbers: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
                count = bulk.open_counter()
                return ((number, count(tasks[number])) for number in numbers)

            def send_open(role: Role, numbers: Sequence[int]) -> Iterator[pa.Table]:
                batches = bulk.open_batches(role)
                rows = [row for number in numbers for batch in batches(tasks[number]) for row in batch.to_pylist()]
                self.rounds.append((role, len(rows)))
                returned = self._change([self._through(row, bulk.engines[role]) for row in rows])
                names = list(dict.fromkeys(name for row in returned for name in (*row, ERROR_COLUMN)))
                for start in range(0, len(returned), 4):
                    batch = pa.table(
                        {name: [row.get(name) for row in returned[start : start + 4]] for name in names if name in KEPT}
                    )
                    yield bulk.store(batch, role, bulk.identity(role))

            bulk.ask(tasks, count_open, send_open)
            if self._one_by_one:
                tasks = [single for task in tasks for single in split_task(task)]
        workers = [Worker(stage) for stage in job.stages()]
        for task in tasks:
            for worker in workers:
                task = worker(task)
            yield task

    def _through(self, row: dict[str, Any], engine: VLLM) -> dict[str, Any]:
        asked = row | engine.request(row)
        if not asked[ERROR_COLUMN]:
            asked |= answer_row(asked, self._behaviour)
        return asked if asked[ERROR_COLUMN] else {**_bulk_captions.returned_columns(asked), ERROR_COLUMN: ""}


def log_of(folder: Path) -> str:
    return str(folder / "asked")


def check_clip_names(clips: Sequence[dict[str, Any]]) -> None:
    """Assert that the captions of each kept clip name this clip and no other."""
    for row in clips:
        if row["fate"] == "kept":
            assert all(set(UID.findall(item["text"])) == {row["uid"]} for item in row["captions"]), row


def test_each_clip_is_asked_about_once_and_gets_its_caption(tmp_path: Path) -> None:
    uids_of(tmp_path)
    engine = FakeExecutor(Behaviour(log_of(tmp_path)))
    curation = run_segments(make_recipe(tmp_path, Caption(engine=MODEL)), engine)
    clips = clips_of(curation)
    check_clip_names(clips)
    assert engine.rounds == [("captioner", N_CLIPS)]
    assert Counter(logged_calls(log_of(tmp_path))) == dict.fromkeys((row["uid"] for row in clips), 1)
    for row in clips:
        assert (
            row["caption_answers"],
            row["caption_tokens_in"],
            row["caption_tokens_out"],
            row["caption_cost_usd"],
        ) == (1, 100, 20, 0.0)
        assert row["caption_engine"] == MODEL.identity()
    assert not list((tmp_path / "out" / "tables").glob(f"{JOURNAL_PREFIX}*")), (
        "answers that are in the table are not stored twice"
    )
    assert all(account.balanced for account in ledger(curation))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_answer_is_given_to_another_clip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("canary")
    uids = uids_of(folder)
    some = st.sets(st.sampled_from(uids))
    fails, lost = data.draw(some), data.draw(some)
    unfit = data.draw(st.dictionaries(st.sampled_from(uids), st.integers(1, 2)))
    random = data.draw(st.randoms(use_true_random=False))

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        left = [row for row in rows if row["uid"] not in lost] + [
            row for row in rows if random.random() < 0.2 and row["uid"] not in lost
        ]
        random.shuffle(left)
        return left

    engine = FakeExecutor(Behaviour(log_of(folder), tuple(fails), unfit), change)
    curation = run_segments(make_recipe(folder, Caption(engine=MODEL)), engine)
    clips = clips_of(curation)
    check_clip_names(clips)
    assert all(account.balanced for account in ledger(curation))
    for row in clips:
        reason = row["fate_reason"] or ""
        if row["uid"] in lost:
            assert reason == f"unanswered question: {MODEL.identity()} gave no answer"
        elif row["uid"] in fails:
            assert reason == f"unanswered question: ValueError: the prompt of clip {row['uid']} is too long"
        elif unfit.get(row["uid"]) == 2:
            assert reason.count("refused caption: ") == 2
        else:
            assert (row["fate"], row["caption_answers"]) == ("kept", 1 + unfit.get(row["uid"], 0))
    assert len(engine.rounds) <= _bulk_captions.STAGES * 2
    assert Counter(logged_calls(log_of(folder))).most_common(1)[0][1] <= len(engine.rounds)


def test_clips_with_equal_captions_are_asked_about_again(tmp_path: Path) -> None:
    names = [f"{letter}{letter}-1" for letter in "abcdefghijklmnopq"]
    uids = uids_of(tmp_path, names=names)
    engine = FakeExecutor(Behaviour(log_of(tmp_path), alike=tuple(uids)))
    clips = clips_of(run_segments(make_recipe(tmp_path, Caption(engine=MODEL), names=names), engine))
    # Two clips per task, and one in the last.
    assert engine.rounds == [("captioner", 17), ("captioner", 16)]
    assert sorted(row["caption_answers"] for row in clips) == [1] + [2] * 16
    check_clip_names([row for row in clips if row["caption_answers"] == 2])


def test_windows_are_merged_and_rewritten(tmp_path: Path) -> None:
    names = ["a-2", "b-1"]
    first, *_ = uids_of(tmp_path, names=names)
    caption = Caption(
        engine=MODEL,
        prompt=load_prompt("structured", "describe"),
        windows=WindowSettings(size=2, min_size=1),
        rewrite=RewriteSettings(engine=WRITER),
    )
    engine = FakeExecutor(Behaviour(log_of(tmp_path), unfit={first: 1}))
    clips = clips_of(run_segments(make_recipe(tmp_path, caption, names=names), engine))
    check_clip_names(clips)
    # Windows; the first clip's windows again, and merges of the others; its merge, and rewrites of the others; then
    # only
    # the first clip's merge again, its rewrite, and that again.
    rounds = [
        ("captioner", 6),
        ("captioner", 4),
        ("captioner", 1),
        ("rewriter", 2),
        ("captioner", 1),
        ("rewriter", 1),
        ("rewriter", 1),
    ]
    assert engine.rounds == rounds
    assert {row["uid"]: row["caption_answers"] for row in clips} == {
        row["uid"]: 8 if row["uid"] == first else 4 for row in clips
    }
    assert {row["caption_engine"] for row in clips} == {f"{MODEL.identity()} > {WRITER.identity()}"}
    assert all(
        item["kind"] != "rewritten" or row["caption"] == item["text"] for row in clips for item in row["captions"]
    )


def test_engine_by_task_works_beside_an_engine_in_bulk(tmp_path: Path) -> None:
    uids = uids_of(tmp_path)
    calls = str(tmp_path / "calls")
    caption = Caption(engine=Counting(calls=calls), rewrite=RewriteSettings(engine=WRITER))
    executor = FakeExecutor(Behaviour(log_of(tmp_path)))
    clips = clips_of(run_segments(make_recipe(tmp_path, caption), executor))
    assert sorted(logged_calls(calls)) == uids, "each answer is paid for once"
    assert executor.rounds == [("rewriter", N_CLIPS)]
    assert all(row["fate"] == "kept" and f"clip {row['uid']}" in row["caption"] for row in clips)
    assert {row["caption_cost_usd"] for row in clips} == {0.25}


def test_resumed_run_asks_only_unanswered_questions(tmp_path: Path) -> None:
    uids = uids_of(tmp_path)
    recipe = make_recipe(tmp_path, Caption(engine=MODEL))
    behaviour = Behaviour(log_of(tmp_path), unfit={uids[0]: 1, uids[1]: 1})

    def ended(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(rows) == 2:
            raise RunError("killed between rounds")
        return rows

    with pytest.raises(RunError, match="between rounds"):
        run_segments(recipe, FakeExecutor(behaviour, ended))
    assert Counter(logged_calls(log_of(tmp_path)))[uids[0]] == 2
    folder = next((tmp_path / "out" / "tables").glob(f"{JOURNAL_PREFIX}*"))
    task_folders = {path.parent.name for path in folder.rglob("*.jsonl")}
    assert len(task_folders) == N_CLIPS, "with so few clips, each has its own task"
    assert len(journal.read(str(folder)).answers) == N_CLIPS

    # With two more files, tasks have other clips, and still find the answers.
    more = [*NAMES, "e-4", "f-30"]
    uids_of(tmp_path, names=more)
    executor = FakeExecutor(behaviour)
    clips = clips_of(run_segments(make_recipe(tmp_path, Caption(engine=MODEL), names=more), executor))
    check_clip_names(clips)
    assert len(clips) == N_CLIPS + 34
    assert executor.rounds == [("captioner", 34 + 2)]
    counts = Counter(logged_calls(log_of(tmp_path)))
    assert {uid: n for uid, n in counts.items() if n > 1} == {uids[0]: 3, uids[1]: 3}, (
        "only the questions whose answers were lost are asked again"
    )


def test_task_reads_only_the_answers_about_its_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uids_of(tmp_path)
    read: list[tuple[str, int]] = []

    def reading(folder: str, include_errors: bool = False) -> journal.StoredAnswers:
        kept = real(folder, include_errors)
        read.append((folder, len(kept.answers)))
        return kept

    real = journal.read
    monkeypatch.setattr(journal, "read", reading)
    run_segments(make_recipe(tmp_path, Caption(engine=MODEL)), FakeExecutor(Behaviour(log_of(tmp_path))))
    assert max(n for _, n in read) == 1, "each task has one clip"
    assert all(JOURNAL_PREFIX not in Path(folder).name for folder, _ in read), "never the whole journal"


def test_rows_retried_one_by_one_find_their_answers(tmp_path: Path) -> None:
    """After a worker died, rows are retried alone; their answers are in the folder of the task they were in."""
    names = ["c-40"]
    uids_of(tmp_path, names=names)
    engine = FakeExecutor(Behaviour(log_of(tmp_path)), one_by_one=True)
    clips = clips_of(run_segments(make_recipe(tmp_path, Caption(engine=MODEL), names=names), engine))
    check_clip_names(clips)
    assert [row["fate"] for row in clips] == ["kept"] * 40
    assert len(logged_calls(log_of(tmp_path))) == 40


def test_cached_captions_are_not_asked_for(tmp_path: Path) -> None:
    uids_of(tmp_path)
    recipe = make_recipe(tmp_path, Caption(engine=MODEL))
    run_segments(recipe, FakeExecutor(Behaviour(log_of(tmp_path))))
    scaled = recipe.model_copy(update={"curate": (Measure(scale=2.0), *recipe.curate[1:])})
    engine = FakeExecutor(Behaviour(log_of(tmp_path)))
    check_clip_names(clips_of(run_segments(scaled, engine)))
    assert engine.rounds == []
    assert len(logged_calls(log_of(tmp_path))) == N_CLIPS


def test_damaged_image_fails_only_its_clip(tmp_path: Path) -> None:
    frames = ToyFrames(damaged=(0.0,))
    uids_of(tmp_path, frames)
    clips = clips_of(
        run_segments(make_recipe(tmp_path, Caption(engine=MODEL), frames), FakeExecutor(Behaviour(log_of(tmp_path))))
    )
    failed = {row["number"]: row["fate_reason"] for row in clips if row["fate"] == "failed"}
    assert set(failed) == {0.0}
    assert "an image cannot be decoded" in failed[0.0]
    assert len(logged_calls(log_of(tmp_path))) == N_CLIPS - 3


def test_forgotten_clips_leave_the_journal(tmp_path: Path) -> None:
    uids_of(tmp_path)
    recipe = make_recipe(tmp_path, Caption(engine=MODEL))

    def ended(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(rows) == 1:
            raise RunError("killed")
        return rows

    first, *_ = uids_of(tmp_path)
    with pytest.raises(RunError):
        run_segments(recipe, FakeExecutor(Behaviour(log_of(tmp_path), unfit={first: 1}), ended))
    outcome = forget(recipe, source=str(tmp_path / "in" / "c-5.toy"))
    assert outcome is not None
    assert outcome.proof.left == []
    folder = next((tmp_path / "out" / "tables").glob(f"{JOURNAL_PREFIX}*"))
    assert len(journal.read(str(folder)).answers) == N_CLIPS - 5
    engine = FakeExecutor(Behaviour(log_of(tmp_path)))
    assert len(clips_of(run_segments(recipe, engine))) == N_CLIPS - 5
    assert sum(n for _, n in engine.rounds) <= 1


def test_row_with_another_clips_uid_ends_the_run(tmp_path: Path) -> None:
    uids_of(tmp_path)

    def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "uid": other["uid"]} for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]

    with pytest.raises(RunError, match=r"caption: .* is not the one it was given"):
        run_segments(make_recipe(tmp_path, Caption(engine=MODEL)), FakeExecutor(Behaviour(log_of(tmp_path)), swapped))


def test_unanswered_questions_are_counted_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, *_ = uids_of(tmp_path)

    def lost(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if row["uid"] != second]

    with caplog.at_level(logging.WARNING, "worldloom"):
        run_segments(
            make_recipe(tmp_path, Caption(engine=MODEL)),
            FakeExecutor(Behaviour(log_of(tmp_path), fails=(first,)), lost),
        )
    assert caplog.messages[0] == f"caption: of {N_CLIPS} questions vllm could not answer 1, and 1 did not come back"


def test_inline_run_is_refused_with_the_fix(tmp_path: Path) -> None:
    uids_of(tmp_path)
    for caption in (Caption(engine=MODEL), Caption(engine=Counting(), rewrite=RewriteSettings(engine=WRITER))):
        with pytest.raises(RunError, match="caption: engine vllm answers through Ray Data; run without --inline"):
            run_segments(make_recipe(tmp_path, caption), inline)


@pytest.fixture
def ray_run(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return `pipelines.run` on a cluster that seems to have a GPU and vLLM, with the fake in place of Ray's
    processor."""
    import ray
    import ray.data.llm

    from pipelines import run

    def with_behaviour(behaviour: Behaviour, **changes: bool) -> Any:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
        monkeypatch.setattr(run, "_is_installed", lambda settings: True)
        monkeypatch.setattr(ray.data.llm, "build_processor", fake_build_processor(behaviour, **changes))
        return run

    return with_behaviour


FEW = ["a-4", "d-2"]


def test_rows_come_back_shuffled_on_ray(tmp_path: Path, ray_run: Callable[..., Any]) -> None:
    frames = ToyFrames(damaged=(3.0,))
    uids_of(tmp_path, frames, FEW)
    clips = clips_of(run_segments(make_recipe(tmp_path, None, frames, FEW), inline))
    (damaged,) = [row["uid"] for row in clips if row["number"] == 3.0]
    fails, once, always, *good = sorted(row["uid"] for row in clips if row["uid"] != damaged)
    behaviour = Behaviour(log_of(tmp_path), fails=(fails,), unfit={once: 1, always: 2})
    recipe = make_recipe(tmp_path, Caption(engine=VLLM(model=MODEL.model, batch_size=4)), frames, FEW)
    clips = clips_of(run_segments(recipe, ray_run(behaviour, shuffled=True)))
    check_clip_names(clips)
    reasons = {row["uid"]: row["fate_reason"] for row in clips if row["fate"] == "failed"}
    assert set(reasons) == {damaged, fails, always}
    assert "an image cannot be decoded" in reasons[damaged]
    assert reasons[fails].endswith(f"the prompt of clip {fails} is too long")
    assert Counter(logged_calls(log_of(tmp_path))) == {fails: 1, once: 2, always: 2, **dict.fromkeys(good, 1)}


def test_run_that_fails_in_a_round_resumes_on_ray(tmp_path: Path, ray_run: Callable[..., Any]) -> None:
    uids_of(tmp_path, names=FEW)
    recipe = make_recipe(tmp_path, Caption(engine=VLLM(model=MODEL.model, batch_size=1)), names=FEW)
    with pytest.raises(
        RunError, match=r"caption: asking in bulk failed: .*illegal memory access.*Answers so far are kept; run again"
    ):
        run_segments(recipe, ray_run(Behaviour(log_of(tmp_path), dies_at=4, tables=str(tmp_path / "out" / "tables"))))
    folder = next((tmp_path / "out" / "tables").glob(f"{JOURNAL_PREFIX}*"))
    kept = len(journal.read(str(folder)).answers)
    assert 1 <= kept <= 4
    before = len(logged_calls(log_of(tmp_path)))
    clips = clips_of(run_segments(recipe, ray_run(Behaviour(log_of(tmp_path)))))
    check_clip_names(clips)
    assert [row["fate"] for row in clips] == ["kept"] * 6
    assert len(logged_calls(log_of(tmp_path))) - before == 6 - kept


def test_missing_gpu_or_package_is_named_before_asking(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from pipelines import run

    uids_of(tmp_path)
    recipe = make_recipe(tmp_path, Caption(engine=MODEL))
    with pytest.raises(
        RunError, match=r"caption: engine vllm needs 1 GPU for each replica .* the Ray cluster has 0: .*openai"
    ):
        run_segments(recipe, run)
    really = run._is_installed
    monkeypatch.setattr(run, "_is_installed", lambda settings: really(settings, gpus=0))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(
        RunError,
        match=r"caption: engine vllm: vllm is not installed on the Ray workers with GPUs: pip install vllm.*openai",
    ):
        run_segments(recipe, run)
    assert not list((tmp_path / "out" / "tables").glob(f"{JOURNAL_PREFIX}*"))


def test_row_with_another_clips_uid_ends_the_run_on_ray(tmp_path: Path, ray_run: Callable[..., Any]) -> None:
    uids_of(tmp_path, names=FEW)
    with pytest.raises(RunError, match="is not the one it was given"):
        run_segments(
            make_recipe(tmp_path, Caption(engine=MODEL), names=FEW), ray_run(Behaviour(log_of(tmp_path)), swapped=True)
        )


def test_ray_builds_its_real_processor_from_the_settings(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    import ray.data.llm

    from pipelines import run

    built = []

    def build_processor(*args: Any, **options: Any) -> Any:
        built.append(real(*args, **options))
        return built[-1]

    real = ray.data.llm.build_processor
    monkeypatch.setattr(ray.data.llm, "build_processor", build_processor)
    monkeypatch.setattr(run, "_is_installed", lambda settings: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 2.0})
    # A folder without a model: only the workers would load it.
    for engine in (VLLM(model=str(tmp_path), tensor_parallel=2), VLLM(model=str(tmp_path), max_images=0)):
        questions = ray.data.from_arrow(_bulk_captions.QUESTIONS.empty_table())
        run._processor("caption", engine)(questions)
        stages = built[-1].list_stage_names()
        assert stages == ["PrepareMultimodalStage"] * bool(engine.max_images) + ["ChatTemplateStage", "vLLMEngineStage"]
        columns = dict.fromkeys(_bulk_captions.QUESTIONS.names) | {"images": [], "text": "", "system": ""}
        given = {*columns, *engine.request(columns)}
        assert all(set(built[-1].get_stage_by_name(name).get_required_input_keys()) <= given for name in stages)
