"""Generation: the model sees given frames, prompts and noise levels as in training, and given frames return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.exported_models import untrained_card
from tests.support.fake_cuda import HostWaits, on_fake_cuda
from tests.support.step_samples import CONFIG, CPU, stored_batch
from training.autoencoders.linear import Linear
from training.checkpoints.model_card import ModelCard
from training.conditioning import ConditioningRates
from training.data.loader import Batch
from training.framing import full_framing
from training.inputs import make_noisy_batch
from training.network import Condition, VideoModel
from training.sampling.generation import ConditioningLatents, ModelParts, WeakerModel, generate, video_timeline
from training.sampling.guidances.autoguidance import Autoguidance
from training.sampling.guidances.plain import Plain
from training.sampling.settings import SampleSettings, VideoShape
from training.sampling.timeline import Prompt, blank

AUTOENCODER = Linear().open()
SETTINGS = SampleSettings(prompt="any", steps=3, guidance=2.0)
MODEL_CARD = untrained_card()


class RecordingModel(VideoModel):
    """A model that predicts ones and records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.inputs: list[tuple[list[Tensor], Condition]] = []

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        self.inputs.append((list(latents), condition))
        return [torch.ones_like(latent) for latent in latents]

    def weight_initialiser(self) -> Callable[[nn.Parameter, str], None]:
        return lambda parameter, name: None


class NanModel(RecordingModel):
    """A model that predicts NaN."""

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        return [torch.full_like(latent, float("nan")) for latent in super().forward(latents, condition)]


def generate_like(batch: Batch, first: bool, last: bool, model: VideoModel, card: ModelCard = MODEL_CARD) -> Tensor:
    """Generate latents with the text, size, length and frame rate of the only sample of a batch, and with its first and
    its last frame as conditioning images if `first` and `last`.
    """
    (latent_CTHW,), (last_frame_C1HW,), ((width, height),) = batch.latents, batch.last_frame_latents, batch.sizes
    shape = VideoShape(1 + 4 * (latent_CTHW.shape[1] - 1), height, width, float(batch.fps[0]))
    images = ConditioningLatents(latent_CTHW[:, :1] if first else None, last_frame_C1HW if last else None)
    parts = ModelParts(card, model, AUTOENCODER, CONFIG.null_text)
    return generate(parts, video_timeline(parts, batch.texts[0], shape, images), SETTINGS)


def test_no_step_of_a_solver_waits_for_a_gpu() -> None:
    """Only what is made before the first step is copied to the device in a way that waits for it."""
    found = []
    for steps in (3, 6):
        with FakeTensorMode(allow_non_fake_inputs=True), HostWaits() as waits:
            model = on_fake_cuda(RecordingModel(), torch.float32)
            parts = ModelParts(MODEL_CARD, model, AUTOENCODER, CONFIG.null_text)
            timeline = video_timeline(parts, torch.zeros(3, 8), VideoShape(9, 32, 32, 8.0))
            latents = generate(parts, timeline, SETTINGS.model_copy(update={"steps": steps}))
            assert latents.device.type == "cuda"
        found.append(waits.found)
    assert found[0] == found[1]
    assert found[0].total() <= 6


def one_clip() -> Batch:
    """Return a batch of one clip with the channels and the source of `MODEL_CARD`."""
    rng = torch.Generator().manual_seed(3)
    batch = stored_batch([0])
    return replace(
        batch,
        latents=[torch.randn(16, 3, 4, 4, generator=rng)],
        last_frame_latents=[torch.randn(16, 1, 4, 4, generator=rng)],
        framings=[full_framing(*batch.sizes[0], MODEL_CARD.source_side)],
    )


@pytest.mark.parametrize("kind", ["none", "first", "last", "both"])
def test_model_sees_the_same_in_sampling_as_in_training(kind: str) -> None:
    batch, model = one_clip(), RecordingModel()
    generate_like(batch, kind in ("first", "both"), kind in ("last", "both"), model)
    config = replace(CONFIG, conditioning=ConditioningRates(**{kind: 1.0}), caption_drop=0.0)
    trained = make_noisy_batch(config, batch, np.array([0.5]), CPU)
    mask_T = trained.condition.conditioning_masks[0] > 0
    assert len(model.inputs) == SETTINGS.steps
    for latents, condition in model.inputs:
        for index in (0, 1):  # with the prompt, and with the null caption
            assert latents[index].shape == trained.noisy[0].shape
            assert latents[index][:, mask_T].equal(trained.noisy[0][:, mask_T])
            assert condition.conditioning_masks[index].equal(trained.condition.conditioning_masks[0])
            assert condition.seconds[index].equal(trained.condition.seconds[0])
            time_T, trained_time_T = condition.times[index], trained.condition.times[0]
            assert time_T[mask_T].equal(trained_time_T[mask_T])
            assert len(time_T[~mask_T].unique()) == len(trained_time_T[~mask_T].unique()) == 1
            for name in ("fps_B", "size_B2", "crop_B2", "source_B2"):
                assert getattr(condition, name)[index].equal(getattr(trained.condition, name)[0]), name
        assert condition.texts[0].equal(trained.condition.texts[0])


def test_conditioning_frames_stay_and_all_latent_frames_return() -> None:
    batch = one_clip()
    free, with_last, with_both = (
        generate_like(batch, first, last, RecordingModel())[0]
        for first, last in ((False, False), (False, True), (True, True))
    )
    assert free.shape == with_last.shape == with_both.shape == (16, 3, 4, 4)
    assert with_both[:, :1].equal(batch.latents[0][:, :1])
    # A velocity of ones moves every generated frame by 1 from its noise, whatever the conditioning frames are.
    assert with_last.equal(free)
    assert with_both[:, 1:].equal(free[:, 1:])


def test_nan_does_not_spread_to_conditioning_frames() -> None:
    batch = one_clip()
    latent_BCTHW = generate_like(batch, True, True, NanModel())
    assert latent_BCTHW[0, :, 1:].isnan().all()
    assert latent_BCTHW[0, :, :1].equal(batch.latents[0][:, :1])


def test_outside_the_interval_only_the_prompt_is_evaluated() -> None:
    """Steps are at times 1, 2/3 and 1/3."""
    model, text_NE = RecordingModel(), torch.ones(2, 32)
    settings = SETTINGS.model_copy(update={"guidance_method": Plain(interval=(0.5, 0.9))})
    parts = ModelParts(MODEL_CARD, model, AUTOENCODER, torch.zeros(1, 32))
    generate(parts, video_timeline(parts, text_NE, VideoShape(5, 32, 32, 8.0)), settings)
    assert [[len(text) for text in condition.texts] for _, condition in model.inputs] == [[2], [2, 1], [2]]


def test_a_weaker_model_guides_with_the_same_prompt() -> None:
    """The model predicts 1 and the weaker one NaN, which shows in the result; both see the prompt and the same x."""
    model, weaker, text_NE = RecordingModel(), NanModel(), torch.ones(2, 32)
    settings = SETTINGS.model_copy(update={"guidance_method": Autoguidance(export="weaker"), "steps": 1})
    parts = ModelParts(MODEL_CARD, model, AUTOENCODER, torch.zeros(1, 32), WeakerModel(MODEL_CARD, weaker))
    latent_BCTHW = generate(parts, video_timeline(parts, text_NE, VideoShape(5, 32, 32, 8.0)), settings)
    assert latent_BCTHW.isnan().all()
    ((own,), own_condition), ((other,), other_condition) = model.inputs[0], weaker.inputs[0]
    assert own.equal(other)
    assert own_condition.texts[0].equal(other_condition.texts[0])


def test_source_is_uncropped_and_of_the_usual_size_by_default() -> None:
    batch, model = one_clip(), RecordingModel()
    generate_like(batch, False, False, model, MODEL_CARD.model_copy(update={"source_side": 1440.0}))
    assert model.inputs[0][1].crop_B2.tolist() == [[0, 0]] * 2
    assert model.inputs[0][1].source_B2.tolist() == [[1440, 1440]] * 2


def parts_with(model: VideoModel) -> ModelParts:
    return ModelParts(MODEL_CARD, model, AUTOENCODER, torch.zeros(1, 32))


def latents(n_frames: int, seed: int = 3) -> Tensor:
    return torch.randn(16, n_frames, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_noised_context_is_seen_noised_and_returned_clean() -> None:
    model, context_CTHW = RecordingModel(), latents(2)
    timeline = blank((16, 5, 4, 4), [Prompt(torch.ones(2, 32))], (32, 32), 8.0).given(0, context_CTHW, level=0.25)
    timeline = timeline.given(4, context_CTHW[:, :1])
    (latent_CTHW,) = generate(parts_with(model), timeline, SETTINGS)
    assert latent_CTHW[:, :2].equal(context_CTHW)
    assert latent_CTHW[:, 4:].equal(context_CTHW[:, :1])
    seen = [latent[:, :2] for (latent, _), _ in model.inputs]
    assert all(one.equal(seen[0]) for one in seen), "the noise of a frame is the same in all steps"
    noise_CTHW = (seen[0] - 0.75 * context_CTHW) / 0.25
    assert abs(float(noise_CTHW.std()) - 1) < 0.1
    for _, condition in model.inputs:
        assert condition.times[0][:2].tolist() == [0.25, 0.25]
        assert condition.times[0][4] == 0
        assert condition.conditioning_masks[0].tolist() == [1, 1, 0, 0, 1]


def test_each_frame_follows_the_prompt_of_its_span() -> None:
    class TextModel(RecordingModel):
        """A model that predicts the mean of its text."""

        def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
            return [torch.full_like(x, float(text.mean())) for x, text in zip(latents, condition.texts, strict=True)]

    prompts = [Prompt(torch.full((2, 32), 3.0)), Prompt(torch.full((1, 32), 5.0), start=2)]
    timeline = blank((16, 4, 4, 4), prompts, (32, 32), 8.0)
    moved = generate(parts_with(TextModel()), timeline, SETTINGS) - generate(
        parts_with(TextModel()), replace(timeline, prompts=(Prompt(torch.zeros(1, 32)),)), SETTINGS
    )
    # The velocity is guided: u + 2 (c - u) with u = 0, over a time of -1.
    torch.testing.assert_close(moved[0, 0, :, 0, 0], torch.tensor([-6.0, -6.0, -10.0, -10.0]))
