"""Tiny chat models with random weights, saved as real ones are: configuration, weights, tokenizer, processor and chat template.

Each function makes its model in a folder of its name, once for each root (say, a folder of the test session), and returns the folder.
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
SEES = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<row_1_col_1>",
    IMAGE,
    VIDEO,
)

TEXT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ ' (briefly)' if brief else '' }} {% endif %}"
)
_PARTS = (
    "{% for p in m.content %}{{ image if p.type == 'image' else video if p.type == 'video' else p.text }}{% endfor %}"
)
SEEING_TEMPLATE = (
    "{% set image = '" + IMAGE + "' %}{% set video = '" + VIDEO + "' %}"
    "{% for m in messages %}[{{ m.role }}] "
    + _PARTS
    + "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('system role not supported') }}{% endif %}"
    + SEEING_TEMPLATE.replace("{% set video = '" + VIDEO + "' %}", "{% set video = '' %}")
)
"""As of models that know no system prompt and no video."""

ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
EYE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_EYE = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
}
QWEN_SIZES: dict[str, Any] = {
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 64,
    "max_pixels": 4096,
}
QWEN_TEMPLATE = SEEING_TEMPLATE.replace(f"'{IMAGE}'", f"'<|vision_start|>{IMAGE}<|vision_end|>'")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def llama(root: Path) -> Path:
    """Words only."""
    words = tokenizer(template=TEXT_TEMPLATE)
    config = transformers.LlamaConfig(**TEXT, vocab_size=len(words), max_position_embeddings=4096)
    return save(root / "llama", lambda: transformers.LlamaForCausalLM(config), words, words)


def qwen(root: Path) -> Path:
    """Images and video with rotary positions in time (Qwen2.5-VL)."""
    words = tokenizer(SEES, image_token=IMAGE, video_token=VIDEO)
    eye = {**QWEN_EYE, "window_size": 16, "fullatt_block_indexes": [1]}
    config = transformers.Qwen2_5_VLConfig(text_config=_qwen_text(words), vision_config=eye, **_qwen_tokens(words))
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**QWEN_SIZES),
        words,
        transformers.Qwen2VLVideoProcessor(**QWEN_SIZES, cap_pixels_per_frame=False),
        chat_template=QWEN_TEMPLATE.replace(f"'{VIDEO}'", f"'<|vision_start|>{VIDEO}<|vision_end|>'"),
    )
    return save(root / "qwen", lambda: transformers.Qwen2_5_VLForConditionalGeneration(config), words, processor)


def qwen3(root: Path) -> Path:
    """Images, and video with the times of its frames in words (Qwen3-VL)."""
    words = tokenizer(SEES, image_token=IMAGE, video_token=VIDEO, vision_start_token=SEES[0], vision_end_token=SEES[1])
    eye = {**QWEN_EYE, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    config = transformers.Qwen3VLConfig(
        text_config={**_qwen_text(words), "head_dim": 16}, vision_config=eye, **_qwen_tokens(words)
    )
    sizes = {name: QWEN_SIZES[name] for name in ("patch_size", "merge_size", "temporal_patch_size")}
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**QWEN_SIZES),
        words,
        transformers.Qwen3VLVideoProcessor(
            **sizes, size={"shortest_edge": 64, "longest_edge": 8192}, cap_pixels_per_frame=False
        ),
        chat_template=QWEN_TEMPLATE,
    )
    return save(root / "qwen3", lambda: transformers.Qwen3VLForConditionalGeneration(config), words, processor)


def smolvlm(root: Path) -> Path:
    """Images cut into tiles, and video with the times of its frames in words (SmolVLM)."""
    words = tokenizer(
        (*SEES, "<end_of_utterance>"),
        image_token=IMAGE,
        video_token=VIDEO,
        fake_image_token=SEES[2],
        global_image_token=SEES[3],
    )
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words), "pad_token_id": words.pad_token_id},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        image_token_id=words.convert_tokens_to_ids(IMAGE),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    side = {"longest_edge": 16}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(size=side, max_image_size=side, do_image_splitting=False),
        words,
        transformers.SmolVLMVideoProcessor(size=side, max_image_size=side, num_frames=4, fps=1),
        image_seq_len=4,
        chat_template=SEEING_TEMPLATE,
    )
    return save(root / "smolvlm", lambda: transformers.SmolVLMForConditionalGeneration(config), words, processor)


def llava(root: Path) -> Path:
    """Images only, and no system prompt (LLaVA)."""
    words = tokenizer(SEES, image_token=IMAGE)
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **EYE},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words)},
        image_token_id=words.convert_tokens_to_ids(IMAGE),
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        words,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=NO_SYSTEM_TEMPLATE,
    )
    return save(root / "llava", lambda: transformers.LlavaForConditionalGeneration(config), words, processor)


def onevision(root: Path) -> Path:
    """Images in tiles, and video whose frames are pooled, all videos of a batch of one length (LLaVA-OneVision)."""
    words = tokenizer(SEES, image_token=IMAGE, video_token=VIDEO)
    grid, side = [[16, 16], [32, 16]], {"height": 16, "width": 16}
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **EYE},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words)},
        image_grid_pinpoints=grid,
        **{
            f"{name}_token_id": words.convert_tokens_to_ids(token)
            for name, token in (("image", IMAGE), ("video", VIDEO))
        },
    )
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=grid),
        words,
        transformers.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=SEEING_TEMPLATE,
    )
    return save(
        root / "onevision", lambda: transformers.LlavaOnevisionForConditionalGeneration(config), words, processor
    )


def tokenizer(special: Sequence[str] = (), template: str | None = None, **named: str) -> PreTrainedTokenizerFast:
    """One token a byte, and the special ones. `named` are those that a processor asks for by name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
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


def _qwen_text(words: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        **TEXT,
        "vocab_size": len(words),
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "rope_parameters": ROPE,
    }


def _qwen_tokens(words: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image": IMAGE, "video": VIDEO, "vision_start": SEES[0], "vision_end": SEES[1]}
    return {f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in names.items()}


def save(folder: Path, make: Callable[[], Any], words: PreTrainedTokenizerFast, processor: Any) -> Path:
    """Makes a model with random weights and saves it with its processor, unless its folder is there already."""
    if folder.is_dir():
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            # Weights as initialised say much the same whatever is asked; larger ones make the answer depend on all of the question.
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.3)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
