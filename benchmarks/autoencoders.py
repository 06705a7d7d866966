"""Fidelity, rate and speed of autoencoders side by side: `linear` with 16 and 48 channels, and `causal`.

    python -m benchmarks.autoencoders [DIR] [--causal PATH] [--spans 3] [--size 256] [--frames 17] [--image PATH.png]

Footage that causal was trained on is left out: the card beside its weights (`causal-small.json`) lists the files'
hashes. From each other file a few spans are taken, spread evenly over it, at its own rate or 24 frames per second,
whichever is lower. A clip is the square in the middle of the frame, scaled to sides of `--size` pixels; smaller frames
are not enlarged. All figures are means over these clips:

- `psnr`: of each clip the PSNR in dB of the mean squared error over all its values; means are of the decibels.
- `ssim`: Wang et al. (2004), of each frame and colour.
- `flicker`: mean absolute difference of neighbouring frames of the error (reconstruction minus source), in 8-bit
  steps. VBench (Huang et al., CVPR 2024) measures flicker so on the video; on the error, motion in the source does not
  count.
- `lpips`: Zhang et al. (2018), AlexNet; null if the package lpips or the weights of AlexNet (in torch's cache) are
  missing.
- `latents_per_pixel`: values of the latent over values of the pixels, three per pixel.
- `encode_mpix_s`, `decode_mpix_s`: pixels of all frames per second, in millions, median over clips, one at a time, fp32
  on the CPU; with `_gpu` on a GPU in the precision that the autoencoder chooses there, null without one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.measuring import video_files
from cluster.arrays import Pixels
from pipelines.commands._reconstruction import GAIN, difference, side_by_side
from pipelines.dataset.autoencoder_clips import spans
from pipelines.video.decode import DecodeError, probe
from pipelines.video.spans import FrameGrid, read_span
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders.causal import Causal
from training.autoencoders.linear import Linear
from training.pixels import HALF_RANGE, from_uint8, psnr_db, ssim
from training.sampling.coding import to_pixels
from training.sampling.media import write_png

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "training" / "autoencoders" / "weights" / "causal-small.safetensors"
SIDE_MULTIPLE = 16
MAX_FPS = 24.0
MAX_SHOWN = 5
"""Largest number of files in the image."""
LABEL_HEIGHT = 22
"""Height in pixels of a label above a frame."""

Distance = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Clip:
    """A clip and the name of its file."""

    file: str
    video_BCTHW: Tensor
    """fp32 in [-1, 1], on the CPU."""


@dataclass
class Figures:
    """The figures of one autoencoder, one value per clip."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Add the values of a clip by name."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def mean(self, name: str, digits: int) -> float | None:
        """Return the mean over clips, or None if nothing was measured."""
        return round(statistics.fmean(self.values[name]), digits) if name in self.values else None

    def median(self, name: str) -> float | None:
        """Return the median over clips, or None if nothing was measured."""
        return round(statistics.median(self.values[name]), 3) if name in self.values else None

    def summary(self) -> dict[str, float | None]:
        """Return all figures by their JSON keys."""
        found = {
            name: self.mean(name, digits)
            for name, digits in {"psnr": 2, "ssim": 4, "flicker": 3, "lpips": 4, "latents_per_pixel": 5}.items()
        }
        return found | {
            f"{direction}_mpix_s{device}": self.median(f"{direction}_mpix_s{device}")
            for device in ("", "_gpu")
            for direction in ("encode", "decode")
        }


def footage(folder: Path, trained_on: dict[str, str]) -> tuple[list[Path], dict[str, str]]:
    """Return the videos of a folder, and the reason for each that is left out: causal was trained on it."""
    found, left_out = [], {}
    for path in video_files(folder, recursive=True):
        with path.open("rb") as handle:
            known = hashlib.file_digest(handle, "sha256").hexdigest() in trained_on
        if known:
            left_out[path.name] = "causal was trained on it"
        else:
            found.append(path)
    return found, left_out


def clips_of(path: Path, max_clips: int, size: int, frames: int) -> list[Clip]:
    """Return the clips of a file.

    Raises `DecodeError` for a file that cannot be decoded, and `ValueError` for one that is too short or too small.
    """
    info = probe(str(path))
    fps = min(MAX_FPS, info.fps or MAX_FPS)
    side = min(size, info.width, info.height) // SIDE_MULTIPLE * SIDE_MULTIPLE
    if not side:
        raise ValueError(f"{info.width}x{info.height}: smaller than {SIDE_MULTIPLE} pixels")
    found = []
    for start_s, length in spans(info.duration_s or 0.0, fps, frames, max_clips):
        if length < frames:
            raise ValueError(f"has {length} frames of {frames} at {fps:g} fps")
        start_pts, end_pts = (
            info.start_pts + round(time_s / info.time_base) for time_s in (start_s, start_s + frames / fps)
        )
        span = read_span(str(path), start_pts, end_pts, FrameGrid(fps=fps, frames=frames, width=side, height=side))
        found.append(Clip(path.name, from_uint8(torch.from_numpy(span.frames).permute(3, 0, 1, 2)[None])))
    return found


def flicker(made_BCTHW: Tensor, video_BCTHW: Tensor) -> float:
    """Return the flicker of the error in 8-bit steps; see the module's docstring."""
    error_BCTHW = made_BCTHW.float().clamp(-1, 1) - video_BCTHW
    return float(error_BCTHW.diff(dim=2).abs().mean()) * HALF_RANGE


def perceptual_distance() -> Distance | None:
    """Return LPIPS with AlexNet as a mean over frames, or None if its weights are missing; nothing is downloaded."""
    if not find_spec("lpips") or not any(Path(torch.hub.get_dir(), "checkpoints").glob("alexnet-owt-*.pth")):
        return None
    # An optional package of this benchmark alone.
    import lpips  # type: ignore[import-not-found,unused-ignore]

    network = lpips.LPIPS(net="alex", verbose=False).eval()

    def distance(made_BCTHW: Tensor, video_BCTHW: Tensor) -> float:
        made_NCHW, video_NCHW = (x[0].movedim(1, 0).contiguous() for x in (made_BCTHW.clamp(-1, 1), video_BCTHW))
        return float(network(made_NCHW, video_NCHW).mean())

    return distance


def timed(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
    """Return `run(x)` and the seconds on the clock that it takes."""

    def now() -> float:
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    start_s = now()
    result = run(x)
    return result, now() - start_s


def reconstruct(
    autoencoder: Autoencoder, clip: Clip, device: str, suffix: str
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return the latent and the reconstruction, both on the CPU, and the speeds with `suffix` in their names."""
    latent, encode_s = timed(autoencoder.encode, clip.video_BCTHW.to(device))
    reconstruction, decode_s = timed(autoencoder.decode, latent)
    mpix = math.prod(clip.video_BCTHW.shape[2:]) / 1e6
    return (
        latent.cpu(),
        reconstruction.cpu(),
        {f"encode_mpix_s{suffix}": mpix / encode_s, f"decode_mpix_s{suffix}": mpix / decode_s},
    )


@torch.inference_mode()
def measure(clips: list[Clip], settings: dict[str, AutoencoderSettings]) -> dict[str, Figures]:
    """Return the figures of each autoencoder over all clips."""
    found = {name: Figures() for name in settings}
    distance = perceptual_distance()
    for name, one in settings.items():
        autoencoder = one.open()
        reconstruct(autoencoder, clips[0], "cpu", "")  # the first call is slower
        for clip in clips:
            latent, reconstruction, speeds = reconstruct(autoencoder, clip, "cpu", "")
            pair = reconstruction, clip.video_BCTHW
            found[name].add(psnr=float(psnr_db(*pair)), ssim=float(ssim(*pair)), flicker=flicker(*pair), **speeds)
            found[name].add(latents_per_pixel=latent.numel() / clip.video_BCTHW.numel())
            if distance is not None:
                found[name].add(lpips=distance(*pair))
        if torch.cuda.is_available():
            autoencoder = one.open("cuda")
            for index, clip in enumerate([clips[0], *clips]):
                _, _, speeds = reconstruct(autoencoder, clip, "cuda", "_gpu")
                if index:  # the first call is slower
                    found[name].add(**speeds)
        print(f"{name}: {found[name].summary()}", file=sys.stderr, flush=True)
    return found


@torch.inference_mode()
def comparison_image(clips: list[Clip], settings: dict[str, AutoencoderSettings], path: str) -> None:
    """Write an image of the middle frame of the middle clip of a few files.

    Each row has source, linear16, causal16, and the errors of the two.
    """
    files = list(dict.fromkeys(clip.file for clip in clips))
    n_shown = min(MAX_SHOWN, len(files))
    files = [files[index * len(files) // n_shown] for index in range(n_shown)]
    shown = [name for name in ("linear16", "causal16") if name in settings]
    autoencoders = {name: settings[name].open() for name in shown}
    labels = ["source", *shown, *(f"{name} - source, x{GAIN}" for name in shown)]
    rows = []
    for file in files:
        of_file = [clip for clip in clips if clip.file == file]
        video_BCTHW = of_file[len(of_file) // 2].video_BCTHW
        middle = video_BCTHW.shape[2] // 2
        reconstructions = {name: one.decode(one.encode(video_BCTHW)) for name, one in autoencoders.items()}
        source_HWC = to_pixels(video_BCTHW)[0, middle].numpy()
        frames_HWC = [to_pixels(value)[0, middle].numpy() for value in reconstructions.values()]
        titles = [
            f"{label} {float(psnr_db(reconstructions[label], video_BCTHW)):.1f} dB"
            if label in reconstructions
            else label
            for label in labels
        ]
        titles[0] = file
        cells = [source_HWC, *frames_HWC, *(difference(source_HWC, one) for one in frames_HWC)]
        rows.append(side_by_side([_labelled(cell, title) for cell, title in zip(cells, titles, strict=True)]))
    width = max(row.shape[1] for row in rows)
    write_png(
        path,
        np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]),
    )


def _labelled(image_HWC: Pixels, title: str) -> Pixels:
    canvas = Image.new("RGB", (image_HWC.shape[1], image_HWC.shape[0] + LABEL_HEIGHT), "white")
    canvas.paste(Image.fromarray(image_HWC), (0, LABEL_HEIGHT))
    ImageDraw.Draw(canvas).text((2, 4), title, fill="black", font=ImageFont.load_default(13))
    return np.asarray(canvas)


def readable_clips(
    paths: list[Path], left_out: dict[str, str], max_clips: int, size: int, frames: int
) -> Iterator[Clip]:
    """Yield the clips of all files that have some, and add the reason for each other file to `left_out`."""
    for path in paths:
        try:
            yield from clips_of(path, max_clips, size, frames)
        except (DecodeError, ValueError) as error:
            left_out[path.name] = f"{type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(os.environ.get("WORLDLOOM_VIDEOS", ROOT.parent / "shared" / "videos")),
    )
    parser.add_argument(
        "--causal",
        type=Path,
        default=SHIPPED,
        help="weights that `worldloom train-autoencoder` wrote; the ones of the package if not given",
    )
    parser.add_argument("--spans", type=int, default=3, help="largest number of clips per file")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--image", help="PNG to write")
    arguments = parser.parse_args()
    settings = {
        "linear16": Linear(channels=16),
        "linear48": Linear(channels=48),
        "causal16": Causal(weights=str(arguments.causal)),
    }
    try:
        settings["causal16"].identity()
    except ValueError as error:
        parser.error(f"--causal: {error}")
    card = arguments.causal.with_suffix(".json")
    trained_on = json.loads(card.read_text())["trained_on"] if card.is_file() else {}
    if not card.is_file():
        print(
            f"{card}: there is no card, so the training files of causal are unknown, and all files are used",
            file=sys.stderr,
        )
    paths, left_out = footage(arguments.folder, trained_on)
    clips = list(readable_clips(paths, left_out, arguments.spans, arguments.size, arguments.frames))
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if not clips:
        raise SystemExit(
            f"{arguments.folder}: no footage to measure on; give a folder of videos that causal was not trained on"
        )
    if arguments.image:
        comparison_image(clips, settings, arguments.image)
    found = measure(clips, settings)
    files: list[dict[str, Any]] = []
    for name in dict.fromkeys(clip.file for clip in clips):
        indices = [index for index, clip in enumerate(clips) if clip.file == name]
        psnr = {
            kind: round(statistics.fmean(figures.values["psnr"][index] for index in indices), 2)
            for kind, figures in found.items()
        }
        files.append({"file": name, "clips": len(indices), "psnr": psnr})
    result: dict[str, Any] = {name: figures.summary() for name, figures in found.items()}
    result["causal16_over_linear16_db"] = round(result["causal16"]["psnr"] - result["linear16"]["psnr"], 2)
    result |= {
        "clips": len(clips),
        "card": card.is_file(),
        "threads": torch.get_num_threads(),
        "files": files,
        "left_out": left_out,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
