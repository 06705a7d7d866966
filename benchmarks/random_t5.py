"""Save a T5, mT5 or UMT5 of any size with random weights, and a tokenizer of syllables, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["t5", "mt5", "umt5"]
CLASSES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
SYLLABLES = [first + last for first in "bdfgklmnprst" for last in "aeiou"]


def save_tokenizer(folder: Path) -> None:
    """Write a unigram tokenizer of letters and of 60 syllables, each at the start of a word and inside a word."""
    from transformers import T5Tokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz", "▁"]
    pieces = [(letter, -9.0) for letter in letters] + [
        (prefix + syllable, -4.0) for prefix in ("", "▁") for syllable in SYLLABLES
    ]
    T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *pieces], extra_ids=0).save_pretrained(folder)


def save_t5(folder: Path, kind: Kind = "t5", seed: int = 0, tokenizer: bool = True, **sizes: int) -> Path:
    """Write config.json, model.safetensors with encoder and decoder, and the tokenizer's files. Return the folder.

    `sizes` are passed to the config class of transformers.
    """
    import transformers

    tiny: dict[str, Any] = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_max_distance": 20,
    }
    config = getattr(transformers, f"{CLASSES[kind]}Config")(
        vocab_size=160, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **tiny | sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{CLASSES[kind]}ForConditionalGeneration")(config)
    folder.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if tokenizer:
        save_tokenizer(folder)
    return folder
