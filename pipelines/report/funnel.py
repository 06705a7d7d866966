"""Where the hours went: from the files to the kept clips, with every step and every reason, so that all of it adds up.

A file's hours are `source_duration_s`, a clip's `duration_s`. What of a file is in no clip (transitions, shots too short, remainders)
is a loss of the step that cuts. Images have no length and are counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.engine.step import FATES
from pipelines.report.batches import Batch, Floats
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
HOUR = 3.6e9
"""Microseconds."""
IN_NO_CLIP = "in no clip: transitions, short shots, remainders"


@dataclass
class Amount:
    """Rows, and their time in microseconds, whole ones so that sums do not depend on the order."""

    rows: int = 0
    micros: float = 0.0

    def add(self, rows: int, micros: float) -> None:
        self.rows += rows
        self.micros += micros

    @property
    def hours(self) -> float:
        return self.micros / HOUR


@dataclass
class SourceTime:
    """A file that gave clips: microseconds of it and of all its clips, and how many of them were kept."""

    micros: float = 0.0
    clips_micros: float = 0.0
    kept: int = 0


@dataclass
class Totals:
    """Sums over all rows of the last table, the same however it is divided in parts."""

    files: dict[tuple[bool, Cause], Amount] = field(default_factory=dict)
    """(is an image, cause) of sources that gave no clip."""
    clips: dict[tuple[bool, Cause], Amount] = field(default_factory=dict)
    sources: dict[str, SourceTime] = field(default_factory=dict)
    """Of sources that gave clips, by uid."""
    images: set[str] = field(default_factory=set)
    """Which of these are images."""
    unknown_lengths: int = 0
    """Videos that ended before their length was known."""

    def add(self, batch: Batch) -> None:
        codes_N, causes = batch.causes
        unknown_N = np.isnan(batch.floats("source_duration_s"))
        clip_micros_N, source_micros_N = batch.micros("duration_s"), batch.micros("source_duration_s")
        for is_clip, sums in ((False, self.files), (True, self.clips)):
            for is_image in (False, True):
                chosen_N = (batch.is_clip == is_clip) & (batch.is_image == is_image)
                micros_N = np.zeros(len(batch)) if is_image else clip_micros_N if is_clip else source_micros_N
                rows = np.bincount(codes_N[chosen_N], minlength=len(causes))
                micros = np.bincount(codes_N[chosen_N], micros_N[chosen_N], minlength=len(causes))
                for cause, n, length in zip(causes, rows.tolist(), micros.tolist(), strict=True):
                    if n:
                        sums.setdefault((is_image, cause), Amount()).add(n, length)
        self.unknown_lengths += int((~batch.is_clip & ~batch.is_image & unknown_N).sum())
        self._add_sources(batch, clip_micros_N, source_micros_N)

    def _add_sources(self, batch: Batch, clip_micros_N: Floats, source_micros_N: Floats) -> None:
        columns = {
            "source_uid": batch.table["source_uid"],
            "image": pa.array(batch.is_image),
            "source": pa.array(source_micros_N),
            "clips": pa.array(clip_micros_N),
            "kept": pa.array(batch.is_kept.astype(np.int64)),
        }
        clips = pa.table(columns).filter(pa.array(batch.is_clip))
        wanted = [("source", "max"), ("clips", "sum"), ("kept", "sum"), ("image", "max")]
        for row in clips.group_by("source_uid", use_threads=False).aggregate(wanted).to_pylist():
            time = self.sources.setdefault(row["source_uid"], SourceTime())
            time.micros = max(time.micros, row["source_max"])
            time.clips_micros += row["clips_sum"]
            time.kept += row["kept_sum"]
            if row["image_max"]:
                self.images.add(row["source_uid"])

    def causes(self) -> dict[Cause, Amount]:
        """All rows, clips and files without clips, by cause."""
        sums: dict[Cause, Amount] = {}
        for part in (self.files, self.clips):
            for (_, cause), amount in part.items():
                sums.setdefault(cause, Amount()).add(amount.rows, amount.micros)
        return sums


def funnel(totals: Totals, labels: Sequence[str], cuts: str, images: bool) -> dict[str, Any]:
    """The way of videos, or of images, through the steps `labels`; `cuts` is the step that makes clips of files.

    Each stage holds what was lost there and what is left after it; what came in is the sum of all losses and of what is kept.
    """
    files = {cause: amount for (is_image, cause), amount in totals.files.items() if is_image == images}
    clips = {cause: amount for (is_image, cause), amount in totals.clips.items() if is_image == images}
    sources = [time for uid, time in totals.sources.items() if (uid in totals.images) == images]
    of_sources = sum(max(time.micros, time.clips_micros) for time in sources)
    n_files = len(sources) + sum(amount.rows for amount in files.values())
    n_clips, whole = (
        sum(amount.rows for amount in clips.values()),
        of_sources + sum(amount.micros for amount in files.values()),
    )
    stages = []
    left_files, left_clips, left = n_files, 0, whole
    known = [*labels, *sorted({cause.step for cause in (*files, *clips) if cause.is_loss} - set(labels))]
    for label in known:
        losses: list[dict[str, Any]] = []
        for unit, sums in (("files", files), ("clips", clips)):
            for cause, amount in sums.items():
                if cause.is_loss and cause.step == label:
                    losses.append(
                        {
                            "fate": cause.fate,
                            "reason": cause.reason,
                            "unit": unit,
                            "rows": amount.rows,
                            "hours": amount.hours,
                        }
                    )
                    left -= amount.micros
        left_files -= sum(loss["rows"] for loss in losses if loss["unit"] == "files")
        left_clips -= sum(loss["rows"] for loss in losses if loss["unit"] == "clips")
        if label == cuts:
            left_clips += n_clips
            between = of_sources - sum(time.clips_micros for time in sources)
            left -= between
            if between > 0:
                losses.append({"fate": "uncut", "reason": IN_NO_CLIP, "unit": "", "rows": 0, "hours": between / HOUR})
        losses.sort(key=lambda loss: (-loss["hours"], -loss["rows"], loss["fate"], loss["reason"], loss["unit"]))
        made = n_clips if label == cuts else 0
        stages.append(
            {
                "label": label,
                "losses": losses,
                "made": made,
                "files": left_files,
                "clips": left_clips,
                "hours": left / HOUR,
            }
        )
    kept = [amount for cause, amount in clips.items() if not cause.is_loss]
    return {
        "files": n_files,
        "clips": n_clips,
        "hours": whole / HOUR,
        "unknown_lengths": 0 if images else totals.unknown_lengths,
        "stages": stages,
        "fates": {fate: sum(amount.rows for cause, amount in clips.items() if cause.fate == fate) for fate in FATES},
        "kept_clips": sum(amount.rows for amount in kept),
        "kept_hours": sum(amount.micros for amount in kept) / HOUR,
        "kept_files": sum(1 for time in sources if time.kept),
    }
