"""Questions for chat models about random images, and checks that each question is answered once."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from captioning.engine import Answer, Captioner, Question


def random_jpeg(seed: int, width: int = 48, height: int = 32) -> bytes:
    """Return an image of random pixels as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(file, "jpeg")
    return file.getvalue()


def question(
    key: str, n_images: int = 3, text: str = "What happens?", interval_s: float = 0.5, **fields: Any
) -> Question:
    """Return a question about random images that follow from its key, with some fields changed."""
    seed = sum(map(ord, key))
    defaults: dict[str, Any] = {
        "system": "Be brief.",
        "images": tuple(random_jpeg(seed * 100 + index) for index in range(n_images)),
        "image_times_s": tuple(index * interval_s for index in range(n_images)),
        "max_tokens": 8,
    }
    return Question(key, f"uid-{key}", text, **(defaults | fields))


def answers_by_key(captioner: Captioner, questions: Sequence[Question]) -> dict[str, Answer]:
    """Return the answers to questions by key; check that each question is answered once, with its uid."""
    answers = list(captioner.answer(questions))
    assert sorted(answer.key for answer in answers) == sorted(each.key for each in questions), "each question once"
    assert all(answer.uid == f"uid-{answer.key}" for answer in answers)
    return {answer.key: answer for answer in answers}


def answer_to(captioner: Captioner, asked: Question) -> Answer:
    """Return the answer to a single question."""
    return answers_by_key(captioner, [asked])[asked.key]
