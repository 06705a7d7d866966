"""A data set of drawn clips: coloured shapes that move over coloured backgrounds, encoded and written as
curation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from captioning.encoder import NULL_CAPTION, TextEncoderSettings, text_key
from captioning.encoders.hashing import Hashing
from cluster.arrays import Float32Array
from training.autoencoder import AutoencoderSettings
from training.autoencoders.linear import Linear
from training.data.buckets import Bucket
from training.data.manifest import OTHER_CAPTION, DatasetInfo
from training.data.manifest_writer import write_manifest
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import ShardInfo, read_index
from training.data.text_tables import write_text_table

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 70),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 50),
    "white": (240, 240, 240),
}
BACKGROUNDS = {"black": (16, 16, 20), "grey": (120, 120, 124), "purple": (90, 40, 120)}
MOVES = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
FPS = 8.0


def draw_clip(rng: np.random.Generator, width: int, height: int, frames: int) -> tuple[Float32Array, str]:
    """Return a clip `[3, T, H, W]` in [-1, 1] and its caption."""
    colour, background, move = (list(names)[rng.integers(len(names))] for names in (COLOURS, BACKGROUNDS, MOVES))
    shape = ("circle", "square")[rng.integers(2)]
    radius = height * 0.22
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    step = np.array(MOVES[move]) * height * 0.05
    start = np.array([width, height]) / 2 - step * (frames - 1) / 2 + rng.uniform(-0.1, 0.1, 2) * height
    video = np.empty((frames, height, width, 3), np.float32)
    for index in range(frames):
        x, y = columns - start[0] - step[0] * index, rows - start[1] - step[1] * index
        distance = np.hypot(x, y) if shape == "circle" else np.maximum(np.abs(x), np.abs(y))
        coverage = np.clip(radius - distance + 0.5, 0, 1)[..., None]
        video[index] = coverage * COLOURS[colour] + (1 - coverage) * BACKGROUNDS[background]
    caption = (
        f"a {colour} {shape} moves {move} on a {background} background"
        if frames > 1
        else f"a {colour} {shape} on a {background} background"
    )
    return video.transpose(3, 0, 1, 2) / 127.5 - 1, caption


def write_dataset(
    folder: Path,
    counts: Sequence[tuple[int, int, int, int]],
    n_val: int = 4,
    seed: int = 0,
    autoencoder_settings: AutoencoderSettings | None = None,
    text_settings: TextEncoderSettings | None = None,
) -> str:
    """Write a data set, by default of the linear autoencoder and hashed words, and return the URI of its manifest.

    Each entry of `counts` is (width, height, frames, number of samples). The first `n_val` samples of each entry are in
    the validation split.
    """
    settings, text = autoencoder_settings or Linear(), text_settings or Hashing()
    autoencoder, encoder = settings.open(), text.open()
    rng = np.random.default_rng(seed)
    captions, tables = {NULL_CAPTION}, []
    for width, height, frames, count in counts:
        bucket = Bucket(width, height, frames, FPS)
        rows, columns = [], []
        for index in range(count):
            video, caption = draw_clip(rng, width, height, frames)
            captions.add(caption)
            pixels = torch.from_numpy(video)[None]
            latent = autoencoder.encode(pixels)[0].to(torch.bfloat16)
            last_frame = autoencoder.encode(pixels[:, :, -1:])[0].to(torch.bfloat16) if frames > 1 else None
            uid = f"{bucket.name}-{index:04d}"
            rows.append(LatentRow(uid, latent, last_frame, f"{uid}.mp4", 0, frames, 1, 8, FPS, (0, 0, width, height)))
            columns.append((text_key(caption, encoder.identity), caption, "val" if index < n_val else "train"))
        file = f"latents/bucket={bucket.name}/part-0.parquet"
        write_shard(str(folder / file), rows, ShardInfo.from_autoencoder(settings, autoencoder, bucket, "drawn"))
        index_table = read_index(str(folder / file))
        n_rows = len(rows)
        extra = {
            "bucket": [bucket.name] * n_rows,
            "kind": ["video" if frames > 1 else "image"] * n_rows,
            "file": [file] * n_rows,
            "text_key": [key for key, _, _ in columns],
            "n_text": [len(caption.split()) for _, caption, _ in columns],
            "caption": [caption for _, caption, _ in columns],
            "caption_kind": ["words"] * n_rows,
            "other_captions": [[]] * n_rows,
            "clip_start_pts": [0] * n_rows,
            "clip_end_pts": [frames] * n_rows,
            "content_x0": [0] * n_rows,
            "content_y0": [0] * n_rows,
            "content_x1": [width] * n_rows,
            "content_y1": [height] * n_rows,
            "source_width": [width] * n_rows,
            "source_height": [height] * n_rows,
            "cluster": [None] * n_rows,
            "split": [split for _, _, split in columns],
        }
        index_by_uid = {row.uid: index for index, row in enumerate(rows)}
        in_file_order = [index_by_uid[uid] for uid in index_table["uid"].to_pylist()]
        for name, values in extra.items():
            index_table = index_table.append_column(
                name,
                pa.array(
                    [values[index] for index in in_file_order],
                    pa.string() if name == "cluster" else pa.list_(OTHER_CAPTION) if name == "other_captions" else None,
                ),
            )
        tables.append(index_table)
    embeddings = {text_key(caption, encoder.identity): encoder.encode([caption])[0] for caption in sorted(captions)}
    write_text_table(str(folder / "texts/part-0.parquet"), embeddings, encoder.identity)
    info = replace(DatasetInfo.from_encoders(settings, autoencoder, text, "texts", "drawn"), tables_root="")
    manifest = str(folder / "_manifest.parquet")
    write_manifest(manifest, pa.concat_tables([table.select(tables[0].column_names) for table in tables]), info)
    return manifest
