"""The quality of an autoencoder on held-out clips: loss, PSNR, SSIM, and an image of reconstructed frames."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from cluster import storage
from cluster.arrays import Pixels
from training.autoencoder_training.crops import Clips
from training.autoencoder_training.losses import reconstruction_loss
from training.autoencoder_training.settings import AutoencoderTrainSettings
from training.engine import Engine
from training.pixels import from_uint8, psnr_db, ssim, to_uint8

Reconstruct = Callable[[Tensor], Tensor]
"""A function from pixels `[1, 3, T, H, W]` to their reconstruction."""

MAX_STRIP_FRAMES = 6
"""Most frames in the image of reconstructed frames."""


class Validation:
    """The validation on held-out clips: the middle of each, at the size of the first kind of crop, always the same."""

    def __init__(self, clips: Clips, settings: AutoencoderTrainSettings, engine: Engine) -> None:
        """Choose the clips. Raises `ValueError` if no held-out clip is long and large enough."""
        usable = clips.usable_for(settings.crops[0])
        number = min(settings.validation_clips, len(usable))
        # Evenly spaced by name, so that clips of many sources are among them.
        self._clips = [usable[index * len(usable) // number] for index in range(number)]
        self._settings, self._engine = settings, engine

    def measure(self, reconstruct: Reconstruct) -> dict[str, float]:
        """Return `val_loss`, `val_psnr_db` and `val_ssim`, means over the clips.

        Every rank calls it, and measures its share of the clips.
        """
        engine = self._engine
        sums = [0.0, 0.0, 0.0]
        with torch.no_grad():
            for clip in self._clips[engine.rank :: engine.world_size]:
                video_BCTHW = self._video(clip.central_crop(self._settings.crops[0]))
                made_BCTHW = reconstruct(video_BCTHW)
                values = (
                    reconstruction_loss(self._settings.loss, made_BCTHW, video_BCTHW),
                    psnr_db(made_BCTHW, video_BCTHW),
                    ssim(made_BCTHW, video_BCTHW),
                )
                sums = [total + float(value) for total, value in zip(sums, values, strict=True)]
        loss, psnr, similarity = (total / len(self._clips) for total in engine.all_sum(sums))
        return {"val_loss": loss, "val_psnr_db": psnr, "val_ssim": similarity}

    def write_strip(self, reconstruct: Reconstruct, uri: str) -> None:
        """Write a PNG with frames of the first clip in the upper row and their reconstruction in the lower one."""
        video_BCTHW = self._video(self._clips[0].central_crop(self._settings.crops[0]))
        with torch.no_grad():
            made_BCTHW = reconstruct(video_BCTHW)
        frames = video_BCTHW.shape[2]
        shown = sorted({round(index * (frames - 1) / (MAX_STRIP_FRAMES - 1)) for index in range(MAX_STRIP_FRAMES)})
        storage.write_bytes(uri, _png([video_BCTHW[0, :, shown], made_BCTHW[0, :, shown]]))

    def _video(self, pixels_THWC: Pixels) -> Tensor:
        """Return pixels `[1, 3, T, H, W]` in [-1, 1] on the engine's device."""
        return from_uint8(torch.from_numpy(pixels_THWC).movedim(-1, 0)[None].to(self._engine.device))


def _png(rows: Sequence[Tensor]) -> bytes:
    """Return a PNG image of rows of frames `[3, n, H, W]` in [-1, 1]."""
    image_CHW = torch.cat([torch.cat(list(row.unbind(1)), dim=-1) for row in rows], dim=-2)
    image_HWC = to_uint8(image_CHW).cpu().movedim(0, -1)
    buffer = io.BytesIO()
    Image.fromarray(image_HWC.contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
