"""Store what was measured of a piece of a video as plain data, and read it again, bit for bit.

The file is one of safetensors: its first tensor is a JSON text with all numbers, in which an array is the index of its
tensor. Unlike a pickle it can only hold values, whoever wrote it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipelines.video.segment_meter import Measurements

VERSION = 1
"""Version of the format. Increase it when a field of what is measured changes."""

TREE = "tree"
"""Name of the tensor with the JSON text; those of arrays are numbers."""


def dump_measurements(measurements: Measurements | None) -> bytes:
    """Return measurements as the bytes of a file; None is kept too."""
    arrays: dict[str, NDArray[Any]] = {}
    tree = json.dumps([VERSION, _to_plain(measurements, Measurements | None, arrays)])
    data: bytes = save({TREE: np.frombuffer(tree.encode(), np.uint8), **arrays})
    return data


def load_measurements(data: bytes) -> Measurements | None:
    """Return the measurements that `dump_measurements` stored.

    Raises `ValueError` for bytes of another version, or of anything else.
    """
    try:
        arrays = load(data)
        version, tree = json.loads(arrays[TREE].tobytes())
        if version != VERSION:
            raise ValueError(f"they are of version {version}")
        measurements: Measurements | None = _from_plain(tree, Measurements | None, arrays)
    except (SafetensorError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"no measurements of version {VERSION}: {type(error).__name__}: {error}") from error
    return measurements


def _to_plain(value: Any, annotation: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """Return a value of a type as JSON types, and add its arrays to `arrays`. Raises `TypeError` for another type."""
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        number = next(i for i, kind in enumerate(arguments) if isinstance(value, kind))
        return [number, _to_plain(value, arguments[number], arrays)]
    if typing.get_origin(annotation) is tuple:
        return [_to_plain(item, kind, arrays) for item, kind in zip(value, _item_types(arguments, value), strict=True)]
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return [_to_plain(getattr(value, name), kind, arrays) for name, kind in _types_of_fields(annotation).items()]
    if annotation is Fraction:
        return [value.numerator, value.denominator]
    if annotation is bytes:
        value = np.frombuffer(value, np.uint8)
    if isinstance(value, np.ndarray):
        arrays[name := str(len(arrays))] = value
        return name
    if type(value) not in (int, float, bool, types.NoneType):
        raise TypeError(f"{type(value).__name__} is not stored")
    return value


def _from_plain(data: Any, annotation: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the value of a type from JSON types and arrays. Raises `TypeError` for data of another type."""
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        number, inner = data
        return _from_plain(inner, arguments[number], arrays)
    if typing.get_origin(annotation) is tuple:
        return tuple(
            _from_plain(item, kind, arrays) for item, kind in zip(data, _item_types(arguments, data), strict=True)
        )
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        kinds = _types_of_fields(annotation).values()
        return annotation(*(_from_plain(item, kind, arrays) for item, kind in zip(data, kinds, strict=True)))
    if annotation is Fraction:
        return Fraction(*data)
    if annotation is bytes:
        return arrays[data].tobytes()
    if typing.get_origin(annotation) is np.ndarray:
        array = arrays[data]
        if array.dtype.type not in typing.get_args(arguments[1]):
            raise TypeError(f"array {data} is of {array.dtype}")
        return array
    # A float may be a whole number, which JSON keeps apart.
    if type(data) not in ((int, float) if annotation is float else (annotation,)):
        raise TypeError(f"{data!r} is not of type {annotation.__name__}")
    return data


def _item_types(arguments: tuple[Any, ...], items: Any) -> tuple[Any, ...]:
    """Return the type of each item of a tuple, `tuple[X, ...]` or `tuple[X, Y]`."""
    return (arguments[0],) * len(items) if arguments[1:] == (...,) else arguments


@functools.cache
def _types_of_fields(kind: Any) -> dict[str, Any]:
    """Return the fields of a dataclass and their types, in order."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
