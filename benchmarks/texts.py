"""What embedding captions costs, and how little of it is padding, on a T5 with random weights.

    python -m benchmarks.texts [300] [--dim 256] [--layers 4] [--max-tokens 512] [--repeats 3]

Each of so many clips has a dense caption of its own, of about 120 words, and the caption of its source, which eight clips share. All go through
`embed_captions` in this process, in float32. Prints one line of JSON last: `distinct` of `total` captions, `padded_share` of the tokens
computed, `padded_share_unsorted` of the same captions in batches of 32 as they come, and the captions' own tokens a second of both ways,
medians of runs that take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.random_t5 import SYLLABLES, save_t5
from captioning.encoders.t5 import T5
from pipelines import inline
from pipelines.dataset.text_embeddings import embed_captions, tasks_of

BATCH = 32
CLIPS_PER_SOURCE = 8


def make_captions(clips: int, seed: int = 0) -> list[str]:
    """A dense and a source's caption for each clip; numbers of words are log-normal around 120 and 12."""
    chance = np.random.default_rng(seed)

    def caption(words: float) -> str:
        return " ".join(chance.choice(SYLLABLES, max(1, round(words))))

    sources = [caption(chance.lognormal(np.log(12), 0.5)) for _ in range(-(-clips // CLIPS_PER_SOURCE))]
    return [
        text
        for i in range(clips)
        for text in (caption(chance.lognormal(np.log(120), 0.5)), sources[i // CLIPS_PER_SOURCE])
    ]


def as_they_come(encoder: Any, captions: Sequence[str]) -> tuple[int, int]:
    """Put captions through an encoder in batches of `BATCH` in the order given. Returns their tokens and the padding."""
    tokens = padding = 0
    for start in range(0, len(captions), BATCH):
        ids = [list(text.ids) for text in encoder.tokenize(captions[start : start + BATCH])]
        lengths = [len(one) for one in ids]
        with torch.inference_mode():
            encoder.forward(torch.tensor([one + [0] * (max(lengths) - len(one)) for one in ids]), torch.tensor(lengths))
        tokens += sum(lengths)
        padding += len(ids) * max(lengths) - sum(lengths)
    return tokens, padding


def by_length(encoder: Any, captions: Sequence[str]) -> tuple[int, int]:
    """As `as_they_come`, in the orders and batches that `embed_captions` makes."""
    before = encoder.padding_tokens
    orders = tasks_of({str(number): caption for number, caption in enumerate(captions)})
    tokens = sum(
        len(embedding.tokens) for order in orders for embedding in encoder.encode(order["caption"].to_pylist())
    )
    return tokens, encoder.padding_tokens - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=int, nargs="?", default=300)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    captions = make_captions(arguments.clips)
    distinct = sorted(set(captions), key=captions.index)
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
        start_s = time.monotonic()
        embed_captions(str(Path(temporary) / "texts"), settings, captions, inline)
        seconds = time.monotonic() - start_s
        encoder = settings.open()
        speeds: dict[str, list[float]] = {"by_length": [], "as_they_come": []}
        shares: dict[str, float] = {}
        for _ in range(arguments.repeats):
            for way in (by_length, as_they_come):
                start_s = time.monotonic()
                tokens, padding = way(encoder, distinct)
                speeds[way.__name__].append(tokens / (time.monotonic() - start_s))
                shares[way.__name__] = padding / (tokens + padding)
    result = {
        "total": len(captions),
        "distinct": len(distinct),
        "tokens": tokens,
        "embed_captions_s": round(seconds, 1),
        "padded_share": round(shares["by_length"], 4),
        "padded_share_unsorted": round(shares["as_they_come"], 4),
        "tokens_per_s": round(statistics.median(speeds["by_length"])),
        "tokens_per_s_unsorted": round(statistics.median(speeds["as_they_come"])),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
