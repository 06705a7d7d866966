"""The command line, `worldloom`. Exit codes: 0 all done, 1 something failed, 2 bad input, 130 stopped by Ctrl-C.

Commands that work with tensors import what does so when they are called: torch takes 2 s, which those that answer from tables need not wait for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.markup import escape

from cluster import storage
from cluster.config import ConfigError, from_options
from cluster.telemetry import configure_logging, console, progress
from pipelines import inline as inline_engine
from pipelines import show
from pipelines.commands import doctor as doctoring
from pipelines.commands import export as exporting
from pipelines.commands.audit import audit as audit_splits
from pipelines.commands.plan import cpu_per_row
from pipelines.curation import inspect
from pipelines.ledger import ledger as accounts_of
from pipelines.recipe import Recipe, load_recipe
from pipelines.report.whatif import whatif as answer_whatif
from pipelines.scenes import footage
from pipelines.steps.encode import Encode
from training.data.footer import DamagedError
from training.sampling.settings import SampleSettings

if TYPE_CHECKING:
    from pipelines.forgetting.work import Work

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

RecipeFile = Annotated[
    Path, typer.Argument(help="Recipe (YAML), or the folder of a run, which holds its resolved recipe.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value: --set train.steps=50. Repeatable."),
]
InProcess = Annotated[bool, typer.Option("--inline", help="Without Ray and DeepSpeed, in this process: for debugging.")]


def read(path: Path, assignments: list[str] | None) -> Recipe:
    return load_recipe(path / "run.yaml" if path.is_dir() else path, assignments or [])


@app.command()
def run(
    recipe: RecipeFile,
    set_: Assignments = None,
    only: Annotated[str | None, typer.Option(help="curate, train or sample: that part alone.")] = None,
    inline: InProcess = False,
) -> None:
    """Run a recipe. What is done already is not done again; a run that was stopped goes on."""
    if only not in (None, "curate", "train", "sample"):
        raise ConfigError(f"--only {only}: write curate, train or sample")
    settings = read(recipe, set_)
    from pipelines.commands import run

    result = run.run_recipe(settings, only, inline)  # type: ignore[arg-type]
    show.outcome(result, settings.out_uri)
    if not all(account.balanced for account in result.accounts):
        raise typer.Exit(1)


@app.command()
def train(recipe: RecipeFile, set_: Assignments = None, inline: InProcess = False) -> None:
    """Train on a recipe's dataset: `run --only train`."""
    run(recipe, set_, "train", inline)


@app.command()
def sample(
    recipe: RecipeFile,
    set_: Assignments = None,
    prompt: Annotated[
        str | None, typer.Option(help="What to show; without it, the recipe's own samples are made.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length; 0 makes an image.")] = 2.0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")] = "96x64",
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 5.0,
    first: Annotated[
        str | None, typer.Option(metavar="PICTURE", help="Picture file that the video begins with.")
    ] = None,
    last: Annotated[str | None, typer.Option(metavar="PICTURE", help="Picture file that the video ends with.")] = None,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    upsample: Annotated[
        bool, typer.Option(help="Make the prompt detailed first, as the recipe's `upsample` says.")
    ] = False,
) -> None:
    """Sample video or images from a recipe's trained model."""
    settings = read(recipe, set_)
    if upsample:
        settings = settings.model_copy(
            update={"sample": tuple(one.model_copy(update={"upsample": True}) for one in settings.sample)}
        )
    if prompt is None and (first or last):
        raise ConfigError("--first and --last are of one video: say what it shows with --prompt")
    if prompt is not None:
        asked = {
            "prompt": prompt,
            "upsample": upsample,
            "seconds": seconds,
            "size": size,
            "guidance": guidance,
            "steps": steps,
            "seed": seed,
        }
        asked |= {"first": first, "last": last}
        one = from_options(SampleSettings, asked)
        settings = settings.model_copy(update={"sample": (one,)})
    from pipelines.commands import run

    for uri in run.run_recipe(settings, "sample").samples:
        print(uri)


@app.command("train-autoencoder")
def train_autoencoder(
    recipe: Annotated[
        Path, typer.Argument(help="Recipe of an autoencoder (YAML), as pipelines/recipes/autoencoder.yaml.")
    ],
    set_: Assignments = None,
    only: Annotated[str | None, typer.Option(help="clips: make the clips that are trained on, and no more.")] = None,
    inline: InProcess = False,
) -> None:
    """Train the autoencoder `causal` on your own footage, and print where its weights are; a run that was stopped goes on."""
    from pipelines.commands import (
        train_autoencoder as autoencoders,
    )  # the training loop is loaded for this command alone

    if only not in (None, "clips"):
        raise ConfigError(f"--only {only}: write clips")
    print(
        autoencoders.run_autoencoder(autoencoders.load_autoencoder_recipe(recipe, set_ or []), only == "clips", inline)
    )


@app.command()
def encode(
    video: Annotated[str, typer.Option("--roundtrip", metavar="VIDEO", help="The video to encode and decode.")],
    recipe: Annotated[Path | None, typer.Option(help="Take the autoencoder of this recipe's encode step.")] = None,
    autoencoder: Annotated[
        str | None, typer.Option(metavar="YAML", help="The autoencoder: '{name: linear, channels: 48}'.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The mp4 to write; VIDEO's name with -roundtrip in this folder when not given.")
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="Where to begin, in seconds.")] = 0.0,
    frames: Annotated[int | None, typer.Option(min=1, help="How many frames; all when not given.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Shorter side in pixels; the video's own when not given.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second; the video's own when not given.")] = None,
) -> None:
    """Write a video, what an autoencoder makes of it and the difference (4x, on grey) side by side as an mp4, and print PSNR and SSIM."""
    from pipelines.commands import roundtrip as roundtripping

    made = roundtripping.run_roundtrip(
        video, roundtripping.choose(recipe, autoencoder), roundtripping.Part(start, frames, size, fps), out
    )
    shape = f"{made.frames} frames of {made.width}x{made.height} at {made.fps:g} fps"
    console.print(
        f"{made.autoencoder}: {shape}: PSNR {made.psnr_db:.2f} dB, SSIM {made.ssim:.4f}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    print(made.uri)


@app.command()
def plan(recipe: RecipeFile, set_: Assignments = None) -> None:
    """Say for each segment what a run would do: reuse, resume or run, why, on how many rows, at what cost."""
    settings = read(recipe, set_)
    from pipelines.dataset.build import inspect_texts

    curation = inspect(settings)
    texts = inspect_texts(settings, curation) if isinstance(settings.curate[-1], Encode) else None
    show.plan(settings, curation, cpu_per_row(settings.tables_uri), texts)


@app.command()
def whatif(
    recipe: RecipeFile,
    set_: Assignments = None,
    curves: Annotated[bool, typer.Option(help="Also what other thresholds on the same columns would keep.")] = True,
) -> None:
    """Say what other thresholds would keep and lose, without running anything: --set curate.keep.motion.min=0.02."""
    before = read(recipe, None)
    show.whatif(answer_whatif(inspect(before), before, read(recipe, set_)), curves)


@app.command()
def validate(recipe: RecipeFile, set_: Assignments = None) -> None:
    """Check a recipe without starting anything."""
    settings = read(recipe, set_)
    console.print(
        f"{recipe}: ok: {len(settings.curate)} steps, {'trains ' + settings.train.model.name if settings.train else 'does not train'}"
    )


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(json.dumps(Recipe.model_json_schema(), indent=1))


@app.command()
def steps() -> None:
    """List every curation step with its settings and the columns it writes."""
    show.steps()


@app.command()
def ledger(
    recipe: RecipeFile,
    set_: Assignments = None,
    reasons: Annotated[int, typer.Option(min=0, help="How many reasons to list.")] = 12,
) -> None:
    """Every input's fate; exits 1 when inputs are not kept + dropped + failed + duplicate."""
    curation = inspect(read(recipe, set_))
    if not curation.complete:
        waiting = curation.segments[-1]
        console.print(
            f"curation is not complete: {waiting.segment.label} has {waiting.n_done} of {waiting.n_inputs} rows"
        )
        raise typer.Exit(1)
    accounts = accounts_of(curation)
    show.accounts(accounts, reasons)
    if not all(account.balanced for account in accounts):
        raise typer.Exit(1)


@app.command()
def report(recipe: RecipeFile, set_: Assignments = None) -> None:
    """Write out/report.html: what came in, what was kept and why not, thresholds with the clips beside them, balance, lineage; one file."""
    from pipelines.report.page import write_report  # the chart library is read for a report alone

    settings = read(recipe, set_)
    written = write_report(settings, inspect(settings))
    console.print(
        f"{written.uri}: {written.size_bytes / 1e6:.1f} MB in {written.seconds:.1f} s", highlight=False, soft_wrap=True
    )


@app.command()
def audit(
    recipe: RecipeFile,
    set_: Assignments = None,
    pairs: Annotated[
        int, typer.Option(min=0, help="How many of the closest pairs across splits to list; 0 looks for none.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that no source, near-duplicate group or content is in two splits, and list the closest clips across them; exits 1 when any is."""
    settings = read(recipe, set_)
    found = audit_splits(settings.out_uri, inspect(settings), inline_engine, pairs)
    print(json.dumps(found.as_json(), indent=1)) if as_json else show.audit(found)
    if not found.clean:
        raise typer.Exit(1)


@app.command()
def verify(recipe: RecipeFile, set_: Assignments = None) -> None:
    """Load every shard as training would and check shapes, checksums and values; exits 1 when anything is wrong."""
    settings = read(recipe, set_)
    if not isinstance(settings.curate[-1], Encode):
        raise ConfigError(f"{settings.name}: the recipe does not end in an encode step, so it has no shards to verify")
    manifests = [entry.uri for entry in storage.list_files(settings.tables_uri, "_manifest.parquet")]
    if not manifests:
        raise ConfigError(f"{settings.tables_uri}: no manifest; run the recipe first")
    from training.data.verify import verify as verify_dataset

    problems = [problem for uri in manifests for problem in verify_dataset(uri)]
    for problem in problems:
        show.console.print(f"[red]{escape(str(problem))}[/]", highlight=False, soft_wrap=True)
    show.console.print(f"{len(manifests)} manifest(s), {len(problems)} problem(s)")
    if problems:
        raise typer.Exit(1)


@app.command()
def export(
    recipe: RecipeFile,
    to: Annotated[str, typer.Option(help="mp4, webdataset, hf-parquet or fastvideo.")],
    set_: Assignments = None,
    out: Annotated[str | None, typer.Option(help="Folder to write to; out/export/FORMAT when not given.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "all",
    copies: Annotated[
        bool, typer.Option("--copy/--no-copy", help="Copy the stream where that is exact; otherwise clips are encoded.")
    ] = True,
    crf: Annotated[int, typer.Option(min=0, max=51, help="Quality of encoded clips, 0 best.")] = 18,
    preset: Annotated[str, typer.Option(help="x264's preset for encoded clips.")] = "medium",
    check: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Decode every clip that was written and compare its frames' moments."
        ),
    ] = True,
    shard_mb: Annotated[int, typer.Option(min=1, help="Largest shard of webdataset and hf-parquet, in MB.")] = 512,
    inline: InProcess = False,
) -> None:
    """Export the kept clips as files that other tools read; a run that was stopped goes on. Exits 1 when a clip failed."""
    cut = {"copies": copies, "crf": crf, "preset": preset, "verify": check}
    summary = exporting.run_export(read(recipe, set_), to, out, split, cut, shard_mb, inline)
    exporting.show(summary)
    if summary.failures:
        raise typer.Exit(1)


@app.command()
def forget(
    recipe: RecipeFile,
    set_: Assignments = None,
    source: Annotated[str | None, typer.Option(help="URI or path of a source file.")] = None,
    uid: Annotated[
        str | None, typer.Option(help="uid of a source file, or of a clip: then its span of the file.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a source or a clip from every table, shard, manifest and export in the run's folder, prove it, and keep it out of later runs.

    The file itself stays, and models that were trained on it stay as they are. With neither --source nor --uid, a removal that was
    cut short is finished. No run may be going on in the same folder.
    """
    settings = read(recipe, set_)

    from pipelines import upkeep
    from pipelines.forgetting import request as forgetting

    def agree(work: Work) -> bool:
        upkeep.to_forget(work)
        return yes or typer.confirm("Remove it for good?")

    outcome = forgetting.forget(settings, source, uid, agree)
    if outcome is None:
        raise typer.Exit(1)
    upkeep.forgotten(outcome, settings.out_uri)


@app.command()
def quarantine(
    recipe: RecipeFile,
    set_: Assignments = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Take the failed rows out of the tables and curate again.")
    ] = False,
    error: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Only failures of this error class.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of all failures.")] = False,
    inline: InProcess = False,
) -> None:
    """List what failed by step and error class; --retry does it again, once the cause is gone. Exits 1 when a retried row failed again."""
    settings = read(recipe, set_)
    curation = inspect(settings)
    if not curation.complete:
        waiting = curation.segments[-1]
        state = f"{waiting.segment.label} has {waiting.n_done} of {waiting.n_inputs} rows"
        console.print(
            f"curation is not complete: {state}; `worldloom run` does the rest, new and changed files too",
            highlight=False,
            soft_wrap=True,
        )
    from pipelines import upkeep
    from pipelines.commands import quarantine as quarantining

    found = quarantining.chosen(quarantining.failures(curation), error)
    if not retry or not found:
        print(upkeep.failures_json(found)) if as_json else upkeep.failures(found)
        return
    again, outcome = quarantining.retry(settings, found, inline)
    show.outcome(outcome, settings.out_uri)
    print(upkeep.failures_json(again)) if as_json else upkeep.failures(again)
    if again:
        raise typer.Exit(1)


@app.command()
def gc(
    recipe: RecipeFile,
    set_: Assignments = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove tables that the recipe last run in this folder does not reach. Training runs, samples, exports and records stay.

    What other settings computed is then computed again if they come back: thresholds and captions of before, latents of other
    buckets, manifests of other data sets.
    """
    settings = read(recipe, set_)
    from pipelines import upkeep
    from pipelines.commands import gc as collecting

    folders = collecting.survey(settings)
    if not dry_run:
        collecting.collect(settings, folders)
    upkeep.collected(folders, dry_run)


@app.command("demo-footage")
def demo_footage(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    videos: Annotated[int, typer.Option(min=6, help="How many videos.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other footage.")] = 0,
) -> None:
    """Draw footage of moving shapes with captions, known cuts and a few troubles, to try worldloom on."""
    with progress("drawing", videos) as bar:
        truth = footage.make_footage(folder, videos, seed, bar)
    console.print(
        f"{folder}: {len(truth['videos'])} videos and {len(truth['images'])} images; what is in them is in {folder / 'truth.json'}"
    )


@app.command()
def doctor() -> None:
    """What is installed, which accelerators there are, what Ray sees, what is missing and how to get it."""
    if not doctoring.report(show.console):
        raise typer.Exit(1)


def _complain(what: str, message: str) -> None:
    # Paths may hold what looks like markup.
    console.print(f"[bold red]{what}[/] {escape(message)}", highlight=False, soft_wrap=True)


def main() -> NoReturn:
    """Entry point: turns errors into messages and exit codes."""
    configure_logging()
    try:
        app(standalone_mode=True)
    except ConfigError as error:
        _complain("error", str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("stopped; what is done is kept, and the same command goes on from there")
        sys.exit(130)
    except (RuntimeError, DamagedError) as error:
        _complain("failed", str(error))
        sys.exit(1)
    except OSError as error:
        # No such folder, no rights to write there, a full disk, an object store that cannot be reached.
        _complain("failed", f"{type(error).__name__}: {error}")
        sys.exit(1)
    raise AssertionError("typer exits by itself")


if __name__ == "__main__":
    main()
