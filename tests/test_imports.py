"""Rules of the source tree: which module may import which, and that files and tests stay readable."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

PACKAGES = ("cluster", "captioning", "training", "pipelines")
"""A package may import itself and those before it."""

MAY_IMPORT = {
    "ray": {
        "cluster/session.py",
        "cluster/head.py",
        "cluster/lost_workers.py",
        "cluster/metrics.py",
        "cluster/nodes.py",
        "cluster/launch/ray_job.py",
        "training/run.py",
        "pipelines/run.py",
    },
    "deepspeed": {"training/engine.py"},
}
"""Files that may import a heavy package."""

MAX_LINES = 400
MAX_NAME_LENGTH = 60
MAX_COLUMNS = 120

TEST_FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py"))
FILES = sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@functools.cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(file): file for file in FILES}


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted name of everything that is imported, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def imported_modules(tree: ast.Module) -> set[str]:
    """Return the modules of ours that are imported: of `from a.b import c`, `a.b.c` if that is a module, else `a.b`."""
    names = set(imported_names(tree))
    return (names | {name.rpartition(".")[0] for name in names - MODULES.keys()}) & MODULES.keys()


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components with more than one module, and modules that import themselves."""

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        pending = [start]
        while pending:
            new = graph[pending.pop()] - found
            found |= new
            pending += new
        return found

    reached = {module: reachable(module) for module in graph}
    in_circle = {module for module in graph if module in reached[module]}
    components = {frozenset(other for other in reached[module] if module in reached[other]) for module in in_circle}
    return sorted(sorted(component) for component in components)


def bare_strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of docstrings and of the strings that document attributes and constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def is_typed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return True if all parameters and the result have annotations, `self` and `cls` aside."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    parameters = [argument for argument in named if argument is not None and argument.arg not in ("self", "cls")]
    return function.returns is not None and all(argument.annotation is not None for argument in parameters)


def test_every_package_has_modules() -> None:
    assert {file.partition("/")[0] for file in FILES} == set(PACKAGES)
    assert len(FILES) > 40


def test_imports_follow_the_order_of_packages() -> None:
    for file in FILES:
        allowed = set(PACKAGES[: PACKAGES.index(file.partition("/")[0]) + 1])
        roots = {name.partition(".")[0] for name in imported_names(tree_of(file))}
        assert roots & set(PACKAGES) <= allowed, f"{file} imports {roots & set(PACKAGES) - allowed}"
        for package, files in MAY_IMPORT.items():
            assert package not in roots or file in files, f"{file} imports {package}; only {sorted(files)} may"


def test_files_that_may_import_a_package_do() -> None:
    for package, files in MAY_IMPORT.items():
        importing = {file for file in FILES if package in {n.partition(".")[0] for n in imported_names(tree_of(file))}}
        assert importing == files, package


def test_no_modules_import_each_other() -> None:
    """Imports in functions and under TYPE_CHECKING count, although Python would accept such a circle."""
    assert circles({module: imported_modules(tree_of(file)) for module, file in MODULES.items()}) == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"e"}, "f": set[str]()}
    assert circles(graph) == [["a", "b", "c"], ["e"]]
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cluster.config\n"
    lazy += "def f():\n    from pipelines.engine import step\n    from cluster.storage import digest\n"
    assert imported_modules(ast.parse(lazy)) == {"cluster.config", "pipelines.engine.step", "cluster.storage"}


def test_files_stay_readable() -> None:
    for file in FILES:
        lines = (ROOT / file).read_text().splitlines()
        assert len(lines) <= MAX_LINES, file
        long = [number for number, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS]
        assert long == [], f"{file}: lines are too long"
        noun_phrases = [line for line, text in bare_strings(tree_of(file)) if text.startswith(("Of ", "What "))]
        assert noun_phrases == [], f"{file}: lines of docstrings without a subject and a verb"
        if file.endswith("__init__.py"):
            statements = [node for node in tree_of(file).body if not isinstance(node, ast.Expr)]
            assert statements == [], f"{file}: an __init__ has a docstring at most"


def test_tests_have_short_names_and_types() -> None:
    assert len(TEST_FILES) > 40
    for file in TEST_FILES:
        nodes = ast.walk(tree_of(file))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        long = [function.name for function in functions if len(function.name) >= MAX_NAME_LENGTH]
        assert long == [], f"{file}: names have {MAX_NAME_LENGTH} characters or more"
        untyped = [function.name for function in functions if not is_typed(function)]
        assert untyped == [], f"{file}: functions without types"


def test_untyped_functions_are_found() -> None:
    code = "def a(x: int, *y: int, **z: int) -> None: ...\nclass C:\n    def b(self) -> None: ...\n"
    code += "def c(x): ...\ndef d(x) -> int: ...\ndef e(x: int): ...\ndef f(*x) -> None: ...\n"
    functions = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)]
    assert {function.name for function in functions if is_typed(function)} == {"a", "b"}


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
def test_plain_modules_load_no_ray_and_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'ray', 'torch', 'deepspeed'}} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    assert found == "[]", f"{module} loads {found}"
