"""Prompts as YAML files: Jinja templates, the variables they may use, and the shape of the answer they request.

A prompt file has the keys `doc`, `system` and `user` (Jinja templates), `answer` (text, json or same), `captions`,
`fields` and `max_tokens`. `captions` maps the kind of each requested caption to its description; the first one is the
main caption, with which a clip is trained by default. `fields` maps further keys of a JSON answer to descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from cluster.config import ConfigError, LocatedError, Settings, parse, read_document, unknown_message
from cluster.storage import digest

FOLDER = Path(__file__).parent / "prompts"

Purpose = Literal["describe", "merge", "rewrite", "upsample"]
"""Task of a prompt: describe images, merge descriptions of windows, rewrite a caption, or detail a short prompt."""

_REQUEST_VARIABLES = {
    "language": "language of the answer, by its English name",
    "captions": "requested captions: descriptions by kind",
    "fields": "further requested keys: descriptions by name",
    "json": "whether the answer has to be JSON",
}
_CLIP_VARIABLES = {
    "kind": "video or image",
    "duration": "length of the clip in words, such as '4.2 seconds'; none for an image",
    "camera": "measured motion of the camera in words; none if it was not measured",
    "hint": "caption that came with the source; none if there is none",
}
VARIABLES: Mapping[Purpose, Mapping[str, str]] = {
    "describe": {
        **_REQUEST_VARIABLES,
        **_CLIP_VARIABLES,
        "n_images": "number of images that are sent with the question",
        "span": "part of the clip that the images show, in words; none if they show the whole clip",
    },
    "merge": {
        **_REQUEST_VARIABLES,
        **_CLIP_VARIABLES,
        "parts": "descriptions of the windows in order; each has span (in words), captions and fields (both by name)",
    },
    "rewrite": {
        **_REQUEST_VARIABLES,
        **_CLIP_VARIABLES,
        "caption": "main caption so far",
        "all_captions": "all captions so far, by kind",
    },
    "upsample": {
        **_REQUEST_VARIABLES,
        "kind": "video or image",
        "duration": "requested length in words; none for an image",
        "request": "short prompt of the user",
        "examples": "captions of the training data",
    },
}
"""Variables that templates may use, with descriptions, by purpose."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
SOURCE_KIND = "source"
"""Kind of the caption that came with the source; no prompt may request a caption of this kind."""

_templates = SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


class PromptFile(Settings):
    """The content of a prompt file."""

    doc: str = Field(min_length=1)
    system: str = ""
    user: str = Field(min_length=1)
    answer: Literal["text", "json", "same"]
    """Shape of the answer. `same` is for merge prompts, which request what the prompt of the windows requested."""
    captions: dict[str, str] = Field(default_factory=dict)
    fields: dict[str, str] = Field(default_factory=dict)
    max_tokens: int = Field(512, ge=16, le=32768)

    @model_validator(mode="after")
    def _is_consistent(self) -> PromptFile:
        for key in ("system", "user"):
            try:
                _templates.parse(getattr(self, key))
            except jinja2.TemplateSyntaxError as error:
                raise LocatedError((key,), f"line {error.lineno} is not a Jinja template: {error.message}") from error
        if self.answer == "same" and (self.captions or self.fields):
            raise LocatedError(
                ("captions" if self.captions else "fields",),
                "with 'answer: same' the prompt of the windows sets captions and fields; leave both out here",
            )
        if self.answer != "same" and not self.captions:
            raise LocatedError(("captions",), "name at least one caption with its description: {dense: one paragraph}")
        if self.answer == "text" and len(self.captions) > 1:
            raise LocatedError(("captions",), f"a text is one caption, not {len(self.captions)}; write answer: json")
        if self.answer == "text" and self.fields:
            raise LocatedError(("fields",), "only a JSON answer has fields; write answer: json")
        for key in ("captions", "fields"):
            for name in getattr(self, key):
                if not NAME.fullmatch(name) or name == SOURCE_KIND:
                    raise LocatedError(
                        (key, name), f"write a name in lower case, as dense or main_subject, and not '{SOURCE_KIND}'"
                    )
                if key == "fields" and name in self.captions:
                    raise LocatedError((key, name), "is the name of a caption too; rename one of them")
        return self

    @property
    def variables(self) -> set[str]:
        """Names of the variables that the templates use."""
        return {*_variables(self.system), *_variables(self.user)}


class Prompt(PromptFile):
    """A prompt with its name or path, and a hash of the file without `doc` and comments."""

    name: str
    hash: str

    def __repr__(self) -> str:
        return repr(self.name)

    @property
    def label(self) -> str:
        """Name and hash, as `levels@1a2b3c4d`."""
        return f"{Path(self.name).stem}@{self.hash}"

    @property
    def main_kind(self) -> str:
        """Kind of the main caption."""
        return next(iter(self.captions))

    def requesting_same_as(self, other: Prompt) -> Prompt:
        """Return this prompt, whose `answer` is `same`, with the requests for captions and fields of another prompt."""
        requests = {name: getattr(other, name) for name in ("answer", "captions", "fields")}
        return self.model_copy(
            update={
                **requests,
                "max_tokens": max(self.max_tokens, other.max_tokens),
                "hash": digest(self.hash, other.hash, size_bytes=4),
            }
        )

    def render(self, values: Mapping[str, Any]) -> tuple[str, str]:
        """Return the system and the user text. `values` has every variable of the purpose that is not a request."""
        requests = {"captions": self.captions, "fields": self.fields, "json": self.answer == "json"}
        system, user = (_template(text).render({**values, **requests}).strip() for text in (self.system, self.user))
        return system, user

    @cached_property
    def answer_schema(self) -> Mapping[str, Any] | None:
        """JSON schema of the answer, or None if the answer is text."""
        if self.answer != "json":
            return None
        keys = self.fields | self.captions
        properties = {name: {"type": "string", "description": description} for name, description in keys.items()}
        return {"type": "object", "properties": properties, "required": list(keys), "additionalProperties": False}

    @cached_property
    def static_text(self) -> str:
        """Text of the prompt without the values of its variables; an answer must not repeat it."""
        texts = [
            token for text in (self.system, self.user) for _, kind, token in _templates.lex(text) if kind == "data"
        ]
        return "\n".join([*texts, *self.captions.values(), *self.fields.values()])


@cache
def _variables(text: str) -> frozenset[str]:
    return frozenset(jinja2.meta.find_undeclared_variables(_templates.parse(text)))


@cache
def _template(text: str) -> jinja2.Template:
    return _templates.from_string(text)


def load_prompt(name: str, purpose: Purpose) -> Prompt:
    """Load a packaged prompt by its name, or a prompt file by its path, which ends in .yaml or .yml.

    Raises `ConfigError` naming file, line and key of an error, or the names of the packaged prompts.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        path = FOLDER / f"{name}.yaml"
        known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        if name not in known:
            raise ConfigError(
                f"{unknown_message('prompt', name, known)}; a prompt of your own is the path of a .yaml file"
            )
    document = read_document(path)
    content = parse(PromptFile, document)
    variables = VARIABLES[purpose]
    for variable in sorted(content.variables - set(variables)):
        key = "system" if variable in _variables(content.system) else "user"
        raise document.error((key,), unknown_message("variable", variable, list(variables)))
    if (content.answer == "same") != (purpose == "merge"):
        expected = (
            "same, because a merge prompt requests what the prompt of the windows requests"
            if purpose == "merge"
            else "text or json; only a merge prompt has 'same'"
        )
        raise document.error(("answer",), f"must be {expected}")
    hash_ = digest(content.model_dump_json(exclude={"doc"}), size_bytes=4)
    return Prompt(**content.model_dump(), name=name, hash=hash_)


@dataclass(frozen=True)
class PromptField:
    """The annotation of a settings field that holds a prompt: `Annotated[Prompt, PromptField("describe")]`.

    The YAML value is a name or a path. The loaded prompt travels with the settings, so workers need no file.
    """

    purpose: Purpose

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._load, serialization=core_schema.plain_serializer_function_ser_schema(lambda prompt: prompt.name)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "description": "Name of a packaged prompt, or path of a .yaml file."}

    def _load(self, data: Any) -> Prompt:
        if isinstance(data, Prompt):
            return data
        if not isinstance(data, str):
            raise ValueError(f"write the name of a prompt or the path of a .yaml file; got {data!r}")
        return load_prompt(data, self.purpose)
