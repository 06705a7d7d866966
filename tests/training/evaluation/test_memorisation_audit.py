"""The audit's choice of clips, and how its tests are judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.config import ConfigError
from tests.support.drawn import write_dataset
from training.data.dataset import CaptionMix, Dataset, Sample
from training.evaluation.memorisation_audit import (
    RATE,
    TESTS,
    MemorisationAudit,
    audit_data,
    choose_clips,
    judge_recall,
    judge_samples,
    samples_of,
)
from training.evaluation.nearest import Nearest
from training.framing import full_framing

ORDINARY = np.random.default_rng(0).normal(0.9, 0.05, 200).tolist()


def clips(n: int) -> list[Sample]:
    latent, framing = torch.zeros(1, 2, 2, 2), full_framing(32, 32, 32.0)
    text = torch.zeros(1, 1)
    return [
        Sample(f"u{index}", latent, None, text, f"caption {index}", 8.0, "video", "32x32x5", framing)
        for index in range(n)
    ]


def ratios(*values: float) -> list[Nearest]:
    return [Nearest(f"sample-{index}", f"t{index}", value, value) for index, value in enumerate(values)]


def test_copies_among_ordinary_samples_are_flagged() -> None:
    nearest = {f"u{index}": ratios(0.9, 0.88) for index in range(64)}
    nearest |= {f"u{index}": ratios(0.91, 0.1 + index / 100) for index in range(5)}
    found = judge_samples(clips(64), nearest, ORDINARY)
    assert [finding.uid for finding in found if finding.flagged] == [f"u{index}" for index in range(5)]
    first = found[0]
    assert (first.caption, first.sample, first.nearest, first.value) == ("caption 0", "sample-1", "t1", 0.1)


def test_several_samples_have_as_many_chances() -> None:
    copies = {f"u{index}": [0.1] if index < 3 else [0.9] for index in range(64)}
    for seeds, n_flagged in ((1, 3), (8, 0)):
        nearest = {uid: ratios(*values, *[0.95] * (seeds - 1)) for uid, values in copies.items()}
        assert sum(finding.flagged for finding in judge_samples(clips(64), nearest, ORDINARY)) == n_flagged


def test_tests_flag_from_the_fewest_clips_on() -> None:
    recall = judge_recall(clips(64), [0.9] * 64, ORDINARY)
    audit = MemorisationAudit(dict.fromkeys(TESTS, recall), dict.fromkeys(TESTS, tuple(ORDINARY)), seeds=2)
    for n_lower in (audit.fewest("recall") - 1, audit.fewest("recall")):
        values = [0.1] * n_lower + [0.9] * (64 - n_lower)
        n_flagged = sum(finding.flagged for finding in judge_recall(clips(64), values, ORDINARY))
        assert n_flagged == (n_lower if n_lower == audit.fewest("recall") else 0)
    assert audit.fewest("content") > audit.fewest("recall"), "two samples are two tries"


def test_a_clip_is_listed_with_all_tests_that_flag_it() -> None:
    recall = judge_recall(clips(10), [0.1, 0.2, *[0.9] * 8], ORDINARY)
    content = judge_samples(
        clips(10), {f"u{index}": ratios(0.1 if index in (0, 2) else 0.9) for index in range(10)}, ORDINARY
    )
    motion = judge_samples(clips(10), {f"u{index}": ratios(0.9) for index in range(10)}, ORDINARY)
    held_out = dict.fromkeys(TESTS, tuple(ORDINARY))
    found = MemorisationAudit({"content": content, "motion": motion, "recall": recall}, held_out, seeds=1)
    assert found.flagged == {"u0": ("content", "recall"), "u2": ("content",), "u1": ("recall",)}
    data = audit_data(found)
    assert (data["rate"], data["clips"], data["seeds"]) == (RATE, 10, 1)
    assert data["flagged"][2] == {"clip": "u1", "caption": "caption 1", "tests": ["recall"]}
    assert data["tests"]["content"]["findings"][0]["sample"] == "sample-0"
    assert "sample" not in data["tests"]["recall"]["findings"][0]


@pytest.mark.slow
def test_clips_are_chosen_from_shapes_with_enough_of_them(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, [(48, 32, 9, 60), (32, 32, 9, 24), (48, 32, 1, 40)], n_val=22)
    training, held_out = Dataset.open(uri, "train"), Dataset.open(uri, "val")
    rows, ordinary = choose_clips(training, held_out, 16)
    assert (len(rows), len(set(rows)), len(ordinary)) == (16, 16, 22)
    chosen = samples_of(training, rows, None)
    assert {sample.bucket for sample in chosen} == {"48x32x9"}, "2 training clips of 32x32x9, and images"
    assert choose_clips(training, held_out, 4)[0] == rows[:4], "in the order of a hash"
    assert samples_of(training, rows[:1], CaptionMix({"words": 1.0}, 0))[0].caption == chosen[0].caption


@pytest.mark.slow
def test_too_few_clips_or_captions_are_named(tmp_path: Path) -> None:
    few = write_dataset(tmp_path / "few", [(48, 32, 9, 10)], n_val=4)
    with pytest.raises(ConfigError, match=r"no shape of video has 8 training clips \(there are 48x32x9: 6\)"):
        choose_clips(Dataset.open(few, "train"), Dataset.open(few, "val"), 4)
    images = write_dataset(tmp_path / "images", [(48, 32, 1, 30)], n_val=4)
    with pytest.raises(ConfigError, match="there are none"):
        choose_clips(Dataset.open(images, "train"), Dataset.open(images, "val"), 4)
    unheld = write_dataset(tmp_path / "unheld", [(48, 32, 9, 20)], n_val=4)
    training, held_out = Dataset.open(unheld, "train"), Dataset.open(unheld, "val")
    with pytest.raises(ConfigError, match="the split val has 4 captioned video clips of the shapes 48x32x9"):
        choose_clips(training, held_out, 4)
    index, blank = training.table.column_names.index("caption"), pa.array([" "] * len(training))
    training.table = training.table.set_column(index, "caption", blank)
    with pytest.raises(ConfigError, match="no training clip has a caption"):
        choose_clips(training, held_out, 4)
