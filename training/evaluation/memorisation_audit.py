"""The memorisation audit: which training clips a model has learnt by heart, beside held-out clips that it has not seen.

Captions of training clips are sampled, and the samples compared with all training clips of their shape by content and
by motion; and the clips themselves are tested for caption recall. In each of the three tests held-out clips say what is
ordinary, see `training.evaluation.outliers`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from cluster import storage
from cluster.config import ConfigError, list_names
from training.data.buckets import parse_bucket_name
from training.data.dataset import CaptionMix, Dataset, Sample
from training.data.shards import clip_uid
from training.evaluation.caption_recall import caption_recall
from training.evaluation.generation import LATENT_SUFFIX, Generation, Prompt
from training.evaluation.memorisation import latents_of, read_latent, rows_of
from training.evaluation.nearest import MIN_TRAINING, VIEWS, Nearest, TrainingClips
from training.evaluation.outliers import fewest, flagged
from training.sampling.settings import VideoShape

Test = Literal["content", "motion", "recall"]
TESTS: tuple[Test, ...] = (*VIEWS, "recall")
RATE = 0.05
"""Largest probability that any clip is flagged if none is learnt by heart, over all tests."""
MIN_HELD_OUT, MAX_HELD_OUT = 20, 256
"""Fewest and most held-out clips that say what is ordinary."""


@dataclass(frozen=True)
class Finding:
    """The result of one test of one training clip."""

    uid: str
    """The training clip whose caption was sampled, or which was tested for recall."""
    caption: str
    value: float
    """The ratio of distances, or the recall: low if learnt by heart."""
    flagged: bool
    sample: str | None = None
    """Name of the sample that comes nearest to a training clip; None in the test of recall."""
    nearest: str | None = None
    """Uid of that training clip."""


@dataclass(frozen=True)
class MemorisationAudit:
    """The findings of all tests, lowest value first, and the values of held-out clips."""

    findings: Mapping[Test, tuple[Finding, ...]]
    held_out: Mapping[Test, tuple[float, ...]]
    seeds: int
    """Samples of each caption."""

    @property
    def flagged(self) -> dict[str, tuple[Test, ...]]:
        """The tests that flag each clip, by its uid, for clips that at least one flags."""
        found: dict[str, tuple[Test, ...]] = {}
        for test in TESTS:
            for finding in self.findings[test]:
                if finding.flagged:
                    found[finding.uid] = (*found.get(finding.uid, ()), test)
        return found

    def fewest(self, test: Test) -> int:
        """Return the number of clips lower than all held-out ones from which on a test flags them."""
        tries = 1 if test == "recall" else self.seeds
        return fewest(tries * len(self.findings[test]), len(self.held_out[test]), RATE / len(TESTS))


def choose_clips(training: Dataset, held_out: Dataset, n_clips: int) -> tuple[list[int], list[int]]:
    """Return the rows of `n_clips` captioned training clips and of held-out clips of their shapes, chosen by a hash.

    Of each clip one sample is taken, because those of one clip resemble each other. Raises `ConfigError` if no shape
    has `MIN_TRAINING` training clips, or none of them a caption, or if fewer than `MIN_HELD_OUT` clips are held out.
    """
    counts = {bucket: len(rows_of(training, bucket)) for bucket in training.table["bucket"].unique().to_pylist()}
    videos = {bucket: count for bucket, count in counts.items() if parse_bucket_name(bucket)[2] > 1}
    usable = sorted(bucket for bucket, count in videos.items() if count >= MIN_TRAINING)
    if not usable:
        listed = list_names([f"{bucket}: {count}" for bucket, count in sorted(videos.items())], 8) or "none"
        raise ConfigError(
            f"no shape of video has {MIN_TRAINING} training clips (there are {listed}), so there is nothing to compare "
            "samples with; train on more clips, or give fewer buckets"
        )
    chosen = _one_per_clip(training, usable, n_clips)
    if not chosen:
        raise ConfigError("no training clip has a caption, and samples are made from captions; add a caption step")
    buckets = sorted({training.row(row)["bucket"] for row in chosen})
    ordinary = _one_per_clip(held_out, buckets, MAX_HELD_OUT)
    if len(ordinary) < MIN_HELD_OUT:
        raise ConfigError(
            f"the split val has {len(ordinary)} captioned video clips of the shapes {', '.join(buckets)}, and what is "
            f"ordinary is told by {MIN_HELD_OUT} or more; hold out more with splits: {{val: SHARE}}"
        )
    return chosen, ordinary


def _one_per_clip(dataset: Dataset, buckets: Sequence[str], n_clips: int) -> list[int]:
    """Return the rows of at most `n_clips` captioned samples of different clips, in the order of a hash."""
    uids, captions = dataset.table["uid"].to_pylist(), dataset.table["caption"].to_pylist()
    by_clip: dict[str, tuple[str, int]] = {}
    for bucket in buckets:
        for row in rows_of(dataset, bucket):
            if captions[row].strip():
                key, clip = (storage.digest("memorisation audit", uids[row]), row), clip_uid(uids[row])
                by_clip[clip] = min(key, by_clip.get(clip, key))
    return [row for _, row in heapq.nsmallest(n_clips, by_clip.values())]


def samples_of(dataset: Dataset, rows: Iterable[int], captions: CaptionMix | None) -> list[Sample]:
    """Return the samples in rows, with the captions that training takes."""
    return [dataset.sample(row, 0, captions) for row in rows]


def run_audit(
    generation: Generation,
    training: Dataset,
    clips: Sequence[Sample],
    ordinary: Sequence[Sample],
    seeds: int,
    advance: Callable[[], None] = lambda: None,
) -> MemorisationAudit:
    """Return the findings of all tests of training clips, beside `ordinary`, held-out clips of their shapes.

    `seeds` samples of each caption are generated, unless they are in the folder of `generation`. `advance` is called
    after each sample, and after each clip that is tested for recall.
    """
    prompts = {clip.uid: [_prompt(clip, seed) for seed in range(seeds)] for clip in clips}
    generation.run([prompt for one in prompts.values() for prompt in one], "generated", advance)
    stored = {
        bucket: TrainingClips(latents_of(training, rows_of(training, bucket)))
        for bucket in dict.fromkeys(clip.bucket for clip in clips)
    }
    findings: dict[Test, tuple[Finding, ...]] = {}
    held_out: dict[Test, tuple[float, ...]] = {}
    for view in VIEWS:
        found = (stored[one.bucket].nearest([(one.uid, one.latent)], view) for one in ordinary)
        held_out[view] = tuple(nearest.ratio for (nearest,) in found)
        nearest = {
            clip.uid: stored[clip.bucket].nearest(_latents(generation, prompts[clip.uid]), view) for clip in clips
        }
        findings[view] = judge_samples(clips, nearest, held_out[view])
    parts, recalls = generation.model.parts, list[float]()
    for sample in (*clips, *ordinary):
        recalls.append(caption_recall(parts, sample))
        advance()
    held_out["recall"] = tuple(recalls[len(clips) :])
    findings["recall"] = judge_recall(clips, recalls[: len(clips)], held_out["recall"])
    return MemorisationAudit(findings, held_out, seeds)


def _prompt(clip: Sample, seed: int) -> Prompt:
    width, height, frames = parse_bucket_name(clip.bucket)
    return Prompt(f"{clip.uid}-{seed}", clip.caption, VideoShape(frames, height, width, clip.fps), seed)


def _latents(generation: Generation, prompts: Iterable[Prompt]) -> Iterator[tuple[str, Tensor]]:
    for prompt in prompts:
        uri = storage.join(generation.folder_uri, "generated", prompt.name + LATENT_SUFFIX)
        yield prompt.name, read_latent(uri)


def judge_samples(
    clips: Sequence[Sample], nearest: Mapping[str, Sequence[Nearest]], ordinary: Sequence[float]
) -> tuple[Finding, ...]:
    """Return the findings of a view: of each clip the sample that comes nearest to a training clip.

    `nearest` has the samples of each clip by its uid, as many of each, and `ordinary` the ratios of held-out clips.
    """
    best = [min(nearest[clip.uid], key=lambda one: one.ratio) for clip in clips]
    ratios = [one.ratio for one in best]
    marks = flagged(ratios, ordinary, RATE / len(TESTS), tries=len(nearest[clips[0].uid])).tolist()
    found = [
        Finding(clip.uid, clip.caption, one.ratio, mark, one.name, one.training_uid)
        for clip, one, mark in zip(clips, best, marks, strict=True)
    ]
    return tuple(sorted(found, key=lambda finding: (finding.value, finding.uid)))


def judge_recall(clips: Sequence[Sample], values: Sequence[float], ordinary: Sequence[float]) -> tuple[Finding, ...]:
    """Return the findings of caption recall, given that of each clip and of held-out clips."""
    marks = flagged(values, ordinary, RATE / len(TESTS)).tolist()
    found = [
        Finding(clip.uid, clip.caption, value, mark) for clip, value, mark in zip(clips, values, marks, strict=True)
    ]
    return tuple(sorted(found, key=lambda finding: (finding.value, finding.uid)))


def audit_data(found: MemorisationAudit) -> dict[str, Any]:
    """Return an audit as JSON data: the flagged clips, and of each test all findings and the held-out values."""
    captions = {finding.uid: finding.caption for finding in found.findings["recall"]}
    tests = {
        test: {
            "fewest": found.fewest(test),
            "findings": [_finding_data(finding) for finding in found.findings[test]],
            "held_out": sorted(round(value, 5) for value in found.held_out[test]),
        }
        for test in TESTS
    }
    flags = [{"clip": uid, "caption": captions[uid], "tests": list(names)} for uid, names in found.flagged.items()]
    return {"rate": RATE, "clips": len(captions), "seeds": found.seeds, "flagged": flags, "tests": tests}


def _finding_data(finding: Finding) -> dict[str, Any]:
    data = {"clip": finding.uid, "value": round(finding.value, 5)}
    if finding.sample is not None:
        data |= {"sample": finding.sample, "training": finding.nearest}
    return data | {"flagged": finding.flagged}
