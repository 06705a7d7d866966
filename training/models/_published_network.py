"""The network of a published model: a transformer of diffusers behind the contract of a `VideoModel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from cluster.arrays import Pixels
from training.models._dit_network import initialise_weight
from training.models._family import Family, Published
from training.models._image_encoder import ImageEncoder
from training.models._text_connector import TextConnector
from training.network import Condition, VideoModel


class PublishedTransformer(VideoModel):
    """A transformer of diffusers, whose weights are named `transformer.` as in LoRA files of its pipelines."""

    def __init__(
        self,
        family: Family,
        published: Published,
        recomputes: bool,
        image_encoder: ImageEncoder | None = None,
        text_connector: TextConnector | None = None,
    ) -> None:
        """Build the transformer of a configuration; the backward pass recomputes its blocks if `recomputes`."""
        super().__init__()
        self.family, self.published = family, published
        self._is_compiled, self._image_encoder, self._text_connector = False, image_encoder, text_connector
        self.transformer = family.build(published.transformer)
        family.prepare(self.transformer)
        if recomputes:
            self.transformer.enable_gradient_checkpointing()

    def weight_initialiser(self) -> Callable[[nn.Parameter, str], None]:
        return partial(initialise_weight, model_seed=int(torch.randint(2**62, (), device="cpu")))

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        """Return a float32 prediction `[C, T, H, W]` per latent; latents of one shape are computed together.

        Raises `ValueError` for sides that the patch does not divide, and for texts that are too long.
        """
        self.family.check_texts(condition.texts)
        if self._image_encoder is not None and not condition.image_tokens:
            tokens = [self._image_encoder.embed_latents(image_CTHW) for image_CTHW in condition.images]
            condition = replace(condition, image_tokens=tokens)
        dtype = next(self.transformer.parameters()).dtype
        if self._text_connector is not None:
            condition = replace(condition, texts=self._text_connector.connect(condition.texts, dtype))
        by_shape: dict[torch.Size, list[int]] = {}
        for index, latent_CTHW in enumerate(latents):
            by_shape.setdefault(latent_CTHW.shape, []).append(index)
        predictions: dict[int, Tensor] = {}
        for shape, indices in by_shape.items():
            self._check_shape(shape)
            batch_BCTHW = torch.stack([latents[index] for index in indices])
            prediction_BCTHW = self.family.predict(
                self.transformer, batch_BCTHW.to(dtype), condition.select(indices), self.published
            )
            predictions |= zip(indices, prediction_BCTHW.to(torch.float32), strict=True)
        return [predictions[index] for index in range(len(latents))]

    def embed_image(self, image_HWC: Pixels) -> Tensor | None:
        if self._image_encoder is None:
            return None
        return self._image_encoder.embed(image_HWC, next(self.transformer.parameters()).device)

    def compile_for_sampling(self) -> None:
        if not self._is_compiled:
            self.transformer.compile_repeated_blocks(dynamic=True)
            self._is_compiled = True

    def _check_shape(self, shape: torch.Size) -> None:
        patch = self.family.architecture(self.published.transformer).patch
        if any(side % part for side, part in zip(shape[1:], patch, strict=True)):
            raise ValueError(
                f"latents of {list(shape[1:])} frames, rows and columns cannot be cut into patches of {list(patch)}; "
                "set multiple of the buckets to a larger power of 2, or take another size of sample"
            )
