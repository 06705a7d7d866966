"""Generated clips on the page: the newest summaries of evaluations and audits, and links to the clips they name."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from cluster import storage
from pipelines.report.columns import round_significant
from training.evaluation.settings import SUMMARY_FILE

MAX_PROMPT_CHARACTERS = 300
"""Characters of a prompt, or of another caption, on the page."""


def newest_summaries(folder_uri: str, n: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the URI and the summary of the newest n folders below a folder of evaluations or audits, newest first."""
    summaries = storage.list_files(folder_uri, f"/{SUMMARY_FILE}")
    for entry in sorted(summaries, key=lambda entry: (-int(entry.version), entry.uri))[:n]:
        yield entry.uri.removesuffix(f"/{SUMMARY_FILE}"), storage.read_json(entry.uri)


def link(uri: str, folder: str, name: str) -> str | None:
    """Return the link of a video in a folder of an evaluation or audit, relative to the page; None if it is gone."""
    if not storage.exists(storage.join(uri, folder, f"{name}.mp4")):
        return None
    return "/".join(quote(part) for part in (*uri.rsplit("/", 2)[1:], folder, f"{name}.mp4"))


def prompt_of(uri: str, name: str) -> str:
    """Return the prompt of a generated clip, from the record beside it; empty if that is gone."""
    record_uri = storage.join(uri, "generated", f"{name}.json")
    record = storage.read_json(record_uri) if storage.exists(record_uri) else {}
    return str(record.get("prompt", ""))[:MAX_PROMPT_CHARACTERS]


def as_base64(images: Iterable[bytes]) -> list[str]:
    """Return images as the page holds them."""
    return [base64.b64encode(image).decode() for image in images]


def rounded(values: Iterable[float]) -> list[float | None]:
    """Return values in order, with their significant digits."""
    return [round_significant(value) for value in sorted(values)]
