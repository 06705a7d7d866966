"""How well an autoencoder does on clips held out: PSNR, SSIM, and a picture of what comes back."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cluster import storage
from training.autoencoder_training.crops import Clips
from training.autoencoder_training.losses import reconstruction_loss
from training.autoencoder_training.settings import AutoencoderTrainSettings
from training.engine import Engine
from training.pixels import from_uint8, psnr_db, ssim, to_uint8

Reconstruct = Callable[[Tensor], Tensor]
"""`[1, 3, T, H, W]` pixels to what comes back of them."""

STRIP_FRAMES = 6
"""Most frames of the picture."""


class Validation:
    """Clips held out: the middle of each, of the first kind of crop, always the same."""

    def __init__(self, clips: Clips, settings: AutoencoderTrainSettings, engine: Engine) -> None:
        """Raises `ValueError` where no clip held out is long and large enough."""
        fitting = clips.that_fit(settings.crops[0])
        number = min(settings.validation_clips, len(fitting))
        # Spread over the names, so that no source has them all.
        self._clips = [fitting[index * len(fitting) // number] for index in range(number)]
        self._settings, self._engine = settings, engine

    def measure(self, reconstruct: Reconstruct) -> dict[str, float]:
        """`val_loss`, `val_psnr_db` and `val_ssim`, means over the clips; every rank calls it, and does its share."""
        engine = self._engine
        sums = [0.0, 0.0, 0.0]
        with torch.no_grad():
            for clip in self._clips[engine.rank :: engine.world_size]:
                video_BCTHW = self._video(clip.central(self._settings.crops[0]))
                made_BCTHW = reconstruct(video_BCTHW)
                found = (
                    reconstruction_loss(self._settings.loss, made_BCTHW, video_BCTHW),
                    psnr_db(made_BCTHW, video_BCTHW),
                    ssim(made_BCTHW, video_BCTHW),
                )
                sums = [total + float(value) for total, value in zip(sums, found, strict=True)]
        loss, psnr, similarity = (total / len(self._clips) for total in engine.all_sum(sums))
        return {"val_loss": loss, "val_psnr_db": psnr, "val_ssim": similarity}

    def strip(self, reconstruct: Reconstruct, uri: str) -> None:
        """Write a PNG: frames of the first clip above, and what comes back of them below."""
        video_BCTHW = self._video(self._clips[0].central(self._settings.crops[0]))
        with torch.no_grad():
            made_BCTHW = reconstruct(video_BCTHW)
        frames = video_BCTHW.shape[2]
        shown = sorted({round(index * (frames - 1) / (STRIP_FRAMES - 1)) for index in range(STRIP_FRAMES)})
        storage.write_bytes(uri, _png([video_BCTHW[0, :, shown], made_BCTHW[0, :, shown]]))

    def _video(self, pixels_THWC: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        return from_uint8(torch.from_numpy(pixels_THWC).movedim(-1, 0)[None].to(self._engine.device))


def _png(rows: Sequence[Tensor]) -> bytes:
    """Rows of frames `[3, n, H, W]` in [-1, 1] as one picture."""
    picture_CHW = torch.cat([torch.cat(list(row.unbind(1)), dim=-1) for row in rows], dim=-2)
    levels_HWC = to_uint8(picture_CHW).cpu().movedim(0, -1)
    buffer = io.BytesIO()
    Image.fromarray(levels_HWC.contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
