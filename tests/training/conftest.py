"""Torch in one thread: the models of tests are tiny, and threads that wait for each other on busy cores cost up to 50 times as much."""

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
    """Counts what is compiled. Code is not generated: that takes a C++ compiler minutes, and changes nothing of when it is."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend="aot_eager", **options))
    torch._dynamo.reset()
    compiled_block.cache_clear()
    counters["stats"].clear()
    yield counters["stats"]
    compiled_block.cache_clear()
    torch._dynamo.reset()
