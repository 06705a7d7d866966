"""Batches of questions to tiny models: independent answers, bad questions, and too little memory."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch

from captioning.engine import EngineError, Question
from tests.support.chat_questions import answers_by_key, question, random_jpeg
from tests.support.tiny_models import WITH_VISION

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def mixed_questions() -> list[Question]:
    """Return questions of all kinds and lengths, one of which is sampled."""
    n_images = (0, 1, 3, 3, 3, 1)
    greedy = [question(f"q{n}", n_images=n_images[n], text="Say what moves." + " And how?" * n) for n in range(6)]
    return [*greedy, question("s", temperature=0.9, seed=1)]


def limit_memory(monkeypatch: pytest.MonkeyPatch, captioner: Any, max_questions: int) -> list[int]:
    """Let batches of more questions run out of memory; return the list of the sizes of all batches."""
    generate, sizes = captioner._model._model.generate, []

    def limited(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > max_questions:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    monkeypatch.setattr(captioner._model._model, "generate", limited)
    return sizes


# Independence


@pytest.mark.parametrize("name", WITH_VISION)
def test_answer_does_not_depend_on_the_batch(
    name: str, opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = answers_by_key(opened[name], mixed_questions())
    assert together == answers_by_key(opened[name], mixed_questions()), "bit for bit"
    monkeypatch.setattr(opened[name], "_batch_size", 1)
    alone = answers_by_key(opened[name], mixed_questions()[::-1])
    for key, answer in together.items():
        assert (answer.text, answer.tokens_in) == (alone[key].text, alone[key].tokens_in)
    assert alone.keys() == together.keys()
    assert len({answer.text for answer in together.values()}) == len(together), "answers depend on the question"


def test_text_answers_do_not_depend_on_the_batch(opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [question(f"q{n}", n_images=0, text="word " * n, max_tokens=4 + n) for n in range(9)]
    together = answers_by_key(opened["llama"], questions)
    monkeypatch.setattr(opened["llama"], "_batch_size", 1)
    assert answers_by_key(opened["llama"], questions) == together
    assert [together[f"q{n}"].tokens_out for n in range(9)] == [4 + n for n in range(9)]


# Bad questions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (random_jpeg(1), b"no image", random_jpeg(2))}, "cannot be decoded"),
        ({"images": (b"", random_jpeg(1), random_jpeg(2))}, "cannot be read"),
        ({"images": (random_jpeg(1), random_jpeg(2)[:-200], random_jpeg(3))}, "truncated"),
        ({"images": (random_jpeg(1), random_jpeg(2), random_jpeg(3, 40, 40))}, "differ in size"),
        ({"image_times_s": (0.0, 1.0)}, "3 images of a video need as many times"),
        ({"image_times_s": (0.0, 2.0, 1.0)}, "in order"),
    ],
)
def test_bad_question_fails_alone(change: dict[str, Any], message: str, opened: dict[str, Any]) -> None:
    good = [question(f"g{n}") for n in range(3)]
    answers = answers_by_key(opened["qwen"], [good[0], dataclasses.replace(question("bad"), **change), *good[1:]])
    bad = answers.pop("bad")
    assert bad.error is not None
    assert message in bad.error
    assert not bad.text
    assert answers == answers_by_key(opened["qwen"], good)


def test_question_that_breaks_the_model_fails_alone(opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generate = opened["llama"]._model._model.generate

    def broken(**inputs: Any) -> Any:
        if int(inputs["attention_mask"].sum(dim=1).max()) > 100:
            raise IndexError("beyond the last position")
        return generate(**inputs)

    questions = [question(f"q{n}", n_images=0, text="x" * n) for n in (1, 2, 200)]
    expected = answers_by_key(opened["llama"], questions[:2])
    monkeypatch.setattr(opened["llama"]._model._model, "generate", broken)
    answers = answers_by_key(opened["llama"], questions)
    assert answers.pop("q200").error == "IndexError: beyond the last position"
    assert answers == expected


def test_text_model_refuses_images(opened: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="takes text only"):
        list(opened["llama"].answer([question("a", n_images=1)]))


# Memory and device errors


def test_batch_that_runs_out_of_memory_is_halved(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    questions = [
        *[question(f"q{n}", text="x" * n) for n in range(5)],
        dataclasses.replace(question("bad"), images=(random_jpeg(1), b"", random_jpeg(2))),
    ]
    expected = answers_by_key(opened["qwen"], questions)
    sizes = limit_memory(monkeypatch, opened["qwen"], max_questions=1)
    with caplog.at_level(logging.WARNING):
        answers = answers_by_key(opened["qwen"], questions)
    assert {key: answer.text for key, answer in answers.items()} == {
        key: answer.text for key, answer in expected.items()
    }
    # The first four run out of memory together, then two of them; all others are answered one at a time.
    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    assert "2 questions do not fit in GPU memory; the batch size is now 1" in caplog.text


def test_single_question_without_memory_ends_the_run(opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, opened["qwen"], max_questions=0)
    with pytest.raises(EngineError, match="with one question, about clip uid-a with 3 images"):
        list(opened["qwen"].answer([question("a")]))


def test_answers_before_a_device_error_are_yielded(opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generate = opened["qwen"]._model._model.generate

    def broken(**inputs: Any) -> Any:
        if "pixel_values_videos" in inputs:
            raise torch.AcceleratorError("device-side assert")
        return generate(**inputs)

    monkeypatch.setattr(opened["qwen"]._model._model, "generate", broken)
    answers = opened["qwen"].answer([question("video"), question("image", n_images=1)])
    assert next(answers).key == "image"
    with pytest.raises(EngineError, match="the GPU failed"):
        next(answers)
