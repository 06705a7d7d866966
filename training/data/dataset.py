"""The samples of one split of a manifest, read by row number and checked, and the captions they are trained with."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from torch import Tensor

from cluster import storage
from cluster.arrays import UInt64Array
from cluster.storage import digest
from training.data.buckets import latent_size, parse_bucket_name
from training.data.byte_ranges import ByteRanges
from training.data.footer import DamagedError
from training.data.index import SCHEMA, Index, Split, read_index
from training.data.latent_reader import LatentReader, StoredLatents
from training.data.manifest import CONTENT_COLUMNS, DatasetInfo, tables_root
from training.data.shard_reader import ShardReader
from training.data.shards import CROP_COLUMNS, is_mirrored
from training.data.text_tables import TextPlace, TextReader
from training.framing import Framing, crop_framing
from training.rng import uid_hashes

SAMPLE_COLUMNS = [name for name in SCHEMA.names if name not in ("n_tokens", "n_text", "footer_checksum")]
"""Columns of the index that reading a sample needs."""


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
    """The samples of one split, by row number. Shards and text tables are opened when samples of them are read."""

    def __init__(self, index: Index, split: Split, root: str) -> None:
        """Read the samples of a split of a data set whose tables are below `root`."""
        self.info = index.dataset
        batches = index.batches[split]
        self.table = pa.Table.from_batches(batches, SCHEMA)
        """The rows, in `training.data.index.SCHEMA`."""
        self._batches = [batch.select(SAMPLE_COLUMNS) for batch in batches]
        self._starts = np.cumsum([0, *(len(batch) for batch in batches)]).tolist()
        assert index.info.null_text is not None
        self._null_text = index.info.null_text
        self._root, self._texts_uri = root, storage.join(root, self.info.text_folder)
        self._texts = TextReader(self.info.text_encoder_identity)
        self._shards, self._ranges = ShardReader(root), ByteRanges()
        self._readers: dict[str, LatentReader] = {}
        self._moved: set[str] = set()
        """Shards that were rewritten since the index was made."""

    @classmethod
    def open(cls, manifest_uri: str, split: Split) -> Dataset:
        """Open a split; it may be empty. It takes a few requests, however many shards and captions there are.

        Raises `DamagedError` if the index is missing or does not belong to the manifest, and when text embeddings are
        missing or of another encoder than the manifest says.
        """
        index = read_index(manifest_uri)
        _check_texts(index, manifest_uri)
        return cls(index, split, tables_root(manifest_uri, index.dataset))

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def uid_hashes(self) -> UInt64Array:
        """The `training.rng.uid_hashes` of all rows, from which random numbers of many samples are drawn together."""
        return np.concatenate(
            [np.zeros(0, np.uint64), *(uid_hashes(batch["uid"].to_pylist()) for batch in self._batches)]
        )

    def row(self, index: int) -> dict[str, Any]:
        """Return `SAMPLE_COLUMNS` of a row."""
        number = bisect_right(self._starts, index) - 1
        row: dict[str, Any]
        (row,) = self._batches[number].slice(index - self._starts[number], 1).to_pylist()
        return row

    def null_text(self) -> Tensor:
        """Return the embedding of the null caption, bfloat16 `[n, D]`."""
        return self._text({**self._null_text, "text_key": self.info.null_text_key})

    def sample(self, index: int, times_seen: int = 0, captions: CaptionMix | None = None) -> Sample:
        """Return row `index` of `table`, with its main caption or the one that `captions` chooses.

        Raises `DamagedError` with file, row and uid if its bytes have changed, its shard is gone or of another
        autoencoder, or its crop box is not inside its source.
        """
        row = self.row(index)
        caption = captions.choose(row, times_seen) if captions else row
        try:
            stored = self._latents(row)
            text = self._text(caption)
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

    def _text(self, caption: Mapping[str, Any]) -> Tensor:
        uri = storage.join(self._texts_uri, caption["text_file"])
        place = (caption[name] for name in ("text_row_group", "text_row", "text_checksum", "text_key"))
        return self._texts.get(TextPlace(uri, *place))

    def _latents(self, row: Mapping[str, Any]) -> StoredLatents:
        """Return the latents at the place that the index names, if they have the checksum of the row.

        If not, the shard tells why: it is gone or damaged, or was rewritten, and is read as it is now.
        """
        file = row["file"]
        if row["latent_start"] is not None and file not in self._moved:
            reader = self._readers.get(row["bucket"]) or self._reader(row["bucket"])
            with contextlib.suppress(DamagedError):
                uri = storage.join(self._root, file)
                (stored,) = reader.read(uri, row["latent_start"], row["last_frame_start"] or 0)
                if stored.checksum == row["checksum"]:
                    return stored
        _check_shard(self._shards, file, row["bucket"], self.info)
        stored = self._shards.read(file, row["row_group"], row["row"])
        if stored.checksum != row["checksum"]:
            raise DamagedError("the latent's bytes are not those that were written")
        self._moved.add(file)
        return stored

    def _reader(self, bucket: str) -> LatentReader:
        width, height, frames = parse_bucket_name(bucket)
        t, h, w = latent_size(width, height, frames, self.info.time_factor, self.info.space_factor)
        channels = self.info.channels
        reader = LatentReader((channels, t, h, w), (channels, 1, h, w) if frames > 1 else None, self._ranges)
        return self._readers.setdefault(bucket, reader)


def _check_shard(shards: ShardReader, file: str, bucket: str, info: DatasetInfo) -> None:
    shard = shards.info(file)
    if shard.autoencoder_identity != info.autoencoder_identity:
        raise DamagedError(
            f"its latents are by autoencoder {shard.autoencoder_identity}, those of the manifest by "
            f"{info.autoencoder_identity}; latents of two autoencoders do not mix: curate again with one"
        )
    if shard.bucket.name != bucket:
        raise DamagedError(f"the shard holds bucket {shard.bucket.name}, and the manifest says {bucket}; curate again")


def _check_texts(index: Index, manifest_uri: str) -> None:
    dataset, info = index.dataset, index.info
    if info.n_missing_texts:
        raise DamagedError(
            f"{manifest_uri}: {info.n_missing_texts} of {info.n_texts} text embeddings are missing from "
            f"{dataset.text_folder}, {info.first_missing_text} first; curate again"
        )
    if info.text_encoder != dataset.text_encoder_identity:
        raise DamagedError(
            f"{dataset.text_folder}: holds embeddings by {info.text_encoder}, and the manifest says "
            f"{dataset.text_encoder_identity}; curate again"
        )
