"""The caption step: settings in recipes, written columns, and that no answer is paid for twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from captioning.dialogue import journal
from captioning.engines.signals import Signals
from captioning.prompt import load_prompt
from cluster.config import ConfigError, parse_document
from cluster.config import parse as parse_settings
from pipelines import inline
from pipelines.commands import gc
from pipelines.curation import Curation, inspect, run_segments
from pipelines.engine.segments import is_heavy, segments_of
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Context, RunError, Step, start_fates
from pipelines.forgetting.request import forget
from pipelines.ledger import captioning, ledger
from pipelines.recipe import Recipe, resolved
from pipelines.steps.caption import JOURNAL_PREFIX, WRITES, Caption, RewriteSettings, WindowSettings, origins_of
from pipelines.steps.cut import Cut
from pipelines.steps.encode import Encode
from pipelines.steps.frames import Frames
from pipelines.steps.keep import Bound
from pipelines.steps.scan import Scan
from pipelines.video.decode import OPEN_LOG
from tests.support.killing import files_of
from tests.support.paths import ROOT
from tests.support.ray_cores import no_automatic_collection, wait_for_free_cores
from tests.support.toy_captioner import COST_USD, Counting, ToyFrames
from tests.support.toy_recipes import final_rows, keep, logged_calls, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Split
from tests.support.videos import encode, numbered
from training.data.buckets import BucketSettings

NAMES = ["a-3", "b-0", "c-5", "broken-1", "d-1"]
N_CLIPS = 9


def make_recipe(folder: Path, caption: Caption, out: str = "out") -> Recipe:
    """Return a recipe that ends in `caption`; `looks` in the folder logs the clips whose images are taken."""
    return toy_recipe(folder, [Measure(), Split(), ToyFrames(calls=str(folder / "looks")), caption], out)


def clips_of(curation: Curation) -> list[dict[str, Any]]:
    return [row for row in final_rows(curation) if row["clip_index"] is not None]


def journals(folder: Path) -> list[Path]:
    """Return the files of all journals of a run."""
    return sorted((folder / "out" / "tables").glob(f"{JOURNAL_PREFIX}*/*"))


@pytest.mark.slow
def test_every_clip_has_its_captions_and_their_cost(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    curation = run_segments(make_recipe(tmp_path, Caption(engine=Counting(calls=calls))), inline)
    clips = clips_of(curation)
    assert sorted(logged_calls(calls)) == sorted(row["uid"] for row in clips)
    for row in clips:
        kinds = {item["kind"]: item["text"] for item in row["captions"]}
        assert list(kinds) == ["dense", "medium", "short"] + ["source"] * (row["number"] == 0)
        assert all(f"clip {row['uid']}" in text for text in kinds.values())
        assert (row["caption"], row["caption_engine"]) == (kinds["dense"], "counting-a boat")
        assert (
            row["caption_answers"],
            row["caption_tokens_in"],
            row["caption_tokens_out"],
            row["caption_cost_usd"],
        ) == (1, 100, 20, COST_USD)
        assert row["caption_prompt"] == load_prompt("levels", "describe").label
        assert row["caption_fields"] is None
    assert journals(tmp_path) == []
    assert all(account.balanced for account in ledger(curation))
    assert captioning(curation) == "9 clips in 9 answers, 900 tokens in, 180 out, $2.25"


@pytest.mark.slow
def test_own_segment_whose_table_has_no_images(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    curation = run_segments(make_recipe(tmp_path, Caption(engine=Counting())), inline)
    assert [state.segment.labels for state in curation.segments] == [
        ("measure",),
        ("split", "toy_frames"),
        ("caption",),
    ]
    assert not any(is_heavy(field) for field in curation.final.segment.schema)
    assert not Caption().starts_segment()
    assert Caption(rewrite=RewriteSettings(engine=Counting())).starts_segment()
    resources = Caption(engine=Counting(), rewrite=RewriteSettings(engine=Counting())).resources()
    assert (resources.cpus, resources.pooled, resources.max_workers) == (2.0, True, 1)
    assert not Caption().resources().pooled


def test_windows_are_merged_and_rewritten(tmp_path: Path) -> None:
    write_toys(tmp_path, ["a-2"])
    seen, written = str(tmp_path / "seen"), str(tmp_path / "written")
    caption = Caption(
        engine=Counting(calls=seen),
        prompt=load_prompt("structured", "describe"),
        windows=WindowSettings(size=2, min_size=1),
        rewrite=RewriteSettings(engine=Counting(calls=written, says="a small boat")),
    )
    clips = clips_of(run_segments(make_recipe(tmp_path, caption), inline))
    for row in clips:
        assert row["caption"] == f"A caption of clip {row['uid']}, in which a small boat lies on the sea."
        assert [item["kind"] for item in row["captions"]][:2] == ["rewritten", "dense"]
        assert json.loads(row["caption_fields"])["lighting"].startswith("A lighting caption of clip")
        # Two windows, one merge, one rewrite.
        assert row["caption_answers"] == 4
        assert row["caption_engine"] == "counting-a boat > counting-a small boat"
        assert "structured@" in row["caption_prompt"]
        assert " > rewrite@" in row["caption_prompt"]
    assert Counter(logged_calls(seen)) == {row["uid"]: 3 for row in clips}


@pytest.mark.slow
def test_unfit_captions_fail_with_reasons_and_cost(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    curation = run_segments(
        make_recipe(tmp_path, Caption(engine=Counting(says="I cannot see any images: nothing"))), inline
    )
    clips = clips_of(curation)
    for row in clips:
        assert (row["fate"], row["fate_step"]) == ("failed", "caption")
        assert row["fate_reason"].count("refused caption: ") == 2
        assert (row["caption"], row["caption_answers"], row["caption_cost_usd"]) == (None, 2, 2 * COST_USD)
    accounts = ledger(curation)
    assert all(account.balanced for account in accounts)
    assert accounts[-1].reasons == (("failed", "caption", "refused caption, then refused caption", N_CLIPS),)


def test_clip_without_images_fails_alone(tmp_path: Path) -> None:
    table = start_fates(
        pa.table(
            {
                "uid": ["a", "b"],
                "source_caption": pa.nulls(2, pa.string()),
                "kind": ["video", "video"],
                "camera": ["pan", None],
                "duration_s": [2.0, 2.0],
                "frames": pa.array([[b"clip"], None], pa.list_(pa.binary())),
                "frame_times_s": pa.array([[1.0], None], pa.list_(pa.float64())),
            }
        )
    )
    rows = Caption(engine=Counting()).open(Context(str(tmp_path), 0, "lineage"))(table).to_pylist()
    assert [row["fate"] for row in rows] == ["kept", "failed"]
    assert rows[1]["fate_reason"] == "ValueError: the clip has no frames"
    assert rows[1]["caption_answers"] == 0


def test_captions_of_engine_signals() -> None:
    columns = {"kind": "video", "width": 160, "height": 90, "luma": 0.1, "motion": 0.01}
    table = start_fates(
        pa.table(
            {
                "uid": ["a", "b"],
                "source_caption": ["a red\nball", None],
                **{name: [value] * 2 for name, value in columns.items()},
            }
        )
    )
    rows = Caption(engine=Signals()).open(Context("", 0))(table).to_pylist()
    assert [row["caption"] for row in rows] == [
        "a red ball. A dark landscape video with slow motion.",
        "A dark landscape video with slow motion.",
    ]
    assert [[item["kind"] for item in row["captions"]] for row in rows] == [["measured", "source"], ["measured"]]
    assert [(row["caption_prompt"], row["caption_cost_usd"], row["fate"]) for row in rows] == [(None, 0.0, "kept")] * 2
    assert Caption().reads() == ("source_caption", "kind", "width", "height", "luma", "motion")


def test_files_with_the_same_packets_have_one_origin() -> None:
    rows = [
        {"uid": "1", "content_hash": "h", "source": "a", "cluster": "g"},
        {"uid": "2", "content_hash": None, "source": "a"},
    ]
    assert origins_of(rows) == {"1": ("h", "g"), "2": ("a", None)}


# Settings in recipes


def parse(text: str) -> Recipe:
    head = "name: n\nout: out\nsources: [{videos: '*.mp4'}]\ncurate:\n  - scan: {}\n  - cut: {}\n"
    return parse_settings(Recipe, parse_document(head + text, "r.yaml"))


def test_recipe_without_images_names_the_step_that_writes_them() -> None:
    with pytest.raises(
        ValidationError, match=r"unknown column 'frames'.*It is written by frames: put that step before this one"
    ):
        Recipe(
            name="n",
            out="out",
            sources=(SourceSettings(videos="*.mp4"),),
            curate=(Scan(), Cut(), Caption(engine=Counting())),
        )
    for steps in (
        (Scan(), Cut(), Frames(), Caption(engine=Counting())),
        (Scan(), Cut(), Caption(engine=Counting(), images="thumbnails")),
    ):
        Recipe(name="n", out="out", sources=(SourceSettings(videos="*.mp4"),), curate=steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{prompt: level}", "r.yaml:7: curate.2.caption.prompt: unknown prompt 'level'; did you mean 'levels'"),
        ("{prompt: none.yaml}", "r.yaml:7: curate.2.caption.prompt: none.yaml: no such file"),
        ("{language: klingon}", "r.yaml:7: curate.2.caption.language: unknown language 'klingon'; write one of ar"),
        ("{windows: {size: 16}}", "r.yaml:7: curate.2.caption.windows: min_size 128 is over size 16"),
        ("{rewrite: {engine: signals}}", "caption.rewrite.engine: 'signals' does not answer prompts"),
        ("{images: shots}", "caption.images"),
        ("{promt: levels}", "unknown key 'promt'; did you mean 'prompt'"),
        ("{prompt: merge}", "merge.yaml"),
    ],
)
def test_mistakes_are_named_with_their_line_and_key(settings: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"  - caption: {settings}\n")
    assert message in str(caught.value)


def test_resolved_recipe_is_read_as_the_same_recipe() -> None:
    recipe = parse(
        "  - caption: {engine: signals, prompt: dense, windows: {size: 64, min_size: 8}, retries: 2, language: de}\n"
    )
    again = parse_settings(Recipe, parse_document(resolved(recipe), "again.yaml"))
    assert again == recipe
    assert "prompt: dense" in resolved(recipe)


def test_digest_follows_only_what_captions_depend_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((Path(load_prompt.__code__.co_filename).parent / "prompts" / "levels.yaml").read_text())
    plain = Caption(engine=Counting()).settings_digest()
    same = [
        Caption(engine=Counting(calls="x", budget_usd=1.0)),
        Caption(engine=Counting(), prompt=load_prompt(str(path), "describe")),
    ]
    assert [step.settings_digest() for step in same] == [plain] * 2
    other: list[Caption] = [
        Caption(engine=Counting(says="a ship")),
        Caption(engine=Counting(), prompt=load_prompt("dense", "describe")),
        Caption(engine=Counting(), language="de"),
        Caption(engine=Counting(), retries=2),
        Caption(engine=Counting(), windows=WindowSettings(size=128)),
        Caption(engine=Counting(), rewrite=RewriteSettings(engine=Counting())),
        Caption(engine=Counting(), images="thumbnails"),
    ]
    assert len({plain, *(step.settings_digest() for step in other)}) == 1 + len(other)
    # The engine signals has no prompt, so that none of these settings matter.
    assert Caption(prompt=load_prompt("dense", "describe")).settings_digest() == Caption().settings_digest()


def test_read_columns_follow_from_the_prompts_variables(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("doc: d\nanswer: text\ncaptions: {dense: a}\nuser: Describe it.\n")
    merge = tmp_path / "merge.yaml"
    merge.write_text("doc: d\nanswer: same\nuser: '{{ parts }}'\n")
    windows = {"size": 256, "min_size": 128, "merge": str(merge)}
    reads = Caption.model_validate({"engine": Counting(), "prompt": str(path), "windows": windows}).reads()
    assert set(reads) == {"source_caption", "frames", "frame_times_s", "duration_s"}
    assert "camera" in Caption(engine=Counting()).reads()


def test_prompt_changes_the_lineage_of_captions_only() -> None:
    def lineages(caption: Caption) -> dict[str, str]:
        steps: list[Step] = [
            Scan(),
            Cut(),
            Frames(),
            caption,
            Encode(buckets=(BucketSettings(size=32, frames=(1,), fps=8),)),
        ]
        labels = [step.name for step in steps]
        return {
            label: lineage
            for segment in segments_of(steps, labels)
            for label, lineage in zip(segment.labels, segment.lineages, strict=True)
        }

    one, other = (
        lineages(Caption(engine=Counting())),
        lineages(Caption(engine=Counting(), prompt=load_prompt("dense", "describe"))),
    )
    assert {label for label in one if one[label] != other[label]} == {"caption"}


@pytest.mark.slow
def test_another_prompt_decodes_and_encodes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        encode(tmp_path / "in" / f"{i}.mp4", numbered(40 + i), options={"g": "10"})
    calls = str(tmp_path / "calls")

    def run(prompt: str) -> Curation:
        steps = (
            Scan(),
            Cut(min_s=0.3),
            Frames(),
            Caption(engine=Counting(calls=calls), prompt=load_prompt(prompt, "describe")),
            Encode(buckets=(BucketSettings(size=32, frames=(1,), fps=8),), stills=True),
        )
        recipe = Recipe(
            name="n",
            out=str(tmp_path / "out"),
            sources=(SourceSettings(videos=str(tmp_path / "in" / "*.mp4")),),
            curate=steps,
        )
        plan = inspect(recipe)
        if prompt == "dense":
            pending = [(state.segment.labels, state.n_pending) for state in plan.segments]
            assert pending == [(("scan",), 0), (("cut", "frames"), 0), (("caption",), len(first))]
        return run_segments(recipe, inline)

    first = clips_of(run("levels"))
    latents = {name: data for name, data in files_of(tmp_path / "out" / "tables").items() if name.startswith("latents")}
    assert latents
    monkeypatch.setenv(OPEN_LOG, str(tmp_path / "opens"))
    again = run("dense")
    assert not (tmp_path / "opens").exists(), "no video is opened"
    assert Counter(logged_calls(calls)) == {row["uid"]: 2 for row in first}
    assert {
        name: data for name, data in files_of(tmp_path / "out" / "tables").items() if name.startswith("latents")
    } == latents
    assert all(row["bucket"] and row["caption_prompt"].startswith("dense@") for row in clips_of(again))


@pytest.mark.slow
def test_looser_threshold_asks_only_about_added_clips(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    recipe = make_recipe(tmp_path, Caption(engine=Counting(calls=calls)))

    def run(max_number: float) -> list[dict[str, Any]]:
        steps = (*recipe.curate[:3], keep(number=Bound(max=max_number)), recipe.curate[3])
        return clips_of(run_segments(recipe.model_copy(update={"curate": steps}), inline))

    tight = run(1)
    assert len(logged_calls(calls)) == sum(row["fate"] == "kept" for row in tight) == 5
    loose = run(9)
    assert Counter(logged_calls(calls)) == {row["uid"]: 1 for row in loose}
    assert [row["captions"] for row in loose] == [
        row["captions"]
        for row in clips_of(run_segments(make_recipe(tmp_path, Caption(engine=Counting()), "b"), inline))
    ]


# Runs that are killed, resumed, forgotten or collected

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[4].split(":")
from tests.pipelines.steps.test_caption import make_recipe
from tests.support.toy_captioner import Counting
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.steps.caption import Caption
folder = Path(sys.argv[1])
engine = Counting(calls=str(folder / "calls"), max_answers=int(sys.argv[2]), at_limit=sys.argv[3])
run_segments(make_recipe(folder, Caption(engine=engine)), inline)
"""


def killed_run(folder: Path, max_answers: int) -> int:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(max_answers), "kill", str(ROOT)], check=False, timeout=120
    ).returncode


@pytest.mark.slow
def test_run_that_is_killed_often_asks_nothing_twice(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    for max_answers in (2, 5, 8):
        assert killed_run(tmp_path, max_answers) == -9
        assert len(logged_calls(calls)) == max_answers
        assert journals(tmp_path)
    recipe = make_recipe(tmp_path, Caption(engine=Counting(calls=calls)))
    ended = clips_of(run_segments(recipe, inline))
    assert Counter(logged_calls(calls)) == {row["uid"]: 1 for row in ended}
    assert journals(tmp_path) == []
    undisturbed = clips_of(run_segments(make_recipe(tmp_path, Caption(engine=Counting()), "undisturbed"), inline))
    assert ended == undisturbed


def run_until_error(folder: Path, max_answers: int, **settings: Any) -> str:
    """Run with an engine that raises after so many answers, and return the message of the run's error."""
    caption = Caption(
        engine=Counting(calls=str(folder / "calls"), max_answers=max_answers, at_limit="raise"), **settings
    )
    with pytest.raises(RunError) as caught:
        run_segments(make_recipe(folder, caption), inline)
    return str(caught.value)


@pytest.mark.slow
def test_error_of_the_engine_ends_the_run_which_can_resume(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    assert run_until_error(tmp_path, 4) == "the server is gone: start it and run again"
    assert sum(len(journal.read(str(path)).answers) for path in {file.parent for file in journals(tmp_path)}) == 4
    run_segments(make_recipe(tmp_path, Caption(engine=Counting(calls=str(tmp_path / "calls")))), inline)
    assert set(Counter(logged_calls(str(tmp_path / "calls"))).values()) == {1}


@pytest.mark.slow
def test_clips_without_an_answer_are_pending_and_asked_again(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    with pytest.raises(
        RunError, match=r"^caption: \d+ of \d+ rows are pending, .*: unanswered question: HTTP 503: busy"
    ):
        run_segments(make_recipe(tmp_path, Caption(engine=Counting(calls=calls, busy_for=3))), inline)
    assert len(logged_calls(calls)) == N_CLIPS - 3
    done = clips_of(run_segments(make_recipe(tmp_path, Caption(engine=Counting(calls=calls))), inline))
    assert Counter(logged_calls(calls)) == {row["uid"]: 1 for row in done}
    assert {row["fate"] for row in done} == {"kept"}


@pytest.mark.slow
def test_budget_includes_the_cost_of_earlier_runs(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    for budget_usd, answered in ((4 * COST_USD, 4), (4 * COST_USD, 4), (6 * COST_USD, 6)):
        with pytest.raises(RunError, match="budget of"):
            run_segments(make_recipe(tmp_path, Caption(engine=Counting(calls=calls, budget_usd=budget_usd))), inline)
        assert len(logged_calls(calls)) == answered
    done = clips_of(
        run_segments(
            make_recipe(tmp_path, Caption(engine=Counting(calls=calls, budget_usd=N_CLIPS * COST_USD))), inline
        )
    )
    assert len(done) == len(logged_calls(calls)) == N_CLIPS


@pytest.mark.slow
def test_journal_is_pruned_and_then_removed(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    run_until_error(tmp_path, 6)
    (file,) = journals(tmp_path)
    answered = set(logged_calls(str(tmp_path / "calls")))
    recipe = make_recipe(tmp_path, Caption(engine=Counting()))
    state = inspect(recipe).segments[-1]
    in_table = set(state.rows.uids.to_pylist())
    step = state.segment.steps[0]
    context = Context(recipe.tables_uri, 0, state.segment.lineages[0])
    pending = set(state.rows.uids.to_pylist()) ^ {
        row["uid"] for row in inspect(recipe).segments[-2].rows.rows.to_pylist()
    }
    step.prepare(context, pending)
    kept = journal.read(str(file.parent))
    assert {answer.uid for answer in kept.answers.values()} == answered - in_table
    assert sum(kept.spent_usd.values()) == 6 * COST_USD
    # Killed between the last part and the removal: the next run removes it.
    done = run_segments(recipe, inline)
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    assert clips_of(run_segments(recipe, inline)) == clips_of(done)
    assert not file.parent.exists()


@pytest.mark.slow
def test_forgotten_file_leaves_the_journal(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    run_until_error(tmp_path, N_CLIPS - 1)
    recipe = make_recipe(tmp_path, Caption(engine=Counting(calls=str(tmp_path / "calls"))))
    folder = journals(tmp_path)[0].parent
    clips = [row for row in inspect(recipe).segments[1].rows.read().to_pylist() if row["source"].endswith("c-5.toy")]
    # A line that was being written when the writer was killed.
    torn = folder / f"torn-000000{journal.SUFFIX}"
    torn.write_text(json.dumps({"key": "k", "uid": clips[0]["uid"], "text": "half a"})[:-5])
    outcome = forget(recipe, source=str(tmp_path / "in" / "c-5.toy"))
    assert outcome is not None
    assert outcome.proof.left == []
    gone = {row["uid"] for row in clips}
    left = b"".join(path.read_bytes() for path in journals(tmp_path)).decode()
    assert not any(uid in left for uid in gone)
    before = set(logged_calls(str(tmp_path / "calls")))
    ended = run_segments(recipe, inline)
    assert {row["uid"] for row in clips_of(ended)} == (before - gone) | (
        set(logged_calls(str(tmp_path / "calls"))) - before
    )
    assert set(Counter(logged_calls(str(tmp_path / "calls"))).values()) == {1}


@pytest.mark.slow
def test_gc_does_not_reach_journals_of_other_recipes(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    run_until_error(tmp_path, 3, prompt=load_prompt("dense", "describe"))
    recipe = make_recipe(tmp_path, Caption(engine=Counting()))
    run_segments(recipe, inline)
    # Toy steps cannot be read from a recipe file, so the test asks only which folders gc would keep.
    reached = gc.reached_folders(recipe, inspect(recipe))
    (left,) = {file.parent.name for file in journals(tmp_path)}
    assert left.startswith(JOURNAL_PREFIX)
    assert left not in reached


@pytest.mark.slow
def test_captions_on_ray_equal_those_in_process(tmp_path: Path, ray_session: None) -> None:
    from pipelines import run

    write_toys(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    with pytest.raises(RunError, match=r"^the server is gone: start it and run again$"):
        run_segments(make_recipe(tmp_path, Caption(engine=Counting(calls=calls, max_answers=4, at_limit="raise"))), run)
    ended = clips_of(run_segments(make_recipe(tmp_path, Caption(engine=Counting(calls=calls))), run))
    assert Counter(logged_calls(calls)) == {row["uid"]: 1 for row in ended}
    assert ended == clips_of(run_segments(make_recipe(tmp_path, Caption(engine=Counting()), "inline"), inline))
    assert journals(tmp_path) == []


@pytest.mark.slow
def test_worker_death_on_ray_loses_no_answer(tmp_path: Path, ray_session: None) -> None:
    """The engine kills each of its workers after three answers in all. Restarts find these, and the run ends with
    failed rows. Its cores are freed for the next segment even if Python's garbage collector does not happen to run."""
    from pipelines import run

    write_toys(tmp_path, ["a-3", "d-3"])
    calls = str(tmp_path / "calls")
    dying = make_recipe(tmp_path, Caption(engine=Counting(calls=calls, max_answers=3)))
    dying = dying.model_copy(update={"curate": (*dying.curate, Pick())})
    with no_automatic_collection():
        clips = clips_of(run_segments(dying, run))
        wait_for_free_cores()
    assert Counter(logged_calls(calls)).most_common(1)[0][1] == 1
    answered = [row for row in clips if row["fate"] != "failed"]
    assert {row["uid"] for row in answered} == set(logged_calls(calls))
    assert ["WorkerDied" in row["fate_reason"] for row in clips if row["fate"] == "failed"] == [True] * 3


@pytest.mark.slow
def test_duplicates_get_no_caption(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    recipe = make_recipe(tmp_path, Caption(engine=Counting()))
    steps: list[Step] = [*recipe.curate[:3], Pick(), keep(number=Bound(max=9)), recipe.curate[3]]
    clips = clips_of(run_segments(recipe.model_copy(update={"curate": tuple(steps)}), inline))
    assert {row["fate"] for row in clips} == {"kept", "duplicate"}
    assert all((row["caption"] is None) == (row["fate"] == "duplicate") for row in clips)


def test_every_column_is_documented() -> None:
    assert all((field.metadata or {}).get(b"doc") for field in WRITES)
