"""LTX-Video (`LTXVideoTransformer3DModel`), called as `LTXPipeline` does.

Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, S tokens, N text tokens, E text
width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.models._dit_architecture import Architecture, Size
from training.models._family import IN_PLACE, Config, Family, Published, t5_rule
from training.objectives.flow_matching import FlowMatching, LogLinearShift

if TYPE_CHECKING:
    from torch import Tensor

    from training.network import Condition

TIME_FACTOR, SPACE_FACTOR = 8, 32
"""Frames and pixels of a latent cell of LTX-Video's autoencoder, by which rotary positions are in seconds and
pixels."""
TEXT_TOKENS = 128
MLP_RATIO = 4


class LTX(Family):
    """LTX-Video of text and image to video; every token has a noise level of its own."""

    class_name = "LTXVideoTransformer3DModel"
    pipelines = ("LTXPipeline", "LTXImageToVideoPipeline")
    text = t5_rule(TEXT_TOKENS, cleaning="spaces", padded=True)
    feed_forward = ("ff.net.0.proj", "ff.net.2")

    def architecture(self, config: Config) -> Architecture:
        heads = config["num_attention_heads"]
        dim = heads * config["attention_head_dim"]
        patch = (config.get("patch_size_t", 1), config.get("patch_size", 1), config.get("patch_size", 1))
        size = Size(config["num_layers"], dim, heads)
        return Architecture(size, MLP_RATIO * dim, patch, config["out_channels"], config["caption_channels"])

    def objective(self, published: Published) -> FlowMatching:
        # The defaults are those of LTXPipeline.
        return shifted_by_tokens(published.scheduler, tokens=(256, 4096), log=(0.5, 1.15))

    def kinds(self, published: Published) -> frozenset[str]:
        return IN_PLACE

    def check(self, published: Published) -> None:
        patch = self.architecture(published.transformer).patch
        if patch != (1, 1, 1):
            raise ValueError(f"the transformer has patches of {list(patch)}, and published models have [1, 1, 1]")

    def predict(self, transformer: Any, latents_BCTHW: Tensor, condition: Condition, published: Published) -> Tensor:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        _, _, frames, rows, columns = latents_BCTHW.shape
        text_BNE = pad_sequence(list(condition.texts), batch_first=True).to(latents_BCTHW.dtype)
        ones = [text_NE.new_ones(len(text_NE)) for text_NE in condition.texts]
        mask_BN = pad_sequence(ones, batch_first=True)
        time_BT = 1000 * torch.stack(list(condition.times))
        (prediction_BSC,) = transformer(
            hidden_states=latents_BCTHW.flatten(2).transpose(1, 2),
            encoder_hidden_states=text_BNE,
            timestep=time_BT.repeat_interleave(rows * columns, dim=1),
            encoder_attention_mask=mask_BN,
            num_frames=frames,
            height=rows,
            width=columns,
            rope_interpolation_scale=(
                TIME_FACTOR / condition.fps_B[:, None, None, None, None],
                SPACE_FACTOR,
                SPACE_FACTOR,
            ),
            return_dict=False,
        )
        result: Tensor = prediction_BSC.transpose(1, 2).unflatten(2, (frames, rows, columns))
        return result


def shifted_by_tokens(scheduler: Config, tokens: tuple[int, int], log: tuple[float, float]) -> FlowMatching:
    """Return the objective of a scheduler that shifts noise levels by the tokens; the pipeline's defaults are given."""
    if not scheduler.get("use_dynamic_shifting"):
        return FlowMatching(shift=float(scheduler.get("shift") or 1.0))
    shift = LogLinearShift(
        tokens=(scheduler.get("base_image_seq_len", tokens[0]), scheduler.get("max_image_seq_len", tokens[1])),
        log=(scheduler.get("base_shift", log[0]), scheduler.get("max_shift", log[1])),
        last=scheduler.get("shift_terminal"),
    )
    return FlowMatching(shift=shift)
