"""A training step's mathematics: chance keyed on samples, given frames kept clean, and losses of samples alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.conditioning import ConditioningRates
from training.data.loader import Batch
from training.framing import Framing
from training.models.dit import DiT
from training.network import Condition
from training.objectives.flow_matching import FlowMatching
from training.rng import generator
from training.step import NoisyBatch, StepConfig, draw, key, latent_seconds, losses, make_noisy_batch, stratified_quantiles

CPU = torch.device("cpu")
TASK = StepConfig(
    model=DiT(depth=1, dim=32, heads=2),
    objective=FlowMatching(),
    conditioning=ConditioningRates(none=0.5, first=0.5),
    caption_drop=0.3,
    null_text=torch.zeros(1, 8),
    time_factor=4,
    seed=7,
)
UIDS = [f"clip-{index}" for index in range(12)]
SHAPES = [(3, 3, 4, 4), (3, 1, 6, 4)]
TAILS = [
    None if index % 2 else torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(100 + index))
    for index in range(12)
]
FRAMINGS = [Framing(0.25, 0.0, 64, 32), Framing(0.0, 0.125, 64, 128)]


def stored(indices: list[int], epoch: int = 0) -> Batch:
    """Samples of two shapes in turn."""
    latents = [torch.randn(SHAPES[index % 2], generator=torch.Generator().manual_seed(index)) for index in range(12)]
    texts = [torch.full((1 + index % 3, 8), float(index + 1)) for index in range(12)]
    return Batch(
        latents=[latents[i] for i in indices],
        texts=[texts[i] for i in indices],
        uids=[UIDS[i] for i in indices],
        weights=torch.ones(len(indices)),
        fps=torch.full((len(indices),), 8.0),
        last_frame_latents=[TAILS[i] for i in indices],
        sizes=[(latents[i].shape[3] * 8, latents[i].shape[2] * 8) for i in indices],
        framings=[FRAMINGS[i % 2] for i in indices],
        buckets=[""] * len(indices),
        times_seen=[epoch] * len(indices),
        epoch=epoch,
    )


def batch(indices: list[int], epoch: int = 0, task: StepConfig = TASK) -> NoisyBatch:
    return make_noisy_batch(task, stored(indices, epoch), stratified_quantiles(task.seed, [key(epoch, uid) for uid in UIDS]), CPU)


def test_a_sample_sees_the_same_noise_in_any_batch() -> None:
    together, alone = batch(list(range(12))), batch([5])
    assert together.noisy[5].equal(alone.noisy[0])
    assert together.targets[5].equal(alone.targets[0])
    assert together.times[5] == alone.times[0]
    assert together.condition.times[5].equal(alone.condition.times[0])
    assert together.condition.texts[5].equal(alone.condition.texts[0])


@given(n=st.integers(1, 60), seed=st.integers(0, 2**31), data=st.data())
def test_quantiles_hold_one_sample_a_stratum_in_whatever_order(n: int, seed: int, data: st.DataObject) -> None:
    keys = [key(0, f"sample {index}") for index in range(n)]
    found = stratified_quantiles(seed, keys)
    assert sorted(int(value * n) for value in found.values()) == list(range(n))
    assert all(0 < value < 1 for value in found.values())
    assert stratified_quantiles(seed, [*data.draw(st.permutations(keys)), keys[0]]) == found


def test_a_sample_s_quantile_is_uniform_over_epochs() -> None:
    """Kolmogorov and Smirnov's distance of 4,000 of them; 1.63 / sqrt(n) is exceeded once in a hundred."""
    drawn = sorted(stratified_quantiles(3, [key(epoch, uid) for uid in UIDS])[key(epoch, "clip-4")] for epoch in range(4000))
    distance = max(max(abs(value - (place + 1) / 4000), abs(value - place / 4000)) for place, value in enumerate(drawn))
    assert distance < 1.63 / 4000**0.5


def test_a_step_s_mean_varies_far_less_than_by_independent_times() -> None:
    """Of t^2 over 16 samples, the loss of a model that knows nothing of v as t goes to 1: 250 times less, of the 256 that is the limit."""
    means = [statistics.fmean(q**2 for q in stratified_quantiles(seed, map(str, range(16))).values()) for seed in range(500)]
    independent = 4 / 45 / 16
    assert statistics.variance(means) < independent / 100
    assert statistics.fmean(means) == pytest.approx(1 / 3, abs=5e-3)


def test_epochs_samples_and_seeds_see_different_noise() -> None:
    noises = [
        draw(replace(TASK, seed=seed), (3, 1, 4, 4), epoch, uid).noise_CTHW
        for seed in (1, 2)
        for epoch in (0, 1)
        for uid in ("a", "b")
    ]
    assert all(not first.equal(second) for index, first in enumerate(noises) for second in noises[:index])


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    batch([0, 1])
    assert torch.get_rng_state().equal(before)


def test_generators_are_the_same_on_every_machine() -> None:
    """A golden value: it changes only when every run's noise would, which breaks resuming them."""
    assert torch.rand(2, generator=generator(0, 1, "clip")).tolist() == [0.38539034128189087, 0.7468018531799316]
    assert stratified_quantiles(0, ["0/a", "0/b", "1/a"]) == {
        "0/b": 0.12234898039605469,
        "1/a": 0.5954692204250023,
        "0/a": 0.9039448992116377,
    }


def test_captions_are_dropped_at_their_rate_and_not_always_the_same() -> None:
    dropped = [[draw(TASK, (1, 1, 2, 2), epoch, f"{i}").drop_caption for i in range(1000)] for epoch in range(2)]
    assert sum(dropped[0]) / 1000 == pytest.approx(0.3, abs=0.05)
    assert dropped[0] != dropped[1]
    everything = batch(list(range(12)), task=replace(TASK, caption_drop=1.0))
    assert all(text.equal(TASK.null_text) for text in everything.condition.texts)


def test_given_frames_are_clean_and_known_as_given() -> None:
    inputs = batch([0, 2, 4], task=replace(TASK, conditioning=ConditioningRates(first=1.0)))
    for noisy, clean, given_T, time_T, time in zip(
        inputs.noisy,
        stored([0, 2, 4]).latents,
        inputs.condition.conditioning_masks,
        inputs.condition.times,
        inputs.times,
        strict=True,
    ):
        assert noisy[:, 0].equal(clean[:, 0])
        assert not noisy[:, 1].equal(clean[:, 1])
        assert given_T.tolist() == [1, 0, 0]
        assert time_T.tolist() == [0, pytest.approx(time), pytest.approx(time)]


def test_given_frames_may_be_noisy_and_are_then_said_to_be() -> None:
    task = replace(TASK, conditioning=ConditioningRates(first=1.0, conditioning_noise=0.2))
    inputs = batch([0, 2, 4], task=task)
    levels = [float(time_T[0]) for time_T in inputs.condition.times]
    assert len(set(levels)) == 3
    assert all(0 < level < 0.2 for level in levels)
    for uid, noisy, clean, level in zip(
        [UIDS[i] for i in (0, 2, 4)], inputs.noisy, stored([0, 2, 4]).latents, levels, strict=True
    ):
        noise = draw(task, clean.shape, 0, uid).noise_CTHW
        torch.testing.assert_close(noisy[:, 0], (1 - level) * clean[:, 0] + level * noise[:, 0])


@pytest.mark.parametrize(("kind", "first"), [("last", 0.0), ("both", 1.0)])
def test_the_last_picture_is_given_by_itself_and_the_last_latent_frame_is_generated(kind: str, first: float) -> None:
    task = replace(TASK, conditioning=ConditioningRates(**{kind: 1.0}))
    inputs = batch([0, 2, 1], task=task)
    for place, index in enumerate((0, 2)):
        clean, noisy, time = stored([index]).latents[0], inputs.noisy[place], inputs.times[place]
        assert noisy.shape == (3, 4, 4, 4)
        assert noisy[:, 3:].equal(TAILS[index])
        assert inputs.condition.conditioning_masks[place].tolist() == [first, 0, 0, 1]
        assert inputs.condition.times[place].tolist() == pytest.approx([0.0 if first else time, time, time, 0.0])
        # Of 9 pixel frames at 8 a second, the last is at 1 s, and the last latent frame's mean at 6.5 / 8 s.
        torch.testing.assert_close(inputs.condition.seconds[place], torch.tensor([0.0, 2.5 / 8, 6.5 / 8, 1.0]))
        assert noisy[:, 0].equal(clean[:, 0]) == bool(first)
        assert not noisy[:, 2].equal(clean[:, 2])
    assert inputs.noisy[2].shape == (3, 1, 6, 4), "an image has no other picture"
    assert inputs.condition.conditioning_masks[2].tolist() == [0]


def test_the_tail_changes_nothing_of_what_is_generated() -> None:
    """The same noise, the same noise level, the same targets: only one more frame to look at, which costs nothing however wrong."""
    plain, tailed = (
        batch([0, 2], task=replace(TASK, conditioning=ConditioningRates(**{kind: 1.0}))) for kind in ("first", "both")
    )
    assert plain.times == tailed.times
    for kind in ("noisy", "targets"):
        assert all(a.equal(b[:, :3]) for a, b in zip(getattr(plain, kind), getattr(tailed, kind), strict=True))
    said = [torch.cat((target[:, :3] + 2, torch.full_like(target[:, 3:], 1e6)), dim=1) for target in tailed.targets]
    torch.testing.assert_close(losses(lambda noisy, condition: said, tailed), torch.full((2,), 4.0))


def test_a_noisy_tail_has_noise_of_its_own_and_is_said_to_be_noisy() -> None:
    task = replace(TASK, conditioning=ConditioningRates(both=1.0, conditioning_noise=0.2))
    inputs, noise = batch([0], task=task), draw(task, SHAPES[0], 0, UIDS[0]).noise_CTHW
    level = float(inputs.condition.times[0][3])
    assert 0 < level < 0.2
    assert float(inputs.condition.times[0][0]) == level
    torch.testing.assert_close(inputs.noisy[0][:, 3:], (1 - level) * TAILS[0] + level * noise[:, 3:])
    assert noise[:, :3].equal(
        draw(
            replace(task, conditioning=ConditioningRates(first=1.0, conditioning_noise=0.2)), SHAPES[0], 0, UIDS[0]
        ).noise_CTHW
    )


def test_a_video_without_a_tail_latent_is_refused_before_one_is_wanted() -> None:
    """At the first sample, and not at the first that chance gives its last picture."""
    older = replace(stored([0]), last_frame_latents=[None])
    make_noisy_batch(TASK, older, {key(0, UIDS[0]): 0.5}, CPU)
    task = replace(TASK, conditioning=ConditioningRates(none=0.999999, last=0.000001))
    with pytest.raises(
        ValueError, match=r"clip-0 has no tail latent.*`last` and `both`.*encode its clips again, or set both to 0"
    ):
        make_noisy_batch(task, older, {key(0, UIDS[0]): 0.5}, CPU)
    make_noisy_batch(task, stored([1]), {key(0, UIDS[1]): 0.5}, CPU)


def test_the_model_is_told_how_samples_were_cut_out() -> None:
    condition = batch([0, 1]).condition
    assert condition.crop_B2.tolist() == [[0.25, 0.0], [0.0, 0.125]]
    assert condition.source_B2.tolist() == [[64, 32], [64, 128]]


def test_sizes_are_in_pixels_and_times_in_seconds() -> None:
    condition = batch([0, 1]).condition
    assert condition.size_B2.tolist() == [[32, 32], [32, 48]]
    torch.testing.assert_close(condition.seconds[0], torch.tensor([0.0, 2.5 / 8, 6.5 / 8]))
    assert condition.seconds[1].tolist() == [0]


@given(n_frames=st.integers(1, 40), fps=st.floats(1, 120), factor=st.integers(1, 8))
def test_latent_seconds_are_the_mean_of_the_frames_they_cover(n_frames: int, fps: float, factor: int) -> None:
    covered = [[0], *([1 + (k - 1) * factor + i for i in range(factor)] for k in range(1, n_frames))]
    np.testing.assert_allclose(
        latent_seconds(n_frames, fps, factor), [np.mean(frames) / fps for frames in covered], rtol=1e-5
    )
    with_tail = [*covered, [covered[-1][-1]]]
    np.testing.assert_allclose(
        latent_seconds(n_frames + 1, fps, factor, tail=True), [np.mean(frames) / fps for frames in with_tail], rtol=1e-5
    )


def test_losses_are_the_mean_square_of_generated_frames() -> None:
    inputs = batch(list(range(12)))

    def predict(noisy: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        return [torch.zeros_like(one) for one in noisy]

    got = losses(predict, inputs)
    for index, (target, given_T) in enumerate(zip(inputs.targets, inputs.condition.conditioning_masks, strict=True)):
        kept = [frame for frame in range(target.shape[1]) if given_T[frame] == 0]
        torch.testing.assert_close(got[index], torch.stack([target[:, frame] for frame in kept]).square().mean())


def test_a_perfect_prediction_costs_nothing_whatever_is_said_of_given_frames() -> None:
    inputs = batch(list(range(12)))
    said = [
        torch.where(given_T[:, None, None] > 0, 1e6, target)
        for target, given_T in zip(inputs.targets, inputs.condition.conditioning_masks, strict=True)
    ]
    assert losses(lambda noisy, condition: said, inputs).max() == 0


def test_the_loss_of_a_sample_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    model = TASK.model.build(3, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    together = losses(model, batch(list(range(12))))
    apart = torch.cat([losses(model, batch([index])) for index in range(12)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
