"""The rows of a manifest: each sample of a kept clip once, with what its clip and its captions have."""

from __future__ import annotations

import logging

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import large_tables
from pipelines.dataset.build import manifest_pieces
from training.data.manifest import MANIFEST_SCHEMA
from training.data.shards import CROP_COLUMNS, clip_uid

CAPTION = pa.struct([("kind", pa.string()), ("text", pa.string())])
NUMBERS = ("clip_start_pts", "clip_end_pts", "time_base_num", "time_base_den", "source_width", "source_height")
SUFFIXES = ("", ".m", ".w2", ".w2-17m")


def clips_of(n_captions: dict[str, int]) -> pa.Table:
    """Return kept clips by their uids, sorted, with some captions each."""
    uids = sorted(n_captions)
    captions = [[{"kind": f"kind {i}", "text": f"{uid} {i}"} for i in range(n_captions[uid])] for uid in uids]
    columns = {"uid": uids, "captions": pa.array(captions, pa.list_(CAPTION)), "kind": ["video"] * len(uids)}
    columns |= {name: pa.array([7] * len(uids), pa.int64()) for name in NUMBERS}
    columns |= {name: [f"{name} of {uid}" for uid in uids] for name in ("source", "split", "cluster")}
    return pa.table(columns | {"crop": pa.nulls(len(uids), pa.list_(pa.int32()))})


def samples_of(uids: list[str]) -> pa.Table:
    """Return samples, of which each has its number as its row."""
    numbers = ("n_tokens", "row_group", "checksum", "start_pts", "end_pts", *CROP_COLUMNS)
    columns = {"uid": pa.array(uids, pa.string()), "row": list(range(len(uids))), "fps": [8.0] * len(uids)}
    columns |= {name: pa.array([1] * len(uids), pa.int64()) for name in numbers}
    return pa.table(columns | {name: pa.array([name] * len(uids)).dictionary_encode() for name in ("file", "bucket")})


def manifest_of(clips: pa.Table, samples: pa.Table) -> pa.Table:
    """Return the whole manifest. The key of a caption is its text in capitals, its tokens are the letters of it."""
    texts = [caption["text"] for captions in clips["captions"].to_pylist() for caption in captions] + [""]
    keys = pa.chunked_array([[text.upper() for text in texts]], pa.string())
    return pa.concat_tables(manifest_pieces(clips, samples, keys, pa.chunked_array([[len(text) for text in texts]])))


@settings(max_examples=30)
@given(
    n_captions=st.dictionaries(st.text("0ab", min_size=1, max_size=3), st.integers(1, 3), min_size=1, max_size=8),
    chosen=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(SUFFIXES)), max_size=20),
    others=st.lists(st.text("xy", min_size=1, max_size=2), max_size=3),
    size=st.integers(1, 5),
)
def test_rows_are_those_of_python(
    n_captions: dict[str, int], chosen: list[tuple[int, str]], others: list[str], size: int
) -> None:
    clips, uids = clips_of(n_captions), sorted(n_captions)
    samples = [f"{uids[number % len(uids)]}{suffix}" for number, suffix in chosen] + others + uids[::-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_tables, "ROWS_PER_CHUNK", size)
        found = manifest_of(clips, samples_of(samples))
    assert found.column_names == MANIFEST_SCHEMA.names
    rows = found.to_pylist()
    assert [row["uid"] for row in rows] == sorted({uid for uid in samples if clip_uid(uid) in n_captions})
    for row in rows:
        clip = clip_uid(row["uid"])
        assert row["row"] == samples.index(row["uid"]), "the first sample of each uid counts"
        assert (row["source"], row["split"], row["cluster"]) == (
            f"source of {clip}",
            f"split of {clip}",
            f"cluster of {clip}",
        )
        captions = [(row["caption_kind"], row["caption"], row["text_key"], row["n_text"])]
        captions += [tuple(caption.values()) for caption in row["other_captions"]]
        texts = [f"{clip} {i}" for i in range(n_captions[clip])]
        assert captions == [(f"kind {i}", text, text.upper(), len(text)) for i, text in enumerate(texts)]
        assert [row[f"content_{side}"] for side in ("x0", "y0", "x1", "y1")] == [0, 0, 7, 7]


def test_a_clip_without_samples_is_named() -> None:
    with pytest.raises(
        RuntimeError, match="2 kept clips have no latents in any shard, a first; remove the encode table"
    ):
        manifest_of(clips_of({"a": 1, "b": 1, "c": 1}), samples_of(["b", "x"]))
    with pytest.raises(RuntimeError, match="1 kept clips have no latents in any shard, a first"):
        manifest_of(clips_of({"a": 1}), samples_of([]))


def test_samples_in_two_shards_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert manifest_of(clips_of({"a": 1}), samples_of(["a.m", "a", "a", "a.m", "a"]))["row"].to_pylist() == [1, 0]
    assert "3 samples are in two shards; the first one of each counts" in caplog.text
