"""The diffusion transformer: shapes, independence of neighbours, gradients, determinism, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cluster.config import validate
from training.model import Condition, VideoModel
from training.models.dit import DiffusionTransformer, DiT

SMALL = DiT(depth=2, dim=64, heads=2)


def condition(batch: int, frames: int, lengths: list[int] | None = None, text_dim: int = 24, seed: int = 0) -> Condition:
    chance = torch.Generator().manual_seed(seed)
    return Condition(
        texts=[torch.randn(n, text_dim, generator=chance) for n in lengths or [4] * batch],
        time_BT=torch.rand(batch, 1, generator=chance).expand(batch, frames).clone(),
        given_BT=torch.zeros(batch, frames),
        seconds_BT=(torch.arange(frames) * 0.5).expand(batch, frames),
        fps_B=torch.full((batch,), 8.0),
        size_B2=torch.tensor([[96.0, 64.0]]).expand(batch, 2),
    )


def moved(settings: DiT = SMALL, channels: int = 5, text_dim: int = 24, seed: int = 0) -> VideoModel:
    """A model away from its zero initialisation, as after some training."""
    torch.manual_seed(seed)
    model = settings.build(channels, text_dim)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def pick(one: Condition, index: int) -> Condition:
    return Condition(*(value[index : index + 1] for value in vars(one).values()))


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 8, 12), (5, 6, 4), (3, 7, 5), (2, 1, 1)])
@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 1), (2, 2, 3)])
def test_any_size_goes_in_and_comes_out(shape: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    settings = SMALL.model_copy(update={"patch": patch})
    model = moved(settings)
    assert isinstance(model, DiffusionTransformer)
    x = torch.randn(2, 5, *shape)
    y = model(x, condition(2, shape[0]))
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    tokens = model.patchify(x)
    assert tokens.shape[1] == settings.tokens(*shape)
    assert model.unpatchify(tokens, x.shape).equal(x)


def test_patches_hold_neighbouring_cells_in_order() -> None:
    model = SMALL.build(2, 24)
    assert isinstance(model, DiffusionTransformer)
    x = torch.arange(2 * 1 * 4 * 6, dtype=torch.float32).view(1, 2, 1, 4, 6)
    token = model.patchify(x)[0, 1 * 3 + 2]
    assert token.tolist() == x[0, :, 0, 2:4, 4:6].flatten().tolist()


def test_untrained_output_is_zero() -> None:
    assert not SMALL.build(5, 24)(torch.randn(1, 5, 2, 4, 4), condition(1, 2)).any()


def test_results_do_not_depend_on_neighbours() -> None:
    model, texts = moved(), condition(4, 3, [2, 9, 1, 5])
    x = torch.randn(4, 5, 3, 4, 6)
    together = model(x, texts)
    for index in range(4):
        torch.testing.assert_close(together[index : index + 1], model(x[index : index + 1], pick(texts, index)), atol=2e-6, rtol=1e-5)


def test_a_longer_neighbour_changes_nothing() -> None:
    model, texts = moved(), condition(2, 1, [2, 6])
    x = torch.randn(2, 5, 1, 4, 4)
    longer = replace(texts, texts=[texts.texts[0], torch.cat((texts.texts[1], torch.full((30, 24), 1e3)))])
    torch.testing.assert_close(model(x, texts)[0], model(x, longer)[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("field", ["texts", "time_BT", "given_BT", "seconds_BT", "fps_B", "size_B2"])
def test_every_part_of_the_condition_matters(field: str) -> None:
    model, one = moved(), condition(1, 3)
    x = torch.randn(1, 5, 3, 4, 6)
    value = getattr(one, field)
    changed = [text.flip(0) for text in value] if field == "texts" else value + torch.linspace(0.1, 1, value.numel()).view(value.shape)
    assert (model(x, one) - model(x, replace(one, **{field: changed}))).abs().max() > 1e-4


def test_modulation_follows_each_frame() -> None:
    """The noise level of one frame reaches other frames through attention alone, so without it they do not notice."""
    model = moved(DiT(depth=1, dim=64, heads=2))
    with torch.no_grad():
        model.get_parameter("blocks.0.attention.out.weight").zero_()
    one = condition(1, 3)
    time = one.time_BT.clone()
    time[0, 1] = 0.0
    x = torch.randn(1, 5, 3, 4, 4)
    changed = (model(x, one) - model(x, replace(one, time_BT=time))).abs().amax(dim=(0, 1, 3, 4))
    assert changed[1] > 1e-3
    assert changed[0] == changed[2] == 0


def test_attention_sees_differences_of_seconds_only() -> None:
    """Without the absolute places, shifting all times changes nothing."""
    model, one = moved(), condition(1, 4)
    with torch.no_grad():
        model.get_parameter("seconds_in.weight").zero_()
    x = torch.randn(1, 5, 4, 4, 4)
    torch.testing.assert_close(model(x, one), model(x, replace(one, seconds_BT=one.seconds_BT + 2.5)), atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    model, one = moved(), condition(2, 3, [3, 5])
    one = replace(one, given_BT=torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
    model(torch.randn(2, 5, 3, 4, 4), one).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_untrained_model_can_start_to_learn() -> None:
    """Zero initialisation must not be a fixed point: after four steps every parameter has moved."""
    torch.manual_seed(0)
    model = SMALL.build(5, 24)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    one = replace(condition(2, 3, [3, 5]), given_BT=torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
    x, target = torch.randn(2, 2, 5, 3, 4, 4).unbind(0)
    for _ in range(4):
        optimizer.zero_grad()
        (model(x, one) - target).square().mean().backward()
        optimizer.step()
    assert [name for name, value in model.named_parameters() if value.equal(start[name])] == []


def test_same_seed_same_bits() -> None:
    x, one = torch.randn(2, 5, 3, 4, 4), condition(2, 3, [3, 5])
    assert moved(seed=3)(x, one).equal(moved(seed=3)(x, one))
    assert not moved(seed=3)(x, one).equal(moved(seed=4)(x, one))


def test_bf16_is_close_to_fp32() -> None:
    model, one = moved(), condition(2, 3, [3, 5])
    x = torch.randn(2, 5, 3, 4, 4)
    full = model(x, one)
    half = model.to(torch.bfloat16)(x, one)
    assert half.dtype == torch.float32
    assert (full - half).norm() / full.norm() < 0.03


def test_it_overfits_two_samples() -> None:
    torch.manual_seed(0)
    model, one = DiT(depth=2, dim=64, heads=2).build(4, 24), condition(2, 2, [3, 5])
    x, target = torch.randn(2, 2, 4, 2, 4, 4).unbind(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(x, one) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_shared_modulation_is_a_small_part() -> None:
    model = DiT(depth=12, dim=384, heads=6).build(16, 512)
    modulation = sum(value.numel() for name, value in model.named_parameters() if "modulation" in name or "table" in name)
    assert modulation < 0.05 * sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 100, "heads": 6}, "heads of width 16.6667"),
        ({"dim": 64, "heads": 8}, "heads of width 8;"),
        ({"patch": [0, 2, 2]}, "must be positive"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(DiT, {"name": "dit", **settings})


def test_texts_of_another_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match="width 32, and the model was built for 24"):
        moved()(torch.randn(1, 5, 1, 4, 4), condition(1, 1, text_dim=32))
