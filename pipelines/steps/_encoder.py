"""Work of one worker of `encode`: clips are decoded ahead by bucket, encoded in batches, checked and written."""

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
from pipelines.engine.source_versions import unchanged_source
from pipelines.engine.step import Mark, RunError, failure, set_column, set_marks
from pipelines.video.spans import FrameGrid, SampledSpan, read_span
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.data.buckets import Bucket, BucketSettings, assign_bucket, buckets_up_to
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import ShardInfo, sample_uid
from training.pixels import from_uint8, psnr_db, ssim

# Shape suffixes: B clips of a batch, C colours or latent channels, T frames, H height, W width.

BATCH_VALUES = {"cpu": 2**22, "cuda": 2**26}
"""Pixel values per batch, unless one clip has more. A CPU gains nothing from larger batches, and the memory of a
small one is used again: with batches of 2**25 the whole step took 1.3 times the CPU."""

CLIPS_PER_CHECK = 16
"""One in this many clips of a bucket is decoded again, and at least one per part of the table."""
CHECK_LATENT_FRAMES = 2
"""Largest number of latent frames that are decoded again: the first frame and those after it, which are coded
differently. Decoding costs more than encoding, and wrong weights or settings show in any frame."""


@dataclass(frozen=True)
class EncodingRules:
    """Settings of `encode` that decide which samples a clip gives, and when its latents are refused."""

    buckets: tuple[BucketSettings, ...]
    lengths: Literal["longest", "all"]
    mirror: bool
    min_psnr_db: float
    decoder_threads: int
    """Threads that decode video."""
    writes: tuple[pa.Field, pa.Field]
    """Fields of the columns `bucket` and `n_tokens`."""


@dataclass(frozen=True)
class LatentsFolder:
    """The folder of the shards, the lineage in their footers, and the uids of samples that they hold already."""

    uri: str
    lineage: str
    stored: frozenset[str]


@dataclass(frozen=True)
class Variant:
    """One sample of a clip: its first frames at the length of `bucket`, mirrored or not."""

    uid: str
    bucket: Bucket
    mirrored: bool


@dataclass(frozen=True)
class Clip:
    """A row with its bucket, its index in the table, and those of its samples that no shard holds yet."""

    index: int
    row: Mapping[str, Any]
    bucket: Bucket
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Fidelity:
    """PSNR and SSIM of the decoded latents of a sample to its pixels."""

    psnr_db: float
    ssim: float
    """Mean over the first of the decoded frames, the middle one and the last."""


@dataclass(frozen=True)
class EncodedClip:
    """Rows of a clip's samples, in the order of its variants, and their fidelity if it was checked."""

    rows: list[LatentRow]
    fidelity: Fidelity | None


@dataclass
class PendingShard:
    """Samples of one bucket that are not written yet, and the fidelity of those that were checked."""

    rows: list[LatentRow] = field(default_factory=list)
    checks: list[Fidelity] = field(default_factory=list)

    def fidelity(self) -> Mapping[str, float] | None:
        """Return the value of `ShardInfo.fidelity`; None if no sample was checked."""
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
        rules: EncodingRules,
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
        for index, row in enumerate(table.to_pylist()):
            bucket = assign_bucket(
                self._rules.buckets, row["width"], row["height"], row["duration_s"], row["kind"] == "image"
            )
            marks.append(Mark("dropped", bucket) if isinstance(bucket, str) else None)
            buckets.append(None if isinstance(bucket, str) else bucket)
            if isinstance(bucket, Bucket) and (variants := self._missing_variants(row, bucket)):
                clips[bucket].append(Clip(index, row, bucket, variants))
        pending: dict[Bucket, PendingShard] = defaultdict(PendingShard)
        with ThreadPoolExecutor(self._rules.decoder_threads, thread_name_prefix="decoder") as pool:
            try:
                for bucket, same in clips.items():
                    for clip, mark in self._encode_bucket(pool, bucket, same, pending):
                        marks[clip.index] = mark
            finally:
                pool.shutdown(cancel_futures=True)
        for bucket, shard in pending.items():
            self._write(bucket, shard)
        kept = [None if mark else bucket for mark, bucket in zip(marks, buckets, strict=True)]
        bucket_field, tokens_field = self._rules.writes
        table = set_column(table, bucket_field, [bucket and bucket.name for bucket in kept])
        return set_marks(set_column(table, tokens_field, [bucket and self._n_tokens(bucket) for bucket in kept]), marks)

    def _missing_variants(self, row: Mapping[str, Any], bucket: Bucket) -> tuple[Variant, ...]:
        """Return the samples of a clip that no shard holds yet."""
        lengths = buckets_up_to(self._rules.buckets, bucket) if self._rules.lengths == "all" else (bucket,)
        variants = [
            Variant(sample_uid(row["uid"], None if length == bucket else length.frames, mirrored), length, mirrored)
            for length in lengths
            for mirrored in ((False, True) if self._rules.mirror else (False,))
        ]
        return tuple(variant for variant in variants if variant.uid not in self._folder.stored)

    def _n_tokens(self, bucket: Bucket) -> int:
        """Return the number of latent cells of a clip of this bucket."""
        _, t, h, w = self._autoencoder.latent_shape(bucket.frames, bucket.height, bucket.width)
        return t * h * w

    def _encode_bucket(
        self, pool: ThreadPoolExecutor, bucket: Bucket, clips: Sequence[Clip], pending: dict[Bucket, PendingShard]
    ) -> Iterator[tuple[Clip, Mark]]:
        """Encode clips of one bucket into pending shards, and yield those that fail.

        Once a clip fails its check, all later ones are checked.
        """
        n_checked = -(-len(clips) // CLIPS_PER_CHECK)
        to_check = set(sorted((clip.row["uid"] for clip in clips), key=storage.digest)[:n_checked])
        first_checked = sorted(clips, key=lambda clip: clip.row["uid"] not in to_check)
        suspect = False
        for batch in self._decode_ahead(pool, bucket, first_checked):
            spans = []
            for clip, future in batch:
                try:
                    spans.append((clip, future.result()))
                except Exception as error:  # recorded in the row's mark
                    yield clip, failure(error)
            checked = [suspect or clip.row["uid"] in to_check for clip, _ in spans]
            for (clip, _), result in zip(spans, self._encode_batch(spans, checked), strict=True):
                if isinstance(result, Mark):
                    suspect = suspect or result.value is not None
                    yield clip, result
                    continue
                for variant, row in zip(clip.variants, result.rows, strict=True):
                    pending[variant.bucket].rows.append(row)
                if result.fidelity:
                    pending[clip.bucket].checks.append(result.fidelity)

    def _decode_ahead(
        self, pool: ThreadPoolExecutor, bucket: Bucket, clips: Sequence[Clip]
    ) -> Iterator[list[tuple[Clip, Future[SampledSpan]]]]:
        """Yield batches of clips that are being decoded.

        The next batch is started before a batch is yielded, so that it is decoded while the device works.
        """
        size = batch_size(bucket, self._device)
        started: deque[list[tuple[Clip, Future[SampledSpan]]]] = deque()
        for start in range(0, len(clips), size):
            started.append([(clip, pool.submit(_decode, clip)) for clip in clips[start : start + size]])
            if len(started) == 2:
                yield started.popleft()
        yield from started

    def _encode_batch(
        self, spans: Sequence[tuple[Clip, SampledSpan]], checked: Sequence[bool]
    ) -> list[EncodedClip | Mark]:
        """Return each clip's rows, with its fidelity if it is checked, or the mark of its failure."""
        try:
            return self._encode_stacked(spans, checked) if spans else []
        except Exception as error:  # each clip is tried alone, and the error is recorded in the marks of those at fault
            if len(spans) == 1:
                return [failure(error)]
            return [self._encode_batch([span], [check])[0] for span, check in zip(spans, checked, strict=True)]

    @torch.inference_mode()
    def _encode_stacked(
        self, spans: Sequence[tuple[Clip, SampledSpan]], checked: Sequence[bool]
    ) -> list[EncodedClip | Mark]:
        """Encode clips of one bucket as one batch. Raises any error of the autoencoder."""
        values_BTHWC = torch.from_numpy(np.stack([span.frames for _, span in spans])).to(self._device)
        video_BCTHW = from_uint8(values_BTHWC.movedim(-1, 1).contiguous())
        latents: dict[tuple[int, bool], tuple[Tensor, Tensor | None]] = {}
        results: list[EncodedClip | Mark] = []
        for i, (clip, span) in enumerate(spans):
            rows = []
            for variant in clip.variants:
                key = variant.bucket.frames, variant.mirrored
                if key not in latents:
                    latents[key] = self._latents(video_BCTHW, *key)
                latent_BCTHW, last_frame_BCTHW = latents[key]
                last_frame_CTHW = None if last_frame_BCTHW is None else last_frame_BCTHW[i]
                rows.append(_row(clip, variant, span, latent_BCTHW[i], last_frame_CTHW))
            fidelity = None
            if not all(bool(torch.isfinite(row.latent).all()) for row in rows):
                results.append(Mark("failed", "its latents hold a value that is not finite"))
                continue
            if checked[i] and clip.variants[0].bucket == clip.bucket and not clip.variants[0].mirrored:
                fidelity = self._fidelity(rows[0].latent, video_BCTHW[i : i + 1])
                if fidelity.psnr_db < self._rules.min_psnr_db:
                    reason = (
                        f"its latents decode to {fidelity.psnr_db:.1f} dB of PSNR to its pixels, "
                        f"below min_psnr_db {self._rules.min_psnr_db:g}"
                    )
                    results.append(Mark("failed", reason, fidelity.psnr_db, self._rules.min_psnr_db))
                    continue
            results.append(EncodedClip(rows, fidelity))
        return results

    def _latents(self, video_BCTHW: Tensor, frames: int, mirrored: bool) -> tuple[Tensor, Tensor | None]:
        """Return latents as they are stored (bfloat16 on the CPU) of the first frames, and of the last of these alone.

        The second is None for one frame.
        """
        video_BCTHW = video_BCTHW[:, :, :frames].flip(-1) if mirrored else video_BCTHW[:, :, :frames]
        latent_BCTHW = self._autoencoder.encode(video_BCTHW).to("cpu", torch.bfloat16)
        if frames == 1:
            return latent_BCTHW, None
        return latent_BCTHW, self._autoencoder.encode(video_BCTHW[:, :, -1:]).to("cpu", torch.bfloat16)

    def _fidelity(self, latent_CTHW: Tensor, video_BCTHW: Tensor) -> Fidelity:
        """Compare the decoded first latent frames with their pixels."""
        latent_CTHW = latent_CTHW[:, :CHECK_LATENT_FRAMES]
        video_BCTHW = video_BCTHW[:, :, : 1 + (latent_CTHW.shape[1] - 1) * self._autoencoder.time_factor]
        made_BCTHW = self._autoencoder.decode(latent_CTHW[None].to(self._device, torch.float32))
        shown = sorted({0, video_BCTHW.shape[2] // 2, video_BCTHW.shape[2] - 1})
        return Fidelity(
            float(psnr_db(made_BCTHW, video_BCTHW)), float(ssim(made_BCTHW[:, :, shown], video_BCTHW[:, :, shown]))
        )

    def _write(self, bucket: Bucket, shard: PendingShard) -> None:
        part = f"part-{storage.digest(*(row.uid for row in shard.rows))}.parquet"
        info = ShardInfo.from_autoencoder(
            self._settings, self._autoencoder, bucket, self._folder.lineage, shard.fidelity()
        )
        try:
            write_shard(storage.join(self._folder.uri, f"bucket={bucket.name}", part), shard.rows, info)
        except Exception as error:
            raise RunError(
                f"{self._folder.uri}: a shard of bucket {bucket.name} cannot be written: "
                f"{type(error).__name__}: {error}"
            ) from error


def batch_size(bucket: Bucket, device: torch.device) -> int:
    """Return the number of clips of a bucket per batch."""
    return max(1, BATCH_VALUES[device.type] // (3 * bucket.frames * bucket.height * bucket.width))


def _decode(clip: Clip) -> SampledSpan:
    row, bucket = clip.row, clip.bucket
    grid = FrameGrid(fps=bucket.fps, frames=bucket.frames, width=bucket.width, height=bucket.height)
    with unchanged_source(row):
        return read_span(row["source"], row["start_pts"], row["end_pts"], grid, kind=row["kind"])


def _row(
    clip: Clip, variant: Variant, span: SampledSpan, latent_CTHW: Tensor, last_frame_CTHW: Tensor | None
) -> LatentRow:
    row = clip.row
    return LatentRow(
        uid=variant.uid,
        latent=latent_CTHW,
        last_frame_latent=last_frame_CTHW,
        source=row["source"],
        start_pts=row["start_pts"],
        end_pts=row["end_pts"],
        time_base_num=row["time_base_num"],
        time_base_den=row["time_base_den"],
        fps=variant.bucket.fps,
        crop=span.crop,
    )
