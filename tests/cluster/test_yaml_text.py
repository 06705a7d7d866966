"""YAML: scalars of version 1.2, merged mappings, round trips, and errors that name the line to mend."""

from __future__ import annotations

import pytest

from cluster import yaml_text
from cluster.yaml_text import MAX_VALUES, YamlError, dump, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1E+3", -1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0o17", 15),
        ("012", 12),
        ("16:9", "16:9"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("1__0", "1__0"),
        ("-.inf", -float("inf")),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    data, _ = load(f"key: {text}")
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


def test_aspects_need_no_quotes() -> None:
    assert load("[16:9, 4:3, 1:1]")[0] == ["16:9", "4:3", "1:1"]


def test_merged_mappings_have_the_lines_of_their_values() -> None:
    text = "base: &base\n  steps: 5\n  lr: 1\nother: &other {lr: 2, seed: 3}\ntrain:\n  <<: [*base, *other]\n  lr: 9\n"
    data, lines = load(text)
    assert data["train"] == {"steps": 5, "lr": 9, "seed": 3}
    assert (lines["train", "steps"], lines["train", "lr"], lines["train", "seed"]) == (2, 7, 4)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: t\x07\n", 2, "control character U+0007"),
        ("a: 1\nb: t\0\n", 2, "control character U+0000"),
        ('a: 1\nb: "t\\0"\n', 2, "NUL"),
        ("a: 1\nb: &b [*b]\n", 2, "alias of itself"),
        ("a: 1\nb: &b {<<: *b}\n", 2, "alias of itself"),
        ("a: 1\nb: " + "[" * 2000, 2, "more than 50 deep"),
        ("a: 1\nb: " + "{a: " * 60, 2, "more than 50 deep"),
        ("a: 1\n\tb: 2\n", 2, "indent with spaces"),
        ("a: A street: busy\n", 1, "quote text that holds ': '"),
        ("a:\n- {p: A street: busy, s: 1}\n", 2, "quote text that holds ': '"),
        ('a: "b" c\n', 1, "quote the whole text"),
        ("a: @b\n", 1, "quote text that begins with it"),
        ("a: 'b\nc: 1\nd: 2\n", 1, "not closed"),
        ("a: [1, 2\n\n\n", 1, "not closed"),
        ("a:\n  b: 1\n c: 2\n", 3, "indent this line"),
        ("a: *b\n", 1, "&name"),
        ("a: 1\n---\nb: 2\n", 2, "one document"),
        ("a: 1\na: 2\n", 2, "given twice"),
        ("a: 1\n[b]: 2\n", 2, "a key is a list"),
        ("a: {<<: 3}\n", 1, "<< takes an alias of a mapping"),
        ("a: !!int b\n", 1, "no value of a recipe"),
        ("a: !!binary aGk=\n", 1, "no value of a recipe"),
        ("a: !date 3\n", 1, "no value of a recipe"),
        ("a: " + "9" * 5000, 1, "no value of a recipe"),
        ("a: 0x" + "f" * 5000, 1, "no value of a recipe"),
        ("a: 18446744073709551616\n", 1, "integer of more than 64 bits"),
        ("a: -9223372036854775809\n", 1, "integer of more than 64 bits"),
        ('a: "\\ud83d"\n', 1, "half a surrogate pair"),
        ('a: 1\n"b\\0": 2\n', 2, "NUL"),
        ("a: !!python/name:os.system\n", 1, "no value of a recipe"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "no value of a recipe"),
        ("a: !!python/object/new:subprocess.Popen {args: ls}\n", 1, "no value of a recipe"),
        ("!!set {a: null}\n", 1, "no value of a recipe"),
    ],
)
def test_errors_name_the_line_and_the_fix(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        load(text)
    assert (caught.value.line, message in str(caught.value)) == (line, True), (caught.value.line, str(caught.value))
    assert "\n" not in str(caught.value)


def test_nested_aliases_are_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(6)]
    with pytest.raises(YamlError, match=f"more than {MAX_VALUES} values"):
        load("\n".join(lines))


def test_the_number_of_values_is_bounded_while_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "MAX_VALUES", 100)
    assert len(load("[" + "1," * 90 + "]")[0]) == 90
    for text in ("[" + "1," * 201 + "[" * 60, "{" + "".join(f"k{n}: 1," for n in range(201)) + "[" * 60):
        with pytest.raises(YamlError, match="values, those of its aliases included"):
            load(text)


def test_integers_of_64_bits_are_read() -> None:
    assert load("[18446744073709551615, -9223372036854775808]")[0] == [2**64 - 1, -(2**63)]


@pytest.mark.parametrize(
    "value",
    [
        *("1e-4", "no", "0o17", "16:9", "1_000", "012", "~", "", "<<", "null", "a: b", " a", "a\x07", "2024-01-01"),
        *("é猫", 1e-5, 1e22, 0.1, 3, True, None),
    ],
)
def test_what_is_dumped_is_loaded_unchanged(value: object) -> None:
    assert load(dump({"key": [value]}))[0] == {"key": [value]}
