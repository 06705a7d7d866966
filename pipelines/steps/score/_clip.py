"""A CLIP model that maps images and texts to unit vectors of one space.

Shape legend: N images or texts, D numbers of an embedding.
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
from cluster.arrays import Float32Array, Pixels
from pipelines.engine.step import RunError
from pipelines.steps.score._base import ImageScore, Predictor

MAX_CACHED_EMBEDDINGS = 4096
"""Image embeddings that a worker caches (12 MB at 768 numbers). Two scores of one worker embed the same images one
after the other, and the second finds all of them in the cache."""


class ClipScore(ClipWeights, ImageScore):
    """A score that embeds images with CLIP."""

    not_in_digest: ClassVar[frozenset[str]] = ImageScore.not_in_digest | {"model", "pretrained", "revision"}

    def packages(self) -> dict[str, str]:
        return {"open_clip": "models"}

    def clip_model(self) -> ClipModel:
        """Return the model, which is loaded once per process however many scores use it.

        Raises `RunError` if it cannot be loaded.
        """
        return load_clip_model(self.model, self.pretrained, self.revision, bool(self.gpus), self.batch_size)

    def load(self) -> Predictor:
        return self.clip_model().embed_images


class ClipModel:
    """A loaded CLIP model. It computes in float32 on the CPU and in bfloat16 on a GPU."""

    def __init__(self, model: Any, preprocess: Any, tokenizer: Any, device: str, batch_size: int) -> None:
        self._model = model
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size
        self._cache: OrderedDict[bytes, Float32Array] = OrderedDict()

    @cached_property
    def dim(self) -> int:
        """D, read from the embedding of a black image: models store it under different names."""
        return len(self.embed_images([np.zeros((32, 32, 3), np.uint8)])[0])

    def embed_images(self, images: Sequence[Pixels]) -> list[Float32Array]:
        """Return unit vectors `[D]` of images.

        The model's own settings prepare them (CLIP: short side scaled to 224 pixels, then the square at the centre).
        """
        keys = [
            hashlib.sha1(image.tobytes(), usedforsecurity=False).digest() + bytes(str(image.shape), "ascii")
            for image in images
        ]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._cache}
        found = {key: self._cache[key] for key in keys if key in self._cache}
        if new:
            found |= zip(new, self._embed(list(new.values())), strict=True)
        for key in keys:
            self._cache[key] = found[key]
            self._cache.move_to_end(key)
        while len(self._cache) > MAX_CACHED_EMBEDDINGS:
            self._cache.popitem(last=False)
        return [found[key] for key in keys]

    def embed_texts(self, texts: Sequence[str]) -> list[Float32Array]:
        """Return unit vectors `[D]` of texts. The tokenizer cuts each off at the model's context (CLIP: 77 tokens)."""
        import torch

        tokens = self._tokenizer(list(texts)).to(self._device)
        with torch.inference_mode():
            # One at a time, so that no result depends on the others: a caption costs a hundredth of eight images
            # (ViT-L/14).
            return [unit_rows(self._model.encode_text(row[None]).float().cpu().numpy())[0] for row in tokens]

    def _embed(self, images: Sequence[Pixels]) -> list[Float32Array]:
        import torch
        from PIL import Image

        inputs = [self._preprocess(Image.fromarray(image)) for image in images]
        # Padded to one number of rows, so that the embedding of an image does not depend on how many there are.
        batch = torch.stack([*inputs, *[inputs[-1]] * (self._batch_size - len(inputs))]).to(self._device)
        batch = batch.to(torch.float32 if self._device == "cpu" else torch.bfloat16)
        with torch.inference_mode():
            return list(unit_rows(self._model.encode_image(batch).float().cpu().numpy()))[: len(images)]


@lru_cache(maxsize=2)
def load_clip_model(model: str, pretrained: str, revision: str, gpu: bool, batch_size: int) -> ClipModel:
    """Load a model of open_clip. Raises `RunError` if it cannot be loaded, or if there is no GPU for it."""
    import torch

    if gpu and not torch.cuda.is_available():
        raise RunError("gpus is over 0, but torch sees no GPU; set gpus to 0")
    device = "cuda" if gpu else "cpu"
    try:
        loaded = load_clip(model, pretrained, revision, "bfloat16" if gpu else "float32", device)
    except EngineError as error:
        raise RunError(str(error)) from error
    return ClipModel(*loaded, device, batch_size)


def unit_rows(vectors_ND: NDArray[Any]) -> Float32Array:
    """Return the rows divided by their length, `[N, D]` float32. Raises `ValueError` if a length is 0 or not finite."""
    wide = np.asarray(vectors_ND, np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=-1, keepdims=True))
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("an embedding is zero or not finite")
    return np.asarray(wide / lengths, np.float32)


def dot(a_D: Float32Array, b_D: Float32Array) -> float:
    """Return the sum of products in float64, added in one order, so that it is the same on every machine."""
    return float((a_D.astype(np.float64) * b_D).sum())
