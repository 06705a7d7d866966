"""The import rule of the architecture, over every module's syntax tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ORDER = ("cluster", "captioning", "training", "pipelines")
"""A package imports itself and those before it."""
RAY = {"cluster/session.py", "training/run.py", "pipelines/run.py"}
DEEPSPEED = {"training/engine.py"}
MODULES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def test_there_are_modules_in_every_package() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ORDER)
    assert len(MODULES) > 40


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    allowed = ORDER[: ORDER.index(path.relative_to(ROOT).parts[0]) + 1]
    roots = {module.partition(".")[0] for module in imported(path)}
    assert roots & set(ORDER) <= set(allowed), f"{name} imports {roots & set(ORDER) - set(allowed)}"
    assert "ray" not in roots or name in RAY, f"{name} imports ray; only {sorted(RAY)} may"
    assert "deepspeed" not in roots or name in DEEPSPEED, f"{name} imports deepspeed"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
    if path.name == "__init__.py":
        assert all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body), "a docstring at most"


PLAIN = [
    "pipelines.steps.keep",
    "pipelines.steps.dedup",
    "pipelines.steps.scan",
    "pipelines.engine.worker",
    "captioning.encoders.hashing",
    "training.settings",
    "training.models.dit",
    "training.autoencoders.linear",
    "training.data.shards",
    "pipelines.steps.encode",
    "pipelines.cli",
]


@pytest.mark.parametrize("module", PLAIN)
def test_plain_modules_load_neither_ray_nor_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'ray', 'torch', 'deepspeed'}} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    assert found == "[]", f"{module} loads {found}"


def test_the_training_benchmark_needs_torch_alone() -> None:
    """So that it runs on a machine with a GPU and nothing of ours installed."""
    others = ["pydantic", "ray", "deepspeed", "av", "pyarrow", "yaml", "numpy", "PIL", "cv2", "safetensors"]
    code = f"import sys; sys.modules.update(dict.fromkeys({others})); import benchmarks.train_step"
    # NumPy's absence is torch's to warn of.
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)
