"""Samples made while training goes on: the same captions of the validation split, from the same noise, by the averaged weights so far."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster import storage
from cluster.storage import digest
from cluster.telemetry import log
from training.assembly import make_model_card
from training.checkpoints.export import model_from_card
from training.data.buckets import parse_bucket_name
from training.data.dataset import Dataset, Sample
from training.engine import Engine
from training.network import VideoModel
from training.sampling.grid import grid
from training.sampling.media import write_mp4, write_png
from training.sampling.provenance import version, write_provenance
from training.sampling.settings import SolverSettings
from training.sampling.tasks import decoded, generate, open_autoencoder
from training.settings import TrainSettings
from training.step import StepConfig
from training.tracking.metrics import Metrics

FOLDER = "previews"
LIMIT_S = 1200.0
"""Longest that sampling may take: the other ranks wait in a collective, which fails after 30 minutes on Ray Train's workers."""


class TooSlowError(Exception):
    """Sampling would keep the other ranks waiting for too long."""


class Previews:
    """The previews of a run, as often as its settings say; every rank has one and makes the same calls at the same steps.

    Rank 0 samples, with a model of its own on its device, while the others wait. No state of training is changed, random state included.
    """

    def __init__(
        self, run_uri: str, manifest_uri: str, settings: TrainSettings, train: Dataset, task: StepConfig, engine: Engine
    ) -> None:
        self._run_uri, self._manifest_uri, self._settings = run_uri, manifest_uri, settings
        self._train, self._task, self._engine = train, task, engine
        self._failure = ""
        self._given_up = False

    def due(self, step: int) -> bool:
        """Whether there is a preview after `step` steps."""
        every = self._settings.previews.every
        return every > 0 and not self._given_up and (step % every == 0 or step == self._settings.steps)

    def record(self, step: int, averages: list[Tensor], metrics: Metrics | None) -> dict[str, float]:
        """Write `previews/step-N.mp4` or, of images alone, only `.png`, with a JSON beside it; returns `preview_s`, seconds that it took.

        One that fails is worth no run of days: the failure is logged, the JSON names it, the record has `preview_failed`, and the next preview
        is tried. One that takes longer than `LIMIT_S` is the last until the run is started again.
        """
        start_s = time.perf_counter()
        with self._engine.swapped_weights(averages):
            weights = self._engine.full_parameters()
        error = self._attempt(step, weights, metrics) if self._engine.rank == 0 else None
        (too_long,) = self._engine.all_sum([isinstance(error, TooSlowError)])
        self._given_up = too_long > 0
        return {"preview_s": time.perf_counter() - start_s} | ({"preview_failed": 1} if error else {})

    def _attempt(self, step: int, weights: Mapping[str, Tensor], metrics: Metrics | None) -> Exception | None:
        """Make and write a preview; what went wrong, if anything did."""
        uri = storage.join(self._run_uri, FOLDER, f"step-{step:06d}")
        try:
            with torch.random.fork_rng(devices=[]):
                poster = self._write(uri, step, weights)
            if metrics:
                metrics.picture("previews", poster, step)
        except Exception as error:  # whatever it is, training does not depend on it
            failure = f"{type(error).__name__}: {error}"
            if failure != self._failure:
                after = "there are no more of them" if isinstance(error, TooSlowError) else "the next one is tried"
                log.warning(
                    f"no preview of step {step}: {failure}. Training goes on and {after}; `previews: {{every: 0}}` makes none"
                )
            self._failure = failure
            # Where nothing can be written, that may be the failure itself.
            with contextlib.suppress(OSError):
                write_provenance(f"{uri}.png", {"step": step, "failed": failure})
            return error
        return None

    def _write(self, uri: str, step: int, weights: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Write all files of a preview; its poster `[H, W, 3]`."""
        videos = self._sampled(step, weights)
        whole_THWC, fps, cells = grid(videos, [sample.fps for sample in self._samples])
        poster: NDArray[np.uint8] = whole_THWC[len(whole_THWC) // 2]
        write_png(f"{uri}.png", poster)
        if len(whole_THWC) > 1:
            write_mp4(f"{uri}.mp4", whole_THWC, fps)
        shown = [
            {
                "uid": sample.uid,
                "caption": sample.caption,
                "seed": seed,
                "frames": len(video),
                "fps": sample.fps,
                **cell._asdict(),
            }
            for seed, (sample, video, cell) in enumerate(zip(self._samples, videos, cells, strict=True))
        ]
        about = {
            "step": step,
            "settings": self._settings.previews.model_dump(mode="json"),
            "fps": fps,
            "frames": len(whole_THWC),
            "samples": shown,
        }
        write_provenance(f"{uri}.png", about | {"worldloom": version()})
        return poster

    def _sampled(self, step: int, weights: Mapping[str, Tensor]) -> list[NDArray[np.uint8]]:
        """A video `[T, H, W, 3]` for each of the samples."""
        settings, device, null_text = self._settings.previews, self._engine.device, self._task.null_text
        card = make_model_card(self._settings, self._train, null_text.shape[-1], step, self._task.seed)
        # Opened anew each time, so that between previews neither takes memory from training.
        autoencoder = open_autoencoder(card, device)
        model = model_from_card(card, weights).to(device)
        _stop_in_time(model)
        solver = SolverSettings(steps=settings.steps, guidance=settings.guidance)
        videos = []
        for seed, sample in enumerate(self._samples):
            own = solver.model_copy(update={"seed": seed})
            latent_BCTHW = generate(
                card, model, autoencoder, sample.text.float(), null_text, own, _size(sample), sample.fps
            )
            videos.append(decoded(autoencoder, latent_BCTHW))
        return videos

    @cached_property
    def _samples(self) -> list[Sample]:
        """What is shown, first to last: by the order of a hash, so that it depends on the seed and on nothing else."""
        held_out = Dataset.open(self._manifest_uri, "val")
        dataset = held_out if len(held_out) else self._train
        hashes = [digest(str(self._task.seed), "preview", uid) for uid in dataset.table["uid"].to_pylist()]
        return [dataset.sample(row) for row in np.argsort(hashes)[: self._settings.previews.count].tolist()]


def _stop_in_time(model: VideoModel) -> None:
    """Let the model raise `TooSlowError` where it is called later than `LIMIT_S` from now."""
    end_s = time.monotonic() + LIMIT_S

    def in_time(module: VideoModel, inputs: Sequence[Any]) -> None:
        if time.monotonic() > end_s:
            raise TooSlowError(f"sampling took over {LIMIT_S:g} s; lower count or steps of `previews`")

    model.register_forward_pre_hook(in_time)


def _size(sample: Sample) -> tuple[int, int, int]:
    """Frames, height and width in pixels."""
    width, height, frames = parse_bucket_name(sample.bucket)
    return frames, height, width
