"""`worldloom report` and the report at the end of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipelines.commands.report import try_report
from tests.support.report_tables import make_curation, make_rows


@pytest.mark.slow
def test_a_report_that_fails_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(3))

    def fail(*arguments: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("pipelines.report.page.write_report", fail)
    assert try_report(recipe, curation) is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "report could not be written: OSError: the disk is full" in record.getMessage()
    caplog.clear()
