"""Writing of encoded samples as a latent shard; apart from `shards.py`, which loads without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from training.data.shards import CROP_COLUMNS, ShardInfo, checksum_of, shard_schema, write_rows

# Latents are [C, t, h, w].


@dataclass(frozen=True)
class LatentRow:
    """An encoded clip or image."""

    uid: str
    """Uid of the sample, see `sample_uid`."""
    latent: Tensor
    """bfloat16 `[C, t, h, w]`, normalised."""
    last_frame_latent: Tensor | None
    """The last frame encoded as an image, `[C, 1, h, w]`, since the last latent frame mixes several frames. None for an
    image."""
    source: str
    start_pts: int
    end_pts: int
    time_base_num: int
    time_base_den: int
    fps: float
    """Frames per second at which the clip was sampled."""
    crop: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels of the source, ends exclusive."""


def write_shard(uri: str, rows: Sequence[LatentRow], info: ShardInfo) -> None:
    """Write a shard atomically.

    Raises `ValueError` naming the row whose latents have another shape or type than `info` says, or values that are not
    finite.
    """
    if not rows:
        raise ValueError(f"{uri}: a shard needs at least one row")
    shape = info.latent_shape
    latents = [_to_bytes(row.latent, shape, f"{row.uid}: latent") for row in rows]
    last_frames = [_last_frame_bytes(row, info) for row in rows]
    scalars = {
        "uid": [row.uid for row in rows],
        "n_tokens": [info.n_tokens] * len(rows),
        "checksum": [
            checksum_of(latent, last_frame or b"") for latent, last_frame in zip(latents, last_frames, strict=True)
        ],
        **{name: [row.crop[side] for row in rows] for side, name in enumerate(CROP_COLUMNS)},
    }
    for name in ("source", "start_pts", "end_pts", "time_base_num", "time_base_den", "fps"):
        scalars[name] = [getattr(row, name) for row in rows]
    schema = shard_schema(info)
    binaries = {
        name: pa.array(values, schema.field(name).type)
        for name, values in (("latent", latents), ("last_frame_latent", last_frames))
    }
    table = pa.table({**scalars, **binaries}, schema)
    write_rows(uri, table, info)


def _to_bytes(latent: Tensor, shape: tuple[int, ...], name: str) -> bytes:
    if latent.dtype != torch.bfloat16 or tuple(latent.shape) != shape:
        raise ValueError(
            f"{name} is {latent.dtype} {list(latent.shape)}; this shard holds torch.bfloat16 {list(shape)}"
        )
    if not torch.isfinite(latent).all():
        raise ValueError(f"{name} holds a value that is not finite")
    return latent.contiguous().view(torch.int16).cpu().numpy().astype("<i2", copy=False).tobytes()


def _last_frame_bytes(row: LatentRow, info: ShardInfo) -> bytes | None:
    latent, frames = row.last_frame_latent, info.latent_shape[1]
    if (latent is None) != (frames == 1):
        raise ValueError(
            f"{row.uid}: an image has no last_frame_latent and a video has one; this shard's latents have {frames} "
            "frames"
        )
    return None if latent is None else _to_bytes(latent, info.last_frame_shape, f"{row.uid}: last_frame_latent")
