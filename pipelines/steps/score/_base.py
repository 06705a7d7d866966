"""What all scores of pictures share: which column they look at, and how its pictures reach the network.

A score never opens a video: it reads the JPEG pictures that `frames` or `scan` left in a column. It never drops a row.

Shape legend: H height, W width; a picture is uint8 `[H, W, 3]` RGB.
"""

from __future__ import annotations

import abc
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field, model_validator

from cluster.resources import Resources
from cluster.storage import digest
from pipelines.engine.step import Context, Mark, Step, TableFunction, failure, set_column, set_marks
from pipelines.video.scale import Pixels

Look = Callable[[Sequence[Pixels]], Sequence[Any]]
"""Takes at most `at_once` pictures through a network and says something of each, which must not depend on the others."""


class PictureScore(Step):
    """Columns of a clip from what a network says of each of its pictures.

    On the CPU pictures go through the network one at a time: four at once are no faster (84 ms a picture of 320 x 320 either way,
    text detection), and matrix products may round otherwise for another number of rows. On a GPU they go in batches of one
    size, filled across clips and padded.
    """

    not_in_digest: ClassVar[frozenset[str]] = frozenset({"batch", "gpus"})
    """Settings that say nothing about the results, or only what `weights` says better: where a file is."""

    pictures: Literal["frames", "thumbnails"] = Field(
        "frames", description="Column of pictures: those of step frames, or the scan's thumbnails."
    )
    batch: int = Field(
        32, ge=1, le=4096, description="Pictures that go through the network at once on a GPU; on the CPU it is one."
    )
    gpus: float = Field(
        0.0,
        ge=0,
        description="GPUs each worker holds, also a fraction (0.25: four workers share one); 0 works on the CPU.",
    )

    @model_validator(mode="after")
    def _packages_are_there(self) -> PictureScore:
        for package, extra in self.packages().items():
            if not find_spec(package):
                raise ValueError(
                    f"{self.name} needs the package {PIP_NAMES.get(package, package)}: pip install 'worldloom[{extra}]'"
                )
        return self

    @property
    def at_once(self) -> int:
        return self.batch if self.gpus else 1

    def reads(self) -> tuple[str, ...]:
        return (self.pictures,)

    def resources(self) -> Resources:
        return Resources(gpus=self.gpus, pooled=True)

    def settings_digest(self) -> str:
        """GPU or CPU is part of it, for they round otherwise; how many GPUs, and how many pictures at once, is not."""
        settings = self.model_dump_json(exclude=set(self.not_in_digest))
        return digest(self.name, str(self.version), settings, self.weights(), "gpu" if self.gpus else "cpu")

    @abc.abstractmethod
    def packages(self) -> Mapping[str, str]:
        """Packages the score needs, by the name they are imported by, and the extra of worldloom that brings each."""

    @abc.abstractmethod
    def load(self) -> Look:
        """The network with its weights. Raises `RunError` where it cannot be loaded."""

    @abc.abstractmethod
    def sum_up(self, row: Mapping[str, Any], seen: Sequence[Any]) -> Mapping[str, Any]:
        """The written columns of a clip from its read columns and what was seen in each of its pictures, one at least, in order."""

    def open(self, context: Context) -> TableFunction:
        look = self.load()
        return lambda table: self._apply(table, look)

    def _apply(self, table: pa.Table, look: Look) -> pa.Table:
        rows = table.select(list(self.reads())).to_pylist()
        errors: dict[int, Exception] = {}
        seen: list[list[Any]] = [[] for _ in rows]
        decoded = self._decoded(rows, errors)
        while chunk := list(islice(decoded, self.at_once)):
            for (number, _), said in zip(chunk, look([picture for _, picture in chunk]), strict=True):
                seen[number].append(said)
        values: list[Mapping[str, Any]] = []
        marks: list[Mark | None] = []
        for number, row in enumerate(rows):
            try:
                if number in errors:
                    raise errors[number]
                values.append(self.sum_up(row, seen[number]))
                marks.append(None)
            except Exception as error:  # the row carries it
                values.append({})
                marks.append(failure(error))
        for field in self.writes():
            table = set_column(table, field, [value.get(field.name) for value in values])
        return set_marks(table, marks)

    def _decoded(self, rows: Sequence[Mapping[str, Any]], errors: dict[int, Exception]) -> Iterator[tuple[int, Pixels]]:
        """The pictures of all rows with the number of their row; a row with one that cannot be decoded gives none, but an error."""
        for number, row in enumerate(rows):
            try:
                if not row[self.pictures]:
                    raise ValueError(
                        f"the clip has no {self.pictures}"
                        + ("; set thumbnails of scan to 1 or more" * (self.pictures == "thumbnails"))
                    )
                pictures = [decode_jpeg(data) for data in row[self.pictures]]
            except Exception as error:  # the row carries it
                errors[number] = error
                continue
            for picture in pictures:
                yield number, picture


PIP_NAMES = {"open_clip": "open-clip-torch"}
"""Packages that pip knows by another name."""


def decode_jpeg(data: bytes) -> Pixels:
    """A JPEG file as uint8 `[H, W, 3]` RGB. Raises `OSError` for one that is damaged."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), np.uint8)
