"""At which noise levels a model decides what an image shows: `python -m benchmarks.noise_levels EXPORT`.

Held-out still images of the drawn world, 80x80 pixels, are encoded, noised to a level and denoised from there by the
model with their own captions. The tracker judges the shares of right `colours`, `kinds` (forms) and `number`: where
they fall from one level to the next, the model decides wrongly between them. Level 1 is noise alone, a plain sample;
level 0 is what the autoencoder returns.

Prints a line per level, and one line of JSON last. With `--image PATH.png` the first images are saved, a row per level.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import worldloom
from benchmarks.stills import FPS, SIDE, drawn, judge, still_images
from cluster.arrays import UInt8Array
from training.sampling.coding import to_pixels
from training.sampling.generation import ModelParts, generate, video_timeline
from training.sampling.settings import SolverSettings, VideoShape

SHOWN = 12


def denoised(
    parts: ModelParts, clean_BCTHW: Tensor, texts_NE: Sequence[Tensor], level: float, solver: SolverSettings
) -> Tensor:
    """Return latents `[B, C, 1, h, w]` that were noised to about a level and denoised from there.

    The level is the nearest one of the solver's schedule.
    """
    if level == 0:
        return clean_BCTHW
    shape, made = VideoShape(1, SIDE, SIDE, FPS), []
    schedule = parts.card.objective.schedule(solver.steps, parts.card.model.tokens(*clean_BCTHW.shape[2:]))
    steps = min(range(1, solver.steps + 1), key=lambda steps: abs(schedule[-1 - steps] - level))
    for seed, (clean_CTHW, text_NE) in enumerate(zip(clean_BCTHW, texts_NE, strict=True)):
        timeline = replace(video_timeline(parts, text_NE, shape), latent_CTHW=clean_CTHW, strength=steps / solver.steps)
        made.append(generate(parts, timeline, solver.model_copy(update={"seed": seed})))
    return torch.cat(made)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("--levels", type=float, nargs="+", default=[0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=30, help="from level 1; lower levels take the last ones of them")
    parser.add_argument("--image", metavar="PATH.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = worldloom.load_model(arguments.export)
    files, parts = still_images("held_out", arguments.images), model.parts
    with torch.no_grad():
        clean_BCTHW = torch.cat([parts.autoencoder.encode(images_B3THW) for images_B3THW in drawn(files)])
    texts_NE = model.embed_all([file.plan.caption for file in files])
    solver = SolverSettings(steps=arguments.steps, guidance=arguments.guidance)
    result: dict[str, Any] = {"export": arguments.export, "images": len(files), "guidance": arguments.guidance}
    rows: list[UInt8Array] = []
    for level in arguments.levels:
        made_BCTHW = denoised(parts, clean_BCTHW, texts_NE, level, solver)
        with torch.no_grad():
            images = list(to_pixels(parts.autoencoder.decode(made_BCTHW))[:, 0].numpy())
        result[f"level {level:g}"] = judge(images, files)
        print(level, result[f"level {level:g}"], flush=True)
        rows.append(np.concatenate(images[:SHOWN], axis=1))
    if arguments.image:
        Image.fromarray(np.concatenate(rows)).save(arguments.image)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
