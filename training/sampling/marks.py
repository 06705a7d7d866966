"""Marks on generated files: signed credentials, the digital source type, and the invisible watermark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.arrays import Pixels
from cluster.telemetry import log
from training.sampling import credentials
from training.sampling.certificates import local_identity, read_identity
from training.sampling.embedded_metadata import add_xmp
from training.sampling.mark_settings import MarkSettings
from training.sampling.media import Finish, write_png, write_video
from training.sampling.provenance import version
from training.sampling.settings import SampleSettings
from training.sampling.sign_command import VARIABLE, sign_command
from training.sampling.source_type import COMPOSITE, GENERATED, xmp_packet
from training.sampling.watermark import PUBLIC_KEY

MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 1 << 16


class Marker:
    """Marks generated files as settings say. It is made before a model is loaded.

    Raises `ValueError` for a certificate, key or timestamp authority that does not sign, for a watermark key that
    cannot be read, and for a kind of watermark whose package or weights are missing. Marks that are turned off or
    cannot be made are logged.
    """

    def __init__(self, settings: MarkSettings | None = None) -> None:
        self.settings = settings or MarkSettings()
        if off := self.settings.missing:
            log.warning(f"marks: {' and '.join(off)} off: these files do not tell that they were generated")
        self._signer = _open_signer(self.settings) if self.settings.credentials else None
        self._key = read_key(self.settings.watermark_key)
        method = self.settings.watermark_method
        if self.settings.watermark and (missing := method.missing()):
            raise ValueError(f"watermark_method {method.name}: {missing}")

    def describe(self, weights: str, batch: str) -> dict[str, Any]:
        """Return the marks of a file, by a model of these weights and in this batch, as its record has them."""
        settings, method = self.settings, self.settings.watermark_method
        payload = f"{payload_of(weights, batch):08x}" if settings.watermark and method.has_payload else None
        return {
            "credentials": settings.credentials,
            "prompt": settings.prompt,
            "watermark": payload,
            "watermark_method": method.name if settings.watermark else None,
        }

    def check_size(self, width: int, height: int) -> None:
        """Raise `ValueError` for frames of a size in pixels that the watermark cannot mark."""
        if self.settings.watermark:
            self.settings.watermark_method.check_size(width, height)

    def frames(
        self, frames: Iterable[Pixels], fps: float, marks: Mapping[str, Any], first: int = 0
    ) -> Iterator[Pixels]:
        """Yield frames `[H, W, 3]` with the watermark of a file's `marks`, one by one.

        `first` is the index in the file of the first of them; those before the file begins are not marked. Raises
        `ValueError` as `check_size`.
        """
        if not self.settings.watermark:
            yield from frames
            return
        watermark = self.settings.watermark_method.marker(int(marks["watermark"] or "0", 16), self._key)
        for index, frame in enumerate(frames, first):
            self.check_size(frame.shape[1], frame.shape[0])
            yield frame if index < 0 else watermark.mark(frame, index, fps)

    def ingredients(self, settings: SampleSettings) -> tuple[credentials.Ingredient, ...]:
        """Return the images and videos of a sample as ingredients; a file that cannot be read is named in a warning."""
        if self._signer is None:
            return ()
        # A video that is edited is generated again as a whole.
        of_videos: credentials.Relationship = "inputTo" if settings.edit else "componentOf"
        relationships = dict.fromkeys((file.partition("#t=")[0] for file in settings.videos().values()), of_videos)
        relationships |= dict.fromkeys(settings.images().values(), "inputTo")
        found = []
        for file, relationship in relationships.items():
            try:
                found.append(credentials.read_ingredient(storage.absolute(file), relationship))
            except OSError as error:
                log.warning(f"{file}: is not named in the credentials of the sample: {error}")
        return tuple(found)

    def finish(self, origin: credentials.Origin) -> Finish | None:
        """Return the function that adds metadata to a file and signs it; None if credentials are off."""
        if not self.settings.credentials:
            return None

        def finish(path: Path) -> None:
            add_xmp(path, xmp_packet(origin.source_type, f"worldloom {version()}"))
            if self._signer is not None:
                self._signer.sign(path, origin)

        return finish

    def write(self, uri: str, frames: Pixels, fps: float, weights: str, batch: str) -> dict[str, Any]:
        """Write generated frames `[T, H, W, 3]`, or an image `[H, W, 3]`, and return the marks, as `describe` does.

        The suffix of the URI names the format: mp4, gif, webp, or png for an image. Raises `ValueError` as
        `write_video`.
        """
        marks = self.describe(weights, batch)
        finish = self.finish(credentials.Origin(GENERATED, {"model": weights, "watermark": marks["watermark"]}))
        if frames.ndim == 3:
            write_png(uri, next(self.frames([frames], fps, marks)), finish)
        else:
            write_video(uri, self.frames(frames, fps, marks), fps, finish)
        return marks

    def finish_sheet(self) -> Finish | None:
        """Return the function that marks a file that shows several generated ones, such as a grid."""
        return self.finish(credentials.Origin(GENERATED))

    def origin(
        self, settings: SampleSettings, record: dict[str, Any], ingredients: tuple[credentials.Ingredient, ...]
    ) -> credentials.Origin:
        """Return what the credentials of a sample say, which was made as its record tells."""
        has_given_frames = bool(settings.video and not settings.edit)
        facts = {
            "model": record["model"]["weights"],
            "recipe": record_digest(record),
            "watermark": record["marks"]["watermark"],
            "prompt": record["prompt"] if self.settings.prompt else None,
        }
        return credentials.Origin(COMPOSITE if has_given_frames else GENERATED, facts, ingredients)


def save(
    uri: str, frames: Pixels, fps: float = 8.0, *, weights: str = "", marks: MarkSettings | None = None
) -> dict[str, Any]:
    """Write generated frames `[T, H, W, 3]`, or an image `[H, W, 3]`, with the marks of samples, and return the marks.

    The suffix of the URI names the format: mp4, gif, webp, or png for an image. `weights` is the hash of the model's
    weights, `model.card.weights`. Frames of one model and content carry the same watermark. Raises `ValueError` as
    `Marker` and `write_video`.
    """
    return Marker(marks).write(uri, frames, fps, weights, storage.digest(frames.tobytes()))


def record_digest(record: dict[str, Any]) -> str:
    """Return the hash of a file's record by which its credentials name the record."""
    return storage.digest(json.dumps(record, sort_keys=True))


def payload_of(weights: str, batch: str) -> int:
    """Return the payload of the watermark: 16 bits of the hash of a model's weights, and 16 of that of a batch."""
    model_bits, batch_bits = (int(storage.digest(part, size_bytes=2), 16) for part in (weights, batch))
    return model_bits << 16 | batch_bits


def read_key(uri: str | None) -> bytes:
    """Return the watermark's key in a file, by default the public one. Raises `ValueError` for a file without one."""
    if uri is None:
        return PUBLIC_KEY
    try:
        key = storage.read_bytes(uri, MAX_KEY_BYTES).strip()
    except OSError as error:
        raise ValueError(f"{uri}: the key of the watermark cannot be read: {error}") from error
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(
            f"{uri}: the key of the watermark has {len(key)} bytes; it needs {MIN_KEY_BYTES} that nobody can guess, "
            "such as those of `openssl rand -hex 32`"
        )
    return key


def _open_signer(settings: MarkSettings) -> credentials.Signer | None:
    if not credentials.is_installed():
        log.warning(
            "files are not signed, and only their XMP metadata tell that they were generated: c2pa-python is not "
            "installed; `pip install c2pa-python` adds it"
        )
        return None
    if settings.certificate is None:
        identity = local_identity()
    elif settings.private_key is None and not sign_command():
        raise ValueError(
            f"{settings.certificate}: nothing signs with this certificate: name the file of its key as private_key, "
            f"or set {VARIABLE} to a program that signs with it"
        )
    else:
        identity = read_identity(settings.certificate, settings.private_key)
    return credentials.Signer(identity, settings.timestamp)
