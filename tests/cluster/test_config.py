"""Parsing of YAML into settings: values, overrides, and error messages with file, line, key and the closest key."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from captioning.engine import FOLDER, CaptionerSettings
from captioning.engines.signals import Signals
from cluster.config import (
    ConfigError,
    LocatedError,
    Settings,
    item_labels,
    known_keys,
    override,
    parse,
    parse_document,
    read_document,
)
from cluster.plugins import PluginField


class Inner(Settings):
    size: int = Field(1, ge=1)
    ratio: float = 1.0
    names: tuple[str, ...] = ()


class Outer(Settings):
    title: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    engine: Annotated[CaptionerSettings, PluginField(FOLDER, CaptionerSettings)] = Signals()


def error_message(text: str, *assignments: str) -> str:
    """Return the message of the `ConfigError` that parsing the text raises."""
    with pytest.raises(ConfigError) as caught:
        parse(Outer, override(parse_document(text, "recipe.yaml"), assignments))
    return str(caught.value)


def test_valid_input_is_parsed() -> None:
    outer = parse(
        Outer, parse_document("title: t\ninner: {size: 3, ratio: 2, names: [a, b]}\nengine: signals\n", "recipe.yaml")
    )
    assert outer.inner == Inner(size=3, ratio=2.0, names=("a", "b"))
    assert isinstance(outer.engine, Signals)
    assert Outer.model_validate_json(outer.model_dump_json()) == outer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: t\ninner:\n  siez: 3\n", ["recipe.yaml:3", "inner.siez", "did you mean 'size'"]),
        ("title: t\ninner:\n  size: '3'\n", ["recipe.yaml:3", "inner.size", "valid integer", '"3"']),
        ("title: t\ninner:\n  size: true\n", ["recipe.yaml:3", "inner.size", "true"]),
        ("title: t\ninner:\n  size: 0\n", ["recipe.yaml:3", "inner.size", "greater than or equal to 1"]),
        ("title: t\nmany:\n  - size: 2\n  - sice: 2\n", ["recipe.yaml:4", "many.1.sice", "did you mean 'size'"]),
        ("inner: {size: 2}\n", ["recipe.yaml:1", "title", "missing"]),
        ("title: t\nengine:\n  name: signal\n", ["recipe.yaml:2", "engine", "did you mean 'signals'"]),
        ("title: t\nengine:\n  name: signals\n  loud: 1\n", ["recipe.yaml:4", "engine.loud", "unknown key"]),
        ("title: t\ntitle: u\n", ["recipe.yaml:2", "given twice"]),
        ("title: [t\n", ["recipe.yaml:1", "not valid YAML"]),
        ("", ["recipe.yaml", "empty"]),
        ("title: t\ninner: {ratio: .inf}\n", ["recipe.yaml:2", "inner.ratio", "finite number"]),
        ("title: t\ninner: {ratio: .nan}\n", ["recipe.yaml:2", "inner.ratio", "finite number"]),
        ("title: t\ninner: {ratio: 2%}\n", ["recipe.yaml:2", 'valid number (got "2%"); write 0.02']),
        ("title: t\ninner: {ratio: 1s}\n", ["recipe.yaml:2", 'valid number (got "1s"); write 1, without the unit']),
        ("title: t\ninner: 3\n", ["recipe.yaml:2", "inner", "(got 3); write a mapping with keys size, ratio, names"]),
        ("title: 3\n", ["recipe.yaml:1", "title", "valid string (got 3)", 'quote it: "3"']),
        ("title: t\nmany: [{size:2}]\n", ["recipe.yaml:2", "many.0.size:2", "space after the colon: size: 2"]),
        ("{title: a man, walking}\n", ["recipe.yaml:1", "'walking'", "quote the whole text"]),
        ("title: t\nmany: &many [*many]\n", ["recipe.yaml:2", "alias of itself"]),
    ],
)
def test_errors_name_line_key_value_and_closest_key(text: str, expected: list[str]) -> None:
    message = error_message(text)
    for part in expected:
        assert part in message


def test_all_errors_are_reported_together() -> None:
    assert len(error_message("inner: {siez: 1, ratio: a}\n").splitlines()) == 3


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_document(tmp_path / "none.yaml")


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as handle:
        handle.truncate(50 << 30)
    with pytest.raises(ConfigError, match=r"a\.yaml: has more than 1,048,576 bytes"):
        read_document(tmp_path / "a.yaml")


def test_override_of_mappings_lists_and_labelled_items() -> None:
    document = parse_document(
        "a: {b: 1}\nsteps:\n  - keep: {x: 1}\n  - cut: {}\n  - keep: {x: 2}\nlist: [{k: 1}, {k: 2}]\n", "f.yaml"
    )
    changed = override(
        document, ["a.b=2", "a.c=[1, 2]", "steps.keep#2.x=5", "steps.cut.max_s=3.5", "list.1.k=9", "new.deep=text"]
    ).data
    assert changed == {
        "a": {"b": 2, "c": [1, 2]},
        "steps": [{"keep": {"x": 1}}, {"cut": {"max_s": 3.5}}, {"keep": {"x": 5}}],
        "list": [{"k": 1}, {"k": 9}],
        "new": {"deep": "text"},
    }
    assert document.data["a"] == {"b": 1}, "the document itself is unchanged"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a", "write it as key.key=value"),
        ("steps.cat.x=1", "did you mean 'cut'"),
        ("steps.7=1", "no item 7"),
        ("a.b.c=1", "plain value"),
        ("a=[", "not valid YAML"),
        ("a=b: c: d", "quote text that holds"),
    ],
)
def test_bad_overrides_are_refused(assignment: str, expected: str) -> None:
    document = parse_document("a: {b: 1}\nsteps: [{cut: {}}]\n", "f.yaml")
    with pytest.raises(ConfigError, match="--set") as caught:
        override(document, [assignment])
    assert expected in str(caught.value)


def test_an_override_reads_numbers_as_a_file_does() -> None:
    document = override(parse_document("title: t\ninner: {ratio: 1}\n", "f.yaml"), ["inner.ratio=1e-4"])
    assert parse(Outer, document).inner.ratio == 1e-4
    assert ": inner.ratio: Input should be a finite number" in error_message("title: t\n", "inner.ratio=.inf")


def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("title: t\nname: Tür\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: is not UTF-8 text \(.*\); save it as UTF-8"):
        read_document(tmp_path / "latin.yaml")


def test_located_error_names_the_line_in_the_document() -> None:
    class Checked(Settings):
        items: tuple[int, ...]

        def model_post_init(self, context: object) -> None:
            if 0 in self.items:
                raise LocatedError(("items", self.items.index(0)), "zero is refused")

    with pytest.raises(ConfigError, match=r"f\.yaml:3: items\.1: zero is refused"):
        parse(Checked, parse_document("items:\n- 1\n- 0\n", "f.yaml"))


def test_item_labels_number_repeated_keys() -> None:
    assert list(item_labels([{"keep": 1}, {"cut": 1}, {"keep": 2}])) == ["keep", "cut", "keep#2"]


def test_known_keys_of_a_location_inside_a_list() -> None:
    assert known_keys(Outer, ("many", 3)) == ["size", "ratio", "names"]


KEYS = st.text("ab", min_size=1, max_size=2)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


@pytest.mark.slow
@given(DATA)
def test_any_document_is_parsed_or_raises_config_error(data: object) -> None:
    text = yaml.safe_dump({"title": "t", "inner": data})
    with contextlib.suppress(ConfigError):
        document = parse_document(text, "f.yaml")
        assert parse(Outer, document).title == "t"
