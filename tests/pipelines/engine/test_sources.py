"""Source files: listing, identity, and the sidecar files that hold captions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.config import ConfigError
from pipelines.engine.sources import Sidecar, SourceSettings, TimedCaption, list_sources, read_sidecar


def write_files(folder: Path, **files: str) -> None:
    """Write text files; `__` in a name stands for the dot of its suffix."""
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def videos(folder: Path, captions: str = "none") -> tuple[SourceSettings, ...]:
    return (SourceSettings(videos=str(folder / "*.mp4"), captions=captions),)  # type: ignore[arg-type]


def test_files_are_listed_once_with_kind_and_sidecar(tmp_path: Path) -> None:
    write_files(tmp_path, a__mp4="1", a__txt="caption", b__mp4="2", b__json='{"caption": "x"}', c__mp4="3", d__png="4")
    settings = (
        SourceSettings(videos=str(tmp_path / "*.mp4"), captions="sidecar"),
        SourceSettings(videos=str(tmp_path / "a.mp4"), captions="sidecar"),
        SourceSettings(images=str(tmp_path / "*.png")),
    )
    rows = list_sources(settings).to_pylist()
    assert [Path(row["source"]).name for row in rows] == ["a.mp4", "b.mp4", "c.mp4", "d.png"]
    assert [row["kind"] for row in rows] == ["video"] * 3 + ["image"]
    assert [row["sidecar"] and Path(row["sidecar"]).name for row in rows] == ["a.txt", "b.json", None, None]
    assert len({row["uid"] for row in rows}) == 4


def test_a_text_sidecar_is_preferred_to_json(tmp_path: Path) -> None:
    write_files(tmp_path, a__mp4="1", a__txt="text", a__json='{"caption": "json"}')
    (row,) = list_sources(videos(tmp_path, "sidecar")).to_pylist()
    assert row["sidecar"].endswith("a.txt")


@pytest.mark.parametrize("change", ["content", "time", "sidecar"])
def test_the_uid_changes_with_the_file_and_its_sidecar(tmp_path: Path, change: str) -> None:
    write_files(tmp_path, a__mp4="1", a__txt="caption", b__mp4="2")
    before = {row["source"]: row["uid"] for row in list_sources(videos(tmp_path, "sidecar")).to_pylist()}
    if change == "content":
        write_files(tmp_path, a__mp4="22")
    elif change == "time":
        os.utime(tmp_path / "a.mp4", ns=(1, 1))
    else:
        write_files(tmp_path, a__txt="another")
    after = {row["source"]: row["uid"] for row in list_sources(videos(tmp_path, "sidecar")).to_pylist()}
    assert {Path(source).name for source in before if before[source] != after[source]} == {"a.mp4"}


def test_errors_name_the_pattern_or_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file matches videos"):
        list_sources(videos(tmp_path))
    write_files(tmp_path, a__mp4="1")
    with pytest.raises(ConfigError, match=r"a\.mp4 is named as a video and as an image"):
        list_sources((*videos(tmp_path), SourceSettings(images=str(tmp_path / "*"))))
    with pytest.raises(ValueError, match="either videos or images"):
        SourceSettings()


def test_sidecars_are_read_or_refused_by_file_name(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        a__txt=" a  red\nball ",
        b__json='{"caption": "x y"}',
        c__json='{"text": "x"}',
        d__json="{",
        e__json='{"caption": 3}',
    )
    (tmp_path / "f.txt").write_bytes(b"\xff\xfe\x00bad")
    (tmp_path / "g.json").write_text('{"caption": "all", "shots": [{"start_s": 0, "end_s": 1.5, "caption": "one"}]}')
    assert read_sidecar(str(tmp_path / "a.txt")) == Sidecar("a red ball")
    assert read_sidecar(str(tmp_path / "b.json")) == Sidecar("x y")
    assert read_sidecar(str(tmp_path / "g.json")) == Sidecar("all", (TimedCaption(0.0, 1.5, "one"),))
    for name in ("c.json", "d.json", "e.json", "f.txt"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_sidecar(str(tmp_path / name))
