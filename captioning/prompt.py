"""Prompts as files: texts with blanks, what may fill them, and the shape of the answer they ask for.

A prompt is YAML: `doc`, `system` and `user` (Jinja templates), `answer` (text or json), `captions` (names, the first being the caption a
clip is trained with unless told otherwise, with what each one is), `fields` (further keys of a JSON answer) and `max_tokens`.
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

ASKED_FOR = {
    "language": "the language to write in, by its English name",
    "captions": "what is asked for: names of captions, each with what it is",
    "fields": "further keys that are asked for, each with what it is",
    "json": "whether the answer is to be JSON",
}
OF_THE_CLIP = {
    "kind": "video or image",
    "duration": "its length in words, say '4.2 seconds'; none for an image",
    "camera": "what the camera was measured to do, in words; none where it was not measured",
    "hint": "the caption that came with the source; none where there is none",
}
OF_THE_WINDOW = {
    "n_pictures": "how many pictures go along",
    "span": "which part of the clip they show, in words; none where it is the whole",
}
DESCRIBES = ASKED_FOR | OF_THE_CLIP | OF_THE_WINDOW
"""What a prompt about pictures may speak of."""
MERGES = ASKED_FOR | OF_THE_CLIP | {"parts": "the windows in order: span in words, captions and fields, each by name"}
"""What a prompt that joins windows may speak of; its `answer` is `same`, and it asks for what the windows were asked for."""
REWRITES = ASKED_FOR | OF_THE_CLIP | {"caption": "the caption so far", "written": "all captions so far, by name"}
"""What a prompt that rewrites a caption may speak of."""
UPSAMPLES = ASKED_FOR | {
    "kind": "video or image",
    "duration": "the length asked for, in words; none for an image",
    "request": "what the user asked for",
    "examples": "captions of the training data",
}
"""What a prompt that makes a short prompt detailed may speak of."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = "source"
"""Name under which the caption that came with the source is kept."""

_templates = SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


class PromptText(Settings):
    """A prompt file's keys."""

    doc: str = Field(min_length=1)
    system: str = ""
    user: str = Field(min_length=1)
    answer: Literal["text", "json", "same"]
    captions: dict[str, str] = Field(default_factory=dict)
    fields: dict[str, str] = Field(default_factory=dict)
    max_tokens: int = Field(512, ge=16, le=32768)

    @model_validator(mode="after")
    def _is_whole(self) -> PromptText:
        for key in ("system", "user"):
            try:
                _templates.parse(getattr(self, key))
            except jinja2.TemplateSyntaxError as error:
                raise LocatedError(
                    (key,), f"line {error.lineno} of it is no Jinja template: {error.message}"
                ) from error
        if self.answer == "same" and (self.captions or self.fields):
            raise LocatedError(
                ("captions" if self.captions else "fields",),
                "with 'answer: same' the captions and fields are those it is given",
            )
        if self.answer != "same" and not self.captions:
            raise LocatedError(("captions",), "name at least one caption, with what it is: {dense: one paragraph}")
        if self.answer == "text" and len(self.captions) > 1:
            raise LocatedError(("captions",), f"a text is one caption, not {len(self.captions)}; write answer: json")
        if self.answer == "text" and self.fields:
            raise LocatedError(("fields",), "only a JSON answer has fields; write answer: json")
        for key in ("captions", "fields"):
            for name in getattr(self, key):
                if not NAME.fullmatch(name) or name == RESERVED:
                    raise LocatedError(
                        (key, name), f"write a name in lower case, as dense or main_subject, and not '{RESERVED}'"
                    )
                if key == "fields" and name in self.captions:
                    raise LocatedError((key, name), "is a caption too; give one of them another name")
        return self

    @property
    def variables(self) -> set[str]:
        """Names the templates speak of."""
        return {*_variables(self.system), *_variables(self.user)}


class Prompt(PromptText):
    """A prompt with its name or path, and a hash of all that answers depend on: of the file without `doc` and comments."""

    name: str
    hash: str

    def __repr__(self) -> str:
        return repr(self.name)

    @property
    def label(self) -> str:
        return f"{Path(self.name).stem}@{self.hash}"

    @property
    def main(self) -> str:
        """Name of the caption that stands for all."""
        return next(iter(self.captions))

    def after(self, asked: Prompt) -> Prompt:
        """A prompt whose answer is `same`, as it asks for what another one asked for."""
        asks = {name: getattr(asked, name) for name in ("answer", "captions", "fields")}
        return self.model_copy(
            update={
                **asks,
                "max_tokens": max(self.max_tokens, asked.max_tokens),
                "hash": digest(self.hash, asked.hash, size_bytes=4),
            }
        )

    def render(self, values: Mapping[str, Any]) -> tuple[str, str]:
        """The system and the user text, from values of every variable the prompt's role allows."""
        asked = {"captions": self.captions, "fields": self.fields, "json": self.answer == "json"}
        system, user = (_template(text).render({**values, **asked}).strip() for text in (self.system, self.user))
        return system, user

    @cached_property
    def answer_schema(self) -> Mapping[str, Any] | None:
        """JSON schema of the answer; None where it is text."""
        if self.answer != "json":
            return None
        keys = self.fields | self.captions
        properties = {name: {"type": "string", "description": what} for name, what in keys.items()}
        return {"type": "object", "properties": properties, "required": list(keys), "additionalProperties": False}

    @cached_property
    def own_words(self) -> str:
        """The prompt's own text, without what fills its blanks: words an answer must not repeat."""
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


def load_prompt(name: str, variables: Mapping[str, str]) -> Prompt:
    """A prompt by the name of one that comes with worldloom, or by the path of a .yaml file.

    Raises `ConfigError` naming the file, the line and the key of what is wrong, or the names there are.
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
    text = parse(PromptText, document)
    for variable in sorted(text.variables - set(variables)):
        key = "system" if variable in _variables(text.system) else "user"
        raise document.error((key,), unknown_message("variable", variable, list(variables)))
    if (text.answer == "same") != ("parts" in variables):
        wanted = (
            "same, for it joins captions it is given"
            if "parts" in variables
            else "text or json; only a prompt that joins windows has 'same'"
        )
        raise document.error(("answer",), f"must be {wanted}")
    return Prompt(**text.model_dump(), name=name, hash=digest(text.model_dump_json(exclude={"doc"}), size_bytes=4))


@dataclass(frozen=True)
class FromFile:
    """Annotation for a settings field that holds a prompt by name or path: `Annotated[Prompt, FromFile("describes")]`.

    The prompt travels with the settings, so that workers on other machines need no file.
    """

    role: Literal["describes", "merges", "rewrites", "upsamples"]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._load, serialization=core_schema.plain_serializer_function_ser_schema(lambda prompt: prompt.name)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "description": "Name of a prompt that comes with worldloom, or path of a .yaml file."}

    def _load(self, data: Any) -> Prompt:
        if isinstance(data, Prompt):
            return data
        if not isinstance(data, str):
            raise ValueError(f"write the name of a prompt or the path of a .yaml file; got {data!r}")
        return load_prompt(
            data, {"describes": DESCRIBES, "merges": MERGES, "rewrites": REWRITES, "upsamples": UPSAMPLES}[self.role]
        )
