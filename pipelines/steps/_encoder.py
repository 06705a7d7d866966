"""Work of one worker of `encode`: windows of clips are decoded ahead, encoded in batches, checked and written."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cluster import storage
from pipelines.engine.step import Mark, RunError, failure, set_column, set_marks
from pipelines.steps._samples import WRITES, ClipSample, SampleRules, WindowSamples, samples_of, span_of, windows_of
from pipelines.steps._window_decoding import AHEAD_VALUES, ClipWindows, DecodedWindow, batch_size, decode_ahead
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.data.buckets import Bucket
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import ShardInfo
from training.data.windows import Window, covered_pts
from training.device import computing_in_one_thread
from training.pixels import from_uint8, psnr_db, ssim

# Shape suffixes: B windows of a batch, C colours or latent channels, T frames, H height, W width.

HELD_BYTES = 2**28
"""Bytes of latents above which a worker writes the largest of its shards before its clips are done."""

CLIPS_PER_CHECK = 16
"""One in this many windows of a bucket is decoded again, and at least one per part of the table."""
CHECK_LATENT_FRAMES = 2
"""Largest number of latent frames that are decoded again: the first frame and those after it, which are coded
differently. Decoding costs more than encoding, and wrong weights or settings show in any frame."""


@dataclass(frozen=True)
class EncodingRules:
    """Settings of `encode` that decide which samples a clip gives, and when its latents are refused."""

    samples: SampleRules
    min_psnr_db: float
    decoder_threads: int
    """Threads that decode video."""


@dataclass(frozen=True)
class LatentsFolder:
    """The folder of the shards, the lineage in their footers, and the uids of samples that they hold already."""

    uri: str
    lineage: str
    stored: frozenset[str]


@dataclass(frozen=True)
class Fidelity:
    """PSNR and SSIM of the decoded latents of a sample to its pixels."""

    psnr_db: float
    ssim: float
    """Mean over the first of the decoded frames, the middle one and the last."""


@dataclass(frozen=True)
class EncodedWindow:
    """The samples of a window with their rows, and the window's fidelity if it was checked."""

    window: Window
    rows: list[tuple[ClipSample, LatentRow]]
    fidelity: Fidelity | None


@dataclass
class PendingShard:
    """Samples of one bucket that are not written yet, and the fidelity of those that were checked."""

    rows: list[LatentRow] = field(default_factory=list)
    checks: list[Fidelity] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """Bytes of the latents, without the last frames."""
        return sum(row.latent.nbytes for row in self.rows)

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
        rows = table.to_pylist()
        marks: list[Mark | None] = [None] * len(rows)
        samples: list[tuple[WindowSamples, ...]] = [()] * len(rows)
        for index, row in enumerate(rows):
            try:
                windows = windows_of(row, self._rules.samples)
            except ValueError as error:  # a crop outside the frame, recorded in the row's mark
                marks[index] = failure(error)
                continue
            if isinstance(windows, str):
                marks[index] = Mark("dropped", windows)
            else:
                samples[index] = samples_of(row, windows, self._rules.samples)
        clips = [
            ClipWindows(index, row, missing)
            for index, row in enumerate(rows)
            if (missing := self._missing(samples[index]))
        ]
        one_thread = computing_in_one_thread() if self._device.type == "cpu" else contextlib.nullcontext()
        with (
            one_thread,
            ThreadPoolExecutor(self._rules.decoder_threads, thread_name_prefix="decoder") as decoders,
            ThreadPoolExecutor(1, thread_name_prefix="writer") as writer,
        ):
            work = _TableWork(self, clips, writer)
            try:
                work.run(decoders)
            finally:
                decoders.shutdown(cancel_futures=True)
        marks = [work.marks.get(index, mark) for index, mark in enumerate(marks)]
        values = [
            {} if mark else self._columns(row, parts) for row, parts, mark in zip(rows, samples, marks, strict=True)
        ]
        for column in WRITES:
            table = set_column(table, column, [value.get(column.name) for value in values])
        return set_marks(table, marks)

    def _missing(self, windows: Sequence[WindowSamples]) -> tuple[WindowSamples, ...]:
        """Return the windows that have samples which no shard holds yet, with these."""
        missing = (
            WindowSamples(
                part.window, tuple(sample for sample in part.samples if sample.uid not in self._folder.stored)
            )
            for part in windows
        )
        return tuple(part for part in missing if part.samples)

    def _columns(self, row: Mapping[str, Any], windows: Sequence[WindowSamples]) -> dict[str, Any]:
        """Return the written columns of a clip."""
        samples = [sample for part in windows for sample in part.samples]
        return {
            "bucket": samples[0].window.bucket.name,
            "n_samples": len(samples),
            "n_tokens": sum(self._n_tokens(sample.window.bucket) for sample in samples),
            "used_s": float(covered_pts(part.window for part in windows) * span_of(row).time_base),
        }

    def _n_tokens(self, bucket: Bucket) -> int:
        """Return the number of latent cells of a sample of this bucket."""
        _, t, h, w = self._autoencoder.latent_shape(bucket.frames, bucket.height, bucket.width)
        return t * h * w

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def decoder_threads(self) -> int:
        return self._rules.decoder_threads

    def encode_batch(self, windows: Sequence[DecodedWindow], checked: Sequence[bool]) -> list[EncodedWindow | Mark]:
        """Return the rows of each window of one bucket, with its fidelity if checked, or the mark of its failure."""
        try:
            return self._encode_stacked(windows, checked) if windows else []
        except Exception as error:  # each is tried alone, and the error is recorded in the marks of those at fault
            if len(windows) == 1:
                return [failure(error)]
            return [self.encode_batch([one], [check])[0] for one, check in zip(windows, checked, strict=True)]

    @torch.inference_mode()
    def _encode_stacked(self, windows: Sequence[DecodedWindow], checked: Sequence[bool]) -> list[EncodedWindow | Mark]:
        """Encode windows of one bucket as one batch. Raises any error of the autoencoder."""
        values_BTHWC = torch.from_numpy(np.stack([one.span.frames for one in windows])).to(self._device)
        video_BCTHW = from_uint8(values_BTHWC.movedim(-1, 1).contiguous())
        latents: dict[tuple[int, bool], tuple[Tensor, Tensor | None]] = {}
        results: list[EncodedWindow | Mark] = []
        for i, one in enumerate(windows):
            rows = []
            for sample in one.samples:
                key = sample.window.bucket.frames, sample.mirrored
                if key not in latents:
                    latents[key] = self._latents(video_BCTHW, *key)
                latent_BCTHW, last_frame_BCTHW = latents[key]
                last_frame_CTHW = None if last_frame_BCTHW is None else last_frame_BCTHW[i]
                rows.append((sample, _row(one, sample, latent_BCTHW[i], last_frame_CTHW)))
            fidelity = None
            if not all(bool(torch.isfinite(row.latent).all()) for _, row in rows):
                results.append(Mark("failed", "its latents hold a value that is not finite"))
                continue
            if checked[i] and one.checkable:
                fidelity = self._fidelity(rows[0][1].latent, video_BCTHW[i : i + 1])
                if fidelity.psnr_db < self._rules.min_psnr_db:
                    reason = (
                        f"its latents decode to {fidelity.psnr_db:.1f} dB of PSNR to its pixels, "
                        f"below min_psnr_db {self._rules.min_psnr_db:g}"
                    )
                    results.append(Mark("failed", reason, fidelity.psnr_db, self._rules.min_psnr_db))
                    continue
            results.append(EncodedWindow(one.window, rows, fidelity))
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

    def write(self, bucket: Bucket, shard: PendingShard) -> None:
        """Write a shard. Raises `RunError` if it cannot be written."""
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


class _TableWork:
    """The encoding of the clips of one table: what is decoded, waits for a batch, or waits to be written."""

    def __init__(self, encoder: Encoder, clips: Sequence[ClipWindows], writer: ThreadPoolExecutor) -> None:
        self.marks: dict[int, Mark] = {}
        """Marks of the clips that failed, by their index in the table."""
        self._encoder, self._writer = encoder, writer
        self._writing: Future[None] | None = None
        """The last shard that was handed to the writer."""
        self._to_check = _windows_to_check(clips)
        # Clips of one shape together, so that few batches are incomplete; those that are checked first.
        self._clips = sorted(
            clips,
            key=lambda clip: (
                [(part.window.bucket.width, part.window.bucket.height) for part in clip.windows[:1]],
                not any(part.samples[0].uid in self._to_check for part in clip.windows),
            ),
        )
        self._suspect: set[Bucket] = set()
        """Buckets with a window that failed its check: all later ones are checked."""
        self._waiting: dict[Bucket, list[DecodedWindow]] = defaultdict(list)
        self._n_left = Counter({clip.index: len(clip.windows) for clip in clips})
        self._unfinished: dict[int, list[EncodedWindow]] = defaultdict(list)
        """Windows of clips that have others which are not encoded yet: a clip is written whole, or not if it fails."""
        self._shards: dict[Bucket, PendingShard] = defaultdict(PendingShard)

    def run(self, pool: ThreadPoolExecutor) -> None:
        """Encode and write all clips. The next ones are decoded while the device works."""
        n_values = AHEAD_VALUES[self._encoder.device.type]
        for part, future in decode_ahead(pool, self._live_clips(), n_values, 1 + self._encoder.decoder_threads):
            try:
                spans = future.result()
            except Exception as error:  # recorded in the row's mark
                self._fail(part.index, failure(error))
                continue
            for window, span in zip(part.windows, spans, strict=True):
                bucket = window.window.bucket
                self._waiting[bucket].append(DecodedWindow(part.index, part.row, window.window, window.samples, span))
                if len(self._waiting[bucket]) == batch_size(bucket, self._encoder.device):
                    self._encode(bucket)
        for bucket in list(self._waiting):
            self._encode(bucket)
        for bucket in list(self._shards):
            self._write(bucket)
        self._finish_writing()

    def _live_clips(self) -> Iterator[ClipWindows]:
        return (clip for clip in self._clips if clip.index not in self.marks)

    def _encode(self, bucket: Bucket) -> None:
        """Encode the windows of a bucket that wait, except those of clips that have failed since."""
        windows = [one for one in self._waiting.pop(bucket) if one.index not in self.marks]
        checked = [bucket in self._suspect or one.samples[0].uid in self._to_check for one in windows]
        for one, result in zip(windows, self._encoder.encode_batch(windows, checked), strict=True):
            if isinstance(result, Mark):
                if result.value is not None:
                    self._suspect.add(bucket)
                self._fail(one.index, result)
            elif one.index not in self.marks:
                self._unfinished[one.index].append(result)
                self._n_left[one.index] -= 1
                if not self._n_left[one.index]:
                    self._finish(one.index)
        while sum(shard.n_bytes for shard in self._shards.values()) > HELD_BYTES:
            self._write(max(self._shards, key=lambda bucket: self._shards[bucket].n_bytes))

    def _finish(self, index: int) -> None:
        """Add the samples of a clip, all of which are encoded, to the shards of their buckets."""
        for result in self._unfinished.pop(index):
            for sample, row in result.rows:
                self._shards[sample.window.bucket].rows.append(row)
            if result.fidelity:
                self._shards[result.window.bucket].checks.append(result.fidelity)

    def _fail(self, index: int, mark: Mark) -> None:
        self.marks.setdefault(index, mark)
        self._unfinished.pop(index, None)

    def _write(self, bucket: Bucket) -> None:
        """Hand a shard to the writer, so that the device need not wait for storage, once the one before is written."""
        self._finish_writing()
        self._writing = self._writer.submit(self._encoder.write, bucket, self._shards.pop(bucket))

    def _finish_writing(self) -> None:
        """Wait for the shard that is being written. Raises `RunError` if it cannot be written."""
        if self._writing is not None:
            self._writing.result()


def _windows_to_check(clips: Sequence[ClipWindows]) -> set[str]:
    """Return the uids of the first samples of the windows of each bucket that are checked."""
    uids: dict[Bucket, list[str]] = defaultdict(list)
    for clip in clips:
        for part in clip.windows:
            uids[part.window.bucket].append(part.samples[0].uid)
    return {
        uid for same in uids.values() for uid in sorted(same, key=storage.digest)[: -(-len(same) // CLIPS_PER_CHECK)]
    }


def _row(one: DecodedWindow, sample: ClipSample, latent_CTHW: Tensor, last_frame_CTHW: Tensor | None) -> LatentRow:
    return LatentRow(
        uid=sample.uid,
        latent=latent_CTHW,
        last_frame_latent=last_frame_CTHW,
        source=one.row["source"],
        start_pts=sample.window.start_pts,
        end_pts=sample.window.end_pts,
        time_base_num=one.row["time_base_num"],
        time_base_den=one.row["time_base_den"],
        fps=sample.window.bucket.fps,
        crop=one.span.crop,
    )
