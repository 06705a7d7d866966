"""The page: data, style, script and the chart library in one file, which loads nothing from anywhere.

Texts of footage are not to be trusted. They travel as JSON in a script element that is no script, with every `<` escaped, and the
page's script only ever sets them as text. A content security policy names the hashes of the two scripts that may run and forbids
every connection, so that even a fault in this or in the chart library could load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from cluster import storage
from pipelines.curation import Curation
from pipelines.recipe import Recipe
from pipelines.report.gather import gather

FILE = "report.html"
SCRIPTS = ("tools.js", "charts.js", "clips.js", "training.js", "sections.js")
"""The page's own script, in parts that are joined in this order."""


@dataclass(frozen=True)
class Report:
    """A written report."""

    uri: str
    size_bytes: int
    seconds: float


def write_report(recipe: Recipe, curation: Curation, when: datetime | None = None) -> Report:
    """Write `report.html` to the run's folder. Raises `ConfigError` when the curation is not complete."""
    start_s = time.monotonic()
    page = render(gather(recipe, curation, when or datetime.now().astimezone())).encode()
    uri = storage.join(recipe.out_uri, FILE)
    storage.write_bytes(uri, page)
    return Report(uri, len(page), time.monotonic() - start_s)


def render(data: Mapping[str, Any]) -> str:
    """The whole page, from what `gather` gives."""
    script, charts = "\n".join(_asset(name) for name in SCRIPTS), get_plotlyjs()
    policy = (
        f"default-src 'none'; script-src {_hash_source(script)} {_hash_source(charts)}; style-src 'unsafe-inline'; "
        "img-src data: blob: file: 'self'; media-src file: 'self'; form-action 'none'; base-uri 'none'"
    )
    return Template(_asset("report.html")).substitute(
        policy=html.escape(policy, quote=True),
        title=html.escape(f"{data['name']}: report"),
        style=_asset("report.css"),
        data=script_json(data),
        charts=charts,
        script=script,
    )


def script_json(data: Any) -> str:
    """JSON that can stand in a script element whatever its texts hold: no `<` and no `&` is left in it, nor line separators."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash_source(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return files("pipelines.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")
