"""How much of the kept footage is encoded, by bucket, computed from the clips alone: before and after `encode`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation import Curation
from pipelines.engine.table_index import Index
from pipelines.steps._samples import WindowSamples, samples_of, windows_of
from pipelines.steps.encode import BUCKET_COLUMNS, Encode
from training.data.buckets import Bucket
from training.data.windows import covered_pts

MAX_LOST_CLIPS = 0.05
"""Share of clips without a bucket above which a warning is due."""
MAX_LOST_SECONDS = 0.1
"""Share of the seconds of kept clips that are in no sample, above which a warning is due."""
MAX_LISTED = 6

CROP_TYPE = pa.list_(pa.int32())

GROUP_COLUMNS = ["kind", "width", "height", "span_pts", "time_base_num", "time_base_den"]
"""Values that decide on the windows of a clip. Clips that share them are counted together."""


@dataclass(frozen=True)
class BucketUse:
    """The samples in one bucket, and the seconds of clips that are in at least one of them; 0 for images."""

    name: str
    fps: float
    n_samples: int
    used_s: float


@dataclass(frozen=True)
class Coverage:
    """How much of the clips that reach `encode` its samples use."""

    n_clips: int
    """Clips and images."""
    n_samples: int
    kept_s: float
    """Seconds of the video clips."""
    used_s: float
    """Seconds of these that are in at least one sample."""
    buckets: tuple[BucketUse, ...]
    """Every bucket of the recipe, by area and length; those without a sample too."""
    unassigned: Mapping[str, int]
    """Clips that no bucket takes, by reason."""

    @property
    def used_share(self) -> float:
        return self.used_s / self.kept_s if self.kept_s else 1.0

    def warnings(self) -> list[str]:
        """Return what a user should know: lost clips, lost seconds, and buckets without a sample."""
        return [*self._lost_clips(), *self._lost_seconds(), *self._empty_buckets()]

    def _lost_clips(self) -> Iterator[str]:
        lost = _joined(self.unassigned)
        if lost.total() <= MAX_LOST_CLIPS * self.n_clips:
            return
        listed = "; ".join(f"{count} because {reason}" for reason, count in lost.most_common(3))
        rest = f"; and {len(lost) - 3} more reasons" if len(lost) > 3 else ""
        share = f"{lost.total()} of {self.n_clips} clips ({lost.total() / self.n_clips:.1%})"
        yield f"no bucket fits {share} that filters keep: {listed}{rest}. Add smaller or shorter buckets"

    def _lost_seconds(self) -> Iterator[str]:
        if 1 - self.used_share > MAX_LOST_SECONDS:
            lost = f"{self.kept_s - self.used_s:.1f} of {self.kept_s:.1f} s ({1 - self.used_share:.1%})"
            yield (
                f"{lost} of kept clips are in no sample. Add shorter lengths to frames of buckets, or cut clips to "
                "their lengths"
            )

    def _empty_buckets(self) -> Iterator[str]:
        if not self.n_samples:
            return
        empty = [use for use in self.buckets if not use.n_samples]
        of_images = [use for use in empty if use.name.endswith("x1")]
        videos = [use for use in empty if use not in of_images]
        if videos:
            yield f"no clip fills {len(videos)} of {len(self.buckets)} buckets: {_listed(videos)}"
        if of_images:
            yield (
                f"no image fills {len(of_images)} of {len(self.buckets)} buckets: {_listed(of_images)}; videos give "
                "images only with stills: true"
            )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "used_share": self.used_share, "warnings": self.warnings()}


def _joined(reasons: Mapping[str, int]) -> Counter[str]:
    """Return reasons with their counts; those that differ only in the clip's size or length are one."""
    by_rest: dict[str, Counter[str]] = defaultdict(Counter)
    for reason, count in reasons.items():
        number = re.search(" is (?=shorter|smaller)", reason)
        by_rest[f"they are {reason[number.end() :]}" if number else reason][reason] += count
    joined: Counter[str] = Counter()
    for rest, found in by_rest.items():
        joined[rest if len(found) > 1 else next(iter(found))] += found.total()
    return joined


def _listed(uses: Sequence[BucketUse]) -> str:
    names = [f"{use.name} at {use.fps:g} fps" for use in uses[:MAX_LISTED]]
    more = f" and {len(uses) - MAX_LISTED} more" if len(uses) > MAX_LISTED else ""
    return ", ".join(names) + more


def bucket_coverage(curation: Curation) -> Coverage | None:
    """Return the coverage of the clips that reach `encode`; None if it has no such step, or they are not known yet.

    A segment is listed once the one before it is complete. Clips that failed in `encode` count as kept and not used.
    """
    position = next((i for i, state in enumerate(curation.segments) if isinstance(state.segment.first, Encode)), None)
    if not position:
        return None
    encode = curation.segments[position].segment.first
    assert isinstance(encode, Encode)
    index = curation.segments[position].rows.rows
    failed = index.filter(pc.equal(index["fate"], "failed"))["uid"]
    return coverage(encode, _clips(curation.segments[position - 1].rows.live(), failed))


def _clips(rows: Index, failed: pa.ChunkedArray) -> pa.Table:
    clips = rows.read(["uid", "clip_index", *BUCKET_COLUMNS])
    clips = clips.filter(pc.is_valid(clips["clip_index"]))
    is_failed = pc.is_in(clips["uid"], value_set=failed.combine_chunks())
    return clips.append_column("failed", is_failed)


def coverage(encode: Encode, clips: pa.Table) -> Coverage:
    """Return the coverage of clips, which have `BUCKET_COLUMNS`, and `failed` if some of them failed."""
    rules = encode.sample_rules
    used = {bucket: (0, 0.0) for settings in encode.buckets for bucket in settings.buckets()}
    unassigned: Counter[str] = Counter()
    n_samples, kept_s, used_s = 0, 0.0, 0.0
    for row in _groups(clips):
        n_clips, second = row["count_all"], Fraction(row["time_base_num"], row["time_base_den"])
        kept_s += 0.0 if row["kind"] == "image" else float(row["end_pts"] * second) * n_clips
        windows = () if row["failed"] else windows_of(row, rules)
        if isinstance(windows, str):
            unassigned[windows] += n_clips
            continue
        used_s += float(covered_pts(windows) * second) * n_clips
        for bucket, (count, seconds) in _use_of(samples_of(row, windows, rules), second).items():
            n_samples += count * n_clips
            used[bucket] = used[bucket][0] + count * n_clips, used[bucket][1] + seconds * n_clips
    order = sorted(used, key=lambda bucket: (bucket.width * bucket.height, bucket.width, bucket.fps, bucket.frames))
    uses = tuple(BucketUse(bucket.name, bucket.fps, *used[bucket]) for bucket in order)
    return Coverage(len(clips), n_samples, kept_s, used_s, uses, dict(unassigned))


def _use_of(windows: Sequence[WindowSamples], second: Fraction) -> dict[Bucket, tuple[int, float]]:
    """Return the samples of a clip by bucket: their number, and the seconds that they cover together."""
    by_bucket = defaultdict(list)
    for part in windows:
        for sample in part.samples:
            by_bucket[sample.window.bucket].append(sample.window)
    return {bucket: (len(found), float(covered_pts(found) * second)) for bucket, found in by_bucket.items()}


def _groups(clips: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield a row for all clips of one size and length, with their number in `count_all`."""
    if not len(clips):  # columns of no rows have no type to compute with
        return
    whole, crops = (pa.scalar(0), pa.scalar(0), clips["width"], clips["height"]), clips["crop"].cast(CROP_TYPE)
    x0, y0, x1, y1 = (
        pc.cast(pc.coalesce(pc.list_element(crops, side), one), pa.int64()) for side, one in enumerate(whole)
    )
    columns = {
        **{name: clips[name] for name in ("kind", "time_base_num", "time_base_den")},
        "width": pc.subtract(x1, x0),
        "height": pc.subtract(y1, y0),
        "span_pts": pc.subtract(clips["end_pts"], clips["start_pts"]),
        "failed": clips["failed"] if "failed" in clips.column_names else pa.repeat(False, len(clips)),
    }
    groups = pa.table(columns).group_by([*GROUP_COLUMNS, "failed"]).aggregate([([], "count_all")])
    for group in groups.to_pylist():
        yield {**group, "uid": "", "crop": None, "start_pts": 0, "end_pts": group["span_pts"]}
