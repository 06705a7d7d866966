"""Rows that cannot be read: tried again, left out of parts and counted by the driver."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from cluster.unreadable import UnreadableError
from pipelines.engine import pending
from pipelines.engine.pending import MAX_IN_A_ROW, WAITS_S, PendingRows, retry, retry_rows, without_pending
from pipelines.engine.step import RunError, column, map_rows, start_fates
from pipelines.engine.worker import report

ERRORS = {
    "net": UnreadableError("s3 is away"),
    "gone": FileNotFoundError(errno.ENOENT, "gone"),
    "bad": ValueError("no frame"),
}
VALUE = (column("value", pa.int64(), "a value"),)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list that waits are written to in place of waiting."""
    waited: list[float] = []
    monkeypatch.setattr(pending.time, "sleep", waited.append)
    return waited


def away(until: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function of a row that raises its `error`, if it has one, in all calls for it before call `until`."""
    calls: dict[str, int] = {}

    def read(row: dict[str, Any]) -> dict[str, Any]:
        calls[row["uid"]] = calls.get(row["uid"], 0) + 1
        if row["error"] and calls[row["uid"]] < until:
            raise ERRORS[row["error"]]
        return {"value": calls[row["uid"]]}

    return read


def rows(*errors: str | None) -> pa.Table:
    """Return live rows `0`, `1`, ... that raise these errors."""
    return start_fates(pa.table({"uid": [str(i) for i in range(len(errors))], "error": pa.array(errors, pa.string())}))


def test_rows_that_cannot_be_read_are_tried_again(waits: list[float]) -> None:
    read = away(until=3)
    done = retry_rows(lambda table: map_rows(table, VALUE, read), rows(None, "net", "gone", "net", "bad", None))
    assert done["uid"].to_pylist() == list("012345")
    assert done["fate"].to_pylist() == ["kept", "kept", "pending", "kept", "failed", "kept"]
    assert done["value"].to_pylist() == [1, 3, None, 3, None, 1]
    assert waits == list(WAITS_S[:2])


def test_tries_end(waits: list[float]) -> None:
    done = retry_rows(lambda table: map_rows(table, VALUE, away(until=100)), rows("net"))
    assert done["fate"].to_pylist() == ["unreadable"]
    assert done["fate_reason"].to_pylist() == ["UnreadableError: s3 is away"]
    assert waits == list(WAITS_S)


def test_a_call_is_tried_again_unless_its_content_is_bad(waits: list[float]) -> None:
    read = away(until=3)
    assert retry(lambda: read({"uid": "a", "error": "net"})) == {"value": 3}
    with pytest.raises(ValueError, match="no frame"):
        retry(lambda: read({"uid": "b", "error": "bad"}))
    with pytest.raises(FileNotFoundError):
        retry(lambda: read({"uid": "c", "error": "gone"}))
    assert waits == list(WAITS_S[:2])


def test_an_input_with_a_pending_row_has_no_row_in_the_part() -> None:
    table = pa.table(
        {
            "uid": ["a1", "a2", "b1", "c1"],
            "source_uid": ["a", "a", "b", "c"],
            "source": ["/a", "/a", "/b", "/c"],
            "fate": ["kept", "unreadable", "failed", "pending"],
            "fate_reason": [None, "OSError: s3 is away", "bad", "/c: changed"],
        }
    )
    whole, count, reason = without_pending(table, "source_uid")
    assert (whole["uid"].to_pylist(), count, reason) == (["b1"], 2, "/a: OSError: s3 is away")
    whole, count, _ = without_pending(table, "uid")
    assert (whole["uid"].to_pylist(), count) == (["a1", "b1"], 2)
    assert without_pending(whole, "uid") == (whole, 0, "")


def test_many_unreadable_rows_in_a_row_end_the_run() -> None:
    counted = PendingRows("scan")
    for _ in range(3):
        counted.add(report("", MAX_IN_A_ROW - 1, 0, 0.0, (MAX_IN_A_ROW - 1, "s3 is away")))
        counted.add(report("part", 1, 1, 0.0))
    counted.add(report("part", MAX_IN_A_ROW, 1, 0.0, (MAX_IN_A_ROW - 1, "s3 is slow")))
    with pytest.raises(RunError, match=rf"^scan: {MAX_IN_A_ROW} rows in a row cannot be read, the last: /b: gone"):
        counted.add(report("", 1, 0, 0.0, (1, "/b: gone")))
    with pytest.raises(RunError, match=r"^scan: 7 of 9 rows are pending, .* the first: s3 is away\. Run again"):
        counted.check_none(7, 9)
    counted.check_none(0, 9)
