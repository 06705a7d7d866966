"""Engine `palette`: captions that name the colours, the light and the tempo of a clip."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from captioning.engine import Answer, Captioner, CaptionerSettings, Question

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (10, 10, 10),
    "dark grey": (70, 70, 70),
    "grey": (128, 128, 128),
    "light grey": (195, 195, 195),
    "white": (250, 250, 250),
    "brown": (120, 72, 36),
    "beige": (222, 202, 170),
    "maroon": (110, 20, 30),
    "red": (210, 40, 40),
    "pink": (240, 150, 180),
    "orange": (240, 140, 40),
    "yellow": (240, 220, 60),
    "olive": (115, 115, 40),
    "dark green": (20, 80, 40),
    "green": (60, 170, 70),
    "mint green": (170, 230, 195),
    "teal": (20, 130, 130),
    "light blue": (160, 205, 240),
    "blue": (45, 95, 210),
    "dark blue": (20, 30, 90),
    "purple": (125, 60, 160),
    "lavender": (205, 190, 235),
}
NAMES = tuple(COLOURS)
SIDE = 64  # Images are reduced to this many rows and columns: names of colours need no detail.


class Palette(CaptionerSettings):
    """A deterministic captioner without weights. It names what colours the images have, how bright and how fast.

    It answers prompts that want text, and prompts that want captions of the kinds dense, medium and short.
    """

    name: str = "palette"
    colours: int = Field(3, ge=1, le=8, description="Most colours that a caption names.")
    min_share: float = Field(0.05, gt=0, lt=1, description="Smallest share of the images that a named colour has.")
    slow: float = Field(0.02, ge=0, description="Motion up to which a clip is slow, in long sides per second.")
    fast: float = Field(0.12, ge=0, description="Motion from which a clip is fast, in long sides per second.")
    source: bool = Field(True, description="Begin the dense caption with the caption that came with the source.")

    def identity(self) -> str:
        """Return the version of the code with all settings, because all of them change captions."""
        return f"palette-v1 {self.model_dump_json()}"

    def reads(self) -> tuple[str, ...]:
        """Return the measured columns that captions state."""
        return ("motion", "camera", "luma", "source_caption")

    def open(self) -> Captioner:
        """Return the engine. Nothing has to be loaded."""
        return PaletteCaptioner(self)


class PaletteCaptioner(Captioner):
    """See `Palette`."""

    def __init__(self, settings: Palette) -> None:
        self.settings = settings

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Yield the answers in the order of the questions."""
        for question in questions:
            try:
                text = self._text(question)
            except ValueError as error:
                yield Answer(question.key, question.uid, "", error=f"ValueError: {error}")
            else:
                yield Answer(question.key, question.uid, text)

    def _text(self, question: Question) -> str:
        if not question.images:
            raise ValueError("engine palette looks at images, and can neither merge windows nor rewrite captions")
        captions = self.captions(question)
        if question.json_schema is None:
            return captions["dense"]
        unknown = sorted(set(question.json_schema["properties"]) - set(captions))
        if unknown:
            raise ValueError(f"engine palette has no {', '.join(unknown)}; use prompt dense or levels")
        return json.dumps({kind: captions[kind] for kind in question.json_schema["properties"]})

    def captions(self, question: Question) -> dict[str, str]:
        """Return a caption of each kind: short, medium and dense."""
        images = [colour_shares(jpeg) for jpeg in question.images]
        shares = np.mean(images, axis=0)
        order = np.argsort(-shares, kind="stable")[: self.settings.colours]
        main, *others = [int(i) for i in order if i == order[0] or shares[i] >= self.settings.min_share]
        names = [NAMES[i] for i in others]
        percent = [f"{NAMES[i]} ({round(100 * shares[i])}%)" for i in (main, *others)]
        kind = "picture" if question.columns["motion"] is None else "video"
        beside = f" with {_list(names)}" if names else ""
        state = f"It is {self._light(question.columns)}{self._tempo(question.columns)}."
        dense = [f"The {kind} is mostly {percent[0]}{f' with {_list(percent[1:])}' if names else ''}.", state]
        first, last = int(np.argmax(images[0])), int(np.argmax(images[-1]))
        if first != last:
            dense.append(f"It begins mostly {NAMES[first]} and ends mostly {NAMES[last]}.")
        source_caption = question.columns["source_caption"]
        if self.settings.source and source_caption:
            dense.insert(0, source_caption)
        return {
            "short": f"The {kind} is mostly {NAMES[main]}{beside}.",
            "medium": f"The {kind} is mostly {NAMES[main]}{beside}. {state}",
            "dense": " ".join(dense),
        }

    def _light(self, columns: Mapping[str, Any]) -> str:
        return "dark" if columns["luma"] < 0.25 else "bright" if columns["luma"] > 0.65 else "evenly lit"

    def _tempo(self, columns: Mapping[str, Any]) -> str:
        motion, camera = columns["motion"], columns["camera"]
        if motion is None:
            return ""
        tempo = "slow" if motion <= self.settings.slow else "fast" if motion >= self.settings.fast else "calm"
        held = {"still": "the camera stands still", "handheld": "the camera is held by hand"}
        moves = {"pan": "the camera pans", "tilt": "the camera tilts", "zoom": "the camera zooms"}
        words = {**held, **moves}.get(camera)
        return f" and {tempo}, while {words}" if words else f" and {tempo}"


def colour_shares(jpeg: bytes) -> NDArray[np.float64]:
    """Return the share of an image's pixels that is nearest to each of NAMES."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = _opponent(np.asarray(image, dtype=np.float64).reshape(-1, 3))
    named = _opponent(np.array(list(COLOURS.values()), dtype=np.float64))
    nearest = np.square(pixels[:, None] - named).sum(axis=-1).argmin(axis=1)
    return np.bincount(nearest, minlength=len(NAMES)) / len(pixels)


def _opponent(rgb_N3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return luma and two differences of colours; hue counts more than light, as it does for names."""
    red, green, blue = rgb_N3.T
    return np.stack([0.7 * (red + green + blue) / 3, red - green, (red + green) / 2 - blue], axis=-1)


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
