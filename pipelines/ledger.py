"""The ledger: counts of inputs by fate that must add up, at the level of source files and of clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from captioning.quality import fault_classes
from cluster.large_tables import is_among, positions, take_column
from pipelines.curation import Curation
from pipelines.engine.step import FATES
from pipelines.report.causes import Cause, cause_of

LEVELS = ("videos", "images", "clips")
END_COLUMNS = ("fate", "fate_step", "fate_reason")
"""Columns of how a row ended, as far as an account tells it."""
MAX_LISTED_LOSSES = 12


@dataclass(frozen=True)
class Account:
    """One level of the ledger: the number of inputs, and of rows by fate."""

    level: str
    inputs: int
    fates: Mapping[str, int]
    reasons: tuple[tuple[str, str, str, int], ...]
    """(fate, step, reason, count), most frequent first."""
    contributing: int | None = None
    """Number of source files with at least one kept clip; None at the level of clips. A file whose clips are all lost
    is kept, because it was read and cut, and contributes none."""

    @property
    def balanced(self) -> bool:
        """Whether inputs = kept + dropped + failed + duplicate."""
        return self.inputs == sum(self.fates.values())

    def __str__(self) -> str:
        counts = {fate: f"{self.fates[fate]} {fate}" for fate in FATES}
        if self.contributing is not None and self.contributing < self.fates["kept"]:
            verb = "contributes" if self.contributing == 1 else "contribute"
            counts["kept"] += f" ({self.contributing} {verb} clips)"
        sums = " + ".join(counts.values())
        return f"{self.level}: {self.inputs} {'=' if self.balanced else '!='} {sums}"


def ledger(curation: Curation) -> list[Account]:
    """Return the accounts of a complete curation, one per level.

    Inputs are counted independently of fates: in the list of sources and, for clips, in the first table that holds
    them; fates are counted in the last table. A source is kept if it gave at least one clip, whatever its clips' fates,
    and contributes if one of them is kept.
    """
    columns = ["source_uid", "clip_index", *END_COLUMNS]
    of_clips: list[pa.Table] = []
    alone = [pa.schema([("source_uid", pa.string()), *((name, pa.string()) for name in END_COLUMNS)]).empty_table()]
    with_clips, contributing = [pa.array([], pa.string())], [pa.array([], pa.string())]
    for _, rows in curation.final.rows.pieces(columns):
        is_clip = pc.is_valid(rows["clip_index"])
        clips = rows.filter(is_clip)
        of_clips.append(_counted(clips))
        with_clips.append(pc.unique(clips["source_uid"]))
        contributing.append(pc.unique(clips.filter(pc.equal(clips["fate"], "kept"))["source_uid"]))
        alone.append(rows.filter(pc.invert(is_clip)).drop_columns(["clip_index"]))
    sources = _ends_of_sources(curation.sources, pa.concat_tables(alone), pa.chunked_array(with_clips))
    contributes = is_among(sources["uid"], pa.chunked_array(contributing))
    accounts = []
    for level, kind in (("videos", "video"), ("images", "image")):
        is_kind = pc.equal(sources["kind"], kind)
        listed = sources.filter(is_kind)
        account = _account(level, len(listed), [_counted(listed.filter(pc.is_valid(listed["fate"])))])
        accounts.append(replace(account, contributing=pc.sum(pc.and_(is_kind, contributes)).as_py() or 0))
    return [*accounts, _account("clips", _clips_cut(curation), of_clips)]


def _ends_of_sources(sources: pa.Table, alone: pa.Table, with_clips: pa.ChunkedArray) -> pa.Table:
    """Return the fate columns of sources: of their own row among `alone`, or `kept` if they have clips, else null."""
    index = positions(sources["uid"], alone["source_uid"])
    ends = {name: take_column(alone[name], index) for name in END_COLUMNS}
    is_cut = is_among(sources["uid"], with_clips)
    ends["fate"] = pc.coalesce(ends["fate"], pc.if_else(is_cut, pa.scalar("kept"), pa.scalar(None, pa.string())))
    return pa.table({"uid": sources["uid"], "kind": sources["kind"], **ends})


def _counted(rows: pa.Table) -> pa.Table:
    """Return the distinct values of the fate columns, with the number of rows of each in `count_all`."""
    return rows.group_by(list(END_COLUMNS)).aggregate([([], "count_all")])


def losses(accounts: Sequence[Account]) -> str:
    """Describe what took the rows that were not kept: `8 clips dropped by keep (luma under 0.05), ...`."""
    counts: Counter[tuple[str, Cause]] = Counter()
    for account in accounts:
        for fate, step, reason, count in account.reasons:
            counts[account.level, cause_of(fate, step, reason)] += count
    listed = [_loss(level, cause, count) for (level, cause), count in counts.most_common(MAX_LISTED_LOSSES)]
    more = f", and {len(counts) - MAX_LISTED_LOSSES} more reasons" if len(counts) > MAX_LISTED_LOSSES else ""
    return ", ".join(listed) + more


def _loss(level: str, cause: Cause, count: int) -> str:
    verb = {"dropped": "dropped by", "failed": "failed in"}.get(cause.fate, "marked as duplicate by")
    return f"{counted_noun(count, level)} {verb} {cause.step} ({cause.reason})"


def counted_noun(count: int, level: str) -> str:
    """Return `1 clip` or `2 clips`, for a level of the ledger."""
    return f"{count:,} {level.removesuffix('s') if count == 1 else level}"


def captioning(curation: Curation) -> str | None:
    """Describe the cost of the captions of a complete curation; None if no engine was asked."""
    final = curation.final
    columns = ["caption_answers", "caption_tokens_in", "caption_tokens_out", "caption_cost_usd"]
    if not set(columns) <= set(final.segment.schema.names):
        return None
    rows = final.rows.read(["uid", "fate", *columns])
    answers, tokens_in, tokens_out, usd = (pc.sum(rows[name]).as_py() or 0 for name in columns)
    if not tokens_in + usd:
        return None
    n_clips = pc.sum(pc.greater(rows["caption_answers"], 0)).as_py()
    tokens = f"{_in_millions(tokens_in)} tokens in, {_in_millions(tokens_out)} out"
    return f"{n_clips:,} clips in {answers:,} answers, {tokens}, ${usd:,.2f}"


def _in_millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1_000_000 else f"{count:,}"


def _clips_cut(curation: Curation) -> int:
    """Count the clips in the table of the segment that cut them: its rows with a uid of their own."""
    first = next(state for state in curation.segments if "clip_index" in state.segment.schema.names)
    rows = first.rows.rows
    return int(pc.sum(pc.not_equal(rows["uid"], rows["input_uid"])).as_py() or 0)


def _account(level: str, inputs: int, counts: Sequence[pa.Table]) -> Account:
    """Return the account of a level from tables of `_counted`."""
    fates: Counter[str] = Counter()
    reasons: Counter[tuple[str, str, str]] = Counter()
    for row in (row for table in counts for row in table.to_pylist()):
        fate, count = row["fate"], row["count_all"]
        fates[fate] += count
        if fate != "kept":
            reasons[fate, row["fate_step"] or "", fault_classes(row["fate_reason"] or "")] += count
    ordered = sorted(((*key, count) for key, count in reasons.items()), key=lambda item: (-item[3], item))
    return Account(level, inputs, {fate: fates.get(fate, 0) for fate in FATES}, tuple(ordered))
