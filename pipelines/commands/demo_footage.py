"""`worldloom demo-footage`: footage to try worldloom on, and to train and judge small models with."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cluster import storage
from cluster.config import ConfigError
from cluster.ray_settings import RaySettings
from cluster.telemetry import progress
from pipelines.commands._console import print_line
from pipelines.commands._session import Session
from pipelines.scenes.drawn_world import FILES_PER_PART, draw_world
from pipelines.scenes.footage import make_footage
from pipelines.scenes.stream import Selection, Stream

MIN_DEMO_VIDEOS = 6
"""Fewest videos of footage without `--world`: fewer show too little of what curation finds."""
MAX_PARTS_IN_PROCESS = 4
"""Parts of the world that are drawn in this process: they take half a minute, and starting Ray several seconds."""


class World(StrEnum):
    """A side of the split of the drawn world."""

    TRAIN = "train"
    HELD_OUT = "held-out"


class RayAddress(StrEnum):
    """Where Ray runs, as in a recipe."""

    LOCAL = "local"
    AUTO = "auto"


def command(
    folder: Annotated[str, typer.Argument(help="Folder to write to; with --world also s3:// or gs://.")],
    videos: Annotated[
        int, typer.Option(min=0, help=f"How many videos; at least {MIN_DEMO_VIDEOS} without --world.")
    ] = 12,
    images: Annotated[
        int | None,
        typer.Option(min=0, help="How many still images, with --world; without it, one for each seven videos."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other footage.")] = 0,
    world: Annotated[
        World | None,
        typer.Option(
            help="Draw single shots without defects, as many as you like, with the state of every shape in every "
            "frame. held-out also has combinations of shapes, colours and actions that train never has."
        ),
    ] = None,
    ray: Annotated[
        RayAddress,
        typer.Option(help="Where --world draws: local, on the cores of this machine, or auto, on its Ray cluster."),
    ] = RayAddress.LOCAL,
) -> None:
    """Draw videos and images of moving shapes, with captions, known cuts and a few damaged or duplicate files.

    With --world, draw a stream for training or evaluation instead, which resumes and can be made longer.
    """
    if world is None:
        if videos < MIN_DEMO_VIDEOS:
            raise ConfigError(f"--videos {videos}: footage without --world has at least {MIN_DEMO_VIDEOS} videos")
        if images is not None:
            raise ConfigError(f"--images {images}: only footage of --world has a number of images; add --world")
        if ray is not RayAddress.LOCAL:
            raise ConfigError(
                f"--ray {ray.value}: only footage of --world is drawn on Ray; add --world or leave it out"
            )
        _draw_demo(folder, videos, seed)
    else:
        selection = Selection.with_images_between(videos) if images is None else Selection(videos, images)
        _draw_world(folder, selection, Stream(seed, "train" if world is World.TRAIN else "held_out"), ray)


def _draw_demo(folder: str, videos: int, seed: int) -> None:
    if not storage.is_local(folder):
        raise ConfigError(f"{folder}: this footage is drawn to a local folder; only --world draws to a store")
    with progress("drawing", videos) as bar:
        truth = make_footage(folder, videos, seed, bar)
    counts = f"{len(truth['videos'])} videos and {len(truth['images'])} images"
    print_line(f"{folder}: {counts}; {storage.join(folder, 'truth.json')} lists their contents")


def _draw_world(folder: str, selection: Selection, stream: Stream, address: RayAddress) -> None:
    n_files = selection.n_files
    few = n_files <= MAX_PARTS_IN_PROCESS * FILES_PER_PART and address is RayAddress.LOCAL
    with Session(RaySettings(address=address.value), in_process=few) as session, progress("drawing", n_files) as bar:
        kept = draw_world(folder, stream, selection, session, bar)
    kept_words = f" ({kept:,} files were there)" if kept else ""
    truth = storage.join(folder, "truth-*.parquet")
    counts = f"{selection.videos:,} videos and {selection.images:,} images"
    print_line(f"{folder}: {counts}{kept_words}; {truth} list their contents")
