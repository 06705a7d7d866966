"""Tests of buckets: their shapes, and the bucket that a source is assigned."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import validate
from training.data.buckets import Bucket, BucketSettings, assign_bucket

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
@given(st.lists(SETTINGS, min_size=1, max_size=3), SIDES, SIDES, st.floats(0, 30), st.booleans())
def test_a_bucket_fits_its_source_and_is_the_best(
    buckets: list[BucketSettings], width: int, height: int, duration_s: float, is_image: bool
) -> None:
    found = assign_bucket(buckets, width, height, duration_s, is_image)
    fitting = []
    for settings in buckets:
        distance = {shape: abs(math.log(shape[0] * height / (shape[1] * width))) for shape in settings.shapes}
        # Computed in another way than in the code under test, so aspects equally near may round differently.
        near = [shape for shape in settings.shapes if distance[shape] <= min(distance.values()) + 1e-9]
        for frames in settings.frames:
            if (frames == 1) if is_image else ((frames - 1) / settings.fps <= duration_s + 1e-6):
                fitting += [
                    Bucket(*shape, frames, settings.fps) for shape in near if shape[0] <= width and shape[1] <= height
                ]
    if isinstance(found, str):
        not_refused = [
            settings
            for settings in buckets
            if any(
                bucket.fps == settings.fps and (bucket.width, bucket.height) == settings.nearest_shape(width, height)
                for bucket in fitting
            )
        ]
        assert not not_refused
        assert found
        return
    assert found in fitting
    assert found.width <= width
    assert found.height <= height
    assert (found.frames == 1) if is_image else found.duration_s <= duration_s + 1e-6
    same_shape = [bucket for bucket in fitting if (bucket.width, bucket.height) == (found.width, found.height)]
    assert (found.frames, found.fps) == max((bucket.frames, bucket.fps) for bucket in same_shape)


@pytest.mark.slow
@given(SETTINGS, SIDES, SIDES)
def test_a_source_rotated_by_90_degrees_rotates_its_bucket(settings: BucketSettings, width: int, height: int) -> None:
    upright, rotated = (
        assign_bucket([settings], width, height, 1e3, False),
        assign_bucket([settings], height, width, 1e3, False),
    )
    if isinstance(upright, Bucket) and isinstance(rotated, Bucket):
        # Two aspects can be equally near, and then the earlier one in the list is taken either way.
        ties = {abs(math.log(w / h)) for w, h in settings.shapes}
        if all(abs(abs(math.log(width / height)) - (a + b) / 2) > 1e-9 for a in ties for b in ties if a != b):
            assert (rotated.width, rotated.height, rotated.frames) == (upright.height, upright.width, upright.frames)


def test_the_largest_area_wins_then_the_most_frames() -> None:
    sizes = [BucketSettings(size=size, frames=(1, 9, 17), fps=8) for size in (64, 128, 256)]
    assert assign_bucket(sizes, 1280, 720, 5.0, False) == Bucket(336, 192, 17, 8)
    assert assign_bucket(sizes, 300, 170, 5.0, False) == Bucket(176, 96, 17, 8)
    assert assign_bucket(sizes, 1280, 720, 1.5, False) == Bucket(336, 192, 9, 8)
    assert assign_bucket(sizes, 720, 1280, 2.0, False) == Bucket(192, 336, 17, 8)
    assert assign_bucket(sizes, 1280, 720, 0.0, True) == Bucket(336, 192, 1, 8)


def test_a_smaller_size_is_used_if_only_its_frames_fit() -> None:
    sizes = [BucketSettings(size=64, frames=(9,), fps=8), BucketSettings(size=256, frames=(33,), fps=8)]
    assert assign_bucket(sizes, 1280, 720, 2.0, False) == Bucket(80, 48, 9, 8)


def test_reasons_name_the_values() -> None:
    settings = [BucketSettings(size=256, frames=(9, 17), fps=8)]
    for size_and_duration, is_image, reason in [
        (
            (320, 180, 5.0),
            False,
            "320x180 is smaller than 336x192, the smallest bucket of its aspect, and would have to be enlarged",
        ),
        ((640, 360, 0.5), False, "0.50 s is shorter than 1.00 s, the duration of 9 frames at 8 fps"),
        ((640, 360, 0.0), True, "it is an image, and no bucket it could fill has 1 among its frames"),
        ((0, 360, 0.0), True, "the source is 0x360, which is empty"),
    ]:
        assert assign_bucket(settings, *size_and_duration, is_image) == reason
    with pytest.raises(ValueError, match="no buckets"):
        assign_bucket([], 640, 360, 1.0, False)
