"""The public module `worldloom`: its stubs are equal to it, and each of its names is documented."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

import worldloom
from tests.support.paths import ROOT

REFERENCE = ROOT / "docs" / "reference" / "python.md"
PUBLIC = sorted(
    name for name, value in vars(worldloom).items() if not name.startswith("_") and not isinstance(value, ModuleType)
)


def test_stubs_are_equal_to_the_module() -> None:
    """The stubs are a copy, because a package of stubs cannot hold a link to a file outside of it."""
    assert (ROOT / "worldloom-stubs" / "__init__.pyi").read_text() == (ROOT / "worldloom.py").read_text()


def test_there_are_public_names() -> None:
    assert {"load_recipe", "run", "sample", "load_model", "LatentDataset"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_a_docstring(name: str) -> None:
    docstring = vars(worldloom)[name].__doc__
    assert docstring
    assert not docstring.startswith(f"{name}("), "the docstring that dataclasses write by themselves"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_in_the_reference(name: str) -> None:
    value = vars(worldloom)[name]
    text = REFERENCE.read_text()
    assert f"::: {value.__module__}.{value.__name__}\n" in text
    if value.__name__ != name:
        assert f"`worldloom.{name}`" in text, "the reference must tell the name in the module worldloom"


def test_the_reference_names_what_exists() -> None:
    named = re.findall(r"^::: ([\w.]+)\.(\w+)$", REFERENCE.read_text(), re.MULTILINE)
    assert len(named) >= len(PUBLIC) - 1
    missing = []
    for module, name in named:
        loaded = __import__(module, fromlist=[name])
        missing += [] if hasattr(loaded, name) else [f"{module}.{name}"]
    assert missing == []
