"""Questions in batches through a chat model: what is put together, what happens when it does not fit, and whose fault an error is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from captioning.engine import Answer, Captioner, EngineError, Question
from captioning.engines import _images
from captioning.engines._chat_model import ChatModel, Kind, Prompt, free_memory
from cluster.telemetry import log

Alike = tuple[Kind, int, bool]
"""What questions of one batch have in common: how their pictures are given, how many each has, and whether they sample."""


class ChatCaptioner(Captioner):
    """See `captioning.engines.transformers.Transformers`."""

    def __init__(self, model: ChatModel, batch: int) -> None:
        self._model = model
        self._batch = batch

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """A batch at a time, small questions first, so that what once did not fit is not tried with larger ones."""
        if not self._model.takes_images and any(question.images for question in questions):
            raise EngineError(
                f"model {self._model.name} knows words only and was shown pictures; choose one that sees, or use it to rewrite"
            )
        sized: list[tuple[Alike, tuple[int, int], Question]] = []
        for question in questions:
            try:
                sized.append((self._alike(question), _size(question), question))
            except ValueError as error:
                yield _failed(question, error)
        sized.sort(key=lambda item: item[:2])
        most = self._batch
        for (_, _, samples), group in groupby(sized, key=lambda item: item[0]):
            left = [question for _, _, question in group]
            while left:
                # One at a time where a seed decides: what a question draws must not depend on its neighbours.
                batch = left[: 1 if samples else most]
                answers = self._answer_if_it_fits(batch)
                if answers is None:
                    most = self._halve(batch)
                    continue
                yield from answers
                left = left[len(batch) :]

    def close(self) -> None:
        self._model.close()

    def _alike(self, question: Question) -> Alike:
        return self._model.kind(question), len(question.images), question.temperature > 0

    def _answer_if_it_fits(self, batch: Sequence[Question]) -> list[Answer] | None:
        """None where memory ran out. The error is let go of here, for it holds on to all that did not fit."""
        try:
            return self._answer_together(batch)
        except torch.OutOfMemoryError:
            return None

    def _halve(self, batch: Sequence[Question]) -> int:
        free_memory()
        if len(batch) == 1:
            raise EngineError(
                f"model {self._model.name} ran out of GPU memory at one question, of clip {batch[0].uid} with {len(batch[0].pictures)} pictures; "
                "give it fewer or smaller pictures (max_pixels), or more GPU memory (gpus, device_map: auto, dtype)"
            )
        log.warning(
            "captioning: %d questions do not fit in GPU memory; going on with %d at once", len(batch), len(batch) // 2
        )
        return len(batch) // 2

    def _answer_together(self, batch: Sequence[Question]) -> list[Answer]:
        answers, ready = [], []
        for question in batch:
            try:
                ready.append((question, self._model.prompt(question)))
            except Exception as error:
                answers.append(_failed(question, error))
        return answers + self._complete(ready)

    def _complete(self, ready: Sequence[tuple[Question, Prompt]]) -> list[Answer]:
        """Answers of a batch; where one question breaks it, each is asked alone, and only that one has none."""
        if not ready:
            return []
        questions, first = [question for question, _ in ready], ready[0][0]
        try:
            said = self._model.complete(
                [prompt for _, prompt in ready],
                [question.max_tokens for question in questions],
                first.temperature,
                first.seed,
            )
        except torch.OutOfMemoryError:
            raise
        except torch.AcceleratorError as error:
            raise EngineError(
                f"the GPU failed under model {self._model.name}: {error}; run again: what was answered is kept"
            ) from error
        except Exception as error:
            return (
                [_failed(first, error)]
                if len(ready) == 1
                else [answer for one in ready for answer in self._complete([one])]
            )
        return [
            Answer(question.key, question.uid, one.text, one.truncated, one.tokens_in, one.tokens_out)
            for question, one in zip(questions, said, strict=True)
        ]


def _size(question: Question) -> tuple[int, int]:
    """Pixels and letters of a question. Its pictures are of one size, so one header is enough. Raises `ValueError` where that is none."""
    width, height = _images.size(question.images[0]) if question.images else (0, 0)
    return len(question.images) * width * height, len(question.system) + len(question.text)


def _failed(question: Question, error: Exception) -> Answer:
    return Answer(question.key, question.uid, error=f"{type(error).__name__}: {error}")
