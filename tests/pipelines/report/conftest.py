"""Synthetic rows of a table, and the data of the page that a curation of them gives."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.report.page_data import page_data
from tests.support.report_tables import WHEN, make_curation, make_rows


@pytest.fixture(scope="package")
def rows() -> list[dict[str, Any]]:
    """Return all rows of the last table. Tests must not change them."""
    return make_rows(80)


@pytest.fixture(scope="package")
def data(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the data of the page. Tests must not change it."""
    return page_data(*make_curation(tmp_path_factory.mktemp("report"), rows), WHEN)
