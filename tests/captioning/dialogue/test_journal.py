"""The journal of answers: whole or torn, killed anywhere, pruned and forgotten."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.dialogue import journal
from captioning.dialogue.journal import Journal, JournalError, prune, read, filter_records
from captioning.engine import Answer
from cluster import storage

text = st.text(max_size=20)
answers = st.builds(
    Answer,
    key=st.integers(0, 30).map("k{}".format),
    uid=st.integers(0, 5).map("u{}".format),
    text=text,
    truncated=st.booleans(),
    tokens_in=st.integers(0, 99),
    tokens_out=st.integers(0, 99),
    cost_usd=st.integers(0, 8).map(lambda n: n / 8),
    error=st.none() | text,
)


def written(folder: Path, *items: Answer, engine: str = "e") -> None:
    book = Journal(str(folder))
    for item in items:
        book.add(engine, item)
    book.close()


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


@given(
    st.lists(st.lists(answers, max_size=6, unique_by=lambda a: a.key), max_size=4),
    st.sets(st.integers(0, 5).map("u{}".format)),
)
def test_what_was_added_is_read_and_pruning_keeps_the_pending_and_the_cost(
    tmp_path_factory: pytest.TempPathFactory, writers: list[list[Answer]], pending: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("journal") / "answers"
    for items in writers:
        written(folder, *items)
    every = [item for items in writers for item in items]
    kept = read(str(folder))
    assert set(kept.answers) == {item.key for item in every if item.error is None}
    assert all(kept.answers[key] in every for key in kept.answers)
    assert sum(kept.spent_usd.values()) == sum(item.cost_usd for item in every)
    prune(str(folder), pending)
    assert len(files(folder)) <= 1
    pruned = read(str(folder))
    assert {item.uid for item in pruned.answers.values()} <= pending
    assert sum(pruned.spent_usd.values()) == sum(kept.spent_usd.values())
    wanted = {item.key for item in every if item.error is None and item.uid in pending}
    assert set(pruned.answers) == wanted
    prune(str(folder), pending)
    assert read(str(folder)) == pruned


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert read(str(tmp_path / "none")) == journal.StoredAnswers()
    prune(str(tmp_path / "none"), {"u"})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_ignored_and_gone_after_pruning(tmp_path: Path, cut: int) -> None:
    folder = tmp_path / "answers"
    written(folder, Answer("k1", "u1", "one"), Answer("k2", "u2", "two"))
    (file,) = files(folder)
    file.write_bytes(file.read_bytes()[:-cut])
    assert set(read(str(folder)).answers) == {"k1"}
    prune(str(folder), {"u1", "u2"})
    assert b"k2" not in b"".join(path.read_bytes() for path in files(folder))
    assert set(read(str(folder)).answers) == {"k1"}


@pytest.mark.parametrize("line", ["no json", "{}", "[1]", '{"key": 5}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "answers"
    written(folder, Answer("k1", "u1", "one"))
    (file,) = files(folder)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(JournalError, match=rf"{file.name}:2: is no record"):
        read(str(folder))


def test_answers_of_two_engines_are_accounted_apart(tmp_path: Path) -> None:
    written(tmp_path, Answer("k1", "u1", cost_usd=0.5), engine="see")
    written(tmp_path, Answer("k2", "u1", cost_usd=0.25), Answer("k3", "u2", cost_usd=0.25), engine="write")
    assert read(str(tmp_path)).spent_usd == {"see": 0.5, "write": 0.5}
    prune(str(tmp_path), {"u1"})
    assert read(str(tmp_path)).spent_usd == {"see": 0.5, "write": 0.5}


@pytest.mark.parametrize("at", range(8))
def test_a_rewriting_that_is_killed_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder = tmp_path / "answers"
    for i in range(3):
        written(folder, Answer(f"k{i}", "u1", "keep", cost_usd=1.0), Answer(f"d{i}", "u2", "drop", cost_usd=1.0))
    moments = iter(range(100))
    remove = storage.remove
    write = storage.write_bytes

    class Killed(BaseException):
        pass

    def dying_remove(uri: str) -> None:
        if next(moments) == at:
            raise Killed
        remove(uri)

    def dying_write(uri: str, data: bytes) -> None:
        if next(moments) == at:
            raise Killed
        write(uri, data)

    monkeypatch.setattr(storage, "remove", dying_remove)
    monkeypatch.setattr(storage, "write_bytes", dying_write)
    with contextlib.suppress(Killed):
        prune(str(folder), {"u1"})
    for _ in range(2):
        assert read(str(folder)).spent_usd == {"e": 6.0}
        assert {key for key in read(str(folder)).answers if key.startswith("k")} == {"k0", "k1", "k2"}
        monkeypatch.undo()
        prune(str(folder), {"u1"})
    assert set(read(str(folder)).answers) == {"k0", "k1", "k2"}
    assert b"drop" not in b"".join(path.read_bytes() for path in files(folder))


def test_what_is_forgotten_is_in_no_byte(tmp_path: Path) -> None:
    written(tmp_path, Answer("k1", "uid-of-the-clip", "a secret"), Answer("k2", "u2", "else", cost_usd=0.5))
    assert filter_records(str(tmp_path), lambda record: record["uid"] != "uid-of-the-clip") == 1
    (file,) = files(tmp_path)
    assert b"uid-of-the-clip" not in file.read_bytes()
    assert b"secret" not in file.read_bytes()
    assert filter_records(str(tmp_path), lambda record: True) == 0
    assert files(tmp_path) == [file]


def test_an_object_store_gets_batches_and_the_rest_when_a_round_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(storage, "resolve", lambda uri: (storage._filesystem(""), uri))
    (tmp_path / "answers").mkdir()
    book = Journal(str(tmp_path / "answers"))
    for i in range(2 * journal.BATCH + 3):
        book.add("e", Answer(f"k{i}", f"u{i}", "text"))
    assert len(files(tmp_path / "answers")) == 2
    book.flush()
    assert len(files(tmp_path / "answers")) == 3
    book.close()
    monkeypatch.undo()
    assert len(read(str(tmp_path / "answers")).answers) == 2 * journal.BATCH + 3


def test_a_process_that_is_killed_has_every_answer_it_added_on_disk(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from captioning.engine import Answer; from captioning.dialogue.journal import Journal\n"
        "book = Journal(sys.argv[1])\n"
        "for i in range(100): book.add('e', Answer(f'k{i}', f'u{i}', 'text'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "answers")], check=False, timeout=60)
    assert done.returncode == -9
    assert len(read(str(tmp_path / "answers")).answers) == 100


def test_records_are_plain_json_lines(tmp_path: Path) -> None:
    written(tmp_path, Answer("k1", "u1", "line\u2028separator\nand \ud800 half a character", tokens_in=3, cost_usd=0.5))
    (file,) = files(tmp_path)
    assert file.name.endswith(journal.SUFFIX)
    (record,) = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert (record["key"], record["uid"], record["tokens_in"], record["cost_usd"], record["engine"]) == (
        "k1",
        "u1",
        3,
        0.5,
        "e",
    )
    assert read(str(tmp_path)).answers["k1"].text == "line\u2028separator\nand \ud800 half a character"


def test_answers_are_dealt_to_the_shelves_of_those_asked_about_together(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    written(folder, *(Answer(f"k{i}", f"u{i}", cost_usd=0.25, error="Timeout" if i == 3 else None) for i in range(6)))
    assert len(read(str(folder), errors=True).answers) == 6
    together = [["u0", "u1"], ["u3", "u2"]]
    journal.assign(str(folder), together)
    shelves = [read(journal.task_folder(str(folder), reversed(uids)), errors=True) for uids in together]
    assert [set(task_folder.answers) for task_folder in shelves] == [{"k0", "k1"}, {"k2"}]
    assert read(str(folder)).spent_usd == {"e": 1.5}, "of other clips and of errors the cost is left"
    # On whole other shelves, and as one again.
    written(Path(journal.task_folder(str(folder), ["u0", "u1"])), Answer("k9", "u1"))
    journal.assign(str(folder), [["u0", "u2"], ["u1"]])
    assert set(read(journal.task_folder(str(folder), ["u0", "u2"])).answers) == {"k0", "k2"}
    assert set(read(journal.task_folder(str(folder), ["u1"])).answers) == {"k1", "k9"}
    assert filter_records(str(folder), lambda record: record["uid"] != "u1") == 2
    assert set(read(str(folder)).answers) == {"k0", "k2"}
    assert read(str(folder)).spent_usd == {"e": 1.5}
    assert [path for path in folder.rglob("*") if path.is_file()] == [
        path for path in folder.iterdir() if path.is_file()
    ]


@pytest.mark.parametrize("killed_at", range(8))
def test_a_deal_that_is_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int) -> None:
    folder = tmp_path / "answers"
    for i in range(3):
        written(folder, Answer(f"k{i}", f"u{i}", cost_usd=0.25))
    left = iter(range(killed_at))

    def counted(name: str) -> None:
        real = getattr(storage, name)

        def call(*args: object) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(*args)

        monkeypatch.setattr(storage, name, call)

    counted("write_bytes")
    counted("remove")
    together = [["u0"], ["u1"], ["u2"]]
    with contextlib.suppress(KeyboardInterrupt):
        journal.assign(str(folder), together)
    monkeypatch.undo()
    assert set(read(str(folder)).answers) == {"k0", "k1", "k2"}
    journal.assign(str(folder), together)
    assert [set(read(journal.task_folder(str(folder), uids)).answers) for uids in together] == [{"k0"}, {"k1"}, {"k2"}]
    assert read(str(folder)).spent_usd["e"] >= 0.75
