"""Solvers compared by their error at equal numbers of model evaluations.

    python -m benchmarks.solvers EXPORT [--evaluations 10 15 25 50] [--seeds 4] [--seconds 1] [--size 96x64]
                                 [--guidance 5] [--prompt TEXT ...] [--frames FOLDER]

The error of a solver is the root of the mean square of its difference to the reference, over all latents of all
seeds: those that Heun's method reaches in 500 steps from the same noise. Latents have variance 1, so it is a share of
their own spread. A prompt is taken in turn per seed. `evaluations` are those of one prediction; guidance doubles them
for every solver alike. Prints a line per solver, and last one line of JSON: by solver and number of evaluations the
`error`, and for each solver `as_euler_50`, the fewest of these evaluations at which it is at most that of Euler in 50
steps. With `--frames` it also writes the middle frame of each seed: a row per solver, the reference in the first one,
each at the fewest evaluations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.plugins import build, names
from training.sampling.exported_model import ExportedModel
from training.sampling.generation import generate, video_timeline
from training.sampling.media import write_png
from training.sampling.settings import SampleSettings
from training.sampling.solver import FOLDER, Solver

PROMPTS = ("A red circle moves to the right.", "A blue square spins in front of a grey background.")
REFERENCE = ("heun", 500)
EULER = ("euler", 50)


def steps_of(solver: Solver, evaluations: int) -> int:
    """Return the most steps that take at most this number of evaluations."""
    return max(steps for steps in range(1, evaluations + 1) if solver.evaluations(steps) <= evaluations)


class Comparison:
    """A model and the samples by which solvers are compared."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model = ExportedModel(arguments.export)
        self.settings = SampleSettings(
            prompt="any", seconds=arguments.seconds, size=arguments.size, guidance=arguments.guidance
        )
        self.shape = self.model.fit_shape(self.settings)
        texts = [self.model.embed(prompt) for prompt in arguments.prompt or PROMPTS]
        self.texts = [texts[seed % len(texts)] for seed in range(arguments.seeds)]

    def latents(self, name: str, steps: int) -> list[Tensor]:
        """Return the latents `[1, C, t, h, w]` of each seed."""
        solver = build(FOLDER, Solver, name)
        return [
            generate(
                self.model.parts,
                video_timeline(self.model.parts, text, self.shape),
                self.settings.model_copy(update={"solver": solver, "steps": steps, "seed": seed}),
            )
            for seed, text in enumerate(self.texts)
        ]

    def frames(self, latents: Sequence[Tensor]) -> np.ndarray:
        """Return the middle frames of all seeds side by side."""
        videos = [self.model.decode(latent) for latent in latents]
        return np.concatenate([video[len(video) // 2] for video in videos], axis=1)


def rms(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the root of the mean square of all differences."""
    squares = [(one - other).square().mean() for one, other in zip(found, expected, strict=True)]
    return float(torch.stack(squares).mean().sqrt())


def main(arguments: argparse.Namespace) -> None:
    """Compare all solvers and print their errors."""
    comparison = Comparison(arguments)
    reference = comparison.latents(*REFERENCE)
    rows = [comparison.frames(reference)]
    euler = rms(comparison.latents(*EULER), reference)
    print(f"{'euler':>10} 50 evaluations: {euler:.4f}", flush=True)
    errors: dict[str, dict[int, float]] = {}
    for name in names(FOLDER):
        solver, errors[name] = build(FOLDER, Solver, name), {}
        for evaluations in arguments.evaluations:
            latents = comparison.latents(name, steps_of(solver, evaluations))
            errors[name][evaluations] = round(rms(latents, reference), 5)
            if evaluations == min(arguments.evaluations):
                rows.append(comparison.frames(latents))
        print(f"{name:>10} {errors[name]}", flush=True)
    if arguments.frames:
        write_png(str(arguments.frames / "solvers.png"), np.concatenate(rows))
    enough = {
        name: min((count for count, error in found.items() if error <= euler), default=None)
        for name, found in errors.items()
    }
    settings = {name: getattr(arguments, name) for name in ("seeds", "seconds", "size", "guidance")}
    result = {"benchmark": "solvers", **settings, "error": errors, "euler_50": round(euler, 5), "as_euler_50": enough}
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="folder of an exported model")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[10, 15, 25, 50])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--size", default="96x64")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--prompt", nargs="+")
    parser.add_argument("--frames", type=Path, help="folder for a picture of the samples")
    main(parser.parse_args())
