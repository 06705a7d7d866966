"""`worldloom demo-footage`: footage to try worldloom on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.telemetry import progress
from pipelines.commands._console import print_line
from pipelines.scenes.footage import make_footage


def command(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")],
    videos: Annotated[int, typer.Option(min=6, help="How many videos.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other footage.")] = 0,
) -> None:
    """Draw videos and images of moving shapes, with captions, known cuts and a few damaged or duplicate files."""
    with progress("drawing", videos) as bar:
        truth = make_footage(folder, videos, seed, bar)
    counts = f"{len(truth['videos'])} videos and {len(truth['images'])} images"
    print_line(f"{folder}: {counts}; {folder / 'truth.json'} lists their contents")
