"""Generate a sample from an exported model and write it as a video or image file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cluster import storage
from cluster.arrays import Pixels
from training.sampling.continuation import connect, extend
from training.sampling.credentials import Ingredient
from training.sampling.editing import Edit, edit
from training.sampling.experts import check_other_expert
from training.sampling.exported_model import ExportedModel
from training.sampling.long_video import long_video, window_latents
from training.sampling.loops import closed_loop, loop_frames, new_loop
from training.sampling.mark_settings import MarkSettings
from training.sampling.marks import Marker
from training.sampling.media import write_png, write_video
from training.sampling.provenance import (
    SampleRequest,
    find_upsampled,
    provenance,
    provenance_uri,
    read_provenance,
    write_provenance,
)
from training.sampling.request import Context, Generated, latents_in, new_video
from training.sampling.settings import SampleSettings, VideoShape

ReadImage = Callable[[str, int, int], Pixels]
"""A function that reads an image file as RGB `[height, width, 3]`, from its URI, width and height."""
ReadVideo = Callable[[str, VideoShape], Pixels]
"""A function that reads all frames of a video file as RGB `[T, height, width, 3]`, from its URI and the shape, whose
number of frames does not count."""


class PromptUpsampler(Protocol):
    """Makes short prompts detailed (`captioning.upsample.Upsampler`)."""

    @property
    def identity(self) -> str:
        """Identity of the upsampler: a prompt that it upsampled before is not upsampled again."""
        ...

    def upsample(self, prompt: str, seconds: float) -> str:
        """Return the detailed prompt of a video of this length, of an image for 0."""
        ...


@dataclass(frozen=True, eq=False)
class Inputs:
    """The functions that read the images and videos of samples, and the upsampler of their prompts."""

    upsampler: PromptUpsampler | None = None
    read_image: ReadImage | None = None
    read_video: ReadVideo | None = None


NO_INPUTS = Inputs()


@dataclass(frozen=True, eq=False)
class PreparedSample:
    """A sample with everything that is known before its model is loaded."""

    settings: SampleSettings
    shape: VideoShape
    """Shape of the file."""
    prompt: str
    """The prompt that the model sees."""
    images: Mapping[str, Pixels]
    """RGB images `[H, W, 3]` by the end of the video, `first` or `last`."""
    videos: Mapping[str, Pixels]
    """RGB videos `[T, H, W, 3]` by their setting, `video` or `connect`."""
    uri: str
    """The file to write."""
    record: dict[str, Any]
    """The record to write beside it."""
    is_made: bool
    """Whether the file is there already, made by the same settings, images and weights, with the same marks."""
    ingredients: tuple[Ingredient, ...] = ()
    """The files of its images and videos, with their own credentials."""

    def texts(self) -> list[str]:
        """Return the texts to embed."""
        settings = self.settings
        others = (settings.negative, settings.source_prompt, *(span.prompt for span in settings.prompt_spans()))
        return [] if self.is_made else [self.prompt, *(text for text in others if text is not None)]


def prepare(
    settings: SampleSettings, model: ExportedModel, out_uri: str, inputs: Inputs, marker: Marker
) -> PreparedSample:
    """Read the images and videos of a sample, make its prompt detailed if it asks for that, and look for its file.

    A prompt that an earlier sample in the folder has is not upsampled again. Raises `ValueError` for a size that the
    model cannot make or that cannot be marked, for an autoencoder other than that of training, for a video that is too
    short for its task, and if one of `inputs` is missing and needed.
    """
    read_image, read_video = inputs.read_image, inputs.read_video
    shape = model.fit_shape(settings)
    marker.check_size(shape.width, shape.height)
    out_uri = storage.absolute(out_uri)
    uri = storage.join(out_uri, settings.file_name())
    if settings.images() and read_image is None:
        raise ValueError(f"'{settings.prompt}' has conditioning images, but no function to read them was passed")
    images = (
        {end: read_image(file, shape.width, shape.height) for end, file in settings.images().items()}
        if read_image
        else {}
    )
    if settings.videos() and read_video is None:
        raise ValueError(f"'{settings.prompt}' has given videos, but no function to read them was passed")
    videos = {key: read_video(file, shape) for key, file in settings.videos().items()} if read_video else {}
    check_lengths(settings, shape, videos, model.autoencoder.time_factor)
    shape = shape._replace(frames=_output_frames(settings, shape, videos, model.autoencoder.time_factor))
    prompt, identity = settings.prompt, None
    if settings.upsample:
        if (upsampler := inputs.upsampler) is None:
            raise ValueError(f"'{settings.prompt}' is to be upsampled, but no upsampler was passed")
        identity = upsampler.identity
        length_s = 0.0 if shape.frames == 1 else settings.seconds
        found = find_upsampled(out_uri, settings.prompt, identity)
        prompt = upsampler.upsample(settings.prompt, length_s) if found is None else found
    settings.check_model(model.card.model)
    check_other_expert(model.card, settings.other_expert)
    request = SampleRequest(settings, prompt, identity, images, videos)
    adapters = {f"{source.uri}:{source.weight:g}": one.identity for source, one in model.adapters_for(settings).items()}
    record = provenance(request, shape, model.card, model.uri, adapters)
    # A batch is one prompt and seed: files of other names or formats carry the same watermark.
    record["marks"] = marker.describe(model.card.weights, storage.digest(prompt, str(settings.seed)))
    is_made = storage.exists(uri) and read_provenance(uri) == record
    ingredients = () if is_made else marker.ingredients(settings)
    return PreparedSample(settings, shape, prompt, images, videos, uri, record, is_made, ingredients)


def check_lengths(settings: SampleSettings, shape: VideoShape, videos: Mapping[str, Pixels], time_factor: int) -> None:
    """Raise `ValueError`, naming the fix, for a video that is shorter than its context or than its part to edit, and
    for windows that have nothing new.
    """
    if settings.window:
        window_latents(settings.window, settings.context, lambda length_s: latents_in(length_s, shape.fps, time_factor))
    key = "seconds" if settings.edit else "context"
    wanted_s = settings.seconds if settings.edit else settings.context
    wanted = shape.frames if settings.edit else 1 + time_factor * latents_in(wanted_s, shape.fps, time_factor)
    for name, video_THWC in videos.items():
        n_frames = len(video_THWC)
        if n_frames >= wanted:
            continue
        possible = (n_frames - 1) // time_factor * time_factor
        fix = f"lower {key} to {possible / shape.fps:g} or " if possible else ""
        raise ValueError(
            f"{name} {settings.videos()[name]} is too short: it has {n_frames} frames at {shape.fps:g} fps, and {key} "
            f"{wanted_s:g} takes {wanted}; {fix}give a longer video"
        )


def _output_frames(settings: SampleSettings, shape: VideoShape, videos: Mapping[str, Pixels], time_factor: int) -> int:
    """Return the number of frames of a sample's file."""
    n_new, n_given = shape.frames - 1, sum(map(len, videos.values()))
    if settings.extend:
        return n_given + n_new
    if settings.connect or (settings.loop and videos):
        return n_given + n_new - 1
    return loop_frames(n_new // time_factor) * time_factor if settings.loop else shape.frames


def make(sample: PreparedSample, model: ExportedModel, marker: Marker) -> str:
    """Generate a sample, write its file with its marks and its record, and return the file's URI. One that is made is
    kept.

    Of processes that share the sample, the first one writes.
    """
    if sample.is_made:
        return sample.uri
    generated = perform(sample, model)
    if model.ranks is not None and not model.ranks.is_first:
        return sample.uri
    decoded = model.decode_frames(generated.latent_BCTHW)
    # Frames of given videos are returned unchanged.
    marked = marker.frames(decoded, sample.shape.fps, sample.record["marks"], generated.first_index)
    frames = generated.frames(marked)
    # A record means that its file is complete: an old record is removed first, and the new one is written last.
    storage.remove(provenance_uri(sample.uri))
    finish = marker.finish(marker.origin(sample.settings, sample.record, sample.ingredients))
    if sample.shape.frames == 1:
        write_png(sample.uri, next(frames), finish)
    else:
        write_video(sample.uri, frames, sample.shape.fps, finish)
    write_provenance(sample.uri, sample.record)
    return sample.uri


def perform(sample: PreparedSample, model: ExportedModel) -> Generated:
    """Generate the latents of a sample's task."""
    settings, videos = sample.settings, sample.videos
    # The text encoder is released before the model is loaded, so that they never share the device.
    source_NE = None if settings.source_prompt is None else model.embed(settings.source_prompt)
    request = model.request(settings, Context(settings.context, settings.context_noise), sample.prompt)
    images = model.encode_images(sample.images.get("first"), sample.images.get("last"), sample.shape.frames)
    if settings.extend:
        return extend(request, videos["video"], settings.extend)
    if settings.connect:
        return connect(request, videos["video"], videos["connect"])
    if settings.loop:
        return closed_loop(request, videos["video"]) if videos else new_loop(request)
    if settings.edit:
        return edit(request, videos["video"], Edit(settings.strength, source_NE))
    if settings.window:
        return long_video(request, settings.window, images.first_C1HW)
    return new_video(request, images)


def sample(
    settings: SampleSettings,
    export_uri: str,
    out_uri: str,
    inputs: Inputs = NO_INPUTS,
    marks: MarkSettings | None = None,
) -> str:
    """Generate a sample, write `<out_uri>/<stem>.mp4` (`.png` for an image) and its record, and return its URI.

    A file that the same settings, images and weights made before is kept. Raises `ValueError` as `prepare`, and for a
    text encoder other than that of training.
    """
    marker = Marker(marks)
    model = ExportedModel(export_uri)
    return make(prepare(settings, model, out_uri, inputs, marker), model, marker)
