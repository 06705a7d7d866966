"""Losses and samples of one small model after several numbers of training steps, on the demo's footage.

    python -m benchmarks.learn [OUT] [--steps 125 500 2000] [--videos 96] [--preset nano] [--image PATH.png]

Draws footage of the demo's kind, curates it without Ray and trains the preset once per number of steps, in this process
and from the same seed. The averaged weights of each model are evaluated:

- `val_loss`: the loss on clips of files held out;
- `val_loss_null`: the same with the null caption in place of theirs and the same noise; what it exceeds `val_loss` by
  is what captions tell the model;
- with `--image`, frames sampled from the same prompts and noise: a row per prompt, a column per number of steps.

Prints one line per model and one line of JSON last. A folder OUT keeps footage, latents and runs; a second call
resumes there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from cluster.arrays import UInt8Array
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.dataset.build import build_dataset
from pipelines.recipe import Recipe, load_recipe
from pipelines.scenes.footage import TRUTH_FILE, make_footage
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
from training.step import make_noisy_batch, mse_losses, sample_key, stratified_quantiles

ROOT = Path(__file__).resolve().parents[1]
EPOCH = "learn"
"""Takes the place of the epoch in the key of the noise that models are evaluated with."""
PROMPTS = (
    (
        "A green triangle and a yellow circle fall and bounce on the floor in front of a light blue background "
        "while the camera stays still."
    ),
    "A blue triangle spins in the middle in front of a maroon background while the camera pans to the left.",
    "An orange square moves to the right in front of a dark green background while the camera stays still.",
)
FRAMES = 3
"""Frames of each sample in the image."""
TOKENS_PER_STEP = 2000


def demo_recipe(out: Path, n_videos: int) -> Recipe:
    """Return the quickstart recipe for generated footage below `out`, which is written unless it is there."""
    footage = out / "footage"
    if not (footage / TRUTH_FILE).exists():
        make_footage(footage, n_videos)
    sources = [
        {"videos": f"{footage}/*.mp4", "captions": "sidecar"},
        {"images": f"{footage}/*.png", "captions": "sidecar"},
    ]
    changed = {"out": str(out), "sources": sources, "splits": {"val": 0.2}}
    return load_recipe(
        ROOT / "pipelines" / "recipes" / "quickstart.yaml",
        [f"{name}={json.dumps(value)}" for name, value in changed.items()],
    )


def demo_settings(recipe: Recipe, preset: Any, steps: int, tokens_per_step: int = TOKENS_PER_STEP) -> TrainSettings:
    """Return the recipe's training settings with another model and length, for one process."""
    assert recipe.train is not None
    changed: dict[str, Any] = {
        "model": DiT(preset=preset),
        "steps": steps,
        "decay_steps": steps // 2,
        "warmup_steps": min(40, steps // 4),
        "batch": recipe.train.batch.model_copy(update={"tokens_per_step": tokens_per_step}),
        "workers": 1,
        "zero_stage": 0,
        "validate_every": 0,
        "previews": PreviewSettings(every=0),
        "checkpoint_every": 250,
    }
    return recipe.train.model_copy(update=changed)


@torch.no_grad()
def validation(export_uri: str, settings: TrainSettings, manifest_uri: str, seed: int) -> dict[str, float]:
    """Return the mean losses over the validation split, with captions and without, of the same noise."""
    dataset = Dataset.open(manifest_uri, "val")
    _, model, null_text = read_export(export_uri)
    config = replace(
        make_step_config(settings, dataset, seed), caption_drop=0.0, conditioning=ConditioningRates(none=1.0)
    )
    quantile_of = stratified_quantiles(seed, [sample_key(EPOCH, uid) for uid in dataset.table["uid"].to_pylist()])
    losses: dict[str, list[float]] = {"val_loss": [], "val_loss_null": []}
    planner = make_planner(dataset, settings, seed=0)
    with Loader(dataset, planner) as loader:
        for _, batches in islice(loader, planner.steps_in(0)):
            for batch in batches:
                texts = {"val_loss": batch.texts, "val_loss_null": [null_text] * len(batch.texts)}
                for name, values in texts.items():
                    changed = replace(batch, texts=values)
                    noisy = make_noisy_batch(config, changed, quantile_of, torch.device("cpu"), EPOCH)
                    losses[name] += mse_losses(model, noisy).tolist()
    means = {name: round(float(np.mean(values)), 4) for name, values in losses.items()}
    return means | {"val_clips": len(losses["val_loss"])}


def frames_of(uri: str) -> UInt8Array:
    """Return the first, middle and last frame of an mp4, next to each other."""
    with av.open(uri) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    indices = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    return np.concatenate([frames[index] for index in indices], axis=1)


def comparison_image(columns: list[list[str]]) -> Image.Image:
    """Return an image of samples; each column has the mp4 files of one model, in the order of the prompts."""
    rows = [
        np.concatenate([np.pad(frames_of(uri), ((4, 4), (6, 6), (0, 0)), constant_values=255) for uri in row], axis=1)
        for row in zip(*columns, strict=True)
    ]
    image = Image.fromarray(np.concatenate(rows, axis=0))
    return image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder of footage and runs; a temporary one if not given")
    parser.add_argument("--steps", type=int, nargs="+", default=[125, 500, 2000], help="numbers of training steps")
    parser.add_argument("--videos", type=int, default=96, help="number of generated videos")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--image", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    # Matrix products this small take longer on several threads.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).absolute()
        recipe = demo_recipe(out, arguments.videos)
        manifest_uri = build_dataset(recipe, run_segments(recipe, inline), inline).manifest_uri
        found: dict[str, dict[str, float]] = {}
        columns = []
        for steps in arguments.steps:
            settings = demo_settings(recipe, arguments.preset, steps)
            run_uri = run_folder(settings, manifest_uri, str(out / f"steps-{steps}"), recipe.seed)
            start_s = time.process_time()
            export_uri = train_loop(settings, manifest_uri, run_uri, recipe.seed, torch.device("cpu")).export_uri
            found[str(steps)] = {
                **validation(export_uri, settings, manifest_uri, recipe.seed),
                "cpu_s": round(time.process_time() - start_s, 1),
            }
            print(f"{steps} steps: {found[str(steps)]}", flush=True)
            if arguments.image:
                requests = [SampleSettings(prompt=prompt, seconds=2, size="80x48", guidance=2.0) for prompt in PROMPTS]
                columns.append([sample(request, export_uri, f"{run_uri}/samples") for request in requests])
        if arguments.image:
            comparison_image(columns).save(arguments.image)
    print(json.dumps({"preset": arguments.preset, "videos": arguments.videos, "steps": found}))


if __name__ == "__main__":
    main()
