"""Tests of buckets: their shapes, and the sizes at which a source may be encoded."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import validate
from training.data.buckets import Bucket, BucketSettings, fitting_choices, shorter_lengths

SIDES = st.integers(1, 5000)
FRAMES = st.lists(st.integers(0, 40).map(lambda k: 1 + 4 * k), min_size=1, max_size=4, unique=True).map(tuple)
SETTINGS = st.builds(
    BucketSettings, size=st.integers(32, 768), frames=FRAMES, fps=st.sampled_from([6.0, 8.0, 16.0, 23.976, 24.0])
)


def test_shapes_and_names_of_64_pixels() -> None:
    settings = BucketSettings(size=64, frames=(1, 17), fps=8)
    # 64 * sqrt(16 / 9) is 85.3 x 48, and 64 * sqrt(4 / 3) is 73.9 x 55.4: both are nearest to 80 x 48.
    assert settings.shapes == ((80, 48), (64, 64), (48, 80))
    assert [bucket.name for bucket in settings.buckets()] == [
        "80x48x1",
        "80x48x17",
        "64x64x1",
        "64x64x17",
        "48x80x1",
        "48x80x17",
    ]


def test_shapes_of_256_pixels() -> None:
    assert BucketSettings(size=256, frames=(1,), fps=24).shapes == (
        (336, 192),
        (288, 224),
        (256, 256),
        (224, 288),
        (192, 336),
    )


def test_sides_are_multiples_of_the_setting() -> None:
    assert BucketSettings(size=256, frames=(1,), fps=24, multiple=32).shapes == (
        (352, 192),
        (288, 224),
        (256, 256),
        (224, 288),
        (192, 352),
    )
    assert BucketSettings(size=64, frames=(1,), fps=24, multiple=64, aspects=("16:9",)).shapes == ((64, 64),)


@pytest.mark.parametrize("frames", [(0,), (2,), (1, 16), (-3,), (9, 9), ()])
def test_frames_that_no_autoencoder_takes_are_refused(frames: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames|at least 1 item"):
        BucketSettings(size=64, frames=frames, fps=8)


def test_errors_name_the_value_and_the_nearest_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"16 frames.*take 13 or 17"):
        BucketSettings(size=64, frames=(16,), fps=8)
    with pytest.raises(ValueError, match=r"aspect '16/9'.*16:9"):
        BucketSettings(size=64, frames=(1,), fps=8, aspects=("16/9",))


def test_settings_are_read_from_a_recipe() -> None:
    assert validate(BucketSettings, {"size": 64, "frames": [1, 9], "fps": 8}) == BucketSettings(
        size=64, frames=(1, 9), fps=8.0
    )


@pytest.mark.slow
@given(SETTINGS)
def test_shapes_have_sides_of_16_and_nearly_the_area(settings: BucketSettings) -> None:
    for width, height in settings.shapes:
        assert width % 16 == 0
        assert height % 16 == 0
        # Each side is off by 8 pixels at most, so the area by 8 * (width + height) and a little.
        assert abs(width * height - settings.size**2) <= 8 * (width + height) + 64


@pytest.mark.slow
@given(st.lists(SETTINGS, min_size=1, max_size=3), SIDES, SIDES)
def test_choices_are_all_sizes_that_enlarge_nothing(buckets: list[BucketSettings], width: int, height: int) -> None:
    found = fitting_choices(buckets, width, height)
    expected: dict[tuple[int, float], list[tuple[int, int]]] = {}
    for size, fps in {(entry.size, entry.fps) for entry in buckets}:
        shapes = [shape for entry in buckets if (entry.size, entry.fps) == (size, fps) for shape in entry.shapes]
        distance = {shape: abs(math.log(shape[0] * height / (shape[1] * width))) for shape in shapes}
        # Computed in another way than in the code under test, so aspects equally near may round differently.
        near = [shape for shape in shapes if distance[shape] <= min(distance.values()) + 1e-9]
        expected[size, fps] = [shape for shape in near if shape[0] <= width and shape[1] <= height]
    if isinstance(found, str):
        assert f"{width}x{height} is smaller than" in found
        assert not all(expected.values())
        return
    assert len({(choice.width, choice.height, choice.fps) for choice in found}) <= len(expected)
    for choice in found:
        assert choice.width <= width
        assert choice.height <= height
        assert any(
            (choice.width, choice.height) in shapes for (_, fps), shapes in expected.items() if fps == choice.fps
        )
    if all(len(shapes) == 1 for shapes in expected.values()):
        assert len(found) == len(expected)


@pytest.mark.slow
@given(SETTINGS, SIDES, SIDES)
def test_a_source_rotated_by_90_degrees_rotates_its_shape(settings: BucketSettings, width: int, height: int) -> None:
    upright, rotated = fitting_choices([settings], width, height), fitting_choices([settings], height, width)
    if not isinstance(upright, str) and not isinstance(rotated, str):
        # Two aspects can be equally near, and then the earlier one in the list is taken either way.
        ties = {abs(math.log(w / h)) for w, h in settings.shapes}
        if all(abs(abs(math.log(width / height)) - (a + b) / 2) > 1e-9 for a in ties for b in ties if a != b):
            assert (rotated[0].width, rotated[0].height) == (upright[0].height, upright[0].width)
            assert rotated[0].frames == upright[0].frames


def test_entries_of_one_size_and_rate_are_one_choice() -> None:
    buckets = [
        BucketSettings(size=64, frames=(1,), fps=8, aspects=("1:1",)),
        BucketSettings(size=64, frames=(9, 17), fps=8, aspects=("16:9", "1:1")),
        BucketSettings(size=64, frames=(33,), fps=8, aspects=("16:9",)),
    ]
    wide, square = fitting_choices(buckets, 640, 360), fitting_choices(buckets, 360, 360)
    assert not isinstance(wide, str)
    assert not isinstance(square, str)
    assert [(choice.width, choice.height, choice.frames) for choice in wide] == [(80, 48, (9, 17, 33))]
    assert [(choice.width, choice.height, choice.frames) for choice in square] == [(64, 64, (1, 9, 17))]


def test_shorter_lengths_are_those_of_the_shape_and_rate() -> None:
    buckets = [
        BucketSettings(size=64, frames=(1, 9, 17), fps=8),
        BucketSettings(size=64, frames=(5,), fps=16),
        BucketSettings(size=64, frames=(13,), fps=8, aspects=("1:1",)),
    ]
    assert [bucket.frames for bucket in shorter_lengths(buckets, Bucket(80, 48, 17, 8))] == [9, 1]
    assert [bucket.frames for bucket in shorter_lengths(buckets, Bucket(64, 64, 17, 8))] == [13, 9, 1]
    assert shorter_lengths(buckets, Bucket(80, 48, 1, 8)) == ()


def test_reasons_of_sources_without_a_size_name_the_values() -> None:
    settings = [BucketSettings(size=256, frames=(9, 17), fps=8)]
    assert fitting_choices(settings, 320, 180) == (
        "320x180 is smaller than 336x192, the smallest bucket of its aspect, and would have to be enlarged"
    )
    assert fitting_choices(settings, 0, 360) == "the source is 0x360, which is empty"
    with pytest.raises(ValueError, match="no buckets"):
        fitting_choices([], 640, 360)
