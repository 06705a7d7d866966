"""The image's files: what can be checked of them without Docker."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def kept_by_dockerignore() -> set[str]:
    """Return the files and folders at the top that `.dockerignore` leaves to the build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return {line[1:] for line in lines if line.startswith("!")}


def default_of(argument: str) -> str:
    """Return the default of a build argument."""
    found = re.search(rf"^ARG {argument}=(.*)$", DOCKERFILE, re.MULTILINE)
    assert found
    return found[1]


def test_the_build_has_all_that_the_package_is_made_of() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    packages = [pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]]
    modules = [f"{module}.py" for module in setuptools["py-modules"]]
    project = PROJECT["project"]
    parts = {"pyproject.toml", "constraints", project["readme"], *project["license-files"], *packages, *modules}
    assert kept_by_dockerignore() == parts
    assert all((ROOT / part).exists() for part in parts)


def test_its_python_and_extras_are_the_project_s() -> None:
    assert DOCKERFILE.count("pip install") == DOCKERFILE.count("-c constraints/newest.txt") == 2
    minor = int(default_of("PYTHON").removeprefix("3."))
    assert 11 <= minor <= 13
    assert set(default_of("EXTRAS").split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_it_runs_as_no_root_user() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == [re.findall(r"useradd .* (\S+)$", DOCKERFILE, re.MULTILINE)[0]]
