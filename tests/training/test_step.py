"""The mathematics of a training step: keyed random choices, conditioning frames, and losses of single samples."""

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

from tests.support.step_samples import CONFIG, CPU, LAST_FRAMES, UIDS, noisy_batch, quantiles_of, stored_batch
from training.condition import latent_seconds
from training.conditioning import ConditioningRates
from training.inputs import make_noisy_batch
from training.network import Condition
from training.rng import generator, uid_hashes
from training.step import (
    StepConfig,
    mse_losses,
    random_choices,
    samples_with_last_frame,
    stratified_quantiles,
)


def conditioned(noise: float = 0.0, **rates: float) -> StepConfig:
    """Return `CONFIG` with these shares of conditioning, and this highest noise level of conditioning frames."""
    return replace(CONFIG, conditioning=ConditioningRates(**rates, conditioning_noise=noise))


def test_a_sample_has_the_same_noise_in_any_batch() -> None:
    together, alone = noisy_batch(range(12)), noisy_batch([5])
    assert together.noisy[5].equal(alone.noisy[0])
    assert together.targets[5].equal(alone.targets[0])
    assert together.times[5] == alone.times[0]
    assert together.condition.times[5].equal(alone.condition.times[0])
    assert together.condition.texts[5].equal(alone.condition.texts[0])


@pytest.mark.slow
@given(n=st.integers(1, 60), seed=st.integers(0, 2**31), data=st.data())
def test_each_stratum_has_one_quantile_in_any_order(n: int, seed: int, data: st.DataObject) -> None:
    hashes, epochs = uid_hashes(f"sample {index}" for index in range(n)), np.arange(n) % 3
    quantiles = stratified_quantiles(seed, hashes, epochs)
    assert sorted((quantiles * n).astype(int).tolist()) == list(range(n))
    assert ((quantiles > 0) & (quantiles < 1)).all()
    order = data.draw(st.permutations(range(n)))
    assert stratified_quantiles(seed, hashes[order], epochs[order]).tolist() == quantiles[order].tolist()


@pytest.mark.slow
def test_a_samples_quantile_is_uniform_over_epochs() -> None:
    """The Kolmogorov-Smirnov distance of 4,000 quantiles; 1.63 / sqrt(n) is exceeded once in a hundred times."""
    drawn = sorted(quantiles_of(UIDS, 3, epoch)[4] for epoch in range(4000))
    distance = max(max(abs(value - (rank + 1) / 4000), abs(value - rank / 4000)) for rank, value in enumerate(drawn))
    assert distance < 1.63 / 4000**0.5


def test_stratified_means_vary_far_less_than_independent_ones() -> None:
    """The means of t² over 16 samples. t² is the loss of a model that knows nothing of v as t goes to 1.

    Their variance is 250 times smaller than with independent quantiles, and 256 is the limit.
    """
    means = [float((quantiles_of([*map(str, range(16))], seed, 0) ** 2).mean()) for seed in range(500)]
    independent_variance = 4 / 45 / 16
    assert statistics.variance(means) < independent_variance / 100
    assert statistics.fmean(means) == pytest.approx(1 / 3, abs=5e-3)


def test_epochs_samples_and_seeds_have_different_noise() -> None:
    noises = [
        noisy_batch([index], epoch, replace(CONFIG, seed=seed)).targets[0] + stored_batch([index]).latents[0]
        for seed in (1, 2)
        for epoch in (0, 1)
        for index in (0, 2)
    ]
    assert all(not first.equal(second) for index, first in enumerate(noises) for second in noises[:index])


def test_the_global_random_state_is_left_unchanged() -> None:
    before = torch.get_rng_state()
    noisy_batch([0, 1])
    assert torch.get_rng_state().equal(before)


def test_random_numbers_are_the_same_on_every_machine() -> None:
    """Golden values: if they change, so does the noise of every run, and runs cannot resume."""
    assert torch.rand(2, generator=generator(0, 1, "clip")).tolist() == [0.38539034128189087, 0.7468018531799316]
    assert stratified_quantiles(0, uid_hashes("aba"), np.array([0, 0, 1])).tolist() == [
        0.8185880921858674,
        0.15002608054783195,
        0.4317957036740457,
    ]


@pytest.mark.slow
def test_captions_are_dropped_at_their_rate_in_each_epoch() -> None:
    dropped = [[random_choices(CONFIG, 1, epoch, f"{i}").drop_caption for i in range(1000)] for epoch in range(2)]
    assert sum(dropped[0]) / 1000 == pytest.approx(0.3, abs=0.05)
    assert dropped[0] != dropped[1]
    all_dropped = noisy_batch(range(12), config=replace(CONFIG, caption_drop=1.0))
    assert all(text.equal(CONFIG.null_text) for text in all_dropped.condition.texts)


def test_conditioning_frames_are_clean_and_marked() -> None:
    batch = noisy_batch([0, 2, 4], config=conditioned(first=1.0))
    for noisy, clean, mask_T, time_T, time in zip(
        batch.noisy,
        stored_batch([0, 2, 4]).latents,
        batch.condition.conditioning_masks,
        batch.condition.times,
        batch.times,
        strict=True,
    ):
        assert noisy[:, 0].equal(clean[:, 0])
        assert not noisy[:, 1].equal(clean[:, 1])
        assert mask_T.tolist() == [1, 0, 0]
        assert time_T.tolist() == [0, pytest.approx(time), pytest.approx(time)]


def test_noisy_conditioning_frames_have_their_own_noise_level() -> None:
    config = conditioned(first=1.0, noise=0.2)
    batch = noisy_batch([0, 2, 4], config=config)
    levels = [float(time_T[0]) for time_T in batch.condition.times]
    assert len(set(levels)) == 3
    assert all(0 < level < 0.2 for level in levels)
    for target, noisy, clean, level in zip(
        batch.targets, batch.noisy, stored_batch([0, 2, 4]).latents, levels, strict=True
    ):
        noise = target + clean
        torch.testing.assert_close(noisy[:, 0], (1 - level) * clean[:, 0] + level * noise[:, 0])


@pytest.mark.parametrize(("kind", "first"), [("last", 0.0), ("both", 1.0)])
def test_the_last_frame_is_appended_and_marked(kind: str, first: float) -> None:
    """The last latent frame of the video, which covers that frame among others, is generated."""
    batch = noisy_batch([0, 2, 1], config=conditioned(**{kind: 1.0}))
    for position, index in enumerate((0, 2)):
        clean, noisy, time = stored_batch([index]).latents[0], batch.noisy[position], batch.times[position]
        assert noisy.shape == (3, 4, 4, 4)
        assert noisy[:, 3:].equal(LAST_FRAMES[index])
        assert batch.condition.conditioning_masks[position].tolist() == [first, 0, 0, 1]
        assert batch.condition.times[position].tolist() == pytest.approx([0.0 if first else time, time, time, 0.0])
        # Of 9 pixel frames at 8 fps, the last one is at 1 s; the mean time of the last latent frame is 6.5 / 8 s.
        torch.testing.assert_close(batch.condition.seconds[position], torch.tensor([0.0, 2.5 / 8, 6.5 / 8, 1.0]))
        assert noisy[:, 0].equal(clean[:, 0]) == bool(first)
        assert not noisy[:, 2].equal(clean[:, 2])
    assert batch.noisy[2].shape == (3, 1, 6, 4), "an image has no last-frame latent"
    assert batch.condition.conditioning_masks[2].tolist() == [0]


def test_the_last_frame_changes_nothing_that_is_generated() -> None:
    """Noise, noise level and targets stay the same, and the prediction of the appended frame costs nothing."""
    without, appended = (noisy_batch([0, 2], config=conditioned(**{kind: 1.0})) for kind in ("first", "both"))
    assert without.times == appended.times
    for name in ("noisy", "targets"):
        assert all(a.equal(b[:, :3]) for a, b in zip(getattr(without, name), getattr(appended, name), strict=True))
    predictions = [
        torch.cat((target[:, :3] + 2, torch.full_like(target[:, 3:], 1e6)), dim=1) for target in appended.targets
    ]
    losses = mse_losses(lambda noisy, condition: predictions, appended)
    torch.testing.assert_close(losses, torch.full((2,), 4.0))


def test_a_noisy_last_frame_has_its_own_noise() -> None:
    config = conditioned(both=1.0, noise=0.2)
    batch = noisy_batch([0], config=config)
    noise = batch.targets[0] + torch.cat((stored_batch([0]).latents[0], LAST_FRAMES[0]), dim=1)
    level = float(batch.condition.times[0][3])
    assert 0 < level < 0.2
    assert float(batch.condition.times[0][0]) == level
    torch.testing.assert_close(batch.noisy[0][:, 3:], (1 - level) * LAST_FRAMES[0] + level * noise[:, 3:])
    without = noisy_batch([0], config=conditioned(first=1.0, noise=0.2)).targets[0]
    assert batch.targets[0][:, :3].equal(without)


def test_a_video_without_last_frame_latent_is_refused_early() -> None:
    """Refused at the first sample, and not at the first sample that draws such a mask."""
    older = replace(stored_batch([0]), last_frame_latents=[None])
    quantiles = np.array([0.5])
    make_noisy_batch(CONFIG, older, quantiles, CPU)
    config = conditioned(none=0.999999, last=0.000001)
    message = r"clip-0 has no last-frame latent.*`last` and `both`.*encode its clips again, or set both to 0"
    with pytest.raises(ValueError, match=message):
        make_noisy_batch(config, older, quantiles, CPU)
    make_noisy_batch(config, stored_batch([1]), quantiles, CPU)


@pytest.mark.slow
@given(
    st.integers(0, 2**31),
    st.lists(st.tuples(st.text(max_size=8), st.integers(0, 3), st.integers(2, 9)), min_size=1, max_size=20),
)
def test_planned_last_frames_are_those_that_are_drawn(seed: int, samples: list[tuple[str, int, int]]) -> None:
    config = replace(conditioned(none=0.2, first=0.2, last=0.2, both=0.2, middle=0.2, noise=0.1), seed=seed)
    hashes = uid_hashes(uid for uid, _, _ in samples)
    planned = np.array([samples_with_last_frame(config.conditioning, seed, hashes, epoch) for epoch in range(4)])
    assert [planned[epoch, index] for index, (_, epoch, _) in enumerate(samples)] == [
        random_choices(config, n_frames, epoch, uid).mask.last_frame for uid, epoch, n_frames in samples
    ]


def test_the_condition_has_crop_and_source() -> None:
    condition = noisy_batch([0, 1]).condition
    assert condition.crop_B2.tolist() == [[0.25, 0.0], [0.0, 0.125]]
    assert condition.source_B2.tolist() == [[64, 32], [64, 128]]


def test_sizes_are_in_pixels_and_times_in_seconds() -> None:
    condition = noisy_batch([0, 1]).condition
    assert condition.size_B2.tolist() == [[32, 32], [32, 48]]
    torch.testing.assert_close(condition.seconds[0], torch.tensor([0.0, 2.5 / 8, 6.5 / 8]))
    assert condition.seconds[1].tolist() == [0]


@pytest.mark.slow
@given(n_frames=st.integers(1, 40), fps=st.floats(1, 120), factor=st.integers(1, 8))
def test_latent_seconds_are_means_over_pixel_frames(n_frames: int, fps: float, factor: int) -> None:
    covered = [[0], *([1 + (k - 1) * factor + i for i in range(factor)] for k in range(1, n_frames))]
    np.testing.assert_allclose(
        latent_seconds(n_frames, fps, factor), [np.mean(frames) / fps for frames in covered], rtol=1e-5
    )
    with_last_frame = [*covered, [covered[-1][-1]]]
    np.testing.assert_allclose(
        latent_seconds(n_frames + 1, fps, factor, last_frame=True),
        [np.mean(frames) / fps for frames in with_last_frame],
        rtol=1e-5,
    )


def test_losses_are_mean_squares_of_generated_frames() -> None:
    batch = noisy_batch(range(12))

    def predict_zeros(noisy: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        return [torch.zeros_like(one) for one in noisy]

    losses = mse_losses(predict_zeros, batch)
    for index, (target, mask_T) in enumerate(zip(batch.targets, batch.condition.conditioning_masks, strict=True)):
        generated = [frame for frame in range(target.shape[1]) if mask_T[frame] == 0]
        expected = torch.stack([target[:, frame] for frame in generated]).square().mean()
        torch.testing.assert_close(losses[index], expected)


def test_predictions_of_conditioning_frames_cost_nothing() -> None:
    batch = noisy_batch(range(12))
    predictions = [
        torch.where(mask_T[:, None, None] > 0, 1e6, target)
        for target, mask_T in zip(batch.targets, batch.condition.conditioning_masks, strict=True)
    ]
    assert mse_losses(lambda noisy, condition: predictions, batch).max() == 0


@pytest.mark.slow
def test_the_loss_of_a_sample_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    model = CONFIG.model.build(3, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    together = mse_losses(model, noisy_batch(range(12)))
    apart = torch.cat([mse_losses(model, noisy_batch([index])) for index in range(12)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
