"""The status of a run: what its folder tells, while commands write to it or after. Reads only, and lists no sources."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from cluster import leases, storage
from cluster.config import ConfigError, decode_document, parse
from cluster.leases import Sighting
from cluster.unreadable import UnreadableError
from pipelines.curation import Inputs, SegmentState
from pipelines.engine.segments import Segment, segments_of
from pipelines.engine.sources import FIELDS as SOURCE_FIELDS
from pipelines.engine.step import FATES, Global
from pipelines.engine.table_index import Index, index_table
from pipelines.engine.tables import PART_SUFFIX
from pipelines.recipe import RUN_FILE, Recipe
from training.data.footer import DamagedError
from training.sampling.provenance import provenance_uri
from training.tracking.run_status import RunStatus, read_run

TRAININGS = ("run-", "autoencoder-")
"""Prefixes of the folders of training runs."""
RATE_S = 600
"""The speed of a step is that of the parts of its last ten minutes."""
TRIES = 3
"""A running command may remove a file between its listing and its reading."""

State = Literal["running", "finished", "failed", "unfinished"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class StepStatus:
    """How far a step of `curate` is, and the fates of its rows."""

    step: str
    inputs: int | None
    """Rows that its table is made of; None for the first table while it is the last one, as no sources are listed."""
    done: int
    kept: int
    """Rows of its table that it and the steps before it kept."""
    marked: dict[str, int]
    """Rows that it dropped, failed or found to be duplicates, by fate."""
    rows_per_s: float | None
    """Input rows a second by the times of the newest parts of its table; None if that is complete, or has one part."""
    record_age_s: float | None
    """Seconds since a part of its table was written."""
    failure: str | None
    """Reason of a row that failed in it, among those in the newest part with one."""


@dataclass(frozen=True)
class Samples:
    """Generated files."""

    count: int = 0
    newest: str | None = None


@dataclass(frozen=True)
class Status:
    """All that the folder of a run tells."""

    uri: str
    name: str | None
    """Name of the recipe that was last run there."""
    state: State
    curation: tuple[StepStatus, ...]
    trainings: tuple[RunStatus, ...]
    leases: tuple[Sighting, ...]
    samples: Samples
    problems: tuple[str, ...]
    """Files that are damaged or cannot be understood, and errors that ended a training."""


def read_status(uri: str) -> Status:
    """Return the status of a run from its folder, its `out`. Raises `ConfigError` if nothing was run there."""
    uri = storage.absolute(uri)
    problems: list[str] = []
    recipe = _recipe(uri, problems)
    try:
        folders = storage.list_folders(uri)
    except NotADirectoryError as error:
        raise ConfigError(f"{uri}: is a file; name the folder that a recipe has as out") from error
    if recipe is None and not problems and not any(name == "tables" or _is_training(name) for name in folders):
        raise ConfigError(f"{uri}: nothing was run here; name the folder that a recipe has as out")
    curation = () if recipe is None else tuple(_guarded(problems, lambda: list(_curation(recipe, problems))) or ())
    names = [name for name in folders if _is_training(name)]
    now_s = time.time()
    runs = [_guarded(problems, partial(read_run, storage.join(uri, name), now_s)) for name in names]
    trainings = tuple(run for run in runs if run is not None)
    problems += [problem for run in trainings for problem in run.problems]
    held = tuple(_guarded(problems, lambda: leases.look(uri)) or ())
    samples = _guarded(problems, lambda: _samples(uri)) or Samples()
    state = _state(recipe, curation, trainings, held)
    return Status(uri, recipe.name if recipe else None, state, curation, trainings, held, samples, tuple(problems))


def _is_training(folder: str) -> bool:
    return folder.startswith(TRAININGS)


def _guarded(problems: list[str], read: Callable[[], Result]) -> Result | None:
    """Return what a function reads, or None with the reason among the problems, where a file is damaged."""
    for attempt in range(TRIES):
        try:
            return read()
        except FileNotFoundError as error:
            if attempt == TRIES - 1:
                problems.append(str(error))
        except (ConfigError, DamagedError, UnreadableError, pa.ArrowException, ValueError, KeyError) as error:
            problems.append(str(error).strip() or type(error).__name__)
            break
    return None


def _recipe(uri: str, problems: list[str]) -> Recipe | None:
    """Return the recipe that was last run in a folder, wherever that was moved; None if there is none."""
    file = storage.join(uri, RUN_FILE)
    if not storage.exists(file):
        return None
    recipe = _guarded(problems, lambda: parse(Recipe, decode_document(storage.read_bytes(file), file)))
    return recipe.model_copy(update={"out": uri}) if recipe else None


def _curation(recipe: Recipe, problems: list[str]) -> Iterator[StepStatus]:
    """Yield the status of each step, up to the first table that does not exist or cannot be read."""
    chain, inputs = "", None
    states: list[SegmentState] = []
    for segment in segments_of(recipe.curate, recipe.labels) if recipe.manifest is None else ():
        digest = inputs.digest() if inputs is not None and isinstance(segment.first, Global) else ""
        segment = segment.after(chain, digest)
        chain = segment.fingerprint
        state = _guarded(problems, partial(_segment, recipe, segment, inputs))
        if state is None or not state.n_done:
            break
        states.append(state)
        inputs = Inputs(pa.schema(list(SOURCE_FIELDS)).empty_table(), state.rows)
    now_s = time.time()
    for number, state in enumerate(states):
        # That the next table was begun tells that this one is complete.
        is_known = number > 0 or len(states) > 1
        yield from _guarded(problems, partial(_steps, state, is_known, now_s)) or ()


def _segment(recipe: Recipe, segment: Segment, inputs: Inputs | None) -> SegmentState:
    """Return the state of a segment; the first one is taken to have as many inputs as its table holds."""
    folder = segment.folder(recipe.tables_uri)
    rows = index_table(folder, segment.input_column)
    if inputs is not None:
        rows = rows.of_inputs(inputs.uids)
    done = pc.count_distinct(rows.rows["input_uid"]).as_py()
    return SegmentState(segment, folder, done if inputs is None else len(inputs.uids), done, rows)


def _steps(state: SegmentState, is_known: bool, now_s: float) -> list[StepStatus]:
    """Return the status of the steps of a segment; `is_known` says whether the number of its inputs is."""
    grouped = state.rows.rows.group_by(["fate", "fate_step"]).aggregate([([], "count_all")]).to_pylist()
    counts = Counter({(row["fate"], row["fate_step"]): row["count_all"] for row in grouped})
    kept = sum(count for (fate, step), count in counts.items() if fate == "kept" or step in state.segment.labels)
    written = {entry.uri: int(entry.version) / 1e9 for entry in storage.list_files(state.folder, PART_SUFFIX)}
    rate = None if is_known and not state.n_pending else _rows_per_s(state.rows, written)
    age_s = max(0.0, now_s - max(written.values())) if written else None
    found = []
    for label in state.segment.labels:
        marked: dict[str, int] = {fate: counts[fate, label] for fate in FATES if fate != "kept"}
        kept -= sum(marked.values())
        failure = _newest_failure(state.rows, label, written) if marked["failed"] else None
        inputs = state.n_inputs if is_known else None
        found.append(StepStatus(label, inputs, state.n_done, kept, marked, rate, age_s, failure))
    return found


def _rows_per_s(rows: Index, written: Mapping[str, float]) -> float | None:
    """Return the input rows a second of the parts of the last `RATE_S` seconds, from the oldest of them to the newest.

    `written` has the time of each part in seconds.
    """
    newest_s = max(written.values(), default=0.0)
    parts = sorted((at_s, part) for part, at_s in written.items() if at_s >= newest_s - RATE_S)
    if len(parts) < 2 or parts[0][0] == newest_s:
        return None
    later = pa.array([part for at_s, part in parts if at_s > parts[0][0]])
    inputs = rows.rows.filter(pc.is_in(rows.rows["part"], value_set=later))["input_uid"]
    return float(pc.count_distinct(inputs).as_py() / (newest_s - parts[0][0]))


def _newest_failure(rows: Index, label: str, written: Mapping[str, float]) -> str | None:
    """Return the reason of a row that failed in a step, of the newest part that has one."""
    is_failed = pc.and_(pc.equal(rows.rows["fate"], "failed"), pc.equal(rows.rows["fate_step"], label))
    failed = rows.rows.filter(is_failed)
    newest = max(pc.unique(failed["part"]).to_pylist(), key=lambda part: written.get(part, 0.0))
    first = failed.filter(pc.equal(failed["part"], newest)).slice(0, 1)
    (reason,) = Index(first).read(["uid", "fate_reason"])["fate_reason"].to_pylist()
    return None if reason is None else str(reason)


def _samples(uri: str) -> Samples:
    """Count the generated files, each of which has its record beside it."""
    entries = storage.list_files(storage.join(uri, "samples"))
    names = {entry.uri for entry in entries}
    made = [entry for entry in entries if provenance_uri(entry.uri) in names]
    newest = max(made, key=lambda entry: int(entry.version), default=None)
    return Samples(len(made), newest.uri if newest else None)


def _state(
    recipe: Recipe | None,
    curation: tuple[StepStatus, ...],
    trainings: tuple[RunStatus, ...],
    held: tuple[Sighting, ...],
) -> State:
    """Return the state of all: `finished` if every step has its rows, and a training ended if the recipe has one."""
    if any(sighting.alive and sighting.holder.state == "holding" for sighting in held):
        return "running"
    states = [run.state for run in trainings]
    if "failed" in states:
        return "failed"
    if recipe is None:
        return "finished" if states and set(states) == {"finished"} else "unfinished"
    curated = recipe.manifest is not None or (
        [step.step for step in curation] == recipe.labels and all(step.inputs in (None, step.done) for step in curation)
    )
    return "finished" if curated and (recipe.train is None or "finished" in states) else "unfinished"
