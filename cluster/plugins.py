"""Parts chosen by name: the YAML name is the path of a module, and the class in it is found by its contract."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from cluster.config import NestedError, Settings, unknown_message, validate

ENTRY_POINTS = "worldloom.plugins"
"""Entry points `<folder>.<name> = "module"` of this group, say `training.models.unet = "my_pkg.unet"`, are searched too."""

P = TypeVar("P", bound="Plugin")


class Plugin(Settings):
    """Settings of a part chosen by name. A subclass is the contract of a folder; the one class a file adds is the part."""

    name: str


def names(folder: str) -> list[str]:
    """Names found in a folder such as `pipelines.steps`, nested ones with a dot, those of entry points included."""
    package = importlib.import_module(folder)
    found = [
        info.name.removeprefix(folder + ".")
        for info in pkgutil.walk_packages(package.__path__, folder + ".")
        if not info.ispkg and not info.name.rpartition(".")[2].startswith("_")
    ]
    return sorted(found) + sorted(_entry_points(folder))


@cache
def _entry_points(folder: str) -> dict[str, str]:
    # Reads what is installed, 9 ms with 170 packages; a recipe asks some 14 times.
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {
        point.name.removeprefix(folder + "."): point.value for point in points if point.name.startswith(folder + ".")
    }


def load(folder: str, name: str, contract: type[P]) -> type[P]:
    """The class of a part by name. Raises `ValueError` with the closest name, or saying what the file lacks."""
    outside = _entry_points(folder)
    module_name = outside.get(name, f"{folder}.{name}")
    if name not in outside and (not all(part.isidentifier() for part in name.split(".")) or name not in names(folder)):
        raise ValueError(unknown_message("name", name, [known for known, _ in classes(folder, contract)]))
    module = importlib.import_module(module_name)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, contract)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise ValueError(
            f"'{module_name}' holds {len(found)} classes that keep the contract {contract.__name__}; it must hold exactly one"
        )
    return found[0]


def classes(folder: str, contract: type[P]) -> Iterator[tuple[str, type[P]]]:
    """Every part of a folder that keeps the contract, by name."""
    for name in names(folder):
        try:
            yield name, load(folder, name, contract)
        except ValueError:
            continue


def build(folder: str, contract: type[P], data: Any) -> P:
    """Settings of a part from `name`, or from a mapping with `name` and its settings."""
    if isinstance(data, contract):
        return data
    if isinstance(data, str):
        data = {"name": data}
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ValueError(f"write a name, or a mapping with 'name' and settings; got {data!r}")
    part = load(folder, data["name"], contract)
    try:
        return validate(part, data)
    except ValidationError as error:
        raise NestedError(part, error) from error


@dataclass(frozen=True)
class Chosen:
    """Annotation for a settings field that holds a part chosen by name: `model: Annotated[Model, Chosen("training.models", Model)]`."""

    folder: str
    contract: type[Plugin]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda data: build(self.folder, self.contract, data),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda part: part.model_dump(mode="json")),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        parts = list(classes(self.folder, self.contract))
        options: list[dict[str, Any]] = [{"type": "string", "enum": [name for name, _ in parts]}]
        for name, part in parts:
            option = copy.deepcopy(handler.resolve_ref_schema(handler(part.__pydantic_core_schema__)))
            option["properties"]["name"] = {"const": name}
            option["required"] = sorted({"name", *option.get("required", [])})
            options.append(option)
        return {"anyOf": options}
