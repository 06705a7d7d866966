"""Predictions in sampling: bfloat16 changes results by its rounding only, and too little memory by nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.support.exported_models import write_untrained_export
from training.network import Condition, VideoModel
from training.sampling import exported_model
from training.sampling.exported_model import ExportedModel
from training.sampling.generation import generate, video_timeline
from training.sampling.prediction import model_dtype
from training.sampling.settings import SampleSettings

SETTINGS = SampleSettings(prompt="a red circle", seconds=0.5, size="32x32", steps=4, guidance=2.0)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_untrained_export(tmp_path_factory.mktemp("export"))


def latents_of(model: ExportedModel, network: VideoModel | None = None) -> Tensor:
    parts = model.parts if network is None else replace(model.parts, model=network)
    timeline = video_timeline(parts, model.embed(SETTINGS.prompt), model.fit_shape(SETTINGS))
    return generate(parts, timeline, SETTINGS)


def test_bfloat16_is_used_on_gpus_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_dtype(torch.device("cpu")) == torch.float32
    for has_bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        assert model_dtype(torch.device("cuda")) == dtype


def test_bfloat16_rounds_and_latents_stay_float32(export: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = latents_of(ExportedModel(export, "cpu"))
    monkeypatch.setattr(exported_model, "model_dtype", lambda device: torch.bfloat16)
    model = ExportedModel(export, "cpu")
    inputs: list[Tensor] = []
    model.parts.model.register_forward_pre_hook(lambda _, values: inputs.extend(values[0]))
    found = latents_of(model)
    assert {parameter.dtype for parameter in model.parts.model.parameters()} == {torch.bfloat16}
    assert {one.dtype for one in (*inputs, found)} == {torch.float32}
    # bfloat16 has 8 bits: rounding errors of 0.4 % in each layer.
    error = float((found - expected).std() / expected.std())
    assert 0 < error < 0.02


class SmallMemory(VideoModel):
    """A model that runs out of memory when it gets more than one sample."""

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model
        self.sizes: list[int] = []

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        self.sizes.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        predictions: list[Tensor] = self.model(latents, condition)
        return predictions

    def weight_initialiser(self) -> Callable[[nn.Parameter, str], None]:
        raise AssertionError("nothing is initialised")


def test_a_pair_that_does_not_fit_is_evaluated_in_turn(export: str) -> None:
    model = ExportedModel(export, "cpu")
    small = SmallMemory(model.parts.model)
    torch.testing.assert_close(latents_of(model, small), latents_of(model), rtol=1e-4, atol=1e-4)
    assert small.sizes == [2, *[1] * 8], "it is tried once"


def test_one_sample_that_does_not_fit_is_an_error(export: str) -> None:
    class NoMemory(SmallMemory):
        def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model = ExportedModel(export, "cpu")
    with pytest.raises(torch.OutOfMemoryError):
        latents_of(model, NoMemory(model.parts.model))
