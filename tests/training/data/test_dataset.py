"""Tests of a data set's samples: their splits, values, checks and captions."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captioning.encoder import NULL_CAPTION, text_key
from tests.support.stored import (
    CAPTIONS,
    CLIPS,
    ENCODER,
    STILLS,
    bytes_of,
    dataset_info,
    flip_bit,
    latent_row,
    shard_info,
    shard_path,
    write_dataset,
)
from training.data.buckets import Bucket
from training.data.dataset import CaptionMix, Dataset, choose_caption
from training.data.footer import DamagedError
from training.data.loader import Loader, LoaderSettings
from training.data.manifest import OTHER_CAPTION, read_manifest
from training.data.manifest_writer import write_manifest
from training.data.plan import Planner, PlanSettings
from training.data.shard_writer import write_shard
from training.data.verify import verify
from training.framing import Framing

COUNTS = {CLIPS: 13, STILLS: 9}
KINDS = ("dense", "short", "source")
WEIGHTS = st.dictionaries(st.sampled_from((*KINDS, "other")), st.floats(0.01, 100), max_size=4)


@pytest.fixture
def manifest_uri(tmp_path: Path) -> str:
    return write_dataset(tmp_path, COUNTS)


def test_splits_have_the_rows_of_the_manifest(manifest_uri: str) -> None:
    table, info = read_manifest(manifest_uri)
    split_of = {
        uid: "test" if i % 5 == 0 else split
        for i, (uid, split) in enumerate(zip(table["uid"].to_pylist(), table["split"].to_pylist(), strict=True))
    }
    column = table.column_names.index("split")
    write_manifest(manifest_uri, table.set_column(column, "split", pa.array(list(split_of.values()))), info)
    found = {
        split: set(Dataset.open(manifest_uri, split).table["uid"].to_pylist()) for split in ("train", "val", "test")
    }
    assert found == {split: {uid for uid, expected in split_of.items() if expected == split} for split in found}
    assert all(found.values())


def test_a_sample_equals_its_stored_row(manifest_uri: str) -> None:
    dataset = Dataset.open(manifest_uri, "train")
    for index, row in enumerate(dataset.table.to_pylist()):
        sample = dataset.sample(index)
        bucket = CLIPS if row["bucket"] == CLIPS.name else STILLS
        written = latent_row(bucket, int(row["uid"][-4:]))
        assert sample.uid == row["uid"] == written.uid
        assert sample.latent.dtype == torch.bfloat16
        assert torch.equal(sample.latent, written.latent)
        assert (sample.last_frame_latent is None) == (bucket is STILLS)
        if sample.last_frame_latent is not None and written.last_frame_latent is not None:
            assert torch.equal(sample.last_frame_latent, written.last_frame_latent)
        assert torch.equal(sample.text.float(), torch.from_numpy(ENCODER.encode([row["caption"]])[0].tokens))
        assert (sample.caption, sample.fps, sample.kind, sample.bucket) == (
            row["caption"],
            8.0,
            row["kind"],
            bucket.name,
        )
        width, height = 4 + 2 * bucket.width, 4 + bucket.height
        assert sample.framing == Framing(1 / width, 2 / height, width, height)
    assert torch.equal(dataset.null_text().float(), torch.from_numpy(ENCODER.encode([NULL_CAPTION])[0].tokens))


def test_splits_are_disjoint_and_complete(manifest_uri: str) -> None:
    train, val = (Dataset.open(manifest_uri, split) for split in ("train", "val"))
    uids = [set(dataset.table["uid"].to_pylist()) for dataset in (train, val)]
    assert not uids[0] & uids[1]
    assert len(uids[0] | uids[1]) == sum(COUNTS.values()) == len(train) + len(val)


def test_an_empty_split_can_be_opened(tmp_path: Path) -> None:
    dataset = Dataset.open(write_dataset(tmp_path, {CLIPS: 3}), "val")
    assert len(dataset) == 0
    assert dataset.null_text().shape[1] == 16


@pytest.mark.parametrize("part", ["latent", "last_frame_latent"])
def test_a_flipped_bit_raises_with_file_row_and_uid(manifest_uri: str, tmp_path: Path, part: str) -> None:
    path = shard_path(tmp_path, CLIPS)
    bad = latent_row(CLIPS, 5)
    flip_bit(path, path.read_bytes().index(bytes_of(getattr(bad, part))) + 33)
    dataset = Dataset.open(manifest_uri, "train")
    index = dataset.table["uid"].to_pylist().index(bad.uid)
    expected = rf"{CLIPS.name}/part-0.parquet: row 5 of row group 0, sample {bad.uid}: .*not those that were written"
    with pytest.raises(DamagedError, match=expected):
        dataset.sample(index)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [*range(4, 3000, 131), *range(-2500, -8, 97)])
def test_no_flipped_bit_gives_a_wrong_tensor(manifest_uri: str, tmp_path: Path, offset: int) -> None:
    """Wherever the bit is (headers, scalars, latents, padding), each sample is either right to the bit or an error."""
    flip_bit(shard_path(tmp_path, STILLS), offset)
    try:
        dataset = Dataset.open(manifest_uri, "train")
    except DamagedError:
        return
    for index, uid in enumerate(dataset.table["uid"].to_pylist()):
        written = latent_row(CLIPS if uid.startswith(CLIPS.name) else STILLS, int(uid[-4:]))
        with contextlib.suppress(DamagedError):
            assert torch.equal(dataset.sample(index).latent, written.latent)


def test_another_autoencoder_or_bucket_is_refused(tmp_path: Path) -> None:
    dataset = Dataset.open(write_dataset(tmp_path, {CLIPS: 4}), "train")
    path = shard_path(tmp_path, CLIPS)
    rows = [latent_row(CLIPS, number) for number in range(10, 14)]
    write_shard(str(path), rows, replace(shard_info(CLIPS), autoencoder_identity="other-1"))
    row = re.escape(f"{path.relative_to(tmp_path)}: row 0 of row group 0, sample {CLIPS.name}-0000: ")
    with pytest.raises(
        DamagedError,
        match=rf"{row}its latents are by autoencoder other-1, those of the manifest by linear16-",
    ):
        dataset.sample(0)
    other = Bucket(16, 32, 9, 8.0)
    write_shard(str(path), [latent_row(other, number) for number in range(4)], shard_info(other))
    dataset = Dataset.open(str(tmp_path / "manifest-0/_manifest.parquet"), "train")
    with pytest.raises(DamagedError, match="holds bucket 16x32x9, and the manifest says 32x16x9"):
        dataset.sample(0)
    path.unlink()
    dataset = Dataset.open(str(tmp_path / "manifest-0/_manifest.parquet"), "train")
    with pytest.raises(DamagedError, match=rf"{row}.*part-0.parquet: cannot be opened.*Run `worldloom verify`"):
        dataset.sample(0)


def test_missing_texts_or_another_encoder_are_refused(manifest_uri: str) -> None:
    table, info = read_manifest(manifest_uri)
    write_manifest(manifest_uri, table, replace(info, text_encoder_identity="t5-1"))
    with pytest.raises(DamagedError, match=r"texts: holds embeddings by hashing.*, and the manifest says t5-1"):
        Dataset.open(manifest_uri, "train")
    lost = table.set_column(table.column_names.index("text_key"), "text_key", pa.array(["nowhere"] * len(table)))
    write_manifest(manifest_uri, lost, dataset_info())
    with pytest.raises(DamagedError, match="1 of 2 text embeddings are missing from texts, nowhere first"):
        Dataset.open(manifest_uri, "train")


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    WEIGHTS,
    st.integers(),
    st.integers(0, 9),
    st.text("ab", min_size=1),
)
def test_only_kinds_with_a_weight_are_drawn(
    kinds: list[str], weights: dict[str, float], seed: int, epoch: int, uid: str
) -> None:
    index = choose_caption(kinds, weights, seed, epoch, uid)
    assert index == choose_caption(kinds, weights, seed, epoch, uid)
    assert kinds[index] in weights if set(kinds) & set(weights) else index == 0


def test_kinds_are_drawn_in_proportion_to_their_weights() -> None:
    weights = {"dense": 3.0, "short": 1.0, "nowhere": 96.0}
    drawn = Counter(
        KINDS[choose_caption(KINDS, weights, 0, epoch, f"clip {clip}")] for clip in range(500) for epoch in range(8)
    )
    # 4,000 draws of p = 3/4: six standard deviations are 164.
    assert drawn.keys() == {"dense", "short"}
    assert abs(drawn["dense"] - 3000) < 164


def write_with_other_captions(root: Path, key: str | None = None) -> str:
    """Write a data set whose samples also have the next of CAPTIONS, of kind `other`, and return its manifest's URI.

    `key` is the key of the other captions' embeddings instead of the right one.
    """
    manifest_uri = write_dataset(root, {CLIPS: 8})
    table, info = read_manifest(manifest_uri)
    others = []
    for caption in table["caption"].to_pylist():
        other = CAPTIONS[(CAPTIONS.index(caption) + 1) % len(CAPTIONS)]
        other_key = key or text_key(other, ENCODER.identity)
        others.append([{"kind": "other", "caption": other, "text_key": other_key, "n_text": len(other.split())}])
    column = table.column_names.index("other_captions")
    values = pa.array(others, pa.list_(OTHER_CAPTION))
    write_manifest(manifest_uri, table.set_column(column, "other_captions", values), info)
    return manifest_uri


def texts_read(
    manifest_uri: str, weights: dict[str, float], rank: int, world_size: int, n_steps: int
) -> dict[tuple[str, int], int]:
    """Return a hash of the text embedding of each (uid, epoch) that a loader reads."""
    dataset = Dataset.open(manifest_uri, "train")
    table = dataset.table
    settings = PlanSettings(tokens_per_step=100)
    planner = Planner(table["bucket"].to_pylist(), table["n_tokens"].to_pylist(), settings, seed=5)
    found = {}
    captions = CaptionMix(weights, seed=7) if weights else None
    ranks = LoaderSettings(rank, world_size, captions=captions)
    with Loader(dataset, planner, ranks, lambda planned, micro_batches, batches: batches) as loader:
        for step, batches in loader:
            for batch in batches:
                found |= {
                    (uid, batch.epoch): hash(text.view(torch.int16).numpy().tobytes())
                    for uid, text in zip(batch.uids, batch.texts, strict=True)
                }
            if step == n_steps - 1:
                return found
    raise AssertionError


@pytest.mark.slow
def test_captions_depend_on_the_epoch_and_not_on_the_rank(tmp_path: Path) -> None:
    manifest_uri = write_with_other_captions(tmp_path)
    weights = {"words": 1.0, "other": 1.0}
    alone = texts_read(manifest_uri, weights, 0, 1, 12)
    by_two_ranks = texts_read(manifest_uri, weights, 0, 2, 12) | texts_read(manifest_uri, weights, 1, 2, 12)
    assert by_two_ranks == alone
    by_sample: dict[str, set[int]] = {}
    for (uid, _), text in alone.items():
        by_sample.setdefault(uid, set()).add(text)
    assert max(len(texts) for texts in by_sample.values()) == 2
    only_other, only_main = texts_read(manifest_uri, {"other": 1.0}, 0, 1, 12), texts_read(manifest_uri, {}, 0, 1, 12)
    assert all(only_other[key] != only_main[key] for key in list(only_other)[:3])


def test_a_missing_embedding_of_any_caption_is_refused(tmp_path: Path) -> None:
    manifest_uri = write_with_other_captions(tmp_path, key="nowhere")
    with pytest.raises(DamagedError, match="nowhere"):
        Dataset.open(manifest_uri, "train")
    assert any("nowhere" in str(problem) for problem in verify(manifest_uri))
