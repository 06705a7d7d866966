"""Patterns find files as shells and Python's glob do, each file once, whatever stands in the folders."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from cluster import listing, storage, stores
from cluster.config import ConfigError


def touch(folder: Path, *names: str) -> None:
    """Write files whose content is their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def found(folder: Path, pattern: str) -> set[str]:
    """Return the paths below a folder that a pattern below it finds."""
    return {str(Path(entry.uri).relative_to(folder)) for entry in listing.glob(str(folder / pattern))}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", {"a.mp4", "x(1)+.mp4"}),
        ("**/*.mp4", {"a.mp4", "d/b.mp4", "d/e/c.mp4", "x(1)+.mp4"}),
        ("d/*.{mp4,mov}", {"d/b.mp4", "d/b.mov"}),
        ("d/?.mp4", {"d/b.mp4"}),
        ("a.mp4", {"a.mp4"}),
        ("none.mp4", set()),
        ("x(1)+.mp4", {"x(1)+.mp4"}),
        ("d", set()),
    ],
)
def test_glob_finds_matching_files(tmp_path: Path, pattern: str, expected: set[str]) -> None:
    touch(tmp_path, "a.mp4", "a.txt", "d/b.mp4", "d/b.mov", "d/e/c.mp4", "x(1)+.mp4")
    assert found(tmp_path, pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**", {"a1.mp4", "a2.mp4", "b1.mp4", "d/a1.mp4", "d/e/a3.mov", "s [1]/a1.mp4"}),
        ("[ab]1.mp4", {"a1.mp4", "b1.mp4"}),
        ("[!a]*.mp4", {"b1.mp4"}),
        ("a[0-9].mp4", {"a1.mp4", "a2.mp4"}),
        ("{.,d,d/e}/a*", {"a1.mp4", "a2.mp4", "d/a1.mp4", "d/e/a3.mov"}),
        ("{a{1,2},b1}.mp4", {"a1.mp4", "a2.mp4", "b1.mp4"}),
        ("d/**/*.mov", {"d/e/a3.mov"}),
        ("**/e/**", {"d/e/a3.mov"}),
        ("*/*.mp4", {"d/a1.mp4", "s [1]/a1.mp4"}),
        ("s [1]/*.mp4", {"s [1]/a1.mp4"}),
        ("s [[]1]/*.mp4", {"s [1]/a1.mp4"}),
        ("**/.*", {".hidden.mp4", "d/.part-x"}),
        (".trash/*.mp4", {".trash/a9.mp4"}),
        ("**/.trash/**/*.mp4", {".trash/a9.mp4", "d/.trash/f/a8.mp4"}),
        ("?hidden.mp4", set()),
    ],
)
def test_glob_and_matches_agree(tmp_path: Path, pattern: str, expected: set[str]) -> None:
    files = ("a1.mp4", "a2.mp4", "b1.mp4", "d/a1.mp4", "d/e/a3.mov", "s [1]/a1.mp4")
    hidden = (".hidden.mp4", "d/.part-x", ".trash/a9.mp4", "d/.trash/f/a8.mp4")
    touch(tmp_path, *files, *hidden)
    assert found(tmp_path, pattern) == expected
    assert {
        file for file in (*files, *hidden) if listing.matches(f"{tmp_path}/{pattern}", f"{tmp_path}/{file}")
    } == expected


def test_a_loop_of_links_is_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mp4", "b/y.mp4")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b" / "up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    assert found(tmp_path, "**/*.mp4") == {"a/x.mp4", "b/y.mp4"}


def test_a_file_behind_links_is_found_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/z/x.mp4", "out/o.mp4")
    (tmp_path / "in" / "a.mp4").symlink_to("z/x.mp4")
    (tmp_path / "in" / "b").symlink_to("z")
    (tmp_path / "in" / "c").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "d").symlink_to(tmp_path / "out")
    assert found(tmp_path, "in/**/*.mp4") == {"in/z/x.mp4", "in/c/o.mp4"}
    assert found(tmp_path, "in/b/*.mp4") == {"in/b/x.mp4"}


def test_files_left_out_are_counted_in_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.mp4", "lost+found/b.mp4", "c/lost+found/d.mp4")
    for name in (b"caf\xe9.mp4", b"caf\xe9.txt", b"\xff.mp4"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x")
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "pipes.mp4").symlink_to("pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    scandir = os.scandir

    def refusing(folder: str) -> os._ScandirIterator[str]:
        if folder.endswith("lost+found"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with caplog.at_level("WARNING", logger="worldloom"):
        assert found(tmp_path, "**/*.mp4") == {"a.mp4"}
    messages = sorted(record.getMessage().removeprefix(f"{tmp_path}/**/*.mp4: ") for record in caplog.records)
    assert messages == [
        rf"left out {tmp_path}/\xff.mp4 and 1 more: the name is not UTF-8; rename it to use it",
        f"left out {tmp_path}/c/lost+found and 1 more: it may not be read by this user",
        f"left out {tmp_path}/gone.mp4: a link without a target",
        f"left out {tmp_path}/pipe.mp4 and 1 more: it is a pipe, a socket or a device, and not a file",
    ]


def test_a_folder_that_fails_ends_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(folder: str) -> os._ScandirIterator[str]:
        raise OSError(5, "Input/output error", folder)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(ConfigError, match="cannot be listed: Input/output error"):
        listing.glob(f"{tmp_path}/*.mp4")


def test_folders_that_cannot_match_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/b/c/x.mp4", "a/y.mp4", ".h/z.mp4")
    opened: list[str] = []
    scandir = os.scandir

    def recording(folder: str) -> os._ScandirIterator[str]:
        opened.append(str(Path(folder).relative_to(tmp_path)))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", recording)
    assert found(tmp_path, "*/*.mp4") == {"a/y.mp4"}
    assert opened == [".", "a"]


def test_objects_of_a_store_are_found_by_the_same_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "bucket/a.mp4", "bucket/d/b.mp4", "bucket/.h/c.mp4", "bucket/d/.e.mp4")
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(stores, "filesystem", lambda scheme, bucket: store)
    uris = {
        pattern: [entry.uri for entry in listing.glob(f"s3://{pattern}")]
        for pattern in ("bucket/**/*.mp4", "bucket/*.mp4", "bucket/a.mp4", "bucket/none/*.mp4")
    }
    assert list(uris.values()) == [
        ["s3://bucket/a.mp4", "s3://bucket/d/b.mp4"],
        ["s3://bucket/a.mp4"],
        ["s3://bucket/a.mp4"],
        [],
    ]
    found, missing = listing.look_up(["s3://bucket/d/b.mp4", "s3://bucket/x.mp4"])
    assert found is not None
    assert found.size_bytes == len("bucket/d/b.mp4")
    assert missing is None
    assert sorted(entry.uri for entry in listing.files_beside("s3://bucket/d", (".mp4",))) == [
        "s3://bucket/d/.e.mp4",
        "s3://bucket/d/b.mp4",
    ]


def test_version_is_that_of_pyarrow(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (entry,) = listing.glob(str(tmp_path / "*"))
    assert [entry] == storage.list_files(str(tmp_path))
