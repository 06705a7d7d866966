"""The export of a run's best step so far, by validation loss, beside the checkpoints that runs resume from."""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster import storage
from cluster.telemetry import log
from training.checkpoints.model_card import CARD, read_card
from training.engine import Engine

FOLDER = "best"
"""Folder of a run with the exports of its best steps, `step-N`."""

Write = Callable[[str, int, float], None]
"""Writes the export of the model, of a step with a validation loss, to a URI; every rank calls it."""


@dataclass(frozen=True)
class BestStep:
    """The step with the lowest validation loss so far."""

    step: int
    val_loss: float


class BestExport:
    """The export of the best step so far; every rank has one and makes the same calls at the same steps.

    An export is written when the validation loss improves. The checkpoint after it holds the step and the loss, so a
    run that resumes knows both. Exports that a checkpoint may still name are kept: a run can resume before the newest.
    """

    def __init__(self, run_uri: str, engine: Engine, state: Mapping[str, Any] | None, keep_checkpoints: int) -> None:
        """Open the exports of a run that resumes with the `state` of its checkpoint, None for a run without."""
        self._run_uri, self._engine = run_uri, engine
        self.best = self._found(BestStep(**state)) if state else None
        # One more than there are checkpoints, because the newest one may still be incomplete.
        self._named_steps = deque([self.best.step] if self.best else [], maxlen=keep_checkpoints + 1)

    def uri(self, step: int) -> str:
        """Return the URI of the export of a step."""
        return storage.join(self._run_uri, FOLDER, f"step-{step:08d}")

    def offer(self, step: int, val_loss: float, write: Write) -> None:
        """Write the export of a step if its validation loss is finite and the lowest so far; every rank calls it."""
        if not math.isfinite(val_loss) or (self.best and val_loss >= self.best.val_loss):
            return
        write(self.uri(step), step, val_loss)
        self.best = BestStep(step, val_loss)
        if self._engine.rank == 0:
            self._remove_others()

    def checkpoint_state(self) -> dict[str, Any] | None:
        """Return the state for a checkpoint that begins now, of JSON's types; None before the first offer."""
        if self.best is None:
            return None
        self._named_steps.append(self.best.step)
        return asdict(self.best)

    def copy_to(self, uri: str, trained_steps: int) -> bool:
        """Copy the best export to a URI and return whether it could be: there is one, and it is as it was written.

        Every rank calls it.
        """
        copied = self._engine.rank == 0 and self.best is not None and self._copy(self.best.step, uri, trained_steps)
        return self._engine.all_sum([copied])[0] > 0

    def _copy(self, step: int, uri: str, trained_steps: int) -> bool:
        """Copy the export of a step, first the weights and then the card, if the weights have its digest."""
        source = self.uri(step)
        try:
            card = read_card(source)
            is_whole = storage.file_digest(storage.join(source, card.files[0])) == card.weights
        except (ValueError, FileNotFoundError):
            is_whole = False
        if not is_whole:
            log.warning(f"{source}: the export of the best step is damaged; the last step is exported")
            return False
        for name in card.files:
            with (
                storage.open_input(storage.join(source, name)) as file,
                storage.atomic_output(storage.join(uri, name)) as target,
            ):
                shutil.copyfileobj(file, target, 16 << 20)
        card = card.model_copy(update={"trained_steps": trained_steps, "export": "best"})
        storage.write_bytes(storage.join(uri, CARD), card.to_bytes())
        return True

    def _found(self, best: BestStep) -> BestStep | None:
        """Return the step if its export is there. Rank 0 looks, so that all ranks agree."""
        is_there = self._engine.rank == 0 and storage.exists(storage.join(self.uri(best.step), CARD))
        if self._engine.all_sum([is_there])[0]:
            return best
        if self._engine.rank == 0:
            log.warning(f"{self.uri(best.step)}: the export of the best step is missing; only later steps count")
        return None

    def _remove_others(self) -> None:
        """Remove exports that are neither the best nor named by a checkpoint that is kept."""
        assert self.best is not None
        kept = {self.uri(step) for step in (self.best.step, *self._named_steps)}
        found = {entry.uri.rpartition("/")[0] for entry in storage.list_files(storage.join(self._run_uri, FOLDER))}
        for folder in found - kept:
            storage.remove(folder)
