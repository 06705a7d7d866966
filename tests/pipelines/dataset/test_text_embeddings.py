"""Text embeddings: each distinct caption is embedded once, also over killed runs, and Ray gives the same values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.random_t5 import save_t5
from captioning.encoder import NULL_CAPTION, TextEncoderSettings, text_key
from captioning.encoders.hashing import Hashing
from captioning.encoders.t5 import T5
from cluster.resources import Resources
from pipelines import inline
from pipelines.dataset import text_embeddings
from pipelines.dataset.captions import Captions
from pipelines.dataset.text_embeddings import Embedding, embed_captions, tasks_of
from pipelines.engine.executor import Executor
from pipelines.engine.step import RunError, TableFunction
from tests.support.executors import InlineExecutor
from tests.support.killing import Killed, Killer
from tests.support.stored import stored_texts
from tests.support.text_batches import in_batches
from training.data.text_index import read_text_index


class RecordingExecutor(InlineExecutor):
    """An executor that records the captions and resources of its tasks."""

    def __init__(self) -> None:
        self.captions: list[str] = []
        self.resources: set[Resources] = set()

    def map_tables(
        self, load: Callable[[], TableFunction], inputs: Iterable[pa.Table], resources: Resources, /
    ) -> Iterator[pa.Table]:
        self.resources.add(resources)
        tables = list(inputs)
        for table in tables:
            self.captions += table["caption"].to_pylist()
        return inline.map_tables(load, tables, resources)


class HeavyHashing(Hashing):
    """The encoder `hashing`, marked as one that needs the executor for any number of captions."""

    lightweight = False  # type: ignore[misc]


def embed(
    folder: Path, encoder: TextEncoderSettings, captions: list[str], executor: Executor = inline
) -> dict[str, int]:
    """Embed captions, and return the number of tokens of each by its key."""
    wanted = captions_of(captions, encoder.identity())
    missing_M = wanted.missing(read_text_index(str(folder)).rows["key"])
    n_text_N = embed_captions(str(folder), encoder, wanted, missing_M, executor)
    return dict(zip(wanted.key_N.to_pylist(), n_text_N.to_pylist(), strict=True))


def captions_of(captions: list[str], identity: str = "me") -> Captions:
    half = len(captions) // 2
    return Captions.of(pa.chunked_array([captions[:half], captions[half:]], pa.string()), identity)


CAPTIONS = [f"a boat {'very ' * (i % 7)}far number {i}" for i in range(50)]


def test_each_distinct_caption_is_embedded_once(tmp_path: Path) -> None:
    encoder, executor = HeavyHashing(), RecordingExecutor()
    lengths = embed(tmp_path, encoder, CAPTIONS * 2, executor)
    assert sorted(executor.captions) == sorted([NULL_CAPTION, *CAPTIONS])
    assert lengths == {
        text_key(caption, encoder.identity()): max(1, len(caption.split())) for caption in [NULL_CAPTION, *CAPTIONS]
    }
    assert embed(tmp_path, encoder, [*CAPTIONS[:20], "something new"], executor).keys() == {
        text_key(caption, encoder.identity()) for caption in [NULL_CAPTION, *CAPTIONS[:20], "something new"]
    }
    assert executor.captions[51:] == ["something new"]
    assert executor.resources == {Resources(pooled=True)}
    stored = stored_texts(tmp_path)
    for caption in CAPTIONS:
        expected = torch.from_numpy(encoder.open().encode([caption])[0].tokens).to(torch.bfloat16)
        assert torch.equal(stored[text_key(caption, encoder.identity())], expected)


def test_a_light_encoder_embeds_few_captions_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = RecordingExecutor()
    embed(tmp_path, Hashing(), CAPTIONS, executor)
    assert executor.captions == []
    monkeypatch.setattr(text_embeddings, "MAX_LOCAL_CAPTIONS", 10)
    embed(tmp_path, Hashing(), [*CAPTIONS, *(f"more {i}" for i in range(10))], executor)
    assert len(executor.captions) == 10


def rows_of_tasks(texts: list[str]) -> list[list[tuple[str, str]]]:
    """Return (key, caption) of each row of each task of distinct captions and the null caption."""
    captions = captions_of(texts)
    tasks = tasks_of(captions, captions.distinct)
    return [list(zip(task["key"].to_pylist(), task["caption"].to_pylist(), strict=True)) for task in tasks]


@pytest.mark.slow
@settings(max_examples=60)
@given(
    captions=st.lists(st.text(max_size=40), max_size=60),
    max_captions=st.integers(1, 20),
    n_bytes=st.integers(1, 300),
)
def test_tasks_hold_every_caption_the_longest_first(captions: list[str], max_captions: int, n_bytes: int) -> None:
    by_key = {text_key(caption, "me"): caption for caption in [*captions, NULL_CAPTION]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_embeddings, "CAPTIONS_PER_PART", max_captions)
        patch.setattr(text_embeddings, "BYTES_PER_PART", n_bytes)
        tasks = rows_of_tasks(captions)
        # The tasks do not depend on the order of captions.
        assert tasks == rows_of_tasks(sorted(captions, reverse=True))
    flat = [row for task in tasks for row in task]
    assert dict(flat) == by_key
    assert len(flat) == len(by_key)
    lengths = [len(caption.encode()) for _, caption in flat]
    assert lengths == sorted(lengths, reverse=True)
    for task in tasks:
        assert 1 <= len(task) <= max_captions
        assert len(task) == 1 or sum(len(caption.encode()) for _, caption in task) <= n_bytes


@pytest.mark.slow
def test_a_killed_run_keeps_its_finished_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_embeddings, "CAPTIONS_PER_PART", 10)
    encoder = HeavyHashing()
    whole = embed(tmp_path / "whole", encoder, CAPTIONS)
    for at in range(12):
        folder, first, second = tmp_path / str(at), RecordingExecutor(), RecordingExecutor()
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, at)
            with pytest.raises(Killed):
                embed(folder, encoder, CAPTIONS, first)
        assert killer.kill_points == at + 1
        done = set(stored_texts(folder))
        # Kill point 2k is before part k is visible, 2k + 1 right after.
        assert len(done) == min(51, 10 * ((at + 1) // 2))
        assert embed(folder, encoder, CAPTIONS, second) == whole
        assert {text_key(caption, encoder.identity()) for caption in second.captions} == set(whole) - done


def test_one_log_line_summarises_the_embeddings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        embed(tmp_path / "a", Hashing(), CAPTIONS)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    message = (
        "text embeddings: 51 distinct captions, 51 of them embedded now; "
        "0 truncated to the encoder's max_tokens (0.0%); padding 0.0% of computed tokens"
    )
    assert caplog.messages == [message]
    caplog.clear()
    captions = [f"{i}" for i in range(36)] + ["one two three", "one two three four"]
    embed(tmp_path / "b", Hashing(max_tokens=2), captions)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert (
        "39 distinct captions, 39 of them embedded now; 2 truncated to the encoder's max_tokens (5.1%)" in caplog.text
    )
    caplog.clear()
    embed(tmp_path / "b", Hashing(max_tokens=2), [*captions, "new"])
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "40 distinct captions, 1 of them embedded now; 2 truncated to the encoder's max_tokens (5.0%)" in caplog.text


@pytest.mark.slow
def test_padding_is_logged_and_small(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_embeddings, "CAPTIONS_PER_PART", 40)
    # On a CPU captions are embedded one by one, without padding; this is what a GPU does.
    open_one_by_one = T5.open
    monkeypatch.setattr(T5, "open", lambda self, *options: in_batches(open_one_by_one(self, *options)))
    encoder = T5(model=str(save_t5(tmp_path / "model")), dtype="float32")
    with caplog.at_level(logging.INFO):
        embed(tmp_path / "texts", encoder, [" ".join(["ba"] * (1 + i % 60)) + f" {i}" for i in range(200)])
    share = float(caplog.messages[-1].rpartition("padding ")[2].partition("%")[0])
    assert 0 < share < 10


def test_a_worker_with_other_weights_ends_the_run(tmp_path: Path) -> None:
    work = Embedding(Hashing(dim=64), Hashing().identity(), str(tmp_path))
    with pytest.raises(
        RunError,
        match=(
            "this worker has text encoder hashing-v1-64-256, but the run needs hashing-v1-128-256; "
            "install the same files on every node"
        ),
    ):
        work.open()


def test_a_part_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    # A file has the name of the folder.
    (tmp_path / "file").write_text("a file")
    work = Embedding(Hashing(), Hashing().identity(), str(tmp_path / "file"))
    (task,) = tasks_of(captions_of(["a boat"]), np.array([0]))
    with pytest.raises(RunError, match=r"file/part-.*: cannot be written: "):
        work.open()(task)


class LosingExecutor(InlineExecutor):
    """An executor that returns no result for any table."""

    def map_tables(
        self, load: Callable[[], TableFunction], inputs: Iterable[pa.Table], resources: Resources, /
    ) -> Iterator[pa.Table]:
        return iter(())


def test_captions_without_a_result_are_counted(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="3 of 3 captions have no embedding; run again"):
        embed(tmp_path, HeavyHashing(), ["a", "b"], LosingExecutor())


@pytest.mark.slow
def test_ray_gives_the_embeddings_of_this_process(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import run

    ray: Executor = run
    monkeypatch.setattr(text_embeddings, "CAPTIONS_PER_PART", 20)
    model = save_t5(tmp_path / "model")
    encoder = T5(model=str(model), dtype="float32")
    assert embed(tmp_path / "ray", encoder, CAPTIONS, ray) == embed(tmp_path / "here", encoder, CAPTIONS)
    one, other = stored_texts(tmp_path / "ray"), stored_texts(tmp_path / "here")
    for caption in [NULL_CAPTION, *CAPTIONS]:
        key = text_key(caption, encoder.identity())
        # Up to half a step of bfloat16: with another number of threads, sums may be added in another order.
        torch.testing.assert_close(one[key].float(), other[key].float(), rtol=2**-7, atol=1e-5)
    (model / "model.safetensors").write_bytes(b"no tensors")
    message = (
        r"^model .*model cannot be loaded by transformers: .*; "
        r"set it to a folder as save_pretrained writes it, or to a repository and revision that exist$"
    )
    for executor in (inline, ray):
        with pytest.raises(RunError, match=message):
            embed(tmp_path / "broken", T5(model=str(model), dtype="float32"), CAPTIONS, executor)
