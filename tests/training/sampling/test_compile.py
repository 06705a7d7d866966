"""Compiled sampling: the blocks of the model and of the weaker one are compiled, of published models too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.exported_models import write_untrained_export
from tests.support.published_models import FAMILIES, read_published, write_published
from training.sampling.exported_model import ExportedModel
from training.sampling.guidances.autoguidance import Autoguidance
from training.sampling.settings import SampleSettings


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the list of what `torch.compile` is called with in place of compiling it."""
    found: list[object] = []

    def record(function: object, **_: object) -> object:
        found.append(function)
        return function

    monkeypatch.setattr(torch, "compile", record)
    return found


def test_the_models_of_a_sample_are_compiled_when_asked(tmp_path: Path) -> None:
    uri, weaker = (write_untrained_export(tmp_path / name) for name in ("model", "weaker"))
    guided = {"prompt": "any", "guidance": 2.0, "guidance_method": Autoguidance(export=weaker)}
    for asked in (False, True):
        parts = ExportedModel(uri).guided_parts(SampleSettings(**guided, compile=asked))
        assert parts.weaker is not None
        for model in (parts.model, parts.weaker.model):
            assert vars(model)["_compiles_sampling"] is asked


@pytest.mark.slow  # diffusers takes seconds to import
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_published_models_are_compiled(family: str, tmp_path: Path, compiled: list[object]) -> None:
    model, _ = read_published(write_published(tmp_path, family))
    model.compile_for_sampling()
    blocks = [block for name, block in model.named_modules() if name.endswith("blocks.0")]
    assert blocks
    n_compiled = len(compiled)
    assert n_compiled >= len(blocks)
    model.compile_for_sampling()
    assert len(compiled) == n_compiled, "a second sample compiles nothing"
