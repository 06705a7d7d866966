"""The diffusion transformer: equal to a dense reference, independent of neighbours, deterministic, able to learn."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.dense_transformer import dense_prediction
from tests.support.flash_on_cpu import flash_on_cpu
from tests.support.model_packs import (
    SHAPES,
    SMALL,
    TEXT_LENGTHS,
    gradients,
    mean_squares,
    perturbed_model,
    predict,
    random_condition,
    random_pack,
)
from training.models import _attention
from training.models._dit_network import DiffusionTransformer, initialise_weight
from training.models.dit import DiT

CONDITION_FIELDS = [
    "texts",
    "times",
    "conditioning_masks",
    "seconds",
    "fps_B",
    "size_B2",
    "crop_B2",
    "source_B2",
]
FIRST_FRAME_MASK = torch.tensor([1.0, 0.0, 0.0])
PACK_SHAPES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


@pytest.mark.slow
@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3)])
def test_forward_and_backward_match_a_dense_reference(patch: tuple[int, int, int]) -> None:
    dit = DiT(depth=2, dim=32, heads=2, patch=patch)
    model, (latents, condition) = perturbed_model(dit), random_pack([(3, 4, 3), (1, 2, 5), (3, 4, 3)], [3, 1, 2])
    masks = [FIRST_FRAME_MASK, *condition.conditioning_masks[1:]]
    condition = replace(condition, conditioning_masks=masks)
    weights = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    expected = [
        dense_prediction(dit, weights, latents[sample].double(), condition.select([sample])) for sample in range(3)
    ]
    for prediction, expected_prediction in zip(model(latents, condition), expected, strict=True):
        torch.testing.assert_close(prediction.double(), expected_prediction, atol=1e-4, rtol=1e-4)
    mean_squares(expected).backward()
    for name, gradient in gradients(model, latents, condition).items():
        expected_gradient = weights[name].grad
        assert expected_gradient is not None
        assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 8, 12), (5, 6, 4), (3, 7, 5), (2, 1, 1)])
@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 1), (2, 2, 3)])
def test_predictions_have_the_shape_of_the_latents(shape: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    x = torch.randn(2, 5, *shape)
    y = predict(perturbed_model(SMALL.model_copy(update={"patch": patch})), x, random_condition(2, shape[0]))
    assert y.shape == x.shape
    assert y.dtype == torch.float32


def test_untrained_output_is_zero() -> None:
    assert not predict(SMALL.build(5, 24), torch.randn(1, 5, 2, 4, 4), random_condition(1, 2)).any()


def test_prediction_does_not_depend_on_neighbours() -> None:
    """Up to the rounding of matrix products, which may differ with the number of rows: 5e-7 here."""
    model, (latents, condition) = perturbed_model(), random_pack(SHAPES, TEXT_LENGTHS)
    together = model(latents, condition)
    for sample, latent in enumerate(latents):
        (alone,) = model([latent], condition.select([sample]))
        torch.testing.assert_close(together[sample], alone, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
@settings(max_examples=25)
@given(shapes=PACK_SHAPES, data=st.data())
def test_any_pack_in_any_order(shapes: list[tuple[int, int, int]], data: st.DataObject) -> None:
    text_lengths = data.draw(st.lists(st.integers(1, 4), min_size=len(shapes), max_size=len(shapes)))
    order = data.draw(st.permutations(range(len(shapes))))
    model, (latents, condition) = perturbed_model(DiT(depth=1, dim=32, heads=2)), random_pack(shapes, text_lengths)
    predictions = model(latents, condition)
    reordered = model([latents[sample] for sample in order], condition.select(order))
    assert [prediction.shape for prediction in predictions] == [latent.shape for latent in latents]
    for sample, prediction in zip(order, reordered, strict=True):
        torch.testing.assert_close(prediction, predictions[sample], atol=2e-6, rtol=1e-5)


def test_order_of_different_samples_does_not_change_one_bit() -> None:
    """Samples are packed in a fixed order, so kernels see the same numbers."""
    samples = (0, 1, 3, 5)
    latents, condition = random_pack([SHAPES[i] for i in samples], [TEXT_LENGTHS[i] for i in samples])
    model = perturbed_model()
    predictions = model(latents, condition)
    backwards = model(latents[::-1], condition.select([3, 2, 1, 0]))
    assert all(a.equal(b) for a, b in zip(predictions, reversed(backwards), strict=True))


@pytest.mark.slow
def test_gradients_do_not_depend_on_neighbours() -> None:
    model, (latents, condition) = perturbed_model(), random_pack(SHAPES, TEXT_LENGTHS)
    together = gradients(model, latents, condition)
    alone = [gradients(model, [latents[i]], condition.select([i])) for i in range(len(latents))]
    for name, gradient in together.items():
        scale = float(gradient.abs().max())
        total = torch.stack([gradient_alone[name] for gradient_alone in alone]).sum(0)
        torch.testing.assert_close(total, gradient, atol=1e-5 * scale + 1e-8, rtol=1e-4)


def test_nan_in_a_sample_does_not_reach_its_neighbours() -> None:
    """So that a NaN loss names the sample that it comes from."""
    model, (latents, condition) = perturbed_model(), random_pack(SHAPES, TEXT_LENGTHS)
    expected = model(latents, condition)
    with_nan = model([latents[0], torch.full_like(latents[1], float("nan")), *latents[2:]], condition)
    assert [bool(prediction.isnan().any()) for prediction in with_nan] == [False, True, False, False, False, False]
    assert all(expected[sample].equal(with_nan[sample]) for sample in (0, 2, 3, 4, 5))


@pytest.mark.parametrize("field", CONDITION_FIELDS)
def test_every_part_of_the_condition_matters(field: str) -> None:
    model, condition = perturbed_model(), random_condition(1, 3)
    x = torch.randn(1, 5, 3, 4, 6)
    value = getattr(condition, field)

    def shifted(tensor: Tensor) -> Tensor:
        return tensor + torch.linspace(0.1, 1, tensor.numel()).view(tensor.shape)

    changed = (
        [part.flip(0) if field == "texts" else shifted(part) for part in value]
        if isinstance(value, list)
        else shifted(value)
    )
    difference = predict(model, x, condition) - predict(model, x, replace(condition, **{field: changed}))
    assert difference.abs().max() > 1e-4


def test_modulation_follows_each_frame() -> None:
    """A frame's noise level reaches other frames through attention alone, so without it they do not change."""
    model = perturbed_model(DiT(depth=1, dim=64, heads=2))
    with torch.no_grad():
        model.get_parameter("blocks.0.attention.out.weight").zero_()
    condition = random_condition(1, 3)
    time = condition.times[0].clone()
    time[1] = 0.0
    x = torch.randn(1, 5, 3, 4, 4)
    difference = predict(model, x, condition) - predict(model, x, replace(condition, times=[time]))
    difference_T = difference.abs().amax(dim=(0, 1, 3, 4))
    assert difference_T[1] > 1e-3
    assert difference_T[0] == difference_T[2] == 0


def test_attention_depends_on_differences_of_seconds_only() -> None:
    """Without the features of absolute positions, shifting all times changes nothing."""
    model, condition = perturbed_model(), random_condition(1, 4)
    with torch.no_grad():
        model.get_parameter("seconds_in.weight").zero_()
    x = torch.randn(1, 5, 4, 4, 4)
    later = replace(condition, seconds=[condition.seconds[0] + 2.5])
    torch.testing.assert_close(predict(model, x, condition), predict(model, x, later), atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    model, condition = perturbed_model(), random_condition(2, 3, [3, 5])
    condition = replace(condition, conditioning_masks=[FIRST_FRAME_MASK, torch.zeros(3)])
    for name, gradient in gradients(model, torch.randn(2, 5, 3, 4, 4).unbind(0), condition).items():
        assert gradient.abs().sum() > 0, name


@pytest.mark.slow
def test_training_moves_every_parameter_from_the_start() -> None:
    """Zero initialisation must not be a fixed point: after four steps every parameter has moved."""
    torch.manual_seed(0)
    model = SMALL.build(5, 24)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    condition = replace(random_condition(2, 3, [3, 5]), conditioning_masks=[FIRST_FRAME_MASK, torch.zeros(3)])
    x, target = torch.randn(2, 2, 5, 3, 4, 4).unbind(0)
    for _ in range(4):
        optimizer.zero_grad()
        (predict(model, x, condition) - target).square().mean().backward()
        optimizer.step()
    assert [name for name, value in model.named_parameters() if value.equal(start[name])] == []


@pytest.mark.slow
def test_same_seed_gives_the_same_bits() -> None:
    x, condition = torch.randn(2, 5, 3, 4, 4), random_condition(2, 3, [3, 5])
    expected = predict(perturbed_model(seed=3), x, condition)
    assert expected.equal(predict(perturbed_model(seed=3), x, condition))
    assert not expected.equal(predict(perturbed_model(seed=4), x, condition))


def test_bf16_is_close_to_fp32() -> None:
    model, condition = perturbed_model(), random_condition(2, 3, [3, 5])
    x = torch.randn(2, 5, 3, 4, 4)
    full = predict(model, x, condition)
    half = predict(model.to(torch.bfloat16), x, condition)
    assert half.dtype == torch.float32
    assert (full - half).norm() / full.norm() < 0.03


@pytest.mark.slow
def test_model_overfits_two_samples() -> None:
    torch.manual_seed(0)
    model, condition = DiT(depth=2, dim=64, heads=2).build(4, 24), random_condition(2, 2, [3, 5])
    x, target = torch.randn(2, 2, 4, 2, 4, 4).unbind(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (predict(model, x, condition) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


@pytest.mark.slow
def test_shared_modulation_is_a_small_part_of_the_weights() -> None:
    model = DiT(depth=12, dim=384, heads=6).build(16, 512)
    modulation = sum(
        value.numel() for name, value in model.named_parameters() if "modulation" in name or "table" in name
    )
    assert modulation < 0.05 * sum(value.numel() for value in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "recomputed"), [("none", 0), ("blocks", 5), (2, 3), (3, 2)])
def test_checkpointing_recomputes_blocks_and_changes_no_bit(
    checkpointing: Literal["none", "blocks"] | int, recomputed: int
) -> None:
    plain, checkpointed = (
        perturbed_model(DiT(depth=5, dim=32, heads=2, checkpointing=mode)) for mode in ("none", checkpointing)
    )
    latents, condition = random_pack(SHAPES, TEXT_LENGTHS)
    calls: list[int] = []
    for index in range(5):
        block = checkpointed.get_submodule(f"blocks.{index}")
        block.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    expected, got = gradients(plain, latents, condition), gradients(checkpointed, latents, condition)
    assert all(expected[name].equal(got[name]) for name in expected)
    assert len(calls) == 5 + recomputed
    with torch.no_grad():
        predictions = zip(plain(latents, condition), checkpointed(latents, condition), strict=True)
        assert all(a.equal(b) for a, b in predictions)


@pytest.mark.slow
def test_blocks_compile_at_most_twice_per_kind_of_pack(
    compiled_graphs: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpointed and plain blocks share the graphs; FlashAttention's operator runs on the CPU."""
    settings = DiT(depth=2, dim=32, heads=2)
    compiled_settings = settings.model_copy(update={"compile": True, "checkpointing": 2})
    plain, compiled = perturbed_model(settings), perturbed_model(compiled_settings)
    monkeypatch.setattr(_attention, "can_run_varlen", lambda *_: True)
    shapes, rng = [(3, 4, 6), (1, 8, 8), (2, 3, 5), (4, 4, 2)], random.Random(0)

    def new_graphs(packs: list[list[tuple[int, int, int]]]) -> int:
        before = compiled_graphs["unique_graphs"]
        for pack in packs:
            compiled(*random_pack(pack, [rng.randint(1, 9) for _ in pack]))
        return compiled_graphs["unique_graphs"] - before

    with flash_on_cpu():
        assert new_graphs([[rng.choice(shapes)] * rng.randint(2, 6) for _ in range(40)]) <= 2
        assert new_graphs([[*shapes[:2], *rng.choices(shapes, k=rng.randint(0, 4))] for _ in range(40)]) <= 2
        assert not counters["graph_break"]
        for pack in [shapes[1], shapes[0], shapes[1], shapes[1]], [shapes[0]] * 3:
            latents, condition = random_pack(pack, TEXT_LENGTHS[: len(pack)])
            expected, got = gradients(plain, latents, condition), gradients(compiled, latents, condition)
            for name, gradient in expected.items():
                torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)
        compiled_graphs.clear()
        compiled.eval()(latents, condition)
        assert not compiled_graphs, "sampling would wait for the compilation"
        compiled.compile_for_sampling()
        with torch.no_grad():
            predictions = compiled(latents, condition)
            torch.testing.assert_close(predictions, plain.eval()(latents, condition), atol=1e-5, rtol=1e-4)
        assert len(compiled_graphs) <= 2


def test_auto_compiles_on_gpus_only() -> None:
    model = SMALL.model_copy(update={"compile": "auto"}).build(5, 24)
    assert isinstance(model, DiffusionTransformer)
    assert not model.train()._is_compiled()
    with FakeTensorMode():
        model.conditioning_D = torch.nn.Parameter(torch.empty(4, device="cuda"))
        assert model._is_compiled()
        model.conditioning_D.ds_shape = (4,)  # type: ignore[attr-defined]
        assert not model._is_compiled(), "ZeRO-3 shards the weights"


def test_texts_of_another_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match="width 32, and the model was built for 24"):
        predict(perturbed_model(), torch.randn(1, 5, 1, 4, 4), random_condition(1, 1, text_dim=32))


def test_weights_are_the_same_if_memory_comes_later() -> None:
    dit = DiT(depth=2, dim=32, heads=2)
    torch.manual_seed(5)
    built = dit.build(4, 8)
    with torch.device("meta"):
        late = dit.build(4, 8)
    assert all(parameter.is_meta for parameter in late.parameters())
    late.to_empty(device="cpu")
    torch.manual_seed(5)
    late.initialise()
    assert all(a.equal(b) for a, b in zip(built.state_dict().values(), late.state_dict().values(), strict=True))
    assert built.state_dict().keys() == late.state_dict().keys()


def test_each_weight_can_be_initialised_alone() -> None:
    """ZeRO-3 holds one weight at a time."""
    torch.manual_seed(5)
    model_seed = int(torch.randint(2**62, ()))
    torch.manual_seed(5)
    model = DiT(depth=2, dim=32, heads=2).build(4, 8)
    for name, parameter in reversed(list(model.named_parameters())):
        alone = torch.nn.Parameter(torch.full_like(parameter, 7.0))
        initialise_weight(alone, name, model_seed)
        assert alone.equal(parameter), name


def test_models_of_one_seed_differ_and_each_takes_one_draw() -> None:
    torch.manual_seed(0)
    first, second = (DiT(depth=1, dim=32, heads=2).build(4, 8) for _ in range(2))
    after = torch.randint(2**62, ())
    assert not first.get_parameter("patch_in.weight").equal(second.get_parameter("patch_in.weight"))
    torch.manual_seed(0)
    assert torch.randint(2**62, (3,))[2] == after
