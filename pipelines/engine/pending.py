"""Rows that cannot be read now: they are tried again, then left out of the part, so that the next run takes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from cluster.metrics import RETRIES
from cluster.telemetry import log
from cluster.unreadable import cannot_be_read, may_pass_soon
from pipelines.engine.step import PENDING, RunError, TableFunction

WAITS_S = (2.0, 8.0, 20.0)
"""Seconds before each new try. Stores take about 6 s to report that they cannot be reached, so that a row that stays
unreadable costs a minute, and an outage of less than that costs nothing but time."""

MAX_IN_A_ROW = 8
"""Number of rows in a row that cannot be read at which the run ends: the next ones would wait as long for nothing."""

Result = TypeVar("Result")


def retry(call: Callable[[], Result]) -> Result:
    """Return the result of a call, which is tried again while what it reads cannot be read."""
    for wait_s in WAITS_S:
        try:
            return call()
        except Exception as error:
            if not (cannot_be_read(error) and may_pass_soon(error)):
                raise
        time.sleep(wait_s)
    return call()


def retry_rows(function: TableFunction, table: pa.Table) -> pa.Table:
    """Return the function's result on a table of live rows; it is tried again on those that it marks unreadable."""
    done = function(table)
    for wait_s in WAITS_S:
        unreadable = pc.equal(done["fate"], "unreadable").combine_chunks()
        if not pc.any(unreadable).as_py():
            break
        reasons = done["fate_reason"].filter(unreadable)
        RETRIES.record(len(reasons), of="rows")
        log.warning(f"{len(reasons)} rows cannot be read; next try in {wait_s:g} s. The first: {reasons[0]}")
        time.sleep(wait_s)
        again = function(table.filter(unreadable))
        numbers = pa.array(range(len(table)), pa.int64())
        order = pa.concat_arrays([numbers.filter(pc.invert(unreadable)), numbers.filter(unreadable)])
        done = pa.concat_tables([done.filter(pc.invert(unreadable)), again]).take(pc.sort_indices(order))
    return done


def without_pending(table: pa.Table, input_column: str) -> tuple[pa.Table, int, str]:
    """Return the rows of a finished task that its part holds, the number of inputs left pending and the first reason.

    An input of which any row is pending has none in the part: it would count as done.
    """
    pending = table.filter(pc.is_in(table["fate"], pa.array(PENDING)))
    if not len(pending):
        return table, 0, ""
    inputs = pc.unique(pending[input_column])
    reason = pending["fate_reason"][0].as_py()
    if "source" in pending.column_names and (source := pending["source"][0].as_py()) not in reason:
        reason = f"{source}: {reason}"
    return table.filter(pc.invert(pc.is_in(table[input_column], inputs))), len(inputs), reason


@dataclass
class PendingRows:
    """A count of the rows that the tasks of a segment left pending, from their reports."""

    label: str
    n: int = 0
    first_reason: str = ""
    n_in_a_row: int = 0

    def add(self, report: pa.Table) -> None:
        """Count a report. Raises `RunError` if `MAX_IN_A_ROW` rows in a row could not be read."""
        (row,) = report.to_pylist()
        if not row["n_pending"]:
            self.n_in_a_row = 0
            return
        self.n += row["n_pending"]
        self.first_reason = self.first_reason or row["pending_reason"]
        self.n_in_a_row = row["n_pending"] + (0 if row["n_rows"] else self.n_in_a_row)
        if self.n_in_a_row >= MAX_IN_A_ROW:
            raise RunError(
                f"{self.label}: {self.n_in_a_row} rows in a row cannot be read, the last: {row['pending_reason']}. "
                "Mend that and run again: what is done is kept"
            )

    def check_none(self, n_pending: int, n_inputs: int) -> None:
        """Raise `RunError` if rows of a segment are pending after all its tasks."""
        if not n_pending:
            return
        counts = f"{self.label}: {n_pending} of {n_inputs} rows"
        if not self.first_reason:
            raise RunError(f"{counts} have no result; run again")
        raise RunError(
            f"{counts} are pending, as what they need cannot be had now; the first: {self.first_reason}. Run again to "
            "take them; leave out of sources what stays so"
        )
