"""Networks of transformers with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers


def save_random(kind: Any, config: Any, folder: Path, seed: int) -> None:
    """Save a network of a class of transformers, with the weights of a seed; the random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(config)
    transformers.utils.logging.disable_progress_bar()
    network.save_pretrained(folder)
