"""Validation loss of training recipes at equal CPU seconds, on the demo's kind of footage.

    python -m benchmarks.learn [OUT] [--budget 120 600] [--seeds 0 1] [--variants before x] [--videos 300]
        [--add NAME JSON] [--image PATH.png]

Draws footage of the demo's kind and curates it without Ray. Then it trains every variant in this process, in one
thread, once per budget and seed. A variant is a set of changes of the quickstart's training settings. Its seconds per
step are measured first. They give the number of steps that fit into the budget, and the learning rate falls to 0 over
the last part of them (`DECAY_SHARE`), so each budget is a run of its own. Seconds are of the process, so other work on
the machine disturbs little.

All models are evaluated alike, whatever they predict and whichever noise levels they were trained with: the same clips
of files held out, with the same noise at the same noise levels.

- `val_loss`: the mean squared error of the velocity that the averaged weights predict;
- `raw`: the same of the weights without averaging;
- `null`: that of the averaged weights with the null caption in place of the clips' own; what it exceeds `val_loss` by
  is what captions tell the model;
- with `--image`, frames sampled from the same prompts and noise: a row per prompt, a column per variant and budget.

Prints a line per run, a table, and one line of JSON last. A folder OUT keeps footage, latents, runs and results; a
second call resumes there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cluster.arrays import UInt8Array
from cluster.config import validate
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
from training.data.loader import batch_loader
from training.inputs import make_noisy_batch
from training.loop import train_loop
from training.models.dit import DiT
from training.network import VideoModel
from training.objective import ObjectiveSettings
from training.objectives.flow_matching import FlowMatching
from training.sampling.settings import SampleSettings
from training.sampling.tasks import sample
from training.settings import TrainSettings
from training.step import NoisyBatch, StepConfig, stratified_quantiles

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
EPOCH = "learn"
"""Takes the place of the epoch in the key of the noise that models are evaluated with."""
EVALUATION_SEED = 0
EVALUATION_TIMES = FlowMatching(time_mean=0.4)
"""Distribution of the noise levels that models are evaluated at."""
EVALUATION_MODEL = DiT()
"""Model whose numbers of tokens shift these noise levels."""
DECAY_SHARE = 0.67
"""Share of the steps over which the learning rate falls to 0, as in the quickstart recipe."""
WARMUP_STEPS = 40
TIMED_STEPS = (4, 16)
"""Steps of the two short runs whose difference gives the seconds per step."""
TIMED_ROUNDS = 2
"""Such pairs of runs per variant, of which the faster counts: other work on the machine only slows steps down."""
BEFORE: dict[str, Any] = {
    "model": {"name": "dit", "depth": 6, "dim": 192, "heads": 6},
    "objective": {"name": "flow_matching", "time_mean": 0.4},
    "batch": {"tokens_per_step": 3000},
    "lr": 2e-3,
    "ema_decay": 0.99,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "before": {},
    "x": {"objective": {"target": "x"}},
    "muon": {"optimizer": "muon"},
    "small_steps": {"batch": {"tokens_per_step": 1500}},
}
"""Changes of `BEFORE` by name; settings of parts are merged."""
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


@dataclass(frozen=True)
class Comparison:
    """The data and the folder of a comparison."""

    out: Path
    recipe: Recipe
    manifest_uri: str


@dataclass(frozen=True)
class Case:
    """One training run of a comparison."""

    variant: str
    changes: Mapping[str, Any]
    budget_s: int
    """CPU seconds that training may take."""
    seed: int


def demo_recipe(out: Path, n_videos: int) -> Recipe:
    """Return the quickstart recipe for generated footage below `out`, which is written unless it is there."""
    footage = out / "footage"
    if not (footage / TRUTH_FILE).exists():
        make_footage(footage, n_videos)
    sources = [
        {"videos": f"{footage}/*.mp4", "captions": "sidecar"},
        {"images": f"{footage}/*.png", "captions": "sidecar"},
    ]
    changed = {"out": str(out / "data"), "sources": sources, "splits": {"val": 0.2}}
    return load_recipe(
        ROOT / "pipelines" / "recipes" / "quickstart.yaml",
        [f"{name}={json.dumps(value)}" for name, value in changed.items()],
    )


def variant_settings(recipe: Recipe, changes: Mapping[str, Any], steps: int) -> TrainSettings:
    """Return the recipe's training settings with `BEFORE`, then `changes`, in this process and for `steps` steps."""
    assert recipe.train is not None
    values: dict[str, Any] = recipe.train.model_dump(mode="json") | {
        "steps": steps,
        "decay_steps": int(DECAY_SHARE * steps),
        "warmup_steps": min(WARMUP_STEPS, steps // 4),
        "workers": 1,
        "zero_stage": 0,
        "validate_every": 0,
        "previews": {"every": 0},
        "checkpoint_every": 250,
        "trackers": [],
    }
    for part in (BEFORE, changes):
        for key, value in part.items():
            merges = isinstance(value, Mapping) and part is changes
            values[key] = {**values[key], **value} if merges else value
    return validate(TrainSettings, values)


def seconds_per_step(comparison: Comparison, case: Case) -> float:
    """Return the CPU seconds of a training step of this variant, measured once per variant and kept in `out`."""
    kept = comparison.out / "runs" / case.variant / "seconds_per_step.json"
    if not kept.exists():
        measured = []
        timed_run_s(comparison, case, TIMED_STEPS[0])  # The first run of a process imports and prepares much.
        for _ in range(TIMED_ROUNDS):
            few_s, more_s = (timed_run_s(comparison, case, steps) for steps in TIMED_STEPS)
            measured.append((more_s - few_s) / (TIMED_STEPS[1] - TIMED_STEPS[0]))
        kept.write_text(json.dumps(min(measured)))
    seconds: float = json.loads(kept.read_text())
    return seconds


def timed_run_s(comparison: Comparison, case: Case, steps: int) -> float:
    """Return the CPU seconds of a run of this variant with so many steps, whose files are removed."""
    run_uri = str(comparison.out / "runs" / case.variant / "timing")
    start_s = time.process_time()
    train_loop(variant_settings(comparison.recipe, case.changes, steps), comparison.manifest_uri, run_uri, 0, CPU)
    spent_s = time.process_time() - start_s
    shutil.rmtree(run_uri)
    return spent_s


def result_of(comparison: Comparison, case: Case) -> dict[str, Any]:
    """Return the losses of a case, which is trained unless its result is in `out`."""
    folder = comparison.out / "runs" / case.variant / f"{case.budget_s}s-seed{case.seed}"
    kept, spent = folder / "result.json", folder / "cpu_s.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    steps = max(8, int(case.budget_s / seconds_per_step(comparison, case)))
    settings = variant_settings(comparison.recipe, case.changes, steps)
    run_uri = run_folder(settings, comparison.manifest_uri, str(folder), case.seed)
    start_s = time.process_time()
    try:
        export_uri = train_loop(settings, comparison.manifest_uri, run_uri, case.seed, CPU).export_uri
    finally:
        folder.mkdir(parents=True, exist_ok=True)
        before_s = json.loads(spent.read_text()) if spent.exists() else 0.0
        spent.write_text(json.dumps(before_s + time.process_time() - start_s))
    found = {
        **evaluate(export_uri, settings, comparison.manifest_uri),
        "steps": steps,
        "cpu_s": round(json.loads(spent.read_text()), 1),
        "export": export_uri,
    }
    kept.write_text(json.dumps(found))
    return found


@torch.no_grad()
def evaluate(export_uri: str, settings: TrainSettings, manifest_uri: str) -> dict[str, float]:
    """Return the mean errors of the velocity over the validation split, of the same noise and levels for all models."""
    dataset = Dataset.open(manifest_uri, "val")
    _, averaged, null_text = read_export(export_uri)
    _, raw, _ = read_export(export_uri, averaged=False)
    config = evaluation_config(settings, dataset)
    uids = dataset.table["uid"].to_pylist()
    row_of = {uid: row for row, uid in enumerate(uids)}
    all_quantiles = stratified_quantiles(EVALUATION_SEED, dataset.uid_hashes, EPOCH)
    losses: dict[str, list[float]] = {"val_loss": [], "raw": [], "null": []}
    planner = make_planner(dataset, settings, seed=0)
    with batch_loader(dataset, planner) as loader:
        for _, batches in islice(loader, planner.steps_in(0)):
            for batch in batches:
                quantiles = all_quantiles[[row_of[uid] for uid in batch.uids]]
                with_captions = make_noisy_batch(config, batch, quantiles, CPU, EPOCH)
                without = replace(batch, texts=[null_text] * len(batch.texts))
                with_null = make_noisy_batch(config, without, quantiles, CPU, EPOCH)
                losses["val_loss"] += velocity_errors(averaged, with_captions, config.objective)
                losses["raw"] += velocity_errors(raw, with_captions, config.objective)
                losses["null"] += velocity_errors(averaged, with_null, config.objective)
    return {name: round(fmean(values), 4) for name, values in losses.items()} | {"clips": len(losses["raw"])}


def evaluation_config(settings: TrainSettings, dataset: Dataset) -> StepConfig:
    """Return the step with which models of these settings are evaluated: all captions, no conditioning frames."""
    times = {key: getattr(EVALUATION_TIMES, key) for key in ("time_mean", "time_std", "shift_tokens", "max_shift")}
    return replace(
        make_step_config(settings, dataset, EVALUATION_SEED),
        model=EVALUATION_MODEL,
        objective=settings.objective.model_copy(update=times),
        caption_drop=0.0,
        conditioning=ConditioningRates(none=1.0),
    )


def velocity_errors(model: VideoModel, batch: NoisyBatch, objective: ObjectiveSettings) -> list[float]:
    """Return the mean squared error of each sample's velocity, which follows from whatever the model predicts."""

    def velocity(prediction: Tensor, index: int) -> Tensor:
        return objective.velocity(prediction, batch.noisy[index], batch.condition.times[index][:, None, None])

    predictions = model(batch.noisy, batch.condition)
    return [
        float((velocity(prediction, index) - velocity(target, index)).square().mean())
        for index, (prediction, target) in enumerate(zip(predictions, batch.targets, strict=True))
    ]


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


def samples_of(export_uri: str) -> list[str]:
    """Return the mp4 files of one model's samples of the prompts."""
    requests = [SampleSettings(prompt=prompt, seconds=2, size="80x48", guidance=2.0) for prompt in PROMPTS]
    return [sample(request, export_uri, f"{export_uri}/samples") for request in requests]


def print_table(found: Mapping[str, Mapping[int, list[dict[str, Any]]]]) -> None:
    """Print a row per variant and budget: the mean over seeds, and each seed's validation loss."""
    print(f"{'variant':24} {'budget':>7} {'steps':>6} {'cpu_s':>6} {'val_loss':>8} {'raw':>7} {'null':>7}  seeds")
    for variant, by_budget in found.items():
        for budget_s, results in by_budget.items():
            mean = {name: fmean(one[name] for one in results) for name in ("steps", "cpu_s", "val_loss", "raw", "null")}
            print(
                f"{variant:24} {budget_s:6}s {mean['steps']:6.0f} {mean['cpu_s']:6.0f} {mean['val_loss']:8.4f} "
                f"{mean['raw']:7.4f} {mean['null']:7.4f}  {' '.join(str(one['val_loss']) for one in results)}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder of footage and runs; a temporary one if not given")
    parser.add_argument("--budget", type=int, nargs="+", default=[120, 600], help="CPU seconds of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}, or added")
    parser.add_argument(
        "--add", nargs=2, action="append", default=[], metavar=("NAME", "JSON"), help="one more variant"
    )
    parser.add_argument("--videos", type=int, default=300, help="number of generated videos")
    parser.add_argument("--image", type=Path, help="PNG to write, of the first seed's models")
    arguments = parser.parse_args()
    variants = VARIANTS | {name: json.loads(changes) for name, changes in arguments.add}
    unknown = sorted(set(arguments.variants) - set(variants))
    if unknown:
        parser.error(f"--variants {' '.join(unknown)}: not one of {', '.join(variants)}; add it with --add")
    # Matrix products this small take longer on several threads.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).absolute()
        recipe = demo_recipe(out, arguments.videos)
        comparison = Comparison(out, recipe, build_dataset(recipe, run_segments(recipe, inline), inline).manifest_uri)
        names = list(dict.fromkeys([*arguments.variants, *(name for name, _ in arguments.add)]))
        found: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in names}
        # Variants take turns, so that a change of the machine's speed meets all of them.
        for budget_s in arguments.budget:
            for seed in arguments.seeds:
                for name in names:
                    result = result_of(comparison, Case(name, variants[name], budget_s, seed))
                    found[name].setdefault(budget_s, []).append(result)
                    shown = {key: value for key, value in result.items() if key != "export"}
                    print(f"{name}, {budget_s} s, seed {seed}: {shown}", flush=True)
        if arguments.image:
            exports = [found[name][budget_s][0]["export"] for name in names for budget_s in arguments.budget]
            comparison_image([samples_of(export_uri) for export_uri in exports]).save(arguments.image)
    print_table(found)
    print(json.dumps({"videos": arguments.videos, "variants": found}))


if __name__ == "__main__":
    main()
