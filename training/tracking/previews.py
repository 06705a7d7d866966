"""Previews: samples during training, always of the same captions of the validation split and from the same noise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster import storage
from cluster.arrays import UInt8Array
from cluster.storage import digest
from cluster.telemetry import log
from training.assembly import TrainingRun
from training.checkpoints.export import model_from_card
from training.data.buckets import parse_bucket_name
from training.data.dataset import Dataset, Sample
from training.evaluation.world_scores import WorldScores
from training.network import VideoModel
from training.sampling.coding import decode_video
from training.sampling.exported_model import open_autoencoder
from training.sampling.generation import ModelParts, generate, video_timeline
from training.sampling.grid import video_grid
from training.sampling.media import write_mp4, write_png
from training.sampling.provenance import version, write_provenance
from training.sampling.settings import SolverSettings, VideoShape
from training.tracking.metrics import PREVIEWS_FOLDER, Metrics

LIMIT_S = 1200.0
"""Longest time for sampling. The other ranks wait in a collective, which times out after 30 minutes in Ray Train."""


class TooSlowError(Exception):
    """Sampling takes too long for the ranks that wait for it."""


class Previews:
    """The previews of a run, by the averaged weights. Every rank has one and makes the same calls at the same steps.

    Rank 0 samples with a second model on its device while the others wait. The state of training, random state
    included, does not change.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run, self._settings, self._engine = run, run.settings, run.engine
        self._failure = ""
        self._given_up = False
        footage = self._settings.previews.footage
        self._scores = WorldScores(footage, self._settings.previews.scored) if footage else None

    def due(self, step: int) -> bool:
        """Return whether there is a preview after `step` steps."""
        every = self._settings.previews.every
        return every > 0 and not self._given_up and (step % every == 0 or step == self._settings.steps)

    def record(self, step: int, averages: list[Tensor], metrics: Metrics | None) -> dict[str, float]:
        """Write `previews/step-N.mp4` and `.png` (for images alone only the latter) with a JSON beside them.

        Returns `preview_s`, the seconds that the preview took, and on rank 0 the scores of drawn footage, if the
        settings name some. A preview that fails does not stop the run: the failure is logged and written to the JSON,
        the record has `preview_failed`, and the next preview is tried. After one that takes longer than `LIMIT_S` there
        are no more until the run is started again.
        """
        start_s = time.perf_counter()
        with self._engine.swapped_weights(averages):
            weights = self._engine.full_parameters()
        scores: dict[str, float] = {}
        error = self._attempt(step, weights, metrics, scores) if self._engine.rank == 0 else None
        (too_long,) = self._engine.all_sum([isinstance(error, TooSlowError)])
        self._given_up = too_long > 0
        return {"preview_s": time.perf_counter() - start_s, **scores} | ({"preview_failed": 1} if error else {})

    def _attempt(
        self, step: int, weights: Mapping[str, Tensor], metrics: Metrics | None, scores: dict[str, float]
    ) -> Exception | None:
        """Make and write a preview, and add to `scores`; return the error if it failed."""
        uri = storage.join(self._run.run_uri, PREVIEWS_FOLDER, f"step-{step:06d}")
        try:
            with torch.random.fork_rng(devices=[]):
                parts = self._parts(step, weights)
                if self._scores:
                    found = self._scores.measure(parts, self._solver)
                    scores |= {f"score_{name}": value for name, value in found.items()}
                poster = self._write(uri, step, parts)
            if metrics:
                metrics.add_image("previews", poster, step)
        except Exception as error:  # training does not depend on previews
            failure = f"{type(error).__name__}: {error}"
            if failure != self._failure:
                after = "there are no more previews" if isinstance(error, TooSlowError) else "the next one is tried"
                log.warning(
                    f"no preview of step {step}: {failure}. Training continues and {after}; "
                    "`previews: {every: 0}` turns them off"
                )
            self._failure = failure
            # The failure may be that nothing can be written.
            with contextlib.suppress(OSError):
                write_provenance(uri, {"step": step, "failed": failure})
            return error
        return None

    def _write(self, uri: str, step: int, parts: ModelParts) -> UInt8Array:
        """Write all files of a preview; return its poster `[H, W, 3]`."""
        videos = self._generate(parts)
        whole_THWC, fps, cells = video_grid(videos, [sample.fps for sample in self._samples])
        poster: UInt8Array = whole_THWC[len(whole_THWC) // 2]
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
        record = {
            "step": step,
            "settings": self._settings.previews.model_dump(mode="json"),
            "fps": fps,
            "frames": len(whole_THWC),
            "samples": shown,
        }
        write_provenance(uri, record | {"worldloom": version()})
        return poster

    def _parts(self, step: int, weights: Mapping[str, Tensor]) -> ModelParts:
        """Return the model with these weights, and the autoencoder.

        They are opened for each preview, so that in between neither takes memory from training.
        """
        card, device = self._run.model_card(step), self._engine.device
        model = model_from_card(card, weights).to(device)
        _limit_time(model)
        return ModelParts(card, model, open_autoencoder(card, device), self._run.step_config.null_text)

    @property
    def _solver(self) -> SolverSettings:
        return SolverSettings(steps=self._settings.previews.steps, guidance=self._settings.previews.guidance)

    def _generate(self, parts: ModelParts) -> list[UInt8Array]:
        """Return a video `[T, H, W, 3]` for each of the samples."""
        videos = []
        for seed, sample in enumerate(self._samples):
            seeded = self._solver.model_copy(update={"seed": seed})
            latent_BCTHW = generate(parts, video_timeline(parts, sample.text.float(), _shape(sample)), seeded)
            videos.append(decode_video(parts.autoencoder, latent_BCTHW))
        return videos

    @cached_property
    def _samples(self) -> list[Sample]:
        """The samples that are shown, in the order of a hash, so that they depend on the seed alone."""
        held_out = Dataset.open(self._run.manifest_uri, "val")
        dataset = held_out if len(held_out) else self._run.dataset
        hashes = [digest(str(self._run.step_config.seed), "preview", uid) for uid in dataset.table["uid"].to_pylist()]
        return [dataset.sample(row) for row in np.argsort(hashes)[: self._settings.previews.count].tolist()]


def _limit_time(model: VideoModel) -> None:
    """Make the model raise `TooSlowError` if it is called later than `LIMIT_S` from now."""
    end_s = time.monotonic() + LIMIT_S

    def check(module: VideoModel, inputs: Sequence[Any]) -> None:
        if time.monotonic() > end_s:
            raise TooSlowError(f"sampling took over {LIMIT_S:g} s; lower count or steps of `previews`")

    model.register_forward_pre_hook(check)


def _shape(sample: Sample) -> VideoShape:
    """Return the shape of a sample in pixels."""
    width, height, frames = parse_bucket_name(sample.bucket)
    return VideoShape(frames, height, width, sample.fps)
