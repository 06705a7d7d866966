"""Measure the time and the padding of embedding captions with a T5 of random weights.

    python -m benchmarks.texts [300] [--dim 256] [--layers 4] [--max-tokens 512] [--repeats 3]

Each clip has a dense caption of about 120 words, and the caption of its source, which eight clips share. They and the
empty caption are embedded by `embed_captions` in this process, in float32. Prints one line of JSON last: `distinct` of
`total` captions, and the padding's share of the tokens computed (`padded_share`), which `padded_share_unsorted` has for
unsorted batches of 32. `tokens_per_s` and `tokens_per_s_unsorted` count the captions' tokens without padding; they
are medians of alternating runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.random_t5 import SYLLABLES, save_t5
from captioning.encoders.t5 import T5
from pipelines import inline
from pipelines.dataset.captions import Captions
from pipelines.dataset.text_embeddings import embed_captions, tasks_of

BATCH = 32
CLIPS_PER_SOURCE = 8


def make_captions(clips: int, seed: int = 0) -> list[str]:
    """Return a dense caption and the caption of its source for each clip, with about 120 and 12 words (log-normal)."""
    rng = np.random.default_rng(seed)

    def caption(words: float) -> str:
        return " ".join(rng.choice(SYLLABLES, max(1, round(words))))

    sources = [caption(rng.lognormal(np.log(12), 0.5)) for _ in range(-(-clips // CLIPS_PER_SOURCE))]
    return [
        text
        for i in range(clips)
        for text in (caption(rng.lognormal(np.log(120), 0.5)), sources[i // CLIPS_PER_SOURCE])
    ]


def encode_unsorted(encoder: Any, captions: Captions) -> tuple[int, int]:
    """Encode captions in batches of `BATCH`, unsorted. Return the numbers of their tokens and of padding tokens."""
    texts = captions.text_N.take(captions.distinct).to_pylist()
    tokens = padding = 0
    for start in range(0, len(texts), BATCH):
        ids = [list(text.ids) for text in encoder.tokenize(texts[start : start + BATCH])]
        lengths = [len(one) for one in ids]
        with torch.inference_mode():
            encoder.forward(torch.tensor([one + [0] * (max(lengths) - len(one)) for one in ids]), torch.tensor(lengths))
        tokens += sum(lengths)
        padding += len(ids) * max(lengths) - sum(lengths)
    return tokens, padding


def encode_sorted(encoder: Any, captions: Captions) -> tuple[int, int]:
    """Encode captions in the tasks of `embed_captions`, which sort by length. Return tokens and padding tokens."""
    before = encoder.padding_tokens
    tasks = tasks_of(captions, captions.distinct)
    tokens = sum(len(embedding.tokens) for task in tasks for embedding in encoder.encode(task["caption"].to_pylist()))
    return tokens, encoder.padding_tokens - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=int, nargs="?", default=300)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    texts = make_captions(arguments.clips)
    with tempfile.TemporaryDirectory() as temporary:
        sizes = {
            "d_model": arguments.dim,
            "d_kv": 64,
            "d_ff": 4 * arguments.dim,
            "num_layers": arguments.layers,
            "num_heads": arguments.dim // 64,
        }
        model = save_t5(Path(temporary) / "model", **sizes, relative_attention_max_distance=128)
        settings = T5(model=str(model), dtype="float32", max_tokens=arguments.max_tokens)
        captions = Captions.of(pa.chunked_array([texts], pa.string()), settings.identity())
        start_s = time.monotonic()
        embed_captions(str(Path(temporary) / "texts"), settings, captions, captions.distinct, inline)
        seconds = time.monotonic() - start_s
        encoder = settings.open()
        speeds: dict[str, list[float]] = {"encode_sorted": [], "encode_unsorted": []}
        shares: dict[str, float] = {}
        for _ in range(arguments.repeats):
            for encode in (encode_sorted, encode_unsorted):
                start_s = time.monotonic()
                tokens, padding = encode(encoder, captions)
                speeds[encode.__name__].append(tokens / (time.monotonic() - start_s))
                shares[encode.__name__] = padding / (tokens + padding)
    result = {
        "total": len(captions.text_N),
        "distinct": len(captions.distinct),
        "tokens": tokens,
        "embed_captions_s": round(seconds, 1),
        "padded_share": round(shares["encode_sorted"], 4),
        "padded_share_unsorted": round(shares["encode_unsorted"], 4),
        "tokens_per_s": round(statistics.median(speeds["encode_sorted"])),
        "tokens_per_s_unsorted": round(statistics.median(speeds["encode_unsorted"])),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
