"""The funnel: rows and hours from the source files to the kept clips, with every step and every cause of loss.

The hours of a source are its `source_duration_s`, those of a clip its `duration_s`. The part of a source that is in
no clip (transitions, short shots, remainders) is a loss of the step that cuts. Images have no duration and are
counted separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.arrays import Float64Array
from pipelines.engine.step import FATES
from pipelines.report.batches import Batch
from pipelines.report.causes import Cause

COLUMNS = (
    "uid",
    "source_uid",
    "kind",
    "clip_index",
    "duration_s",
    "source_duration_s",
    "fate",
    "fate_step",
    "fate_reason",
)
"""Columns that `Totals` reads."""

MICROSECONDS_PER_HOUR = 3.6e9
MAX_PENDING_ROWS = 1 << 20
"""Rows of clips and sources after which the sums of sources are made: a page of few clips makes them once."""
IN_NO_CLIP = "in no clip: transitions, short shots, remainders"


@dataclass
class RowTotal:
    """Number of rows and their total duration in whole microseconds, so that the order of additions does not matter."""

    rows: int = 0
    microseconds: float = 0.0

    def add(self, rows: int, microseconds: float) -> None:
        self.rows += rows
        self.microseconds += microseconds

    @property
    def hours(self) -> float:
        return self.microseconds / MICROSECONDS_PER_HOUR


@dataclass
class Totals:
    """Sums over all rows of the last table. They do not depend on how it is divided into parts."""

    files: dict[tuple[bool, Cause], RowTotal] = field(default_factory=dict)
    """Sources without clips, by (is an image, cause)."""
    clips: dict[tuple[bool, Cause], RowTotal] = field(default_factory=dict)
    """Clips, by (is an image, cause)."""
    _sources: list[pa.Table] = field(default_factory=list, compare=False)
    """Sums over the clips of each source, of some of the batches each."""
    unknown_durations: int = 0
    """Number of videos that were lost before their duration was known."""

    def add(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        codes_N, causes = batch.causes
        clip_us_N, source_us_N = batch.microseconds("duration_s"), batch.microseconds("source_duration_s")
        for is_clip, totals in ((False, self.files), (True, self.clips)):
            for is_image in (False, True):
                chosen_N = (batch.is_clip == is_clip) & (batch.is_image == is_image)
                us_N = np.zeros(len(batch)) if is_image else clip_us_N if is_clip else source_us_N
                rows = np.bincount(codes_N[chosen_N], minlength=len(causes))
                us = np.bincount(codes_N[chosen_N], us_N[chosen_N], minlength=len(causes))
                for cause, n, duration in zip(causes, rows.tolist(), us.tolist(), strict=True):
                    if n:
                        totals.setdefault((is_image, cause), RowTotal()).add(n, duration)
        unknown_N = np.isnan(batch.floats("source_duration_s"))
        self.unknown_durations += int((~batch.is_clip & ~batch.is_image & unknown_N).sum())
        self._add_sources(batch, clip_us_N, source_us_N)

    def _add_sources(self, batch: Batch, clip_us_N: Float64Array, source_us_N: Float64Array) -> None:
        columns = {
            "source_uid": batch.table["source_uid"],
            "image": pa.array(batch.is_image),
            "microseconds": pa.array(source_us_N),
            "clip_microseconds": pa.array(clip_us_N),
        }
        self._sources.append(pa.table(columns).filter(pa.array(batch.is_clip)))
        if sum(map(len, self._sources)) > MAX_PENDING_ROWS:
            self._sources = [self.sources()]

    def sources(self) -> pa.Table:
        """Return a row per source with clips: whether it is an image, its microseconds, and those of all its clips."""
        names = ["source_uid", "image", "microseconds", "clip_microseconds"]
        sums = [("image", "max"), ("microseconds", "max"), ("clip_microseconds", "sum")]
        if not self._sources:
            kinds = (pa.string(), pa.bool_(), pa.float64(), pa.float64())
            return pa.schema(zip(names, kinds, strict=True)).empty_table()
        rows = pa.concat_tables(self._sources)
        found = rows.group_by("source_uid", use_threads=False).aggregate(sums)
        return found.select(["source_uid", *("_".join(one) for one in sums)]).rename_columns(names)

    def by_cause(self) -> dict[Cause, RowTotal]:
        """Return the total of all rows, clips and sources without clips, by cause."""
        totals: dict[Cause, RowTotal] = {}
        for rows in (self.files, self.clips):
            for (_, cause), total in rows.items():
                totals.setdefault(cause, RowTotal()).add(total.rows, total.microseconds)
        return totals


def funnel(totals: Totals, labels: Sequence[str], cut_label: str, images: bool) -> dict[str, Any]:
    """Return the funnel of the videos, or of the images, through the steps `labels`.

    `cut_label` is the step that makes clips of sources. Each stage holds the losses of a step and what is left after
    it. All losses and the kept clips add up to the input.
    """
    files = {cause: total for (is_image, cause), total in totals.files.items() if is_image == images}
    clips = {cause: total for (is_image, cause), total in totals.clips.items() if is_image == images}
    sources = totals.sources()
    sources = sources.filter(pc.equal(sources["image"], images))
    source_us_S, clips_us_S = (sources[name].to_numpy() for name in ("microseconds", "clip_microseconds"))
    # Rounding can make the clips of a source longer than the source.
    sources_us = float(np.maximum(source_us_S, clips_us_S).sum())
    input_us = sources_us + sum(total.microseconds for total in files.values())
    n_files = len(sources) + sum(total.rows for total in files.values())
    n_clips = sum(total.rows for total in clips.values())
    stages = []
    left_files, left_clips, left_us = n_files, 0, input_us
    unlisted = sorted({cause.step for cause in (*files, *clips) if cause.is_loss} - set(labels))
    for label in (*labels, *unlisted):
        losses = []
        lost_files = {cause: total for cause, total in files.items() if cause.is_loss and cause.step == label}
        lost_clips = {cause: total for cause, total in clips.items() if cause.is_loss and cause.step == label}
        for unit, lost in (("files", lost_files), ("clips", lost_clips)):
            losses += [_loss(cause, unit, total) for cause, total in lost.items()]
            left_us -= sum(total.microseconds for total in lost.values())
        left_files -= sum(total.rows for total in lost_files.values())
        left_clips -= sum(total.rows for total in lost_clips.values())
        if label == cut_label:
            left_clips += n_clips
            uncut_us = sources_us - float(clips_us_S.sum())
            left_us -= uncut_us
            if uncut_us > 0:
                losses.append(_loss(Cause("uncut", label, IN_NO_CLIP), "", RowTotal(0, uncut_us)))
        losses.sort(key=lambda loss: (-loss["hours"], -loss["rows"], loss["fate"], loss["reason"], loss["unit"]))
        stages.append(
            {
                "label": label,
                "losses": losses,
                "new_clips": n_clips if label == cut_label else 0,
                "files": left_files,
                "clips": left_clips,
                "hours": left_us / MICROSECONDS_PER_HOUR,
            }
        )
    kept = [total for cause, total in clips.items() if not cause.is_loss]
    return {
        "files": n_files,
        "clips": n_clips,
        "hours": input_us / MICROSECONDS_PER_HOUR,
        "unknown_durations": 0 if images else totals.unknown_durations,
        "stages": stages,
        "fates": {fate: sum(total.rows for cause, total in clips.items() if cause.fate == fate) for fate in FATES},
        "kept_clips": sum(total.rows for total in kept),
        "kept_hours": sum(total.microseconds for total in kept) / MICROSECONDS_PER_HOUR,
    }


def _loss(cause: Cause, unit: str, total: RowTotal) -> dict[str, Any]:
    return {"fate": cause.fate, "reason": cause.reason, "unit": unit, "rows": total.rows, "hours": total.hours}
