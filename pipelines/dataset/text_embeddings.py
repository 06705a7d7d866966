"""Text embeddings of captions: each distinct caption is embedded once, in tasks of captions of similar length."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captioning.encoder import TextEncoderSettings
from captioning.engine import EngineError
from cluster import storage
from cluster.arrays import Int64Array
from cluster.large_tables import positions, take_column
from cluster.telemetry import log, progress
from pipelines import inline
from pipelines.dataset.captions import Captions
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
    folder: str, settings: TextEncoderSettings, captions: Captions, missing_M: Int64Array, executor: Executor
) -> pa.ChunkedArray:
    """Embed the captions that the folder lacks (`Captions.missing`); return the number of tokens of each caption `[N]`.

    Embeddings of a run that was stopped are kept. Raises `RunError` if the encoder cannot be loaded.
    """
    if settings.lightweight and len(missing_M) < MAX_LOCAL_CAPTIONS:
        executor = inline
    reports = [REPORT_SCHEMA.empty_table()]
    if len(missing_M):
        resources = replace(settings.resources(), pooled=True)
        with progress("text embeddings", len(missing_M)) as bar:
            work = Embedding(settings, settings.identity(), folder)
            for report in executor.map_tables(work.open, tasks_of(captions, missing_M), resources):
                reports.append(report)
                bar.advance(report["captions"][0].as_py())
    index = read_text_index(folder)
    if not index.found.is_stored:
        index.store()
    index_N = positions(captions.key_N, index.rows["key"])
    index_M = index_N.take(pa.array(captions.distinct))
    if index_M.null_count:
        raise RuntimeError(f"{folder}: {index_M.null_count} of {len(index_M)} captions have no embedding; run again")
    _log_summary(take_column(index.rows["truncated"], index_M), len(missing_M), pa.concat_tables(reports))
    return take_column(index.rows["n"], index_N)


def tasks_of(captions: Captions, index_M: Int64Array) -> Iterator[pa.Table]:
    """Yield tasks of captions, the longest captions first: batches of similar length need little padding.

    A task holds at most `CAPTIONS_PER_PART` captions of at most `BYTES_PER_PART` bytes together, and at least one.
    """
    index_M = captions.longest_first(index_M)
    ends_M = captions.sizes[index_M].cumsum()
    start = 0
    while start < len(index_M):
        before = int(ends_M[start - 1]) if start else 0
        n_small = int(np.searchsorted(ends_M, before + BYTES_PER_PART, "right")) - start
        end = start + min(max(n_small, 1), CAPTIONS_PER_PART)
        columns = zip(*captions.rows(index_M[start:end]), strict=True)
        yield pa.table([pa.array(column, pa.string()) for column in columns], TASK_SCHEMA)
        start = end


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


def _log_summary(truncated_M: pa.ChunkedArray, n_new: int, reports: pa.Table) -> None:
    """Log one line about the embeddings of the distinct captions, the null caption included."""
    n_truncated = int(pc.sum(truncated_M).as_py() or 0)
    tokens, padding = (int(pc.sum(reports[name]).as_py() or 0) for name in ("tokens", "padding"))
    share = n_truncated / len(truncated_M)
    write: Callable[[str], None] = log.warning if share > MAX_TRUNCATED_SHARE else log.info
    write(
        f"text embeddings: {len(truncated_M)} distinct captions, {n_new} of them embedded now; "
        f"{n_truncated} truncated to the encoder's max_tokens ({share:.1%}); "
        f"padding {padding / max(1, tokens + padding):.1%} of computed tokens"
    )
