"""Engine `palette`: captions that name the colours of a clip and how bright it is."""

import io
import json
from collections.abc import Iterator, Sequence

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
"""Names of colours with their 8-bit RGB values."""
NAMES = tuple(COLOURS)
SIDE = 64
"""Rows and columns that images are reduced to: naming colours needs no detail."""
DARK, BRIGHT = 0.25, 0.65
"""Mean luma in [0, 1] below which a clip is called dark, and above which it is called bright."""


class Palette(CaptionerSettings):
    """A deterministic captioner without weights. It names the colours that cover most of a clip's images.

    It answers prompts that ask for text, and prompts that ask for captions of the kinds dense, medium and short.
    """

    name: str = "palette"
    colours: int = Field(3, ge=1, le=8, description="Largest number of colours that a caption names.")
    min_share: float = Field(0.05, gt=0, lt=1, description="Smallest share of the images that a named colour covers.")

    def identity(self) -> str:
        """Return the version of the code with all settings, because each of them changes captions."""
        return f"palette-v1 {self.model_dump_json()}"

    def reads(self) -> tuple[str, ...]:
        """Return the columns that captions state."""
        return ("kind", "luma", "source_caption")

    def open(self) -> Captioner:
        """Return the engine. It has no weights to load."""
        return PaletteCaptioner(self)


class PaletteCaptioner(Captioner):
    """The engine of `Palette`."""

    def __init__(self, settings: Palette) -> None:
        self.settings = settings

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Yield one answer per question, in the same order."""
        for question in questions:
            try:
                yield Answer(question.key, question.uid, self._text(question))
            except ValueError as error:
                yield Answer(question.key, question.uid, error=f"ValueError: {error}")

    def _text(self, question: Question) -> str:
        """Return the answer's text: JSON if the question has a schema, else the dense caption."""
        if not question.images:
            raise ValueError("engine palette needs images: it can neither merge nor rewrite captions")
        captions = self._captions(question)
        if question.json_schema is None:
            return captions["dense"]
        wanted = list(question.json_schema["properties"])
        if unknown := sorted(set(wanted) - set(captions)):
            raise ValueError(f"engine palette has no caption {', '.join(unknown)}; use prompt dense or levels")
        return json.dumps({kind: captions[kind] for kind in wanted})

    def _captions(self, question: Question) -> dict[str, str]:
        """Return one caption of each kind."""
        shares = np.mean([colour_shares(jpeg) for jpeg in question.images], axis=0)
        largest = [int(i) for i in np.argsort(-shares, kind="stable")[: self.settings.colours]]
        main, *others = [i for i in largest if i == largest[0] or shares[i] >= self.settings.min_share]
        names = {i: NAMES[i] for i in (main, *others)}
        percents = {i: f"{NAMES[i]} ({round(100 * shares[i])}%)" for i in names}
        start, light = f"The {question.columns['kind']} is mostly", _light(question.columns["luma"])

        short = f"{start} {_join(names[main], [names[i] for i in others])}."
        dense = f"{start} {_join(percents[main], [percents[i] for i in others])}. It is {light}."
        if source_caption := question.columns["source_caption"]:
            dense = f"{source_caption} {dense}"
        return {"short": short, "medium": f"{short} It is {light}.", "dense": dense}


def colour_shares(jpeg: bytes) -> NDArray[np.float64]:
    """Return for each of `NAMES` the share of an image's pixels that are nearest to that colour."""
    image = Image.open(io.BytesIO(jpeg), formats=["JPEG"]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels_N3 = _opponent(np.asarray(image, dtype=np.float64).reshape(-1, 3))
    named_M3 = _opponent(np.array(list(COLOURS.values()), dtype=np.float64))
    nearest_N = np.square(pixels_N3[:, None] - named_M3).sum(axis=-1).argmin(axis=1)
    return np.bincount(nearest_N, minlength=len(NAMES)) / len(pixels_N3)


def _opponent(rgb_N3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return brightness, red against green, and yellow against blue. People name hues, so hue outweighs brightness."""
    red, green, blue = rgb_N3.T
    return np.stack([0.7 * (red + green + blue) / 3, red - green, (red + green) / 2 - blue], axis=-1)


def _light(luma: float) -> str:
    return "dark" if luma < DARK else "bright" if luma > BRIGHT else "evenly lit"


def _join(main: str, others: Sequence[str]) -> str:
    """Return 'a', 'a with b' or 'a with b, c and d'."""
    if not others:
        return main
    return f"{main} with {' and '.join(filter(None, [', '.join(others[:-1]), others[-1]]))}"
