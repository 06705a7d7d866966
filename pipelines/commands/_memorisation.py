"""The part of `worldloom audit` that asks what a model has learnt by heart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from cluster import storage
from cluster.config import ConfigError
from cluster.telemetry import progress
from pipelines.commands._console import console, print_facts, table_of
from pipelines.commands._marks import open_marker
from pipelines.dataset import current
from pipelines.recipe import Recipe
from training.evaluation.settings import AUDITS_FOLDER, SUMMARY_FILE, TRAINING_CLIPS_FOLDER
from training.sampling.settings import SolverSettings

if TYPE_CHECKING:
    # These import torch, which takes 2 s.
    from training.data.dataset import Dataset
    from training.evaluation.memorisation_audit import MemorisationAudit
    from training.sampling.exported_model import ExportedModel

N_PAIRS = 6
"""Samples of each view, nearest to a training clip first, whose training clips are written as videos."""
MAX_LISTED = 20
"""Flagged captions that are printed; `--json` lists all."""
TITLES = {"content": "content of samples", "motion": "motion of samples", "recall": "caption recall"}
NO_AUDIT = "makes a video of an image alone, and samples of the audit are made from captions"


def audit_model(recipe: Recipe, model_uri: str, n_clips: int, seeds: int) -> dict[str, Any]:
    """Test `n_clips` training clips of a recipe's data set for being learnt by heart by a model, and return the result.

    `seeds` samples are made of each caption, as the section `evaluate` says if there is one. Samples that were made
    before are kept. The result is also in `summary.json` in the folder `out/audit/<weights>`, which it names. Raises
    `ConfigError` if there is no data set, or it has too few clips or captions, or the model is of other latents or
    texts; `ValueError` if there is no such model.
    """
    manifest_uri = current.read(recipe).manifest_uri
    settings = recipe.evaluate or SolverSettings()
    from training.data.dataset import CaptionMix, Dataset
    from training.evaluation.generation import Generation
    from training.evaluation.memorisation_audit import audit_data, choose_clips, run_audit, samples_of
    from training.sampling.exported_model import ExportedModel

    model = ExportedModel(model_uri)
    training, held_out = Dataset.open(manifest_uri, "train"), Dataset.open(manifest_uri, "val")
    _check(model, training, settings)
    training_rows, held_out_rows = choose_clips(training, held_out, n_clips)
    marker = open_marker(recipe.marks)
    weights = recipe.train.captions if recipe.train is not None else {}
    captions = CaptionMix(weights, recipe.seed) if weights else None
    clips = samples_of(training, training_rows, captions)
    ordinary = samples_of(held_out, held_out_rows, captions)
    folder_uri = storage.join(recipe.out_uri, AUDITS_FOLDER, model.card.weights or "model")
    generation = Generation(model, settings, (), folder_uri, marker=marker)
    with progress("audit", (seeds + 1) * len(clips) + len(ordinary)) as bar:
        found = run_audit(generation, training, clips, ordinary, seeds, bar.advance)
    _write_training_clips(found, model, training, folder_uri)
    data = {"model": storage.absolute(model.uri), "folder": folder_uri, **audit_data(found)}
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(folder_uri, SUMMARY_FILE), text.encode())
    return data


def _check(model: ExportedModel, training: Dataset, settings: SolverSettings) -> None:
    """Raise `ConfigError` if a model cannot be sampled from captions, or is of other latents or texts than the data."""
    from training.sampling.experts import check_other_expert

    card, info = model.card, training.info
    if card.model.image_channels:
        raise ConfigError(f"{model.uri}: {NO_AUDIT}")
    try:
        settings.check_guidance(card.model)
        check_other_expert(card, None)
    except ValueError as error:
        raise ConfigError(f"{model.uri}: {error}") from error
    for part in ("autoencoder", "text_encoder"):
        own, others = getattr(card, f"{part}_identity"), getattr(info, f"{part}_identity")
        if own != others:
            raise ConfigError(
                f"{model.uri}: was trained with {part} {own}, and the data set is of {others}; audit it with the "
                "recipe that it was trained by, or curate with its own"
            )


def _write_training_clips(found: MemorisationAudit, model: ExportedModel, training: Dataset, folder_uri: str) -> None:
    """Write the training clips that samples come nearest to, as the autoencoder decodes them."""
    from training.evaluation.nearest import VIEWS
    from training.sampling.media import write_video

    uids = {finding.nearest for view in VIEWS for finding in found.findings[view][:N_PAIRS]}
    rows = {uid: row for row, uid in enumerate(training.table["uid"].to_pylist()) if uid in uids}
    for uid, row in rows.items():
        sample = training.sample(row)
        frames_THWC = model.decode(sample.latent[None].float().to(model.device))
        write_video(storage.join(folder_uri, TRAINING_CLIPS_FOLDER, f"{uid}.mp4"), frames_THWC, sample.fps)


def print_model_audit(data: dict[str, Any]) -> None:
    """Print the tests of a model, the captions that they flag, and what that means."""
    numbers = ("clips", "lowest", "held-out, lowest", "held-out, median", "below all held-out", "flagged", "from")
    table = table_of("Learnt by heart: 0 is a copy", ("test", *numbers), numbers)
    for name, test in data["tests"].items():
        values, ordinary = [one["value"] for one in test["findings"]], test["held_out"]
        cells = [f"{value:.3g}" for value in (values[0], ordinary[0], ordinary[len(ordinary) // 2])]
        lower = sum(value < ordinary[0] for value in values)
        n_flagged = sum(one["flagged"] for one in test["findings"])
        table.add_row(TITLES[name], str(len(values)), *cells, str(lower), str(n_flagged), str(test["fewest"]))
    console.print(table)
    _print_flagged(data["flagged"])
    rate = f"at most {data['rate']:.0%} of audits flag a clip if none is"
    flags, clips = len(data["flagged"]), data["clips"]
    verdict = f"{flags} of {clips} training clips are learnt by heart" if flags else "no clip is learnt by heart"
    console.print(f"[bold red]{verdict}[/]" if flags else verdict, highlight=False)
    print_facts([("rate", rate), ("results", data["folder"])])


def _print_flagged(flags: Sequence[dict[str, Any]]) -> None:
    if not flags:
        return
    table = table_of("Captions of training clips that are learnt by heart", ("clip", "tests", "caption"))
    for one in flags[:MAX_LISTED]:
        table.add_row(one["clip"], ", ".join(one["tests"]), escape(one["caption"]))
    console.print(table)
    if len(flags) > MAX_LISTED:
        console.print(f"[bold red]and {len(flags) - MAX_LISTED:,} more[/]; --json lists all", highlight=False)
