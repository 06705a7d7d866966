"""keep: drops rows by thresholds on columns that earlier steps measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pydantic import ConfigDict, Field, model_validator

from cluster.config import LocatedError, Settings, unknown_message
from cluster.yaml_text import Location
from pipelines.engine.step import Context, Mark, Step, TableFunction, limits_of, map_rows, values_of


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


def bound_faults(bound: Bound, field: pa.Field, location: Location) -> Iterator[LocatedError]:
    """Yield an error for each value of a bound, at `location`, that does not suit its column's type and limits."""
    is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    is_text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    if not (is_number or is_text or pa.types.is_boolean(field.type)):
        doc = (field.metadata or {}).get(b"doc", b"").decode()
        message = f"keep compares single values, and {field.name} has type {field.type} ({doc})"
        yield LocatedError(location, message)
        return
    noun = "a number" if is_number else "text" if is_text else "true or false"
    for key in ("min", "max"):
        if (value := getattr(bound, key)) is None:
            continue
        if not is_number:
            example = ", ".join(values_of(field)[:2] or ["..."]) if is_text else "true"
            yield LocatedError((*location, key), f"{field.name} is {noun}; write in: [{example}]")
        elif outside := _outside(key, value, field):
            yield LocatedError((*location, key), outside)
    known = values_of(field)
    for index, value in enumerate(bound.among or ()):
        suits = isinstance(value, str) == is_text and isinstance(value, bool) == (not is_number and not is_text)
        if not suits:
            message = f"{field.name} is {noun}, so {_text(value)} keeps no row"
            yield LocatedError((*location, "in", index), message)
        elif known and value not in known:
            yield LocatedError((*location, "in", index), unknown_message("value", str(value), known))


def _text(value: str | float | bool) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _outside(key: str, value: float, field: pa.Field) -> str | None:
    """Return what a `min` or `max` outside the limits of its column does, or None if it is inside."""
    low, high = limits_of(field)
    below, above = low is not None and value < low, high is not None and value > high
    if not below and not above:
        return None
    limits = f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"in [{low:g}, {high:g}]"
    kept = "every" if (key == "min") == below else "no"
    units = ""
    if high == 1 and above:
        units = f"; divide a percentage by 100 ({value / 100:g}), an 8-bit value by 255 ({value / 255:.2g})"
    return f"{field.name} is {limits}, so {key} {value:g} keeps {kept} row{units}"


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
