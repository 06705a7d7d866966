"""The contract of a denoising network: what it takes and returns. Resources nothing but torch."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width.


@dataclass(frozen=True)
class Condition:
    """What samples are denoised under, one entry a sample. Every tensor lies on the model's device."""

    texts: Sequence[Tensor]
    """Unpadded text embeddings `[N, E]`, each of its own length N >= 1."""
    times: Sequence[Tensor]
    """Noise level `[T]` of every latent frame, 0 (clean) to 1 (noise); frames of one sample may differ."""
    given: Sequence[Tensor]
    """`[T]`: 1.0 where a latent frame is given to the model, 0.0 where the model generates it."""
    seconds: Sequence[Tensor]
    """Presentation time `[T]` of every latent frame in seconds, see `training.step.latent_seconds`; it tells a picture that was encoded
    alone from a latent frame of several."""
    fps_B: Tensor
    """Frames a second of the pixels."""
    size_B2: Tensor
    """Width and height in pixels."""
    crop_B2: Tensor
    """Shares of the source's width and height that were cut away at the left and at the top, in [0, 1); see `training.framing`."""
    source_B2: Tensor
    """Width and height of the source in pixels."""


class VideoModel(nn.Module, abc.ABC):
    """A pack of noisy latents and their condition to a prediction of the same shape for each.

    Samples of a pack may differ in T, H, W and in the length of their text. What is predicted for one does not depend on the
    others, nor on their order, but for rounding.
    """

    @abc.abstractmethod
    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        """Latents `[C, T, H, W]` each, of any T, H, W, to float32 predictions of the same shapes."""

    @abc.abstractmethod
    def filler(self) -> Callable[[nn.Parameter, str], None]:
        """What fills a weight, given its name, with its initial numbers; they depend on that name and one draw of torch's global random state.

        So a model built under `torch.device("meta")` and then given memory, whole or weight by weight, starts as one that was built in
        memory.
        """

    def share_tokens(self, group: dist.ProcessGroup) -> None:
        """From now on share the tokens of each pack with the other ranks of a group, all of which are called with the same packs.

        Each predicts all of a pack. A loss that all of them compute counts once for each on the way back, and their gradients add up to the whole.
        Only models whose settings agree to `check_context` are asked.
        """
        raise NotImplementedError(type(self).__name__)

    def initialise(self) -> None:
        """Fill all weights, which have memory."""
        fill = self.filler()
        for name, parameter in self.named_parameters():
            fill(parameter, name)
