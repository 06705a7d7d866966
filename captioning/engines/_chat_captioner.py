"""Answer questions in batches with a chat model. Batches shrink when memory runs out, and bad questions fail alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from captioning.engine import Answer, Captioner, EngineError, Question
from captioning.engines import _images
from captioning.engines._chat_model import ChatModel, InputKind, ModelInput, free_memory
from cluster.telemetry import log

BatchKey = tuple[InputKind, int, bool]
"""Properties that the questions of a batch share: kind of input, number of images, and whether answers are sampled."""


class ChatCaptioner(Captioner):
    """A captioner with a loaded chat model, which answers batches of at most `batch_size` questions."""

    def __init__(self, model: ChatModel, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Answer batches of similar questions, the small ones first.

        A batch that runs out of memory halves the batch size for this batch and all later, larger ones.
        """
        if not self._model.takes_images and any(question.images for question in questions):
            raise EngineError(
                f"model {self._model.name} takes text only, but the questions have images; choose a model with vision, "
                "or use this one to rewrite"
            )
        sized: list[tuple[BatchKey, tuple[int, int], Question]] = []
        for question in questions:
            try:
                sized.append((self._batch_key(question), _size(question), question))
            except ValueError as error:
                yield _failed(question, error)
        sized.sort(key=lambda item: item[:2])
        batch_size = self._batch_size
        for (_, _, is_sampled), group in groupby(sized, key=lambda item: item[0]):
            left = [question for _, _, question in group]
            while left:
                # Sampled answers are drawn one at a time, so that they follow from their own seed alone.
                batch = left[: 1 if is_sampled else batch_size]
                answers = self._answer_unless_out_of_memory(batch)
                if answers is None:
                    batch_size = self._halved(batch)
                    continue
                yield from answers
                left = left[len(batch) :]

    def close(self) -> None:
        self._model.close()

    def _batch_key(self, question: Question) -> BatchKey:
        return self._model.input_kind(question), len(question.images), question.temperature > 0

    def _answer_unless_out_of_memory(self, batch: Sequence[Question]) -> list[Answer] | None:
        """Return the answers to a batch, or None if memory ran out.

        The error does not leave this method, because its traceback keeps all tensors of the batch alive.
        """
        try:
            return self._answer_batch(batch)
        except torch.OutOfMemoryError:
            return None

    def _halved(self, batch: Sequence[Question]) -> int:
        """Return half the size of a batch that ran out of memory. Raises `EngineError` if it was a single question."""
        free_memory()
        if len(batch) == 1:
            raise EngineError(
                f"model {self._model.name} ran out of GPU memory with one question, about clip {batch[0].uid} with "
                f"{len(batch[0].images)} images; send fewer or smaller images (max_pixels), or use more GPU memory "
                "(gpus, device_map: auto, dtype)"
            )
        size = len(batch) // 2
        log.warning("captioning: %d questions do not fit in GPU memory; the batch size is now %d", len(batch), size)
        return size

    def _answer_batch(self, batch: Sequence[Question]) -> list[Answer]:
        """Answer a batch. A question that the model's processor refuses gets an answer with the error."""
        answers, inputs = [], []
        for question in batch:
            try:
                inputs.append((question, self._model.prepare(question)))
            except Exception as error:
                answers.append(_failed(question, error))
        return answers + self._complete(inputs)

    def _complete(self, batch: Sequence[tuple[Question, ModelInput]]) -> list[Answer]:
        """Answer prepared questions. If the batch fails, each is answered alone, and only the bad ones get an error."""
        if not batch:
            return []
        questions, first = [question for question, _ in batch], batch[0][0]
        try:
            completions = self._model.complete(
                [model_input for _, model_input in batch],
                [question.max_tokens for question in questions],
                first.temperature,
                first.seed,
            )
        except torch.OutOfMemoryError:
            raise
        except torch.AcceleratorError as error:
            raise EngineError(
                f"the GPU failed with model {self._model.name}: {error}; run again: stored answers are kept"
            ) from error
        except Exception as error:
            if len(batch) == 1:
                return [_failed(first, error)]
            return [answer for item in batch for answer in self._complete([item])]
        return [
            Answer(
                question.key,
                question.uid,
                completion.text,
                completion.truncated,
                completion.tokens_in,
                completion.tokens_out,
            )
            for question, completion in zip(questions, completions, strict=True)
        ]


def _size(question: Question) -> tuple[int, int]:
    """Return the number of pixels and of characters of a question, from the header of its first image.

    All images of a question have one size. Raises `ValueError` if the header cannot be read.
    """
    width, height = _images.size(question.images[0]) if question.images else (0, 0)
    return len(question.images) * width * height, len(question.system) + len(question.text)


def _failed(question: Question, error: Exception) -> Answer:
    return Answer(question.key, question.uid, error=f"{type(error).__name__}: {error}")
