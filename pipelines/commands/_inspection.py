"""The inspection of one media file: what it says of itself, and whether that holds."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster import storage
from pipelines.video.generated import leading_frames
from training.sampling import credentials
from training.sampling.credentials import CredentialsReport
from training.sampling.marks import record_digest
from training.sampling.provenance import read_provenance
from training.sampling.source_type import is_of_a_model, source_types
from training.sampling.watermark import PUBLIC_KEY
from training.sampling.watermark_detection import Detection, detect

Verdict = Literal["generated", "changed", "unmarked"]


@dataclass(frozen=True)
class Inspection:
    """The findings about one file."""

    file: str
    credentials: CredentialsReport | None
    """None without any, and without the package that reads them."""
    stated: dict[str, list[str]]
    """Digital source types by where they are stated, `c2pa` or `xmp`."""
    watermark: Detection | None
    """None if it was not looked for."""
    record: dict[str, Any] | None
    """The record beside the file."""

    @property
    def verdict(self) -> Verdict:
        """`changed` if credentials do not hold, `generated` if any mark says so, and else `unmarked`."""
        if self.credentials is not None and not self.credentials.hold:
            return "changed"
        says_so = any(is_of_a_model(term) for terms in self.stated.values() for term in terms)
        return "generated" if says_so or (self.watermark is not None and self.watermark.found) else "unmarked"

    @property
    def record_fits(self) -> bool | None:
        """Whether the record beside the file is the one that its credentials name; None without one of the two."""
        named = self.credentials.facts.get("recipe") if self.credentials else None
        return None if named is None or self.record is None else record_digest(self.record) == named

    def to_json(self) -> dict[str, Any]:
        """Return the findings as plain data."""
        found = self.watermark
        watermark = None
        if found is not None:
            watermark = {
                "found": found.found,
                "false_positive_probability": math.exp(max(found.log_p, -700.0)),
                "payload": None if found.payload is None else f"{found.payload:08x}",
            }
        shown = self.credentials
        return {
            "file": self.file,
            "verdict": self.verdict,
            "credentials": None if shown is None else {"hold": shown.hold, **asdict(shown)},
            "digital_source_types": self.stated,
            "watermark": watermark,
            "record": None if self.record is None else {"fits": self.record_fits, **self.record},
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return the findings as names and sentences."""
        stated = [f"{term} ({kind})" for kind, terms in self.stated.items() for term in terms]
        record = {None: "there is one", True: "the one that the credentials name", False: "NOT that of the credentials"}
        return [
            ("file", self.file),
            ("verdict", self.verdict),
            ("credentials", _credentials_line(self.credentials)),
            ("source type", ", ".join(stated) or "not stated"),
            ("watermark", _watermark_line(self.watermark)),
            ("record", "none" if self.record is None else record[self.record_fits]),
        ]


def _credentials_line(report: CredentialsReport | None) -> str:
    if report is None:
        return "none" if credentials.is_installed() else "not read: c2pa-python is not installed"
    if not report.hold:
        return f"DO NOT HOLD: {', '.join(report.problems)}"
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    made_of = f"; made from {', '.join(report.ingredients)}" if report.ingredients else ""
    trust = "" if report.trusted else ", who is on no list of trust"
    parts = (f"hold; made by {report.generator}, signed by {report.signer}{trust}", facts)
    return "; ".join(part for part in parts if part) + made_of


def _watermark_line(found: Detection | None) -> str:
    if found is None:
        return "not looked for"
    if not found.found:
        return "not found"
    payload = "no payload can be read" if found.payload is None else f"payload {found.payload:08x}"
    return f"found; without a mark, the probability of this is at most 10^{found.log_p / math.log(10):.0f}; {payload}"


def inspect_file(uri: str, key: bytes = PUBLIC_KEY, watermark: bool = True) -> Inspection:
    """Inspect a file. Raises `OSError` if it cannot be read, and `DecodeError` if it is no video and no image."""
    uri = storage.absolute(uri)
    with storage.open_input(uri) as file:
        stated = source_types(file)
    report = None
    if credentials.is_installed():
        with _local(uri) as path:
            report = credentials.read_credentials(path)
    found = detect(leading_frames(uri), key) if watermark else None
    return Inspection(uri, report, stated, found, read_provenance(uri))


@contextlib.contextmanager
def _local(uri: str) -> Iterator[Path]:
    """Yield the path of a file, of a copy if it is remote."""
    if storage.is_local(uri):
        yield storage.local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="worldloom-") as folder:
        path = Path(folder) / uri.rpartition("/")[2]
        with storage.open_input(uri) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        yield path
