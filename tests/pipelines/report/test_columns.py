"""Measured columns, and numbers of the page."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.report.columns import measured_columns, round_significant
from tests.support.report_tables import make_recipe


def test_columns_with_a_threshold_come_first(tmp_path: Path) -> None:
    names = ["uid", "sharpness", "width", "noise", "camera", "luma", "n_people", "caption"]
    types = [pa.string(), pa.float64(), pa.int64(), pa.float64(), pa.string(), pa.float64(), pa.int64(), pa.string()]
    columns = measured_columns(make_recipe(tmp_path), pa.schema(list(zip(names, types, strict=True))))
    assert [(column.name, column.is_number, column.thresholds) for column in columns] == [
        ("luma", True, [0.1, 0.9]),
        ("camera", False, []),
        ("sharpness", True, [0.001]),
        ("noise", True, []),
        ("n_people", True, []),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.123456789, 0.12346), (float("nan"), None), (float("inf"), None), (None, None), (0.0, 0.0)],
)
def test_numbers_have_five_significant_digits(value: float | None, expected: float | None) -> None:
    assert round_significant(value) == expected
