"""Wan 2.1 and 2.2 (`WanTransformer3DModel`), called as `WanPipeline` and `WanImageToVideoPipeline` do.

Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, S tokens, N text tokens, E text
width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.models._dit_architecture import Architecture, Size
from training.models._family import IN_PLACE, Config, Family, Published, t5_rule
from training.models._wan_names import original_name
from training.objectives.flow_matching import FlowMatching

if TYPE_CHECKING:
    from torch import Tensor

    from training.network import Condition

TEXT_TOKENS = 512
"""Length to which texts are padded with zeros. Padding is attended to, so that it is part of the model."""
IMAGE_TOKENS = 257
"""Tokens of an image by CLIP: 16 x 16 patches and the class."""
MASK_CHANNELS = 4
"""Channels of image to video that say which frames are given: one for each frame that a latent frame covers."""


class Wan(Family):
    """Wan of text to video, of image to video with and without CLIP, and TI2V-5B (`expand_timesteps`), whose tokens
    have noise levels of their own.
    """

    class_name = "WanTransformer3DModel"
    pipelines = ("WanPipeline", "WanImageToVideoPipeline")
    text = t5_rule(TEXT_TOKENS, cleaning="html", padded=False)
    feed_forward = ("ffn.net.0.proj", "ffn.net.2")
    has_original_names = True

    def architecture(self, config: Config) -> Architecture:
        heads = config["num_attention_heads"]
        size = Size(config["num_layers"], heads * config["attention_head_dim"], heads)
        frames, rows, columns = config["patch_size"]
        return Architecture(
            size, config["ffn_dim"], (frames, rows, columns), config["out_channels"], config["text_dim"]
        )

    def objective(self, published: Published) -> FlowMatching:
        # UniPCMultistepScheduler has `flow_shift`, and FlowMatchEulerDiscreteScheduler `shift`.
        scheduler = published.scheduler
        return FlowMatching(shift=float(scheduler.get("flow_shift") or scheduler.get("shift") or 1.0))

    def kinds(self, published: Published) -> frozenset[str]:
        return IN_PLACE if published.pipeline.get("expand_timesteps") else frozenset(("none",))

    def image_channels(self, config: Config) -> int:
        return 0 if config["in_channels"] == config["out_channels"] else int(config["out_channels"])

    def sees_image(self, config: Config) -> bool:
        return config.get("image_dim") is not None

    def flops(self, config: Config, tokens: int, text_tokens: int) -> int:
        """Return the operations of the blocks, in which tokens of an image cost as much as those of text."""
        return super().flops(config, tokens, text_tokens + (IMAGE_TOKENS if self.sees_image(config) else 0))

    def check(self, published: Published) -> None:
        config = published.transformer
        latents, image = config["out_channels"], self.image_channels(config)
        if config["in_channels"] not in (latents, latents + MASK_CHANNELS + image):
            raise ValueError(
                f"the transformer takes {config['in_channels']} channels for {latents} of latents; text to video takes "
                f"{latents}, and image to video {2 * latents + MASK_CHANNELS}; take a model of these"
            )
        if self.sees_image(config):
            width = published.image_encoder.get("hidden_size")
            if config["image_dim"] != width or not image:
                raise ValueError(
                    f"the transformer takes {config['in_channels']} channels and embeddings of an image of width "
                    f"{config['image_dim']}, and image_encoder has {width}; put back the folders as they were published"
                )
            if config.get("pos_embed_seq_len") is not None:
                raise ValueError(
                    "pos_embed_seq_len is set: the transformer takes a first and a last image, which is not trained "
                    "here; take the model of a first image"
                )

    def original_name(self, name: str) -> str:
        return original_name(name)

    def prepare(self, transformer: Any) -> None:
        from training.models._wan_rotary import WanRotary

        transformer.rope = WanRotary.like(transformer.rope)

    def predict(self, transformer: Any, latents_BCTHW: Tensor, condition: Condition, published: Published) -> Tensor:
        import torch

        time_BT = 1000 * torch.stack(list(condition.times))
        timestep = time_BT[:, 0]
        if published.pipeline.get("expand_timesteps"):
            frames, rows, columns = transformer.config.patch_size
            per_frame = (latents_BCTHW.shape[3] // rows) * (latents_BCTHW.shape[4] // columns)
            timestep = time_BT[:, ::frames].repeat_interleave(per_frame, dim=1)
        hidden_BCTHW = latents_BCTHW
        if condition.images:
            mask_BCTHW = torch.zeros_like(latents_BCTHW[:, :1]).repeat(1, MASK_CHANNELS, 1, 1, 1)
            mask_BCTHW[:, :, 0] = 1
            image_BCTHW = torch.stack(list(condition.images)).to(latents_BCTHW.dtype)
            hidden_BCTHW = torch.cat((latents_BCTHW, mask_BCTHW, image_BCTHW), dim=1)
        tokens_BNE = torch.stack(list(condition.image_tokens)) if condition.image_tokens else None
        (prediction,) = transformer(
            hidden_states=hidden_BCTHW,
            timestep=timestep,
            encoder_hidden_states=_padded(condition.texts).to(latents_BCTHW.dtype),
            encoder_hidden_states_image=None if tokens_BNE is None else tokens_BNE.to(latents_BCTHW.dtype),
            return_dict=False,
        )
        result: Tensor = prediction
        return result


def _padded(texts: Any) -> Tensor:
    """Return texts as `[B, 512, E]`, padded with zeros."""
    import torch

    return torch.stack([torch.nn.functional.pad(text_NE, (0, 0, 0, TEXT_TOKENS - len(text_NE))) for text_NE in texts])
