"""Torch in one thread: the models of tests are tiny, and threads that wait for each other on busy cores cost up to 50 times as much."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
