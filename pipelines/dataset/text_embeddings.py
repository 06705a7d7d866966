"""Text embeddings of captions: each distinct caption once, in orders of like length, wherever the engine works."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from captioning.encoder import NULL_CAPTION, TextEncoderSettings, text_key
from captioning.engine import EngineError
from cluster import storage
from cluster.telemetry import log, progress
from pipelines import inline
from pipelines.engine.executor import Executor
from pipelines.engine.step import RunError, TableFunction
from training.data import text_tables

CAPTIONS_PER_PART = 4096
BYTES_PER_PART = 2**18
"""Of captions: some 60,000 tokens of English, which are 0.5 GB of a part where a token has 4,096 numbers, and 1 GB of a worker's memory."""

FEW = 2000
"""Captions that a light encoder embeds faster than Ray starts, which takes some seconds."""

WORTH_A_WARNING = 0.05
"""Share of captions that are cut off from which on it is said as a warning."""

TASK_SCHEMA = pa.schema([("key", pa.string()), ("caption", pa.string())])
REPORT_SCHEMA = pa.schema([("captions", pa.int64()), ("tokens", pa.int64()), ("padding", pa.int64())])
"""What came of an order: captions embedded, their tokens, and the tokens that were computed only to fill up batches."""


def embed_captions(
    folder: str, settings: TextEncoderSettings, captions: Sequence[str], executor: Executor
) -> dict[str, int]:
    """Embed the distinct captions, and the null one, that the folder does not hold yet. Returns the token count of each, by key.

    What a run that was stopped has embedded stays. Raises `RunError` where the encoder cannot be loaded.
    """
    identity = settings.identity()
    wanted, missing = stand(folder, identity, captions)
    place: Executor = inline if settings.light and len(missing) < FEW else executor
    reports = [REPORT_SCHEMA.empty_table()]
    if missing:
        resources = replace(settings.resources(), pooled=True)
        with progress("text embeddings", len(missing)) as bar:
            work = Embedding(settings, identity, folder)
            for report in place.map_tables(work.open, list(tasks_of(missing)), resources):
                reports.append(report)
                bar.advance(report["captions"][0].as_py())
    table = text_tables.read_texts(folder)
    table = table.filter(pc.is_in(table["key"], pa.array(list(wanted), pa.string())))
    if len(table) < len(wanted):
        raise RuntimeError(
            f"{folder}: {len(wanted) - len(table)} of {len(wanted)} captions have no embedding; run again"
        )
    _tell(table, len(missing), pa.concat_tables(reports))
    return dict(zip(table["key"].to_pylist(), table["n"].to_pylist(), strict=True))


def stand(folder: str, identity: str, captions: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """By key, the distinct captions with the null one, and those of them that the folder does not hold yet."""
    wanted = {text_key(caption, identity): caption for caption in [NULL_CAPTION, *captions]}
    stored = set(text_tables.read_texts(folder)["key"].to_pylist())
    return wanted, {key: caption for key, caption in wanted.items() if key not in stored}


def tasks_of(captions: Mapping[str, str]) -> Iterator[pa.Table]:
    """Orders of captions by key, the longest captions first: neighbours in length go through a network together with little padding.

    Each holds up to `CAPTIONS_PER_PART` captions of up to `BYTES_PER_PART` bytes in all, and at least one.
    """
    rows: list[tuple[str, str]] = []
    size_bytes = 0
    for n_bytes, key in sorted(
        ((len(caption.encode()), key) for key, caption in captions.items()), key=lambda row: (-row[0], row[1])
    ):
        if rows and (len(rows) == CAPTIONS_PER_PART or size_bytes + n_bytes > BYTES_PER_PART):
            yield _task(rows)
            rows, size_bytes = [], 0
        rows.append((key, captions[key]))
        size_bytes += n_bytes
    if rows:
        yield _task(rows)


def _task(rows: list[tuple[str, str]]) -> pa.Table:
    return pa.table([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], TASK_SCHEMA)


@dataclass(frozen=True)
class Embedding:
    """The work on orders of captions: picklable, and the same for every worker."""

    settings: TextEncoderSettings
    identity: str
    folder: str

    def open(self) -> TableFunction:
        """Loads the encoder. What it returns writes the part of an order and reports.

        Both raise `RunError`: for an encoder that cannot be loaded or go on, weights that are not the driver's, a part that cannot be written.
        """
        with _fatal():
            encoder = self.settings.open()
        if encoder.identity != self.identity:
            raise RunError(
                f"this worker has text encoder {encoder.identity}, and the run is for {self.identity}; give every node the same files"
            )

        def embed(task: pa.Table) -> pa.Table:
            keys, before = task["key"].to_pylist(), encoder.padding
            with _fatal():
                embeddings = encoder.encode(task["caption"].to_pylist())
            part = storage.join(self.folder, f"part-{storage.digest(*keys)}.parquet")
            try:
                text_tables.write_texts(part, dict(zip(keys, embeddings, strict=True)), self.identity)
            except Exception as error:
                raise RunError(f"{part}: cannot be written: {type(error).__name__}: {error}") from error
            n_tokens = sum(len(embedding.tokens) for embedding in embeddings)
            return pa.table([[len(keys)], [n_tokens], [encoder.padding - before]], REPORT_SCHEMA)

        return embed


@contextlib.contextmanager
def _fatal() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise RunError(str(error)) from error


def _tell(table: pa.Table, n_new: int, reports: pa.Table) -> None:
    """One line on what was embedded. `table` holds a row for each distinct caption, the null one included."""
    n_truncated = int(pc.sum(table["truncated"]).as_py() or 0)
    tokens, padding = (int(pc.sum(reports[name]).as_py() or 0) for name in ("tokens", "padding"))
    share = n_truncated / len(table)
    say: Callable[[str], None] = log.warning if share > WORTH_A_WARNING else log.info
    say(
        f"text embeddings: {len(table)} distinct captions, {n_new} of them embedded now; "
        f"{n_truncated} cut off at the most tokens the encoder takes ({share:.1%}); "
        f"padding {padding / max(1, tokens + padding):.1%} of computed tokens"
    )
