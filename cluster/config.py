"""YAML to frozen settings, with errors that name the file, the line, the key, the value and the closest known key."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

Location = tuple[str | int, ...]
T = TypeVar("T", bound=BaseModel)


class ConfigError(ValueError):
    """Bad input from a user: the message says where it stands, what is wrong and how to mend it."""


class Settings(BaseModel):
    """Base of every settings class: frozen, and an unknown key is refused with the closest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class NestedError(ValueError):
    """Carries the errors of settings validated inside other settings, so that their locations are kept."""

    def __init__(self, model: type[BaseModel], error: ValidationError, prefix: Location = ()) -> None:
        super().__init__(str(error))
        self.model = model
        self.error = error
        self.prefix = prefix


class LocatedError(ValueError):
    """A fault that a validator of an outer model found at a place inside it."""

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.location = location


def unknown_message(what: str, name: str, known: Sequence[str]) -> str:
    """'unknown key 'detecter'; did you mean 'detector'? Known keys: ...', the closest first."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    plural = (
        what[:-1] + "ies"
        if what.endswith("y") and what[-2] not in "aeiou"
        else what + ("es" if what.endswith("ss") else "s")
    )
    return f"unknown {what} '{name}'{hint} Known {plural}: {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class Document:
    """A YAML document as plain data, with the line on which each value stands."""

    file: str
    data: Any
    lines: Mapping[Location, int]

    def where(self, location: Location) -> str:
        """`file:line` of a location, or of its nearest ancestor that stands in the file."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return f"{self.file}:{self.lines[location[:end]]}"
        return self.file

    def error(self, location: Location, message: str) -> ConfigError:
        key = ".".join(str(part) for part in location)
        return ConfigError(f"{self.where(location)}: {key + ': ' if key else ''}{message}")


def read_document(path: str | Path) -> Document:
    """Read a YAML file. Raises `ConfigError` for a missing file, bad YAML, or a key given twice."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_document(text, str(path))


def parse_document(text: str, file: str) -> Document:
    """As `read_document`, from text; `file` is used in messages only."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{file}:{line}: not valid YAML: {error.problem}") from error
    if root is None:
        raise ConfigError(f"{file}: is empty")
    lines: dict[Location, int] = {}
    data = _plain(root, (), lines, file)
    return Document(file, data, lines)


def _plain(node: yaml.Node, location: Location, lines: dict[Location, int], file: str) -> Any:
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in result:
                raise ConfigError(f"{file}:{line}: key '{key}' is given twice; keep one of them")
            lines[*location, key] = line
            result[key] = _plain(value_node, (*location, key), lines, file)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*location, index), lines, file) for index, item in enumerate(node.value)]
    return yaml.SafeLoader("").construct_object(node)  # type: ignore[no-untyped-call]


def override(document: Document, assignments: Sequence[str]) -> Document:
    """Apply `a.b=c` assignments; each value is read as YAML.

    A list is indexed by number, or, where its items are mappings of one key (as the steps of `curate` are), by that
    key; `keep#2` is the second `keep`. A missing last key is added, and judged later with all the others.
    """
    data = json.loads(json.dumps(document.data, default=str))
    lines = dict(document.lines)
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"--set {assignment}: write it as key.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment}: the value is not valid YAML: {error}") from error
        _assign(data, path.strip().split("."), value, assignment)
    return Document(document.file + (" with --set" if assignments else ""), data, lines)


def _assign(data: Any, path: list[str], value: Any, assignment: str) -> None:
    *parents, last = path
    for position, part in enumerate(parents):
        if isinstance(data, list):
            data = data[_list_index(data, part, assignment)]
            if isinstance(data, dict) and len(data) == 1 and not part.isdigit():
                data = _enter(data, next(iter(data)))
        elif isinstance(data, dict):
            data = _enter(data, part)
        else:
            raise ConfigError(
                f"--set {assignment}: '{'.'.join(path[:position])}' is a plain value and has no key '{part}'"
            )
    if isinstance(data, list):
        index = _list_index(data, last, assignment)
        if not last.isdigit() and isinstance(data[index], dict):
            data[index] = {next(iter(data[index])): value}
        else:
            data[index] = value
    elif isinstance(data, dict):
        data[last] = value
    else:
        raise ConfigError(f"--set {assignment}: '{'.'.join(parents)}' is a plain value and has no key '{last}'")


def _enter(data: dict[str, Any], key: str) -> Any:
    if data.get(key) is None:
        data[key] = {}
    return data[key]


def _list_index(items: list[Any], part: str, assignment: str) -> int:
    if part.isdigit():
        if int(part) < len(items):
            return int(part)
        raise ConfigError(f"--set {assignment}: there are {len(items)} items, so no item {part}; the first is 0")
    labels = list(labelled(items))
    if part in labels:
        return labels.index(part)
    raise ConfigError(f"--set {assignment}: {unknown_message('item', part, labels)}")


def labelled(items: Sequence[Any]) -> Iterator[str]:
    """Labels of a list of one-key mappings: the key, and `key#2` for its second appearance."""
    seen: dict[str, int] = {}
    for item in items:
        key = next(iter(item)) if isinstance(item, Mapping) and len(item) == 1 else str(item)
        seen[key] = seen.get(key, 0) + 1
        yield key if seen[key] == 1 else f"{key}#{seen[key]}"


def parse(model: type[T], document: Document) -> T:
    """Validate a document strictly against a settings class. Raises `ConfigError` with every fault, one a line."""
    try:
        return validate(model, document.data)
    except ValidationError as error:
        faults = [document.error(location, message) for location, message in flatten(model, error)]
        raise ConfigError("\n".join(str(fault) for fault in faults)) from None


def validate(model: type[T], data: Any) -> T:
    """Strict validation with JSON's rules: no number from a string, no integer from a boolean, lists become tuples."""
    return model.model_validate_json(json.dumps(data, default=str), strict=True)


def from_options(model: type[T], values: Mapping[str, Any]) -> T:
    """Settings from options of the command line. Raises `ConfigError` naming each wrong option with its value."""
    try:
        return validate(model, dict(values))
    except ValidationError as error:
        faults = [
            f"--{str(fault['loc'][-1]).replace('_', '-')} {fault['input']}: {fault['msg']}" for fault in error.errors()
        ]
        raise ConfigError("; ".join(faults)) from None


def flatten(model: type[BaseModel], error: ValidationError, prefix: Location = ()) -> Iterator[tuple[Location, str]]:
    """Each fault as (location, message), those of nested settings with their whole location."""
    for fault in error.errors():
        location = (*prefix, *fault["loc"])
        cause = fault.get("ctx", {}).get("error")
        if isinstance(cause, NestedError):
            yield from flatten(cause.model, cause.error, (*location, *cause.prefix))
        elif isinstance(cause, LocatedError):
            yield (*location, *cause.location), str(cause)
        elif fault["type"] == "extra_forbidden":
            yield location, unknown_message("key", str(fault["loc"][-1]), known_keys(model, fault["loc"][:-1]))
        elif fault["type"] == "value_error":
            yield location, str(cause)
        elif fault["type"] == "too_short" and fault["input"]:
            continue  # its items were refused, and each has an error of its own
        elif fault["type"] == "missing":
            yield location, "is required and missing"
        else:
            yield location, f"{fault['msg']} (got {json.dumps(fault['input'], default=str)[:120]})"


def known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """Keys of the settings class that stands at a location inside another; empty where that cannot be told."""
    for part in location:
        if not isinstance(part, str):
            continue
        extras = typing.get_type_hints(model).get("__pydantic_extra__")
        annotation = model.model_fields[part].annotation if part in model.model_fields else extras
        inner = next(_models_in(annotation), None)
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
