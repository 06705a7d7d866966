"""A CLIP model for pictures and texts: unit vectors of one space for both.

Shape legend: N pictures or texts, D numbers of an embedding.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from captioning.clip_weights import ClipWeights, load_clip
from captioning.engine import EngineError
from pipelines.engine.step import RunError
from pipelines.steps.score._base import Look, PictureScore
from pipelines.video.scale import Pixels

Floats = NDArray[np.float32]

REMEMBERED = 4096
"""Embeddings of pictures a worker remembers (12 MB at 768 numbers): two scores of one worker look at the same pictures one after the
other, and the second pays for none of them."""


class ClipScore(ClipWeights, PictureScore):
    """A score that looks at pictures with CLIP."""

    not_in_digest: ClassVar[frozenset[str]] = PictureScore.not_in_digest | {"model", "pretrained", "revision"}

    def packages(self) -> dict[str, str]:
        return {"open_clip": "models"}

    def tower(self) -> Tower:
        """The model, loaded once a process whatever number of scores use it. Raises `RunError` where it cannot be."""
        return load_tower(self.model, self.pretrained, self.revision, bool(self.gpus), self.at_once)

    def load(self) -> Look:
        return self.tower().images


class Tower:
    """A loaded model. It computes in float32 on the CPU and in bfloat16 on a GPU."""

    def __init__(self, model: Any, preprocess: Any, tokenizer: Any, device: str, at_once: int) -> None:
        self._model = model
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self._device = device
        self._at_once = at_once
        self._known: OrderedDict[bytes, Floats] = OrderedDict()

    @cached_property
    def dim(self) -> int:
        """D, told from the embedding of a black picture: models keep it under different names."""
        return len(self.images([np.zeros((32, 32, 3), np.uint8)])[0])

    def images(self, pictures: Sequence[Pixels]) -> list[Floats]:
        """Unit vectors `[D]` of pictures, prepared as the model's own settings say (CLIP: short side to 224, the middle square)."""
        keys = [
            hashlib.sha1(picture.tobytes(), usedforsecurity=False).digest() + bytes(str(picture.shape), "ascii")
            for picture in pictures
        ]
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self._known}
        found = {key: self._known[key] for key in keys if key in self._known}
        if new:
            found |= zip(new, self._embed(list(new.values())), strict=True)
        for key in keys:
            self._known[key] = found[key]
            self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return [found[key] for key in keys]

    def texts(self, texts: Sequence[str]) -> list[Floats]:
        """Unit vectors `[D]` of texts; what is past the model's context (CLIP: 77 tokens) is cut off by its tokenizer."""
        import torch

        tokens = self._tokenizer(list(texts)).to(self._device)
        with torch.inference_mode():
            # One at a time, so that none depends on its neighbours: a caption is a hundredth of the work of eight pictures (ViT-L/14).
            return [unit_rows(self._model.encode_text(row[None]).float().cpu().numpy())[0] for row in tokens]

    def _embed(self, pictures: Sequence[Pixels]) -> list[Floats]:
        import torch
        from PIL import Image

        inputs = [self._preprocess(Image.fromarray(picture)) for picture in pictures]
        # Always one number of rows, so that what is said of one picture does not depend on how many there are.
        batch = torch.stack([*inputs, *[inputs[-1]] * (self._at_once - len(inputs))]).to(self._device)
        batch = batch.to(torch.float32 if self._device == "cpu" else torch.bfloat16)
        with torch.inference_mode():
            return list(unit_rows(self._model.encode_image(batch).float().cpu().numpy()))[: len(pictures)]


@lru_cache(maxsize=2)
def load_tower(model: str, pretrained: str, revision: str, gpu: bool, at_once: int) -> Tower:
    """Load a model of open_clip. Raises `RunError` that says what cannot be loaded, or that there is no GPU."""
    import torch

    if gpu and not torch.cuda.is_available():
        raise RunError("gpus is over 0, but torch sees no GPU; set gpus to 0")
    device = "cuda" if gpu else "cpu"
    try:
        return Tower(*load_clip(model, pretrained, revision, "bfloat16" if gpu else "float32", device), device, at_once)
    except EngineError as error:
        raise RunError(str(error)) from error


def unit_rows(vectors_ND: NDArray[Any]) -> Floats:
    """Rows divided by their length, `[N, D]` float32. Raises `ValueError` for a row without a length."""
    wide = np.asarray(vectors_ND, np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=-1, keepdims=True))
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("an embedding is zero or not finite")
    return np.asarray(wide / lengths, np.float32)


def dot(a_D: Floats, b_D: Floats) -> float:
    """Sum of products in float64, in one order, so that the result is the same on every machine."""
    return float((a_D.astype(np.float64) * b_D).sum())
