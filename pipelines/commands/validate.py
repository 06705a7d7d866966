"""`worldloom validate`: check a recipe without starting anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer

from cluster import storage
from cluster.config import ConfigError
from cluster.resources import ClusterSize
from pipelines.commands._console import print_line
from pipelines.commands._options import Assignments, RecipeFile, RemoteCode, read_recipe
from pipelines.commands.train import check_init, check_parts
from pipelines.engine.sources import SourceSettings, list_sources
from pipelines.recipe import Recipe
from pipelines.video.decode import DecodeError, probe
from pipelines.video.still_images import read_image

PROBED = 20
"""Most files of a source that are opened, spread over the list."""


@dataclass(frozen=True)
class SourceCheck:
    """The result of a look at the files of one entry of `sources`."""

    n_files: int
    n_captions: int
    """Files with a caption beside them or in the list."""
    size_bytes: int
    n_probed: int
    bad: tuple[str, ...]
    """Errors of the probed files that cannot be opened, which name them."""

    def __str__(self) -> str:
        opened = f"opened {self.n_probed - len(self.bad)} of {self.n_probed} tried"
        first = f", first bad: {self.bad[0]}" if self.bad else ""
        size = f"{self.size_bytes / 1e9:.3g} GB"
        return f"{self.n_files:,} files, {size}, {self.n_captions:,} with a caption, {opened}{first}"


def check_source(entry: SourceSettings) -> SourceCheck:
    """List the files of an entry and open some of them. Raises `ConfigError` if there is none."""
    files = list_sources((entry,))
    stride = max(1, len(files) // PROBED)
    probed = files["source"].to_pylist()[::stride][:PROBED]
    bad = []
    for uri in probed:
        try:
            read_image(uri) if entry.kind == "image" else probe(uri)
        except (DecodeError, OSError) as error:
            bad.append(str(error))
    captioned = pc.or_(pc.is_valid(files["sidecar"]), pc.is_valid(files["listed_caption"]))
    total = pc.sum(files["size_bytes"]).as_py() or 0
    return SourceCheck(len(files), pc.sum(captioned.cast(pa.int64())).as_py() or 0, total, len(probed), tuple(bad))


def check_sources(recipe: Recipe) -> list[SourceCheck]:
    """Check every entry of `sources` and print what was found. Raises `ConfigError` with the faults of all entries."""
    checks, faults = [], []
    for index, entry in enumerate(recipe.sources):
        try:
            check = check_source(entry)
        except ConfigError as error:
            faults.append(str(error).replace("sources:", f"sources.{index}:", 1))
            continue
        print_line(f"sources.{index}: {entry.pattern}: {check}")
        checks.append(check)
    if faults:
        raise ConfigError("\n".join(faults))
    return checks


def this_machine() -> ClusterSize:
    """Return the CPU cores that this process may use, and the GPUs of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ClusterSize(cores, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def warnings_of(recipe: Recipe) -> Iterator[str]:
    """Yield what would be wrong if the recipe ran on this machine, which need not be the one that it is meant for."""
    if recipe.train is None or recipe.ray.address != "local":
        return
    try:
        recipe.train.worker_request.check(this_machine())
    except ValueError as error:
        yield f"train.workers: on this machine, {error}"


def command(
    recipe: RecipeFile,
    set_: Assignments = None,
    sources: Annotated[
        bool,
        typer.Option(
            "--sources", help=f"Also list the files of each source and open up to {PROBED}: counts, and the first bad."
        ),
    ] = False,
    remote_code: RemoteCode = False,
) -> None:
    """Check a recipe without starting anything. Exits 1 with --sources if all files of a source are bad."""
    settings = read_recipe(recipe, set_, remote_code)
    if settings.train is not None:
        check_init(settings.train)
        if settings.manifest is not None and storage.exists(settings.manifest):
            check_parts(settings.train, storage.absolute(settings.manifest))
    checks = check_sources(settings) if sources else []
    for warning in warnings_of(settings):
        print_line(f"warning: {warning}")
    model = f"trains {settings.train.model.name}" if settings.train else "does not train"
    if unusable := [check for check in checks if len(check.bad) == check.n_probed]:
        print_line(f"{recipe}: {len(unusable)} of {len(checks)} sources have no file that can be opened")
        raise typer.Exit(1)
    print_line(f"{recipe}: ok: {len(settings.curate)} steps, {model}")
