"""Check a data set by reading all of it the way training does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from cluster import storage
from cluster.plugins import build
from training.autoencoder import FOLDER, Autoencoder, AutoencoderSettings
from training.data.footer import DamagedError
from training.data.shard_reader import RowReference, ShardReader, StoredLatents
from training.data.shards import CROP_COLUMNS, DatasetInfo, ShardInfo, read_index, read_manifest, tables_root
from training.data.text_tables import TextTableReader
from training.pixels import psnr_db

MIN_PSNR_DB = 12.0
"""Least likeness of a decoded video's last frame and its decoded tail latent, two encodings of one picture. Of 280 real clips
encoded by `linear` at 64² and 128² pixels none was below 16 dB; clips paired with another's tail had a median of 9 dB."""


@dataclass(frozen=True)
class Problem:
    """One fault. `row_group`, `row` and `uid` are None for a fault of a whole file."""

    file: str
    row_group: int | None
    row: int | None
    uid: str | None
    message: str

    def __str__(self) -> str:
        where = "" if self.row is None else f"row {self.row} of row group {self.row_group}, sample {self.uid}: "
        return f"{self.file}: {where}{self.message}"


def verify(manifest_uri: str, n_decoded: int = 8) -> list[Problem]:
    """Every fault of a data set: shards and text tables missing, cut short, altered or of another version; rows that are not
    where or what the manifest says; latents that are not finite; more than one autoencoder.

    `n_decoded` videos, spread over the data set, are decoded too, and their last frame is compared with their tail latent.
    """
    try:
        table, info = read_manifest(manifest_uri)
    except DamagedError as error:
        return [Problem(manifest_uri, None, None, None, str(error))]
    root = tables_root(manifest_uri, info)
    reader = ShardReader(root)
    problems: list[Problem] = []
    sound: list[Mapping[str, Any]] = []
    for file, rows in _rows_of_files(table):
        faults = list(_faults_of_file(reader, root, file, rows, info))
        problems += faults
        faulty = {fault.uid for fault in faults}
        if None not in faulty:
            sound += [row for row in rows if row["uid"] not in faulty]
    problems += _faults_of_texts(storage.join(root, info.text_folder), table, info)
    problems += _faults_of_decoding(reader, sound, info, n_decoded)
    return problems


def _rows_of_files(table: pa.Table) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows of each file in the order in which they are stored, so that each row group is read once."""
    names = ["file", "row_group", "row", "uid", "bucket", "n_tokens", "checksum", "fps", *CROP_COLUMNS]
    ordered = table.select(names).sort_by([(name, "ascending") for name in names[:3]])
    runs = pc.run_end_encode(ordered["file"].combine_chunks())
    start = 0
    for file, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield file, ordered.slice(start, end - start).to_pylist()
        start = end


def _faults_of_file(
    reader: ShardReader, root: str, file: str, rows: list[dict[str, Any]], info: DatasetInfo
) -> Iterator[Problem]:
    try:
        shard = reader.info(file)
        stored = {(row["row_group"], row["row"]): row for row in read_index(storage.join(root, file)).to_pylist()}
    except DamagedError as error:
        yield Problem(file, None, None, None, f"{error}; its {len(rows)} samples are lost")
        return
    for name in ("autoencoder_identity", "channels", "time_factor", "space_factor"):
        if getattr(shard, name) != getattr(info, name):
            yield Problem(
                file,
                None,
                None,
                None,
                f"its {name} is {getattr(shard, name)}, and the manifest's {getattr(info, name)}",
            )
    samples = reader.read_many(_place(row) for row in rows)
    for row, sample in zip(rows, samples, strict=True):
        message = _fault_of_place(shard, row, stored.get((row["row_group"], row["row"]))) or _fault_of_sample(
            shard, row, sample
        )
        if message is not None:
            yield Problem(file, row["row_group"], row["row"], row["uid"], message)


def _place(row: Mapping[str, Any]) -> RowReference:
    return RowReference(row["file"], row["row_group"], row["row"])


def _fault_of_place(shard: ShardInfo, row: Mapping[str, Any], stored: Mapping[str, Any] | None) -> str | None:
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


def _fault_of_sample(shard: ShardInfo, row: Mapping[str, Any], sample: StoredLatents | DamagedError) -> str | None:
    if isinstance(sample, DamagedError):
        return str(sample)
    if sample.checksum != row["checksum"]:
        return f"the checksum of its latents is {sample.checksum}, and {row['checksum']} was written: the bytes have changed"
    if (sample.last_frame_latent is None) != (shard.bucket.frames == 1):
        return "a video has a tail latent and an image has none; this row does not keep to it"
    if not all(
        latent is None or bool(torch.isfinite(latent).all()) for latent in (sample.latent, sample.last_frame_latent)
    ):
        return "its latents hold a value that is not finite"
    return None


def _faults_of_texts(folder: str, table: pa.Table, info: DatasetInfo) -> Iterator[Problem]:
    try:
        texts = TextTableReader(folder)
    except DamagedError as error:
        yield Problem(info.text_folder, None, None, None, str(error))
        return
    if texts.identity != info.text_encoder_identity:
        yield Problem(
            info.text_folder,
            None,
            None,
            None,
            f"holds embeddings by {texts.identity}, the manifest says {info.text_encoder_identity}",
        )
    lengths: dict[str, int | None] = {info.null_text_key: None}
    lengths |= dict(zip(table["text_key"].to_pylist(), table["n_text"].to_pylist(), strict=True))
    lengths |= {other["text_key"]: other["n_text"] for other in pc.list_flatten(table["other_captions"]).to_pylist()}
    for key, length in sorted(lengths.items()):
        try:
            tokens = texts.get(key)
        except DamagedError as error:
            yield Problem(info.text_folder, None, None, None, str(error))
            continue
        if length not in (None, len(tokens)):
            yield Problem(
                info.text_folder,
                None,
                None,
                None,
                f"text {key} has {len(tokens)} tokens, and the manifest says {length}",
            )


def _faults_of_decoding(
    reader: ShardReader, rows: list[Mapping[str, Any]], info: DatasetInfo, sample: int
) -> Iterator[Problem]:
    videos = [row for row in rows if reader.info(row["file"]).bucket.frames > 1]
    if not videos or sample < 1:
        return
    settings = build(FOLDER, AutoencoderSettings, dict(info.autoencoder))
    if settings.identity() != info.autoencoder_identity:
        yield Problem(
            videos[0]["file"],
            None,
            None,
            None,
            f"its latents are by {info.autoencoder_identity}; here '{settings.name}' is {settings.identity()}",
        )
        return
    autoencoder = settings.open()
    step = max(1, len(videos) // sample)
    for row in videos[::step][:sample]:
        stored = reader.read(*_place(row))
        assert stored.last_frame_latent is not None
        likeness_db = float(
            psnr_db(_last_frame(autoencoder, stored.latent), _last_frame(autoencoder, stored.last_frame_latent))
        )
        if likeness_db < MIN_PSNR_DB:
            message = f"its decoded last frame and its decoded tail latent differ: {likeness_db:.1f} dB, below {MIN_PSNR_DB:g} dB"
            yield Problem(row["file"], row["row_group"], row["row"], row["uid"], message)


@torch.inference_mode()
def _last_frame(autoencoder: Autoencoder, latent_CTHW: Tensor) -> Tensor:
    """`[1, 3, 1, H, W]`."""
    return autoencoder.decode(latent_CTHW[None].to(torch.float32))[:, :, -1:].clamp(-1, 1)
