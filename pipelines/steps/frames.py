"""frames: a few pictures of every clip, decoded once, for all scores and captioners after it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import Field

from cluster.storage import digest
from pipelines.engine.segments import HEAVY
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from pipelines.video import pictures
from pipelines.video.pictures import At, Manner, Taken

FRAMES = pa.field(
    "frames", pa.list_(pa.binary()), metadata={"doc": "JPEG pictures of the clip, upright, in time order", HEAVY: b"1"}
)
FRAMES_S = column(
    "frames_s",
    pa.list_(pa.float64()),
    "when each of the frames is shown, in seconds from the clip's start; 0 for an image",
)


class Frames(Step):
    """Decodes each live clip once and keeps a picture of each of its equal parts; a clip that does not decode is failed.

    Scores and captioners read these pictures and never open the video. With the defaults a picture takes about 23 kB and a clip 100 kB
    in the table of this step's segment; later tables hold them only as far as a step there reads them.
    """

    name: str = "frames"
    per_s: float = Field(1.0, gt=0, le=60, description="Pictures a second of clip; one at least.")
    most: int = Field(8, ge=1, le=256, description="Pictures of a clip at most; a longer clip has them further apart.")
    long_side: int = Field(
        448, ge=32, le=4096, description="Long side of a picture in pixels; smaller sources are not enlarged."
    )
    quality: int = Field(90, ge=1, le=100, description="JPEG quality.")
    at: At = Field(
        "middles",
        description="Which frame of each of a clip's equal parts: the one in its middle, or at peaks of change, for captions.",
    )

    def reads(self) -> tuple[str, ...]:
        return "source", "kind", "start_pts", "end_pts"

    def writes(self) -> tuple[pa.Field, ...]:
        return FRAMES, FRAMES_S

    def settings_digest(self) -> str:
        """As it was before there was a choice, where pictures are of the middles: they are the same."""
        settings = self.model_dump_json(exclude={"at"} if self.at == "middles" else set())
        return digest(self.name, str(self.version), settings, self.weights())

    def open(self, context: Context) -> TableFunction:
        manner = Manner(self.per_s, self.most, self.long_side, self.quality, self.at)

        def apply(table: pa.Table) -> pa.Table:
            taken = iter(take(table.select(self.reads()).to_pylist(), manner))

            def attach(_: dict[str, Any]) -> dict[str, Any]:
                result = next(taken)
                if isinstance(result, Exception):
                    raise result
                return {"frames": result.pictures, "frames_s": result.at_s}

            return map_rows(table, self.writes(), attach)

        return apply


def take(rows: list[dict[str, Any]], manner: Manner) -> list[Taken | Exception]:
    """The pictures of each row, or the error it fails with. Clips of one video share its opened file."""
    results: dict[int, Taken | Exception] = {}
    of_source: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["kind"] == "image":
            try:
                results[i] = pictures.of_image(row["source"], manner)
            except Exception as error:  # the row carries it
                results[i] = error
        else:
            of_source.setdefault(row["source"], []).append(i)
    for source, numbers in of_source.items():
        numbers.sort(key=lambda i: (rows[i]["start_pts"], rows[i]["end_pts"]))
        spans = [(rows[i]["start_pts"], rows[i]["end_pts"]) for i in numbers]
        results |= zip(numbers, pictures.of_spans(source, spans, manner), strict=True)
    return [results[i] for i in range(len(rows))]
