"""CogVideoX (`CogVideoXTransformer3DModel`), called as `CogVideoXPipeline` does.

Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from training.models._dit_architecture import Architecture, Size, joint_flops
from training.models._family import Config, Family, Published, t5_rule
from training.objectives.v_prediction import VPrediction

if TYPE_CHECKING:
    from torch import Tensor

    from training.network import Condition

TEXT_TOKENS = 226
"""Tokens of every text: those of padding are attended to, and are as T5 encodes them."""
MLP_RATIO = 4
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}
"""Settings of the schedulers of published models, of which others are not known here."""


class CogVideoX(Family):
    """CogVideoX of text to video, 2B and 5B, which attends to text and latents together."""

    class_name = "CogVideoXTransformer3DModel"
    pipelines = ("CogVideoXPipeline",)
    text = t5_rule(TEXT_TOKENS, cleaning="spaces", padded=True, keep_padding=True)
    feed_forward = ("ff.net.0.proj", "ff.net.2")

    def architecture(self, config: Config) -> Architecture:
        heads = config["num_attention_heads"]
        dim = heads * config["attention_head_dim"]
        size = Size(config["num_layers"], dim, heads)
        patch = (1, config["patch_size"], config["patch_size"])
        return Architecture(size, MLP_RATIO * dim, patch, config["out_channels"], config["text_embed_dim"])

    def flops(self, config: Config, tokens: int, text_tokens: int) -> int:
        own = self.architecture(config)
        return joint_flops(own.size, own.hidden, tokens + text_tokens)

    def objective(self, published: Published) -> VPrediction:
        scheduler = published.scheduler
        return VPrediction(
            levels=scheduler.get("num_train_timesteps", 1000),
            beta_start=scheduler.get("beta_start", 0.00085),
            beta_end=scheduler.get("beta_end", 0.012),
            snr_shift=scheduler.get("snr_shift_scale", 3.0),
        )

    def kinds(self, published: Published) -> frozenset[str]:
        return frozenset(("none",))

    def check(self, published: Published) -> None:
        config = published.transformer
        if config.get("patch_size_t") is not None:
            raise ValueError(
                "patch_size_t is set: the transformer of CogVideoX 1.5 takes even numbers of latent frames, and the "
                "autoencoder makes odd ones; take CogVideoX-2B or 5B"
            )
        if config["in_channels"] != config["out_channels"]:
            raise ValueError(
                f"the transformer takes {config['in_channels']} channels for {config['out_channels']} of latents: it "
                "is of image to video, which is not trained here; take the model of text to video"
            )
        for key, value in SCHEDULER.items():
            if published.scheduler.get(key) != value:
                raise ValueError(
                    f"scheduler_config.json has {key} {published.scheduler.get(key)}, and models of CogVideoX {value}; "
                    "put back the file as it was published"
                )

    def prepare(self, transformer: Any) -> None:
        transformer._repeated_blocks = ["CogVideoXBlock"]
        patches = transformer.patch_embed
        if patches.use_positional_embeddings:
            # A table of one size that no checkpoint holds: positions are computed for each size instead, where the
            # latents are.
            del patches.pos_embedding
            patches.sample_frames = 0

    def check_texts(self, texts: Sequence[Tensor]) -> None:
        for text_NE in texts:
            if len(text_NE) != TEXT_TOKENS:
                raise ValueError(
                    f"a text has {len(text_NE)} tokens, and CogVideoX takes {TEXT_TOKENS} with those of padding; "
                    f"encode texts with max_tokens: {TEXT_TOKENS}, padded: true and keep_padding: true"
                )

    def predict(self, transformer: Any, latents_BCTHW: Tensor, condition: Condition, published: Published) -> Tensor:
        import torch

        objective, dtype = self.objective(published), latents_BCTHW.dtype
        time_B = torch.stack([time_T[0] for time_T in condition.times])
        scale_B1111 = objective.scale(time_B).to(dtype)[:, None, None, None, None]
        (prediction_BTCHW,) = transformer(
            hidden_states=(scale_B1111 * latents_BCTHW).transpose(1, 2),
            encoder_hidden_states=torch.stack(list(condition.texts)).to(dtype),
            timestep=objective.level(time_B),
            image_rotary_emb=_rotary(transformer.config, latents_BCTHW),
            return_dict=False,
        )
        result: Tensor = prediction_BTCHW.transpose(1, 2)
        return result


def _rotary(config: Any, latents_BCTHW: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return cosines and sines of the latents' positions, which are stretched to the size of training; None for a
    transformer that has its own.
    """
    if not config.use_rotary_positional_embeddings:
        return None
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    frames, *sides = latents_BCTHW.shape[2:]
    grid = tuple(side // config.patch_size for side in sides)
    full = (config.sample_width // config.patch_size, config.sample_height // config.patch_size)
    cosines, sines = get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim,
        crops_coords=get_resize_crop_region_for_grid(grid, *full),
        grid_size=grid,
        temporal_size=frames,
        device=latents_BCTHW.device,
    )
    return cosines, sines
