"""Forget a source file or a clip: remove it from everything under `out`, prove that it is gone, and keep it out of later runs.

It is done in three acts. First all that is to go is gathered, without changing anything, into a list of work that is written beside
the record: from then on runs leave the file out. Then files are rewritten or removed one by one, each atomically, by that list
alone; whoever is killed starts again from the list. At last every file under `out` is read (`proof`), the record is closed
and the list, the only place that still has the names, is removed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import pyarrow.compute as pc

from cluster import storage
from cluster.config import ConfigError
from cluster.telemetry import log
from pipelines.engine import exclusions
from pipelines.engine.exclusions import Record, Run, Span
from pipelines.forgetting import proof
from pipelines.forgetting.removal import remove
from pipelines.forgetting.traces import is_in
from pipelines.forgetting.work import Work, gather, light_columns, listed_sources, span_of, table_name
from pipelines.recipe import Recipe
from training.checkpoints.checkpoint import MARKER, newest_checkpoint
from training.checkpoints.run_folder import move_run, run_folder, settings_digest


@dataclass(frozen=True)
class Outcome:
    """What became of a request."""

    record: Record
    proof: proof.Proof


def forget(
    recipe: Recipe, source: str | None = None, uid: str | None = None, agree: Callable[[Work], bool] = lambda work: True
) -> Outcome | None:
    """Remove a source (by URI or uid) or the span of one clip (by uid) from `recipe.out`; None when `agree` says no.

    With neither, a removal that was cut short is finished. No run may be going on in the same `out`. Raises `ConfigError` for what is
    not there, and `RuntimeError` when something is left in the end, naming where.
    """
    out = recipe.out_uri
    begun = _begun(out)
    work = gather(recipe, *_whom(recipe, source, uid, begun))
    record = exclusions.record_of(work.uri, span_of(work))
    if record.id in begun:
        work = work.united(begun[record.id])
    if not agree(work):
        return None
    known = {earlier.id: earlier for earlier in exclusions.read_records(out)}
    # The day of the first request stays, whatever is found by a second one.
    record = known.get(record.id) or replace(
        record, **_standing(recipe, record, work, [*known.values()]), rows=dict(work.rows)
    )
    storage.write_bytes(exclusions.work_uri(out, record.id), json.dumps(_plain(work)).encode())
    exclusions.write_record(out, record)
    mentions, files = remove(recipe, work)
    proved = proof.prove(out, work.names, work.whole, work.uri, work.payloads, work.captions, work.keys)
    closing: dict[str, Any] = {
        "rows": dict(Counter(dict(work.rows)) | Counter(record.rows)),
        "mentions": dict(Counter(record.mentions) + mentions),
        "files": record.files + files,
        "proof": proved.counts(),
        "versions": {"worldloom": version("worldloom"), "pyarrow": version("pyarrow")},
    }
    if proved.left:
        exclusions.write_record(out, replace(record, **closing))
        places = "\n".join(f"  {place}" for place in proved.left[:20])
        raise RuntimeError(
            f"{len(proved.left)} traces are left under {out}:\n{places}\nremove these by hand, or say why they are there, and run again"
        )
    record = exclusions.done(record, **closing)
    exclusions.write_record(out, record)
    storage.remove(exclusions.work_uri(out, record.id))
    return Outcome(record, proved)


def check_finished(out_uri: str) -> None:
    """Raises `ConfigError` while a removal is unfinished: tables and manifests may not fit together then."""
    if exclusions.unfinished(out_uri):
        raise ConfigError(
            f"{out_uri}: a removal was cut short; finish it with `worldloom forget` and this recipe, without --source or --uid"
        )


def standing(recipe: Recipe, source_uids: Iterable[str]) -> str:
    """Digest of what a data set follows from: the steps, how it is split, and the files."""
    sections = recipe.model_dump(mode="json", include={"curate", "splits"}, by_alias=True)
    return storage.digest(json.dumps(sections, sort_keys=True), *sorted(source_uids))


def go_on(recipe: Recipe, source_uids: Iterable[str], run_uri: str) -> None:
    """Where training has no run of this data set, but one of it before something was forgotten, give that run's folder the new name.

    So training goes on from its last checkpoint. A run is taken only where nothing but forgetting changed the data set.
    """
    if recipe.train is None or newest_checkpoint(run_uri) is not None:
        return
    now, settings = standing(recipe, source_uids), settings_digest(recipe.train, recipe.seed)
    for record in reversed(exclusions.read_records(recipe.out_uri)):
        folders = [storage.join(recipe.out_uri, run.folder) for run in record.runs if run.settings == settings]
        before = [
            (_written_at(reached.uri), folder, reached)
            for folder in folders
            if folder != run_uri and (reached := newest_checkpoint(folder))
        ]
        if not before:
            continue
        if record.standing != now:
            log.info(
                "what was trained on before something was forgotten is not gone on from: steps or sources have changed as well"
            )
            return
        # Of runs on data sets of other settings, which were there too, the last one trained is the one that stood.
        _, folder, reached = max(before, key=lambda item: item[:2])
        move_run(folder, run_uri)
        log.info(f"training goes on from step {reached.step} without what was forgotten; the weights have seen it")
        if recipe.train.steps <= reached.step:
            log.warning(
                f"that run is finished at step {reached.step}: raise train.steps to train on, or remove {run_uri} to start over without it"
            )
        return


def _written_at(checkpoint_uri: str) -> int:
    return max(int(entry.version) for entry in storage.list_files(checkpoint_uri, MARKER))


def _begun(out: str) -> dict[str, Work]:
    found = {}
    for id_ in exclusions.unfinished(out):
        data = json.loads(storage.read_bytes(exclusions.work_uri(out, id_)))
        sets = {name: frozenset(data[name]) for name in ("uids", "sidecars", "captions", "keys", "payloads")}
        span = None if data["span"] is None else (data["span"][0], data["span"][1])
        found[id_] = Work(data["uri"], span, **sets, rows=tuple((table, count) for table, count in data["rows"]))
    return found


def _plain(work: Work) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(work).items()}


def _whom(recipe: Recipe, source: str | None, uid: str | None, begun: dict[str, Work]) -> tuple[str, Span | None]:
    """The file that is meant, and the span of a clip. Raises `ConfigError` where there is none of that name."""
    if source is not None and uid is not None:
        raise ConfigError("give --source or --uid, not both")
    if source is None and uid is None:
        if not begun:
            raise ConfigError("give --source with a file's URI, or --uid with the uid of a source or a clip")
        work = begun[sorted(begun)[0]]
        return work.uri, span_of(work)
    listed = listed_sources(recipe)
    if source is not None:
        uri = storage.absolute(source)
        _check_not_in_recipe(recipe, uri)
        recorded = {record.source for record in exclusions.read_records(recipe.out_uri)}
        if (
            uri not in listed
            and exclusions.uri_digest(uri) not in recorded
            and not any(
                pc.any(pc.equal(table["source"], uri)).as_py()
                for _, table in light_columns(recipe.out_uri)
                if "source" in table.column_names
            )
        ):
            raise ConfigError(f"{uri}: is no source of this recipe, and no table in {recipe.out_uri} has rows of it")
        return uri, None
    assert uid is not None
    for uri, known in listed.items():
        if known == uid:
            _check_not_in_recipe(recipe, uri)
            return uri, None
    clip: tuple[str, Span | None] | None = None
    for _, table in light_columns(recipe.out_uri):
        names = table.column_names
        if "source" not in names:
            continue
        own = table.filter(
            pc.or_(
                is_in(table["uid"], [uid]), is_in(table["source_uid"] if "source_uid" in names else table["uid"], [uid])
            )
        )
        for row in own.to_pylist():
            # A source's own row has no span, and an image is nothing but its one clip.
            if (
                row.get("source_uid") == uid
                or row.get("kind") == "image"
                or ("source_uid" not in row and row.get("start_pts") is None)
            ):
                _check_not_in_recipe(recipe, row["source"])
                return row["source"], None
            if row.get("start_pts") is not None:
                clip = row["source"], Span.of(row)
    if clip is None:
        raise ConfigError(f"uid {uid}: is of no source and no clip in {recipe.out_uri}")
    return clip


def _check_not_in_recipe(recipe: Recipe, uri: str) -> None:
    for entry in recipe.sources:
        pattern = entry.videos or entry.images or ""
        if storage.absolute(pattern) == uri:
            raise ConfigError(
                f"sources: the recipe itself names {pattern}; take that entry out of it first, or the recipe would go on naming the file"
            )


def _standing(recipe: Recipe, record: Record, work: Work, earlier: list[Record]) -> dict[str, Any]:
    """How things stand before and after, and the training runs that have seen what goes."""
    listed = listed_sources(recipe)
    before = exclusions.forgotten(recipe.out_uri)
    left = {uri: uid for uri, uid in listed.items() if exclusions.uri_digest(uri) not in before.files}
    now = standing(recipe, left.values())
    after = {uid for uri, uid in left.items() if record.span or exclusions.uri_digest(uri) != record.source}
    runs = set[Run]()
    if recipe.train is not None:
        settings = settings_digest(recipe.train, recipe.seed)
        for entry in storage.list_files(recipe.tables_uri, "_manifest.parquet"):
            folder = run_folder(recipe.train, entry.uri, recipe.out_uri, recipe.seed)
            if newest_checkpoint(folder) is not None:
                runs.add(
                    Run(folder.rpartition("/")[2], settings, table_name(recipe.out_uri, entry.uri) in dict(work.rows))
                )
    # A run that an earlier removal left waiting under its old name still waits.
    runs |= {
        run
        for other in earlier
        if other.standing == now
        for run in other.runs
        if storage.exists(storage.join(recipe.out_uri, run.folder))
    }
    ordered = tuple(sorted(runs, key=lambda run: (run.folder, run.settings, run.saw_it)))
    return {"standing_before": now, "standing": standing(recipe, after), "runs": ordered}
