"""encode: clips to latents in shards, each in the bucket that fits it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from captioning.encoder import FOLDER as ENCODERS
from captioning.encoder import TextEncoderSettings
from captioning.encoders.hashing import Hashing
from cluster import storage
from cluster.plugins import PluginField
from cluster.resources import Resources
from pipelines.engine.step import Context, RunError, Step, TableFunction, column
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders.linear import Linear
from training.data import shards
from training.data.buckets import BucketSettings, assign_bucket

FITS = ("width", "height", "duration_s", "kind")
"""What decides about a clip's bucket."""
WRITES = (
    column("bucket", pa.string(), "width x height x frames the clip was encoded at"),
    column("n_tokens", pa.int64(), "latent cells of the clip"),
)


class Encode(Step):
    """Decodes each live clip once, at the size of its bucket, and writes its latents to shards.

    A clip that fits no bucket is dropped with the reason. Some clips of each shard are decoded again and compared with their pixels:
    the shard's footer says how like they are, and one that is not like at all is failed. Text embeddings are written once a distinct
    caption, after the clips.
    """

    name: str = "encode"
    rows_per_part = 128
    autoencoder: Annotated[AutoencoderSettings, PluginField(AUTOENCODERS, AutoencoderSettings)] = Linear()
    text: Annotated[TextEncoderSettings, PluginField(ENCODERS, TextEncoderSettings)] = Hashing()
    buckets: tuple[BucketSettings, ...] = Field(
        min_length=1, description="Sizes, frame counts, frame rates; each clip goes where it fits best."
    )
    lengths: Literal["longest", "all"] = Field(
        "longest",
        description="all also encodes the first frames of a clip, at each shorter length of its size and rate.",
    )
    mirror: bool = Field(
        False,
        description="Also encode each clip mirrored left to right; text and directions in captions are then wrong.",
    )
    min_psnr_db: float = Field(
        10.0, ge=0, description="A clip that is decoded again and less like its pixels than this is failed."
    )
    cpus: int = Field(
        1, ge=1, description="CPU cores each encoding worker decodes video with, while its device encodes."
    )
    gpus: float = Field(0.0, ge=0, description="GPUs each encoding worker holds; 0 encodes on the CPU.")

    def reads(self) -> tuple[str, ...]:
        return "source", "start_pts", "end_pts", "time_base_num", "time_base_den", *FITS

    def requires(self) -> tuple[str, ...]:
        return (*self.reads(), "captions")

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def weights(self) -> str:
        return self.autoencoder.identity()

    def resources(self) -> Resources:
        return Resources(cpus=self.cpus, gpus=self.gpus, pooled=True)

    def settings_digest(self) -> str:
        """Latents depend on the autoencoder and the buckets; not on the text encoder, which only the manifest knows."""
        variants = [] if self.lengths == "longest" and not self.mirror else [self.lengths, str(self.mirror)]
        return storage.digest(
            self.name,
            str(self.version),
            self.weights(),
            *(bucket.model_dump_json() for bucket in self.buckets),
            *variants,
        )

    def latents_folder(self, tables_uri: str, lineage: str) -> str:
        return storage.join(tables_uri, f"latents-{lineage[:16]}")

    def starts_segment(self) -> bool:
        return True

    def misfits(self, clips: pa.Table) -> Counter[str]:
        """Of clips with the columns of `FITS`, those that no bucket takes, by reason."""
        found: Counter[str] = Counter()
        for group in clips.group_by(list(FITS)).aggregate([([], "count_all")]).to_pylist():
            bucket = assign_bucket(
                self.buckets, group["width"], group["height"], group["duration_s"], group["kind"] == "image"
            )
            if isinstance(bucket, str):
                found[bucket] += group["count_all"]
        return found

    def prepare(self, context: Context, pending: Collection[str]) -> pa.Array:
        """Uids of samples that shards already hold, from a run that was cut short or had other thresholds."""
        files = storage.list_files(self.latents_folder(context.tables_uri, context.lineage), ".parquet")
        return pa.array([uid for file in files for uid in shards.read_index(file.uri)["uid"].to_pylist()], pa.string())

    def open(self, context: Context) -> TableFunction:
        # Settings are read by every command, and importing torch takes 2 s.
        import torch

        from pipelines.steps._encoder import Encoder, LatentsFolder, Rules

        device = torch.device("cuda" if self.gpus and torch.cuda.is_available() else "cpu")
        try:
            autoencoder = self.autoencoder.open(device)
            self._check_buckets(autoencoder)
        except ValueError as error:
            raise RunError(f"encode: {error}") from error
        rules = Rules(self.buckets, self.lengths, self.mirror, self.min_psnr_db, decoders=self.cpus, writes=WRITES)
        folder = self.latents_folder(context.tables_uri, context.lineage)
        stored = LatentsFolder(folder, context.lineage, frozenset(context.state.to_pylist()))
        return Encoder(rules, self.autoencoder, autoencoder, device, stored)

    def _check_buckets(self, autoencoder: Autoencoder) -> None:
        """Raises `ValueError` for a bucket that the autoencoder cannot take, before any clip is decoded for it."""
        unit = autoencoder.space_factor
        for settings in self.buckets:
            for bucket in settings.buckets():
                try:
                    autoencoder.latent_shape(bucket.frames, bucket.height, bucket.width)
                except ValueError as error:
                    fix = (
                        f"; set multiple: {math.lcm(unit, settings.multiple)} in it"
                        if bucket.width % unit or bucket.height % unit
                        else ""
                    )
                    raise ValueError(
                        f"the bucket of size {settings.size} cannot be encoded by {self.autoencoder.name}: {error}{fix}"
                    ) from error
