"""LTX-2 and 2.3 (`LTX2VideoTransformer3DModel`) without sound, called as `LTX2Pipeline` does with isolated modalities.

Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.models._dit_architecture import Architecture, Size
from training.models._family import IN_PLACE, Config, Family, Published, TextRule
from training.models._ltx import MLP_RATIO, shifted_by_tokens
from training.objectives.flow_matching import FlowMatching

if TYPE_CHECKING:
    from torch import Tensor

    from training.network import Condition

TEXT_TOKENS = 1024
"""Length to which learned registers fill up texts. They are attended to."""
TEXT_ENCODER = "Gemma3ForConditionalGeneration"
SERVED = {"use_keyframes_abs_pos_embedding": False, "use_prompt_adaln_single": True}
"""Settings of LTX-2 and 2.3, of which later models have others."""


class LTX2(Family):
    """The video part of LTX-2 of text and image to video; every frame has a noise level of its own."""

    class_name = "LTX2VideoTransformer3DModel"
    pipelines = ("LTX2Pipeline", "LTX2ImageToVideoPipeline")
    text = TextRule(
        "gemma",
        max_tokens=TEXT_TOKENS,
        options=(("max_tokens", TEXT_TOKENS),),
        folders={"model": "text_encoder", "tokenizer": "tokenizer", "connectors": "connectors"},
    )
    feed_forward = ("ff.net.0.proj", "ff.net.2")
    # Shorter names are also those of layers of sound, which a LoRA would change in the pipeline.
    attention = tuple(
        f"{layer}.{part}" for layer in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")
    )
    # The weights of sound, and of attention between video and sound.
    left_out = ("audio", "a2v", "av_cross_attn")
    connects_texts = True

    def architecture(self, config: Config) -> Architecture:
        heads = config["num_attention_heads"]
        dim = heads * config["attention_head_dim"]
        patch = (config.get("patch_size_t", 1), config.get("patch_size", 1), config.get("patch_size", 1))
        # LTX-2.3 projects texts before the transformer alone.
        text_key = "caption_channels" if config.get("use_prompt_embeddings", True) else "cross_attention_dim"
        size = Size(config["num_layers"], dim, heads)
        return Architecture(size, MLP_RATIO * dim, patch, config["out_channels"], config[text_key])

    def flops(self, config: Config, tokens: int, text_tokens: int) -> int:
        return super().flops(config, tokens, TEXT_TOKENS)

    def objective(self, published: Published) -> FlowMatching:
        # The defaults are those of LTX2Pipeline.
        return shifted_by_tokens(published.scheduler, tokens=(1024, 4096), log=(0.95, 2.05))

    def kinds(self, published: Published) -> frozenset[str]:
        return IN_PLACE

    def check(self, published: Published) -> None:
        config, connectors = published.transformer, published.connectors
        own = self.architecture(config)
        if own.patch != (1, 1, 1):
            raise ValueError(f"the transformer has patches of {list(own.patch)}, and published models have [1, 1, 1]")
        for key, value in SERVED.items():
            if config.get(key, value) != value:
                raise ValueError(f"the transformer has {key} {config[key]}, which LTX-2.5 has; take LTX-2 or LTX-2.3")
        encoder = (published.pipeline.get("text_encoder") or [None, TEXT_ENCODER])[1]
        if encoder != TEXT_ENCODER:
            raise ValueError(f"its text encoder is {encoder}, and known here is {TEXT_ENCODER}; take LTX-2 or LTX-2.3")
        registers = connectors.get("video_connector_num_learnable_registers", 128)
        if not registers or TEXT_TOKENS % registers:
            raise ValueError(
                f"connectors/config.json has video_connector_num_learnable_registers {registers}, which must divide "
                f"{TEXT_TOKENS}; put back the file as it was published"
            )
        heads = connectors.get("video_connector_num_attention_heads", 30)
        width = heads * connectors.get("video_connector_attention_head_dim", 128)
        if width != own.text_dim:
            raise ValueError(
                f"the connectors make texts of width {width}, and the transformer takes {own.text_dim}; put back the "
                "folders connectors and transformer of one model"
            )

    def build(self, config: Config) -> Any:
        from training.models._ltx2_network import VideoPart

        return VideoPart(super().build(config))

    def predict(self, transformer: Any, latents_BCTHW: Tensor, condition: Condition, published: Published) -> Tensor:
        import torch

        time_BT = torch.stack(list(condition.times))
        # The noise level of the frames that are generated, which 2.3 also tells the texts.
        generated_BT = 1 - torch.stack(list(condition.conditioning_masks))
        result: Tensor = transformer(
            latents_BCTHW,
            1000 * time_BT,
            1000 * (time_BT * generated_BT).amax(dim=1),
            torch.stack(list(condition.texts)).to(latents_BCTHW.dtype),
            condition.fps_B,
        )
        return result
