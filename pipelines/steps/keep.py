"""keep: drops rows by thresholds on columns that earlier steps measured."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
from pydantic import ConfigDict, Field, model_validator

from cluster.config import Settings
from pipelines.engine.step import Context, Mark, Step, TableFunction, map_rows


class Bound(Settings):
    """Condition on a column's value: at least `min`, at most `max`, one of `in`."""

    model_config = ConfigDict(serialize_by_alias=True)

    min: float | None = Field(None, description="Lowest value that is kept.")
    max: float | None = Field(None, description="Highest value that is kept.")
    among: tuple[str | float | bool, ...] | None = Field(None, alias="in", description="Values that are kept.")

    @model_validator(mode="after")
    def _check_bound(self) -> Bound:
        if self.min is None and self.max is None and self.among is None:
            raise ValueError("give min, max or in")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is over max {self.max:g}: no row could be kept")
        return self

    def violation(self, name: str, value: Any) -> Mark | None:
        """Return the mark of a value outside the bound, else None. A null was not measured and breaks no bound."""
        if value is None:
            return None
        if self.among is not None and value not in self.among:
            return Mark("dropped", f"{name} is {value!r}, not one of {', '.join(map(str, self.among))}")
        if self.min is None and self.max is None:
            return None
        number = float(value)
        if math.isnan(number):
            return Mark("dropped", f"{name} is not a number", number)
        if self.min is not None and number < self.min:
            return Mark("dropped", f"{name} under {self.min:g}", number, self.min)
        if self.max is not None and number > self.max:
            return Mark("dropped", f"{name} over {self.max:g}", number, self.max)
        return None


class Keep(Step):
    """Marks as dropped every row that breaks a bound: `keep: {motion: {min: 0.02}, luma: {min: 0.05, max: 0.97}}`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Bound]

    name: str = "keep"

    @property
    def bounds(self) -> dict[str, Bound]:
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _check_names(self) -> Keep:
        if not self.bounds:
            raise ValueError("names no column; write for example keep: {motion: {min: 0.02}}")
        return self

    def reads(self) -> tuple[str, ...]:
        return tuple(self.bounds)

    def writes(self) -> tuple[pa.Field, ...]:
        return ()

    def open(self, context: Context) -> TableFunction:
        def check(row: dict[str, Any]) -> dict[str, Any] | Mark:
            marks = (bound.violation(name, row[name]) for name, bound in self.bounds.items())
            return next(filter(None, marks), {})

        return lambda table: map_rows(table, (), check) if len(table) else table
