"""Files of prompts: all formats give the same samples, and a bad row is named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config import ConfigError
from pipelines.commands._prompt_file import read_prompts

ROWS = [
    {"prompt": 'a "red", round ball', "negative": "blur", "seed": 3, "seconds": 1.5, "size": "80x48"},
    {"prompt": "猫", "negative": None, "seed": None, "seconds": 0, "size": None},
]
DEFAULTS = {"steps": 2, "size": "64x64", "seed": 7}
CSV = '\ufeffPrompt, negative,seed,seconds,size\n"a ""red"", round ball",blur,3,1.5,80x48\n\n猫,,,0,\n'


def write_rows(path: Path) -> str:
    if path.suffix == ".csv":
        path.write_text(CSV)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    else:
        table = pa.Table.from_pylist(ROWS)
        # pandas has a missing integer as NaN, among floats.
        seeds = pa.array([3.0, float("nan")], from_pandas=False)
        pq.write_table(table.set_column(2, "seed", seeds), path)
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_tables_give_the_samples_of_their_rows(tmp_path: Path, suffix: str) -> None:
    ball, cat = (row.settings for row in read_prompts(write_rows(tmp_path / f"p.{suffix}"), DEFAULTS))
    assert (ball.prompt, ball.negative, ball.seed, ball.seconds, ball.size) == tuple(ROWS[0].values())
    assert (cat.prompt, cat.negative, cat.seed, cat.seconds, cat.size) == ("猫", None, 7, 0, "64x64")
    assert ball.steps == cat.steps == 2


def test_lines_of_text_are_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("a, b\r\n\n  c \u2028d\n".encode())
    rows = read_prompts(str(tmp_path / "p.txt"), {})
    assert [row.settings.prompt for row in rows] == ["a, b", "c \u2028d"]
    assert rows[1].position == f"{tmp_path / 'p.txt'} line 3"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "prompt,seed\na,1\nb,x\n", 'p.csv line 3: seed: .*integer.*"x"'),
        ("p.csv", "prompt,seed\n,1\n", "p.csv line 2: no prompt"),
        ("p.csv", "prompt,sed\na,1\n", "p.csv: unknown column 'sed'; did you mean 'seed'"),
        ("p.csv", "seed\n1\n", "p.csv: has no column prompt; it has seed"),
        ("p.csv", "prompt,seed\na, b,1\n", "p.csv line 2: 3 cells, but the header names 2 columns; quote"),
        ("p.csv", "prompt\n", "p.csv: has no prompts"),
        ("p.jsonl", '{"prompt": "a", "size": "7"}\n', "p.jsonl line 1: size: size '7' is not WIDTHxHEIGHT"),
        ("p.jsonl", "{}\n", "p.jsonl line 1: has no column prompt"),
        ("p.jsonl", '{"prompt": 3}\n', "p.jsonl line 1: prompt: .*string"),
        ("p.jsonl", '"a"\n', "p.jsonl line 1: must be an object"),
        ("p.jsonl", "{\n", "p.jsonl line 1: is not JSON"),
        ("p.parquet", "no table", "p.parquet: cannot be read as a file of prompts"),
        ("p.doc", "a\n", "a file of prompts ends in .txt, .csv, .jsonl or .parquet"),
        ("p.txt", None, "p.txt: no such file"),
    ],
)
def test_bad_files_and_rows_are_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prompts(str(tmp_path / name), {})


def test_the_first_bad_rows_are_listed(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,seed\n" + "a,-1\n" * 5)
    with pytest.raises(ConfigError, match=r"line 2: seed.*\n.*line 3: seed.*\n.*line 4: seed.*\nand 2 more rows"):
        read_prompts(str(tmp_path / "p.csv"), {})
