"""The contract of a model's settings: how a denoising network is chosen by name and built, and its FLOPs."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar, Self

from cluster.plugins import Plugin
from training.conditioning import KINDS, ConditioningRates
from training.memory import MicroBatchSize
from training.objective import ObjectiveSettings
from training.objectives.flow_matching import FlowMatching

if TYPE_CHECKING:
    # Every command reads settings, and importing torch takes 2 s.
    from training.network import VideoModel

FOLDER = "training.models"


class ModelSettings(Plugin):
    """Settings of a model, chosen by `name`. Each file in `training/models/` has one subclass."""

    changeable_on_resume: ClassVar[frozenset[str]] = frozenset()
    """Settings that choose how the model is computed and not its result: a run may resume with other values, and its
    losses change by rounding only."""

    mixes_shapes: ClassVar[bool] = True
    """Whether the model computes samples of several shapes in one forward pass at no extra cost. If not, each
    micro-batch has samples of one bucket, which leaves workers idle for longer; see docs/internals/batches.md."""

    starts_from_itself: ClassVar[bool] = False
    """Whether the model has weights of its own, which a run without `init` starts from."""

    @abc.abstractmethod
    def build(self, channels: int, text_dim: int) -> VideoModel:
        """Return a freshly initialised model for latents with `channels` channels and text tokens of width `text_dim`.

        Under `torch.device("meta")` it has no memory yet; see `VideoModel.initialise`.
        """

    @abc.abstractmethod
    def tokens(self, frames: int, height: int, width: int) -> int:
        """Return the number of tokens that a latent of this many frames, rows and columns becomes; noise schedules
        depend on it.
        """

    @abc.abstractmethod
    def flops(self, tokens: int, text_tokens: int) -> int:
        """Return the floating-point operations of one sample's forward pass; a multiplication and an addition count as
        two.
        """

    def check_context_parallel(self, parallel: int) -> None:
        """Raise `ValueError` if `parallel` workers cannot share a sample's tokens; see
        `VideoModel.enable_context_parallel`.
        """
        if parallel > 1:
            raise ValueError(
                f"context_parallel {parallel}: model {self.name} cannot share a sample's tokens among workers; "
                "set context_parallel: 1"
            )

    def default_objective(self) -> ObjectiveSettings:
        """Return the objective of training if the recipe sets none."""
        return FlowMatching()

    def default_conditioning(self) -> ConditioningRates:
        """Return the shares of conditioning if the recipe sets none."""
        return ConditioningRates()

    def conditioning_kinds(self) -> frozenset[str]:
        """Return the kinds of conditioning that the model can be trained with; see `ConditioningRates`."""
        return frozenset(KINDS)

    def check_objective(self, objective: ObjectiveSettings) -> None:
        """Raise `ValueError` if the model cannot be trained with this objective."""

    def check_conditioning(self, rates: ConditioningRates) -> None:
        """Raise `ValueError` if the model cannot be trained with one of these kinds of conditioning."""
        refused = sorted(rates.kinds() - self.conditioning_kinds())
        if refused:
            fix = ", ".join(f"{kind}: {share:g}" for kind, share in self.default_conditioning().shares().items())
            raise ValueError(
                f"conditioning {', '.join(refused)}: model {self.name} cannot be conditioned like this; leave out "
                f"conditioning, or set conditioning: {{{fix}}}"
            )

    def check_zero_stage(self, stage: int) -> None:
        """Raise `ValueError` if the model cannot be trained with this stage of ZeRO."""

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """Last parts of the names of the linear layers that an adapter changes by default, those of attention and
        feed-forward layers.
        """
        return ()

    @property
    def takes_guidance(self) -> bool:
        """Whether the network is told a guidance scale, because it was distilled from a guided one."""
        return False

    @property
    def image_channels(self) -> int:
        """Number of the last channels of a data set's latents that are not generated: they are the latents of a video's
        first frame followed by grey, on which the network is conditioned.
        """
        return 0

    @property
    def boundary(self) -> float | None:
        """Noise level at which sampling passes from one expert to another; None for one network at all levels."""
        return None

    @property
    def lacks_in_training(self) -> str:
        """Parts that samples need and training lacks, so that it makes no previews; empty if there are none."""
        if self.boundary is not None:
            return "both experts, and one of them is trained"
        return "images that videos begin with, and training has none" if self.image_channels else ""

    @property
    def recompute_share(self) -> float:
        """Share of `flops` that the backward pass computes a second time, for activations that the forward pass did not
        keep.
        """
        return 0.0

    def fitted(self, size: MicroBatchSize, item_bytes: int, state_bytes: int, device_bytes: int) -> Self:
        """Return these settings with the activation checkpointing that lets a micro-batch of this size fit into a
        device's memory beside `state_bytes`.

        `item_bytes` is the size of an activation. A model that does not know its activations returns itself. Raises
        `DeviceMemoryError` if the micro-batch does not fit.
        """
        return self

    def changes_from(self, other: ModelSettings) -> dict[str, Any]:
        """Return the settings that differ from those of another model, by name."""
        return {name: value for name, value in self if getattr(other, name, None) != value}
