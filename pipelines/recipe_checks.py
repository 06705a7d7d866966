"""Checks of a recipe whose sections are valid one by one: steps that do not follow, bounds that keep nothing, files in
each other's way. Each raises or yields `LocatedError` with the value and the fix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from captioning.encoder import FOLDER as ENCODERS
from captioning.encoder import TextEncoderSettings
from cluster import listing, plugins, storage
from cluster.config import LocatedError, NestedError, Settings, located_messages, unknown_message
from cluster.yaml_text import Location
from pipelines.engine.sources import SCHEMA as SOURCE_SCHEMA
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import FOLDER, Expand, Global, Step
from pipelines.steps.encode import Encode
from pipelines.steps.keep import Keep, bound_faults
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import AutoencoderSettings
from training.model import ModelSettings
from training.models.diffusers import Diffusers
from training.published_parts import IMAGE_FAULT, encoder_faults, own_autoencoder, own_text_encoder
from training.sampling.settings import SampleSettings, size_units

WRITTEN_MEDIA = ("samples/sample.mp4", "samples/sample.png", "run-0/previews/step-0.mp4", "run-0/previews/step-0.png")
"""Files like those that a run writes below `out`, of kinds that patterns of sources match."""


def step_faults(steps: Sequence[Step]) -> Iterator[LocatedError]:
    """Yield an error for each step that cannot follow those before it.

    Such a step has a bound that does not suit its column, repeats an earlier step, or reads a column that none writes:
    the first of these is the last error, as later steps may only lack what that one would have written.
    """
    columns = {field.name: field for field in SOURCE_SCHEMA}
    for index, step in enumerate(steps):
        location = ("curate", index, step.name)
        if step.name == "encode" and index != len(steps) - 1:
            yield LocatedError(location, "encode must be the last step: no step reads latents")
            return
        if message := _repetition(steps, index):
            yield LocatedError(location, message)
            continue
        missing = [name for name in step.requires() if name not in columns]
        for name in missing:
            key = (name,) if name in (step.model_extra or {}) or name in type(step).model_fields else ()
            message = unknown_message("column", name, list(columns))
            yield LocatedError((*location, *key), f"{message}{_writer_of(name)}")
            if not key:
                return
        for name, bound in step.bounds.items() if isinstance(step, Keep) else ():
            if name not in missing:
                yield from bound_faults(bound, columns[name], (*location, name))
        if isinstance(step, Expand):
            columns = {name: field for name, field in columns.items() if name not in step.consumes()}
        columns |= {field.name: field for field in step.writes()}


def remote_code_faults(settings: Settings) -> Iterator[tuple[Location, str]]:
    """Yield location and message of every value that brings code from outside, or names it (`Settings.remote_code`)."""
    message = (
        "brings code that is not part of an installed package, and a recipe is only data; "
        "add --allow-remote-code to the command if you trust that code"
    )
    return ((location, message) for location in _remote_code(settings))


def _remote_code(value: Any) -> Iterator[Location]:
    inner: list[tuple[Location, Any]] = []
    if isinstance(value, Settings):
        yield from value.remote_code()
        inner = [((field.alias or name,), getattr(value, name)) for name, field in type(value).model_fields.items()]
    elif isinstance(value, tuple):
        inner = [((i, item.name) if isinstance(item, Step) else (i,), item) for i, item in enumerate(value)]
    elif isinstance(value, dict):
        inner = [((name,), item) for name, item in value.items()]
    for location, item in inner:
        yield from ((*location, *rest) for rest in _remote_code(item))


def _writer_of(name: str) -> str:
    writers = []
    for step_name, step in plugins.classes(FOLDER, Step):
        if not any(field.is_required() for field in step.model_fields.values()):
            try:
                fields = step(name=step_name).writes()
            except ValueError:  # a step with nothing to do by default, as keep without a bound, writes nothing
                continue
            writers += [step_name] if name in [field.name for field in fields] else []
    return f". It is written by {' or '.join(writers)}: put that step before this one" if writers else ""


def _repetition(steps: Sequence[Step], index: int) -> str | None:
    """Return why a step makes no sense after an earlier one of its name, or None if it does."""
    step = steps[index]
    earlier = max((i for i in range(index) if steps[i].name == step.name), default=None)
    if earlier is None:
        return None
    between = steps[earlier + 1 : index]
    first = f"curate.{earlier}"
    if isinstance(step, Expand):
        return f"{step.name} is here twice, and clips are not divided again; remove this one or {first}"
    if any(isinstance(one, Expand) for one in between):
        return f"{step.name} is here twice, at {first} for whole files and here for clips; remove this one"
    written = {field.name for one in between for field in one.writes()}
    if step == steps[earlier] and not written & set(step.reads()):
        return f"the same as {first}, with nothing in between that it reads; remove one of them"
    own = {field.name for field in step.writes()}
    if own and not isinstance(step, Global) and not any(own & set(one.requires()) for one in (*between, step)):
        return f"replaces all columns of {first} before a step reads them; remove one of them"
    return None


def out_faults(out: str, sources: Sequence[SourceSettings]) -> Iterator[LocatedError]:
    """Yield an error for each pattern of sources that is inside the run's folder or matches files that it writes."""
    out_uri = storage.absolute(out)
    for index, source in enumerate(sources):
        key, pattern = ("videos", source.videos) if source.videos is not None else ("images", source.images or "")
        location = ("sources", index, key)
        if storage.absolute(pattern).startswith(out_uri + "/"):
            message = f"{pattern} is inside out, {out}, which is the run's own folder; move one of them"
            yield LocatedError(location, message)
        elif any(listing.matches(pattern, storage.join(out_uri, name)) for name in WRITTEN_MEDIA):
            message = f"{pattern} also matches what the run writes to out, {out}; move out, or narrow the pattern"
            yield LocatedError(location, message)


def sample_faults(
    samples: Sequence[SampleSettings], curate: Sequence[Step], model: ModelSettings | None
) -> Iterator[LocatedError]:
    """Yield an error for each sample of an impossible size or that the model cannot make, and for each that another
    one would overwrite.
    """
    encode = curate[-1] if curate else None
    space_factor = encode.autoencoder.space_factor if isinstance(encode, Encode) else None
    files: dict[str, int] = {}
    for index, sample in enumerate(samples):
        if model is not None:
            try:
                sample.check_model(model)
            except ValueError as error:
                yield LocatedError(("sample", index), str(error))
        if model is not None and space_factor is not None:
            try:
                sample.check_size(size_units(space_factor, model))
            except ValueError as error:
                yield LocatedError(("sample", index, "size"), str(error))
        # Some file systems do not tell capital letters from small ones.
        first = files.setdefault(sample.file_name().lower(), index)
        if first != index and sample.name:
            message = f"sample.{first} writes the same file, {sample.file_name()}; give one of them another name"
            yield LocatedError(("sample", index, "name"), message)
        elif first != index:
            yield LocatedError(("sample", index), f"is the same as sample.{first}; change its seed, or remove it")


def with_own_encoders(steps: tuple[Step, ...], model: ModelSettings) -> tuple[Step, ...]:
    """Return the steps, of which `encode` has the encoders of the published model to train where it names none.

    They get the GPUs of the step. Raises `LocatedError` if the model's folder has no such encoder.
    """
    step = steps[-1] if steps else None
    if not isinstance(step, Encode) or not isinstance(model, Diffusers):
        return steps
    own: dict[str, Any] = {}
    try:
        if "autoencoder" not in step.model_fields_set:
            own["autoencoder"] = plugins.build(AUTOENCODERS, AutoencoderSettings, own_autoencoder(model))
        if "text" not in step.model_fields_set:
            settings = own_text_encoder(model) | {"gpus": step.gpus}
            own["text"] = plugins.build(ENCODERS, TextEncoderSettings, settings)
    except NestedError as error:
        _, message = next(located_messages(error.model, error.error))
        raise LocatedError(
            ("train", "model", "path"), f"{message}; without it, name autoencoder and text in encode"
        ) from error
    return (*steps[:-1], step.model_copy(update=own))


def published_faults(steps: Sequence[Step], model: ModelSettings | None) -> Iterator[LocatedError]:
    """Yield an error for each encoder of `encode` that is not the one of the published model to train."""
    step = steps[-1] if steps else None
    if isinstance(step, Encode) and isinstance(model, Diffusers):
        for key, message in encoder_faults(model, step.autoencoder, step.text):
            yield LocatedError(("curate", len(steps) - 1, "encode", key), message)
        for index, settings in enumerate(step.buckets):
            if model.image_channels and 1 in settings.frames:
                location = ("curate", len(steps) - 1, "encode", "buckets", index, "frames")
                yield LocatedError(location, f"{model.path}, which train.model names, {IMAGE_FAULT}")


def bucket_faults(steps: Sequence[Step]) -> Iterator[LocatedError]:
    """Yield an error for each bucket of `encode` with a size between multiples, or that the autoencoder cannot take.

    What only the weights of an autoencoder tell is found when `encode` begins.
    """
    step = steps[-1]
    if not isinstance(step, Encode):
        return
    for index, settings in enumerate(step.buckets):
        location = ("curate", len(steps) - 1, "encode", "buckets", index)
        unit = step.autoencoder.space_factor or 1
        below = settings.size // settings.multiple * settings.multiple
        if below != settings.size:
            nearest = " or ".join(str(size) for size in (below, below + settings.multiple) if size)
            message = f"size {settings.size} is no multiple of {settings.multiple} (`multiple`); take {nearest}"
            yield LocatedError((*location, "size"), message)
        elif any(side % unit for shape in settings.shapes for side in shape):
            message = (
                f"multiple {settings.multiple}: sides must be multiples of {unit}, a cell of {step.autoencoder.name}"
            )
            fix = f"take {math.lcm(unit, settings.multiple)}"
            yield LocatedError((*location, "multiple"), f"{message}; {fix}")
