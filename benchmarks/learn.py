"""What more training buys: one small model with several budgets of steps, on the demo's footage, from the same seeds.

    python -m benchmarks.learn [OUT] [--steps 125 500 2000] [--videos 96] [--preset nano] [--picture PATH.png]

Draws footage of the demo's kind, curates it without Ray and trains the preset once for each budget, in this process. Of each model's averaged
weights: the loss on clips of files held out (`val_loss`), the same with the null caption in place of theirs and the same noise
(`val_loss_null`; what it is above the other is what captions tell the model), and frames sampled from the same prompts and noise.
Rows of the picture are prompts, columns budgets. Prints one line of JSON last. A folder OUT is gone on with where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines import inline
from pipelines.curation import run_segments
from pipelines.dataset.build import build_dataset
from pipelines.recipe import Recipe, load_recipe
from pipelines.scenes.footage import make_footage
from training.assembly import make_planner, make_step_config
from training.checkpoints.export import read_export
from training.checkpoints.run_folder import run_folder
from training.conditioning import ConditioningRates
from training.data.dataset import Dataset
from training.data.loader import Loader
from training.loop import train_loop
from training.models.dit import DiT
from training.sampling.settings import SampleSettings
from training.sampling.tasks import sample
from training.settings import PreviewSettings, TrainSettings
from training.step import key, losses, make_noisy_batch, stratified_quantiles

ROOT = Path(__file__).resolve().parents[1]
EPOCH = "learn"
"""In the key of the noise that models are measured with."""
PROMPTS = (
    "A green triangle and a yellow circle fall and bounce on the floor in front of a light blue background while the camera stays still.",
    "A blue triangle spins in the middle in front of a maroon background while the camera pans to the left.",
    "An orange square moves to the right in front of a dark green background while the camera stays still.",
)
FRAMES = 3
"""Of each sample that the picture shows."""


def recipe_of(out: Path, videos: int) -> Recipe:
    footage = out / "footage"
    if not (footage / "truth.json").exists():
        make_footage(footage, videos)
    sources = [
        {"videos": f"{footage}/*.mp4", "captions": "sidecar"},
        {"images": f"{footage}/*.png", "captions": "sidecar"},
    ]
    wanted = {"out": str(out), "sources": sources, "splits": {"val": 0.2}}
    return load_recipe(
        ROOT / "pipelines" / "recipes" / "quickstart.yaml",
        [f"{name}={json.dumps(value)}" for name, value in wanted.items()],
    )


def settings_of(recipe: Recipe, preset: Any, steps: int) -> TrainSettings:
    """The demo's training, at another size and length, in one process."""
    assert recipe.train is not None
    changed: dict[str, Any] = {
        "model": DiT(preset=preset),
        "steps": steps,
        "decay_steps": steps // 2,
        "warmup_steps": min(40, steps // 4),
    }
    changed |= {"batch": recipe.train.batch.model_copy(update={"tokens_per_step": 2000}), "workers": 1, "zero_stage": 0}
    return recipe.train.model_copy(
        update={**changed, "validate_every": 0, "previews": PreviewSettings(every=0), "checkpoint_every": 250}
    )


@torch.no_grad()
def validation(export_uri: str, settings: TrainSettings, manifest_uri: str, seed: int) -> dict[str, float]:
    """Mean losses over the split held out, with captions and without, of the same noise."""
    dataset = Dataset.open(manifest_uri, "val")
    _, model, null_text = read_export(export_uri)
    task = replace(make_step_config(settings, dataset, seed), caption_drop=0.0, conditioning=ConditioningRates(none=1.0))
    quantile_of = stratified_quantiles(seed, [key(EPOCH, uid) for uid in dataset.table["uid"].to_pylist()])
    found: dict[str, list[float]] = {"val_loss": [], "val_loss_null": []}
    planner = make_planner(dataset, settings, seed=0)
    with Loader(dataset, planner) as loader:
        for _, batches in zip(range(planner.steps_in(0)), loader, strict=False):
            for batch in batches[1]:
                for name, texts in (("val_loss", batch.texts), ("val_loss_null", [null_text] * len(batch.texts))):
                    inputs = make_noisy_batch(task, replace(batch, texts=texts), quantile_of, torch.device("cpu"), EPOCH)
                    found[name] += losses(model, inputs).tolist()
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()} | {
        "val_clips": len(found["val_loss"])
    }


def frames_of(uri: str) -> NDArray[np.uint8]:
    """First, middle and last frame of an mp4, next to each other."""
    with av.open(uri) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    places = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    return np.concatenate([frames[place] for place in places], axis=1)


def picture(columns: list[list[str]]) -> Image.Image:
    """Budgets from left to right, prompts from top to bottom."""
    rows = [
        np.concatenate([np.pad(frames_of(uri), ((4, 4), (6, 6), (0, 0)), constant_values=255) for uri in row], axis=1)
        for row in zip(*columns, strict=True)
    ]
    whole = Image.fromarray(np.concatenate(rows, axis=0))
    return whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, nargs="+", default=[125, 500, 2000])
    parser.add_argument("--videos", type=int, default=96)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    # Products of matrices this small take longer on several.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).absolute()
        recipe = recipe_of(out, arguments.videos)
        manifest_uri = build_dataset(recipe, run_segments(recipe, inline)).manifest_uri
        found: dict[str, dict[str, float]] = {}
        samples = []
        for steps in arguments.steps:
            settings = settings_of(recipe, arguments.preset, steps)
            run_uri = run_folder(settings, manifest_uri, str(out / f"steps-{steps}"), recipe.seed)
            start_s = time.process_time()
            export_uri = train_loop(settings, manifest_uri, run_uri, recipe.seed, torch.device("cpu")).export_uri
            found[str(steps)] = {
                **validation(export_uri, settings, manifest_uri, recipe.seed),
                "cpu_s": round(time.process_time() - start_s, 1),
            }
            print(steps, found[str(steps)], flush=True)
            if arguments.picture:
                wanted = [SampleSettings(prompt=prompt, seconds=2, size="80x48", guidance=2.0) for prompt in PROMPTS]
                samples.append([sample(one, export_uri, f"{run_uri}/samples") for one in wanted])
        if arguments.picture:
            picture(samples).save(arguments.picture)
    print(json.dumps({"preset": arguments.preset, "videos": arguments.videos, "steps": found}))


if __name__ == "__main__":
    main()
