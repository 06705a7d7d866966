"""YAML 1.2 as plain data with the line of each value, and plain data as YAML.

PyYAML reads YAML 1.1, where `1e-4` is text, `16:9` is the number 969 and `no` is false. Here scalars follow the core
schema of YAML 1.2, and `<<` merges mappings as in 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.reader import ReaderError

Location = tuple[str | int, ...]
"""Keys and list indices that lead from the root of a document to a value."""

MAX_DEPTH = 50
"""Most mappings and lists inside each other. A recipe has about 6."""
MAX_VALUES = 100_000
"""Most values of a document, those of aliases counted each time: a few lines of nested aliases are billions."""
MAX_BYTES = 1 << 20
"""Largest document. A recipe has about 2 kB, and PyYAML takes a second and 100 MB per megabyte."""
INTEGERS = range(-(2**63), 2**64)
"""Integers that a document may hold: those that torch, Arrow and JSON readers take."""

_TAG = "tag:yaml.org,2002:"
_SCHEMA = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    # Underscores between digits are ours: YAML 1.2 has none, and 1_000 can mean nothing else.
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
"""The core schema (YAML 1.2.2, section 10.3.2): each tag, its expression, and the first characters that may match."""

_ADVICE = {
    r"found character '\\t'": "a line is indented by a tab; indent with spaces",
    r"found character '[@%`]'": "quote text that begins with it",
    r"found unexpected end of stream": "the quote that opens here is not closed",
    r"expected ',' or '[\]}]', but got '<stream end>'": "the bracket that opens here is not closed",
    r"expected ',' or '[\]}]', but got ':'": "quote text that holds ': ', as in \"a: b\"",
    r"expected ',' or '[\]}]', but got '<scalar>'": "quote the whole text; 'a \"b\" c' holds quotes",
    r"mapping values are not allowed here": "quote text that holds ': ', as in \"a: b\", or mend the indentation",
    r"expected <block end>, but found '<scalar>'": "quote the whole text; 'a \"b\" c' holds quotes",
    r"expected <block end>": "indent this line as far as the other lines of its section",
    r"found undefined alias": "write &name before the value that *name repeats",
    r"but found another document": "a file holds one document; remove the line ---",
}
"""The fix of frequent problems, by an expression of the parser's message."""
_AT_START = ("found unexpected end of stream", "<stream end>")
"""Parts of the messages of problems that are seen at the end of the file, far from the line to mend."""


TOO_MANY = f"has more than {MAX_VALUES} values, those of its aliases included"


class YamlError(ValueError):
    """An error in YAML text, with the line it is on, from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    """A composer of nodes whose scalars have the tags of YAML 1.2. Their depth and number are bounded."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    _depth = _count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH or self._count > 2 * MAX_VALUES:  # keys are nodes, too
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            bound = f"values are nested more than {MAX_DEPTH} deep" if self._depth > MAX_DEPTH else TOO_MANY
            raise YamlError(line, bound)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text which YAML 1.1 or 1.2 would read as something else."""


for _name, _expression, _first in _SCHEMA:
    for _side in (_Loader, _Dumper):
        characters = ["" if character == "\0" else character for character in _first]
        _side.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_expression})\\Z"), characters)
_EXPRESSIONS = {_TAG + name: re.compile(expression) for name, expression, _ in _SCHEMA}


def load(text: str) -> tuple[Any, dict[Location, int]]:
    """Return YAML text as plain data, with the line of each value. Raises `YamlError`.

    Data is None for an empty text, a mapping that repeats a key is refused, and `lines` then holds the root alone.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _problem(error) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"holds the control character U+{error.character:04X}; remove it") from error
    if root is None:
        return None, {(): 1}
    reader = _PlainData()
    return reader.value(root, ()), reader.lines


def dump(data: Any) -> str:
    """Return plain data as YAML, keys in their order; `load` returns the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _problem(error: yaml.MarkedYAMLError) -> YamlError:
    """Return the error with the line to mend and, for a frequent problem, what to do."""
    problem = error.problem or str(error)
    mark = error.problem_mark
    if any(part in problem for part in _AT_START):
        mark = error.context_mark or mark
    advice = next((f": {text}" for expression, text in _ADVICE.items() if re.match(expression, problem)), "")
    return YamlError(mark.line + 1 if mark else 1, f"not valid YAML: {problem}{advice}")


class _PlainData:
    """The conversion of nodes to plain data, and the line of each value."""

    def __init__(self) -> None:
        self.lines: dict[Location, int] = {}
        self._open: set[int] = set()
        """Nodes that the current one is inside."""
        self._count = 0

    def value(self, node: yaml.Node, location: Location) -> Any:
        """Return a node as plain data. Raises `YamlError`."""
        line = node.start_mark.line + 1
        self.lines.setdefault(location, line)
        self._count += 1
        if self._count > MAX_VALUES:
            raise YamlError(line, TOO_MANY)
        if id(node) in self._open:
            raise YamlError(line, "a value holds an alias of itself; remove the alias")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise _unknown_tag(node)
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            result: Any = self._mapping(node, location)
        else:
            result = [self.value(item, (*location, index)) for index, item in enumerate(node.value)]
        self._open.remove(id(node))
        return result

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        keys: dict[str, tuple[int, yaml.Node]] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError(line, "a key is a list or a mapping; write it as text")
            _check_text(key_node.value, line)
            if key_node.value in keys:
                raise YamlError(line, f"key '{key_node.value}' is given twice; keep one of them")
            keys[key_node.value] = (line, value_node)
        result: dict[str, Any] = {}
        for key, (line, value_node) in keys.items():
            if key == "<<":
                result |= {
                    name: value for name, value in self._merged(value_node, location).items() if name not in keys
                }
                continue
            self.lines[*location, key] = line
            result[key] = self.value(value_node, (*location, key))
        return result

    def _merged(self, node: yaml.Node, location: Location) -> Mapping[str, Any]:
        """Return the keys that `<<` adds from a mapping, or from a list of mappings of which the first one wins."""
        merged: dict[str, Any] = {}
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                raise YamlError(
                    node.start_mark.line + 1, "<< takes an alias of a mapping, or a list of them: <<: *name"
                )
            merged |= self.value(source, location)
        return merged


def _scalar(node: yaml.ScalarNode) -> Any:
    """Return the value of a scalar. Raises `YamlError` for one that is not of its tag."""
    kind, text = node.tag.removeprefix(_TAG), node.value
    line = node.start_mark.line + 1
    if kind == "str":
        _check_text(text, line)
        return text
    if node.tag in _EXPRESSIONS and _EXPRESSIONS[node.tag].fullmatch(text) and len(text) < 1000:
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            number = int(text.replace("_", ""), {"0o": 8, "0x": 16}.get(text[:2], 10))
            if number not in INTEGERS:
                raise YamlError(line, f"{text[:80]} is an integer of more than 64 bits")
            return number
        if kind == "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise _unknown_tag(node)


def _unknown_tag(node: yaml.Node) -> YamlError:
    """Return the error of a value that is not of its tag, or whose tag is not of the core schema."""
    text = f"{node.value[:80]!r}" if isinstance(node, yaml.ScalarNode) else "a mapping or list with a tag"
    return YamlError(node.start_mark.line + 1, f"{text} is no value of a recipe (tag {node.tag.removeprefix(_TAG)})")


def _check_text(text: str, line: int) -> None:
    """Raise `YamlError` for text that no file name or table can hold."""
    if "\0" in text:
        raise YamlError(line, f"{text[:80]!r} holds a NUL character; remove it")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise YamlError(line, f"{text[:80]!r} holds half a surrogate pair; write the character itself")
