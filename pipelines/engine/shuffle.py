"""Work over all rows of a table that need not fit in one memory: what a step that decides globally is given.

Two operations are enough: a function of any rows (`map`), and a function of all rows that share a key (`grouped`). The rows are in
this process here, and in Ray Data in `pipelines.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

RowsFunction = Callable[[pa.Table], pa.Table]
"""Gets tables that may be empty, and gives tables of one schema, empty ones too. It can be pickled: a function of a module, or a
`functools.partial` of one."""


class Rows(Protocol):
    """Rows of one schema, in no order, in as many tables as they come in."""

    def map(self, function: RowsFunction) -> Rows:
        """The function's rows; which rows it gets together does not matter to it."""
        ...

    def grouped(self, key: str, function: RowsFunction) -> Rows:
        """The function's rows, where all rows of one value of the column `key` come to it in one table, with those of other values."""
        ...

    def union(self, *others: Rows) -> Rows:
        """These rows and those of others of the same schema."""
        ...

    def collect(self) -> pa.Table:
        """All rows as one table in this process: for what is small, as pairs and clusters are."""
        ...


@dataclass(frozen=True)
class LocalRows:
    """Rows in the memory of this process."""

    tables: Sequence[pa.Table]

    def map(self, function: RowsFunction) -> LocalRows:
        return LocalRows([function(table) for table in self.tables])

    def grouped(self, key: str, function: RowsFunction) -> LocalRows:
        assert key in self.tables[0].column_names
        return LocalRows([function(self.collect())])

    def union(self, *others: Rows) -> LocalRows:
        return LocalRows([*self.tables, *(other.collect() for other in others)])

    def collect(self) -> pa.Table:
        return pa.concat_tables(self.tables).combine_chunks()
