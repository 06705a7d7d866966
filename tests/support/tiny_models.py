"""Tiny chat models with random weights, saved with configuration, tokenizer, processor and chat template.

Each public function saves one model in a folder of its name below `root`, unless it exists, and returns the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, PAD, IMAGE, VIDEO = "<|end|>", "<|pad|>", "<image>", "<video>"
VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<row_1_col_1>",
    IMAGE,
    VIDEO,
)

WITH_VIDEO = ("qwen", "qwen3", "smolvlm", "onevision")
"""Models that take video."""
WITH_VISION = (*WITH_VIDEO, "llava")
"""Models that take images."""

TEXT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ ' (briefly)' if brief else '' }} {% endif %}"
)
_PARTS = (
    "{% for p in m.content %}{{ image if p.type == 'image' else video if p.type == 'video' else p.text }}{% endfor %}"
)
VISION_TEMPLATE = (
    "{% set image = '" + IMAGE + "' %}{% set video = '" + VIDEO + "' %}"
    "{% for m in messages %}[{{ m.role }}] "
    + _PARTS
    + "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('system role not supported') }}{% endif %}"
    + VISION_TEMPLATE.replace("{% set video = '" + VIDEO + "' %}", "{% set video = '' %}")
)
"""Template that refuses system prompts and leaves out videos."""

ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
VISION_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_VISION_SIZES = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
}
QWEN_PROCESSOR_SIZES: dict[str, Any] = {
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 64,
    "max_pixels": 4096,
}
QWEN_TEMPLATE = VISION_TEMPLATE.replace(f"'{IMAGE}'", f"'<|vision_start|>{IMAGE}<|vision_end|>'")
TEXT_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def llama(root: Path) -> Path:
    """Save a text model (Llama)."""
    tokens = tokenizer(template=TEXT_TEMPLATE)
    config = transformers.LlamaConfig(**TEXT_SIZES, vocab_size=len(tokens), max_position_embeddings=4096)
    return save(root / "llama", lambda: transformers.LlamaForCausalLM(config), tokens, tokens)


def qwen(root: Path) -> Path:
    """Save a model for images, and for video with rotary positions in time (Qwen2.5-VL)."""
    tokens = tokenizer(VISION_TOKENS, image_token=IMAGE, video_token=VIDEO)
    vision = {**QWEN_VISION_SIZES, "window_size": 16, "fullatt_block_indexes": [1]}
    config = transformers.Qwen2_5_VLConfig(text_config=_qwen_text(tokens), vision_config=vision, **_qwen_tokens(tokens))
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**QWEN_PROCESSOR_SIZES),
        tokens,
        transformers.Qwen2VLVideoProcessor(**QWEN_PROCESSOR_SIZES, cap_pixels_per_frame=False),
        chat_template=QWEN_TEMPLATE.replace(f"'{VIDEO}'", f"'<|vision_start|>{VIDEO}<|vision_end|>'"),
    )
    return save(root / "qwen", lambda: transformers.Qwen2_5_VLForConditionalGeneration(config), tokens, processor)


def qwen3(root: Path) -> Path:
    """Save a model for images, and for video with the times of its frames as text (Qwen3-VL)."""
    tokens = tokenizer(
        VISION_TOKENS,
        image_token=IMAGE,
        video_token=VIDEO,
        vision_start_token=VISION_TOKENS[0],
        vision_end_token=VISION_TOKENS[1],
    )
    vision = {**QWEN_VISION_SIZES, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    config = transformers.Qwen3VLConfig(
        text_config={**_qwen_text(tokens), "head_dim": 16}, vision_config=vision, **_qwen_tokens(tokens)
    )
    sizes = {name: QWEN_PROCESSOR_SIZES[name] for name in ("patch_size", "merge_size", "temporal_patch_size")}
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**QWEN_PROCESSOR_SIZES),
        tokens,
        transformers.Qwen3VLVideoProcessor(
            **sizes, size={"shortest_edge": 64, "longest_edge": 8192}, cap_pixels_per_frame=False
        ),
        chat_template=QWEN_TEMPLATE,
    )
    return save(root / "qwen3", lambda: transformers.Qwen3VLForConditionalGeneration(config), tokens, processor)


def smolvlm(root: Path) -> Path:
    """Save a model for images in tiles, and for video with the times of its frames as text (SmolVLM)."""
    tokens = tokenizer(
        (*VISION_TOKENS, "<end_of_utterance>"),
        image_token=IMAGE,
        video_token=VIDEO,
        fake_image_token=VISION_TOKENS[2],
        global_image_token=VISION_TOKENS[3],
    )
    config = transformers.SmolVLMConfig(
        text_config={
            "model_type": "llama",
            **TEXT_SIZES,
            "vocab_size": len(tokens),
            "pad_token_id": tokens.pad_token_id,
        },
        vision_config={**VISION_SIZES},
        image_token_id=tokens.convert_tokens_to_ids(IMAGE),
        scale_factor=2,
        pad_token_id=tokens.pad_token_id,
    )
    side = {"longest_edge": 16}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(size=side, max_image_size=side, do_image_splitting=False),
        tokens,
        transformers.SmolVLMVideoProcessor(size=side, max_image_size=side, num_frames=4, fps=1),
        image_seq_len=4,
        chat_template=VISION_TEMPLATE,
    )
    return save(root / "smolvlm", lambda: transformers.SmolVLMForConditionalGeneration(config), tokens, processor)


def llava(root: Path) -> Path:
    """Save a model for images only, without a system prompt (LLaVA)."""
    tokens = tokenizer(VISION_TOKENS, image_token=IMAGE)
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **VISION_SIZES},
        text_config={"model_type": "llama", **TEXT_SIZES, "vocab_size": len(tokens)},
        image_token_id=tokens.convert_tokens_to_ids(IMAGE),
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokens,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=NO_SYSTEM_TEMPLATE,
    )
    return save(root / "llava", lambda: transformers.LlavaForConditionalGeneration(config), tokens, processor)


def onevision(root: Path) -> Path:
    """Save a model for images in tiles, and for video with pooled frames (LLaVA-OneVision).

    All videos of a batch need the same length.
    """
    tokens = tokenizer(VISION_TOKENS, image_token=IMAGE, video_token=VIDEO)
    grid, side = [[16, 16], [32, 16]], {"height": 16, "width": 16}
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION_SIZES},
        text_config={"model_type": "llama", **TEXT_SIZES, "vocab_size": len(tokens)},
        image_grid_pinpoints=grid,
        **{
            f"{name}_token_id": tokens.convert_tokens_to_ids(token)
            for name, token in (("image", IMAGE), ("video", VIDEO))
        },
    )
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=grid),
        tokens,
        transformers.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=VISION_TEMPLATE,
    )
    return save(
        root / "onevision", lambda: transformers.LlavaOnevisionForConditionalGeneration(config), tokens, processor
    )


def tokenizer(special: Sequence[str] = (), template: str | None = None, **named: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and special tokens, of which processors find the `named` by name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([END, PAD, *special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=named,
        chat_template=template,
        model_input_names=["input_ids", "attention_mask"],
    )


def _qwen_text(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        **TEXT_SIZES,
        "vocab_size": len(tokens),
        "bos_token_id": None,
        "eos_token_id": tokens.eos_token_id,
        "rope_parameters": ROPE,
    }


def _qwen_tokens(tokens: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image": IMAGE, "video": VIDEO, "vision_start": VISION_TOKENS[0], "vision_end": VISION_TOKENS[1]}
    return {f"{name}_token_id": tokens.convert_tokens_to_ids(token) for name, token in names.items()}


def save(folder: Path, build: Callable[[], Any], tokens: PreTrainedTokenizerFast, processor: Any) -> Path:
    """Build a model with random weights and save it with its processor, unless the folder exists."""
    if folder.is_dir():
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        with torch.no_grad():
            # With the initial weights all answers are nearly equal. Larger ones make them depend on the whole question.
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.3)
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
