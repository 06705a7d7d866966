"""A check of a data set that reads all of it the way training does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from cluster import storage
from cluster.large_tables import sort_by
from cluster.plugins import build
from training.autoencoder import FOLDER, Autoencoder, AutoencoderSettings
from training.data.footer import DamagedError
from training.data.index_check import index_problems
from training.data.latent_reader import StoredLatents
from training.data.manifest import DatasetInfo, read_manifest, tables_root
from training.data.shard_reader import RowReference, ShardReader
from training.data.shards import CROP_COLUMNS, ShardInfo
from training.data.shards import read_index as read_shard_index
from training.data.text_index import read_text_index
from training.data.text_tables import TextReader
from training.pixels import psnr_db

MIN_PSNR_DB = 12.0
"""Lowest PSNR between the last frame of a decoded video and its decoded last-frame latent, two encodings of one frame.

Of 280 real clips encoded by `linear` at 64² and 128² pixels none was below 16 dB. Clips paired with the last-frame
latent of another clip had a median of 9 dB."""


@dataclass(frozen=True)
class Problem:
    """A problem of a file, or of one of its rows if `row` is set."""

    file: str
    message: str
    row_group: int | None = None
    row: int | None = None
    uid: str | None = None

    def __str__(self) -> str:
        where = "" if self.row is None else f"row {self.row} of row group {self.row_group}, sample {self.uid}: "
        return f"{self.file}: {where}{self.message}"


def verify(manifest_uri: str, n_decoded: int = 8) -> list[Problem]:
    """Return all problems of a data set; an empty list if there is none.

    Problems are shards and text tables that are missing, cut short, altered or of another version; rows that differ
    from the manifest; latents that are not finite; more than one autoencoder; and videos whose decoded last frame
    differs from their decoded last-frame latent, of which `n_decoded` are checked, spread over the data set.
    """
    try:
        table, info = read_manifest(manifest_uri)
    except DamagedError as error:
        return [Problem(manifest_uri, str(error))]
    root = tables_root(manifest_uri, info)
    reader = ShardReader(root)
    problems: list[Problem] = []
    intact: list[Mapping[str, Any]] = []
    for file, rows in _rows_by_file(table):
        found = list(_file_problems(reader, root, file, rows, info))
        problems += found
        affected = {problem.uid for problem in found}
        if None not in affected:
            intact += [row for row in rows if row["uid"] not in affected]
    problems += _text_problems(storage.join(root, info.text_folder), table, info)
    problems += [Problem(*found) for found in index_problems(manifest_uri)]
    problems += _decoding_problems(reader, intact, info, n_decoded)
    return problems


def _rows_by_file(table: pa.Table) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the rows of each file in the order in which they are stored, so that each row group is read once."""
    names = ["file", "row_group", "row", "uid", "bucket", "n_tokens", "checksum", "fps", *CROP_COLUMNS]
    ordered = table.select(names).sort_by([(name, "ascending") for name in names[:3]])
    runs = pc.run_end_encode(ordered["file"].combine_chunks())
    start = 0
    for file, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield file, ordered.slice(start, end - start).to_pylist()
        start = end


def _file_problems(
    reader: ShardReader, root: str, file: str, rows: list[dict[str, Any]], info: DatasetInfo
) -> Iterator[Problem]:
    try:
        shard = reader.info(file)
        stored = {(row["row_group"], row["row"]): row for row in read_shard_index(storage.join(root, file)).to_pylist()}
    except DamagedError as error:
        yield Problem(file, f"{error}; its {len(rows)} samples are lost")
        return
    for name in ("autoencoder_identity", "channels", "time_factor", "space_factor"):
        if getattr(shard, name) != getattr(info, name):
            yield Problem(file, f"its {name} is {getattr(shard, name)}, and the manifest's {getattr(info, name)}")
    samples = reader.read_many(_reference(row) for row in rows)
    for row, sample in zip(rows, samples, strict=True):
        message = _row_mismatch(shard, row, stored.get((row["row_group"], row["row"])))
        message = message or _latents_problem(shard, row, sample)
        if message is not None:
            yield _row_problem(row, message)


def _row_problem(row: Mapping[str, Any], message: str) -> Problem:
    return Problem(row["file"], message, row["row_group"], row["row"], row["uid"])


def _reference(row: Mapping[str, Any]) -> RowReference:
    return RowReference(row["file"], row["row_group"], row["row"])


def _row_mismatch(shard: ShardInfo, row: Mapping[str, Any], stored: Mapping[str, Any] | None) -> str | None:
    """Return how the scalars of a manifest's row differ from those in the shard, or None."""
    if stored is None:
        return "the shard has no such row"
    expected = {
        "bucket": shard.bucket.name,
        **{name: stored[name] for name in ("uid", "n_tokens", "checksum", "fps", *CROP_COLUMNS)},
    }
    for name, value in expected.items():
        if row[name] != value:
            return f"{name} is {value} in the shard and {row[name]} in the manifest"
    if row["n_tokens"] != shard.n_tokens:
        return f"n_tokens is {row['n_tokens']}, and latents of shape {list(shard.latent_shape)} have {shard.n_tokens}"
    return None


def _latents_problem(shard: ShardInfo, row: Mapping[str, Any], sample: StoredLatents | DamagedError) -> str | None:
    """Return the problem of the latents of a row, or None."""
    if isinstance(sample, DamagedError):
        return str(sample)
    if sample.checksum != row["checksum"]:
        return (
            f"the checksum of its latents is {sample.checksum}, and {row['checksum']} was written: the bytes have "
            "changed"
        )
    if (sample.last_frame_latent is None) != (shard.bucket.frames == 1):
        return "a video has a last-frame latent and an image has none; this row is the other way round"
    latents = (sample.latent, sample.last_frame_latent)
    if not all(latent is None or bool(torch.isfinite(latent).all()) for latent in latents):
        return "its latents hold a value that is not finite"
    return None


def _text_problems(folder: str, table: pa.Table, info: DatasetInfo) -> Iterator[Problem]:
    try:
        texts = read_text_index(folder)
        encoding = texts.encoding()
    except DamagedError as error:
        yield Problem(info.text_folder, str(error))
        return
    identity = encoding and encoding.identity
    if identity != info.text_encoder_identity:
        yield Problem(
            info.text_folder, f"holds embeddings by {identity}, the manifest says {info.text_encoder_identity}"
        )
    lengths: dict[str, int | None] = {info.null_text_key: None}
    lengths |= dict(zip(table["text_key"].to_pylist(), table["n_text"].to_pylist(), strict=True))
    lengths |= {other["text_key"]: other["n_text"] for other in pc.list_flatten(table["other_captions"]).to_pylist()}
    rows = sort_by(texts.rows, [(name, "ascending") for name in ("part", "row_group", "row")])
    reader = TextReader(identity or "")
    for place in texts.places(rows):
        if place.key not in lengths:
            continue
        length = lengths.pop(place.key)
        try:
            tokens = reader.get(place)
        except DamagedError as error:
            yield Problem(info.text_folder, str(error))
            continue
        if length not in (None, len(tokens)):
            yield Problem(
                info.text_folder, f"text {place.key} has {len(tokens)} tokens, and the manifest says {length}"
            )
    for key in sorted(lengths):
        yield Problem(info.text_folder, f"no embedding of text {key}; run curation again")


def _decoding_problems(
    reader: ShardReader, rows: list[Mapping[str, Any]], info: DatasetInfo, n_decoded: int
) -> Iterator[Problem]:
    videos = [row for row in rows if reader.info(row["file"]).bucket.frames > 1]
    if not videos or n_decoded < 1:
        return
    settings = build(FOLDER, AutoencoderSettings, dict(info.autoencoder))
    if settings.identity() != info.autoencoder_identity:
        yield Problem(
            videos[0]["file"],
            f"its latents are by {info.autoencoder_identity}; here '{settings.name}' is {settings.identity()}",
        )
        return
    autoencoder = settings.open()
    stride = max(1, len(videos) // n_decoded)
    for row in videos[::stride][:n_decoded]:
        stored = reader.read(*_reference(row))
        assert stored.last_frame_latent is not None
        of_video = _decoded_last_frame(autoencoder, stored.latent)
        found_db = float(psnr_db(of_video, _decoded_last_frame(autoencoder, stored.last_frame_latent)))
        if found_db < MIN_PSNR_DB:
            yield _row_problem(
                row,
                f"its decoded last frame and its decoded last-frame latent differ: {found_db:.1f} dB, below "
                f"{MIN_PSNR_DB:g} dB",
            )


@torch.inference_mode()
def _decoded_last_frame(autoencoder: Autoencoder, latent_CTHW: Tensor) -> Tensor:
    """Return the last frame `[1, 3, 1, H, W]` of a decoded latent."""
    return autoencoder.decode(latent_CTHW[None].to(torch.float32))[:, :, -1:].clamp(-1, 1)
