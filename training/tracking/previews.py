"""Previews: samples during training, always of the same captions of the validation split and from the same noise."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from cluster import storage
from cluster.arrays import UInt8Array
from cluster.storage import digest
from cluster.telemetry import log
from training.adapters.lora import file_name
from training.assembly import TrainingRun
from training.checkpoints.adapter_export import merged_model
from training.checkpoints.export import model_from_card
from training.data.buckets import parse_bucket_name
from training.data.dataset import Dataset
from training.evaluation.world_scores import WorldScores
from training.network import VideoModel
from training.sampling.coding import decode_video
from training.sampling.exported_model import open_autoencoder
from training.sampling.generation import ModelParts, generate, video_timeline
from training.sampling.grid import video_grid
from training.sampling.marks import Marker
from training.sampling.media import write_png, write_video
from training.sampling.prediction import model_dtype
from training.sampling.provenance import version, write_provenance
from training.sampling.settings import SolverSettings, VideoShape
from training.settings import TrainSettings
from training.tracking.metrics import PREVIEWS_FOLDER, Metrics

LIMIT_S = 1200.0
"""Longest time for sampling. Ranks wait for each other in a collective, which times out after 30 minutes in Ray
Train."""
AUTO_EVERY, MAX_SHARE = 500, 0.02
"""Steps between previews with `every: auto`, or a multiple, so that they take at most this share of the FLOPs that a
rank computes."""


class TooSlowError(Exception):
    """Sampling takes too long for the ranks that wait for it."""


class PreviewFailedError(Exception):
    """Another rank could not make its samples."""


@dataclass(frozen=True)
class _Shown:
    """A sample of the data set whose caption is shown, without its tensors."""

    row: int
    uid: str
    caption: str
    shape: VideoShape


class Previews:
    """The previews of a run, by the averaged weights. Every rank has one and makes the same calls at the same steps.

    Ranks sample with a second model on their devices, one sample after the other if there are more samples than ranks,
    and rank 0 writes the result. The state of training, random state included, does not change.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run, self._settings, self._engine = run, run.settings.previews, run.engine
        self._failure = ""
        self._given_up = False
        footage = self._settings.footage
        self._scores = WorldScores(footage, self._settings.scored) if footage else None

    @cached_property
    def every(self) -> int:
        """Steps between previews; 0 for never, as of a model that cannot make samples in training."""
        if self._run.settings.model.lacks_in_training:
            return 0
        if self._settings.every != "auto":
            return self._settings.every
        return preview_interval(self._run.settings, self._run.dataset, self._engine.world_size)

    def due(self, step: int) -> bool:
        """Return whether there is a preview after `step` steps."""
        last = step == self._run.settings.steps
        return self.every > 0 and not self._given_up and (step % self.every == 0 or last)

    def record(self, step: int, averages: list[Tensor], metrics: Metrics | None) -> dict[str, float]:
        """Write `previews/step-N.mp4` and `.png` (for images alone only the latter) with a JSON beside them.

        Returns `preview_s`, the seconds that the preview took, and on rank 0 the scores of drawn footage, if the
        settings name some. A preview that fails does not stop the run: the failure is logged and written to the JSON,
        the record has `preview_failed`, and the next preview is tried. After one that takes longer than `LIMIT_S` there
        are no more until the run is started again.
        """
        start_s = time.perf_counter()
        engine, error, scores = self._engine, None, dict[str, float]()
        n_videos = self._settings.count + (self._settings.scored if self._scores else 0)
        with engine.swapped_weights(averages):
            weights = engine.full_parameters(on_all_ranks=engine.rank < n_videos)
        try:
            own = self._generate(step, weights)
        except Exception as raised:  # training does not depend on previews
            error = raised
        n_failed, n_too_slow = engine.all_sum([error is not None, isinstance(error, TooSlowError)])
        self._given_up = n_too_slow > 0
        if n_failed:
            messages = engine.all_gather([f"{type(error).__name__}: {error}"] if error else [])
            error = error or PreviewFailedError(messages[0])
        else:
            videos = self._gather(own)
            try:
                if engine.rank == 0:
                    scores = self._write(step, videos, metrics)
            except Exception as raised:
                error = raised
        if error is not None and engine.rank == 0:
            self._report(step, error)
        return {"preview_s": time.perf_counter() - start_s, **scores} | ({"preview_failed": 1} if error else {})

    def _report(self, step: int, error: Exception) -> None:
        """Log a failure, unless it is that of the preview before, and write it to the preview's JSON."""
        failure = str(error) if isinstance(error, PreviewFailedError) else f"{type(error).__name__}: {error}"
        if failure != self._failure:
            after = "there are no more previews" if self._given_up else "the next one is tried"
            log.warning(
                f"no preview of step {step}: {failure}. Training continues and {after}; "
                "`previews: {every: 0}` turns them off"
            )
        self._failure = failure
        # The failure may be that nothing can be written.
        with contextlib.suppress(OSError):
            write_provenance(self._uri(step), {"step": step, "failed": failure})

    def _uri(self, step: int) -> str:
        return storage.join(self._run.run_uri, PREVIEWS_FOLDER, f"step-{step:06d}")

    def _shapes(self) -> list[VideoShape]:
        """Return the shape of each video: first those that are shown, then those that are scored."""
        scored = self._scores.prompts(self._run.model_card(0)) if self._scores else []
        return [shown.shape for shown in self._shown] + [prompt.shape for prompt in scored]

    def _generate(self, step: int, weights: Mapping[str, Tensor]) -> dict[int, UInt8Array]:
        """Return this rank's videos `[T, H, W, 3]` by index; it makes every n-th of n ranks."""
        own = range(self._engine.rank, len(self._shapes()), self._engine.world_size)
        if not own:
            return {}
        with torch.random.fork_rng(devices=[]):
            parts = self._parts(step, weights)
            return {index: self._video(index, parts) for index in own}

    def _video(self, index: int, parts: ModelParts) -> UInt8Array:
        solver = SolverSettings(steps=self._settings.steps, guidance=self._settings.guidance)
        if index >= len(self._shown):
            assert self._scores is not None
            return self._scores.clip(index - len(self._shown), parts, solver)
        shown = self._shown[index]
        timeline = video_timeline(parts, self._dataset.sample(shown.row).text.float(), shown.shape)
        return decode_video(parts.autoencoder, generate(parts, timeline, solver.model_copy(update={"seed": index})))

    def _gather(self, own: Mapping[int, UInt8Array]) -> list[UInt8Array]:
        """Return the videos of all ranks, by index."""
        if self._engine.world_size == 1:
            return [own[index] for index in range(len(own))]
        videos = []
        for index, shape in enumerate(self._shapes()):
            size = (shape.frames, shape.height, shape.width, 3)
            video = torch.from_numpy(own[index]) if index in own else torch.empty(size, dtype=torch.uint8)
            video = video.to(self._engine.device)
            self._engine.broadcast(video, index % self._engine.world_size)
            videos.append(video.cpu().numpy())
        return videos

    @cached_property
    def _marker(self) -> Marker:
        """The marker of the files of all previews, whose certificate is tried once."""
        return Marker(self._settings.marks)

    def _write(self, step: int, videos: Sequence[UInt8Array], metrics: Metrics | None) -> dict[str, float]:
        """Write all files of a preview and add its poster to trackers; return the scores."""
        shown, uri = self._shown, self._uri(step)
        scores = self._scores.judge(videos[len(shown) :]) if self._scores else {}
        videos = videos[: len(shown)]
        whole_THWC, fps, cells = video_grid(videos, [sample.shape.fps for sample in shown])
        poster: UInt8Array = whole_THWC[len(whole_THWC) // 2]
        marker = self._marker
        marks, finish = marker.describe(self._run.run_uri, str(step)), marker.finish_sheet()
        write_png(f"{uri}.png", next(marker.frames([poster], fps, marks)), finish)
        if len(whole_THWC) > 1:
            write_video(f"{uri}.mp4", marker.frames(whole_THWC, fps, marks), fps, finish)
        samples = [
            {
                "uid": sample.uid,
                "caption": sample.caption,
                "seed": seed,
                "frames": len(video),
                "fps": sample.shape.fps,
                **cell._asdict(),
            }
            for seed, (sample, video, cell) in enumerate(zip(shown, videos, cells, strict=True))
        ]
        record = {
            "step": step,
            "settings": self._settings.model_dump(mode="json"),
            "fps": fps,
            "frames": len(whole_THWC),
            "samples": samples,
            "marks": marks,
        }
        write_provenance(uri, record | {"worldloom": version()})
        if metrics:
            metrics.add_image("previews", poster, step)
        return {f"score_{name}": value for name, value in scores.items()}

    def _parts(self, step: int, weights: Mapping[str, Tensor]) -> ModelParts:
        """Return the model with these weights, in the type of sampling, and the autoencoder.

        They are opened for each preview, so that in between neither takes memory from training.
        """
        card, device = self._run.model_card(step), self._engine.device
        if card.adapter is None:
            model = model_from_card(card, self._run.with_frozen(weights))
        else:
            model = merged_model(card, {file_name(name): value for name, value in weights.items()})
        model = model.to(device, model_dtype(device))
        _limit_time(model)
        return ModelParts(card, model, open_autoencoder(card, device), self._run.step_config.null_text)

    @cached_property
    def _dataset(self) -> Dataset:
        """The validation split, or the training split if that is empty."""
        held_out = Dataset.open(self._run.manifest_uri, "val")
        return held_out if len(held_out) else self._run.dataset

    @cached_property
    def _shown(self) -> list[_Shown]:
        """The samples that are shown, in the order of a hash, so that they depend on the seed alone."""
        table = self._dataset.table
        hashes = [digest(str(self._run.step_config.seed), "preview", uid) for uid in table["uid"].to_pylist()]
        found = []
        for row in np.argsort(hashes)[: self._settings.count].tolist():
            values = {name: table[name][row].as_py() for name in ("uid", "caption", "bucket", "fps")}
            width, height, frames = parse_bucket_name(values["bucket"])
            shape = VideoShape(frames, height, width, values["fps"])
            found.append(_Shown(row, values["uid"], values["caption"], shape))
        return found


def preview_interval(settings: TrainSettings, dataset: Dataset, ranks: int) -> int:
    """Return the steps between previews with `every: auto`.

    A preview costs the forward passes that one rank makes for its samples, of the mean FLOPs of the data set's samples.
    A step costs three forward passes of a rank's share of its samples. Decoding is not counted.
    """
    previews, batch = settings.previews, settings.batch
    n_videos = previews.count + (previews.scored if previews.footage else 0)
    passes = math.ceil(n_videos / ranks) * previews.steps * (2 if previews.guidance != 1 else 1)
    samples_per_step = max(1.0, batch.tokens_per_step / float(pc.mean(dataset.table["n_tokens"]).as_py()))
    training_passes = 3 * samples_per_step * settings.context_parallel / ranks
    return AUTO_EVERY * max(1, math.ceil(passes / (MAX_SHARE * training_passes * AUTO_EVERY)))


def _limit_time(model: VideoModel) -> None:
    """Make the model raise `TooSlowError` if it is called later than `LIMIT_S` from now."""
    end_s = time.monotonic() + LIMIT_S

    def check(module: VideoModel, inputs: Sequence[Any]) -> None:
        if time.monotonic() > end_s:
            raise TooSlowError(f"sampling took over {LIMIT_S:g} s; lower count or steps of `previews`")

    model.register_forward_pre_hook(check)
