"""The contract of a family of published transformers: how one class of diffusers is called as its own pipeline does."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from training.models._dit_architecture import Architecture, flops

if TYPE_CHECKING:
    # Every command reads settings, and importing torch takes 2 s.
    from torch import Tensor

    from training.network import Condition
    from training.objective import ObjectiveSettings

Config = Mapping[str, Any]
"""Content of a config file of diffusers."""

IN_PLACE = frozenset(("none", "first", "prefix", "suffix", "middle", "ends"))
"""Kinds of conditioning whose frames stay at their places. The others append a last-frame latent, for which published
models have no place."""


@dataclass(frozen=True)
class Published:
    """The configurations of a published model, which decide how its transformer is built and called."""

    transformer: Config
    """`config.json` of the transformer."""
    pipeline: Config = field(default_factory=dict)
    """`model_index.json`."""
    scheduler: Config = field(default_factory=dict)
    """`scheduler_config.json`."""
    image_encoder: Config = field(default_factory=dict)
    """`config.json` of CLIP's vision model, if the network sees the first frame through it."""
    connectors: Config = field(default_factory=dict)
    """`config.json` of the networks between text encoder and transformer, if the family has them."""
    subfolder: str = "transformer"
    """Folder of the transformer in that of the pipeline."""

    @property
    def boundary(self) -> float | None:
        """Noise level from which on a first transformer predicts, and a second one below it; None if one does at
        all.
        """
        ratio = self.pipeline.get("boundary_ratio")
        return None if ratio is None else float(ratio)


@dataclass(frozen=True)
class TextRule:
    """How a family's pipeline encodes text, as settings of one of our text encoders."""

    name: str
    """Name of the encoder."""
    max_tokens: int
    """Most tokens of a text."""
    options: tuple[tuple[str, Any], ...]
    """Settings besides its folders that embeddings depend on."""
    folders: Mapping[str, str]
    """Folder of the pipeline by the setting that names it."""
    pooled_tokens: int = 0
    """Tokens before those of the text that hold vectors of all of it."""

    @property
    def weight_folders(self) -> tuple[str, ...]:
        """The folders with weights."""
        return tuple(folder for folder in self.folders.values() if not folder.startswith("tokenizer"))


def t5_rule(max_tokens: int, cleaning: str, padded: bool, keep_padding: bool = False) -> TextRule:
    """Return the rule of a pipeline whose texts are encoded by T5 or UMT5."""
    options: tuple[tuple[str, Any], ...] = (("max_tokens", max_tokens), ("cleaning", cleaning), ("padded", padded))
    if keep_padding:
        options += (("keep_padding", True),)
    return TextRule("t5", max_tokens, options, {"model": "text_encoder", "tokenizer": "tokenizer"})


class Family(abc.ABC):
    """One class of diffusers and the conventions of its pipelines."""

    class_name: ClassVar[str]
    """Class of the transformer in diffusers."""
    pipelines: ClassVar[tuple[str, ...]]
    """Pipelines whose conventions are kept."""
    text: ClassVar[TextRule]
    feed_forward: ClassVar[tuple[str, ...]]
    """Last parts of the names of the linear layers of feed-forward networks."""
    attention: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Last parts of the names of the linear layers of attention."""
    has_original_names: ClassVar[bool] = False
    """Whether `original_name` knows the names of the model's authors."""
    left_out: ClassVar[tuple[str, ...]] = ()
    """Parts of the names of weights of the published transformer that neither train nor predict here."""
    connects_texts: ClassVar[bool] = False
    """Whether texts pass through a network that does not train before the transformer; see `TextConnector`."""

    @abc.abstractmethod
    def architecture(self, config: Config) -> Architecture:
        """Return the sizes that a transformer's configuration states."""

    @abc.abstractmethod
    def objective(self, published: Published) -> ObjectiveSettings:
        """Return the objective with the noise levels of the published scheduler."""

    @abc.abstractmethod
    def kinds(self, published: Published) -> frozenset[str]:
        """Return the kinds of conditioning that the network can be trained with."""

    def image_channels(self, config: Config) -> int:
        """Return the number of channels of the image condition; see `ModelSettings.image_channels`."""
        return 0

    def sees_image(self, config: Config) -> bool:
        """Return whether the network also takes CLIP's embeddings of the first frame; see `Condition.image_tokens`."""
        return False

    def flops(self, config: Config, tokens: int, text_tokens: int) -> int:
        """Return the floating-point operations of one sample's forward pass, by default those of cross-attention."""
        own = self.architecture(config)
        return flops(own.size, own.hidden, tokens, text_tokens)

    def takes_guidance(self, config: Config) -> bool:
        """Return whether the network is told a guidance scale; see `Condition.guidance`."""
        return False

    def check(self, published: Published) -> None:  # noqa: B027
        """Raise `ValueError` for a variant whose inputs training cannot give."""

    def original_name(self, name: str) -> str:
        """Return the name that a weight of the transformer has in the files of its authors, which ComfyUI reads.

        Raises `ValueError` if the names of the family are not known here.
        """
        raise ValueError(f"the names that ComfyUI has for weights of {self.class_name} are not known here")

    def leaves_out(self, name: str) -> bool:
        """Return whether a weight of the published transformer neither trains nor predicts here; see `left_out`."""
        return any(part in name for part in self.left_out)

    def build(self, config: Config) -> Any:
        """Return the transformer of a configuration, without the weights that are left out."""
        import diffusers

        return getattr(diffusers, self.class_name).from_config(dict(config))

    def prepare(self, transformer: Any) -> None:  # noqa: B027
        """Replace parts of a new transformer that would not survive `torch.device("meta")` or bfloat16."""

    def check_texts(self, texts: Sequence[Tensor]) -> None:
        """Raise `ValueError` for a text `[N, E]` of more tokens than the family takes, or of no token."""
        lengths = [len(text_NE) - self.text.pooled_tokens for text_NE in texts]
        longest, most = max(lengths), self.text.max_tokens
        if longest > most:
            raise ValueError(
                f"a text has {longest} tokens, and {type(self).__name__} takes {most}; set max_tokens: {most}"
            )
        if min(lengths) < 1:
            raise ValueError(f"a text has no tokens; encode texts by {self.text.name}, as {type(self).__name__} does")

    @abc.abstractmethod
    def predict(self, transformer: Any, latents_BCTHW: Tensor, condition: Condition, published: Published) -> Tensor:
        """Return the prediction `[B, C, T, H, W]` for latents of one shape, in the transformer's type."""
