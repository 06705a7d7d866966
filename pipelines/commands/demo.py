"""`worldloom demo`: from drawn footage to samples, trained on from the shipped model and, beside it, from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from cluster import storage
from cluster.telemetry import progress
from pipelines.commands import curate, run, sample, train
from pipelines.commands._console import print_facts
from pipelines.commands._marks import open_marker
from pipelines.commands._options import Assignments
from pipelines.recipe import Recipe, load_recipe
from pipelines.scenes.footage import TRUTH_FILE, make_footage
from training.result import TrainResult
from training.tracking.metrics import read_metrics

FOOTAGE = "footage/demo"
"""Folder of the footage that the recipe reads."""
MODEL = "drawn-world"
"""Shipped model that the recipe `from-weights` starts from."""
LR_FROM_NOTHING = 2e-3
"""Learning rate of random weights, as in the recipe `quickstart`; weights that are trained on take a smaller one."""
SHEET = "demo.png"


def demo(videos: int = 24, assignments: Sequence[str] = ()) -> None:
    """Draw footage unless it is there, curate it, train, and sample; print the results.

    Training starts from the weights of the shipped model. The same network is then trained from random weights for as
    many steps, and a sheet shows the samples of both.
    """
    if not storage.exists(storage.join(FOOTAGE, TRUTH_FILE)):
        with progress("drawing", videos) as bar:
            make_footage(FOOTAGE, videos, 0, bar)
    recipe = _recipe(assignments)
    outcome = run.run(recipe)
    run.print_outcome(recipe, outcome)
    assert outcome.training is not None
    nothing = _recipe([*assignments, "train.init=null", f"train.lr={LR_FROM_NOTHING}"])
    other = train.train(nothing)
    others = sample.sample_recipe(nothing, other.export_uri, storage.join(recipe.out_uri, "samples-from-nothing"))
    sheet_uri = _write_sheet(recipe, (outcome.training, outcome.samples), (other, others))
    print_facts([*[("from nothing", uri) for uri in others], ("side by side", sheet_uri)])


Trained = tuple[TrainResult, Sequence[str]]
"""A training and the URIs of its samples."""


def _write_sheet(recipe: Recipe, from_weights: Trained, from_nothing: Trained) -> str:
    from pipelines.commands._media import read_frames
    from pipelines.commands._sample_sheet import sample_sheet
    from training.sampling.media import write_png

    samples = {
        _heading(f"From the shipped model {MODEL}", from_weights[0]): from_weights[1],
        _heading("The same network from nothing", from_nothing[0]): from_nothing[1],
    }
    clips = {heading: [read_frames(uri) for uri in uris] for heading, uris in samples.items()}
    sheet_uri = storage.join(recipe.out_uri, SHEET)
    sheet = sample_sheet([one.prompt for one in recipe.sample], clips)
    write_png(sheet_uri, sheet, open_marker(recipe.marks).finish_sheet())
    return sheet_uri


def _heading(start: str, training: TrainResult) -> str:
    records = read_metrics(training.metrics_uri.rpartition("/")[0])
    return f"{start}: {training.steps} steps in {sum(record['step_s'] for record in records):.0f} s"


def _recipe(assignments: Sequence[str]) -> Recipe:
    return load_recipe(Path(str(resources.files("pipelines"))) / "recipes" / "from-weights.yaml", assignments)


def command(
    videos: Annotated[int, typer.Option(min=6, help="How many videos to draw.")] = 24, set_: Assignments = None
) -> None:
    """Draw footage, curate it, train a small model, and sample: the whole road on a CPU in a few minutes.

    Training starts from the shipped model. The same network, trained from nothing for as many steps, is shown beside
    it. Files are written to `footage` and `runs` in the current folder; a demo that was stopped resumes.
    """
    with curate.printing_losses():
        demo(videos, set_ or ())
