"""Parse YAML into frozen settings, with errors that name file, line, key, value and the closest known key."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cluster.stores import credentials_message, has_credentials
from cluster.yaml_text import MAX_BYTES, Location, YamlError, load

T = TypeVar("T", bound=BaseModel)
MAX_SHOWN = 200
"""Most characters of an option's value that an error message repeats."""


class ConfigError(ValueError):
    """An error in the input of a user. The message says where the error is, what is wrong and how to fix it."""


class Settings(BaseModel):
    """The base of every settings class: frozen, and strict about unknown keys. No number is infinite or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def remote_code(self) -> tuple[Location, ...]:
        """Return the locations, in these settings, of values that bring code which is not installed, or that name it.

        Examples are the Python files of a model's repository. A recipe with one is refused unless the command line has
        --allow-remote-code. Settings inside these are asked on their own.
        """
        return ()


class NestedError(ValueError):
    """An error that carries the errors of settings validated inside other settings, with their locations.

    `prefix` is the location of the inner settings inside the value that was validated.
    """

    def __init__(self, model: type[BaseModel], error: ValidationError, prefix: Location = ()) -> None:
        super().__init__(str(error))
        self.model = model
        self.error = error
        self.prefix = prefix


class LocatedError(ValueError):
    """An error that a validator of a whole model found at one location inside that model."""

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.location = location


class FaultsError(ValueError):
    """Several errors that a validator of a whole model found inside that model."""

    def __init__(self, errors: Sequence[LocatedError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


def list_names(names: Sequence[str], most: int) -> str:
    """Return names for a message, after `most` of them only how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def unknown_message(noun: str, name: str, known: Sequence[str]) -> str:
    """Return "unknown key 'detecter'; did you mean 'detector'? Known keys: ..." for the noun "key".

    A noun in the plural, as "weights", keeps its form.
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    plural = (
        noun[:-1] + "ies"
        if noun.endswith("y") and noun[-2] not in "aeiou"
        else noun + ("es" if noun.endswith("ss") else "" if noun.endswith("s") else "s")
    )
    return f"unknown {noun} '{name}'{hint} Known {plural}: {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class Document:
    """A YAML document as plain data, with the line number of each value."""

    file: str
    data: Any
    lines: Mapping[Location, int]

    def file_and_line(self, location: Location) -> str:
        """Return `file:line` of a location, or of its nearest ancestor that the file has."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return f"{self.file}:{self.lines[location[:end]]}"
        return self.file

    def error(self, location: Location, message: str) -> ConfigError:
        """Return an error whose message begins with file, line and key of a location."""
        key = ".".join(str(part) for part in location)
        return ConfigError(f"{self.file_and_line(location)}: {key + ': ' if key else ''}{message}")


def read_document(path: str | Path) -> Document:
    """Read a YAML file. Raises `ConfigError` if the file is missing, is not valid YAML or repeats a key."""
    try:
        with Path(path).open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    return decode_document(data, str(path))


def decode_document(data: bytes, file: str) -> Document:
    """Parse the bytes of a YAML or JSON file as `read_document` does; `file` only names it in error messages."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file}: has more than {MAX_BYTES:,} bytes, the most that a document may have")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    return parse_document(text, file)


def parse_document(text: str, file: str) -> Document:
    """Parse the text of a YAML file as `read_document` does; `file` only names it in error messages."""
    try:
        data, lines = load(text)
    except YamlError as error:
        raise ConfigError(f"{file}:{error.line}: {error}") from error
    if data is None:
        raise ConfigError(f"{file}: is empty")
    return Document(file, data, lines)


def override(document: Document, assignments: Sequence[str]) -> Document:
    """Return the document with `a.b=c` assignments applied; each value is parsed as YAML.

    A list is indexed by number. A list whose items are mappings with one key, such as the steps of `curate`, may also
    be indexed by that key; `keep#2` is the second `keep`. A missing last key is added: `parse` validates it later.
    Raises `ConfigError` if an assignment is malformed or names no existing item.
    """
    data = json.loads(json.dumps(document.data, default=str))
    lines = dict(document.lines)
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"--set {assignment}: write it as key.key=value")
        try:
            value, _ = load(text)
        except YamlError as error:
            raise ConfigError(f"--set {assignment}: {error}") from error
        _assign(data, path.strip().split("."), value, assignment)
    return Document(document.file + (" with --set" if assignments else ""), data, lines)


def _assign(data: Any, path: list[str], value: Any, assignment: str) -> None:
    """Set the value at a path in place. `assignment` is the whole option, for error messages."""
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
    """Return the value of a key, after setting a missing or null one to an empty mapping."""
    if data.get(key) is None:
        data[key] = {}
    return data[key]


def _list_index(items: list[Any], part: str, assignment: str) -> int:
    if part.isdigit():
        if int(part) < len(items):
            return int(part)
        raise ConfigError(f"--set {assignment}: there are {len(items)} items, so no item {part}; the first is 0")
    labels = list(item_labels(items))
    if part in labels:
        return labels.index(part)
    raise ConfigError(f"--set {assignment}: {unknown_message('item', part, labels)}")


def item_labels(items: Sequence[Any]) -> Iterator[str]:
    """Yield a label per item of a list of one-key mappings: the key, or `key#2` for the second item with that key."""
    seen: dict[str, int] = {}
    for item in items:
        key = next(iter(item)) if isinstance(item, Mapping) and len(item) == 1 else str(item)
        seen[key] = seen.get(key, 0) + 1
        yield key if seen[key] == 1 else f"{key}#{seen[key]}"


def parse(model: type[T], document: Document) -> T:
    """Validate a document strictly against a settings class. Raises `ConfigError` with one line per error.

    A URI with credentials is refused first, as other errors repeat values, and a run stores its settings.
    """
    if errors := [document.error(location, message) for location, message in _credentials(document.data, ())]:
        raise ConfigError("\n".join(map(str, errors)))
    try:
        return validate(model, document.data)
    except ValidationError as error:
        errors = [document.error(location, message) for location, message in located_messages(model, error)]
        raise ConfigError("\n".join(str(each) for each in errors)) from None


def _credentials(data: Any, location: Location) -> Iterator[tuple[Location, str]]:
    """Yield (location, message) of each URI with credentials in plain data."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _credentials(value, (*location, key))
    elif isinstance(data, str) and has_credentials(data):
        yield location, credentials_message(data)


def validate(model: type[T], data: Any) -> T:
    """Validate plain data strictly by JSON's rules: no number from a string, no integer from a boolean.

    Lists become tuples. Raises `pydantic.ValidationError`.
    """
    return model.model_validate_json(json.dumps(data, default=str), strict=True)


def parse_options(model: type[T], values: Mapping[str, Any]) -> T:
    """Validate options of the command line. Raises `ConfigError` naming each wrong option with its value."""
    try:
        return validate(model, dict(values))
    except ValidationError as error:
        messages = []
        for each in error.errors():
            cause = each.get("ctx", {}).get("error")
            key, value = each["loc"][-1] if each["loc"] else "", each["input"]
            if isinstance(cause, LocatedError):
                key = cause.location[-1]
                value = values.get(str(key))
            shown = text if len(text := str(value)) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
            messages.append(f"--{str(key).replace('_', '-')} {shown}: {cause or each['msg']}")
        raise ConfigError("; ".join(messages)) from None


def located_messages(
    model: type[BaseModel], error: ValidationError, prefix: Location = ()
) -> Iterator[tuple[Location, str]]:
    """Yield (location, message) of each validation error. Errors inside nested settings have their full location."""
    for each in error.errors():
        location = (*prefix, *each["loc"])
        cause = each.get("ctx", {}).get("error")
        if isinstance(cause, NestedError):
            yield from located_messages(cause.model, cause.error, (*location, *cause.prefix))
        elif isinstance(cause, LocatedError):
            yield (*location, *cause.location), str(cause)
        elif isinstance(cause, FaultsError):
            yield from (((*location, *one.location), str(one)) for one in cause.errors)
        elif each["type"] == "extra_forbidden":
            key = str(each["loc"][-1])
            yield location, unknown_message("key", key, known_keys(model, each["loc"][:-1])) + _key_advice(key, each)
        elif each["type"] == "value_error":
            yield location, str(cause)
        elif each["type"] == "too_short" and each["input"]:
            continue  # each refused item has an error already
        elif each["type"] == "missing":
            yield location, "is required and missing"
        else:
            value = json.dumps(each["input"], default=str, ensure_ascii=False)[:120]
            keys = known_keys(model, each["loc"])
            yield location, f"{each['msg']} (got {value}){_value_advice(each['type'], value, keys)}"


def _key_advice(key: str, error: ErrorDetails) -> str:
    """Return what to do about an unknown key without a value, which is often text that YAML took for a key."""
    if error["input"] is not None:
        return ""
    if ":" in key:
        return f". YAML needs a space after the colon: {key.replace(':', ': ', 1)}"
    return ". If it is part of a text with a comma, quote the whole text"


def _value_advice(kind: str, value: str, keys: Sequence[str]) -> str:
    """Return how to write a value of the right type, for a pydantic error of this type and the keys known there."""
    if kind == "string_type" and value != "null" and value[:1] not in "[{":
        return f'; quote it: "{value}"'
    if kind in ("float_type", "int_type") and (quantity := re.fullmatch(r'"([0-9.]+) *(%|[A-Za-z]+)"', value)):
        number, unit = quantity.groups()
        return f"; write {float(number) / 100:g}" if unit == "%" else f"; write {number}, without the unit"
    if kind in ("model_type", "model_attributes_type"):
        return f"; write a mapping with keys {', '.join(keys)}" if keys else "; write a mapping of keys"
    return "; write true or false" if kind == "bool_type" else ""


def known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """Return the keys of the settings class at a location inside `model`, or [] if no settings class is there."""
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
    """Yield every pydantic model that a type annotation contains."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
