"""What an autoencoder does to a video: source, reconstruction and difference side by side as an mp4, with PSNR and SSIM.

Videos of any length stream through; the memory taken is that of one piece, however long they are.

Shape suffixes: B videos (1 here), C colours or channels, T H W frames, rows and columns.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from cluster import storage
from cluster.config import ConfigError, Document, Settings, parse, parse_document
from cluster.plugins import Chosen
from cluster.telemetry import progress
from pipelines.recipe import load_recipe
from pipelines.steps.encode import Encode
from pipelines.video.decode import MediaInfo, Video, is_image, open_video, probe
from pipelines.video.scale import Pixels, centre_crop, crop_scaled, scaled_size
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders._linear_blocks import LinearAutoencoder
from training.autoencoders.causal import CausalAutoencoder
from training.autoencoders.linear import Linear
from training.fidelity import WINDOW, decibels, squared_error, ssim
from training.pixels import from_levels
from training.sampling.media import write_mp4
from training.sampling.tasks import pixels

GREY, GAIN = 128, 4
"""The difference is `GREY + GAIN * (reconstruction - source)` in 8-bit levels of each colour: grey where they agree, errors of 32 levels saturate."""

GAP_WIDTH = 4
"""White columns between the pictures: dark ones would run into each other."""

PIECE_PIXELS = 1 << 21
"""Pixels of all frames of a piece, about: 4 frames of 854x480, and one group of larger ones; 25 MB a copy in fp32."""

ONE_PASS_PIXELS = 1 << 26
"""Most pixels of all frames of a video for an autoencoder that takes it whole: 168 frames of 832x480; 800 MB a copy in fp32."""

MAX_WIDTH = 16384
"""Of a picture that x264 takes."""

FPS = 24.0
"""Where a file does not say its rate."""


class Choice(Settings):
    """An autoencoder, as `encode` of a recipe has it."""

    autoencoder: Annotated[AutoencoderSettings, Chosen(AUTOENCODERS, AutoencoderSettings)] = Linear()


@dataclass(frozen=True)
class Part:
    """Which part of a video, and at what size and rate it is read; None is the video's own."""

    start_s: float = 0.0
    frames: int | None = None
    """Exactly so many, which the autoencoder must take; None is all that make whole groups."""
    size: int | None = None
    """Shorter side in pixels."""
    fps: float | None = None


@dataclass(frozen=True)
class Roundtrip:
    """What was written and how close it comes to the source."""

    uri: str
    autoencoder: str
    """Its identity."""
    frames: int
    width: int
    height: int
    """Of one of the three pictures."""
    fps: float
    psnr_db: float
    """Of the mean squared error over all frames, of pixels clamped to the range."""
    ssim: float
    """Mean over frames and colours."""


def choose(recipe: Path | None, text: str | None) -> AutoencoderSettings:
    """The autoencoder of a recipe, or one written as YAML (`{name: linear, channels: 48}`), or `linear`. Raises `ConfigError`."""
    if recipe is not None and text is not None:
        raise ConfigError("--recipe and --autoencoder both say which autoencoder; give one of them")
    if recipe is not None:
        last = load_recipe(recipe / "run.yaml" if recipe.is_dir() else recipe, []).curate[-1]
        if not isinstance(last, Encode):
            raise ConfigError(
                f"{recipe}: the recipe does not end in an encode step, so it names no autoencoder; give --autoencoder"
            )
        return last.autoencoder
    if text is not None:
        return parse(
            Choice, Document("--autoencoder", {"autoencoder": parse_document(text, "--autoencoder").data}, {})
        ).autoencoder
    return Choice().autoencoder


def run_roundtrip(video_uri: str, settings: AutoencoderSettings, part: Part, out_uri: str | None = None) -> Roundtrip:
    """Write the mp4 (`<name>-roundtrip.mp4` in the current folder where `out_uri` is None) and say how close the reconstruction is.

    Raises `ConfigError` for a file that is no video or too short, an autoencoder that cannot be opened, or a size or number of
    frames it does not take; nothing is written then.
    """
    out_uri = out_uri or f"{PurePosixPath(video_uri).stem}-roundtrip.mp4"
    try:
        return _run(video_uri, settings, part, out_uri)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _run(video_uri: str, settings: AutoencoderSettings, part: Part, out_uri: str) -> Roundtrip:
    if not out_uri.endswith(".mp4"):
        raise ValueError(f"--out {out_uri}: what is written is an mp4; give a name that ends in .mp4")
    if storage.absolute(out_uri) == storage.absolute(video_uri):
        raise ValueError(f"--out {out_uri}: is the source, which would be lost; give another name")
    if is_image(video_uri):
        raise ValueError(f"{video_uri}: is an image; give a video")
    if not math.isfinite(part.start_s) or part.start_s < 0 or (part.fps is not None and not part.fps > 0):
        raise ValueError(f"--start {part.start_s:g}, --fps {part.fps}: the start must be 0 or later, the rate positive")
    info = probe(video_uri)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder = settings.open(device)
    fps = part.fps or info.fps or FPS
    width, height = picture_size(info, part.size, autoencoder.space_factor)
    if part.frames is not None:
        autoencoder.latent_shape(part.frames, height, width)
    expected = part.frames or (math.floor(max(0.0, info.duration_s - part.start_s) * fps) if info.duration_s else None)
    scores = _Scores()
    with progress("frames", expected) as bar:

        def pictures() -> Iterator[Pixels]:
            """Each frame beside what comes back of it."""
            waiting: deque[Pixels] = deque()
            frames = sampled(video_uri, part.start_s, fps, width, height)
            for made_BCTHW in reconstructed(
                autoencoder, _pieces(frames, part.frames, autoencoder.time_factor, waiting), device
            ):
                for made_BC1HW in torch.split(made_BCTHW, 1, dim=2):
                    source_HWC = waiting.popleft()
                    made_HWC = scores.add(source_HWC, made_BC1HW)
                    bar.advance()
                    yield side_by_side([source_HWC, made_HWC, difference(source_HWC, made_HWC)])
            if not scores.frames:
                raise ValueError(f"{video_uri}: no frame at {part.start_s:g} s or later; give an earlier --start")

        write_mp4(out_uri, _all(pictures(), video_uri, part), fps)
    return Roundtrip(out_uri, autoencoder.identity, scores.frames, width, height, fps, scores.psnr_db, scores.ssim)


def picture_size(info: MediaInfo, size: int | None, unit: int) -> tuple[int, int]:
    """(width, height) with a shorter side of `size` pixels, both rounded down to what the autoencoder and 4:2:0 take.

    Raises `ValueError` for pictures that are too small to be compared, or too wide to stand three in a row.
    """
    unit = math.lcm(unit, 2)
    scale = size / min(info.width, info.height) if size else 1.0
    width, height = (max(unit, math.floor(side * scale / unit + 1e-6) * unit) for side in (info.width, info.height))
    if min(width, height) < WINDOW:
        raise ValueError(f"{width}x{height}: SSIM looks at {WINDOW} pixels a side; give a larger --size")
    if 3 * width + 2 * GAP_WIDTH > MAX_WIDTH:
        raise ValueError(
            f"{width}x{height}: three pictures side by side may be {MAX_WIDTH} pixels wide; give a smaller --size"
        )
    return width, height


def sampled(uri: str, start_s: float, fps: float, width: int, height: int) -> Iterator[Pixels]:
    """The frames that `read_span` gives, uint8 `[H, W, 3]`, from `start_s` to the end of the video, one by one."""
    with open_video(uri) as video:
        start_pts = video.info.start_pts + round(Fraction(start_s) / video.info.time_base)
        if start_pts <= video.info.start_pts or video.seek(start_pts):
            yield from _shown(video, start_pts, fps, width, height)
            return
    with open_video(uri) as video:
        yield from _shown(video, start_pts, fps, width, height)


def _shown(video: Video, start_pts: int, fps: float, width: int, height: int) -> Iterator[Pixels]:
    info = video.info
    box = centre_crop(info.width, info.height, width, height)
    size = scaled_size(info.width, info.height, box, width, height)
    step = 1 / (Fraction(fps).limit_denominator(1001) * info.time_base)
    number = 0
    for picture, following in itertools.pairwise(itertools.chain(video.pictures(), [None])):
        assert picture is not None
        until = following.pts if following else picture.pts + max(picture.duration, 1)
        image_HWC = None
        while start_pts + int(number * step + Fraction(1, 2)) < until:
            if image_HWC is None:
                image_HWC = crop_scaled(video.array(picture.frame, *size), box, info.width, info.height, width, height)
            yield image_HWC
            number += 1


def _pieces(frames: Iterable[Pixels], most: int | None, group: int, waiting: deque[Pixels]) -> Iterator[Tensor]:
    """uint8 `[1, 3, T, H, W]` of whole groups, the first with one frame more; frames that fill no group are left out at the end.

    The frames are kept in `waiting` for who compares them.
    """
    frames = iter(itertools.islice(frames, most))
    first = next(frames, None)
    if first is None:
        return
    length = max(1, PIECE_PIXELS // (first.shape[0] * first.shape[1] * group)) * group
    held, alone = [first], 1
    while True:
        held += itertools.islice(frames, length + alone - len(held))
        whole = alone + (len(held) - alone) // group * group
        if not whole:
            return
        waiting.extend(held[:whole])
        yield torch.from_numpy(np.stack(held[:whole])).permute(3, 0, 1, 2)[None]
        if whole < length + alone:
            return
        held, alone = [], 0


def reconstructed(autoencoder: Autoencoder, pieces: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """What comes back of a video of uint8 pieces `[1, 3, T, H, W]`, 1 + 4k frames and then 4k (with 4 frames a group), as pieces of any length.

    It is what one pass gives: `causal` streams; of `linear`, and of autoencoders for images, no frame depends on others than its group's. Any
    other one is given the whole, which must fit in `ONE_PASS_PIXELS`; raises `ValueError` where it does not.
    """
    videos = (from_levels(piece.to(device)) for piece in pieces)
    if isinstance(autoencoder, CausalAutoencoder):
        yield from autoencoder.decode_stream(autoencoder.encode_stream(videos))
    elif isinstance(autoencoder, LinearAutoencoder) or autoencoder.time_factor == 1:
        for number, video_BCTHW in enumerate(videos):
            # The first frame is special: a later piece gets one in front, whose reconstruction is left out.
            lead = int(number > 0 and autoencoder.time_factor > 1)
            video_BCTHW = torch.cat([video_BCTHW[:, :, :lead], video_BCTHW], dim=2)
            yield autoencoder.decode(autoencoder.encode(video_BCTHW))[:, :, lead:]
    else:
        held: list[Tensor] = []
        for video_BCTHW in videos:
            held.append(video_BCTHW)
            _, _, _, height, width = video_BCTHW.shape
            if sum(part.shape[2] for part in held) * height * width > ONE_PASS_PIXELS:
                most = (
                    1 + (ONE_PASS_PIXELS // (height * width) - 1) // autoencoder.time_factor * autoencoder.time_factor
                )
                raise ValueError(
                    f"{autoencoder.identity}: takes a video in one pass, of {width}x{height} at most {most} frames; give --frames {most} or a --size"
                )
        if held:
            yield autoencoder.decode(autoencoder.encode(torch.cat(held, dim=2)))


def difference(source_HWC: Pixels, made_HWC: Pixels) -> Pixels:
    """How two uint8 pictures differ, amplified by `GAIN` and centred on `GREY`."""
    error_HWC = made_HWC.astype(np.int16) - source_HWC.astype(np.int16)
    return np.clip(GREY + GAIN * error_HWC, 0, 255).astype(np.uint8)


def side_by_side(pictures: Sequence[Pixels]) -> Pixels:
    """uint8 pictures `[H, W, 3]` of one height as one, with gaps between them."""
    gap_HWC = np.full((pictures[0].shape[0], GAP_WIDTH, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap_HWC, picture)][1:], axis=1)


def _all(pictures: Iterator[Pixels], uri: str, part: Part) -> Iterator[Pixels]:
    """Raises `ValueError` where there are fewer than were asked for."""
    count = 0
    for picture in pictures:
        count += 1
        yield picture
    if part.frames is not None and count < part.frames:
        raise ValueError(
            f"{uri}: has fewer than {part.frames} frames from {part.start_s:g} s on; give --frames {count}"
        )


class _Scores:
    """PSNR and SSIM of frames as they come."""

    def __init__(self) -> None:
        self.frames = 0
        self._squared, self._similar = 0.0, 0.0

    def add(self, source_HWC: Pixels, made_BC1HW: Tensor) -> Pixels:
        """Returns the frame made as uint8 `[H, W, 3]`."""
        source_BC1HW = from_levels(torch.from_numpy(source_HWC).to(made_BC1HW.device).permute(2, 0, 1)[None, :, None])
        self._squared += float(squared_error(made_BC1HW, source_BC1HW))
        self._similar += float(ssim(made_BC1HW, source_BC1HW))
        self.frames += 1
        return pixels(made_BC1HW)[0, 0].numpy()

    @property
    def psnr_db(self) -> float:
        return float(decibels(torch.tensor(self._squared / self.frames)))

    @property
    def ssim(self) -> float:
        return self._similar / self.frames
