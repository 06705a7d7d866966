"""Text embeddings of captions: each distinct caption is embedded once, in tasks of captions of similar length."""

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
from training.data.text_index import read_text_index

CAPTIONS_PER_PART = 4096
BYTES_PER_PART = 2**18
"""UTF-8 bytes of the captions of one part: about 60,000 tokens of English.

At 4,096 values per token that is 0.5 GB in the part and 1 GB of a worker's memory.
"""

MAX_LOCAL_CAPTIONS = 2000
"""Number of captions up to which a light encoder is faster in this process than Ray, which takes seconds to start."""

MAX_TRUNCATED_SHARE = 0.05
"""Share of truncated captions above which the log line is a warning."""

TASK_SCHEMA = pa.schema([("key", pa.string()), ("caption", pa.string())])
REPORT_SCHEMA = pa.schema([("captions", pa.int64()), ("tokens", pa.int64()), ("padding", pa.int64())])
"""Report of a task: captions embedded, their tokens, and padding tokens that were computed besides."""


def embed_captions(
    folder: str, settings: TextEncoderSettings, captions: Sequence[str], executor: Executor
) -> dict[str, int]:
    """Embed the distinct captions and the null caption, as far as the folder lacks them; return token counts by key.

    Embeddings of a run that was stopped are kept. Raises `RunError` if the encoder cannot be loaded.
    """
    identity = settings.identity()
    wanted, missing = find_missing(folder, identity, captions)
    if settings.lightweight and len(missing) < MAX_LOCAL_CAPTIONS:
        executor = inline
    reports = [REPORT_SCHEMA.empty_table()]
    if missing:
        resources = replace(settings.resources(), pooled=True)
        with progress("text embeddings", len(missing)) as bar:
            work = Embedding(settings, identity, folder)
            for report in executor.map_tables(work.open, list(tasks_of(missing)), resources):
                reports.append(report)
                bar.advance(report["captions"][0].as_py())
    index = read_text_index(folder)
    if not index.found.is_stored:
        index.store()
    table = index.rows
    table = table.filter(pc.is_in(table["key"], pa.array(list(wanted), pa.string())))
    if len(table) < len(wanted):
        raise RuntimeError(
            f"{folder}: {len(wanted) - len(table)} of {len(wanted)} captions have no embedding; run again"
        )
    _log_summary(table, len(missing), pa.concat_tables(reports))
    return dict(zip(table["key"].to_pylist(), table["n"].to_pylist(), strict=True))


def find_missing(folder: str, identity: str, captions: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the distinct captions with the null caption by text key, and those of them that the folder lacks."""
    wanted = {text_key(caption, identity): caption for caption in [NULL_CAPTION, *captions]}
    stored = set(read_text_index(folder).rows["key"].to_pylist())
    return wanted, {key: caption for key, caption in wanted.items() if key not in stored}


def tasks_of(captions: Mapping[str, str]) -> Iterator[pa.Table]:
    """Yield tasks of captions by key, the longest captions first: batches of similar length need little padding.

    A task holds at most `CAPTIONS_PER_PART` captions of at most `BYTES_PER_PART` bytes together, and at least one.
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
    """The embedding of tasks of captions. It is picklable and the same for every worker."""

    settings: TextEncoderSettings
    identity: str
    folder: str

    def open(self) -> TableFunction:
        """Load the encoder and return a function that writes the part of a task and returns its report.

        Both raise `RunError`: for an encoder that cannot be loaded or fails, for weights that differ from the driver's,
        and for a part that cannot be written.
        """
        with _engine_errors_end_the_run():
            encoder = self.settings.open()
        if encoder.identity != self.identity:
            raise RunError(
                f"this worker has text encoder {encoder.identity}, but the run needs {self.identity}; "
                "install the same files on every node"
            )

        def embed(task: pa.Table) -> pa.Table:
            keys, before = task["key"].to_pylist(), encoder.padding_tokens
            with _engine_errors_end_the_run():
                embeddings = encoder.encode(task["caption"].to_pylist())
            part = storage.join(self.folder, f"part-{storage.digest(*keys)}.parquet")
            try:
                text_tables.write_text_table(part, dict(zip(keys, embeddings, strict=True)), self.identity)
            except Exception as error:
                raise RunError(f"{part}: cannot be written: {type(error).__name__}: {error}") from error
            n_tokens = sum(len(embedding.tokens) for embedding in embeddings)
            return pa.table([[len(keys)], [n_tokens], [encoder.padding_tokens - before]], REPORT_SCHEMA)

        return embed


@contextlib.contextmanager
def _engine_errors_end_the_run() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise RunError(str(error)) from error


def _log_summary(table: pa.Table, n_new: int, reports: pa.Table) -> None:
    """Log one line about the embeddings. `table` holds a row for each distinct caption, the null caption included."""
    n_truncated = int(pc.sum(table["truncated"]).as_py() or 0)
    tokens, padding = (int(pc.sum(reports[name]).as_py() or 0) for name in ("tokens", "padding"))
    share = n_truncated / len(table)
    write: Callable[[str], None] = log.warning if share > MAX_TRUNCATED_SHARE else log.info
    write(
        f"text embeddings: {len(table)} distinct captions, {n_new} of them embedded now; "
        f"{n_truncated} truncated to the encoder's max_tokens ({share:.1%}); "
        f"padding {padding / max(1, tokens + padding):.1%} of computed tokens"
    )
