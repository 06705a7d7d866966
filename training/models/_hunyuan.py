"""HunyuanVideo (`HunyuanVideoTransformer3DModel`), called as `HunyuanVideoPipeline` does.

Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.models._dit_architecture import Architecture, Size, joint_flops
from training.models._family import Config, Family, Published, TextRule
from training.objectives.flow_matching import FlowMatching

if TYPE_CHECKING:
    from torch import Tensor

    from training.network import Condition


class HunyuanVideo(Family):
    """HunyuanVideo of text to video, which attends to text and latents together, and is told a guidance scale.

    The first token of a text is CLIP's pooled vector, as the encoder `llama_clip` puts it there.
    """

    class_name = "HunyuanVideoTransformer3DModel"
    pipelines = ("HunyuanVideoPipeline",)
    text = TextRule(
        "llama_clip",
        max_tokens=256,
        options=(("max_tokens", 256),),
        folders={
            "model": "text_encoder",
            "tokenizer": "tokenizer",
            "clip": "text_encoder_2",
            "clip_tokenizer": "tokenizer_2",
        },
        pooled_tokens=1,
    )
    feed_forward = ("ff.net.0.proj", "ff.net.2")

    def architecture(self, config: Config) -> Architecture:
        heads = config["num_attention_heads"]
        dim = heads * config["attention_head_dim"]
        size = Size(config["num_layers"] + config["num_single_layers"], dim, heads)
        patch = (config["patch_size_t"], config["patch_size"], config["patch_size"])
        hidden = int(config["mlp_ratio"] * dim)
        return Architecture(size, hidden, patch, config["out_channels"], config["text_embed_dim"])

    def flops(self, config: Config, tokens: int, text_tokens: int) -> int:
        own = self.architecture(config)
        return joint_flops(own.size, own.hidden, tokens + text_tokens)

    def objective(self, published: Published) -> FlowMatching:
        return FlowMatching(shift=float(published.scheduler.get("shift") or 1.0))

    def kinds(self, published: Published) -> frozenset[str]:
        return frozenset(("none",))

    def takes_guidance(self, config: Config) -> bool:
        return bool(config["guidance_embeds"])

    def check(self, published: Published) -> None:
        config = published.transformer
        if config.get("image_condition_type") is not None or config["in_channels"] != config["out_channels"]:
            raise ValueError(
                f"the transformer takes {config['in_channels']} channels for {config['out_channels']} of latents, with "
                f"image_condition_type {config.get('image_condition_type')}: it is of HunyuanVideo image to video, "
                "which is not trained here; take the model of text to video"
            )

    def predict(self, transformer: Any, latents_BCTHW: Tensor, condition: Condition, published: Published) -> Tensor:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        pooled_dim, dtype = transformer.config.pooled_projection_dim, latents_BCTHW.dtype
        time_B = torch.stack([time_T[0] for time_T in condition.times])
        guidance_B = torch.full_like(time_B, 1000 * condition.guidance)
        text_BNE = pad_sequence([text_NE[1:] for text_NE in condition.texts], batch_first=True)
        ones = [text_NE.new_ones(len(text_NE) - 1) for text_NE in condition.texts]
        (prediction,) = transformer(
            hidden_states=latents_BCTHW,
            timestep=1000 * time_B,
            encoder_hidden_states=text_BNE.to(dtype),
            encoder_attention_mask=pad_sequence(ones, batch_first=True),
            pooled_projections=torch.stack([text_NE[0, :pooled_dim] for text_NE in condition.texts]).to(dtype),
            guidance=guidance_B if self.takes_guidance(published.transformer) else None,
            return_dict=False,
        )
        result: Tensor = prediction
        return result
