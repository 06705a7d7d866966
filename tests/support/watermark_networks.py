"""Stand-ins of the packages of watermarks: the same interfaces, and words that are a grid of cells on flat frames."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cluster.arrays import Pixels
from training.sampling import learned_watermark
from training.sampling.watermarks import rivagan, trustmark, videoseal

LEVELS = 6.0
"""Change of a cell in 8-bit values."""


def flat_frames(count: int = 3, height: int = 256, width: int = 256) -> Pixels:
    return np.full((count, height, width, 3), 120, np.uint8)


def _cells(n_bits: int, height: int, width: int) -> tuple[slice, int, NDArray[np.int64]]:
    side = height * width // n_bits
    return slice(0, side * n_bits), side, np.arange(n_bits)


class _OnnxSession:
    """`onnxruntime.InferenceSession` of RivaGAN's files: frames `[1, 3, 1, H, W]` of -1 to 1, and bits of 0 and 1."""

    def __init__(self, path: Path) -> None:
        self._encodes = "encoder" in Path(path).name

    def run(self, names: None, feed: dict[str, Any]) -> list[Any]:
        frame = feed["frame"]
        assert frame.dtype == np.float32
        assert frame.shape[:3] == (1, 3, 1)
        assert np.abs(frame).max() <= 1
        used, side, _ = _cells(32, *frame.shape[3:])
        if self._encodes:
            assert feed["data"].shape == (1, 32)
            marked = frame.reshape(3, -1).copy()
            marked[:, used] += np.repeat(2 * feed["data"][0] - 1, side) * LEVELS / 127.5
            return [marked.reshape(frame.shape)]
        means = frame.reshape(3, -1)[:, used].mean(0).reshape(32, side).mean(1)
        return [(127.5 * (means - means.mean()) + 0.52)[None].astype(np.float32)]


class _TrustMark:
    """`trustmark.TrustMark` with its schema BCH_5: PIL images, and words of 61 characters."""

    def __init__(self, verbose: bool, model_type: str, device: str, loadRemover: bool) -> None:
        assert (model_type, device, loadRemover) == ("Q", "cpu", False)
        self.encoder = self.decoder = "networks"

    def encode(self, in_cover_image: Image.Image, string_secret: str, MODE: str = "text") -> Image.Image:
        assert (MODE, len(string_secret)) == ("binary", 61)
        frame = np.asarray(in_cover_image).copy()
        frame[0, :61, 0] = frame[0, :61, 0] // 2 * 2 + np.array(list(map(int, string_secret)))
        frame[1, 0] = 255
        return Image.fromarray(frame)

    def decode(self, in_stego_image: Image.Image, MODE: str = "text") -> tuple[str, bool, int]:
        frame = np.asarray(in_stego_image)
        if frame[1, 0, 0] < 250:
            return "", False, -1
        return "".join(str(value % 2) for value in frame[0, :61, 0]), True, 1


class _VideoSeal(torch.nn.Module):
    """The TorchScript file of Video Seal: images `[B, 3, H, W]` of 0 to 1, messages and predictions of 256 bits."""

    def __init__(self, n_bits: int) -> None:
        super().__init__()
        self.n_bits = n_bits

    def forward(self, imgs: Tensor) -> Tensor:
        return imgs

    @torch.jit.export
    def embed(self, imgs: Tensor, msgs: Tensor, is_video: bool = False) -> Tensor:
        side = imgs.size(2) * imgs.size(3) // self.n_bits
        marked = imgs.clone().flatten(2)
        marked[:, :, : side * self.n_bits] += (2 * msgs - 1).repeat_interleave(side, 1)[:, None] * 6.0 / 255
        return marked.view_as(imgs)

    @torch.jit.export
    def detect(self, imgs: Tensor, is_video: bool = False) -> Tensor:
        side = imgs.size(2) * imgs.size(3) // self.n_bits
        means = imgs.mean(1).flatten(1)[:, : side * self.n_bits].reshape(imgs.size(0), self.n_bits, side).mean(2)
        return torch.cat([torch.zeros(imgs.size(0), 1), means - means.mean()], 1)


def write_videoseal(path: Path, n_bits: int = 256) -> Path:
    """Write a TorchScript file with the interface of the published one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(_VideoSeal(n_bits)).save(str(path))
    return path


def install(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the stand-in of a package, or name the file of Video Seal, for one test."""
    learned_watermark._open.cache_clear()
    if name == "videoseal":
        monkeypatch.setenv(videoseal.VARIABLE, str(write_videoseal(folder / "y_256b_img.jit")))
        return
    package, files = {
        "rivagan": (rivagan.PACKAGE, rivagan.FILES),
        "trustmark": (trustmark.PACKAGE, trustmark.FILES),
    }[name]
    for file in ("__init__.py", *files):
        (folder / package / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / package / file).touch()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, package, raising=False)
    if name == "rivagan":
        runtime = ModuleType("onnxruntime")
        runtime.__spec__ = SimpleNamespace()  # type: ignore[assignment]
        runtime.InferenceSession = _OnnxSession  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    else:
        __import__(package)
        monkeypatch.setattr(sys.modules[package], "TrustMark", _TrustMark, raising=False)
