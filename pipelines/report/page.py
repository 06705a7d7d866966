"""The page: one HTML file with data, style, script and the chart library, which loads nothing else.

Texts from footage (captions, file names, errors) are untrusted. They are JSON in a script element that does not run,
with every `<` escaped, and the page's script only sets them as text. A content security policy lists the hashes of
the two scripts that may run and forbids every connection. Even an error in this code or in the chart library could
not load anything.
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
from pipelines.report.page_data import page_data

FILE = "report.html"
SCRIPTS = (
    "tools.js",
    "charts.js",
    "histograms.js",
    "thumbnails.js",
    "clips.js",
    "overview.js",
    "measures.js",
    "buckets.js",
    "balance.js",
    "duplicates.js",
    "training.js",
    "training_run.js",
    "nearest.js",
    "evaluation.js",
    "memorisation.js",
    "lineage.js",
    "page.js",
)
"""Files of the page's script, which are joined in this order."""


@dataclass(frozen=True)
class Report:
    """A report that was written, and the time it took."""

    uri: str
    size_bytes: int
    seconds: float


def write_report(recipe: Recipe, curation: Curation, when: datetime | None = None) -> Report:
    """Write `report.html` to the folder of the run. Raises `ConfigError` if the curation is not complete."""
    start_s = time.monotonic()
    page = render(page_data(recipe, curation, when or datetime.now().astimezone())).encode()
    uri = storage.join(recipe.out_uri, FILE)
    storage.write_bytes(uri, page)
    return Report(uri, len(page), time.monotonic() - start_s)


def render(data: Mapping[str, Any]) -> str:
    """Return the HTML of the page for the result of `page_data`."""
    script, chart_library = "\n".join(_asset(name) for name in SCRIPTS), get_plotlyjs()
    policy = (
        f"default-src 'none'; script-src {_hash_source(script)} {_hash_source(chart_library)}; "
        "style-src 'unsafe-inline'; "
        "img-src data: blob: file: 'self'; media-src file: 'self'; form-action 'none'; base-uri 'none'"
    )
    return Template(_asset("report.html")).substitute(
        policy=html.escape(policy, quote=True),
        title=html.escape(f"{data['name']}: report"),
        style=_asset("report.css"),
        data=script_json(data),
        chart_library=chart_library,
        script=script,
    )


def script_json(data: Any) -> str:
    """Return JSON that is safe inside a script element: `<`, `>`, `&` and line separators are escaped."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash_source(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return files("pipelines.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")
