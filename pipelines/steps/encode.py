"""encode: clips to latents in shards, each in the bucket that fits it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
import torch
from pydantic import Field

from captioning.encoder import FOLDER as ENCODERS
from captioning.encoder import TextEncoderSettings
from captioning.encoders.hashing import Hashing
from cluster import storage
from cluster.plugins import Chosen
from pipelines.step import Context, Mark, Resources, RunError, Step, TableFunction, column, failure, set_column, set_marks
from pipelines.video.decode import read_span
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders.linear import Linear
from training.data import shards
from training.data.buckets import Bucket, BucketSettings, assign
from training.data.shards import LatentRow, ShardInfo

WRITES = (
    column("bucket", pa.string(), "width x height x frames the clip was encoded at"),
    column("n_tokens", pa.int64(), "latent cells of the clip"),
)


class Encode(Step):
    """Decodes each live clip once, at the size of its bucket, and writes its latents to shards.

    A clip that fits no bucket is dropped with the reason. Text embeddings are written once a distinct caption, after the clips.
    """

    name: str = "encode"
    rows_per_part = 128
    autoencoder: Annotated[AutoencoderSettings, Chosen(AUTOENCODERS, AutoencoderSettings)] = Linear()
    text: Annotated[TextEncoderSettings, Chosen(ENCODERS, TextEncoderSettings)] = Hashing()
    buckets: tuple[BucketSettings, ...] = Field(min_length=1, description="Sizes, frame counts, frame rates; each clip goes where it fits best.")
    gpus: float = Field(0.0, ge=0, description="GPUs each encoding worker holds; 0 encodes on the CPU.")

    def reads(self) -> tuple[str, ...]:
        return "source", "kind", "width", "height", "start_pts", "end_pts", "time_base_num", "time_base_den", "duration_s"

    def requires(self) -> tuple[str, ...]:
        return (*self.reads(), "captions")

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def weights(self) -> str:
        return self.autoencoder.identity()

    def resources(self) -> Resources:
        return Resources(gpus=self.gpus, pooled=True)

    def settings_digest(self) -> str:
        """Latents depend on the autoencoder and the buckets; not on the text encoder, which only the manifest knows."""
        return storage.digest(self.name, str(self.version), self.weights(), *(bucket.model_dump_json() for bucket in self.buckets))

    def latents_folder(self, tables_uri: str, lineage: str) -> str:
        return storage.join(tables_uri, f"latents-{lineage[:16]}")

    def starts_segment(self) -> bool:
        return True

    def prepare(self, context: Context, pending: Collection[str]) -> pa.Array:
        """Uids that shards already hold, from a run that was cut short or had other thresholds."""
        files = storage.list_files(self.latents_folder(context.tables_uri, context.lineage), ".parquet")
        return pa.array([uid for file in files for uid in shards.read_index(file.uri)["uid"].to_pylist()], pa.string())

    def open(self, context: Context) -> TableFunction:
        device = torch.device("cuda" if self.gpus and torch.cuda.is_available() else "cpu")
        try:
            autoencoder = self.autoencoder.open(device)
            self._check_buckets(autoencoder)
        except ValueError as error:
            raise RunError(f"encode: {error}") from error
        return _Encoder(self, autoencoder, device, context)

    def _check_buckets(self, autoencoder: Autoencoder) -> None:
        """Raises `ValueError` for a bucket that the autoencoder cannot take, before any clip is decoded for it."""
        unit = autoencoder.space_factor
        for settings in self.buckets:
            for bucket in settings.buckets():
                try:
                    autoencoder.latent_shape(bucket.frames, bucket.height, bucket.width)
                except ValueError as error:
                    fix = f"; set multiple: {math.lcm(unit, settings.multiple)} in it" if bucket.width % unit or bucket.height % unit else ""
                    raise ValueError(f"the bucket of size {settings.size} cannot be encoded by {self.autoencoder.name}: {error}{fix}") from error


@dataclass(frozen=True)
class _Encoder:
    settings: Encode
    autoencoder: Autoencoder
    device: torch.device
    context: Context

    def __call__(self, table: pa.Table) -> pa.Table:
        stored = set(self.context.state.to_pylist())
        marks: list[Mark | None] = []
        values: list[dict[str, Any]] = []
        encoded: dict[Bucket, list[LatentRow]] = defaultdict(list)
        for row in table.to_pylist():
            bucket = assign(self.settings.buckets, row["width"], row["height"], row["duration_s"], row["kind"] == "image")
            if isinstance(bucket, str):
                marks.append(Mark("dropped", bucket))
                values.append({})
                continue
            try:
                if row["uid"] not in stored:
                    encoded[bucket].append(self._encode(row, bucket))
            except Exception as error:  # the row carries it
                marks.append(failure(error))
                values.append({})
                continue
            marks.append(None)
            values.append({"bucket": bucket.name, "n_tokens": self._n_tokens(bucket)})
        for bucket, rows in encoded.items():
            self._write(bucket, rows)
        for field in WRITES:
            table = set_column(table, field, [value.get(field.name) for value in values])
        return set_marks(table, marks)

    def _n_tokens(self, bucket: Bucket) -> int:
        _, t, h, w = self.autoencoder.latent_shape(bucket.frames, bucket.height, bucket.width)
        return t * h * w

    def _encode(self, row: dict[str, Any], bucket: Bucket) -> LatentRow:
        span = read_span(
            row["source"], row["start_pts"], row["end_pts"], fps=bucket.fps, frames=bucket.frames, width=bucket.width, height=bucket.height
        )
        pixels_THWC = torch.tensor(span.frames, device=self.device)
        video_BCTHW = pixels_THWC.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with torch.inference_mode():
            latent = self.autoencoder.encode(video_BCTHW)[0]
            tail = self.autoencoder.encode(video_BCTHW[:, :, -1:])[0] if bucket.frames > 1 else None
        return LatentRow(
            uid=row["uid"],
            latent=latent.to("cpu", torch.bfloat16),
            tail_latent=None if tail is None else tail.to("cpu", torch.bfloat16),
            source=row["source"],
            start_pts=row["start_pts"],
            end_pts=row["end_pts"],
            time_base_num=row["time_base_num"],
            time_base_den=row["time_base_den"],
            fps=bucket.fps,
            crop=span.crop,
        )

    def _write(self, bucket: Bucket, rows: Sequence[LatentRow]) -> None:
        folder = self.settings.latents_folder(self.context.tables_uri, self.context.lineage)
        part = f"part-{storage.digest(*(row.uid for row in rows))}.parquet"
        info = ShardInfo.of(self.settings.autoencoder, self.autoencoder, bucket, self.context.lineage)
        try:
            shards.write_shard(storage.join(folder, f"bucket={bucket.name}", part), rows, info)
        except Exception as error:
            raise RunError(f"{folder}: a shard of bucket {bucket.name} cannot be written: {type(error).__name__}: {error}") from error
