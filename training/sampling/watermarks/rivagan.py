"""RivaGAN (Zhang et al. 2019), by the ONNX files in the package invisible-watermark.

Its 32 bits are too few for a payload beside a pilot, so all of them are the pilot. The network was trained for frames
one by one, of any size; the package itself refuses frames of fewer pixels than 256x256, as too few bits survive there.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Pixels
from training.sampling.learned_watermark import Bits, LearnedWatermark, Soft, WordNetwork

PACKAGE = "imwatermark"
FILES = ("rivagan_encoder.onnx", "rivagan_decoder.onnx")
THRESHOLD = 0.52
"""Value of the network above which the package takes a bit for a 1."""


class RivaGAN(LearnedWatermark):
    """Settings of the mark of RivaGAN, of 32 bits."""

    name: str = "rivagan"
    has_payload: ClassVar[bool] = False
    min_pixels: ClassVar[int] = 256 * 256
    word_bits: ClassVar[int] = 32

    def missing(self) -> str | None:
        if _folder() is None or importlib.util.find_spec("onnxruntime") is None:
            # With its dependencies the package brings a second OpenCV, which overwrites ours.
            return (
                "the packages invisible-watermark and onnxruntime are not installed; `pip install onnxruntime` and "
                "`pip install --no-deps invisible-watermark` add them"
            )
        return None

    def open(self) -> WordNetwork:
        return _Network()


def _folder() -> Path | None:
    """Return the folder of the package, which is not imported: that needs packages that its files do not."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    return next((folder for folder in folders if all((folder / name).is_file() for name in FILES)), None)


class _Network:
    def __init__(self) -> None:
        import onnxruntime  # type: ignore[import-untyped,unused-ignore]

        folder = _folder()
        assert folder is not None
        self._encoder, self._decoder = (onnxruntime.InferenceSession(folder / name) for name in FILES)

    def embed(self, frame_HWC: Pixels, word: Bits) -> Pixels:
        data = (word[None] > 0).astype(np.float32)
        (marked_BCTHW,) = self._encoder.run(None, {"frame": _scaled(frame_HWC), "data": data})
        marked = np.rint((marked_BCTHW[0, :, 0].transpose(1, 2, 0) + 1) * 127.5)
        frame: Pixels = np.clip(marked, 0, 255, out=marked).astype(np.uint8)
        return frame

    def read(self, frame_HWC: Pixels) -> Soft:
        (values,) = self._decoder.run(None, {"frame": _scaled(frame_HWC)})
        soft: Soft = values[0].astype(np.float64) - THRESHOLD
        return soft


def _scaled(frame_HWC: Pixels) -> NDArray[np.float32]:
    """Return a frame from -1 to 1, `[1, 3, 1, H, W]`."""
    return (frame_HWC.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None, :, None]
