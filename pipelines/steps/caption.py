"""caption: words for every clip, by a captioning engine."""

from __future__ import annotations

from typing import Annotated, Any

import pyarrow as pa

from captioning import quality
from captioning.engine import FOLDER, CaptionerSettings, Question
from captioning.engines.signals import Signals
from cluster.plugins import Chosen
from pipelines.step import Context, Mark, Step, TableFunction, column, map_rows

WRITES = (
    column("caption", pa.string(), "the caption the clip is trained with"),
    column(
        "captions",
        pa.list_(pa.struct([pa.field("kind", pa.string()), pa.field("text", pa.string())])),
        "all captions the clip may be trained with, by kind, the one in `caption` first; kind source is the one that came with the source",
    ),
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
            questions = [
                Question(row["uid"], row["uid"], "", columns={name: row[name] for name in columns}, source_caption=row["source_caption"])
                for row in rows
            ]
            captions = {answer.uid: answer.text for answer in captioner.answer(questions)}

            def given(row: dict[str, Any]) -> dict[str, Any]:
                source = [{"kind": "source", "text": row["source_caption"]}] if row["source_caption"] else []
                captions_of = [{"kind": "signals", "text": captions[row["uid"]]}, *source]
                return {"caption": captions[row["uid"]], "captions": captions_of, "caption_engine": identity}

            def attach(row: dict[str, Any]) -> dict[str, Any] | Mark:
                if row["uid"] not in captions:
                    return Mark("failed", f"{identity} gave no caption")
                reason = quality.fault(captions[row["uid"]])
                return Mark("failed", reason) if reason else given(row)

            return map_rows(table, WRITES, attach)

        return apply
