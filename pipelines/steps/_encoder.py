"""What one worker of `encode` does: clips are dealt to buckets, decoded ahead, encoded in batches of one shape, checked, and written."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cluster import storage
from pipelines.engine.step import Mark, RunError, failure, set_column, set_marks
from pipelines.video.spans import FrameGrid, SampledSpan, read_span
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.data.buckets import Bucket, BucketSettings, assign_bucket, buckets_up_to
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import ShardInfo, sample_uid
from training.pixels import from_uint8, psnr_db, ssim

# Shape suffixes: B clips of a batch, C colours or latent channels, T H W frames, rows and columns.

BATCH_VALUES = {"cpu": 2**22, "cuda": 2**26}
"""Pixel values that go to the device at once, unless one clip has more. A CPU gains nothing from a batch, and the memory of a small
one is used again: with batches of 2**25 the whole step took 1.3 times the CPU."""

CHECK_EVERY = 16
"""Of so many clips of a bucket one is decoded again, and one of each part at least."""
CHECK_LATENT_FRAMES = 2
"""Its latent frames that are, at most: the first picture and what follows it, each by its own way. Decoding costs more than encoding, and what is
wrong with weights or their settings shows in any frame."""


@dataclass(frozen=True)
class Rules:
    """Which samples a clip gives, and when its latents are refused: the settings of `encode` that one worker needs."""

    buckets: tuple[BucketSettings, ...]
    lengths: Literal["longest", "all"]
    mirror: bool
    min_psnr_db: float
    decoders: int
    """Threads that decode video."""
    writes: tuple[pa.Field, pa.Field]
    """Fields of the columns `bucket` and `n_tokens`."""


@dataclass(frozen=True)
class LatentsFolder:
    """Where shards are written, the lineage that their footers carry, and the uids of samples that they hold already."""

    uri: str
    lineage: str
    stored: frozenset[str]


@dataclass(frozen=True)
class Variant:
    """One sample of a clip: its first frames, as they are or mirrored."""

    uid: str
    bucket: Bucket
    mirrored: bool


@dataclass(frozen=True)
class Clip:
    """A row with its bucket, and the samples of it that no shard holds yet."""

    number: int
    row: Mapping[str, Any]
    bucket: Bucket
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Likeness:
    """Of what was decoded again of a sample to its pixels."""

    psnr_db: float
    ssim: float
    """Of the first of these frames, the last and one between."""


@dataclass
class Shard:
    """What is to be written of one bucket."""

    rows: list[LatentRow] = field(default_factory=list)
    checks: list[Likeness] = field(default_factory=list)

    def fidelity(self) -> Mapping[str, float] | None:
        """For the footer, see `ShardInfo.fidelity`."""
        if not self.checks:
            return None
        values = [check.psnr_db for check in self.checks]
        return {
            "rows": len(values),
            "psnr_db": fmean(values),
            "ssim": fmean(check.ssim for check in self.checks),
            "min_psnr_db": min(values),
        }


class Encoder:
    """The table function of `encode`, with its autoencoder loaded on `device`."""

    def __init__(
        self,
        rules: Rules,
        settings: AutoencoderSettings,
        autoencoder: Autoencoder,
        device: torch.device,
        folder: LatentsFolder,
    ) -> None:
        self._rules, self._settings, self._autoencoder = rules, settings, autoencoder
        self._device, self._folder = device, folder

    def __call__(self, table: pa.Table) -> pa.Table:
        marks: list[Mark | None] = []
        buckets: list[Bucket | None] = []
        clips: dict[Bucket, list[Clip]] = defaultdict(list)
        for number, row in enumerate(table.to_pylist()):
            bucket = assign_bucket(self._rules.buckets, row["width"], row["height"], row["duration_s"], row["kind"] == "image")
            marks.append(Mark("dropped", bucket) if isinstance(bucket, str) else None)
            buckets.append(None if isinstance(bucket, str) else bucket)
            if isinstance(bucket, Bucket) and (variants := self._wanted(row, bucket)):
                clips[bucket].append(Clip(number, row, bucket, variants))
        written: dict[Bucket, Shard] = defaultdict(Shard)
        with ThreadPoolExecutor(self._rules.decoders, thread_name_prefix="decoder") as pool:
            try:
                for bucket, same in clips.items():
                    for clip, mark in self._encode(pool, bucket, same, written):
                        marks[clip.number] = mark
            finally:
                pool.shutdown(cancel_futures=True)
        for bucket, shard in written.items():
            self._write(bucket, shard)
        kept = [None if mark else bucket for mark, bucket in zip(marks, buckets, strict=True)]
        bucket_field, tokens_field = self._rules.writes
        table = set_column(table, bucket_field, [bucket and bucket.name for bucket in kept])
        return set_marks(set_column(table, tokens_field, [bucket and self._n_tokens(bucket) for bucket in kept]), marks)

    def _wanted(self, row: Mapping[str, Any], bucket: Bucket) -> tuple[Variant, ...]:
        lengths = buckets_up_to(self._rules.buckets, bucket) if self._rules.lengths == "all" else (bucket,)
        found = [
            Variant(sample_uid(row["uid"], None if length == bucket else length.frames, mirrored), length, mirrored)
            for length in lengths
            for mirrored in ((False, True) if self._rules.mirror else (False,))
        ]
        return tuple(one for one in found if one.uid not in self._folder.stored)

    def _n_tokens(self, bucket: Bucket) -> int:
        _, t, h, w = self._autoencoder.latent_shape(bucket.frames, bucket.height, bucket.width)
        return t * h * w

    def _encode(
        self, pool: ThreadPoolExecutor, bucket: Bucket, clips: Sequence[Clip], written: dict[Bucket, Shard]
    ) -> Iterator[tuple[Clip, Mark]]:
        """Encode clips of one bucket into what is to be written; yields those that failed. After one that is unlike its pixels all are checked."""
        n_checked = -(-len(clips) // CHECK_EVERY)
        chosen = set(sorted((clip.row["uid"] for clip in clips), key=storage.digest)[:n_checked])
        first_checked = sorted(clips, key=lambda clip: clip.row["uid"] not in chosen)
        suspect = False
        for batch in self._decoded(pool, bucket, first_checked):
            spans = []
            for clip, future in batch:
                try:
                    spans.append((clip, future.result()))
                except Exception as error:  # the row carries it
                    yield clip, failure(error)
            checked = [suspect or clip.row["uid"] in chosen for clip, _ in spans]
            for (clip, _), result in zip(spans, self._encode_batch(spans, checked), strict=True):
                if isinstance(result, Mark):
                    suspect = suspect or result.value is not None
                    yield clip, result
                    continue
                rows, check = result
                for variant, row in zip(clip.variants, rows, strict=True):
                    written[variant.bucket].rows.append(row)
                if check:
                    written[clip.bucket].checks.append(check)

    def _decoded(
        self, pool: ThreadPoolExecutor, bucket: Bucket, clips: Sequence[Clip]
    ) -> Iterator[list[tuple[Clip, Future[SampledSpan]]]]:
        """Batches of clips on their way; the one after is begun before one is given out, so that it is decoded while the device works."""
        size = batch_size(bucket, self._device)
        begun: deque[list[tuple[Clip, Future[SampledSpan]]]] = deque()
        for start in range(0, len(clips), size):
            begun.append([(clip, pool.submit(_decode, clip)) for clip in clips[start : start + size]])
            if len(begun) == 2:
                yield begun.popleft()
        yield from begun

    def _encode_batch(
        self, spans: Sequence[tuple[Clip, SampledSpan]], checked: Sequence[bool]
    ) -> list[tuple[list[LatentRow], Likeness | None] | Mark]:
        """Rows of each clip's samples, and how like its pixels it is where that is checked; or what failed."""
        try:
            return self._encode_together(spans, checked) if spans else []
        except Exception as error:  # the rows at fault carry it: each is tried alone
            if len(spans) == 1:
                return [failure(error)]
            return [self._encode_batch([span], [check])[0] for span, check in zip(spans, checked, strict=True)]

    @torch.inference_mode()
    def _encode_together(
        self, spans: Sequence[tuple[Clip, SampledSpan]], checked: Sequence[bool]
    ) -> list[tuple[list[LatentRow], Likeness | None] | Mark]:
        levels_BTHWC = torch.from_numpy(np.stack([span.frames for _, span in spans])).to(self._device)
        video_BCTHW = from_uint8(levels_BTHWC.movedim(-1, 1).contiguous())
        latents: dict[tuple[int, bool], tuple[Tensor, Tensor | None]] = {}
        results: list[tuple[list[LatentRow], Likeness | None] | Mark] = []
        for place, (clip, span) in enumerate(spans):
            rows = []
            for variant in clip.variants:
                key = variant.bucket.frames, variant.mirrored
                if key not in latents:
                    latents[key] = self._latents(video_BCTHW, *key)
                latent_BCTHW, tail_BCTHW = latents[key]
                rows.append(
                    _row(clip, variant, span, latent_BCTHW[place], None if tail_BCTHW is None else tail_BCTHW[place])
                )
            check = None
            if not all(bool(torch.isfinite(row.latent).all()) for row in rows):
                results.append(Mark("failed", "its latents hold a value that is not finite"))
                continue
            if checked[place] and clip.variants[0].bucket == clip.bucket and not clip.variants[0].mirrored:
                check = self._compare(rows[0].latent, video_BCTHW[place : place + 1])
                if check.psnr_db < self._rules.min_psnr_db:
                    reason = f"decoded again it is {check.psnr_db:.1f} dB like its pixels, below min_psnr_db {self._rules.min_psnr_db:g}"
                    results.append(Mark("failed", reason, check.psnr_db, self._rules.min_psnr_db))
                    continue
            results.append((rows, check))
        return results

    def _latents(self, video_BCTHW: Tensor, frames: int, mirrored: bool) -> tuple[Tensor, Tensor | None]:
        """Latents as they are stored, bfloat16 on the CPU, of the first frames, and of the last of these as an image."""
        video_BCTHW = video_BCTHW[:, :, :frames].flip(-1) if mirrored else video_BCTHW[:, :, :frames]
        latent_BCTHW = self._autoencoder.encode(video_BCTHW).to("cpu", torch.bfloat16)
        return latent_BCTHW, self._autoencoder.encode(video_BCTHW[:, :, -1:]).to(
            "cpu", torch.bfloat16
        ) if frames > 1 else None

    def _compare(self, latent_CTHW: Tensor, video_BCTHW: Tensor) -> Likeness:
        latent_CTHW = latent_CTHW[:, :CHECK_LATENT_FRAMES]
        video_BCTHW = video_BCTHW[:, :, : 1 + (latent_CTHW.shape[1] - 1) * self._autoencoder.time_factor]
        made_BCTHW = self._autoencoder.decode(latent_CTHW[None].to(self._device, torch.float32))
        shown = sorted({0, video_BCTHW.shape[2] // 2, video_BCTHW.shape[2] - 1})
        return Likeness(
            float(psnr_db(made_BCTHW, video_BCTHW)), float(ssim(made_BCTHW[:, :, shown], video_BCTHW[:, :, shown]))
        )

    def _write(self, bucket: Bucket, shard: Shard) -> None:
        part = f"part-{storage.digest(*(row.uid for row in shard.rows))}.parquet"
        info = ShardInfo.of(self._settings, self._autoencoder, bucket, self._folder.lineage, shard.fidelity())
        try:
            write_shard(storage.join(self._folder.uri, f"bucket={bucket.name}", part), shard.rows, info)
        except Exception as error:
            raise RunError(
                f"{self._folder.uri}: a shard of bucket {bucket.name} cannot be written: {type(error).__name__}: {error}"
            ) from error


def batch_size(bucket: Bucket, device: torch.device) -> int:
    """Clips of a bucket that go to the device at once."""
    return max(1, BATCH_VALUES[device.type] // (3 * bucket.frames * bucket.height * bucket.width))


def _decode(clip: Clip) -> SampledSpan:
    row, bucket = clip.row, clip.bucket
    return read_span(
        row["source"],
        row["start_pts"],
        row["end_pts"],
        FrameGrid(fps=bucket.fps, frames=bucket.frames, width=bucket.width, height=bucket.height),
    )


def _row(clip: Clip, variant: Variant, span: SampledSpan, latent_CTHW: Tensor, tail_CTHW: Tensor | None) -> LatentRow:
    row = clip.row
    return LatentRow(
        uid=variant.uid,
        latent=latent_CTHW,
        last_frame_latent=tail_CTHW,
        source=row["source"],
        start_pts=row["start_pts"],
        end_pts=row["end_pts"],
        time_base_num=row["time_base_num"],
        time_base_den=row["time_base_den"],
        fps=variant.bucket.fps,
        crop=span.crop,
    )
