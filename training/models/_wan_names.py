"""Names of the weights of Wan in the files of its authors, which ComfyUI reads, from those of diffusers."""

from __future__ import annotations

from collections.abc import Mapping

OUTSIDE_BLOCKS: Mapping[str, str] = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "patch_embedding": "patch_embedding",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
"""Names of the authors by the first parts of those of diffusers."""
ATTENTIONS: Mapping[str, str] = {"attn1": "self_attn", "attn2": "cross_attn"}
IN_ATTENTION: Mapping[str, str] = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
}
IN_BLOCKS: Mapping[str, str] = {
    **{f"{ours}.{part}": f"{own}.{name}" for ours, own in ATTENTIONS.items() for part, name in IN_ATTENTION.items()},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "scale_shift_table": "modulation",
}
"""The same inside a block."""


def original_name(name: str) -> str:
    """Return the authors' name of a weight, or of an adapter's part of it."""
    block, names = "", OUTSIDE_BLOCKS
    if name.startswith("blocks."):
        _, number, name = name.split(".", 2)
        block, names = f"blocks.{number}.", IN_BLOCKS
    part = next(part for part in names if name == part or name.startswith(f"{part}."))
    return f"{block}{names[part]}{name.removeprefix(part)}"
