"""Source files: listing, identity, and the sidecar files that hold captions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.config import ConfigError
from pipelines.engine.sources import SourceSettings, list_sources
from tests.support.files import write_files


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


def test_a_file_behind_a_link_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write_files(tmp_path / "real", a__mp4="1")
    (tmp_path / "link").symlink_to("real")
    settings = (*videos(tmp_path / "link"), *videos(tmp_path / "real"))
    assert [row["source"] for row in list_sources(settings).to_pylist()] == [str(tmp_path / "real" / "a.mp4")]
    with pytest.raises(ConfigError, match="as a video and as an image"):
        list_sources((*videos(tmp_path / "link"), SourceSettings(images=str(tmp_path / "real" / "*"))))


def test_sidecars_are_found_whatever_case_their_suffix_has(tmp_path: Path) -> None:
    write_files(tmp_path, a__mp4="1", a__TXT="x", b__mp4="1", b__caption="x", b__json="{}", c__mp4="1", c__JSON="{}")
    write_files(tmp_path, d__mp4="1", d__txt="x", d__TXT="y", e__mp4="1", e__txt__bak="x")
    names = [
        row["sidecar"] and Path(row["sidecar"]).name for row in list_sources(videos(tmp_path, "sidecar")).to_pylist()
    ]
    assert names == ["a.TXT", "b.caption", "c.JSON", "d.txt", None]


@pytest.mark.parametrize(("sidecars", "level"), [((), "WARNING"), (("a__txt",), "INFO")])
def test_the_number_of_sidecars_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sidecars: tuple[str, ...], level: str
) -> None:
    write_files(tmp_path, a__mp4="1", b__mp4="2", **dict.fromkeys(sidecars, "x"))
    with caplog.at_level("INFO", logger="worldloom"):
        list_sources(videos(tmp_path))
        assert not caplog.records
        list_sources(videos(tmp_path, "sidecar"))
    (record,) = caplog.records
    assert record.levelname == level
    assert f"sidecars for {len(sidecars)} of 2 files" in record.getMessage()
