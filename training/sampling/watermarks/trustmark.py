"""TrustMark (Bui et al. 2023), by the package of that name. It was made for images; frames are marked one by one.

A word has 61 bits and is corrected by the package, up to 5 wrong bits (its schema BCH_5).
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from cluster.arrays import Pixels
from training.sampling.learned_watermark import Bits, LearnedWatermark, Soft, WordNetwork

PACKAGE = "trustmark"
MODEL = "Q"
"""Variant of the package's networks, which is its own default."""
FILES = tuple(
    f"models/{name}" for name in (f"trustmark_{MODEL}.yaml", f"encoder_{MODEL}.ckpt", f"decoder_{MODEL}.ckpt")
)


class TrustMark(LearnedWatermark):
    """Settings of the mark of TrustMark, of 61 bits."""

    name: str = "trustmark"
    word_bits: ClassVar[int] = 61

    def missing(self) -> str | None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            return "the package trustmark is not installed; `pip install 'trustmark>=0.9'` adds it"
        folder = Path(spec.submodule_search_locations[0])
        absent = [name for name in FILES if not (folder / name).is_file()]
        if absent:
            # The package would download them by itself.
            return (
                f'{folder / absent[0]} is not there; `python -c "import trustmark; trustmark.TrustMark()"` downloads '
                "the weights once"
            )
        return None

    def open(self) -> WordNetwork:
        return _Network()


class _Network:
    def __init__(self) -> None:
        # On the CPU, so that a model that is loaded later has the whole GPU.
        self._network: Any = importlib.import_module(PACKAGE).TrustMark(
            verbose=False, model_type=MODEL, device="cpu", loadRemover=False
        )
        if self._network.encoder is None or self._network.decoder is None:
            raise ValueError("watermark_method trustmark: the package cannot load its weights; remove and fetch them")

    def embed(self, frame_HWC: Pixels, word: Bits) -> Pixels:
        bits = "".join("1" if bit > 0 else "0" for bit in word)
        return np.asarray(self._network.encode(Image.fromarray(frame_HWC), bits, MODE="binary"))

    def read(self, frame_HWC: Pixels) -> Soft | None:
        bits, is_present, _ = self._network.decode(Image.fromarray(frame_HWC), MODE="binary")
        if not is_present or len(bits) != TrustMark.word_bits:  # words of other schemas have other lengths
            return None
        return np.array([1.0 if bit == "1" else -1.0 for bit in bits])
