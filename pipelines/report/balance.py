"""Balance: the kept clips by split in many respects. A held-out split should resemble the training split.

The distance of two splits is the total variation distance, half the sum of the differences of shares: the share of
clips that would have to change. Random splits differ too: `expected` is the mean distance if the same clips were
assigned to the splits at random. Clips of one source are alike and stay in one split, so the true expected distance
is larger.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.arrays import BoolArray, Float64Array, Int64Array
from pipelines.report.batches import Batch
from pipelines.report.columns import ValueSample, round_significant
from pipelines.report.funnel import MICROSECONDS_PER_HOUR
from pipelines.report.histograms import Axis, make_axis

COLUMNS = (
    "uid",
    "source_uid",
    "kind",
    "clip_index",
    "duration_s",
    "fate",
    "width",
    "height",
    "fps",
    "codec",
    "camera",
    "motion",
    "luma",
    "caption",
)
"""Columns that `Balance` reads."""

NO_SPLIT = "kept"
"""Name of the group of kept clips that are in no split."""

ASPECT_RATIOS = {
    "9:21": 9 / 21,
    "9:16": 9 / 16,
    "2:3": 2 / 3,
    "3:4": 3 / 4,
    "1:1": 1.0,
    "4:3": 4 / 3,
    "3:2": 3 / 2,
    "16:9": 16 / 9,
    "21:9": 21 / 9,
}
SHORT_SIDES_PX = (240, 360, 480, 720, 1080, 1440, 2160)
FRAME_RATES = (12, 15, 24, 25, 30, 48, 50, 60, 120)
WORD = re.compile(r"[^\W\d_][^\W\d_'’-]+")
STOP_WORDS = frozenset(
    """
    a about above across after against all along also am among an and another any are around as at away back be
    because been before behind being below beside between both but by can could did do does down during each
    either every few for from further had has have he her here hers him his how however i if in inside into is
    it it's its itself just like many may me might more most much my near no nor not of off on once one only
    onto or other our out outside over own per rather same several she should since so some still such than that
    the their them then there these they this those through to together too toward towards two under until up
    upon us very via was we were what when where which while who whose why will with within without would you
    your
    """.split()  # noqa: SIM905  a list of words reads as one
)
MAX_WORDS = 40
MAX_SOURCES = 12
MAX_NAMES = 20
"""Largest number of classes of a column of names, such as `codec`."""
MAX_BINS = 24


def nearest_index(values_N: Float64Array, references: Sequence[float], log: bool = False) -> Int64Array:
    """Return the index `[N]` of the reference value nearest to each value, by ratio if `log`.

    Values that are not finite and positive count as 1.
    """
    filled_N = np.where(np.isfinite(values_N) & (values_N > 0), values_N, 1.0)
    references_M = np.array(references, np.float64)
    if log:
        filled_N, references_M = np.log(filled_N), np.log(references_M)
    return np.asarray(np.abs(filled_N[:, None] - references_M[None]).argmin(1), np.int64)


@dataclass
class ClassCounts:
    """Number of clips by class, for each split. Classes are labels, or the bins of an axis."""

    name: str
    title: str
    labels: list[str]
    axis: Axis | None = None
    counts: dict[str, Int64Array] = field(default_factory=dict)

    def add(self, split: str, class_N: Int64Array, chosen_N: BoolArray) -> None:
        """Count the chosen clips of a split, from the class `[N]` and a mask `[N]`."""
        found = np.bincount(class_N[chosen_N], minlength=len(self.labels))
        self.counts[split] = self.counts.get(split, np.zeros(len(self.labels), np.int64)) + found

    def as_json(self, splits: Sequence[str]) -> dict[str, Any]:
        """Return the counts as data of the page, without the labels that no clip has."""
        used = [i for i in range(len(self.labels)) if self.axis or any(counts[i] for counts in self.counts.values())]
        counts = {split: [int(self.counts[split][i]) for i in used] for split in splits if split in self.counts}
        axis = (
            {"edges": [round_significant(edge) for edge in self.axis.edges.tolist()], "log": self.axis.is_log}
            if self.axis
            else {}
        )
        return {
            "name": self.name,
            "title": self.title,
            "labels": [self.labels[i] for i in used],
            "counts": counts,
            "distances": split_distances(counts),
            **axis,
        }


def split_distances(counts: Mapping[str, Sequence[int]], reference: str = "train") -> dict[str, dict[str, float]]:
    """Return the total variation distance of each other split to `reference`, and its expected value.

    `counts` holds the number of clips of each class by split.
    """
    if reference not in counts or not sum(counts[reference]):
        return {}
    p, n = np.array(counts[reference], float) / sum(counts[reference]), sum(counts[reference])
    found = {}
    for split, values in counts.items():
        m = sum(values)
        if split == reference or not m:
            continue
        q = np.array(values, float) / m
        # Of K clips of a class, Y are in a split: |(K - Y) / n - Y / m| is |Y - mean of Y| (1/n + 1/m).
        both = [a + b for a, b in zip(counts[reference], values, strict=True)]
        expected = 0.5 * (1 / n + 1 / m) * sum(mean_deviation(n + m, k, m) for k in both)
        found[split] = {"distance": round(0.5 * float(np.abs(p - q).sum()), 4), "expected": round(expected, 4)}
    return found


def mean_deviation(n: int, k: int, m: int) -> float:
    """Return the mean absolute deviation of the number of marked items among m drawn from n, of which k are marked.

    This is De Moivre's telescoping sum for the hypergeometric distribution: 2 v (n - k - m + v) P(v) / n, with v the
    smallest integer above the mean (Diaconis and Zabell, Closed Form Summation for Classical Distributions,
    Statistical Science 6, 1991).
    """
    v = m * k // n + 1
    if v > min(k, m):
        return 0.0
    log_p = _log_choose(k, v) + _log_choose(n - k, m - v) - _log_choose(n, m)
    return 2 * v * (n - k - m + v) / n * math.exp(log_p)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


class Balance:
    """Kept clips by split in many respects. `split_of` holds the split of each uid, `""` if it is in none.

    `sample` decides the ranges of durations, motion and brightness; without it these are left out.
    """

    def __init__(self, sample: ValueSample | None, splits: Sequence[str], split_of: Mapping[str, str]) -> None:
        self._splits, self._split_of = list(splits), split_of
        self._n_clips: Counter[str] = Counter()
        self._microseconds: dict[str, float] = {}
        self._words: dict[str, Counter[str]] = {}
        self._n_captions: Counter[str] = Counter()
        self._caption_lengths: dict[str, Counter[int]] = {}
        self._names: dict[str, dict[str, Counter[str]]] = {"camera": {}, "codec": {}, "kind": {}}
        self._sources: dict[str, Counter[str]] = {}
        sides = [f"<{SHORT_SIDES_PX[0]}", *(f"{side}+" for side in SHORT_SIDES_PX)]
        self._media: list[tuple[ClassCounts, str, Callable[[Batch], Int64Array]]] = [
            (ClassCounts("aspect", "Aspect ratio", list(ASPECT_RATIOS)), "width", _aspect_ratios),
            (ClassCounts("side", "Short side, pixels", sides), "width", _short_sides),
            (ClassCounts("fps", "Frames per second", list(map(str, FRAME_RATES))), "fps", _frame_rates),
        ]
        """Classes of the media, each with a column that has no value if the class is unknown, and a function."""
        self._measures: list[ClassCounts] = []
        for name, title in (("duration_s", "Duration, seconds"), ("motion", "Motion"), ("luma", "Brightness (luma)")):
            if sample is not None and len(values := sample.values(name, only_kept=True)):
                axis = make_axis(values[values > 0] if name == "duration_s" else values, max_bins=MAX_BINS)
                self._measures.append(ClassCounts(name, title, [f"{edge:.3g}" for edge in axis.edges[:-1]], axis))

    def add(self, batch: Batch) -> None:
        """Add the kept clips of a batch."""
        split_N = np.array([self._split_of.get(uid, "") or NO_SPLIT for uid in batch.uids.tolist()], np.str_)
        captions, sources = batch.texts("caption"), batch.texts("source_uid")
        us_N = batch.microseconds("duration_s")
        for split in sorted(set(split_N[batch.is_kept & batch.is_clip].tolist())):
            chosen_N = batch.is_kept & batch.is_clip & (split_N == split)
            numbers = np.flatnonzero(chosen_N).tolist()
            self._n_clips[split] += len(numbers)
            self._microseconds[split] = self._microseconds.get(split, 0.0) + float(us_N[chosen_N].sum())
            for classes, column, class_of in self._media:
                classes.add(split, class_of(batch), chosen_N & np.isfinite(batch.floats(column)))
            for classes in self._measures:
                assert classes.axis is not None
                bin_N, valid_N = classes.axis.bins_of(batch.floats(classes.name))
                if classes.name == "duration_s":
                    valid_N = valid_N & ~batch.is_image
                classes.add(split, bin_N, chosen_N & valid_N)
            for name, counters in self._names.items():
                values = batch.texts(name)
                counters.setdefault(split, Counter()).update(values[i] for i in numbers if values[i])
            for i in numbers:
                self._sources.setdefault(sources[i], Counter())[split] += 1
            self._add_captions(split, [captions[i] for i in numbers if captions[i]])

    def _add_captions(self, split: str, captions: Sequence[str]) -> None:
        words = self._words.setdefault(split, Counter())
        lengths = self._caption_lengths.setdefault(split, Counter())
        for caption in captions:
            lengths[len(caption.split())] += 1
            words.update(set(WORD.findall(caption.lower())) - STOP_WORDS)
        self._n_captions[split] += len(captions)

    def as_json(self, name_of_source: Callable[[str], str]) -> dict[str, Any]:
        """Return the balance as data of the page. `name_of_source` maps a source's uid to its name."""
        splits = [split for split in (*self._splits, NO_SPLIT) if self._n_clips[split]]
        classes = [*self._measures, *(classes for classes, _, _ in self._media)]
        classes += [
            _count_names(name, title, self._names[name])
            for name, title in (("camera", "Camera"), ("codec", "Codec"), ("kind", "Kind"))
        ]
        if self._n_captions:
            classes.append(self._count_caption_lengths())
        charts = [item.as_json(splits) for item in classes]
        return {
            "splits": splits,
            "clips": {split: self._n_clips[split] for split in splits},
            "hours": {split: self._microseconds[split] / MICROSECONDS_PER_HOUR for split in splits},
            "charts": [chart for chart in charts if len(chart["labels"]) > 1 and chart["counts"]],
            "words": self._common_words(splits),
            "sources": self._largest_sources(splits, name_of_source),
        }

    def _count_caption_lengths(self) -> ClassCounts:
        found = [length for lengths in self._caption_lengths.values() for length in lengths] or [0]
        step = -(-(max(found) - min(found) + 1) // MAX_BINS)
        axis = Axis(np.arange(min(found), max(found) + 1 + step, step, dtype=np.float64), is_log=False)
        classes = ClassCounts("words", "Words in a caption", [f"{edge:.0f}" for edge in axis.edges[:-1]], axis)
        for split, lengths in self._caption_lengths.items():
            values, n = np.array(list(lengths), np.float64), np.array(list(lengths.values()), np.int64)
            bins = np.bincount(axis.bins_of(values)[0], n, minlength=len(classes.labels))
            classes.counts[split] = bins.astype(np.int64)
        return classes

    def _common_words(self, splits: Sequence[str]) -> dict[str, Any]:
        words = _most_common(self._words.values(), MAX_WORDS)
        counts = {split: [self._words.get(split, Counter())[word] for word in words] for split in splits}
        return {"words": words, "counts": counts, "captions": {split: self._n_captions[split] for split in splits}}

    def _largest_sources(self, splits: Sequence[str], name_of_source: Callable[[str], str]) -> dict[str, Any]:
        uids = sorted(self._sources, key=lambda uid: (-sum(self._sources[uid].values()), uid))
        largest = uids[:MAX_SOURCES]
        return {
            "names": [name_of_source(uid) for uid in largest],
            "counts": {split: [self._sources[uid][split] for uid in largest] for split in splits},
            "n_others": len(uids) - len(largest),
            "n": len(uids),
        }


def _aspect_ratios(batch: Batch) -> Int64Array:
    return nearest_index(batch.floats("width") / batch.floats("height"), list(ASPECT_RATIOS.values()), log=True)


def _short_sides(batch: Batch) -> Int64Array:
    side_N = np.nan_to_num(np.minimum(batch.floats("width"), batch.floats("height")))
    return np.searchsorted(SHORT_SIDES_PX, side_N, side="right")


def _frame_rates(batch: Batch) -> Int64Array:
    return nearest_index(batch.floats("fps"), FRAME_RATES, log=True)


def _count_names(name: str, title: str, counters: Mapping[str, Counter[str]]) -> ClassCounts:
    labels = _most_common(counters.values(), MAX_NAMES)
    counts = {split: np.array([counter[label] for label in labels]) for split, counter in counters.items()}
    return ClassCounts(name, title, labels, None, counts)


def _most_common(counters: Iterable[Counter[str]], n: int) -> list[str]:
    """Return the n most frequent keys of all counters together; equally frequent ones are in alphabetical order."""
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return [key for key, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:n]]
