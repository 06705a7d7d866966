"""Engine `transformers`: chat models of the package transformers, for images, video or text."""

from __future__ import annotations

import json

from pydantic import Field

from captioning.engine import Captioner, CaptionerSettings, EngineError
from captioning.engines._chat_settings import ChatModelSettings
from cluster import weight_files
from cluster.resources import Resources
from cluster.weight_files import HUB_PREFIX

VERSION = 1


class Transformers(ChatModelSettings, CaptionerSettings):
    """A chat model with vision (Qwen2.5-VL, Qwen3-VL, SmolVLM2, LLaVA-OneVision), or a text model that rewrites.

    The configuration of the model decides which of the two it is. Its own chat template formats the questions.
    """

    name: str = "transformers"
    batch_size: int = Field(
        8, ge=1, le=1024, description="Questions answered together; halved whenever they do not fit in memory."
    )

    def resources(self) -> Resources:
        return Resources(gpus=self.gpus)

    def identity(self) -> str:
        is_on_hub = self.model.startswith(HUB_PREFIX)
        weights = f"{self.model}@{self.revision}" if is_on_hub else weight_files.identity(self.model)
        changed = self.model_dump(include={"inputs", "max_pixels", "processor", "template"}, exclude_defaults=True)
        words = [f"{self.name}-v{VERSION}", weights, self.precision, "gpu" if self.gpus else "cpu"]
        return " ".join(words + [json.dumps(changed, sort_keys=True)] * bool(changed))

    def open(self) -> Captioner:
        try:
            import transformers  # noqa: F401  checks that the package is there before a model is looked for
        except ImportError as error:
            raise EngineError(
                f"engine {self.name} needs the package transformers ({error}): pip install 'worldloom[models]'"
            ) from error
        from captioning.engines import _chat_captioner, _chat_model

        return _chat_captioner.ChatCaptioner(_chat_model.load(self), self.batch_size)
