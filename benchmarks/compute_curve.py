"""Samples, losses and world scores of one recipe by training compute: the same model, data and noise, more steps.

    python -m benchmarks.compute_curve RECIPE OUT [--steps 190] [--factors 1 4 16 64] [--prompts 32] [--guidance 1.5]
        [--also EXPORT ...] [--image PATH.png] [--set KEY=VALUE ...]

RECIPE, or the folder of its run, trains on drawn footage and is curated already (`worldloom curate`). Its model is
trained from random weights in this process, in one thread, once for each factor: for so many times `--steps`. The
learning rate falls to 0 in each run, over the share of steps that it falls over in the recipe. `--also` adds finished
models of the same recipe, such as the one of `worldloom train`, in place of long runs here.

For each it prints

- `tflop`: floating-point operations of all training steps, in 10^12;
- `val_loss`: the loss on the validation split, of the averaged weights after the last step;
- `background`, `colours`, `kinds`, `number`: the shares of backgrounds, named colours, named shapes and numbers of
  shapes that are as held-out captions say, in clips of `--prompts` captions (`training.evaluation.world_scores`).

With `--image`, three prompts by rows and models by columns, always from the same noise, and curves of all figures.
Prints a line per model and one line of JSON last. OUT keeps the runs; a second call resumes there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.learn import comparison_image
from cluster import storage
from pipelines.dataset import current
from pipelines.recipe import load_recipe
from pipelines.scenes.stream import WORLD, held_out_prompts
from training.checkpoints.model_card import ModelCard, read_card
from training.checkpoints.run_folder import run_folder
from training.data.buckets import parse_bucket_name
from training.evaluation.truth import write_truth
from training.evaluation.world_scores import METRICS, WorldScores
from training.loop import train_loop
from training.sampling.exported_model import ExportedModel
from training.sampling.settings import SampleSettings, SolverSettings
from training.sampling.tasks import sample
from training.settings import PreviewSettings, TrainSettings
from training.tracking.metrics import read_metrics

CPU = torch.device("cpu")
PROMPTS = (
    (
        "A green triangle and a yellow circle fall and bounce on the floor in front of a light blue background "
        "while the camera stays still."
    ),
    (
        "A red square and a white circle fly towards the middle and collide in front of a dark green background "
        "while the camera stays still."
    ),
    "A blue star spins in the middle in front of a maroon background while the camera pans to the left.",
)
COLOURS = {"background": "#4b8b3b", "colours": "#1f5fa8", "kinds": "#d1495b", "number": "#8a5fa8"}
"""Colours of the scores' curves by the metric."""
PANEL_PX, FONT_PX, LINE_PX = 460, 26, 4
INK, GRID = "#1d1f24", "#d8d6d0"


def settings_for(recipe: TrainSettings, steps: int) -> TrainSettings:
    """Return the recipe's settings for a run of so many steps in this process, from random weights."""
    changes = {
        "init": None,
        "steps": steps,
        "decay_steps": round(recipe.decay_steps / recipe.steps * steps),
        "warmup_steps": min(recipe.warmup_steps, steps // 4),
        "workers": 1,
        "zero_stage": 0,
        "validate_every": steps,
        "checkpoint_every": min(recipe.checkpoint_every, 500),
        "export": "last",
        "previews": PreviewSettings(every=0),
        "trackers": (),
    }
    return recipe.model_copy(update=changes)


def figures_of(export_uri: str, scores: WorldScores, guidance: float) -> dict[str, Any]:
    """Return the compute, the validation loss and the scores of a trained model, kept beside its export."""
    kept = storage.join(export_uri.rpartition("/")[0], "compute_curve.json")
    if storage.exists(kept):
        found: dict[str, Any] = storage.read_json(kept)
        return found
    model = ExportedModel(export_uri, "cpu")
    records = read_metrics(export_uri.rpartition("/")[0])
    losses = [record["val_loss"] for record in records if "val_loss" in record]
    found = {
        "export": export_uri,
        "steps": model.card.trained_steps,
        "tflop": float(f"{sum(record['tflops'] * record['step_s'] for record in records):.3g}"),
        "val_loss": model.card.val_loss or (losses[-1] if losses else None),
        **scores.measure(model.parts, SolverSettings(steps=20, guidance=guidance)),
    }
    storage.write_bytes(kept, json.dumps(found).encode())
    return found


def samples_of(export_uri: str, guidance: float) -> list[str]:
    """Return the mp4 files of one model's samples of `PROMPTS`, at its widest size and greatest length."""
    width, height, frames = widest(read_card(export_uri))
    seconds = (frames - 1) / read_card(export_uri).fps
    size = f"{width}x{height}"
    requests = [SampleSettings(prompt=prompt, seconds=seconds, size=size, guidance=guidance) for prompt in PROMPTS]
    return [sample(request, export_uri, f"{export_uri}/samples") for request in requests]


def widest(card: ModelCard) -> tuple[int, int, int]:
    """Return width, height and frames of the model's bucket with the greatest length, then the widest."""
    return max(map(parse_bucket_name, card.buckets), key=lambda bucket: (bucket[2], bucket[0] / bucket[1]))


def figure(found: Sequence[dict[str, Any]], strips: Image.Image) -> Image.Image:
    """Return the samples with the steps above each column, and below them curves of the loss and of the scores."""
    heading = 2 * FONT_PX
    whole = Image.new("RGB", (strips.width, heading + strips.height + PANEL_PX), "white")
    whole.paste(strips, (0, heading))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(FONT_PX)
    for index, one in enumerate(found):
        text = f"{one['steps']:,} steps, {one['tflop']:g} TFLOP"
        draw.text((12 + index * strips.width // len(found), FONT_PX // 2), text, INK, font)
    losses = {"validation loss": (INK, [one["val_loss"] for one in found])}
    scores = {name: (COLOURS[name], [one.get(name) for one in found]) for name in METRICS}
    for index, curves in enumerate((losses, scores)):
        panel = curve_panel([one["tflop"] for one in found], curves, strips.width // 2)
        whole.paste(panel, (index * strips.width // 2, heading + strips.height))
    return whole


def curve_panel(x: Sequence[float], curves: dict[str, tuple[str, list[float | None]]], width: int) -> Image.Image:
    """Return a chart of curves over compute on a logarithmic axis, with the name of each beside its last value."""
    left, right, top, bottom = 90, 280, 40, 70
    panel = Image.new("RGB", (width, PANEL_PX), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(FONT_PX)
    values = [value for _, line in curves.values() for value in line if value is not None]
    low, high = (0.0, 1.0) if len(curves) > 1 else (0.95 * min(values), 1.05 * max(values))
    logs = np.log10(np.maximum(x, 1e-6))
    span = max(float(logs[-1] - logs[0]), 1e-6)

    def at(log: float, value: float) -> tuple[float, float]:
        across = left + (width - left - right) * (log - logs[0]) / span
        return float(across), top + (PANEL_PX - top - bottom) * (1 - (value - low) / (high - low))

    for tick in np.linspace(low, high, 5):
        _, y = at(logs[0], tick)
        draw.line((left, y, width - right, y), GRID, 2)
        draw.text((left - 12, y), f"{tick:.0%}" if len(curves) > 1 else f"{tick:.2f}", INK, font, anchor="rm")
    for log, compute in zip(logs, x, strict=True):
        draw.text((at(log, low)[0], PANEL_PX - bottom + 12), f"{compute:g}", INK, font, anchor="mt")
    draw.text((width - right + 80, PANEL_PX - bottom + 12), "TFLOP", INK, font, anchor="lt")
    names = sorted(
        ((at(0, line[-1])[1], name, tone) for name, (tone, line) in curves.items() if line[-1] is not None),
    )
    below = -1.0
    for y, name, tone in names:
        below = max(y, below + FONT_PX)  # names of near curves stand below each other
        draw.text((width - right + 20, below), name, tone, font, anchor="lm")
    for tone, line in curves.values():
        points = [at(log, value) for log, value in zip(logs, line, strict=True) if value is not None]
        draw.line(points, tone, LINE_PX)
        for px, py in points:
            draw.ellipse((px - 7, py - 7, px + 7, py + 7), tone)
    return panel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=190, help="steps of factor 1")
    parser.add_argument("--factors", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--prompts", type=int, default=32, help="held-out captions that are scored")
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--also", nargs="*", default=[], help="exports of finished runs of the recipe")
    parser.add_argument("--image", type=Path, help="PNG to write")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for worldloom")
    arguments = parser.parse_args()
    # Matrix products this small take longer on several threads.
    torch.set_num_threads(1)
    recipe = load_recipe(arguments.recipe, arguments.set)
    if recipe.train is None:
        parser.error(f"{arguments.recipe}: has no section train")
    manifest_uri, out_uri = current.read(recipe).manifest_uri, storage.absolute(str(arguments.out))
    truth = [prompt.truth for prompt in held_out_prompts(2 * arguments.prompts)]
    write_truth(storage.join(out_uri, "prompts", "truth.parquet"), WORLD, truth)
    scores = WorldScores(storage.join(out_uri, "prompts"), arguments.prompts)
    found = []
    for factor in arguments.factors:
        settings = settings_for(recipe.train, factor * arguments.steps)
        run_uri = run_folder(settings, manifest_uri, storage.join(out_uri, f"steps-{settings.steps}"), recipe.seed)
        export_uri = train_loop(settings, manifest_uri, run_uri, recipe.seed, CPU).export_uri
        found.append(figures_of(export_uri, scores, arguments.guidance))
        print(found[-1], flush=True)
    for export in arguments.also:
        found.append(figures_of(storage.absolute(export), scores, arguments.guidance))
        print(found[-1], flush=True)
    found.sort(key=lambda one: one["tflop"])
    if arguments.image:
        strips = comparison_image([samples_of(one["export"], arguments.guidance) for one in found])
        figure(found, strips).save(arguments.image)
    print(json.dumps({"prompts": arguments.prompts, "models": found}))


if __name__ == "__main__":
    main()
