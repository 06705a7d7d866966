"""Presets, what they cost, and how a model comes into memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from cluster.config import validate
from tests.training.models.test_dit import condition
from training.models._dit_network import fill
from training.models._dit_size import PRESETS
from training.models.dit import DiT
from training.network import Condition, VideoModel

WEIGHTS = {
    "nano": 1_520_832,
    "S": 30_973_888,
    "B": 122_106_688,
    "L": 417_872_960,
    "XL": 613_532_224,
    "1.3B": 1_164_928_576,
}
"""For 16 channels and text tokens of width 512; counted by hand, layer by layer."""


def on_meta(settings: DiT, channels: int = 16, text_dim: int = 512) -> VideoModel:
    with torch.device("meta"):
        return settings.build(channels, text_dim)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_weights_they_had(preset: str) -> None:
    model = on_meta(validate(DiT, {"name": "dit", "preset": preset}))
    assert sum(parameter.numel() for parameter in model.parameters()) == WEIGHTS[preset]


def test_a_preset_is_depth_dim_and_heads_by_name() -> None:
    named, written = DiT(preset="XL"), DiT(depth=28, dim=1152, heads=16)
    assert (named.size, named.flops(4096, 100)) == (written.size, written.flops(4096, 100))
    assert validate(DiT, named.model_dump(mode="json")) == named
    with pytest.raises(ValueError, match="preset XL has depth 28, and depth 4 is given; leave out one of them"):
        validate(DiT, {"name": "dit", "preset": "XL", "depth": 4})
    with pytest.raises(ValueError, match="nano"):
        validate(DiT, {"name": "dit", "preset": "XXL"})


def meta_pack(shapes: list[tuple[int, int, int]], lengths: list[int]) -> tuple[list[torch.Tensor], Condition]:
    ones = [
        condition(1, frames, [length], text_dim=512) for (frames, _, _), length in zip(shapes, lengths, strict=True)
    ]
    lists = {
        name: [getattr(one, name)[0].to("meta") for one in ones] for name in ("texts", "times", "given", "seconds")
    }
    latents = [torch.empty(16, *shape, device="meta") for shape in shapes]
    pairs = {name: torch.empty(len(shapes), 2, device="meta") for name in ("size_B2", "crop_B2", "source_B2")}
    return latents, Condition(**lists, fps_B=torch.empty(len(shapes), device="meta"), **pairs)


def counted(model: VideoModel, shapes: list[tuple[int, int, int]], lengths: list[int], part: str) -> int:
    latents, one = meta_pack(shapes, lengths)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(latents, one)
    return sum(sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name == part)


@pytest.mark.parametrize("preset", ["S", "B", "L", "XL", "1.3B"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (9, 32, 32), (33, 30, 52)])
def test_the_formula_is_within_1_percent_of_what_torch_counts(preset: str, shape: tuple[int, int, int]) -> None:
    settings = validate(DiT, {"name": "dit", "preset": preset})
    total = counted(on_meta(settings), [shape], [77], "Global")
    assert settings.flops(settings.tokens(*shape), 77) == pytest.approx(total, rel=0.01)


@settings(max_examples=10, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    ratio=st.sampled_from([2.5, 4.0]),
)
def test_the_formula_is_exact_for_blocks_and_adds_up_over_a_pack(
    shapes: list[tuple[int, int, int]], ratio: float
) -> None:
    dit = DiT(depth=2, dim=48, heads=2, mlp_ratio=ratio)
    lengths = [3 + place for place in range(len(shapes))]
    model = on_meta(dit)
    blocks = sum(counted(model, shapes, lengths, f"DiffusionTransformer.blocks.{index}") for index in range(2))
    assert blocks == sum(dit.flops(dit.tokens(*shape), length) for shape, length in zip(shapes, lengths, strict=True))


def test_a_model_without_memory_is_filled_with_the_same_numbers() -> None:
    dit = DiT(depth=2, dim=32, heads=2)
    torch.manual_seed(5)
    built = dit.build(4, 8)
    late = on_meta(dit, 4, 8)
    assert all(parameter.is_meta for parameter in late.parameters())
    late.to_empty(device="cpu")
    torch.manual_seed(5)
    late.initialise()
    assert all(a.equal(b) for a, b in zip(built.state_dict().values(), late.state_dict().values(), strict=True))
    assert built.state_dict().keys() == late.state_dict().keys()


def test_each_weight_can_be_filled_alone() -> None:
    """As ZeRO-3 needs it, which holds one at a time."""
    torch.manual_seed(5)
    drawn = int(torch.randint(2**62, ()))
    torch.manual_seed(5)
    model = DiT(depth=2, dim=32, heads=2).build(4, 8)
    for name, parameter in reversed(list(model.named_parameters())):
        alone = torch.nn.Parameter(torch.full_like(parameter, 7.0))
        fill(alone, name, drawn)
        assert alone.equal(parameter), name


def test_two_models_of_one_seed_begin_apart_and_building_takes_one_draw() -> None:
    torch.manual_seed(0)
    first, second = (DiT(depth=1, dim=32, heads=2).build(4, 8) for _ in range(2))
    after = torch.randint(2**62, ())
    assert not first.get_parameter("patch_in.weight").equal(second.get_parameter("patch_in.weight"))
    torch.manual_seed(0)
    assert torch.randint(2**62, (3,))[2] == after
