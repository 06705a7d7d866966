"""The engine `palette` on drawn images of known colours."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from example_plugins.palette import COLOURS, Palette, colour_shares
from PIL import Image

from captioning.engine import Answer, Question


def image(background: str, square: str) -> bytes:
    """Return a JPEG file of 160x90 pixels with a square of 40x40, which covers 11% of it."""
    drawn = Image.new("RGB", (160, 90), COLOURS[background])
    drawn.paste(COLOURS[square], (40, 20, 80, 60))
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=95)
    return file.getvalue()


def ask(settings: Palette, *images: bytes, **changes: Any) -> Answer:
    """Return the answer to one question about images."""
    columns = {"kind": "video", "luma": 0.2, "source_caption": None}
    question = Question(
        **{"key": "k", "uid": "u", "text": "Describe.", "images": images, "columns": columns, **changes}
    )
    (answer,) = settings.open().answer([question])
    assert (answer.key, answer.uid) == ("k", "u")
    return answer


def schema(*kinds: str) -> dict[str, Any]:
    """Return the JSON schema of an answer with captions of these kinds."""
    return {"type": "object", "properties": {kind: {"type": "string"} for kind in kinds}}


@pytest.mark.parametrize("name", COLOURS)
def test_each_colour_is_recognised(name: str) -> None:
    assert colour_shares(image(name, name))[list(COLOURS).index(name)] == 1


def test_captions_name_colours_and_light() -> None:
    answer = ask(Palette(), image("blue", "red"))
    assert answer.error is None
    assert answer.text == "The video is mostly blue (89%) with red (11%). It is dark."
    assert answer == ask(Palette(), image("blue", "red")), "equal questions have equal answers"


def test_colours_are_the_mean_of_all_images() -> None:
    answer = ask(Palette(), image("blue", "red"), image("green", "green"), image("green", "green"))
    assert answer.text == "The video is mostly green (67%) with blue (30%). It is dark."


def test_dense_captions_begin_with_the_source_caption() -> None:
    columns = {"kind": "image", "luma": 0.5, "source_caption": "A lawn."}
    answer = ask(Palette(), image("green", "green"), columns=columns)
    assert answer.text == "A lawn. The image is mostly green (100%). It is evenly lit."


def test_json_answers_have_the_requested_captions() -> None:
    answer = ask(Palette(), image("blue", "red"), json_schema=schema("dense", "medium", "short"))
    captions = json.loads(answer.text)
    assert list(captions) == ["dense", "medium", "short"]
    assert captions["short"] == "The video is mostly blue with red."
    assert captions["medium"] == "The video is mostly blue with red. It is dark."


def test_settings_change_captions_and_identity() -> None:
    few = Palette(colours=1)
    assert ask(few, image("blue", "red")).text == "The video is mostly blue (89%). It is dark."
    assert ask(Palette(min_share=0.2), image("blue", "red")).text == "The video is mostly blue (89%). It is dark."
    assert few.identity() != Palette().identity()


def test_questions_without_images_have_an_error() -> None:
    answer = ask(Palette())
    assert answer.text == ""
    assert answer.error == "ValueError: engine palette needs images: it can neither merge nor rewrite captions"


def test_unknown_kinds_of_captions_have_an_error() -> None:
    answer = ask(Palette(), image("blue", "red"), json_schema=schema("subject"))
    assert answer.text == ""
    assert answer.error is not None
    assert "no caption subject" in answer.error
