"""Samples of a file of prompts: made by a pool of workers that each load the model once, with a ledger of all rows.

A sample has a file name of its own by prompt, size, seed and all settings, and a record beside it that is written last.
So a batch that is stopped at any moment resumes where it was: samples with a record are kept.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.config import ConfigError
from cluster.leases import lease
from cluster.resources import ClusterSize, Resources
from cluster.telemetry import log, progress
from pipelines.commands._conditioning_images import check_images, read_conditioning_image
from pipelines.commands._contact_sheet import write_contact_sheets
from pipelines.commands._given_videos import check_videos, read_given_video
from pipelines.commands._marks import open_marker
from pipelines.commands._prompt_file import PromptRow
from pipelines.commands._session import Session
from pipelines.engine.step import RunError, TableFunction
from training.sampling.mark_settings import MarkSettings
from training.sampling.settings import SampleSettings, VideoShape

if TYPE_CHECKING:
    # These import torch, which takes 2 s.
    from training.sampling.exported_model import ExportedModel
    from training.sampling.marks import Marker
    from training.sampling.tasks import PreparedSample, PromptUpsampler

LEASE = "samples"
WORKER_DIED = "WorkerDied: the process that made this sample died twice, as when memory runs out; the log has the error"


@dataclass(frozen=True)
class PromptBatch:
    """A batch of samples: the model, the rows of a file of prompts, and the folder of their files."""

    model_uri: str
    rows: Sequence[PromptRow]
    out_uri: str
    name: str
    """Name of the file of prompts without suffix, by which the ledger and the contact sheets are named."""
    workers: int | None = None
    """Number of workers; by default one per GPU of the cluster, and one on a cluster without GPUs."""
    marks: MarkSettings | None = None
    """Marks of the files; all of them by default."""


@dataclass(frozen=True)
class BatchResult:
    """The files of a batch beside its samples, and the numbers of samples by how they ended."""

    ledger_uri: str
    sheet_uris: tuple[str, ...]
    made: int
    """Samples that this run made."""
    kept: int
    """Samples that were there before."""
    failed: int


def sample_prompts(batch: PromptBatch, session: Session, upsampler: PromptUpsampler | None = None) -> BatchResult:
    """Make the samples of a batch that are not there yet, and write its ledger and contact sheets.

    A row that fails is named in the ledger with its error, and costs no other row anything. Rows of the same prompt and
    settings share one sample. Raises `ConfigError` for a row that the model cannot make, before anything is made, and
    for more workers than the cluster has GPUs. Raises `LeaseHeldError` if another command samples to the folder.
    """
    marker = open_marker(batch.marks)
    with lease(batch.out_uri, LEASE):
        samples = _prepare(batch, upsampler, marker)
        pending = [sample for sample in samples.values() if not sample.is_made]
        log.info(f"{len(samples)} samples, of which {len(samples) - len(pending)} are made")
        outcomes: dict[str, dict[str, Any]] = {}
        with progress("sampling", len(pending)) as bar:
            for outcome in _run(batch, pending, session):
                outcomes[outcome["file"]] = outcome
                bar.advance(note=outcome["error"])
        ledger = [_account(row, outcomes.get(row.settings.file_name(), {})) for row in batch.rows]
        ledger_uri = storage.join(batch.out_uri, f"ledger-{batch.name}.jsonl")
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ledger)
        storage.write_bytes(ledger_uri, lines.encode())
        numbered = {line["file"]: (number, line["prompt"]) for number, line in reversed(list(enumerate(ledger, 1)))}
        tiles = [
            (storage.join(batch.out_uri, file), f"{number} {prompt}")
            for file, (number, prompt) in sorted(numbered.items(), key=lambda item: item[1])
            if not outcomes.get(file, {}).get("error")
        ]
        finish = marker.finish_sheet()
        sheets = write_contact_sheets(tiles, storage.join(batch.out_uri, f"contact-sheet-{batch.name}"), finish)
    failed = sum(bool(outcome["error"]) for outcome in outcomes.values())
    return BatchResult(ledger_uri, tuple(sheets), len(outcomes) - failed, len(samples) - len(pending), failed)


def _prepare(batch: PromptBatch, upsampler: PromptUpsampler | None, marker: Marker) -> dict[str, PreparedSample]:
    """Return the samples of a batch by file name. Raises `ConfigError` naming the row that cannot be made."""
    from training.sampling.exported_model import ExportedModel  # imports torch, which takes 2 s
    from training.sampling.tasks import Inputs, prepare

    check_images([row.settings for row in batch.rows])
    check_videos([row.settings for row in batch.rows])
    samples: dict[str, PreparedSample] = {}
    # Rows of one video share its frames.
    inputs = Inputs(upsampler, read_conditioning_image, cache(read_given_video))
    try:
        model = ExportedModel(batch.model_uri, "cpu")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for row in batch.rows:
        file = row.settings.file_name()
        if file in samples:
            continue
        try:
            samples[file] = prepare(row.settings, model, batch.out_uri, inputs, marker)
        except ValueError as error:
            raise ConfigError(f"{row.position}: {error}") from error
    return samples


def _run(batch: PromptBatch, pending: Sequence[PreparedSample], session: Session) -> Iterator[dict[str, Any]]:
    """Make samples and yield the outcome of each as it ends."""
    if not pending:
        return
    resources = worker_resources(batch.workers, session.cluster_size())
    tasks = [_to_table(sample) for sample in pending]
    load = partial(_open_sampler, batch.model_uri, batch.marks)
    waiting = {sample.settings.file_name() for sample in pending}
    for table in session.map_tables(load, tasks, resources, tolerate_deaths=True):
        for outcome in table.to_pylist():
            waiting.remove(outcome["file"])
            yield outcome
    for file in sorted(waiting):
        yield {"file": file, "error": WORKER_DIED, "worker": None, "took_s": None}


def _to_table(sample: PreparedSample) -> pa.Table:
    """Return a sample as a table of one row: JSON, and the bytes of each image, video and ingredient."""
    arrays = {**sample.images, **sample.videos}
    header = {
        "settings": sample.settings.model_dump(mode="json"),
        "shape": sample.shape,
        "prompt": sample.prompt,
        "uri": sample.uri,
        "record": sample.record,
        "arrays": {name: array.shape for name, array in arrays.items()},
        "ingredients": [(one.label, one.relationship) for one in sample.ingredients],
    }
    contents = {name: array.tobytes() for name, array in arrays.items()}
    contents |= {one.label: one.archive for one in sample.ingredients}
    data = {name: pa.array([content], pa.large_binary()) for name, content in contents.items()}
    return pa.table({"header": [json.dumps(header)], **data})


def _from_table(table: pa.Table) -> PreparedSample:
    """Return the sample of a table that `_to_table` made."""
    from training.sampling.credentials import Ingredient
    from training.sampling.tasks import PreparedSample

    header = json.loads(table["header"][0].as_py())
    arrays = {
        name: np.frombuffer(table[name][0].as_buffer(), np.uint8).reshape(shape)
        for name, shape in header["arrays"].items()
    }
    settings = SampleSettings.model_validate(header["settings"])
    images, videos = ({name: arrays[name] for name in named} for named in (settings.images(), settings.videos()))
    shape, record = VideoShape(*header["shape"]), header["record"]
    ingredients = tuple(Ingredient(label, kind, table[label][0].as_py()) for label, kind in header["ingredients"])
    uri = header["uri"]
    return PreparedSample(settings, shape, header["prompt"], images, videos, uri, record, False, ingredients)


def worker_resources(workers: int | None, size: ClusterSize) -> Resources:
    """Return the resources of each worker: a GPU, or an equal share of all CPU cores where there is none.

    Raises `ConfigError` for more workers than GPUs.
    """
    gpus = int(size.gpus)
    if gpus and workers is not None and workers > gpus:
        raise ConfigError(f"--workers {workers}: the cluster has {gpus} GPUs, and each worker needs one")
    count = workers or gpus or 1
    if gpus:
        return Resources(cpus=min(1.0, size.cpus / count), gpus=1.0, pooled=True, max_workers=count)
    share = size.cpus / count
    # Ray takes shares of one core, and whole cores.
    return Resources(cpus=float(int(share)) if share >= 1 else share, pooled=True, max_workers=count)


def _open_sampler(model_uri: str, marks: MarkSettings | None) -> TableFunction:
    """Return the function that makes samples, in a worker. Model and text encoder are loaded with the first one."""
    from training.sampling.exported_model import ExportedModel

    return partial(_make_sample, ExportedModel(model_uri, keep_text_encoder=True), open_marker(marks))


def _make_sample(model: ExportedModel, marker: Marker, table: pa.Table) -> pa.Table:
    """Make one sample and return its file, the error if it failed, the worker and the seconds that it took.

    Raises `RunError` if the storage fails, because then every sample would.
    """
    from training.sampling.tasks import make

    sample = _from_table(table)
    start_s, fault = time.monotonic(), ""
    try:
        make(sample, model, marker)
    except OSError as error:
        raise RunError(f"{sample.uri}: cannot be written: {error}") from error
    except Exception as error:  # Recorded in the ledger. Raised, it would look like the worker's death.
        fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
    worker = f"{socket.gethostname()}:{os.getpid()}"
    took_s = round(time.monotonic() - start_s, 3)
    file = sample.settings.file_name()
    return pa.table({"file": [file], "error": [fault], "worker": [worker], "took_s": [took_s]})


def _account(row: PromptRow, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return the line of the ledger about a row; `outcome` is empty for a sample that was there before."""
    settings = row.settings
    asked = {name: getattr(settings, name) for name in ("prompt", "negative", "seed", "seconds", "size")}
    file = settings.file_name()
    made_by = {name: outcome[name] for name in ("worker", "took_s")} if outcome.get("worker") else {}
    status = {"status": "failed", "error": outcome["error"]} if outcome.get("error") else {"status": "made"}
    return {"row": row.position, **asked, "file": file, **status, **made_by}
