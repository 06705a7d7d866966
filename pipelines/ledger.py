"""The ledger: counts of inputs by fate that must add up, at the level of source files and of clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from captioning.quality import fault_classes
from pipelines.curation import Curation
from pipelines.engine.step import FATES

LEVELS = ("videos", "images", "clips")


@dataclass(frozen=True)
class Account:
    """One level of the ledger: the number of inputs, and of rows by fate."""

    level: str
    inputs: int
    fates: Mapping[str, int]
    reasons: tuple[tuple[str, str, str, int], ...]
    """(fate, step, reason, count), most frequent first."""

    @property
    def balanced(self) -> bool:
        """Whether inputs = kept + dropped + failed + duplicate."""
        return self.inputs == sum(self.fates.values())

    def __str__(self) -> str:
        sums = " + ".join(f"{self.fates[fate]} {fate}" for fate in FATES)
        return f"{self.level}: {self.inputs} {'=' if self.balanced else '!='} {sums}"


def ledger(curation: Curation) -> list[Account]:
    """Return the accounts of a complete curation, one per level.

    Inputs are counted independently of fates: in the list of sources and, for clips, in the first table that holds
    them; fates are counted in the last table. A source is kept if it gave at least one clip, whatever its clips' fates.
    """
    columns = ["uid", "source_uid", "kind", "clip_index", "fate", "fate_step", "fate_reason"]
    last = curation.final.rows.read(columns)
    of_clips = pc.is_valid(last["clip_index"])
    clips, alone = last.filter(of_clips), last.filter(pc.invert(of_clips))
    fate_of_source = dict.fromkeys(clips["source_uid"].to_pylist(), ("kept", None, None))
    for row in alone.to_pylist():
        fate_of_source[row["source_uid"]] = (row["fate"], row["fate_step"], row["fate_reason"])
    kinds = dict(zip(curation.sources["uid"].to_pylist(), curation.sources["kind"].to_pylist(), strict=True))
    accounts = []
    for level, kind in (("videos", "video"), ("images", "image")):
        ends = [fate_of_source[uid] for uid in kinds if kinds[uid] == kind and uid in fate_of_source]
        accounts.append(_account(level, sum(1 for value in kinds.values() if value == kind), ends))
    ends = list(zip(*(clips[name].to_pylist() for name in ("fate", "fate_step", "fate_reason")), strict=True))
    accounts.append(_account("clips", _clips_cut(curation), ends))
    return accounts


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
    """Count the clips in the table of the segment that cut them."""
    first = next(state for state in curation.segments if "clip_index" in state.segment.schema.names)
    return int(pc.sum(pc.is_valid(first.rows.read(["uid", "clip_index"])["clip_index"])).as_py() or 0)


def _account(level: str, inputs: int, ends: Sequence[tuple[str, str | None, str | None]]) -> Account:
    fates = Counter(fate for fate, _, _ in ends)
    reasons = Counter((fate, step or "", fault_classes(reason or "")) for fate, step, reason in ends if fate != "kept")
    ordered = sorted(((*key, count) for key, count in reasons.items()), key=lambda item: (-item[3], item))
    return Account(level, inputs, {fate: fates.get(fate, 0) for fate in FATES}, tuple(ordered))
