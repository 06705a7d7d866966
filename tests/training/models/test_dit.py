"""The diffusion transformer: shapes, independence of neighbours, gradients, determinism, and that it learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import validate
from training.models._dit_network import DiffusionTransformer
from training.models.dit import DiT
from training.network import Condition, VideoModel

SMALL = DiT(depth=2, dim=64, heads=2)


def condition(
    batch: int, frames: int, lengths: list[int] | None = None, text_dim: int = 24, seed: int = 0
) -> Condition:
    chance = torch.Generator().manual_seed(seed)
    return Condition(
        texts=[torch.randn(n, text_dim, generator=chance) for n in lengths or [4] * batch],
        times=[torch.rand(1, generator=chance).expand(frames).clone() for _ in range(batch)],
        conditioning_masks=[torch.zeros(frames)] * batch,
        seconds=[torch.arange(frames) * 0.5] * batch,
        fps_B=torch.full((batch,), 8.0),
        size_B2=torch.tensor([[96.0, 64.0]]).expand(batch, 2),
        crop_B2=torch.tensor([[0.125, 0.0]]).expand(batch, 2),
        source_B2=torch.tensor([[1920.0, 960.0]]).expand(batch, 2),
    )


def packed(
    shapes: Sequence[tuple[int, int, int]], lengths: Sequence[int], seed: int = 0
) -> tuple[list[torch.Tensor], Condition]:
    """A pack of random samples of 5 channels, each with shape, text, noise level, frame rate, size and crop of its own."""
    chance = torch.Generator().manual_seed(seed)
    ones = [
        condition(1, frames, [length], seed=seed + place)
        for place, ((frames, _, _), length) in enumerate(zip(shapes, lengths, strict=True))
    ]
    latents = [torch.randn(5, *shape, generator=chance) for shape in shapes]
    lists = {name: [getattr(one, name)[0] for one in ones] for name in ("texts", "times", "given", "seconds")}
    fps_B, size_B2 = (
        8 + 4 * torch.rand(len(shapes), generator=chance),
        64 + 64 * torch.rand(len(shapes), 2, generator=chance),
    )
    crop_B2, source_B2 = (
        0.5 * torch.rand(len(shapes), 2, generator=chance),
        128 + 64 * torch.rand(len(shapes), 2, generator=chance),
    )
    return latents, Condition(**lists, fps_B=fps_B, size_B2=size_B2, crop_B2=crop_B2, source_B2=source_B2)


def predict(model: VideoModel, x_BCTHW: torch.Tensor, one: Condition) -> torch.Tensor:
    """For samples of one shape, as a tensor."""
    return torch.stack(model(x_BCTHW.unbind(0), one))


def moved(settings: DiT = SMALL, channels: int = 5, text_dim: int = 24, seed: int = 0) -> VideoModel:
    """A model away from its zero initialisation, as after some training."""
    torch.manual_seed(seed)
    model = settings.build(channels, text_dim)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def pick(one: Condition, places: Sequence[int]) -> Condition:
    """The condition of some of the samples, in that order."""
    return Condition(
        *(
            [value[place] for place in places] if isinstance(value, list) else value[list(places)]
            for value in vars(one).values()
        )
    )


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 8, 12), (5, 6, 4), (3, 7, 5), (2, 1, 1)])
@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 1), (2, 2, 3)])
def test_any_size_goes_in_and_comes_out(shape: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    settings = SMALL.model_copy(update={"patch": patch})
    model = moved(settings)
    assert isinstance(model, DiffusionTransformer)
    x = torch.randn(2, 5, *shape)
    y = predict(model, x, condition(2, shape[0]))
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    tokens = model.patchify(x)
    assert tokens.shape[1] == settings.tokens(*shape)
    assert torch.stack([model.unpatchify(one, x.shape[1:]) for one in tokens]).equal(x)


def test_patches_hold_neighbouring_cells_in_order() -> None:
    model = SMALL.build(2, 24)
    assert isinstance(model, DiffusionTransformer)
    x = torch.arange(2 * 1 * 4 * 6, dtype=torch.float32).view(1, 2, 1, 4, 6)
    token = model.patchify(x)[0, 1 * 3 + 2]
    assert token.tolist() == x[0, :, 0, 2:4, 4:6].flatten().tolist()


def test_untrained_output_is_zero() -> None:
    assert not predict(SMALL.build(5, 24), torch.randn(1, 5, 2, 4, 4), condition(1, 2)).any()


SHAPES = [(3, 4, 6), (1, 8, 8), (3, 4, 6), (2, 3, 5), (1, 8, 8), (5, 2, 2)]
TEXTS = [2, 9, 1, 5, 5, 3]


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    """Only the rounding of matrix products, which may differ with the number of rows, is left: 5e-7 here."""
    model, (latents, one) = moved(), packed(SHAPES, TEXTS)
    together = model(latents, one)
    for place, latent in enumerate(latents):
        (alone,) = model([latent], pick(one, [place]))
        torch.testing.assert_close(together[place], alone, atol=2e-6, rtol=1e-5)


shapes_of_packs = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


@settings(max_examples=25)
@given(shapes=shapes_of_packs, data=st.data())
def test_any_pack_in_any_order(shapes: list[tuple[int, int, int]], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=len(shapes), max_size=len(shapes)))
    order = data.draw(st.permutations(range(len(shapes))))
    model, (latents, one) = moved(DiT(depth=1, dim=32, heads=2)), packed(shapes, lengths)
    straight, turned = model(latents, one), model([latents[place] for place in order], pick(one, order))
    assert [prediction.shape for prediction in straight] == [latent.shape for latent in latents]
    for place, prediction in zip(order, turned, strict=True):
        torch.testing.assert_close(prediction, straight[place], atol=2e-6, rtol=1e-5)


def test_the_order_of_different_samples_changes_not_one_bit() -> None:
    """Samples are packed in an order of their own, so what the kernels see is the same."""
    shapes, lengths = [SHAPES[place] for place in (0, 1, 3, 5)], [TEXTS[place] for place in (0, 1, 3, 5)]
    model, (latents, one) = moved(), packed(shapes, lengths)
    straight, turned = model(latents, one), model(latents[::-1], pick(one, [3, 2, 1, 0]))
    assert all(a.equal(b) for a, b in zip(straight, reversed(turned), strict=True))


def test_gradients_of_a_sample_do_not_depend_on_its_neighbours() -> None:
    model, (latents, one) = moved(), packed(SHAPES, TEXTS)
    places = range(len(latents))
    sum(prediction.square().mean() for prediction in model(latents, one)).backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for place in places:
        model([latents[place]], pick(one, [place]))[0].square().mean().backward()
    for name, parameter in model.named_parameters():
        scale = float(together[name].abs().max())
        torch.testing.assert_close(parameter.grad, together[name], atol=1e-5 * scale + 1e-8, rtol=1e-4)


def test_a_neighbour_that_is_no_number_spoils_nothing() -> None:
    """So that a loss that is no number names the sample it comes from."""
    model, (latents, one) = moved(), packed(SHAPES, TEXTS)
    expected = model(latents, one)
    spoiled = model([latents[0], torch.full_like(latents[1], float("nan")), *latents[2:]], one)
    assert [bool(prediction.isnan().any()) for prediction in spoiled] == [False, True, False, False, False, False]
    assert all(expected[place].equal(spoiled[place]) for place in (0, 2, 3, 4, 5))


@pytest.mark.parametrize("field", ["texts", "times", "given", "seconds", "fps_B", "size_B2", "crop_B2", "source_B2"])
def test_every_part_of_the_condition_matters(field: str) -> None:
    model, one = moved(), condition(1, 3)
    x = torch.randn(1, 5, 3, 4, 6)
    value = getattr(one, field)

    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + torch.linspace(0.1, 1, tensor.numel()).view(tensor.shape)

    changed = (
        [part.flip(0) if field == "texts" else shifted(part) for part in value]
        if isinstance(value, list)
        else shifted(value)
    )
    assert (predict(model, x, one) - predict(model, x, replace(one, **{field: changed}))).abs().max() > 1e-4


def test_modulation_follows_each_frame() -> None:
    """The noise level of one frame reaches other frames through attention alone, so without it they do not notice."""
    model = moved(DiT(depth=1, dim=64, heads=2))
    with torch.no_grad():
        model.get_parameter("blocks.0.attention.out.weight").zero_()
    one = condition(1, 3)
    time = one.times[0].clone()
    time[1] = 0.0
    x = torch.randn(1, 5, 3, 4, 4)
    changed = (predict(model, x, one) - predict(model, x, replace(one, times=[time]))).abs().amax(dim=(0, 1, 3, 4))
    assert changed[1] > 1e-3
    assert changed[0] == changed[2] == 0


def test_attention_sees_differences_of_seconds_only() -> None:
    """Without the absolute places, shifting all times changes nothing."""
    model, one = moved(), condition(1, 4)
    with torch.no_grad():
        model.get_parameter("seconds_in.weight").zero_()
    x = torch.randn(1, 5, 4, 4, 4)
    torch.testing.assert_close(
        predict(model, x, one), predict(model, x, replace(one, seconds=[one.seconds[0] + 2.5])), atol=1e-4, rtol=1e-4
    )


def test_every_parameter_gets_a_gradient() -> None:
    model, one = moved(), condition(2, 3, [3, 5])
    one = replace(one, conditioning_masks=[torch.tensor([1.0, 0, 0]), torch.zeros(3)])
    predict(model, torch.randn(2, 5, 3, 4, 4), one).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_untrained_model_can_start_to_learn() -> None:
    """Zero initialisation must not be a fixed point: after four steps every parameter has moved."""
    torch.manual_seed(0)
    model = SMALL.build(5, 24)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    one = replace(condition(2, 3, [3, 5]), conditioning_masks=[torch.tensor([1.0, 0, 0]), torch.zeros(3)])
    x, target = torch.randn(2, 2, 5, 3, 4, 4).unbind(0)
    for _ in range(4):
        optimizer.zero_grad()
        (predict(model, x, one) - target).square().mean().backward()
        optimizer.step()
    assert [name for name, value in model.named_parameters() if value.equal(start[name])] == []


def test_same_seed_same_bits() -> None:
    x, one = torch.randn(2, 5, 3, 4, 4), condition(2, 3, [3, 5])
    assert predict(moved(seed=3), x, one).equal(predict(moved(seed=3), x, one))
    assert not predict(moved(seed=3), x, one).equal(predict(moved(seed=4), x, one))


def test_bf16_is_close_to_fp32() -> None:
    model, one = moved(), condition(2, 3, [3, 5])
    x = torch.randn(2, 5, 3, 4, 4)
    full = predict(model, x, one)
    half = predict(model.to(torch.bfloat16), x, one)
    assert half.dtype == torch.float32
    assert (full - half).norm() / full.norm() < 0.03


def test_it_overfits_two_samples() -> None:
    torch.manual_seed(0)
    model, one = DiT(depth=2, dim=64, heads=2).build(4, 24), condition(2, 2, [3, 5])
    x, target = torch.randn(2, 2, 4, 2, 4, 4).unbind(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (predict(model, x, one) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_shared_modulation_is_a_small_part() -> None:
    model = DiT(depth=12, dim=384, heads=6).build(16, 512)
    modulation = sum(
        value.numel() for name, value in model.named_parameters() if "modulation" in name or "table" in name
    )
    assert modulation < 0.05 * sum(value.numel() for value in model.parameters())


def gradients(model: VideoModel, latents: Sequence[torch.Tensor], one: Condition) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum(prediction.square().mean() for prediction in model(latents, one)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("checkpointing", "again"), [("none", 0), ("blocks", 5), (2, 3), (3, 2)])
def test_checkpointing_computes_blocks_again_and_changes_not_one_bit(
    checkpointing: Literal["none", "blocks"] | int, again: int
) -> None:
    plain, saving = (moved(DiT(depth=5, dim=32, heads=2, checkpointing=how)) for how in ("none", checkpointing))
    latents, one = packed(SHAPES, TEXTS)
    calls: list[int] = []
    for index in range(5):
        saving.get_submodule(f"blocks.{index}").register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    expected, got = gradients(plain, latents, one), gradients(saving, latents, one)
    assert all(expected[name].equal(got[name]) for name in expected)
    assert len(calls) == 5 + again
    with torch.no_grad():
        assert all(a.equal(b) for a, b in zip(plain(latents, one), saving(latents, one), strict=True))


def test_compiled_blocks_give_the_same_numbers(compiled_graphs: Counter[str]) -> None:
    plain, compiled = moved(), moved(SMALL.model_copy(update={"compile": True, "checkpointing": 2}))
    latents, one = packed(SHAPES, TEXTS)
    expected, got = gradients(plain, latents, one), gradients(compiled, latents, one)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)
    assert compiled_graphs["unique_graphs"] > 0
    compiled_graphs.clear()
    compiled.eval()(latents, one)
    assert not compiled_graphs, "sampling takes any shape, and would wait for each"


def test_blocks_are_compiled_once_for_a_shape_and_once_for_all_mixtures(compiled_graphs: Counter[str]) -> None:
    model = moved(SMALL.model_copy(update={"compile": True}))

    def graphs(shapes: list[tuple[int, int, int]], lengths: list[int]) -> int:
        before = compiled_graphs["unique_graphs"]
        model(*packed(shapes, lengths))
        return compiled_graphs["unique_graphs"] - before

    for shape in [(3, 4, 6), (1, 8, 8)]:
        assert graphs([shape] * 2, [3, 3]) > 0
        graphs([shape] * 2, [3, 5])
        assert sum(graphs([shape] * 2, [n, m]) for n, m in [(4, 4), (7, 7), (5, 9), (6, 2)]) == 0
    graphs([(3, 4, 6), (1, 8, 8), (2, 3, 5)], [2, 3, 4])
    graphs([(3, 4, 6), (1, 8, 8), (1, 8, 8)], [5, 3, 4])
    others = [[(2, 3, 5), (4, 2, 2)], [(1, 6, 6), (3, 5, 7), (2, 2, 2), (2, 2, 2)], [(1, 3, 3), (1, 9, 9), (5, 2, 6)]]
    assert sum(graphs(shapes, list(range(2, 2 + len(shapes)))) for shapes in others) == 0


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
        predict(moved(), torch.randn(1, 5, 1, 4, 4), condition(1, 1, text_dim=32))
