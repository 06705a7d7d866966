"""The inspection of one media file: what it says of itself, and whether that holds."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster import plugins, storage
from pipelines.video.generated import leading_frames
from training.sampling import credentials
from training.sampling.credentials import CredentialsReport
from training.sampling.marks import record_digest
from training.sampling.provenance import read_provenance
from training.sampling.source_type import is_of_a_model, source_types
from training.sampling.watermark import PUBLIC_KEY
from training.sampling.watermark_detection import Detection
from training.sampling.watermark_method import FOLDER, WatermarkMethod
from training.sampling.watermarks.spread_spectrum import SpreadSpectrum

Verdict = Literal["generated", "changed", "unmarked"]


@dataclass(frozen=True)
class Inspection:
    """The findings about one file."""

    file: str
    credentials: CredentialsReport | None
    """None without any, and without the package that reads them."""
    stated: dict[str, list[str]]
    """Digital source types by where they are stated, `c2pa` or `xmp`."""
    watermarks: dict[str, Detection]
    """The findings of each kind of watermark that was looked for; one that is found ends the search."""
    record: dict[str, Any] | None
    """The record beside the file."""

    @property
    def verdict(self) -> Verdict:
        """`changed` if credentials do not hold, `generated` if any mark says so, and else `unmarked`."""
        if self.credentials is not None and not self.credentials.hold:
            return "changed"
        says_so = any(is_of_a_model(term) for terms in self.stated.values() for term in terms)
        return "generated" if says_so or self.found_watermark else "unmarked"

    @property
    def found_watermark(self) -> str | None:
        """The kind of watermark that was found."""
        return next((name for name, detection in self.watermarks.items() if detection.found), None)

    @property
    def record_fits(self) -> bool | None:
        """Whether the record beside the file is the one that its credentials name; None without one of the two."""
        named = self.credentials.facts.get("recipe") if self.credentials else None
        return None if named is None or self.record is None else record_digest(self.record) == named

    def to_json(self) -> dict[str, Any]:
        """Return the findings as plain data."""
        watermark = None
        if self.watermarks:
            likeliest = min(self.watermarks.values(), key=lambda detection: detection.log_p)
            watermark = {
                "found": self.found_watermark is not None,
                "method": self.found_watermark,
                "methods": list(self.watermarks),
                "false_positive_probability": math.exp(max(likeliest.log_p, -700.0)),
                "payload": None if likeliest.payload is None else f"{likeliest.payload:08x}",
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
            ("watermark", _watermark_line(self.watermarks)),
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


def _watermark_line(watermarks: Mapping[str, Detection]) -> str:
    if not watermarks:
        return "not looked for"
    for name, found in watermarks.items():
        if found.found:
            payload = "no payload can be read" if found.payload is None else f"payload {found.payload:08x}"
            bound = f"10^{math.ceil(found.log_p / math.log(10))}"
            return f"found by {name}; without a mark, the probability of this is at most {bound}; {payload}"
    return f"not found by {', '.join(watermarks)}"


def usable_methods() -> list[WatermarkMethod]:
    """Return the kinds of watermarks that this machine can look for without settings, our own first."""
    methods = [
        kind(name=name)
        for name, kind in plugins.classes(FOLDER, WatermarkMethod)
        if not any(field.is_required() for field in kind.model_fields.values())
    ]
    usable = [method for method in methods if method.missing() is None]
    return sorted(usable, key=lambda method: method != SpreadSpectrum())


def inspect_file(
    uri: str, key: bytes = PUBLIC_KEY, methods: Sequence[WatermarkMethod] = (SpreadSpectrum(),)
) -> Inspection:
    """Inspect a file, and look for watermarks of these kinds until one is found.

    Raises `OSError` if it cannot be read, and `DecodeError` if it is no video and no image.
    """
    uri = storage.absolute(uri)
    with storage.open_input(uri) as file:
        stated = source_types(file)
    report = None
    if credentials.is_installed():
        with _local(uri) as path:
            report = credentials.read_credentials(path)
    watermarks: dict[str, Detection] = {}
    for method in methods:
        watermarks[method.name] = found = method.detect(leading_frames(uri), key)
        if found.found:
            break
    return Inspection(uri, report, stated, watermarks, read_provenance(uri))


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
