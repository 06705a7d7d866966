"""What a process that trains alone trains on."""

from __future__ import annotations

import torch

from training import host_memory


def own_device() -> torch.device:
    """The GPU if there is one. Otherwise the CPU, and memory that a step frees is kept for the next one from here on."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    host_memory.keep()
    return torch.device("cpu")
