"""The notebook of `examples` runs, and is stored with outputs that anybody may see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.support.paths import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
MAX_BYTES = 1_500_000


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]  # nbformat has no types


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def images_of(notebook: Any) -> set[str]:
    """Return the media types of all shown images."""
    types = {kind for output in outputs_of(notebook) for kind in output.get("data", {})}
    return {kind for kind in types if kind.startswith("image/")}


def assert_clean(notebook: Any) -> None:
    """Fail unless each output is a result: no error, no warning."""
    for output in outputs_of(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        assert "Warning" not in output.get("text", ""), output.text


def test_stored_outputs_are_complete_and_clean() -> None:
    notebook = read_notebook()
    assert_clean(notebook)
    assert {"image/png", "image/gif"} <= images_of(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "execute the notebook from its first to its last cell"


def test_stored_notebook_is_small_and_has_no_absolute_paths() -> None:
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    text = re.sub(r'"image/(gif|png|jpeg)": "[^"]*"', "", NOTEBOOK.read_text())
    assert re.findall(r"(?<![\w.*}])/(?:home|root|tmp|work|Users|usr|mnt|var)/[^\s\"]*", text) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # On busy cores, threads of a tiny model wait for each other.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read_notebook()
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert_clean(notebook)
    assert {"image/png", "image/gif"} <= images_of(notebook)
    assert (tmp_path / "runs" / "notebook" / "sample.mp4").stat().st_size > 0
