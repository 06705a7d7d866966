"""Base of the scores that run a network on images of a clip.

A score never opens a video: it reads the JPEG images that `frames` or `scan` stored in a column. It never drops a row.

Shape legend: H height, W width; an image is uint8 `[H, W, 3]` RGB.
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

from cluster.arrays import Pixels
from cluster.resources import Resources
from cluster.storage import digest
from pipelines.engine.step import Context, Mark, Step, TableFunction, failure, set_column, set_marks
from pipelines.steps.frames import stored_images

Predictor = Callable[[Sequence[Pixels]], Sequence[Any]]
"""Function that runs a network on at most `batch_size` images and returns one result per image.

A result must not depend on the other images of the call."""

PIP_NAMES = {"open_clip": "open-clip-torch"}
"""Names on PyPI of the packages that are imported by another name."""


class ImageScore(Step):
    """A score whose columns follow from a network's results on each image of a clip.

    On the CPU, images go through the network one at a time. Batches of four are no faster (84 ms per image of 320 x
    320 either way, text detection), and matrix products may round differently for another number of rows. On a GPU,
    images go through in batches of one size, which are filled across clips and padded.
    """

    not_in_digest: ClassVar[frozenset[str]] = frozenset({"gpu_batch_size", "gpus"})
    """Settings that do not change results, and paths of weights, which `weights` identifies by their content."""

    images: Literal["frames", "thumbnails"] = Field(
        "frames", description="Column of images that are scored: those of step frames, or the thumbnails of cut."
    )
    gpu_batch_size: int = Field(32, ge=1, le=4096, description="Images per batch on a GPU; on the CPU a batch is one.")
    gpus: float = Field(
        0.0,
        ge=0,
        description="GPUs per worker; a fraction shares one (0.25: four workers per GPU), and 0 runs on the CPU.",
    )

    @model_validator(mode="after")
    def _check_packages(self) -> ImageScore:
        for package, extra in self.packages().items():
            if not find_spec(package):
                raise ValueError(
                    f"{self.name} needs the package {PIP_NAMES.get(package, package)}: pip install 'worldloom[{extra}]'"
                )
        return self

    @property
    def batch_size(self) -> int:
        """Images per call of the network: `gpu_batch_size` on a GPU, 1 on the CPU."""
        return self.gpu_batch_size if self.gpus else 1

    def reads(self) -> tuple[str, ...]:
        return (self.images,)

    def resources(self) -> Resources:
        return Resources(gpus=self.gpus, pooled=True)

    def settings_digest(self) -> str:
        """Return the hash of the settings, the weights and the kind of device.

        A GPU rounds differently from a CPU. The number of GPUs and the batch size do not matter.
        """
        settings = self.model_dump_json(exclude=set(self.not_in_digest))
        return digest(self.name, str(self.version), settings, self.weights(), "gpu" if self.gpus else "cpu")

    @abc.abstractmethod
    def packages(self) -> Mapping[str, str]:
        """Return the packages the score imports, each with the extra of worldloom that installs it."""

    @abc.abstractmethod
    def load(self) -> Predictor:
        """Load the network and its weights. Raises `RunError` if they cannot be loaded."""

    @abc.abstractmethod
    def aggregate(self, row: Mapping[str, Any], results: Sequence[Any]) -> Mapping[str, Any]:
        """Return the written columns of a clip from its read columns and the results of its images (at least one)."""

    def open(self, context: Context) -> TableFunction:
        predict = self.load()
        return lambda table: self._score(table, predict)

    def _score(self, table: pa.Table, predict: Predictor) -> pa.Table:
        rows = table.select(list(self.reads())).to_pylist()
        errors: dict[int, Exception] = {}
        results: list[list[Any]] = [[] for _ in rows]
        decoded = self._decode(rows, errors)
        while batch := list(islice(decoded, self.batch_size)):
            for (index, _), result in zip(batch, predict([image for _, image in batch]), strict=True):
                results[index].append(result)
        values: list[Mapping[str, Any]] = []
        marks: list[Mark | None] = []
        for index, row in enumerate(rows):
            try:
                if index in errors:
                    raise errors[index]
                values.append(self.aggregate(row, results[index]))
                marks.append(None)
            except Exception as error:  # recorded in the row's mark
                values.append({})
                marks.append(failure(error))
        for field in self.writes():
            table = set_column(table, field, [value.get(field.name) for value in values])
        return set_marks(table, marks)

    def _decode(self, rows: Sequence[Mapping[str, Any]], errors: dict[int, Exception]) -> Iterator[tuple[int, Pixels]]:
        """Yield the images of all rows, each with the index of its row.

        A row without images, or with one that cannot be decoded, yields none; its error is put into `errors`.
        """
        for index, row in enumerate(rows):
            try:
                images = [decode_jpeg(data) for data in stored_images(row, self.images)]
            except Exception as error:  # recorded in the row's mark
                errors[index] = error
                continue
            for image in images:
                yield index, image


def decode_jpeg(data: bytes) -> Pixels:
    """Return a JPEG file as uint8 `[H, W, 3]` RGB. Raises `OSError` if it is damaged."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB"), np.uint8)
