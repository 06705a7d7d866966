"""What the command line prints: tables of a run, a plan, a ledger, the steps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import plugins
from pipelines.commands.audit import Audit
from pipelines.curation import Curation, SegmentState
from pipelines.engine.reuse import find_cached_rows
from pipelines.engine.segments import Segment, segments_of
from pipelines.engine.step import FATES, FOLDER, Step
from pipelines.ledger import Account, captioning
from pipelines.recipe import Recipe
from pipelines.report.whatif import Answer
from pipelines.steps.encode import FITS, Encode

if TYPE_CHECKING:
    from pipelines.commands.run import Outcome
    from pipelines.dataset.build import TextsState

console = Console(width=None if sys.stdout.isatty() else 140)
"""Where results go; files and pipes get lines wide enough for the tables."""


MAX_STRADDLES = 20

MAX_LOST = 0.05
"""Share of clips that buckets may lose before `plan` says so."""


def outcome(result: Outcome, out_uri: str) -> None:
    """The summary at the end of a run, and where everything is."""
    if result.curation:
        console.print(segments_table(result.curation.segments))
        accounts(result.accounts)
    rows: list[tuple[str, str]] = []
    if result.curation and result.curation.complete:
        rows.append(("curated table", result.curation.final.folder))
        if spent := captioning(result.curation):
            rows.append(("captions", spent))
    if result.dataset:
        data = result.dataset
        rows.append(
            (
                "dataset",
                f"{data.n_train} train, {data.n_val} val and {data.n_test} test clips, {data.n_tokens:,} latent cells, {data.n_captions} captions",
            )
        )
        rows.append(("manifest", data.manifest_uri))
    if result.training:
        trained = result.training
        rows.append(
            (
                "training",
                f"step {trained.steps}, loss {trained.losses[0]:.3f} -> {trained.losses[-1]:.3f}"
                if trained.losses
                else f"step {trained.steps}",
            )
        )
        rows.append(("loss curve", trained.curve_uri))
        rows.append(("model", trained.export_uri))
    rows += [("sample", uri) for uri in result.samples]
    if result.report:
        rows.append(("report", result.report))
    rows.append(("everything", out_uri))
    console.print()
    for name, value in rows:
        console.print(f"[bold]{name:>14}[/]  {escape(value)}", soft_wrap=True, highlight=False)
    console.print(f"[bold]{'took':>14}[/]  {result.seconds:.0f} s", highlight=False)


def segments_table(states: Sequence[SegmentState]) -> Table:
    table = Table(title="Curation", title_justify="left")
    for name in ("segment", "rows in", "new", *FATES, "seconds", "CPU s"):
        table.add_column(name, justify="left" if name == "segment" else "right")
    for state in states:
        counts = {item["values"]: item["counts"] for item in pc.value_counts(state.rows.rows["fate"]).to_pylist()}
        cells = [" > ".join(state.segment.labels), str(state.n_inputs), str(state.n_pending if state.seconds else 0)]
        table.add_row(
            *cells, *(str(counts.get(fate, 0)) for fate in FATES), f"{state.seconds:.1f}", f"{state.cpu_s:.1f}"
        )
    return table


def accounts(entries: Sequence[Account], reasons: int = 12) -> None:
    """The ledger, with the most frequent reasons."""
    for account in entries:
        console.print(str(account), style="" if account.balanced else "bold red", highlight=False, soft_wrap=True)
    table = Table(title="What became of the rest", title_justify="left")
    for name in ("level", "fate", "step", "reason", "count"):
        table.add_column(name, justify="right" if name == "count" else "left", overflow="fold")
    listed = [(entry.level, *reason) for entry in entries for reason in entry.reasons]
    for level, fate, step, reason, count in listed[:reasons]:
        table.add_row(level, fate, step, escape(reason), str(count))
    if listed:
        console.print(table)
    if len(listed) > reasons:
        console.print(f"and {len(listed) - reasons} reasons more; `worldloom ledger --reasons {len(listed)}` lists all")


def plan(recipe: Recipe, curation: Curation, costs: dict[str, float | None], texts: TextsState | None) -> None:
    """What a run would do with each segment and with text embeddings, whose state is `texts` where the captions are known, and why."""
    table = Table(title="Plan", title_justify="left")
    for name in ("segment", "action", "why", "rows in", "to do", "est. CPU s"):
        table.add_column(
            name, justify="right" if name in ("rows in", "to do", "est. CPU s") else "left", overflow="fold"
        )
    for position, segment in enumerate(segments_of(recipe.curate, recipe.labels)):
        names = segment.labels
        if position >= len(curation.segments):
            table.add_row(
                " > ".join(names), "run", f"waits for the segment before it{_stored(recipe, segment)}", "?", "?", "?"
            )
            continue
        state = curation.segments[position]
        action, why = _action(state)
        cost = costs.get(state.segment.label)
        estimate = "0" if not state.n_pending else "?" if cost is None else f"{cost * state.n_pending:.1f}"
        table.add_row(" > ".join(names), action, why, str(state.n_inputs), str(state.n_pending), estimate)
    encode = recipe.curate[-1]
    if isinstance(encode, Encode):
        table.add_row("text embeddings", *_texts(texts))
    console.print(table)
    if isinstance(encode, Encode) and (warning := bucket_losses(encode, curation)):
        console.print(f"[bold yellow]warning[/]  {escape(warning)}", soft_wrap=True, highlight=False)


def bucket_losses(encode: Encode, curation: Curation) -> str | None:
    """Which share of the clips that reach `encode` no bucket takes, and why, where that is more than `MAX_LOST`; None while they are not known."""
    reached = next((i for i, state in enumerate(curation.segments) if state.segment.first is encode), None)
    if not reached or curation.segments[reached - 1].n_pending:
        return None
    clips = curation.segments[reached - 1].rows.live().read(["uid", *FITS])
    lost = encode.misfits(clips)
    if lost.total() <= MAX_LOST * len(clips):
        return None
    listed = "; ".join(f"{count} because {reason}" for reason, count in lost.most_common(3))
    rest = f"; and {len(lost) - 3} reasons more" if len(lost) > 3 else ""
    share = f"{lost.total()} of {len(clips)} clips ({lost.total() / len(clips):.1%})"
    return f"buckets lose {share} that filters keep: {listed}{rest}. Add smaller or shorter ones"


def _stored(recipe: Recipe, segment: Segment) -> str:
    """What is known already of the rows a segment will get: values of the same settings, which another table holds."""
    cached = find_cached_rows(recipe.tables_uri, segment)
    return "".join(f"; {label} has values of {len(donor.index)} rows to reuse" for label, donor in cached.items())


def _texts(state: TextsState | None) -> tuple[str, str, str, str, str]:
    if state is None:
        return "run", "waits for the captions", "?", "?", "?"
    if not state.n_pending:
        return "reuse", f"{state.folder} has every caption", str(state.n_captions), "0", "0"
    n_done = state.n_captions - state.n_pending
    why = f"{state.folder} has {n_done} of {state.n_captions}" if n_done else f"no {state.folder} yet"
    return "resume" if n_done else "run", why, str(state.n_captions), str(state.n_pending), "?"


def whatif(answer: Answer, curves: bool) -> None:
    """What other thresholds would keep, which clips change sides and why, and yield curves."""
    console.print(f"[dim]{escape(answer.table)}[/]", soft_wrap=True, highlight=False)
    table = Table(title="What if", title_justify="left")
    for name in ("clips", "now", "then", "hours now", "hours then"):
        table.add_column(name, justify="left" if name == "clips" else "right")
    for fate, now in answer.before.items():
        then = answer.after[fate]
        if now.clips or then.clips:
            table.add_row(fate, str(now.clips), str(then.clips), f"{now.hours:.3f}", f"{then.hours:.3f}")
    console.print(table)
    if answer.changes:
        changed = Table(title="Clips that change sides", title_justify="left")
        for name in ("now", "then", "clips"):
            changed.add_column(name, justify="right" if name == "clips" else "left", overflow="fold")
        for old, new, count in answer.changes:
            changed.add_row(escape(old), escape(new), str(count))
        console.print(changed)
    for curve in answer.curves if curves else ():
        most = max(amount.clips for _, amount in curve.points) or 1
        yields = Table(title=f"{curve.label}: {curve.column} {curve.side}", title_justify="left")
        for name in (curve.side, "clips", "hours", ""):
            yields.add_column(name, justify="left" if not name else "right")
        for point, amount in curve.points:
            mark = "[bold]" if point == curve.now else ""
            yields.add_row(
                f"{mark}{point:.4g}", str(amount.clips), f"{amount.hours:.3f}", "█" * round(40 * amount.clips / most)
            )
        console.print(yields)


def audit(found: Audit) -> None:
    """Clips in each split, whatever straddles, and the closest pairs across splits."""
    table = Table(title="Splits", title_justify="left")
    for name in ("split", "clips", "source files"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, clips in found.clips.items():
        table.add_row(split, f"{clips:,}", f"{found.sources[split]:,}")
    console.print(table)
    if found.left_out:
        console.print(
            f"{found.left_out:,} kept clips are left out of every split: near-duplicates of them are held out"
        )
    for straddle in found.straddles[:MAX_STRADDLES]:
        console.print(
            f"[bold red]{straddle.kind} {straddle.name}[/] is in {' and '.join(straddle.splits)}: clips {', '.join(straddle.clips)}",
            highlight=False,
            soft_wrap=True,
        )
    if len(found.straddles) > MAX_STRADDLES:
        console.print(
            f"[bold red]and {len(found.straddles) - MAX_STRADDLES:,} more[/]; --json lists all", highlight=False
        )
    if found.without_split:
        console.print(
            f"[bold red]{len(found.without_split):,} kept clips have no split[/], {found.without_split[0]} first: run again",
            highlight=False,
        )
    if found.closest:
        pairs = Table(title="Closest clips of different splits", title_justify="left")
        for name in ("bits apart", "share", "split", "clip", "source"):
            pairs.add_column(name, justify="right" if name in ("bits apart", "share") else "left", overflow="fold")
        for pair in found.closest:
            pairs.add_row(f"{pair.distance:.1f}", f"{pair.share:.2f}", pair.split_a, pair.uid_a, escape(pair.source_a))
            pairs.add_row("", "", pair.split_b, pair.uid_b, escape(pair.source_b), end_section=True)
        console.print(pairs)
    else:
        console.print(
            f"closest clips of different splits: {found.not_compared or 'none that look alike'}", highlight=False
        )
    console.print("clean: nothing is in two splits" if found.clean else "[bold red]not clean[/]")


def _action(state: SegmentState) -> tuple[str, str]:
    where = state.folder.rpartition("/")[2]
    if not state.n_pending:
        return "reuse", f"{where} has every row"
    if state.n_done:
        return "resume", f"{where} has {state.n_done} of {state.n_inputs} rows"
    return "run", f"no table {where} yet: new settings, new input, or a first run"


def steps() -> None:
    """Every step with its settings and columns, from the code."""
    for name, step in plugins.classes(FOLDER, Step):
        console.print(f"\n[bold]{name}[/]  {escape(' '.join((step.__doc__ or '').split()))}", highlight=False)
        for key, field in step.model_fields.items():
            if key != "name":
                default = "required" if field.is_required() else f"default {_brief(field.default)}"
                console.print(
                    f"    {key}  [dim]{escape(default)}.[/] {escape(field.description or '')}",
                    highlight=False,
                    soft_wrap=True,
                )
        if any(field.is_required() for field in step.model_fields.values()) or name == "keep":
            continue
        for field in step(name=name).writes():
            doc = (field.metadata or {}).get(b"doc", b"").decode()
            console.print(f"    writes [green]{field.name}[/]  {escape(doc)}", highlight=False, soft_wrap=True)


def _brief(value: object) -> str:
    return getattr(value, "name", None) or repr(value)
