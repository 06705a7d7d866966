"""Generate a sample from an exported model and write it as a video or image file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cluster import storage
from cluster.arrays import Pixels
from training.sampling.exported_model import ExportedModel
from training.sampling.generation import generate, video_timeline
from training.sampling.media import write_png, write_video
from training.sampling.provenance import (
    SampleRequest,
    find_upsampled,
    provenance,
    provenance_uri,
    read_provenance,
    write_provenance,
)
from training.sampling.settings import SampleSettings, VideoShape

ReadImage = Callable[[str, int, int], Pixels]
"""A function that reads an image file as RGB `[height, width, 3]`, from its URI, width and height."""


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
class PreparedSample:
    """A sample with everything that is known before its model is loaded."""

    settings: SampleSettings
    shape: VideoShape
    prompt: str
    """The prompt that the model sees."""
    images: Mapping[str, Pixels]
    """RGB images `[H, W, 3]` by the end of the video, `first` or `last`."""
    uri: str
    """The file to write."""
    record: dict[str, Any]
    """The record to write beside it."""
    is_made: bool
    """Whether the file is there already, made by the same settings, images and weights."""

    def texts(self) -> list[str]:
        """Return the texts to embed."""
        negative = self.settings.negative
        return [] if self.is_made else [self.prompt] if negative is None else [self.prompt, negative]


def prepare(
    settings: SampleSettings,
    model: ExportedModel,
    out_uri: str,
    upsampler: PromptUpsampler | None = None,
    read_image: ReadImage | None = None,
) -> PreparedSample:
    """Read the images of a sample, make its prompt detailed if it asks for that, and look for its file.

    A prompt that an earlier sample in the folder has is not upsampled again. Raises `ValueError` for a size that the
    model cannot make, for an autoencoder other than that of training, and if `upsampler` or `read_image` is missing
    and needed.
    """
    shape = model.fit_shape(settings)
    out_uri = storage.absolute(out_uri)
    uri = storage.join(out_uri, settings.file_name())
    if settings.images() and read_image is None:
        raise ValueError(f"'{settings.prompt}' has conditioning images, but no function to read them was passed")
    images = (
        {end: read_image(file, shape.width, shape.height) for end, file in settings.images().items()}
        if read_image
        else {}
    )
    prompt, identity = settings.prompt, None
    if settings.upsample:
        if upsampler is None:
            raise ValueError(f"'{settings.prompt}' is to be upsampled, but no upsampler was passed")
        identity = upsampler.identity
        length_s = 0.0 if shape.frames == 1 else settings.seconds
        found = find_upsampled(out_uri, settings.prompt, identity)
        prompt = upsampler.upsample(settings.prompt, length_s) if found is None else found
    record = provenance(SampleRequest(settings, prompt, identity, images), shape, model.card, model.uri)
    is_made = storage.exists(uri) and read_provenance(uri) == record
    return PreparedSample(settings, shape, prompt, images, uri, record, is_made)


def make(sample: PreparedSample, model: ExportedModel) -> str:
    """Generate a sample, write its file and its record, and return the file's URI. One that is made is kept."""
    if sample.is_made:
        return sample.uri
    # The text encoder is released before the model is loaded, so that they never share the device.
    text_NE, settings, shape = model.embed(sample.prompt), sample.settings, sample.shape
    parts = model.guided_parts(settings)
    conditioning = model.encode_images(sample.images.get("first"), sample.images.get("last"))
    frames = model.decode_frames(generate(parts, video_timeline(parts, text_NE, shape, conditioning), settings))
    # A record means that its file is complete: an old record is removed first, and the new one is written last.
    storage.remove(provenance_uri(sample.uri))
    if shape.frames == 1:
        write_png(sample.uri, next(frames))
    else:
        write_video(sample.uri, frames, shape.fps)
    write_provenance(sample.uri, sample.record)
    return sample.uri


def sample(
    settings: SampleSettings,
    export_uri: str,
    out_uri: str,
    upsampler: PromptUpsampler | None = None,
    read_image: ReadImage | None = None,
) -> str:
    """Generate a sample, write `<out_uri>/<stem>.mp4` (`.png` for an image) and its record, and return its URI.

    A file that the same settings, images and weights made before is kept. Raises `ValueError` as `prepare`, and for a
    text encoder other than that of training.
    """
    model = ExportedModel(export_uri)
    return make(prepare(settings, model, out_uri, upsampler, read_image), model)
