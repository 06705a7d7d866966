"""Model `diffusers`: a published video transformer of the library diffusers, from a folder or from the hub."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cluster import weight_files
from cluster.weight_files import HUB_PREFIX
from training.conditioning import ConditioningRates
from training.model import ModelSettings
from training.models._cogvideox import CogVideoX
from training.models._dit_architecture import Architecture
from training.models._family import Family, Published
from training.models._hunyuan import HunyuanVideo
from training.models._ltx import LTX
from training.models._ltx2 import LTX2
from training.models._published_files import CONNECTORS, IMAGE_ENCODER, IMAGE_PROCESSOR, VAE, PublishedFiles
from training.models._wan import Wan
from training.objective import ObjectiveSettings
from training.objectives.flow_matching import FlowMatching

if TYPE_CHECKING:
    # Every command reads settings, and importing torch takes 2 s.
    from training.network import VideoModel

Expert = Literal["high_noise", "low_noise"]
SUBFOLDERS: Mapping[Expert, str] = {"high_noise": "transformer", "low_noise": "transformer_2"}
"""Folder of an expert in that of a pipeline; a transformer at all noise levels is in the first one."""

FAMILIES: Mapping[str, Family] = {
    family.class_name: family for family in (Wan(), LTX(), LTX2(), HunyuanVideo(), CogVideoX())
}
"""Families by the class of their transformer."""


class Diffusers(ModelSettings):
    """Settings of a published model, which is trained on from its own weights and called as its pipeline calls it.

    docs/guides/published-models.md lists the families, and the data sets that suit them.
    """

    changeable_on_resume: ClassVar[frozenset[str]] = frozenset(("checkpointing",))
    mixes_shapes: ClassVar[bool] = False
    starts_from_itself: ClassVar[bool] = True

    name: str = "diffusers"
    path: str = Field(
        "",
        description="Folder of a whole pipeline, as save_pretrained writes it, or hf-hub:owner/name; it must be set.",
    )
    revision: str = Field(
        "main",
        min_length=1,
        description="Commit, tag or branch of hf-hub:owner/name. Give a commit, because a branch can change.",
    )
    expert: Expert | None = Field(
        None,
        description="Which expert of a model of two is trained, such as Wan 2.2 A14B: the one of high noise levels, or "
        "that of the low ones.",
    )
    checkpointing: Literal["none", "blocks"] = Field(
        "blocks", description="Blocks whose activations the backward pass recomputes, to save memory: none or all."
    )
    config: dict[str, dict[str, Any]] | None = Field(
        None,
        description="Content of the configurations in `path`; leave it out. Exports have it, so that they do not need "
        "the path.",
    )

    _absolute = field_validator("path")(weight_files.absolute)

    @model_validator(mode="after")
    def _read_and_check(self) -> Diffusers:
        if not find_spec("diffusers"):
            raise ValueError("model diffusers needs the package diffusers: pip install 'worldloom[models]'")
        if self.config is None:
            self._check_path()
            files = self.files
            config = {"pipeline": dict(files.config("model_index.json"))}
            self._check_expert(Published({}, config["pipeline"]))
            config["transformer"] = dict(files.config(f"{self.subfolder}/config.json"))
            config["scheduler"] = dict(files.config("scheduler/scheduler_config.json"))
            family = FAMILIES.get(config["transformer"].get("_class_name", ""))
            if family is not None and family.sees_image(config["transformer"]):
                config[IMAGE_ENCODER] = dict(files.config(f"{IMAGE_ENCODER}/config.json"))
                for name in (f"{IMAGE_PROCESSOR}/preprocessor_config.json", f"{VAE}/config.json"):
                    files.config(name)  # which are needed in training too
            if family is not None and family.connects_texts:
                config[CONNECTORS] = dict(files.config(f"{CONNECTORS}/config.json"))
            # Settings are frozen only after this.
            object.__setattr__(self, "config", config)
        class_name = self.published.transformer.get("_class_name", "")
        if class_name not in FAMILIES:
            raise ValueError(
                f"path {self.path}: its transformer is of class '{class_name}', whose conventions are not known here; "
                f"take a model of {', '.join(FAMILIES)}"
            )
        pipeline = self.published.pipeline.get("_class_name", "")
        if pipeline not in self.family.pipelines:
            raise ValueError(
                f"path {self.path}: model_index.json names {pipeline}, whose conventions are not known here; take a "
                f"model of {' or '.join(self.family.pipelines)}"
            )
        try:
            self.family.check(self.published)
        except ValueError as error:
            raise ValueError(f"path {self.path}: {error}") from error
        return self

    def _check_path(self) -> None:
        if not self.path:
            raise ValueError(
                "path is not set; name the folder of the published pipeline: --set train.model.path=FOLDER, or "
                f"{HUB_PREFIX}owner/name"
            )
        if self.path.startswith(HUB_PREFIX):
            if len(self.path.removeprefix(HUB_PREFIX).split("/")) != 2:
                raise ValueError(f"path {self.path}: write {HUB_PREFIX}owner/name")
        elif not weight_files.is_path(self.path):
            raise ValueError(f"path {self.path}: write a path with a slash (./{self.path}), or {HUB_PREFIX}owner/name")

    def _check_expert(self, published: Published) -> None:
        ratio = published.pipeline.get("boundary_ratio")
        if ratio is None and any(published.pipeline.get("transformer_2") or ()):
            raise ValueError(
                f"path {self.path}: model_index.json names a transformer_2 and no boundary_ratio, the noise level "
                "between two experts; put it back, which is 0.875 for Wan 2.2 T2V-A14B and 0.9 for I2V-A14B"
            )
        if ratio is not None and not (isinstance(ratio, int | float) and 0 < ratio < 1):
            raise ValueError(
                f"path {self.path}: model_index.json has boundary_ratio {ratio}, and must have a noise level between 0 "
                "and 1; put back the file as it was published"
            )
        if published.boundary is None and self.expert is not None:
            raise ValueError(
                f"path {self.path}: one transformer predicts at all noise levels, and expert is {self.expert}; leave "
                "out expert"
            )
        if published.boundary is not None and self.expert is None:
            raise ValueError(
                f"path {self.path}: the model is of two experts, one from noise level {published.boundary:g} on and "
                "one below it; set expert: high_noise or expert: low_noise, and train one after the other"
            )

    @property
    def subfolder(self) -> str:
        """Folder of the transformer in that of the pipeline."""
        return SUBFOLDERS[self.expert or "high_noise"]

    @property
    def other_expert(self) -> Expert:
        """The expert of a model of two that is not trained."""
        return "low_noise" if self.expert == "high_noise" else "high_noise"

    @property
    def boundary(self) -> float | None:
        return self.published.boundary

    @property
    def time_range(self) -> tuple[float, float]:
        """Lowest and highest noise level that the transformer predicts at."""
        if self.boundary is None:
            return 0.0, 1.0
        return (self.boundary, 1.0) if self.expert == "high_noise" else (0.0, self.boundary)

    @property
    def published(self) -> Published:
        """The configurations of the model."""
        assert self.config is not None, "validation fills it"
        return Published(**self.config, subfolder=self.subfolder)

    @property
    def family(self) -> Family:
        """The family of the model."""
        return FAMILIES[self.published.transformer["_class_name"]]

    @property
    def architecture(self) -> Architecture:
        """The sizes of the transformer."""
        return self.family.architecture(self.published.transformer)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns per token."""
        return self.architecture.patch

    @property
    def files(self) -> PublishedFiles:
        """The files that the model was published as."""
        return PublishedFiles(self.path, self.revision)

    def build(self, channels: int, text_dim: int) -> VideoModel:
        """Return the model as `ModelSettings.build` does.

        Raises `ValueError` if it was published for other latents or texts.
        """
        # Imports torch, which readers of settings need not wait for.
        from training.models._image_encoder import ImageEncoder
        from training.models._published_network import PublishedTransformer
        from training.models._text_connector import TextConnector

        own = self.architecture
        for what, found, wanted in (
            ("channels of latents", channels, self.latent_channels),
            ("as width of text tokens", text_dim, own.text_dim),
        ):
            if found != wanted:
                raise ValueError(
                    f"the data set has {found} {what}, and {self.path} takes {wanted}; encode it with the model's own "
                    "autoencoder and text encoder (docs/guides/published-models.md)"
                )
        image_encoder = ImageEncoder(self.files) if self.sees_image else None
        connector = TextConnector(self.files, self.family.text.max_tokens) if self.family.connects_texts else None
        recomputes = self.checkpointing == "blocks"
        return PublishedTransformer(self.family, self.published, recomputes, image_encoder, connector)

    def tokens(self, frames: int, height: int, width: int) -> int:
        return math.prod(-(-size // patch) for size, patch in zip((frames, height, width), self.patch, strict=True))

    def flops(self, tokens: int, text_tokens: int) -> int:
        return self.family.flops(self.published.transformer, tokens, text_tokens)

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        return self.family.attention + self.family.feed_forward

    @property
    def takes_guidance(self) -> bool:
        return self.family.takes_guidance(self.published.transformer)

    @property
    def image_channels(self) -> int:
        return self.family.image_channels(self.published.transformer)

    @property
    def sees_image(self) -> bool:
        """Whether the network also takes CLIP's embeddings of the first frame."""
        return self.family.sees_image(self.published.transformer)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents of a data set for this model."""
        return self.architecture.channels + self.image_channels

    @property
    def recompute_share(self) -> float:
        return 1.0 if self.checkpointing == "blocks" else 0.0

    def default_objective(self) -> ObjectiveSettings:
        own = self.family.objective(self.published)
        return own if self.boundary is None else own.model_copy(update={"time_range": self.time_range})

    def default_conditioning(self) -> ConditioningRates:
        kinds = self.conditioning_kinds()
        return ConditioningRates(none=0.8, first=0.2) if "first" in kinds else ConditioningRates(none=1.0)

    def conditioning_kinds(self) -> frozenset[str]:
        return self.family.kinds(self.published)

    def check_objective(self, objective: ObjectiveSettings) -> None:
        if not isinstance(own := self.default_objective(), FlowMatching):
            if objective != own:
                raise ValueError(
                    f"objective {objective.name}: {self.path} predicts at the noise levels of its own scheduler; leave "
                    "out objective"
                )
            return
        if not isinstance(objective, FlowMatching) or objective.target != "v":
            target = f", target {objective.target}" if isinstance(objective, FlowMatching) else ""
            raise ValueError(
                f"objective {objective.name}{target}: {self.path} predicts the velocity of flow matching; leave out "
                "objective, or set objective: {name: flow_matching, target: v}"
            )
        (low, high), (own_low, own_high) = objective.time_range, self.time_range
        if low < own_low or high > own_high:
            raise ValueError(
                f"objective.time_range [{low:g}, {high:g}]: expert {self.expert} of {self.path} predicts at noise "
                f"levels {own_low:g} to {own_high:g}; set objective.time_range: [{own_low:g}, {own_high:g}]"
            )
