"""The ledger: counts of inputs by fate that must add up, at the level of source files and of clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow.compute as pc

from captioning.quality import fault_classes
from pipelines.curation import Curation
from pipelines.engine.step import FATES
from pipelines.report.causes import Cause, cause_of

LEVELS = ("videos", "images", "clips")
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
    columns = ["uid", "source_uid", "kind", "clip_index", "fate", "fate_step", "fate_reason"]
    last = curation.final.rows.read(columns)
    of_clips = pc.is_valid(last["clip_index"])
    clips, alone = last.filter(of_clips), last.filter(pc.invert(of_clips))
    fate_of_source = dict.fromkeys(clips["source_uid"].to_pylist(), ("kept", None, None))
    for row in alone.to_pylist():
        fate_of_source[row["source_uid"]] = (row["fate"], row["fate_step"], row["fate_reason"])
    contributing = set(clips.filter(pc.equal(clips["fate"], "kept"))["source_uid"].to_pylist())
    kinds = dict(zip(curation.sources["uid"].to_pylist(), curation.sources["kind"].to_pylist(), strict=True))
    accounts = []
    for level, kind in (("videos", "video"), ("images", "image")):
        uids = [uid for uid, its_kind in kinds.items() if its_kind == kind]
        ends = [fate_of_source[uid] for uid in uids if uid in fate_of_source]
        account = _account(level, len(uids), ends)
        accounts.append(replace(account, contributing=sum(uid in contributing for uid in uids)))
    ends = list(zip(*(clips[name].to_pylist() for name in ("fate", "fate_step", "fate_reason")), strict=True))
    accounts.append(_account("clips", _clips_cut(curation), ends))
    return accounts


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


def _account(level: str, inputs: int, ends: Sequence[tuple[str, str | None, str | None]]) -> Account:
    fates = Counter(fate for fate, _, _ in ends)
    reasons = Counter((fate, step or "", fault_classes(reason or "")) for fate, step, reason in ends if fate != "kept")
    ordered = sorted(((*key, count) for key, count in reasons.items()), key=lambda item: (-item[3], item))
    return Account(level, inputs, {fate: fates.get(fate, 0) for fate in FATES}, tuple(ordered))
