"""The contract of a denoising network: its inputs and outputs. Besides names of types it imports torch alone."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from cluster.arrays import Pixels

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width.


InitialiseWeight = Callable[[nn.Parameter, str], None]
"""Fills a weight with its initial values, given the weight and its name."""


@dataclass(frozen=True)
class Condition:
    """The inputs of a denoising network besides the latents, one entry per sample. All tensors are on the model's
    device.
    """

    texts: Sequence[Tensor]
    """Unpadded text embeddings `[N, E]`, each with its own length N >= 1."""
    times: Sequence[Tensor]
    """Noise level `[T]` of every latent frame, 0 (clean) to 1 (noise); frames of one sample may differ."""
    conditioning_masks: Sequence[Tensor]
    """Conditioning mask `[T]`: 1.0 for conditioning frames, 0.0 for latent frames that the model generates."""
    seconds: Sequence[Tensor]
    """Presentation time `[T]` of every latent frame in seconds, see `training.step.latent_seconds`. It distinguishes a
    frame that was encoded alone as an image from a latent frame that covers several."""
    fps_B: Tensor
    """Frames per second of the video in pixels."""
    size_B2: Tensor
    """Width and height in pixels."""
    crop_B2: Tensor
    """Shares of the source's width and height that were cropped away at the left and at the top, in [0, 1); see
    `training.framing`."""
    source_B2: Tensor
    """Width and height of the source in pixels."""
    guidance: float = 1.0
    """Guidance scale that a network with `takes_guidance` is told; 1 in training."""
    images: Sequence[Tensor] = ()
    """Latents `[C', T, H, W]` of each video's first frame followed by grey, for a network with `image_channels`; empty
    for others."""
    image_tokens: Sequence[Tensor] = ()
    """Embeddings `[N', E']` of each video's first frame, see `VideoModel.embed_image`. If they are empty, as in
    training, a network that takes them computes them from `images`."""

    def to(self, device: torch.device | str) -> Condition:
        """Return the condition on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else [one.to(device) for one in value]
            for name, value in vars(self).items()
            if name != "guidance"
        }
        return replace(self, **moved)

    def select(self, samples: Sequence[int]) -> Condition:
        """Return the condition of the samples with these indices, in this order."""

        def of(values: Sequence[Tensor]) -> list[Tensor]:
            return [values[sample] for sample in samples]

        rows = list(samples)
        return Condition(
            of(self.texts),
            of(self.times),
            of(self.conditioning_masks),
            of(self.seconds),
            self.fps_B[rows],
            self.size_B2[rows],
            self.crop_B2[rows],
            self.source_B2[rows],
            self.guidance,
            of(self.images) if self.images else (),
            of(self.image_tokens) if self.image_tokens else (),
        )


class VideoModel(nn.Module, abc.ABC):
    """A network that maps a pack of noisy latents and their condition to one prediction per latent, of the latent's
    shape.

    Samples of a pack may differ in T, H, W and in the length of their text. Up to rounding, a sample's prediction
    depends neither on the other samples nor on their order.
    """

    draws_random_numbers = False
    """Whether blocks draw random numbers in training, as the dropout of an adapter does: a backward pass that computes
    a block again must draw the same ones."""

    @abc.abstractmethod
    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        """Return a float32 prediction per latent `[C, T, H, W]`, of the same shape; T, H and W may be any size."""

    @abc.abstractmethod
    def weight_initialiser(self) -> InitialiseWeight:
        """Return a function that fills a weight with its initial values, given the weight and its name.

        The values depend on the name and on one draw from torch's global random state. So a model that was built under
        `torch.device("meta")`, and then got memory as a whole or weight by weight, starts like one that was built in
        memory.
        """

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the matrices between hidden layers, which the optimizer `muon` updates as matrices.

        These are the weights with two axes in lists of repeated blocks that train, without tables.
        """
        return [
            weight
            for module in self.modules()
            if isinstance(module, nn.ModuleList)
            for name, weight in module.named_parameters()
            if weight.requires_grad and weight.ndim == 2 and "table" not in name
        ]

    def embed_image(self, image_HWC: Pixels) -> Tensor | None:
        """Return the embeddings `[N', E']` of an RGB image of 8 bits, on the model's device, for a network that takes
        those of a video's first frame besides its latents; None for others.
        """
        return None

    def enable_context_parallel(self, group: dist.ProcessGroup) -> None:
        """Share the tokens of each pack with the other ranks of a group from now on; all of them must be called with
        the same packs.

        Each rank predicts the whole pack. If every rank computes the same loss, the backward pass counts it once per
        rank, and the ranks' gradients add up to the gradient of that sum. Called only if the model's settings pass
        `check_context_parallel`.
        """
        raise NotImplementedError(type(self).__name__)

    def compile_for_sampling(self) -> None:
        """Compile the repeated blocks by `torch.compile` for all forward passes from now on that are not training.

        It does nothing the second time.
        """
        raise NotImplementedError(type(self).__name__)

    def initialise(self) -> None:
        """Fill all weights, which must have memory."""
        initialise_weight = self.weight_initialiser()
        for name, parameter in self.named_parameters():
            initialise_weight(parameter, name)


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by its name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that train with their names: those that require a gradient."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
