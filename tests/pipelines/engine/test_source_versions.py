"""Sources that change after they were listed: every step that reads their pixels leaves the row pending."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.engine.source_versions import ChangedSourceError, unchanged_source
from pipelines.engine.sources import SourceSettings, list_sources
from pipelines.engine.step import Context, start_fates
from pipelines.export.clip_files import CutSettings
from pipelines.export.export_steps import CutClips
from pipelines.export.formats.mp4 import Mp4
from pipelines.steps._samples import SampleRules, samples_of, windows_of
from pipelines.steps._window_decoding import ClipWindows, _decode
from pipelines.steps.frames import Frames
from pipelines.steps.scan import Scan
from tests.support.videos import encode, numbered
from training.data.buckets import BucketSettings
from training.data.windows import WindowRules

Row = dict[str, Any]


def listed(pattern: Path, kind: str = "videos") -> Row:
    """Return the row of a clip of the first second of the file that a pattern names, as it is listed."""
    (row,) = list_sources((SourceSettings(**{kind: str(pattern)}),)).to_pylist()
    clip = {"start_pts": 0, "end_pts": 15360, "time_base_num": 1, "time_base_den": 15360, "duration_s": 1.0}
    return {**row, **clip, "width": 128, "height": 64, "crop": None}


def run(step: Any, row: Row) -> str | None:
    """Return the reason for which a step leaves a row pending, None if it does not."""
    table = start_fates(pa.Table.from_pylist([row]))
    (done,) = step.open(Context("", 0))(table).to_pylist()
    assert done["fate"] == ("pending" if done["fate_reason"] else "kept")
    reason: str | None = done["fate_reason"]
    return reason


def scan(row: Row, folder: Path) -> str | None:
    return run(Scan(), row)


def frames(row: Row, folder: Path) -> str | None:
    return run(Frames(), row)


def export(row: Row, folder: Path) -> str | None:
    stored = dict.fromkeys(("stored_file", "stored_member", "split", "caption"))
    step = CutClips(format=Mp4(), cut=CutSettings(preset="ultrafast"), folder=str(folder), stored=str(folder))
    return run(step, {**row, **stored})


def encoding(row: Row, folder: Path) -> str | None:
    rules = SampleRules(
        (BucketSettings(size=32, frames=(1,), fps=8),), WindowRules("first", "best", True), "all", False
    )
    windows = windows_of(row, rules)
    assert not isinstance(windows, str)
    try:
        _decode(ClipWindows(0, row, samples_of(row, windows, rules)))
    except ChangedSourceError as error:
        return f"{type(error).__name__}: {error}"
    return None


def replace(path: Path) -> None:
    """Replace a file by another of the same name and size."""
    data = path.read_bytes()
    path.with_suffix(".new").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.replace(path.with_suffix(".new"), path)
    os.utime(path, ns=(0, 123))


OPENERS = (scan, frames, export, encoding)


@pytest.mark.slow
@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("kind", ["videos", "images"])
def test_changed_source_leaves_rows_pending(
    tmp_path: Path, opener: Callable[[Row, Path], str | None], kind: str
) -> None:
    path = tmp_path / ("a.mp4" if kind == "videos" else "a.png")
    if kind == "videos":
        encode(path, numbered(30))
    else:
        Image.fromarray(numbered(1)[0]).save(path)
    row = listed(path, kind)
    out = tmp_path / "out"
    out.mkdir()
    assert opener(row, out) is None
    replace(path)
    assert opener(row, out) == f"ChangedSourceError: {path}: changed since it was listed"
    path.unlink()
    assert opener(row, out) == f"ChangedSourceError: {path}: was removed since it was listed"


def test_change_during_the_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    row = listed(path, "images")
    with pytest.raises(ChangedSourceError, match="changed since it was listed"), unchanged_source(row):
        path.write_bytes(path.read_bytes() + b"more")


def test_error_of_an_unchanged_source_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    with pytest.raises(ZeroDivisionError), unchanged_source(listed(path, "images")):
        _ = 1 / 0
    with pytest.raises(ChangedSourceError) as raised, unchanged_source({**listed(path, "images"), "size_bytes": 1}):
        _ = 1 / 0
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_store_that_lists_finer_times_than_it_tells_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        def get_file_info(self, path: str) -> pa.fs.FileInfo:
            return pa.fs.FileInfo(path, pa.fs.FileType.File, size=7, mtime_ns=5_000_000_000)

    monkeypatch.setattr("cluster.storage.resolve", lambda uri: (Store(), uri))
    row = {"source": "s3://bucket/a.mp4", "size_bytes": 7, "version": "5123000000"}
    with unchanged_source(row):
        pass
    with pytest.raises(ChangedSourceError), unchanged_source({**row, "version": "4999000000"}):
        pass
