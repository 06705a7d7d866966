"""What the kept clips are like, by split: a set that is held out should look like the one that is trained on.

How far two splits are apart is the total variation distance, half the sum of differences of shares: the share of clips that would
have to change. Splits drawn at random differ too; `chance` is the distance to expect of the same clips dealt out at random. Clips of one
source are alike and stay together, so that true chance is higher.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.report.batches import Batch, Bools, Floats
from pipelines.report.columns import Axis, ValueSample, axis_of, round_to
from pipelines.report.funnel import HOUR

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

ASPECTS = {
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
SHORT_SIDES = (240, 360, 480, 720, 1080, 1440, 2160)
RATES = (12, 15, 24, 25, 30, 48, 50, 60, 120)
WORD = re.compile(r"[^\W\d_][^\W\d_'’-]+")
STOP_WORDS = frozenset(
    """
    a about above across after against all along also am among an and another any are around as at away back be because been before behind being
    below beside between both but by can could did do does down during each either every few for from further had has have he her here hers him
    his how however i if in inside into is it it's its itself just like many may me might more most much my near no nor not of off on once one
    only onto or other our out outside over own per rather same several she should since so some still such than that the their them then there
    these they this those through to together too toward towards two under until up upon us very via was we were what when where which while who
    whose why will with within without would you your
    """.split()  # noqa: SIM905 - a list of words reads as one
)
N_WORDS = 40
N_SOURCES = 12
BINS = 24


def nearest(values_N: Floats, marks: Sequence[float], log: bool = False) -> NDArray[np.int64]:
    """`[N]` index of the nearest mark, by ratio if `log`."""
    filled_N, marks_M = np.where(np.isfinite(values_N) & (values_N > 0), values_N, 1.0), np.array(marks, np.float64)
    if log:
        filled_N, marks_M = np.log(filled_N), np.log(marks_M)
    return np.asarray(np.abs(filled_N[:, None] - marks_M[None]).argmin(1), np.int64)


@dataclass
class Shares:
    """Clips by class, for each split."""

    name: str
    title: str
    labels: list[str]
    axis: Axis | None = None
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def add(self, split: str, code_N: NDArray[np.int64], chosen_N: Bools) -> None:
        found = np.bincount(code_N[chosen_N], minlength=len(self.labels))
        self.counts[split] = self.counts.get(split, np.zeros(len(self.labels), np.int64)) + found

    def as_json(self, splits: Sequence[str]) -> dict[str, Any]:
        used = [i for i in range(len(self.labels)) if self.axis or any(self.counts[split][i] for split in self.counts)]
        counts = {split: [int(self.counts[split][i]) for i in used] for split in splits if split in self.counts}
        axis = (
            {"edges": [round_to(edge) for edge in self.axis.edges.tolist()], "log": self.axis.is_log}
            if self.axis
            else {}
        )
        return {
            "name": self.name,
            "title": self.title,
            "labels": [self.labels[i] for i in used],
            "counts": counts,
            "apart": apart(counts),
            **axis,
        }


def apart(counts: Mapping[str, Sequence[int]], first: str = "train") -> dict[str, dict[str, float]]:
    """For each split but `first`, its total variation distance to it, and what chance would give."""
    if first not in counts or not sum(counts[first]):
        return {}
    p, n = np.array(counts[first], float) / sum(counts[first]), sum(counts[first])
    found = {}
    for split, values in counts.items():
        m = sum(values)
        if split == first or not m:
            continue
        q = np.array(values, float) / m
        # Of K clips of a class, Y are in a split: |(K - Y) / n - Y / m| is |Y - mean of Y| (1/n + 1/m).
        both = [a + b for a, b in zip(counts[first], values, strict=True)]
        chance = 0.5 * (1 / n + 1 / m) * sum(mean_deviation(n + m, k, m) for k in both)
        found[split] = {"distance": round(0.5 * float(np.abs(p - q).sum()), 4), "chance": round(chance, 4)}
    return found


def mean_deviation(n: int, k: int, m: int) -> float:
    """Mean absolute deviation of how many of k marked clips are among m drawn of n.

    De Moivre's telescoping sum for the hypergeometric distribution, after Diaconis and Zabell, Closed Form Summation for Classical
    Distributions, Statistical Science 6 (1991): 2 v (n - k - m + v) P(v) / n, with v the first whole number above the mean.
    """
    v = m * k // n + 1
    if v > min(k, m):
        return 0.0
    log_p = _log_choose(k, v) + _log_choose(n - k, m - v) - _log_choose(n, m)
    return 2 * v * (n - k - m + v) / n * math.exp(log_p)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


class Balance:
    """Kept clips by split in many respects. `split_of` gives the split of each uid, `""` where it has none."""

    def __init__(self, sample: ValueSample, splits: Sequence[str], split_of: Mapping[str, str]) -> None:
        self._splits, self._split_of = list(splits), split_of
        self._sizes: Counter[str] = Counter()
        self._micros: dict[str, float] = {}
        self._words: dict[str, Counter[str]] = {}
        self._captions: Counter[str] = Counter()
        self._names: dict[str, dict[str, Counter[str]]] = {"camera": {}, "codec": {}, "kind": {}}
        self._sources: dict[str, Counter[str]] = {}
        sides = [f"<{SHORT_SIDES[0]}", *(f"{side}+" for side in SHORT_SIDES)]
        ratios = list(ASPECTS)
        self._fixed = {
            "aspect": (
                Shares("aspect", "Aspect ratio", ratios),
                _aspect,
            ),
            "side": (Shares("side", "Short side, pixels", sides), _short_side),
            "fps": (
                Shares("fps", "Frames per second", list(map(str, RATES))),
                lambda b: nearest(b.floats("fps"), RATES, True),
            ),
        }
        self._spread: dict[str, tuple[Shares, str]] = {}
        for name, title in (("duration_s", "Duration, seconds"), ("motion", "Motion"), ("luma", "Brightness (luma)")):
            values = sample.values(name, kept=True)
            if len(values):
                axis = axis_of(values[values > 0] if name == "duration_s" else values, most=BINS)
                self._spread[name] = (Shares(name, title, [f"{edge:.3g}" for edge in axis.edges[:-1]], axis), name)
        self._lengths: dict[str, Counter[int]] = {}

    def add(self, batch: Batch) -> None:
        splits_N = (
            np.array([self._split_of.get(uid, "") or "kept" for uid in batch.uids.tolist()])
            if len(batch)
            else np.array([], str)
        )
        captions = batch.texts("caption")
        sources = batch.texts("source_uid")
        names = {name: batch.texts(name) for name in self._names}
        micros_N = batch.micros("duration_s")
        widths_N, fps_N = batch.floats("width"), batch.floats("fps")
        for split in sorted(set(splits_N[batch.is_kept & batch.is_clip].tolist())):
            chosen_N = batch.is_kept & batch.is_clip & (splits_N == split)
            at = np.flatnonzero(chosen_N).tolist()
            self._sizes[split] += len(at)
            self._micros[split] = self._micros.get(split, 0.0) + float(micros_N[chosen_N].sum())
            for name, (shares, code) in self._fixed.items():
                shares.add(split, code(batch), chosen_N & np.isfinite(fps_N if name == "fps" else widths_N))
            for shares, name in self._spread.values():
                assert shares.axis is not None
                bin_N, valid_N = shares.axis.place(batch.floats(name))
                shares.add(
                    split,
                    bin_N,
                    chosen_N & valid_N & ~(batch.is_image if name == "duration_s" else np.zeros(len(batch), np.bool_)),
                )
            for name, values in names.items():
                self._names[name].setdefault(split, Counter()).update(values[i] for i in at if values[i])
            for i in at:
                self._sources.setdefault(sources[i], Counter())[split] += 1
            self._read(split, [captions[i] for i in at if captions[i]])

    def _read(self, split: str, captions: Sequence[str]) -> None:
        words, lengths = self._words.setdefault(split, Counter()), self._lengths.setdefault(split, Counter())
        for caption in captions:
            found = WORD.findall(caption.lower())
            lengths[len(caption.split())] += 1
            words.update(set(found) - STOP_WORDS)
        self._captions[split] += len(captions)

    def as_json(self, name_of_source: Callable[[str], str]) -> dict[str, Any]:
        splits = [split for split in (*self._splits, "kept") if self._sizes[split]]
        shares = [shares for shares, _ in self._spread.values()] + [shares for shares, _ in self._fixed.values()]
        shares += [
            _counted(name, title, self._names[name])
            for name, title in (("camera", "Camera"), ("codec", "Codec"), ("kind", "Kind"))
        ]
        if self._captions:
            shares.append(self._caption_lengths())
        return {
            "splits": splits,
            "clips": {split: self._sizes[split] for split in splits},
            "hours": {split: self._micros[split] / HOUR for split in splits},
            "shares": [
                item
                for item in (share.as_json(splits) for share in shares)
                if len(item["labels"]) > 1 and item["counts"]
            ],
            "words": self._common_words(splits),
            "sources": self._top_sources(splits, name_of_source),
        }

    def _caption_lengths(self) -> Shares:
        found = [length for lengths in self._lengths.values() for length in lengths] or [0]
        step = -(-(max(found) - min(found) + 1) // BINS)
        axis = Axis(np.arange(min(found), max(found) + 1 + step, step, dtype=np.float64), False)
        shares = Shares("words", "Words in a caption", [f"{edge:.0f}" for edge in axis.edges[:-1]], axis)
        for split, lengths in self._lengths.items():
            values, n = np.array(list(lengths), np.float64), np.array(list(lengths.values()), np.int64)
            shares.counts[split] = np.bincount(axis.place(values)[0], n, minlength=len(shares.labels)).astype(np.int64)
        return shares

    def _common_words(self, splits: Sequence[str]) -> dict[str, Any]:
        total: Counter[str] = Counter()
        for words in self._words.values():
            total.update(words)
        top = [word for word, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:N_WORDS]]
        counts = {split: [self._words.get(split, Counter())[word] for word in top] for split in splits}
        return {"words": top, "counts": counts, "captions": {split: self._captions[split] for split in splits}}

    def _top_sources(self, splits: Sequence[str], name_of_source: Callable[[str], str]) -> dict[str, Any]:
        ordered = sorted(self._sources, key=lambda uid: (-sum(self._sources[uid].values()), uid))
        top, rest = ordered[:N_SOURCES], ordered[N_SOURCES:]
        counts = {split: [self._sources[uid][split] for uid in top] for split in splits}
        return {
            "names": [name_of_source(uid) for uid in top],
            "counts": counts,
            "n_others": len(rest),
            "n": len(ordered),
        }


def _aspect(batch: Batch) -> NDArray[np.int64]:
    return nearest(batch.floats("width") / batch.floats("height"), list(ASPECTS.values()), log=True)


def _short_side(batch: Batch) -> NDArray[np.int64]:
    return np.searchsorted(
        SHORT_SIDES, np.nan_to_num(np.minimum(batch.floats("width"), batch.floats("height"))), side="right"
    )


def _counted(name: str, title: str, counters: Mapping[str, Counter[str]]) -> Shares:
    total: Counter[str] = Counter()
    for counter in counters.values():
        total.update(counter)
    labels = [label for label, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:20]]
    return Shares(
        name,
        title,
        labels,
        None,
        {split: np.array([counter[label] for label in labels]) for split, counter in counters.items()},
    )
