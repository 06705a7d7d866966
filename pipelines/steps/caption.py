"""caption: words for every clip, by a captioning engine."""

from __future__ import annotations

from typing import Annotated, Any

import pyarrow as pa

from captioning import quality
from captioning.engine import FOLDER, CaptionerSettings, ClipContext
from captioning.engines.signals import Signals
from cluster.plugins import Chosen
from pipelines.step import Context, Mark, Step, TableFunction, column, map_rows

WRITES = (
    column("caption", pa.string(), "the caption the clip is trained with"),
    column("caption_engine", pa.string(), "identity of the engine that wrote it"),
)


class Caption(Step):
    """Captions every live clip; one that is empty, refused or looping marks its clip as failed."""

    name: str = "caption"
    engine: Annotated[CaptionerSettings, Chosen(FOLDER, CaptionerSettings)] = Signals()

    def reads(self) -> tuple[str, ...]:
        return ("source_caption", *self.engine.reads())

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def weights(self) -> str:
        return self.engine.identity()

    def open(self, context: Context) -> TableFunction:
        captioner = self.engine.open()
        identity = self.engine.identity()
        columns = self.engine.reads()

        def apply(table: pa.Table) -> pa.Table:
            rows = table.to_pylist()
            clips = [ClipContext(row["uid"], {name: row[name] for name in columns}, row["source_caption"]) for row in rows]
            captions = {caption.uid: caption.text for caption in captioner.caption(clips)}

            def attach(row: dict[str, Any]) -> dict[str, Any] | Mark:
                if row["uid"] not in captions:
                    return Mark("failed", f"{identity} gave no caption")
                reason = quality.fault(captions[row["uid"]])
                return Mark("failed", reason) if reason else {"caption": captions[row["uid"]], "caption_engine": identity}

            return map_rows(table, WRITES, attach)

        return apply
