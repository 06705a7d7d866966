"""encode: encodes windows of clips to latents, at the sizes and lengths of buckets, and writes them to shards."""

from __future__ import annotations

import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from captioning.encoder import FOLDER as ENCODERS
from captioning.encoder import TextEncoderSettings
from captioning.encoders.hashing import Hashing
from cluster import storage
from cluster.plugins import PluginField
from cluster.resources import Resources
from pipelines.engine.source_versions import VERSION_COLUMNS
from pipelines.engine.step import Context, RunError, Step, TableFunction
from pipelines.steps._samples import WRITES, SampleRules
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders.linear import Linear
from training.data.buckets import BucketSettings
from training.data.row_groups import read_scalars
from training.data.windows import WindowRules

BUCKET_COLUMNS = ("width", "height", "crop", "kind", "start_pts", "end_pts", "time_base_num", "time_base_den")
"""Columns that decide on the windows and buckets of a clip."""


class Encode(Step):
    """Decodes each live clip once, at the sizes of its buckets, and writes its latents to shards.

    A clip is covered by windows, each as long as a bucket. A clip that fits no bucket is dropped with the reason. Some
    clips of each shard are decoded again and compared with their pixels. The shard's footer has their PSNR and SSIM,
    and a clip below `min_psnr_db` is failed. Text embeddings are written after the clips, one per distinct caption.
    """

    name: str = "encode"
    rows_per_part = 128
    version = 2
    autoencoder: Annotated[AutoencoderSettings, PluginField(AUTOENCODERS, AutoencoderSettings)] = Field(
        Linear(), description="Autoencoder that encodes clips to latents."
    )
    text: Annotated[TextEncoderSettings, PluginField(ENCODERS, TextEncoderSettings)] = Field(
        Hashing(), description="Text encoder that embeds captions."
    )
    buckets: tuple[BucketSettings, ...] = Field(
        min_length=1,
        description="Sizes, frame counts and frame rates; at each size, a clip gets the shape nearest to its aspect.",
    )
    windows: Literal["cover", "first"] = Field(
        "cover",
        description="cover encodes as many windows as cover the clip best; first only the longest, from its start.",
    )
    sizes: Literal["all", "best"] = Field(
        "all",
        description="all encodes a clip at every size and rate that need not enlarge it; best at the largest of those "
        "that lose least of it.",
    )
    stills: bool = Field(
        False,
        description="Encode the first frame, as an image, of a video clip that is too short for every video length.",
    )
    lengths: Literal["longest", "all"] = Field(
        "longest",
        description="all also encodes the first frames of each window at each shorter length of its size and rate; "
        "one frame only with stills.",
    )
    mirror: bool = Field(
        False,
        description="Also encode each window mirrored left to right; its text and directions in captions are then "
        "wrong.",
    )
    min_psnr_db: float = Field(
        10.0,
        ge=0,
        description="Lowest PSNR of a clip that is decoded again to its pixels, in dB; below it the clip is failed.",
    )
    cpus: int = Field(1, ge=1, description="CPU cores with which each worker decodes video while its device encodes.")
    gpus: float = Field(0.0, ge=0, description="GPUs per worker; 0 encodes on the CPU.")

    def reads(self) -> tuple[str, ...]:
        return "source", *BUCKET_COLUMNS

    def requires(self) -> tuple[str, ...]:
        return (*self.reads(), *VERSION_COLUMNS, "captions")

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def weights(self) -> str:
        return self.autoencoder.identity()

    def resources(self) -> Resources:
        return Resources(cpus=self.cpus, gpus=self.gpus, pooled=True)

    @property
    def sample_rules(self) -> SampleRules:
        """The rules by which the samples of a clip are chosen."""
        return SampleRules(self.buckets, WindowRules(self.windows, self.sizes, self.stills), self.lengths, self.mirror)

    def settings_digest(self) -> str:
        """Return the hash of what latents depend on: the autoencoder and the buckets, but not the text encoder."""
        variants = (self.windows, self.sizes, str(self.stills), self.lengths, str(self.mirror))
        return storage.digest(
            self.name,
            str(self.version),
            self.weights(),
            *(bucket.model_dump_json() for bucket in self.buckets),
            *variants,
        )

    def latents_folder(self, tables_uri: str, lineage: str) -> str:
        """Return the URI of the folder with the shards of this lineage."""
        return storage.join(tables_uri, f"latents-{lineage[:16]}")

    def starts_segment(self) -> bool:
        return True

    def prepare(self, context: Context, pending: Collection[str]) -> pa.Array:
        """Return the uids of samples that shards hold already, from a run that was stopped or had other thresholds."""
        files = storage.list_files(self.latents_folder(context.tables_uri, context.lineage), ".parquet")
        with ThreadPoolExecutor(storage.READER_THREADS) as pool:
            found = pool.map(lambda file: read_scalars(file.uri, ["uid"])["uid"].to_pylist(), files)
            return pa.array([uid for uids in found for uid in uids], pa.string())

    def open(self, context: Context) -> TableFunction:
        # Every command reads settings, and importing torch takes 2 s.
        import torch

        from pipelines.steps._encoder import Encoder, EncodingRules, LatentsFolder

        device = torch.device("cuda" if self.gpus and torch.cuda.is_available() else "cpu")
        try:
            autoencoder = self.autoencoder.open(device)
            self._check_buckets(autoencoder)
        except ValueError as error:
            raise RunError(f"encode: {error}") from error
        rules = EncodingRules(self.sample_rules, self.min_psnr_db, decoder_threads=self.cpus)
        folder = self.latents_folder(context.tables_uri, context.lineage)
        stored = LatentsFolder(folder, context.lineage, frozenset(context.state.to_pylist()))
        return Encoder(rules, self.autoencoder, autoencoder, device, stored)

    def _check_buckets(self, autoencoder: Autoencoder) -> None:
        """Raise `ValueError` for a bucket that the autoencoder cannot take, before any clip is decoded for it."""
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
