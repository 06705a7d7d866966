"""Plug-ins chosen by name: the YAML name is the path of a module, and its class is the one that keeps the contract.

A folder of plug-ins has one contract, an abstract settings class. A plug-in is one file with one concrete subclass.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from cluster.config import NestedError, Settings, unknown_message, validate
from cluster.telemetry import log

ENTRY_POINTS = "worldloom.plugins"
"""Group of entry points that add plug-ins of other packages.

Each is `<folder>.<name> = "module"`, for example `training.models.unet = "my_pkg.unet"`.
"""

P = TypeVar("P", bound="Plugin")


class Plugin(Settings):
    """The base of the settings of plug-ins. Each direct subclass is the contract of one folder."""

    name: str


def names(folder: str) -> list[str]:
    """Return the names of all plug-ins of a folder such as `pipelines.steps`, entry points last.

    The name of a module in a sub-folder has a dot.
    """
    package = importlib.import_module(folder)
    found = [
        info.name.removeprefix(folder + ".")
        for info in pkgutil.walk_packages(package.__path__, folder + ".")
        if not info.ispkg and not info.name.rpartition(".")[2].startswith("_")
    ]
    return sorted(found) + sorted(_entry_points(folder))


@cache
def _entry_points(folder: str) -> dict[str, str]:
    # Cached: listing the installed packages takes 9 ms for 170 of them, and one recipe needs it about 14 times.
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {
        point.name.removeprefix(folder + "."): point.value for point in points if point.name.startswith(folder + ".")
    }


def load(folder: str, name: str, contract: type[P]) -> type[P]:
    """Return the class of a plug-in.

    Raises `ValueError` if the name is unknown, if an entry point's module cannot be imported, whatever its error is, or
    if the module has not exactly one class that keeps the contract.
    """
    entry_points = _entry_points(folder)
    module_name = entry_points.get(name, f"{folder}.{name}")
    is_module_path = all(component.isidentifier() for component in name.split("."))
    if name not in entry_points and not (is_module_path and name in names(folder)):
        raise ValueError(unknown_message("name", name, [known for known, _ in classes(folder, contract)]))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # named, and raised again: a module of others may fail in any way
        if name not in entry_points:
            raise
        raise ValueError(f"plug-in '{name}': its module '{module_name}' cannot be imported: {_where(error)}") from error
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
            f"module '{module_name}' has {len(found)} subclasses of the contract {contract.__name__}; "
            "it must have exactly one"
        )
    return found[0]


def _where(error: Exception) -> str:
    """Return what an error in an imported module says, with the last file and line that it came through."""
    if isinstance(error, ImportError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    # A syntax error names its own file and line.
    position = "" if isinstance(error, SyntaxError) else f" ({last.filename}:{last.lineno})"
    return f"{type(error).__name__}: {error}{position}"


def classes(folder: str, contract: type[P]) -> Iterator[tuple[str, type[P]]]:
    """Yield name and class of every plug-in of a folder that keeps the contract.

    One of another package that cannot be imported is left out, with a warning.
    """
    for name in names(folder):
        try:
            yield name, load(folder, name, contract)
        except ValueError as error:
            if name in _entry_points(folder):
                _warn_once(str(error))


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def build(folder: str, contract: type[P], data: Any) -> P:
    """Return the settings of a plug-in from its name, or from a mapping with `name` and its settings.

    Raises `ValueError` if the name is unknown, and `NestedError` if the settings are invalid.
    """
    if isinstance(data, contract):
        return data
    if isinstance(data, str):
        data = {"name": data}
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ValueError(f"write a name, or a mapping with 'name' and settings; got {data!r}")
    plugin = load(folder, data["name"], contract)
    try:
        return validate(plugin, data)
    except ValidationError as error:
        raise NestedError(plugin, error) from error


@dataclass(frozen=True)
class PluginField:
    """The annotation of a settings field that holds a plug-in.

    Example: `model: Annotated[Model, PluginField("training.models", Model)]`.
    """

    folder: str
    contract: type[Plugin]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda data: build(self.folder, self.contract, data),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda plugin: plugin.model_dump(mode="json")
            ),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        plugins = list(classes(self.folder, self.contract))
        options: list[dict[str, Any]] = [{"type": "string", "enum": [name for name, _ in plugins]}]
        for name, plugin in plugins:
            option = copy.deepcopy(handler.resolve_ref_schema(handler(plugin.__pydantic_core_schema__)))
            option["properties"]["name"] = {"const": name}
            option["required"] = sorted({"name", *option.get("required", [])})
            options.append(option)
        return {"anyOf": options}
