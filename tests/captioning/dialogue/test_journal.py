"""The journal of answers: torn lines, kills at any time, pruning, removal of records, and folders of tasks."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.dialogue import journal
from captioning.dialogue.journal import (
    Journal,
    JournalError,
    StoredAnswers,
    assign,
    filter_records,
    prune,
    read,
    task_folder,
)
from captioning.engine import Answer
from cluster import storage

TEXTS = st.text(max_size=20)
ANSWERS = st.builds(
    Answer,
    key=st.integers(0, 30).map("k{}".format),
    uid=st.integers(0, 5).map("u{}".format),
    text=TEXTS,
    truncated=st.booleans(),
    tokens_in=st.integers(0, 99),
    tokens_out=st.integers(0, 99),
    cost_usd=st.integers(0, 8).map(lambda n: n / 8),
    error=st.none() | TEXTS,
)


class Killed(BaseException):
    """Stands for a kill: no handler of errors catches it."""


def write_answers(folder: Path | str, *answers: Answer, engine: str = "e") -> None:
    """Write answers to one file of a journal."""
    writer = Journal(str(folder))
    for answer in answers:
        writer.add(engine, answer)
    writer.close()


def files_in(folder: Path) -> list[Path]:
    """Return the files and folders in a folder, or none if it does not exist."""
    return sorted(folder.iterdir()) if folder.exists() else []


@contextlib.contextmanager
def killed_after(n_changes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kill the block when it changes a file of the storage after this many changes."""
    left = iter(range(n_changes))

    def wrap(name: str) -> None:
        original = getattr(storage, name)

        def change(*arguments: object) -> None:
            if next(left, None) is None:
                raise Killed
            original(*arguments)

        monkeypatch.setattr(storage, name, change)

    wrap("write_bytes")
    wrap("remove")
    with contextlib.suppress(Killed):
        yield
    monkeypatch.undo()


# Writing and reading


@pytest.mark.slow
@given(
    st.lists(st.lists(ANSWERS, max_size=6, unique_by=lambda answer: answer.key), max_size=4),
    st.sets(st.integers(0, 5).map("u{}".format)),
)
def test_pruning_keeps_pending_answers_and_all_costs(
    tmp_path_factory: pytest.TempPathFactory, writers: list[list[Answer]], pending: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("journal") / "answers"
    for answers in writers:
        write_answers(folder, *answers)
    added = [answer for answers in writers for answer in answers]
    stored = read(str(folder))
    assert set(stored.answers) == {answer.key for answer in added if answer.error is None}
    assert all(stored.answers[key] in added for key in stored.answers)
    assert sum(stored.spent_usd.values()) == sum(answer.cost_usd for answer in added)
    prune(str(folder), pending)
    assert len(files_in(folder)) <= 1
    pruned = read(str(folder))
    assert {answer.uid for answer in pruned.answers.values()} <= pending
    assert sum(pruned.spent_usd.values()) == sum(stored.spent_usd.values())
    assert set(pruned.answers) == {answer.key for answer in added if answer.error is None and answer.uid in pending}
    prune(str(folder), pending)
    assert read(str(folder)) == pruned


def test_missing_folder_is_an_empty_journal(tmp_path: Path) -> None:
    assert read(str(tmp_path / "none")) == StoredAnswers()
    prune(str(tmp_path / "none"), {"u"})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_torn_last_line_is_ignored_and_pruned(tmp_path: Path, cut: int) -> None:
    folder = tmp_path / "answers"
    write_answers(folder, Answer("k1", "u1", "one"), Answer("k2", "u2", "two"))
    (file,) = files_in(folder)
    file.write_bytes(file.read_bytes()[:-cut])
    assert set(read(str(folder)).answers) == {"k1"}
    prune(str(folder), {"u1", "u2"})
    assert b"k2" not in b"".join(path.read_bytes() for path in files_in(folder))
    assert set(read(str(folder)).answers) == {"k1"}


@pytest.mark.parametrize("line", ["no json", "{}", "[1]", '{"key": 5}', "[" * 100_000])
def test_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "answers"
    write_answers(folder, Answer("k1", "u1", "one"))
    (file,) = files_in(folder)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(JournalError, match=rf"{file.name}:2: is not the record of an answer"):
        read(str(folder))


def test_costs_are_counted_per_engine(tmp_path: Path) -> None:
    write_answers(tmp_path, Answer("k1", "u1", cost_usd=0.5), engine="see")
    write_answers(tmp_path, Answer("k2", "u1", cost_usd=0.25), Answer("k3", "u2", cost_usd=0.25), engine="write")
    assert read(str(tmp_path)).spent_usd == {"see": 0.5, "write": 0.5}
    prune(str(tmp_path), {"u1"})
    assert read(str(tmp_path)).spent_usd == {"see": 0.5, "write": 0.5}


def test_object_store_gets_batches_and_the_rest_on_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(storage, "resolve", lambda uri: (storage.LOCAL, uri))
    folder = tmp_path / "answers"
    folder.mkdir()
    writer = Journal(str(folder))
    for i in range(2 * journal.BATCH_SIZE + 3):
        writer.add("e", Answer(f"k{i}", f"u{i}", "text"))
    assert len(files_in(folder)) == 2
    writer.flush()
    assert len(files_in(folder)) == 3
    writer.close()
    monkeypatch.undo()
    assert len(read(str(folder)).answers) == 2 * journal.BATCH_SIZE + 3


@pytest.mark.slow
def test_killed_process_has_every_added_answer_on_disk(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from captioning.engine import Answer\n"
        "from captioning.dialogue.journal import Journal\n"
        "writer = Journal(sys.argv[1])\n"
        "for i in range(100): writer.add('e', Answer(f'k{i}', f'u{i}', 'text'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "answers")], check=False, timeout=60)
    assert done.returncode == -9
    assert len(read(str(tmp_path / "answers")).answers) == 100


def test_records_are_plain_json_lines(tmp_path: Path) -> None:
    text = "line\u2028separator\nand \ud800 half a character"
    write_answers(tmp_path, Answer("k1", "u1", text, tokens_in=3, cost_usd=0.5))
    (file,) = files_in(tmp_path)
    assert file.name.endswith(journal.SUFFIX)
    (record,) = [json.loads(line) for line in file.read_bytes().splitlines()]
    expected = {"key": "k1", "uid": "u1", "tokens_in": 3, "cost_usd": 0.5, "engine": "e"}
    assert {name: record[name] for name in expected} == expected
    assert read(str(tmp_path)).answers["k1"].text == text


# Rewriting


@pytest.mark.parametrize("n_changes", range(8))
def test_killed_pruning_counts_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_changes: int) -> None:
    folder = tmp_path / "answers"
    for i in range(3):
        write_answers(folder, Answer(f"k{i}", "u1", "keep", cost_usd=1.0), Answer(f"d{i}", "u2", "drop", cost_usd=1.0))
    with killed_after(n_changes, monkeypatch):
        prune(str(folder), {"u1"})
    for _ in range(2):
        assert read(str(folder)).spent_usd == {"e": 6.0}
        assert {key for key in read(str(folder)).answers if key.startswith("k")} == {"k0", "k1", "k2"}
        prune(str(folder), {"u1"})
    assert set(read(str(folder)).answers) == {"k0", "k1", "k2"}
    assert b"drop" not in b"".join(path.read_bytes() for path in files_in(folder))


def test_rejected_record_leaves_no_bytes(tmp_path: Path) -> None:
    write_answers(tmp_path, Answer("k1", "uid-of-the-clip", "a secret"), Answer("k2", "u2", "else", cost_usd=0.5))
    assert filter_records(str(tmp_path), lambda record: record["uid"] != "uid-of-the-clip") == 1
    (file,) = files_in(tmp_path)
    assert b"uid-of-the-clip" not in file.read_bytes()
    assert b"secret" not in file.read_bytes()
    assert filter_records(str(tmp_path), lambda record: True) == 0
    assert files_in(tmp_path) == [file]


# Folders of tasks


def test_answers_are_assigned_to_the_folders_of_tasks(tmp_path: Path) -> None:
    folder = str(tmp_path / "answers")
    write_answers(
        folder, *(Answer(f"k{i}", f"u{i}", cost_usd=0.25, error="Timeout" if i == 3 else None) for i in range(6))
    )
    assert len(read(folder, include_errors=True).answers) == 6
    tasks = [["u0", "u1"], ["u3", "u2"]]
    assign(folder, tasks)
    by_task = [read(task_folder(folder, uids[::-1]), include_errors=True) for uids in tasks]
    assert [set(stored.answers) for stored in by_task] == [{"k0", "k1"}, {"k2"}]
    assert read(folder).spent_usd == {"e": 1.5}, "the cost of errors and of clips in no task is kept"
    # With other tasks, and then as one file again.
    write_answers(task_folder(folder, ["u0", "u1"]), Answer("k9", "u1"))
    assign(folder, [["u0", "u2"], ["u1"]])
    assert set(read(task_folder(folder, ["u0", "u2"])).answers) == {"k0", "k2"}
    assert set(read(task_folder(folder, ["u1"])).answers) == {"k1", "k9"}
    assert filter_records(folder, lambda record: record["uid"] != "u1") == 2
    assert set(read(folder).answers) == {"k0", "k2"}
    assert read(folder).spent_usd == {"e": 1.5}
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert files == [path for path in Path(folder).iterdir() if path.is_file()]


@pytest.mark.parametrize("n_changes", range(8))
def test_killed_assignment_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_changes: int) -> None:
    folder = str(tmp_path / "answers")
    for i in range(3):
        write_answers(folder, Answer(f"k{i}", f"u{i}", cost_usd=0.25))
    tasks = [["u0"], ["u1"], ["u2"]]
    with killed_after(n_changes, monkeypatch):
        assign(folder, tasks)
    assert set(read(folder).answers) == {"k0", "k1", "k2"}
    assign(folder, tasks)
    assert [set(read(task_folder(folder, uids)).answers) for uids in tasks] == [{"k0"}, {"k1"}, {"k2"}]
    assert read(folder).spent_usd["e"] >= 0.75
