"""Generate a video or an image from an exported model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster import storage
from cluster.telemetry import log
from training.autoencoder import Autoencoder
from training.checkpoints.export import read_export
from training.checkpoints.model_card import ModelCard, read_card
from training.conditioning import ConditioningMask
from training.framing import full_framing
from training.network import VideoModel
from training.pixels import from_uint8, to_uint8
from training.rng import generator
from training.sampling.media import write_mp4, write_png
from training.sampling.provenance import provenance, provenance_uri, read_provenance, write_provenance
from training.sampling.settings import SampleSettings, SolverSettings
from training.sampling.solver import euler, guided
from training.step import conditions, mask_tensor

# Shape suffixes: B samples, C latent channels or colours, T H W frames, rows and columns, N text tokens, E text width.


ReadPicture = Callable[[str, int, int], NDArray[np.uint8]]
"""A picture file as RGB `[height, width, 3]`, given its URI, width and height."""


class Upsampling(Protocol):
    """Whatever makes a prompt detailed."""

    @property
    def identity(self) -> str:
        """Who it is: the same one need not be asked twice."""
        ...

    def upsample(self, prompt: str, seconds: float) -> str:
        """The detailed prompt of a video of this length; of an image for 0."""
        ...


def sample(
    settings: SampleSettings,
    export_uri: str,
    out_uri: str,
    upsampling: Upsampling | None = None,
    read_picture: ReadPicture | None = None,
) -> str:
    """Generate and write `<out_uri>/<stem>.mp4`, or `.png` for an image, with a JSON beside it; returns its URI.

    A file that the same settings, pictures and weights made before is returned as it is; a prompt made detailed for it is not made so again.

    Raises `ValueError` for a size that cannot be, and for parts whose identity is not the one the model was trained with.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = read_card(export_uri)
    autoencoder = open_autoencoder(card, device)
    fps = settings.fps or card.fps
    frames = n_frames(settings.seconds, fps, autoencoder.time_factor)
    width, height = fitted_size(settings, card, autoencoder)
    ending = "png" if frames == 1 else "mp4"
    uri = storage.join(storage.absolute(out_uri), f"{settings.stem()}.{ending}")
    if settings.given() and read_picture is None:
        raise ValueError(
            f"'{settings.prompt}' is given {', '.join(settings.given().values())}, and nothing was given to read it with"
        )
    pictures = (
        {place: read_picture(picture, width, height) for place, picture in settings.given().items()}
        if read_picture
        else {}
    )
    before = read_provenance(uri)
    prompt, upsampler = settings.prompt, None
    if settings.upsample:
        if upsampling is None:
            raise ValueError(f"'{settings.prompt}' asks to be upsampled, and nothing was given to do it with")
        upsampler = upsampling.identity
        known = before is not None and (before.get("prompt_asked_for"), before.get("upsampler")) == (
            settings.prompt,
            upsampler,
        )
        prompt = (
            before["prompt"]
            if before is not None and known
            else upsampling.upsample(settings.prompt, 0.0 if frames == 1 else settings.seconds)
        )
    record = provenance(settings, prompt, upsampler, pictures, card, export_uri, frames, width, height, fps)
    if storage.exists(uri) and before == record:
        return uri
    text = embedded(prompt, card, export_uri, device)
    _, model, null_text = read_export(export_uri)
    given = encoded(pictures, autoencoder, device)
    latent_BCTHW = generate(
        card,
        model.to(device),
        autoencoder,
        text,
        null_text,
        settings,
        (frames, height, width),
        fps,
        given.get("first"),
        given.get("last"),
    )
    video_THWC = decoded(autoencoder, latent_BCTHW)
    # The record says the file is there and whole, so it is written last, and one of another file goes first.
    storage.remove(provenance_uri(uri))
    if frames == 1:
        write_png(uri, video_THWC[0])
    else:
        write_mp4(uri, video_THWC, fps)
    write_provenance(uri, record)
    return uri


def embedded(prompt: str, card: ModelCard, export_uri: str, device: torch.device) -> Tensor:
    """A prompt's embedding, float32 `[N, E]` on the CPU. The encoder is gone afterwards, so that it and the model never share the device.

    Raises `ValueError` when the encoder's weights are not the ones the model was trained with, `EngineError` when there are none.
    """
    if card.text_encoder.identity() != card.text_encoder_identity:
        raise ValueError(
            f"{export_uri} was trained with text encoder {card.text_encoder_identity}, and {card.text_encoder.identity()} is what opens here"
        )
    (embedding,) = card.text_encoder.open(device.type).encode([prompt])
    if embedding.truncated:
        log.warning(
            f"the prompt is longer than the text encoder takes; all after token {len(embedding.tokens)} is cut off: {prompt!r}"
        )
    return torch.from_numpy(embedding.tokens)


@torch.no_grad()
def encoded(
    pictures: Mapping[str, NDArray[np.uint8]], autoencoder: Autoencoder, device: torch.device
) -> dict[str, Tensor]:
    """Latents `[C, 1, H, W]` of pictures `[H, W, 3]`, each encoded as an image."""
    videos = {
        place: from_uint8(torch.from_numpy(picture_HWC.copy())).permute(2, 0, 1)[None, :, None]
        for place, picture_HWC in pictures.items()
    }
    return {place: autoencoder.encode(video_BC1HW.to(device))[0] for place, video_BC1HW in videos.items()}


def open_autoencoder(card: ModelCard, device: torch.device) -> Autoencoder:
    """The autoencoder the model was trained with. Raises `ValueError` when its weights are not the same."""
    autoencoder = card.autoencoder.open(device)
    if autoencoder.identity != card.autoencoder_identity:
        raise ValueError(
            f"the model was trained on latents of {card.autoencoder_identity}, which do not mix with those of {autoencoder.identity} here"
        )
    return autoencoder


def n_frames(seconds: float, fps: float, time_factor: int) -> int:
    """Frames of a video of about that length: 1 + k * time_factor, the nearest k, at least 1; 1 for an image (0 seconds)."""
    if seconds == 0:
        return 1
    # A clip of T frames lasts until its last frame begins, (T - 1) / fps, as the buckets count it too.
    return 1 + time_factor * max(1, round(seconds * fps / time_factor))


def fitted_size(settings: SampleSettings, card: ModelCard, autoencoder: Autoencoder) -> tuple[int, int]:
    """Wanted width and height, each rounded to the nearest multiple that autoencoder and patches take.

    Raises `ValueError` for a side under half of that multiple, which would have to grow out of all proportion.
    """
    sides = []
    patches = getattr(card.model, "patch", (1, 1, 1))
    for side, patch in zip(settings.pixels(), (patches[2], patches[1]), strict=True):
        unit = autoencoder.space_factor * patch
        if 2 * side < unit:
            raise ValueError(
                f"size {settings.size}: {side} pixels are too few; the model makes sides in steps of {unit} pixels, so {unit} is the least"
            )
        sides.append(max(unit, round(side / unit) * unit))
    return sides[0], sides[1]


@torch.no_grad()
def generate(
    card: ModelCard,
    model: VideoModel,
    autoencoder: Autoencoder,
    text_NE: Tensor,
    null_text_NE: Tensor,
    settings: SolverSettings,
    size: tuple[int, int, int],
    fps: float,
    first_C1HW: Tensor | None = None,
    last_C1HW: Tensor | None = None,
) -> Tensor:
    """Latents `[1, C, t, h, w]` for `size` (frames, height, width) in pixels, on the device of the model.

    `first_C1HW` and `last_C1HW` are pictures that the video begins or ends with, encoded as images. The last one is shown to the model
    as in training, as a latent frame more than there are (`training.conditioning.ConditioningMask.tail`), which is not among those returned.
    """
    device = next(model.parameters()).device
    frames, height, width = size
    _, *grid = autoencoder.latent_shape(frames, height, width)
    start_BCTHW = torch.randn((1, card.channels, *grid), generator=generator(settings.seed, "sample")).to(device)
    given = ConditioningMask((first_C1HW is not None, *(False,) * (grid[0] - 1)), tail=last_C1HW is not None)
    if first_C1HW is not None:
        start_BCTHW[0, :, :1] = first_C1HW
    if last_C1HW is not None:
        start_BCTHW = torch.cat((start_BCTHW, last_C1HW.to(start_BCTHW)[None]), dim=2)
    texts = [text_NE.to(device)] if settings.guidance == 1 else [text_NE.to(device), null_text_NE.to(device)]
    given_T, framing = mask_tensor(given).to(device), full_framing(width, height, card.source_side)

    def velocity(x_BCTHW: Tensor, time: float) -> Tensor:
        n, time_T = len(texts), torch.where(given_T > 0, given.time, time)
        condition = conditions(
            texts,
            [time_T] * n,
            [given_T] * n,
            [given.tail] * n,
            [fps] * n,
            [(width, height)] * n,
            [framing] * n,
            autoencoder.time_factor,
        )
        predictions = model([x_BCTHW[0]] * n, condition)
        joint = predictions[0] if n == 1 else guided(predictions[0], predictions[1], settings.guidance)
        towards_BCTHW = card.objective.velocity(joint[None], x_BCTHW, torch.tensor(time, device=device))
        # What is given stays as it is; a factor of 0 would let numbers that are none through.
        return towards_BCTHW.masked_fill(given_T[:, None, None] > 0, 0.0)

    # By what is generated, as in training.
    n_tokens = card.model.tokens(grid[0], grid[1], grid[2])
    return euler(velocity, start_BCTHW, card.objective.schedule(settings.steps, n_tokens))[:, :, : grid[0]]


@torch.no_grad()
def decoded(autoencoder: Autoencoder, latent_BCTHW: Tensor) -> NDArray[np.uint8]:
    """The video `[T, H, W, 3]` of one sample's latents."""
    return pixels(autoencoder.decode(latent_BCTHW))[0].numpy()


def pixels(video_BCTHW: Tensor) -> Tensor:
    """Decoded video in [-1, 1] as uint8 `[B, T, H, W, C]` on the CPU."""
    return to_uint8(video_BCTHW).permute(0, 2, 3, 4, 1).contiguous().cpu()
