"""Pictures that a video begins or ends with: sampling shows the model what training did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from captioning.encoders.hashing import Hashing
from tests.training.sampling.test_prompt_embedding import card
from tests.training.test_step import CPU, TASK, stored
from training.autoencoders.linear import Linear
from training.checkpoints.model_card import ModelCard
from training.conditioning import ConditioningRates
from training.data.loader import Batch
from training.framing import full_framing
from training.network import Condition, VideoModel
from training.sampling.settings import SampleSettings
from training.sampling.tasks import generate
from training.step import key, make_noisy_batch

AUTOENCODER = Linear().open()
SETTINGS = SampleSettings(prompt="any", steps=3, guidance=2.0)
CARD = card(Hashing())


class Watched(VideoModel):
    """Predicts ones, and keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shown: list[tuple[list[Tensor], Condition]] = []

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        self.shown.append((list(latents), condition))
        return [torch.ones_like(latent) for latent in latents]

    def weight_initialiser(self) -> Callable[[nn.Parameter, str], None]:
        return lambda parameter, name: None


def made_from(batch: Batch, first: bool, last: bool, model: VideoModel, made_by: ModelCard = CARD) -> Tensor:
    """Latents sampled with pictures of the batch's only sample, at its size, length and frame rate."""
    (latent_CTHW,), (tail_C1HW,), ((width, height),) = batch.latents, batch.last_frame_latents, batch.sizes
    size = 1 + 4 * (latent_CTHW.shape[1] - 1), height, width
    pictures = latent_CTHW[:, :1] if first else None, tail_C1HW if last else None
    return generate(
        made_by, model, AUTOENCODER, batch.texts[0], TASK.null_text, SETTINGS, size, float(batch.fps[0]), *pictures
    )


def clip() -> Batch:
    """A clip with 16 channels and a source as the card has them."""
    chance = torch.Generator().manual_seed(3)
    one = stored([0])
    latents, tails = [torch.randn(16, 3, 4, 4, generator=chance)], [torch.randn(16, 1, 4, 4, generator=chance)]
    return replace(one, latents=latents, last_frame_latents=list(tails), framings=[full_framing(*one.sizes[0], CARD.source_side)])


@pytest.mark.parametrize("kind", ["none", "first", "last", "both"])
def test_sampling_shows_the_model_what_training_did(kind: str) -> None:
    batch, model = clip(), Watched()
    made_from(batch, kind in ("first", "both"), kind in ("last", "both"), model)
    task = replace(TASK, conditioning=ConditioningRates(**{kind: 1.0}), caption_drop=0.0)
    trained = make_noisy_batch(task, batch, {key(0, batch.uids[0]): 0.5}, CPU)
    known_T = trained.condition.conditioning_masks[0] > 0
    assert len(model.shown) == SETTINGS.steps
    for latents, condition in model.shown:
        for place in (0, 1):  # with the prompt, and with the null caption
            assert latents[place].shape == trained.noisy[0].shape
            assert latents[place][:, known_T].equal(trained.noisy[0][:, known_T])
            assert condition.conditioning_masks[place].equal(trained.condition.conditioning_masks[0])
            assert condition.seconds[place].equal(trained.condition.seconds[0])
            levels = condition.times[place]
            assert levels[known_T].equal(trained.condition.times[0][known_T])
            assert len(levels[~known_T].unique()) == len(trained.condition.times[0][~known_T].unique()) == 1
            for name in ("fps_B", "size_B2", "crop_B2", "source_B2"):
                assert getattr(condition, name)[place].equal(getattr(trained.condition, name)[0]), name
        assert condition.texts[0].equal(trained.condition.texts[0])


def test_what_is_given_stays_and_all_latent_frames_of_the_video_come_back() -> None:
    batch = clip()
    free, ended, both = (
        made_from(batch, first, last, Watched())[0] for first, last in ((False, False), (False, True), (True, True))
    )
    assert free.shape == ended.shape == both.shape == (16, 3, 4, 4)
    assert both[:, :1].equal(batch.latents[0][:, :1])
    # A velocity of ones takes every generated frame from its noise by 1, whatever else is shown.
    assert ended.equal(free)
    assert both[:, 1:].equal(free[:, 1:])


def test_a_number_that_is_none_does_not_spread_to_what_is_given() -> None:
    class Broken(Watched):
        def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
            super().forward(latents, condition)
            return [torch.full_like(latent, float("nan")) for latent in latents]

    batch, model = clip(), Broken()
    assert made_from(batch, True, True, model)[0, :, :1].equal(batch.latents[0][:, :1])


def test_an_uncut_source_as_large_as_most_is_the_default() -> None:
    batch, model = clip(), Watched()
    made_from(batch, False, False, model, CARD.model_copy(update={"source_side": 1440.0}))
    assert model.shown[0][1].crop_B2.tolist() == [[0, 0]] * 2
    assert model.shown[0][1].source_B2.tolist() == [[1440, 1440]] * 2
