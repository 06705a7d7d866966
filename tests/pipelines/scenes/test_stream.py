"""The stream of drawn footage: pure, without repetition, and its two sides apart."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.scenes.combinations import HELD_OUT_ACTIONS, HELD_OUT_COLOURS, HELD_OUT_PAIRS, has_held_out_pair
from pipelines.scenes.draw import COLOURS, KINDS
from pipelines.scenes.scene import ACTIONS, CAMERA_MOVES, MIN_CONTRAST
from pipelines.scenes.stream import SIZES, WORLD, Selection, Stream, StreamFile, held_out_prompts
from training.evaluation.truth import FileTruth

SEEDS = st.integers(0, 2**64)
INDICES = st.integers(0, 10**9)


def has_unseen_pair(truth: FileTruth) -> bool:
    """Return whether a held-out pair is in a file, by its truth alone."""
    (shot,) = truth.shots
    pairs = {(body.kind, value) for body in shot.bodies for value in (body.colour, shot.action)}
    return not pairs.isdisjoint(WORLD.held_out_pairs)


def same(a: FileTruth, b: FileTruth) -> bool:
    return a.shots[0].caption == b.shots[0].caption and np.array_equal(a.shots[0].states_FB3, b.shots[0].states_FB3)


@given(SEEDS, INDICES)
@settings(deadline=None)
def test_training_footage_has_no_held_out_combination(seed: int, index: int) -> None:
    file = Stream(seed, "train").file(index)
    action = "none" if file.is_image else file.plan.scene.action
    assert not has_held_out_pair(file.plan.scene.bodies, action)
    assert file.combination == "seen"


@given(SEEDS, INDICES)
@settings(deadline=None, max_examples=10)
def test_held_out_truth_says_what_is_unseen(seed: int, index: int) -> None:
    truth = Stream(seed, "held_out").file(index).truth("a.mp4")
    assert (truth.combination == "unseen") == has_unseen_pair(truth)
    assert truth.split == "held_out"


@pytest.mark.slow
@given(SEEDS, INDICES)
@settings(deadline=None, max_examples=10)
def test_streams_and_indices_do_not_collide(seed: int, index: int) -> None:
    files = [
        Stream(seed, "train").file(index),
        Stream(seed, "held_out").file(index),
        Stream(seed + 1, "train").file(index),
        Stream(seed, "train").file(index + 1),
    ]
    truths = [file.truth(file.name) for file in files]
    assert not any(same(a, b) for a, b in itertools.combinations(truths, 2))
    again = StreamFile(files[0].stream, index)
    assert same(again.truth(again.name), truths[0])
    assert again.backdrop == files[0].backdrop


@pytest.mark.slow
def test_every_kind_colour_and_action_is_trained() -> None:
    assert len(HELD_OUT_PAIRS) == 8
    assert len(set(HELD_OUT_COLOURS.values())) == len(set(HELD_OUT_ACTIONS.values())) == len(KINDS)
    files = [Stream(0, "train").file(index) for index in range(1200)]
    plans = [file.plan for file in files]
    pairs = Counter(
        (body.kind, value)
        for file, plan in zip(files, plans, strict=True)
        for body in plan.scene.bodies
        for value in (body.colour, "none" if file.is_image else plan.scene.action)
    )
    seen = set(itertools.product(KINDS, [*COLOURS, *ACTIONS, "none"])) - set(HELD_OUT_PAIRS)
    assert set(pairs) == seen
    assert min(pairs[kind, colour] for kind, colour in seen if colour in COLOURS) > 20
    assert {plan.scene.camera for plan in plans} == set(CAMERA_MOVES)
    assert {(plan.width, plan.height) for plan in plans} == set(SIZES)
    assert {len(plan.scene.bodies) for plan in plans} == {1, 2, 3}
    assert sum(file.is_image for file in files) == 1200 / 8


@pytest.mark.slow
def test_files_fit_buckets_and_captions() -> None:
    for width, height in SIZES:
        assert (width % 8, height % 8) == (0, 0)
        assert 96 <= min(width, height) <= 144
    files = [Stream(3, "train").file(index) for index in range(80)]
    for file in files:
        plan, (shot,) = file.plan, file.truth(file.name).shots
        assert shot.end_frame == (1 if file.is_image else round(plan.scene.seconds * plan.fps))
        assert file.is_image or 2 <= (shot.end_frame - 1) / plan.fps <= 5
        assert all(f"{body.colour} {body.kind}" in shot.caption for body in shot.bodies)
        assert f"{shot.background} background" in shot.caption
        assert ("camera" in shot.caption) != file.is_image
        wall = WORLD.backgrounds[shot.background]
        for body in shot.bodies:
            assert np.linalg.norm(np.subtract(WORLD.colours[body.colour], wall)) >= MIN_CONTRAST


@pytest.mark.slow
def test_held_out_prompts_are_the_first_held_out_videos() -> None:
    prompts = held_out_prompts(32, seed=5)
    assert len(prompts) == 32
    assert Counter(prompt.truth.combination for prompt in prompts) == {"seen": 30, "unseen": 2}
    stream = Stream(5, "held_out")
    videos = [stream.file(index) for index in Selection(32, 0).indices()]
    for prompt, file in zip(prompts, videos, strict=True):
        assert same(prompt.truth, file.truth(file.name))
        assert (prompt.caption, prompt.width, prompt.height) == (file.plan.caption, file.plan.width, file.plan.height)
    assert {prompt.seconds for prompt in prompts} <= {2, 2.5, 3, 3.5, 4, 4.5, 5}
    assert [prompt.caption for prompt in held_out_prompts(4, seed=5)] == [prompt.caption for prompt in prompts[:4]]


@pytest.mark.parametrize(("videos", "images"), [(1, 0), (0, 1), (7, 1), (8, 5), (57, 3), (20, 40)])
def test_selections_are_the_first_of_each_kind(videos: int, images: int) -> None:
    files = [Stream(0, "train").file(index) for index in range(400)]
    of_videos = [file.index for file in files if not file.is_image][:videos]
    of_images = [file.index for file in files if file.is_image][:images]
    assert Selection(videos, images).indices() == sorted(of_videos + of_images)


@pytest.mark.parametrize("videos", [1, 6, 7, 8, 56, 57, 1000])
def test_images_lie_between_and_after_the_videos(videos: int) -> None:
    selection = Selection.with_images_between(videos)
    assert selection.indices() == list(range(selection.n_files))


def test_bad_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="seed=-1: it must be at least 0"):
        Stream(-1, "train")
    with pytest.raises(ValueError, match="split='test': it is one of train, held_out"):
        Stream(0, "test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="index=-1: it must be at least 0"):
        Stream(0, "train").file(-1)
