"""Reconstruction of a video by an autoencoder, written beside its source as an mp4 and scored by PSNR and SSIM.

Videos of any length are streamed: memory holds one piece, whatever the length.

Shape suffixes: B videos (1 here), C colours or channels, T H W frames, rows and columns.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from cluster import storage
from cluster.arrays import Pixels
from cluster.config import ConfigError
from cluster.telemetry import progress
from pipelines.video.decode import Video, open_video, probe
from pipelines.video.media_info import MediaInfo
from pipelines.video.part import VideoPart
from pipelines.video.scale import centre_crop, crop_scaled, scaled_size
from pipelines.video.still_images import is_still_image
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders._linear_blocks import LinearAutoencoder
from training.autoencoders.causal import CausalAutoencoder
from training.pixels import SSIM_WINDOW, from_uint8, mean_squared_error, psnr_from_mse, ssim
from training.sampling.coding import to_pixels
from training.sampling.media import write_mp4

GREY, GAIN = 128, 4
"""The difference is `GREY + GAIN * (reconstruction - source)` in 8-bit values: errors of 32 and more saturate."""

GAP_WIDTH = 4
"""White columns between the frames, which dark frames would otherwise hide."""

PIECE_PIXELS = 1 << 21
"""Approximate number of pixels of a piece: 4 frames of 854x480, or one group of larger ones; 25 MB per copy in fp32."""

ONE_PASS_PIXELS = 1 << 26
"""Largest number of pixels of a video that is encoded in one pass: 168 frames of 832x480; 800 MB per copy in fp32."""

MAX_WIDTH = 16384
"""Largest width that x264 encodes, in pixels."""

DEFAULT_FPS = 24.0
"""Frame rate for a file that does not state its own."""


@dataclass(frozen=True)
class Roundtrip:
    """The file that was written, and how close the reconstruction is to the source."""

    uri: str
    autoencoder: str
    """Identity of the autoencoder."""
    frames: int
    width: int
    height: int
    """Height of one of the three frames side by side, in pixels."""
    fps: float
    psnr_db: float
    """From the mean squared error over all frames, of clamped pixels."""
    ssim: float
    """Mean over frames and colours."""


def write_roundtrip(
    video_uri: str, settings: AutoencoderSettings, part: VideoPart, out_uri: str | None = None
) -> Roundtrip:
    """Write the mp4 (by default `<name>-roundtrip.mp4` in the current folder) and return how close it is to the source.

    Raises `ConfigError` for a file that is no video or too short, an autoencoder that cannot be opened, or a size or
    number of frames that it does not take. Nothing is written then.
    """
    out_uri = out_uri or f"{PurePosixPath(video_uri).stem}-roundtrip.mp4"
    try:
        return _run(video_uri, settings, part, out_uri)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error


def _run(video_uri: str, settings: AutoencoderSettings, part: VideoPart, out_uri: str) -> Roundtrip:
    if not out_uri.endswith(".mp4"):
        raise ValueError(f"--out {out_uri}: the output is an mp4; give a name that ends in .mp4")
    if storage.absolute(out_uri) == storage.absolute(video_uri):
        raise ValueError(f"--out {out_uri}: is the source, which would be overwritten; give another name")
    if is_still_image(video_uri):
        raise ValueError(f"{video_uri}: is an image; give a video")
    info = probe(video_uri)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder = settings.open(device)
    fps = part.fps or info.fps or DEFAULT_FPS
    width, height = frame_size(info, part.size, autoencoder.space_factor)
    if part.frames is not None:
        autoencoder.latent_shape(part.frames, height, width)
    expected = part.frames or (math.floor(max(0.0, info.duration_s - part.start_s) * fps) if info.duration_s else None)
    scores = _Scores()
    with progress("frames", expected) as bar:

        def rows() -> Iterator[Pixels]:
            """Yield each frame beside its reconstruction and their difference."""
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
                raise ValueError(f"{video_uri}: no frame at {part.start_s:g} s or later; give an earlier --start-s")

        write_mp4(out_uri, _check_count(rows(), video_uri, part), fps)
    return Roundtrip(out_uri, autoencoder.identity, scores.frames, width, height, fps, scores.psnr_db, scores.ssim)


def frame_size(info: MediaInfo, size: int | None, unit: int) -> tuple[int, int]:
    """Return (width, height) with a shorter side of `size` pixels, both multiples of `unit` and of 2 (4:2:0).

    Raises `ValueError` for frames that are too small for SSIM, or of which three side by side are too wide.
    """
    unit = math.lcm(unit, 2)
    scale = size / min(info.width, info.height) if size else 1.0
    width, height = (max(unit, math.floor(side * scale / unit + 1e-6) * unit) for side in (info.width, info.height))
    if min(width, height) < SSIM_WINDOW:
        raise ValueError(f"{width}x{height}: SSIM needs {SSIM_WINDOW} pixels per side; give a larger --size")
    if 3 * width + 2 * GAP_WIDTH > MAX_WIDTH:
        raise ValueError(
            f"{width}x{height}: three frames side by side may be {MAX_WIDTH} pixels wide; give a smaller --size"
        )
    return width, height


def sampled(uri: str, start_s: float, fps: float, width: int, height: int) -> Iterator[Pixels]:
    """Yield the frames that `read_span` reads, uint8 `[H, W, 3]`, from `start_s` to the end of the video."""
    with open_video(uri) as video:
        start_pts = video.info.start_pts + round(Fraction(start_s) / video.info.time_base)
        if start_pts <= video.info.start_pts or video.seek(start_pts):
            yield from _resampled(video, start_pts, fps, width, height)
            return
    with open_video(uri) as video:
        yield from _resampled(video, start_pts, fps, width, height)


def _resampled(video: Video, start_pts: int, fps: float, width: int, height: int) -> Iterator[Pixels]:
    info = video.info
    box = centre_crop(info.width, info.height, width, height)
    size = scaled_size(info.width, info.height, box, width, height)
    step = 1 / (Fraction(fps).limit_denominator(1001) * info.time_base)
    number = 0
    for frame, following in itertools.pairwise(itertools.chain(video.decoded_frames(), [None])):
        assert frame is not None
        until = following.pts if following else frame.pts + max(frame.duration, 1)
        image_HWC = None
        while start_pts + int(number * step + Fraction(1, 2)) < until:
            if image_HWC is None:
                image_HWC = crop_scaled(video.to_array(frame.frame, *size), box, info.width, info.height, width, height)
            yield image_HWC
            number += 1


def _pieces(frames: Iterable[Pixels], max_frames: int | None, group: int, waiting: deque[Pixels]) -> Iterator[Tensor]:
    """Yield pieces uint8 `[1, 3, T, H, W]` of full groups, the first with one frame more.

    Frames at the end that fill no group are left out. The frames of each piece are appended to `waiting`, to be
    compared with their reconstruction.
    """
    frames = iter(itertools.islice(frames, max_frames))
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
    """Yield the reconstruction of a video from uint8 pieces `[1, 3, T, H, W]`, as pieces of any length.

    The first piece has 1 + kn frames and later ones kn, for groups of n frames. The result equals that of one pass:
    `causal` streams, and with `linear` and image autoencoders a frame depends on its group alone. Any other autoencoder
    gets the whole video; raises `ValueError` if that has more than `ONE_PASS_PIXELS` pixels.
    """
    videos = (from_uint8(piece.to(device)) for piece in pieces)
    if isinstance(autoencoder, CausalAutoencoder):
        yield from autoencoder.decode_stream(autoencoder.encode_stream(videos))
    elif isinstance(autoencoder, LinearAutoencoder) or autoencoder.time_factor == 1:
        for number, video_BCTHW in enumerate(videos):
            # The first frame is encoded alone: a later piece gets one in front, whose reconstruction is left out.
            lead = int(number > 0 and autoencoder.time_factor > 1)
            video_BCTHW = torch.cat([video_BCTHW[:, :, :lead], video_BCTHW], dim=2)
            yield autoencoder.decode(autoencoder.encode(video_BCTHW))[:, :, lead:]
    else:
        held: list[Tensor] = []
        for video_BCTHW in videos:
            held.append(video_BCTHW)
            _, _, _, height, width = video_BCTHW.shape
            if sum(part.shape[2] for part in held) * height * width > ONE_PASS_PIXELS:
                groups = (ONE_PASS_PIXELS // (height * width) - 1) // autoencoder.time_factor
                max_frames = 1 + groups * autoencoder.time_factor
                raise ValueError(
                    f"{autoencoder.identity}: takes a video in one pass, at {width}x{height} at most {max_frames} "
                    f"frames; give --frames {max_frames} or a --size"
                )
        if held:
            yield autoencoder.decode(autoencoder.encode(torch.cat(held, dim=2)))


def difference(source_HWC: Pixels, made_HWC: Pixels) -> Pixels:
    """Return the difference of two frames, amplified by `GAIN` and centred on `GREY`."""
    error_HWC = made_HWC.astype(np.int16) - source_HWC.astype(np.int16)
    return np.clip(GREY + GAIN * error_HWC, 0, 255).astype(np.uint8)


def side_by_side(frames: Sequence[Pixels]) -> Pixels:
    """Return frames `[H, W, 3]` of one height as one, with gaps between them."""
    gap_HWC = np.full((frames[0].shape[0], GAP_WIDTH, 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (gap_HWC, frame)][1:], axis=1)


def _check_count(frames: Iterator[Pixels], uri: str, part: VideoPart) -> Iterator[Pixels]:
    """Yield the frames. Raises `ValueError` at the end if there are fewer than `part.frames`."""
    count = 0
    for frame in frames:
        count += 1
        yield frame
    if part.frames is not None and count < part.frames:
        raise ValueError(
            f"{uri}: has fewer than {part.frames} frames from {part.start_s:g} s on; give --frames {count}"
        )


class _Scores:
    """PSNR and SSIM over frames that are added one by one."""

    def __init__(self) -> None:
        self.frames = 0
        self._squared, self._similar = 0.0, 0.0

    def add(self, source_HWC: Pixels, made_BC1HW: Tensor) -> Pixels:
        """Add a frame and return its reconstruction as uint8 `[H, W, 3]`."""
        source_BC1HW = from_uint8(torch.from_numpy(source_HWC).to(made_BC1HW.device).permute(2, 0, 1)[None, :, None])
        self._squared += float(mean_squared_error(made_BC1HW, source_BC1HW))
        self._similar += float(ssim(made_BC1HW, source_BC1HW))
        self.frames += 1
        return to_pixels(made_BC1HW)[0, 0].numpy()

    @property
    def psnr_db(self) -> float:
        return float(psnr_from_mse(torch.tensor(self._squared / self.frames)))

    @property
    def ssim(self) -> float:
        return self._similar / self.frames
