"""Sidecar files are read into clean captions, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.engine.sidecars import Sidecar, TimedCaption, read_sidecar
from tests.support.files import write_files


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


@pytest.mark.parametrize(
    ("name", "data", "caption"),
    [
        ("a.txt", b"\xef\xbb\xbfA cat runs.\r\n", "A cat runs."),
        ("a.json", b'\xef\xbb\xbf{"caption": "A cat runs."}', "A cat runs."),
        ("a.JSON", b'{"caption": "A cat runs."}', "A cat runs."),
        ("a.caption", b"A cat\0 runs.", "A cat runs."),
        ("a.txt", b"<think>They want a caption.</think>A cat runs.", "A cat runs."),
        ("a.json", b'{"caption": "A cat \\ud83d runs."}', "A cat \ufffd runs."),
    ],
)
def test_captions_of_sidecars_are_cleaned(tmp_path: Path, name: str, data: bytes, caption: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert read_sidecar(str(tmp_path / name)) == Sidecar(caption)


@pytest.mark.parametrize("span", ["NaN", "Infinity", "2.5", "9"])
def test_shots_without_a_finite_span_are_refused(tmp_path: Path, span: str) -> None:
    text = '{"caption": "x", "shots": [{"start_s": SPAN, "end_s": 2.5, "caption": "y"}]}'
    (tmp_path / "a.json").write_text(text.replace("SPAN", span))
    with pytest.raises(ValueError, match=r"a\.json: no caption in it: .*shot 1 is from .* finite"):
        read_sidecar(str(tmp_path / "a.json"))


def test_sidecars_that_are_too_large_are_refused(tmp_path: Path) -> None:
    for name, text in (
        ("a.txt", "word " * 20_001),
        ("a.json", '{"caption": "' + "word " * 20_001 + '"}'),
        ("deep.json", "[" * 100_000),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}: no caption in it: .*(100,005 characters|RecursionError)"):
            read_sidecar(str(tmp_path / name))
    with (tmp_path / "b.txt").open("wb") as handle:
        handle.truncate(60 << 20)
    with pytest.raises(ValueError, match=r"b\.txt: has 62,914,560 bytes; at most 16,777,216 are read"):
        read_sidecar(str(tmp_path / "b.txt"))


def test_reasoning_that_is_cut_off_is_no_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<think>They want")
    with pytest.raises(ValueError, match=r"a\.txt: no caption in it: .*its reasoning has no end"):
        read_sidecar(str(tmp_path / "a.txt"))


def test_json_sidecars_state_a_licence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"caption": "x", "license": " cc-by-4.0\\n"}')
    (tmp_path / "b.json").write_text('{"license": "cc0-1.0"}')
    assert read_sidecar(str(tmp_path / "a.json")) == Sidecar("x", (), "cc-by-4.0")
    assert read_sidecar(str(tmp_path / "b.json")) == Sidecar("", (), "cc0-1.0")
    for text in ("3", '""', '" "', f'"{"x" * 201}"'):
        (tmp_path / "c.json").write_text(f'{{"caption": "x", "license": {text}}}')
        with pytest.raises(ValueError, match=r"c\.json: .*license is .*1 to 200 characters"):
            read_sidecar(str(tmp_path / "c.json"))
