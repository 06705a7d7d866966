"""Work over all rows of a table, which need not fit in the memory of one process. `Global` steps use it.

There are two operations: a function of any rows (`map`), and a function of all rows that share a key (`grouped`).
`LocalRows` holds the rows in this process; `pipelines.run` holds them in Ray Data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

RowsFunction = Callable[[pa.Table], pa.Table]
"""A function from tables to tables of one schema; both may be empty. It is picklable: a module's function, or a
`functools.partial` of one."""


class Rows(Protocol):
    """Rows of one schema, in no particular order, as any number of tables."""

    def map(self, function: RowsFunction) -> Rows:
        """Apply a function that does not depend on which rows it gets together."""
        ...

    def grouped(self, key: str, function: RowsFunction) -> Rows:
        """Apply a function to tables that hold all rows of a value of the column `key`, possibly of several values."""
        ...

    def union(self, *others: Rows) -> Rows:
        """Return these rows and those of others of the same schema."""
        ...

    def collect(self) -> pa.Table:
        """Return all rows as one table in this process, for small results such as pairs and clusters."""
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
