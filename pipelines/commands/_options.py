"""Options that several commands share, and options made from the fields of a settings class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.config import Settings
from cluster.plugins import Plugin
from pipelines.recipe import Recipe, load_recipe

RecipeFile = Annotated[
    Path, typer.Argument(help="Recipe (YAML), or the folder of a run, which holds its resolved recipe.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value: --set train.steps=50. Repeatable."),
]
InProcess = Annotated[
    bool, typer.Option("--inline", help="Run in this process, without Ray and DeepSpeed: for debugging.")
]
RemoteCode = Annotated[
    bool,
    typer.Option(
        "--allow-remote-code",
        help="Let models that the recipe names run code that comes with them, where it says so: trust_remote_code.",
    ),
]
License = Annotated[
    str | None, typer.Option("--license", help="Licence of the model, as Hugging Face names it: apache-2.0.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_recipe(path: Path, assignments: Sequence[str] | None, allow_remote_code: bool = True) -> Recipe:
    """Read a recipe, or the one of a run's folder, as `load_recipe` does.

    Commands that run or check a recipe pass their flag of that name; others run no model of it.
    """
    return load_recipe(path, assignments or [], allow_remote_code)


def with_options(
    settings: type[Settings], fields: Sequence[str], optional: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of these fields, with the field's own default and description.

    The command receives them as one mapping, its parameter `options`. A field in `optional` has no default although the
    settings require it, and is None if it is not given. A plug-in is given by its name, and has its default settings.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        added = []
        for name in fields:
            field = settings.model_fields[name]
            kind, value = field.annotation, field.default
            if isinstance(value, Plugin):
                kind, value = str, value.name
            if name in optional:
                kind = kind | None  # type: ignore[operator, assignment]
            default = None if name in optional else inspect.Parameter.empty if field.is_required() else value
            annotation = Annotated[kind, typer.Option(help=field.description)]  # type: ignore[valid-type]
            added.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(
                **{name: value for name, value in values.items() if name not in fields},
                options={name: values[name] for name in fields},
            )

        kept = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own.parameters.values()
            if parameter.name != "options"
        ]
        run.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return decorate
