from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.encoder import text_key
from tests.support.stored import CAPTIONS, CLIPS, ENCODER, write_dataset
from training.data.captions import choose
from training.data.footer import DamagedError
from training.data.dataset import Dataset
from training.data.loader import Loader
from training.data.plan import Planner, PlanSettings
from training.data.shards import OTHER_CAPTION, read_manifest, write_manifest
from training.data.verify import verify

KINDS = ("dense", "short", "source")
weights = st.dictionaries(st.sampled_from((*KINDS, "other")), st.floats(0.01, 100), max_size=4)


@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    weights,
    st.integers(),
    st.integers(0, 9),
    st.text("ab", min_size=1),
)
def test_only_a_kind_with_a_weight_is_drawn_or_the_main_caption(
    kinds: list[str], mix: dict[str, float], seed: int, epoch: int, uid: str
) -> None:
    number = choose(kinds, mix, seed, epoch, uid)
    assert number == choose(kinds, mix, seed, epoch, uid)
    assert kinds[number] in mix if set(kinds) & set(mix) else number == 0


def test_kinds_come_in_proportion_to_their_weights_among_those_there_are() -> None:
    mix = {"dense": 3.0, "short": 1.0, "nowhere": 96.0}
    drawn = Counter(KINDS[choose(KINDS, mix, 0, epoch, f"clip {clip}")] for clip in range(500) for epoch in range(8))
    # 4,000 draws of p = 3/4: six standard deviations are 164.
    assert drawn.keys() == {"dense", "short"}
    assert abs(drawn["dense"] - 3000) < 164


def mixed(root: Path, key_of_other: str | None = None) -> str:
    """A data set whose samples also have the caption of their neighbour in CAPTIONS, as kind `other`."""
    manifest_uri = write_dataset(root, {CLIPS: 8})
    table, info = read_manifest(manifest_uri)
    others = []
    for caption in table["caption"].to_pylist():
        other = CAPTIONS[(CAPTIONS.index(caption) + 1) % len(CAPTIONS)]
        key = key_of_other or text_key(other, ENCODER.identity)
        others.append([{"kind": "other", "caption": other, "text_key": key, "n_text": len(other.split())}])
    place = table.column_names.index("other_captions")
    write_manifest(
        manifest_uri, table.set_column(place, "other_captions", pa.array(others, pa.list_(OTHER_CAPTION))), info
    )
    return manifest_uri


def buckets_up_to(
    manifest_uri: str, mix: dict[str, float], rank: int, world_size: int, steps: int
) -> dict[tuple[str, int], int]:
    dataset = Dataset.open(manifest_uri, "train")
    planner = Planner(
        dataset.table["bucket"].to_pylist(),
        dataset.table["n_tokens"].to_pylist(),
        PlanSettings(tokens_per_step=100),
        seed=5,
    )
    found = {}
    with Loader(dataset, planner, rank, world_size, captions=mix, seed=7) as loader:
        for step, batches in loader:
            for batch in batches:
                found |= {
                    (uid, batch.epoch): hash(text.numpy().tobytes())
                    for uid, text in zip(batch.uids, batch.texts, strict=True)
                }
            if step == steps - 1:
                return found
    raise AssertionError


def test_a_sample_has_the_same_caption_on_whatever_rank_and_another_in_another_epoch(tmp_path: Path) -> None:
    manifest_uri = mixed(tmp_path)
    mix = {"words": 1.0, "other": 1.0}
    alone = buckets_up_to(manifest_uri, mix, 0, 1, 12)
    shared = buckets_up_to(manifest_uri, mix, 0, 2, 12) | buckets_up_to(manifest_uri, mix, 1, 2, 12)
    assert shared == alone
    by_sample: dict[str, set[int]] = {}
    for (uid, _), text in alone.items():
        by_sample.setdefault(uid, set()).add(text)
    assert max(len(texts) for texts in by_sample.values()) == 2
    only = buckets_up_to(manifest_uri, {"other": 1.0}, 0, 1, 12)
    assert all(only[key] not in {buckets_up_to(manifest_uri, {}, 0, 1, 12)[key]} for key in list(only)[:3])


def test_a_missing_embedding_of_any_caption_is_told_before_training(tmp_path: Path) -> None:
    manifest_uri = mixed(tmp_path, key_of_other="nowhere")
    with pytest.raises(DamagedError, match="nowhere"):
        Dataset.open(manifest_uri, "train")
    assert any("nowhere" in str(problem) for problem in verify(manifest_uri))
