"""Settings of a low-rank adapter: the key `adapter` of the section `train`. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from cluster import weight_files
from cluster.config import Settings
from training.model import ModelSettings

ADAPTER_CONFIG = "adapter_config.json"
"""File beside an adapter's weights with their settings, as peft has them."""


class AdapterSettings(Settings):
    """Settings of a LoRA (Hu et al. 2021): a layer's weight W becomes W + alpha / rank * B A, and only A and B train.

    Names and defaults are those of peft and of the scripts of diffusers.
    """

    rank: int = Field(16, ge=1, le=1024, description="Rows of A and columns of B; 16 to 64 suit most footage.")
    alpha: int | None = Field(
        None, ge=1, description="Scale of the change, times rank; by default the rank, which is a scale of 1."
    )
    targets: tuple[Annotated[str, StringConstraints(min_length=1)], ...] | None = Field(
        None,
        min_length=1,
        description="Last parts of the names of the linear layers that change, such as query or feed_forward.0; by "
        "default those of the model's attention and feed-forward layers.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the inputs of A that are set to 0 in each step, against learning few clips by heart.",
    )
    init: str | None = Field(
        None,
        min_length=1,
        description="Trained LoRA that training starts from, a safetensors file with the names of diffusers, ComfyUI "
        "or kohya's trainers; without it, from no change.",
    )
    base_bits: Literal[4, 8] | None = Field(
        None,
        description="Bits of the frozen weights of the changed layers in training, for less memory: 8, or 4 (NF4 of "
        "QLoRA, Dettmers et al. 2023). Sampling takes the weights as they are.",
    )
    dora: bool = Field(
        False,
        description="Also train the norm of each row of the changed weights (DoRA, Liu et al. 2024); slower, and "
        "better at low ranks.",
    )

    _absolute = field_validator("init")(weight_files.absolute_or_none)

    @model_validator(mode="after")
    def _consistent(self) -> AdapterSettings:
        if self.init is not None and self.dora:
            raise ValueError("init is a LoRA, which has no norms of rows to start DoRA from; set dora: false")
        if self.base_bits is not None and self.dora:
            raise ValueError("DoRA computes norms of the frozen weights in each step; leave out base_bits or dora")
        return self

    def resolved(self, model: ModelSettings) -> AdapterSettings:
        """Return the settings with alpha, and with the targets that the model gives as default.

        Raises `ValueError` if there are none.
        """
        targets = self.targets or model.adapter_targets
        if not targets:
            raise ValueError(
                f"adapter: model {model.name} names no layers to adapt by default; "
                "set adapter.targets to names of its linear layers"
            )
        return self.model_copy(update={"alpha": self.alpha or self.rank, "targets": targets})
