"""Fit the bases of the autoencoder `linear`, and measure them on sources that were left out of the fit.

    python -m benchmarks.fit_linear FOLDER --channels 16 48 --seed 0 --out DIRECTORY

Prints one line of JSON last: the mean PSNR in dB by number of channels and kind of block.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Interpolation
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import Tensor

from cluster.storage import digest, write_bytes
from cluster.telemetry import configure_logging, log, progress
from training.autoencoders._linear_blocks import to_blocks
from training.autoencoders._linear_weights import FIRST_VALUES, GROUP_VALUES, SPACE_FACTOR, TIME_FACTOR
from training.pixels import from_uint8

SIZES = (64, 128, 256, 512)
"""Sides in pixels of squares; frames are scaled to their areas. Fine detail is stronger in small frames."""

RATES = (8.0, 24.0)
"""Frames per second at which footage is sampled; neighbouring frames differ more at low rates."""

KINDS = {"first": FIRST_VALUES, "group": GROUP_VALUES}
PEAK = 2.0
"""Width of the range of pixel values, [-1, 1]."""

Cell = tuple[int, float]
"""Size in pixels and rate in frames per second."""


@dataclass
class Moments:
    """Sums of blocks that give their mean and covariance, in float64, since millions of blocks are added."""

    n_values: int
    count: float = 0.0
    total_P: Tensor = field(init=False)
    outer_PP: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total_P = torch.zeros(self.n_values, dtype=torch.float64)
        self.outer_PP = torch.zeros(self.n_values, self.n_values, dtype=torch.float64)

    def add(self, blocks_NP: Tensor) -> None:
        self.count += blocks_NP.shape[0]
        self.total_P += blocks_NP.sum(0, dtype=torch.float64)
        self.outer_PP += (blocks_NP.T @ blocks_NP).to(torch.float64)

    def merge(self, other: Moments, weight: float = 1.0) -> None:
        self.count += weight * other.count
        self.total_P += weight * other.total_P
        self.outer_PP += weight * other.outer_PP

    def squared_error(self, mean_P: Tensor, basis_PC: Tensor) -> float:
        """Return the mean squared error per value of encoding and decoding these blocks with a basis about a mean."""
        about_PP = self.outer_PP / self.count - _cross(self.total_P / self.count, mean_P)
        kept = torch.einsum("pc,pq,qc->", basis_PC, about_PP, basis_PC)
        return float((about_PP.trace() - kept) / self.n_values)


def _cross(own_P: Tensor, mean_P: Tensor) -> Tensor:
    """Return the matrix whose subtraction turns a second moment about zero into one about `mean_P`."""
    return own_P.outer(mean_P) + mean_P.outer(own_P) - mean_P.outer(mean_P)


def symmetric(moments: Moments) -> Moments:
    """Return the moments of the blocks and of their copies mirrored left to right, reversed in time, and both.

    Footage in general prefers no direction, so the basis should not follow the directions of a few clips.
    """
    frames = moments.n_values // FIRST_VALUES
    index = torch.arange(moments.n_values).reshape(3, frames, SPACE_FACTOR, SPACE_FACTOR)
    result = Moments(moments.n_values)
    for dims in ((), (3,), (1,), (1, 3)):
        flipped = index.flip(dims).flatten()
        result.count += moments.count / 4
        result.total_P += moments.total_P[flipped] / 4
        result.outer_PP += moments.outer_PP[flipped][:, flipped] / 4
    return result


def principal_components(moments: Moments, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean `[P]`, the leading orthonormal basis `[P, C]` and the standard deviation `[C]` along it.

    All are float64.

    An eigenvector's sign is arbitrary; the first of its entries that is above half of the largest is made positive.
    """
    mean_P = moments.total_P / moments.count
    covariance_PP = moments.outer_PP / moments.count - mean_P.outer(mean_P)
    variance_P, vectors_PP = torch.linalg.eigh(covariance_PP)
    basis_PC = vectors_PP.flip(1)[:, :channels]
    large_PC = basis_PC.abs() > 0.5 * basis_PC.abs().amax(0)
    leading_C = basis_PC.gather(0, large_PC.to(torch.int8).argmax(0, keepdim=True))[0]
    return mean_P, basis_PC * leading_C.sign(), variance_P.flip(0)[:channels].clamp(min=0).sqrt()


def source_of(path: Path) -> str:
    """Return the part of a file's name before the first `_` or `-`; parts of a film or copies of a clip share it."""
    return re.split(r"[_-]", path.stem, maxsplit=1)[0]


def frames_at(path: Path, rate: float) -> Iterator[av.VideoFrame]:
    """Yield the first frame at or after each tick of a rate, or all frames if the file's rate is lower."""
    with av.open(str(path)) as container:
        due_s = -math.inf
        for frame in container.decode(video=0):
            time_s = frame.time or 0.0
            # A frame a third of a tick early is nearer to its tick than the next one, at 24 frames a second too.
            if time_s >= due_s - 1 / (3 * rate):
                due_s = (time_s if due_s == -math.inf else max(due_s, time_s - 1 / rate)) + 1 / rate
                yield frame


def scaled(frame: av.VideoFrame, size: int) -> NDArray[np.uint8] | None:
    """Return the frame `[H, W, 3]` scaled to the area of a square of `size`, or None if that would enlarge it."""
    ratio = size / math.sqrt(frame.width * frame.height)
    if ratio > 1:
        return None
    small = frame.reformat(
        round(frame.width * ratio),
        round(frame.height * ratio),
        "rgb24",
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.AREA,
    )
    return small.to_ndarray().astype(np.uint8, copy=False)


def to_video(images: Sequence[NDArray[np.uint8]], rng: np.random.Generator) -> Tensor:
    """Return a video `[1, 3, T, H, W]` in [-1, 1], cut to multiples of 8 px from a random offset.

    The offset keeps blocks from following the codec's grid.
    """
    height, width = images[0].shape[:2]
    y, x = int(rng.integers(height % SPACE_FACTOR + 1)), int(rng.integers(width % SPACE_FACTOR + 1))
    cut = np.stack(images)[
        :, y : y + height // SPACE_FACTOR * SPACE_FACTOR, x : x + width // SPACE_FACTOR * SPACE_FACTOR
    ]
    return from_uint8(torch.from_numpy(np.ascontiguousarray(cut)).permute(3, 0, 1, 2)[None])


def measure(path: Path, seed: int) -> dict[tuple[Cell, str], Moments]:
    """Return the moments of the blocks of a file, by size, rate and kind of block.

    The first frame of each group of frames gives the blocks of kind "first".
    """
    found: dict[tuple[Cell, str], Moments] = {}
    rng = np.random.default_rng([seed, int(digest(path.name, size_bytes=4), 16)])
    for rate in RATES:
        waiting: dict[int, list[NDArray[np.uint8]]] = {size: [] for size in SIZES}
        for frame in frames_at(path, rate):
            for size, images in waiting.items():
                image = scaled(frame, size)
                if image is None or min(image.shape[:2]) < SPACE_FACTOR:
                    continue
                images.append(image)
                if len(images) == TIME_FACTOR:
                    video_BCTHW = to_video(images, rng)
                    images.clear()
                    for kind, n_values in KINDS.items():
                        frames = n_values // FIRST_VALUES
                        moments = found.setdefault(((size, rate), kind), Moments(n_values))
                        moments.add(to_blocks(video_BCTHW[:, :, :frames], frames).flatten(0, 3))
    return found


def pooled(cells: Sequence[Moments]) -> Moments:
    """Return the sum of cells that are weighted equally, so that a long or large video does not outweigh the others."""
    result = Moments(cells[0].n_values)
    for cell in cells:
        result.merge(cell, 1 / cell.count)
    return symmetric(result)


def psnr_db(squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of pixels in [-1, 1]."""
    return 10 * math.log10(PEAK**2 / squared_error)


def held_out(sources: dict[str, dict[tuple[Cell, str], Moments]], channels: int) -> dict[tuple[Cell, str], list[float]]:
    """Return the PSNR in dB of each source with bases fitted to all other sources, by size, rate and kind of block.

    The squared error of a projection follows from second moments, so no footage is decoded again.
    """
    result: dict[tuple[Cell, str], list[float]] = {}
    for left_out, cells in sources.items():
        others = [moments for source, moments in sources.items() if source != left_out]
        for kind in KINDS:
            mean_P, basis_PC, _ = principal_components(_pooled_kind(others, kind), channels)
            for (cell, cell_kind), moments in cells.items():
                if cell_kind == kind:
                    result.setdefault((cell, kind), []).append(psnr_db(moments.squared_error(mean_P, basis_PC)))
    return result


def _pooled_kind(sources: Sequence[dict[tuple[Cell, str], Moments]], kind: str) -> Moments:
    return pooled([moments for cells in sources for (_, cell_kind), moments in cells.items() if cell_kind == kind])


def fit(sources: dict[str, dict[tuple[Cell, str], Moments]], channels: int) -> dict[str, Tensor]:
    """Return the weights of `training.autoencoders.linear`, in fp32."""
    weights: dict[str, Tensor] = {}
    deviations = []
    for kind in KINDS:
        mean_P, basis_PC, std_C = principal_components(_pooled_kind(list(sources.values()), kind), channels)
        weights |= {f"{kind}.mean": mean_P.to(torch.float32), f"{kind}.basis": basis_PC.to(torch.float32).contiguous()}
        deviations.append(std_C.to(torch.float32))
    std_2C = torch.stack(deviations)
    # The mean is subtracted from a block before its projection, so the latents of the footage have mean 0.
    return weights | {"mean": torch.zeros_like(std_2C), "std": std_2C}


def read_sources(folder: Path, seed: int) -> dict[str, dict[tuple[Cell, str], Moments]]:
    """Return the moments of all videos of a folder by source. Log and omit files that do not decode.

    Raises `ValueError` if there are fewer than 2 sources.
    """
    sources: dict[str, dict[tuple[Cell, str], Moments]] = {}
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in {".mp4", ".mkv", ".mov", ".avi", ".webm"}
    )
    with progress("measure footage", len(paths)) as bar:
        for path in paths:
            try:
                cells = measure(path, seed)
            except av.FFmpegError as error:
                log.warning("%s is left out: %s", path.name, error)
                cells = {}
            for key, moments in cells.items():
                sources.setdefault(source_of(path), {}).setdefault(key, Moments(moments.n_values)).merge(moments)
            bar.advance(1, path.name)
    if len(sources) < 2:
        raise ValueError(
            f"{folder}: {len(sources)} usable sources in {len(paths)} videos; at least 2 are needed, "
            "since each is left out of the fit once"
        )
    return sources


def report(scores: dict[tuple[Cell, str], list[float]]) -> str:
    """Return a table of PSNR in dB: the mean over the sources left out, the lowest and the highest."""
    lines = ["| pixels | frames per second | first frame | groups of 4 | sources |", "| --- | --- | --- | --- | --- |"]
    for cell in sorted({cell for cell, _ in scores}):
        columns = [
            f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            for values in (scores[cell, kind] for kind in KINDS)
        ]
        lines.append(f"| {cell[0]}² | {cell[1]:g} | {' | '.join(columns)} | {len(scores[cell, 'group'])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fit the bases of the autoencoder 'linear' to a folder of videos.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 48])
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random offsets at which frames are cut into blocks"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    configure_logging()
    sources = read_sources(options.folder, options.seed)
    psnr: dict[str, dict[str, float]] = {}
    for channels in options.channels:
        write_bytes(str(options.out / f"linear{channels}.safetensors"), save_tensors(fit(sources, channels)))
        scores = held_out(sources, channels)
        psnr[str(channels)] = {
            kind: round(float(np.mean([np.mean(values) for (_, of), values in scores.items() if of == kind])), 2)
            for kind in KINDS
        }
        print(f"\n{channels} channels: PSNR in dB on sources left out of the fit, mean (lowest to highest)\n")
        print(report(scores))
    print(json.dumps({"psnr_db": psnr}))


if __name__ == "__main__":
    main()
