"""The text encoders of HunyuanVideo with random weights, and tokenizers of words, saved as its pipeline saves them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from benchmarks.random_t5 import SYLLABLES

END, PAD, UNKNOWN = "<end>", "<pad>", "<unknown>"


def save_llama_clip(folder: Path, seed: int = 0, llama_dim: int = 32, clip_dim: int = 16) -> Path:
    """Write the folders text_encoder, tokenizer, text_encoder_2 and tokenizer_2 below a folder; return it."""
    tokenizer = _tokenizer()
    sizes = {"vocab_size": len(tokenizer), "intermediate_size": 64, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llama = transformers.LlamaModel(
            transformers.LlamaConfig(hidden_size=llama_dim, num_hidden_layers=4, num_key_value_heads=1, **sizes)
        )
        clip = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                hidden_size=clip_dim,
                num_hidden_layers=2,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                **sizes,
            )
        )
    transformers.utils.logging.disable_progress_bar()
    llama.save_pretrained(folder / "text_encoder")
    clip.save_pretrained(folder / "text_encoder_2")
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(folder / name)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words of the template and of syllables, which adds an end token."""
    split = pre_tokenizers.Whitespace()
    words = {word: None for word, _ in split.pre_tokenize_str(DEFAULT_PROMPT_TEMPLATE["template"])}
    vocabulary = {word: index for index, word in enumerate([END, PAD, UNKNOWN, *words, *SYLLABLES])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = split
    core.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
    )
