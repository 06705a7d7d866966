"""Fit the bases of the autoencoder `linear`: `python -m benchmarks.fit_linear FOLDER --channels 16 48 --seed 0 --out DIRECTORY`."""

from __future__ import annotations

import argparse
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
"""Sides, in pixels, of the squares with the areas that footage is scaled to; fine detail is stronger in small pictures."""

RATES = (8.0, 24.0)
"""Frames a second that footage is sampled at; neighbouring frames differ more at low rates."""

KINDS = {"first": FIRST_VALUES, "group": GROUP_VALUES}
PEAK = 2.0
"""Range of pixel values, [-1, 1]."""

Cell = tuple[int, float]
"""Size and rate."""


@dataclass
class Moments:
    """Sums from which mean and covariance of blocks follow, in float64 so that millions of blocks add up exactly enough."""

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
        """Mean squared error a value when these blocks are projected on a basis about a mean: what encode and decode lose."""
        about_PP = self.outer_PP / self.count - _cross(self.total_P / self.count, mean_P)
        kept = torch.einsum("pc,pq,qc->", basis_PC, about_PP, basis_PC)
        return float((about_PP.trace() - kept) / self.n_values)


def _cross(own_P: Tensor, mean_P: Tensor) -> Tensor:
    """What to take from the second moment so that it is about `mean_P`."""
    return own_P.outer(mean_P) + mean_P.outer(own_P) - mean_P.outer(mean_P)


def symmetric(moments: Moments) -> Moments:
    """The moments as they would be if every block were also seen mirrored left to right and backwards in time.

    Footage has no preference for either, so a few clips' accidental one should not shape the basis.
    """
    frames = moments.n_values // FIRST_VALUES
    index = torch.arange(moments.n_values).reshape(3, frames, SPACE_FACTOR, SPACE_FACTOR)
    result = Moments(moments.n_values)
    for dims in ((), (3,), (1,), (1, 3)):
        order = index.flip(dims).flatten()
        result.count += moments.count / 4
        result.total_P += moments.total_P[order] / 4
        result.outer_PP += moments.outer_PP[order][:, order] / 4
    return result


def principal_components(moments: Moments, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `[P]`, the leading orthonormal basis `[P, C]` and the standard deviation `[C]` of blocks along it, in float64.

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
    """Files whose names share the part before the first `_` or `-` count as one source, as parts of a film or copies of a clip do."""
    return re.split(r"[_-]", path.stem, maxsplit=1)[0]


def frames_at(path: Path, rate: float) -> Iterator[av.VideoFrame]:
    """Frames at a rate, or at the file's own if that is lower: the first one shown at or after each tick."""
    with av.open(str(path)) as container:
        due_s = -math.inf
        for frame in container.decode(video=0):
            time_s = frame.time or 0.0
            # A frame a third of a tick early is nearer to its tick than the next one, at 24 frames a second too.
            if time_s >= due_s - 1 / (3 * rate):
                due_s = (time_s if due_s == -math.inf else max(due_s, time_s - 1 / rate)) + 1 / rate
                yield frame


def scaled(frame: av.VideoFrame, size: int) -> NDArray[np.uint8] | None:
    """`[H, W, 3]`, of about the area of a square of `size`; None where that would enlarge the frame."""
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


def to_video(pictures: Sequence[NDArray[np.uint8]], chance: np.random.Generator) -> Tensor:
    """`[1, 3, T, H, W]` in [-1, 1], cut to multiples of 8 from a random offset, so that blocks do not follow the codec's grid."""
    height, width = pictures[0].shape[:2]
    y, x = int(chance.integers(height % SPACE_FACTOR + 1)), int(chance.integers(width % SPACE_FACTOR + 1))
    cut = np.stack(pictures)[
        :, y : y + height // SPACE_FACTOR * SPACE_FACTOR, x : x + width // SPACE_FACTOR * SPACE_FACTOR
    ]
    return from_uint8(torch.from_numpy(np.ascontiguousarray(cut)).permute(3, 0, 1, 2)[None])


def measure(path: Path, seed: int) -> dict[tuple[Cell, str], Moments]:
    """Moments of one file's blocks by size, rate and kind of block; one picture of each group stands for first frames."""
    found: dict[tuple[Cell, str], Moments] = {}
    chance = np.random.default_rng([seed, int(digest(path.name, size_bytes=4), 16)])
    for rate in RATES:
        waiting: dict[int, list[NDArray[np.uint8]]] = {size: [] for size in SIZES}
        for frame in frames_at(path, rate):
            for size, pictures in waiting.items():
                picture = scaled(frame, size)
                if picture is None or min(picture.shape[:2]) < SPACE_FACTOR:
                    continue
                pictures.append(picture)
                if len(pictures) == TIME_FACTOR:
                    video_BCTHW = to_video(pictures, chance)
                    pictures.clear()
                    for kind, n_values in KINDS.items():
                        frames = n_values // FIRST_VALUES
                        moments = found.setdefault(((size, rate), kind), Moments(n_values))
                        moments.add(to_blocks(video_BCTHW[:, :, :frames], frames).flatten(0, 3))
    return found


def pooled(cells: Sequence[Moments]) -> Moments:
    """Cells weighted equally whatever their number of blocks, so that a long or large video does not drown the others."""
    result = Moments(cells[0].n_values)
    for cell in cells:
        result.merge(cell, 1 / cell.count)
    return symmetric(result)


def psnr_db(squared_error: float) -> float:
    """Peak signal-to-noise ratio for pixels in [-1, 1]."""
    return 10 * math.log10(PEAK**2 / squared_error)


def held_out(sources: dict[str, dict[tuple[Cell, str], Moments]], channels: int) -> dict[tuple[Cell, str], list[float]]:
    """PSNR in dB of every source under bases fitted to all the other sources, by size, rate and kind of block.

    A projection's squared error follows from second moments alone, so no footage is decoded again.
    """
    result: dict[tuple[Cell, str], list[float]] = {}
    for left_out, cells in sources.items():
        others = [moments for source, moments in sources.items() if source != left_out]
        for kind in KINDS:
            mean_P, basis_PC, _ = principal_components(_of_kind(others, kind), channels)
            for (cell, of_kind), moments in cells.items():
                if of_kind == kind:
                    result.setdefault((cell, kind), []).append(psnr_db(moments.squared_error(mean_P, basis_PC)))
    return result


def _of_kind(sources: Sequence[dict[tuple[Cell, str], Moments]], kind: str) -> Moments:
    return pooled([moments for cells in sources for (_, of_kind), moments in cells.items() if of_kind == kind])


def fit(sources: dict[str, dict[tuple[Cell, str], Moments]], channels: int) -> dict[str, Tensor]:
    """The weights of `training.autoencoders.linear`, in fp32."""
    weights: dict[str, Tensor] = {}
    deviations = []
    for kind in KINDS:
        mean_P, basis_PC, std_C = principal_components(_of_kind(list(sources.values()), kind), channels)
        weights |= {f"{kind}.mean": mean_P.to(torch.float32), f"{kind}.basis": basis_PC.to(torch.float32).contiguous()}
        deviations.append(std_C.to(torch.float32))
    std_2C = torch.stack(deviations)
    # A block's mean is taken off before it is projected, so the latents of the footage have mean 0.
    return weights | {"mean": torch.zeros_like(std_2C), "std": std_2C}


def read_sources(folder: Path, seed: int) -> dict[str, dict[tuple[Cell, str], Moments]]:
    """Moments of every video of a folder by source; a file that does not decode is named and left out."""
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
            f"{folder}: {len(sources)} usable sources in {len(paths)} videos; at least 2 are needed, to measure on the one left out"
        )
    return sources


def report(scores: dict[tuple[Cell, str], list[float]]) -> str:
    """A table of PSNR in dB: mean over the sources left out, lowest and highest."""
    lines = ["| pixels | frames a second | first frame | groups of 4 | sources |", "| --- | --- | --- | --- | --- |"]
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
        "--seed", type=int, default=0, help="of the random offsets at which pictures are cut into blocks"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    configure_logging()
    sources = read_sources(options.folder, options.seed)
    for channels in options.channels:
        write_bytes(str(options.out / f"linear{channels}.safetensors"), save_tensors(fit(sources, channels)))
        print(
            f"\n{channels} channels: PSNR in dB on sources left out of the fit, mean (lowest to highest)\n\n{report(held_out(sources, channels))}"
        )


if __name__ == "__main__":
    main()
