"""Settings of training: defaults, refusals, and the learning rate."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import ConfigError, parse, parse_document, validate
from training.models.dit import DiT
from training.settings import TrainSettings


def test_settings_survive_a_round_trip_through_json() -> None:
    settings = validate(TrainSettings, {"model": {"name": "dit", "depth": 3}, "steps": 200})
    assert settings.model == DiT(depth=3)
    assert TrainSettings.model_validate_json(settings.model_dump_json(), strict=True) == settings
    assert TrainSettings.model_json_schema()["properties"]["model"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("precision: bf16", "precision bf16 needs zero_stage 1, 2 or 3"),
        ("{steps: 10, warmup_steps: 8, decay_steps: 4}", "warmup_steps 8 \\+ decay_steps 4 exceed the 10 steps"),
        ("{optimizer: muon, zero_stage: 1}", "optimizer muon needs whole matrices, which zero_stage 1 cuts"),
        ("cpu_offload: true", "cpu_offload needs zero_stage 1, 2 or 3"),
        ("{workers: 2, min_workers: 3}", "min_workers 3 is above workers 2"),
        (
            "{workers: 3, context_parallel: 2}",
            "workers 3 cannot be divided into groups of context_parallel 2; set workers to a multiple of 2",
        ),
        (
            "{workers: 4, context_parallel: 4}",
            "context_parallel 4 does not divide the 6 heads of model dit; set context_parallel to one of 1, 2, 3, 6",
        ),
        (
            "{workers: 4, min_workers: 2, context_parallel: 2}",
            "min_workers 2 lets any number of workers continue, which context_parallel 2 may not",
        ),
        ("betas: [0.9, 1.0]", r"betas \[0.9, 1.0\] must lie"),
        ("zero_stage: 4", "zero_stage"),
        ("batch: {policy: pack}", "policy"),
        ("{zero_stage: 3, model: {name: dit, compile: true}}", "model.compile true does not go with zero_stage 3"),
        ("batch: {weights: {'*x1': -1}}", "greater than or equal to 0"),
        ("model: {name: dit, deph: 3}", "unknown key 'deph'; did you mean 'depth'"),
        ("model: dot", "unknown name 'dot'; did you mean 'dit'"),
        ("conditioning: {none: 0.5}", "the shares must sum to 1"),
        ("learning_rate: 0.1", "unknown key 'learning_rate'"),
    ],
)
def test_impossible_settings_are_refused_with_a_fix(section: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(TrainSettings, parse_document(section, "recipe.yaml"))


def test_bf16_is_allowed_with_fp32_weights() -> None:
    assert TrainSettings(precision="bf16", zero_stage=1).precision == "bf16"


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = TrainSettings(steps=100, lr=1e-3, warmup_steps=10, decay_steps=20)
    assert settings.lr_at(0) == pytest.approx(1e-4)
    assert settings.lr_at(9) == settings.lr_at(50) == settings.lr_at(80) == 1e-3
    assert settings.lr_at(90) == pytest.approx(5e-4)
    assert settings.lr_at(99) == pytest.approx(5e-5)


def test_the_learning_rate_falls_along_a_cosine() -> None:
    settings = TrainSettings(steps=100, lr=1e-3, warmup_steps=10, decay_steps=90, decay="cosine")
    for step in range(10, 100):
        assert settings.lr_at(step) == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90)))
    assert settings.model_copy(update={"decay_steps": 0}).lr_at(99) == 1e-3


@given(
    warmup=st.integers(0, 50),
    decay_steps=st.integers(0, 50),
    decay=st.sampled_from(["linear", "cosine"]),
    step=st.integers(0, 99),
)
def test_the_learning_rate_is_positive_and_bounded(
    warmup: int, decay_steps: int, decay: Literal["linear", "cosine"], step: int
) -> None:
    settings = TrainSettings(steps=100, warmup_steps=warmup, decay_steps=decay_steps, decay=decay)
    assert 0 < settings.lr_at(step) <= settings.lr
