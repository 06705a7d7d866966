"""Video Seal (Fernandez et al. 2024), by its published TorchScript file of 256 bits, `y_256b_img.jit`.

The file is a program as much as weights, so the environment names it and no recipe does. The package of that name works
only inside a checkout of its repository. Frames are marked one by one.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cluster.arrays import Pixels
from training.sampling.learned_watermark import Bits, LearnedWatermark, Soft, WordNetwork

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "WORLDLOOM_VIDEOSEAL"
"""Environment variable that names the file."""


class VideoSeal(LearnedWatermark):
    """Settings of the mark of Video Seal, of 256 bits."""

    name: str = "videoseal"
    word_bits: ClassVar[int] = 256

    def missing(self) -> str | None:
        path = os.environ.get(VARIABLE)
        if not path:
            return f"its TorchScript file is not named; set {VARIABLE} to the path of y_256b_img.jit"
        return None if Path(path).is_file() else f"{VARIABLE} names {path}, which is no file"

    def open(self) -> WordNetwork:
        return _Network(os.environ[VARIABLE])


class _Network:
    def __init__(self, path: str) -> None:
        import torch

        self._torch = torch
        with warnings.catch_warnings():
            # Still the published form.
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
            try:
                self._network = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                raise ValueError(f"{VARIABLE}: {path} is no TorchScript file: {error}") from error
        n_bits = len(self.read(np.zeros((64, 64, 3), np.uint8)))
        if n_bits != VideoSeal.word_bits:
            raise ValueError(
                f"{VARIABLE}: {path} reads {n_bits} bits; the file of {VideoSeal.word_bits} bits is needed"
            )

    def embed(self, frame_HWC: Pixels, word: Bits) -> Pixels:
        torch = self._torch
        with torch.inference_mode():
            message = torch.from_numpy((word[None] > 0).astype(np.float32))
            marked_BCHW = self._network.embed(self._tensor(frame_HWC), message)
            marked: Pixels = (marked_BCHW[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        return marked

    def read(self, frame_HWC: Pixels) -> Soft:
        with self._torch.inference_mode():
            # The first value, of presence, is not trained in the published file.
            values = self._network.detect(self._tensor(frame_HWC))[0, 1:]
        soft: Soft = values.double().numpy()
        return soft

    def _tensor(self, frame_HWC: Pixels) -> Tensor:
        return self._torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1)[None].float() / 255
