"""Generates the reference pages of the documentation from the code, as a hook of MkDocs.

Each page is a function that returns Markdown. Nothing is written to the source tree.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

import pyarrow as pa
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from captioning import encoder, engine
from captioning.prompt import Prompt
from cluster import plugins
from pipelines.cli import COMMANDS, app
from pipelines.commands.train_autoencoder import AutoencoderRecipe
from pipelines.engine.segments import SOURCE_FIELDS
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import FATE_FIELDS, FOLDER, Step, limits_of
from pipelines.export import format as export_format
from pipelines.recipe import Recipe
from training import autoencoder, model, objective
from training.data import shards
from training.data.manifest import MANIFEST_SCHEMA
from training.sampling import guidance, solver

GENERATED = "*This page is generated from the code.*\n"


def commands_page() -> str:
    """Return every command with its arguments and options."""
    # Typer brings its own copy of click in newer versions, so the classes of click are not named here.
    group: Any = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        GENERATED,
        "Exit codes: 0 done, 1 something failed, 2 bad input, 130 stopped by Ctrl-C or SIGTERM.",
        "",
    ]
    for heading, modules in COMMANDS.items():
        lines += [f"## {heading}", ""]
        for module in modules:
            name = module.__name__.rpartition(".")[2].replace("_", "-")
            lines += [*_command(name, group.commands[name]), ""]
    return "\n".join(lines)


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    names = [(argument.metavar or argument.name or "").upper() for argument in arguments]
    usage = [word if argument.required else f"[{word}]" for word, argument in zip(names, arguments, strict=True)]
    yield f"### worldloom {name}"
    yield ""
    yield f"```\n{' '.join(['worldloom', name, *usage, '[options]'])}\n```"
    yield ""
    yield inspect.cleandoc(command.help or "")
    described = [(word, getattr(argument, "help", None)) for word, argument in zip(names, arguments, strict=True)]
    if any(text for _, text in described):
        yield ""
        yield "| argument | meaning |"
        yield "| --- | --- |"
        yield from (f"| `{word}` | {_cell(text or '')} |" for word, text in described)
    options = [option for option in options if option.name != "help"]
    if not options:
        return
    yield ""
    yield "| option | default | meaning |"
    yield "| --- | --- | --- |"
    for option in options:
        flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
        default = "" if option.default in (None, "", (), []) else f"`{option.default}`"
        yield f"| {flags} | {'required' if option.required else default} | {_cell(option.help or '')} |"


def recipe_page() -> str:
    """Return every key of a recipe."""
    lines = [
        "# Recipe",
        "",
        GENERATED,
        "A recipe is a YAML file. `worldloom validate` checks one, `worldloom schema` prints its JSON schema.",
        "Unknown keys and impossible values are refused with file, line, key and the closest known key.",
        "",
        "## Top level",
        "",
        *_settings(Recipe, sections=True),
        "",
    ]
    seen: set[type[BaseModel]] = {Recipe}
    lines += ["## sources", "", "A list; each entry has these keys.", "", *_settings(SourceSettings), ""]
    seen.add(SourceSettings)
    lines += ["## curate", "", "A list of steps, each `- NAME: {settings}`. See [Steps](steps.md).", ""]
    for key in ("ray", "splits", "train", "sample", "upsample"):
        (section,) = list(_models(Recipe.model_fields[key].annotation))[:1]
        lines += [f"## {key}", "", *_section(section, key, seen)]
    lines += [
        "## Recipe of an autoencoder",
        "",
        "For `worldloom train-autoencoder`.",
        "",
        *_settings(AutoencoderRecipe),
        "",
    ]
    for key in ("clips", "train"):
        (section,) = _models(AutoencoderRecipe.model_fields[key].annotation)
        lines += [f"### {key} (autoencoder)", "", *_section(section, f"{key} (autoencoder)", seen)]
    return "\n".join(lines)


def _section(section: type[BaseModel], path: str, seen: set[type[BaseModel]]) -> list[str]:
    seen.add(section)
    lines = [_first_paragraph(section), "", *_settings(section), ""]
    for name, field in section.model_fields.items():
        for inner in _models(field.annotation):
            if inner not in seen and not issubclass(inner, plugins.Plugin):
                lines += [f"### {path}.{name}", "", *_section(inner, f"{path}.{name}", seen)]
    return lines


def steps_page() -> str:
    """Return every curation step with its settings and the columns it writes."""
    lines = ["# Steps", "", GENERATED, "Each step is an item of `curate`: `- cut: {min_s: 1.0}`.", ""]
    for name, step in plugins.classes(FOLDER, Step):
        lines += [f"## {name}", "", inspect.cleandoc(step.__doc__ or ""), "", *_settings(step), ""]
        lines += [*_inner_settings(step, name)]
        if written := _written(name, step):
            lines += ["Writes:", "", *_columns(written), ""]
    return "\n".join(lines)


def _inner_settings(owner: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in owner.model_fields.items():
        for inner in _models(field.annotation):
            if not issubclass(inner, plugins.Plugin):
                yield from (f"`{path}.{name}`: {_first_paragraph(inner)}", "", *_settings(inner), "")


def plugins_page() -> str:
    """Return every plug-in that a recipe can name, with its settings."""
    kinds: list[tuple[str, str, str, type[plugins.Plugin]]] = [
        ("Captioning engines", "caption.engine", engine.FOLDER, engine.CaptionerSettings),
        ("Text encoders", "encode.text", encoder.FOLDER, encoder.TextEncoderSettings),
        ("Autoencoders", "encode.autoencoder", autoencoder.FOLDER, autoencoder.AutoencoderSettings),
        ("Models", "train.model", model.FOLDER, model.ModelSettings),
        ("Objectives", "train.objective", objective.FOLDER, objective.ObjectiveSettings),
        ("Solvers", "sample.solver", solver.FOLDER, solver.Solver),
        ("Guidance", "sample.guidance_method", guidance.FOLDER, guidance.Guidance),
        ("Export formats", "worldloom export --to", export_format.FOLDER, export_format.Format),
    ]
    lines = [
        "# Plug-ins",
        "",
        GENERATED,
        "Each is chosen by `name`. [Write your own](../guides/plugins.md) in one file.",
        "",
    ]
    for title, key, folder, contract in kinds:
        lines += [f"## {title}", "", f"Chosen by `{key}`.", ""]
        for name, plugin in plugins.classes(folder, contract):
            lines += [f"### {name.replace('_', '-') if contract is export_format.Format else name}", ""]
            lines += [
                inspect.cleandoc(plugin.__doc__ or ""),
                "",
                *_settings(plugin),
                "",
                *_inner_settings(plugin, name),
            ]
    return "\n".join(lines)


def columns_page() -> str:
    """Return every column of the stored tables."""
    lines = [
        "# Columns",
        "",
        GENERATED,
        "Tables are Parquet. A segment's table has the columns of all steps up to it.",
        "No step removes a row: the columns of its fate say whether it is still kept.",
        "",
        "## Every table",
        "",
        *_columns((*SOURCE_FIELDS, *FATE_FIELDS)),
        "",
    ]
    for name, step in plugins.classes(FOLDER, Step):
        if written := _written(name, step):
            lines += [f"## {name}", "", *_columns(written), ""]
    described = "[Latent shards](../formats/shards.md) describes the columns."
    lines += ["## Manifest", "", f"`tables/manifest-*/_manifest.parquet`: one row per training sample. {described}", ""]
    lines += [*_columns(MANIFEST_SCHEMA), "", "## Latent shards", ""]
    lines += [f"`tables/latents-*/bucket=*/part-*.parquet`: the scalar columns. {described}", ""]
    lines += [*_columns(shards.SCALAR_SCHEMA)]
    return "\n".join(lines)


def _written(name: str, step: type[Step]) -> tuple[pa.Field, ...]:
    required = any(field.is_required() for field in step.model_fields.values())
    if name == "keep":
        return ()
    if required:
        # The columns of a step do not depend on its required settings (engines, buckets).
        return step.model_construct(name=name).writes()
    return step(name=name).writes()


def _columns(fields: Iterable[pa.Field]) -> Iterator[str]:
    fields = list(fields)
    docs = [(field.metadata or {}).get(b"doc", b"").decode() + _limits(field) for field in fields]
    meaning = (" meaning |", " --- |") if any(docs) else ("", "")
    yield f"| column | type |{meaning[0]}"
    yield f"| --- | --- |{meaning[1]}"
    for field, doc in zip(fields, docs, strict=True):
        cell = f" {_cell(doc)} |" if any(docs) else ""
        yield f"| `{field.name}` | {_cell(str(field.type))} |{cell}"


def _limits(field: pa.Field) -> str:
    """Return the limits of a column for its description, unless its own text has them in brackets."""
    low, high = limits_of(field)
    if (low is None and high is None) or b"[" in field.metadata[b"doc"]:
        return ""
    return f"; in [{low:g}, {high:g}]" if None not in (low, high) else f"; at least {low:g}"


def _settings(settings: type[BaseModel], sections: bool = False) -> Iterator[str]:
    """Yield the table of settings; with `sections`, a key without a description links to the section of its name."""
    rows = [(name, field) for name, field in settings.model_fields.items() if name not in ("name", "version")]
    if not issubclass(settings, plugins.Plugin):
        rows = list(settings.model_fields.items())
    if not rows:
        yield "No settings."
        return
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, field in rows:
        key = field.alias or name
        is_section = sections and any(True for _ in _models(field.annotation))
        meaning = _cell(field.description or "") or (f"See [{key}](#{key})." if is_section else "")
        yield f"| `{key}` | {_cell(_type(field.annotation))} | {_default(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        return f"`{value.name}`" if isinstance(value, plugins.Plugin | Prompt) else ""
    if isinstance(value, tuple):
        text = ", ".join(str(item) for item in value if not isinstance(item, BaseModel))
        return _cell(f"`[{text}]`") if text else ""
    return _cell(f"`{str(value).lower() if isinstance(value, bool) else value}`") if value not in ("", {}) else ""


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(str(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, plugins.Plugin):
        return "name or mapping"
    if isinstance(annotation, type) and issubclass(annotation, Prompt):
        return "name or path"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return getattr(annotation, "__name__", str(annotation))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and not issubclass(annotation, Prompt):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _first_paragraph(settings: type[BaseModel]) -> str:
    return inspect.cleandoc(settings.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _cell(text: str) -> str:
    text = re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
    return text if text.startswith("`") else text.replace("*", "\\*")


PAGES = {
    "reference/commands.md": commands_page,
    "reference/recipe.md": recipe_page,
    "reference/steps.md": steps_page,
    "reference/plugins.md": plugins_page,
    "reference/columns.md": columns_page,
}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages (a hook that MkDocs calls)."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
