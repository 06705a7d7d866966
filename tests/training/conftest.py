"""Fixtures of training tests, and torch in one thread.

The models of tests are tiny. On busy cores, threads that wait for each other take up to 50 times as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from training.models._dit_network import compiled_block

torch.set_num_threads(1)


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the graphs that are compiled, without generating code, for which a C++ compiler would take minutes."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend="aot_eager", **options))
    torch._dynamo.reset()
    compiled_block.cache_clear()
    counters.clear()
    yield counters["stats"]
    compiled_block.cache_clear()
    torch._dynamo.reset()
