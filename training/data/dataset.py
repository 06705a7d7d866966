"""The samples of one split of a manifest, read by row number and checked, and the captions they are trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from cluster import storage
from cluster.arrays import UInt64Array
from cluster.storage import digest
from training.data.footer import DamagedError
from training.data.manifest import CONTENT_COLUMNS, DatasetInfo, read_manifest, tables_root
from training.data.shard_reader import READER_THREADS, RowReference, ShardReader
from training.data.shards import CROP_COLUMNS, is_mirrored
from training.data.text_tables import TextTableReader
from training.framing import Framing, crop_framing
from training.rng import uid_hashes

Split = Literal["train", "val", "test"]

SAMPLE_COLUMNS = [
    "uid",
    "kind",
    "bucket",
    "file",
    "row_group",
    "row",
    "checksum",
    "fps",
    *CROP_COLUMNS,
    *CONTENT_COLUMNS,
    "text_key",
    "caption",
    "caption_kind",
    "other_captions",
]
"""Columns of the manifest that reading a sample needs."""


@dataclass(frozen=True)
class Sample:
    """A clip or image as it is stored, with its checksum verified."""

    uid: str
    latent: Tensor
    """bfloat16 `[C, t, h, w]`."""
    last_frame_latent: Tensor | None
    """The last frame encoded as an image, bfloat16 `[C, 1, h, w]`; None for an image."""
    text: Tensor
    """Embedding of the caption, bfloat16 `[n, D]`."""
    caption: str
    fps: float
    """Frames per second of the sample."""
    kind: Literal["image", "video"]
    bucket: str
    """Name of the bucket."""
    framing: Framing
    """The crop of the sample in its clip's content, without bars, and the size of that."""


@dataclass(frozen=True)
class CaptionMix:
    """The mix of captions in training: in each epoch a sample's caption is drawn by the weights of their kinds."""

    weights: Mapping[str, float]
    """Weight of each kind of caption."""
    seed: int

    def choose(self, row: Mapping[str, Any], times_seen: int) -> Mapping[str, Any]:
        """Return the `caption` and `text_key` of a manifest's row for the time after it was seen `times_seen` times."""
        kinds = [row["caption_kind"], *(other["kind"] for other in row["other_captions"])]
        index = choose_caption(kinds, self.weights, self.seed, times_seen, row["uid"])
        return row["other_captions"][index - 1] if index else row  # type: ignore[no-any-return]


def choose_caption(kinds: Sequence[str], weights: Mapping[str, float], seed: int, epoch: int, uid: str) -> int:
    """Return the index of the caption that a sample is trained with in an epoch; `kinds` has the main caption first.

    A kind is drawn in proportion to its weight among the kinds that the sample has. Kinds without a weight are never
    drawn, and a sample of only such kinds keeps its main caption. The choice follows from (seed, epoch, uid) alone,
    whatever the rank or batch of the sample.
    """
    shares = [weights.get(kind, 0.0) for kind in kinds]
    if not any(shares):
        return 0
    point = int(digest(str(seed), str(epoch), uid, "caption", size_bytes=8), 16) / 2**64 * sum(shares)
    for index, share in enumerate(shares):
        point -= share
        if point < 0:
            return index
    return max(index for index, share in enumerate(shares) if share)


def _framing(row: Mapping[str, Any]) -> Framing:
    """Return the framing of a sample in its clip's content. Raises `ValueError` if its crop box is not inside that.

    Bars that were cut off are no part of the image: a whole letterboxed film is not framed as if its top were missing.
    """
    x0, y0, x1, y1 = (row[name] for name in CROP_COLUMNS)
    left, top, right, bottom = (row[name] for name in CONTENT_COLUMNS)
    box = x0 - left, y0 - top, x1 - left, y1 - top
    return crop_framing(box, right - left, bottom - top, is_mirrored(row["uid"]))


class Dataset:
    """The samples of one split, by row number."""

    def __init__(self, table: pa.Table, info: DatasetInfo, shards: ShardReader, texts: TextTableReader) -> None:
        self.table, self.info = table, info
        self._shards, self._texts = shards, texts
        self._rows = table.select(SAMPLE_COLUMNS)

    @classmethod
    def open(cls, manifest_uri: str, split: Split) -> Dataset:
        """Open a split; it may be empty.

        Raises `DamagedError` when a shard is missing, unreadable, or of another autoencoder or bucket than the manifest
        says, and when text embeddings are of another encoder or missing.
        """
        table, info = read_manifest(manifest_uri)
        table = table.filter(pc.equal(table["split"], split)).combine_chunks()
        root = tables_root(manifest_uri, info)
        shards = ShardReader(root)
        files = table.group_by("file").aggregate([("bucket", "distinct")]).to_pylist()
        with ThreadPoolExecutor(READER_THREADS) as pool:
            list(pool.map(lambda row: _check_shard(shards, row["file"], row["bucket_distinct"], info), files))
        texts = TextTableReader(storage.join(root, info.text_folder))
        _check_texts(texts, table, info, manifest_uri)
        return cls(table, info, shards, texts)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def uid_hashes(self) -> UInt64Array:
        """The `training.rng.uid_hashes` of all rows, from which random numbers of many samples are drawn together."""
        return uid_hashes(self.table["uid"].to_pylist())

    def null_text(self) -> Tensor:
        """Return the embedding of the null caption, bfloat16 `[n, D]`."""
        return self._texts.get(self.info.null_text_key)

    def sample(self, index: int, times_seen: int = 0, captions: CaptionMix | None = None) -> Sample:
        """Return row `index` of `table`, with its main caption or the one that `captions` chooses.

        Raises `DamagedError` with file, row and uid if its bytes have changed or its crop box is not inside its source.
        """
        (row,) = self._rows.slice(index, 1).to_pylist()
        reference = RowReference(row["file"], row["row_group"], row["row"])
        caption = captions.choose(row, times_seen) if captions else row
        try:
            stored = self._shards.read(*reference)
            if stored.checksum != row["checksum"]:
                raise DamagedError("the latent's bytes are not those that were written")
            text = self._texts.get(caption["text_key"])
            framing = _framing(row)
        except (DamagedError, ValueError) as error:
            where = f"{row['file']}: row {row['row']} of row group {row['row_group']}, sample {row['uid']}"
            raise DamagedError(f"{where}: {error}. Run `worldloom verify`, remove the file and curate again") from error
        return Sample(
            uid=row["uid"],
            latent=stored.latent,
            last_frame_latent=stored.last_frame_latent,
            text=text,
            caption=caption["caption"],
            fps=row["fps"],
            kind=row["kind"],
            bucket=row["bucket"],
            framing=framing,
        )


def _check_shard(shards: ShardReader, file: str, buckets: Sequence[str], info: DatasetInfo) -> None:
    shard = shards.info(file)
    if shard.autoencoder_identity != info.autoencoder_identity:
        raise DamagedError(
            f"{file}: its latents are by autoencoder {shard.autoencoder_identity}, those of the manifest by "
            f"{info.autoencoder_identity}; latents of two autoencoders do not mix: curate again with one"
        )
    if list(buckets) != [shard.bucket.name]:
        raise DamagedError(
            f"{file}: holds bucket {shard.bucket.name}, and the manifest says {' and '.join(sorted(buckets))}; "
            "curate again"
        )


def _check_texts(texts: TextTableReader, table: pa.Table, info: DatasetInfo, manifest_uri: str) -> None:
    others = pc.struct_field(pc.list_flatten(table["other_captions"]), "text_key")
    needed = {info.null_text_key, *pc.unique(table["text_key"]).to_pylist(), *pc.unique(others).to_pylist()}
    missing = sorted(key for key in needed if key not in texts)
    if missing:
        raise DamagedError(
            f"{manifest_uri}: {len(missing)} of {len(needed)} text embeddings are missing from {info.text_folder}, "
            f"{missing[0]} first; curate again"
        )
    if texts.identity != info.text_encoder_identity:
        raise DamagedError(
            f"{info.text_folder}: holds embeddings by {texts.identity}, and the manifest says "
            f"{info.text_encoder_identity}; curate again"
        )
