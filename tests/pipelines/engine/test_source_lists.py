"""Lists of sources: text, CSV and Parquet, with errors that name list and line."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config import ConfigError
from pipelines.engine.sources import SourceSettings, list_sources
from tests.support.files import write_files


def listed(path: Path) -> list[tuple[str, str | None]]:
    """Return the names of the sources of a list, with their captions there."""
    rows = list_sources((SourceSettings(videos=str(path)),)).to_pylist()
    return [(Path(row["source"]).name, row["listed_caption"]) for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    write_files(tmp_path / "in", a__mp4="1", b__mp4="2")
    return tmp_path


def test_text_has_a_path_per_line(folder: Path) -> None:
    (folder / "list.txt").write_bytes(f"\ufeffin/b.mp4\r\n\n{folder}/in/a.mp4\nin/b.mp4\n".encode())
    assert listed(folder / "list.txt") == [("a.mp4", None), ("b.mp4", None)]


@pytest.mark.parametrize("column", ["source", "path", "URL"])
def test_csv_has_a_column_of_paths_and_captions(folder: Path, column: str) -> None:
    text = f'id,{column},caption\n1,in/b.mp4,"<think>x</think>A ball,\n red."\n2,in/a.mp4,\n'
    (folder / "list.csv").write_text(text)
    assert listed(folder / "list.csv") == [("a.mp4", None), ("b.mp4", "A ball, red.")]


def test_parquet_has_the_same_columns(folder: Path) -> None:
    pq.write_table(pa.table({"path": ["in/b.mp4", "in/a.mp4"], "caption": ["A ball.", None]}), folder / "list.parquet")
    assert listed(folder / "list.parquet") == [("a.mp4", None), ("b.mp4", "A ball.")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "path,caption\nin/a.mp4,x\n,y\n", "list.csv line 3: no path"),
        ("list.csv", 'path,caption\nin/a.mp4,"x\ny"\nin/c.mp4,z\n', "list.csv line 4: .*in/c.mp4: no such file"),
        ("list.csv", "path,caption\nin/a.mp4\n", "list.csv line 2: 1 cells, but the header names 2"),
        ("list.csv", "file,caption\nin/a.mp4,x\n", "list.csv: no column source, path or url; it has file, caption"),
        ("list.csv", "path,caption\nin/a.mp4,x\nin/a.mp4,y\n", "list.csv line 3: .*another caption than in .*line 2"),
        ("list.csv", "path,caption\nin/a.mp4,<think>x\n", "list.csv line 2: no caption: truncated answer"),
        ("list.csv", "", "list.csv: no column"),
        ("list.txt", "in/a.mp4\nftp://host/b.mp4\n", "list.txt line 2: ftp://host/b.mp4: cannot open"),
        ("list.txt", "in/a.mp4\n" + "in/x.mp4\n" * 5, "list.txt line 2: (.|\n)*and 2 more rows"),
        ("list.txt", "\n", "list.txt: the list names no file"),
        ("list.parquet", "PAR", "list.parquet: cannot be read as a list"),
    ],
)
def test_a_bad_list_is_named_with_its_line(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        listed(folder / name)


def test_a_list_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv: no such list"):
        listed(folder / "none.csv")


def test_uids_depend_on_a_row_and_not_on_the_others(folder: Path) -> None:
    def uids(text: str) -> dict[str, str]:
        (folder / "list.csv").write_text(text)
        rows = list_sources((SourceSettings(videos=str(folder / "list.csv")),)).to_pylist()
        return {Path(row["source"]).name: row["uid"] for row in rows}

    one = uids("path,caption\nin/a.mp4,x\n")
    assert uids("path,caption\nin/b.mp4,y\nin/a.mp4,x\n")["a.mp4"] == one["a.mp4"]
    assert uids("path,caption\nin/a.mp4,z\n")["a.mp4"] != one["a.mp4"]
    (row,) = list_sources((SourceSettings(videos=str(folder / "in" / "a.mp4")),)).to_pylist()
    assert uids("path\nin/a.mp4\n") == {"a.mp4": row["uid"]}
