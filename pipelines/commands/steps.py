"""`worldloom steps`: every curation step with its settings and columns."""

from __future__ import annotations

from rich.markup import escape

from cluster import plugins
from pipelines.commands._console import console
from pipelines.engine.step import FOLDER, Step


def command() -> None:
    """List every curation step with its settings and the columns it writes."""
    for name, step in plugins.classes(FOLDER, Step):
        console.print(f"\n[bold]{name}[/]  {escape(' '.join((step.__doc__ or '').split()))}", highlight=False)
        for key, field in step.model_fields.items():
            if key != "name":
                default = "required" if field.is_required() else f"default {_short(field.default)}"
                text = f"    {key}  [dim]{escape(default)}.[/] {escape(field.description or '')}"
                console.print(text, highlight=False, soft_wrap=True)
        if any(field.is_required() for field in step.model_fields.values()) or name == "keep":
            continue
        for field in step(name=name).writes():
            doc = (field.metadata or {}).get(b"doc", b"").decode()
            console.print(f"    writes [green]{field.name}[/]  {escape(doc)}", highlight=False, soft_wrap=True)


def _short(value: object) -> str:
    return getattr(value, "name", None) or repr(value)
