"""Generation of the clips of an evaluation, one after another, each kept once it is measured."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cluster import storage
from cluster.arrays import Pixels
from training.evaluation.feature_distances import Features
from training.evaluation.metric import Clip, Expected, MetricSettings
from training.evaluation.results import VERSION, ClipResult, ClipSet, found_in, measure, read_result, write_result
from training.evaluation.truth import World
from training.sampling.exported_model import ExportedModel
from training.sampling.generation import generate, video_timeline
from training.sampling.marks import Marker
from training.sampling.media import write_video
from training.sampling.settings import SolverSettings, VideoShape

LATENT_SUFFIX = ".latent.npy"


class Prompt(NamedTuple):
    """A prompt of an evaluation: what it says, the shape to generate, and a seed of its own."""

    name: str
    text: str
    shape: VideoShape
    seed: int
    world: World | None = None
    expected: Expected | None = None


@dataclass(frozen=True)
class Generation:
    """The model, solver and metrics of generated clips, and the folder that they and their results are written to."""

    model: ExportedModel
    solver: SolverSettings
    metrics: Sequence[MetricSettings]
    folder_uri: str
    features: Features | None = None
    features_digest: str = ""
    """Digest of the network of the features, empty without one."""
    marker: Marker | None = None
    """Marks the file of each clip; the frames that are measured have no watermark."""

    def key(self, prompt: Prompt, clip_set: ClipSet) -> str:
        """Return the digest of everything that decides a clip and its values."""
        solver = self._solver(prompt, clip_set).model_dump_json()
        names = [metric.model_dump_json() for metric in self.metrics]
        text = "" if clip_set == "null" else prompt.text
        parts = (
            self.model.card.weights,
            self.model.card.autoencoder_identity,
            solver,
            text,
            *map(str, prompt.shape),
            repr(prompt.expected),
            repr(prompt.world),
        )
        return storage.digest(f"evaluation {VERSION}", clip_set, self.features_digest, *parts, *names)

    def keep(self, clip: Clip, prompt: Prompt, clip_set: ClipSet, key: str, video: str | None = None) -> ClipResult:
        """Measure a clip, write its result and return it. `video` is the clip's file, relative to the folder."""
        features = tuple(self.features(clip.frames_THWC)) if self.features else ()
        values = measure(clip, self.metrics)
        result = ClipResult(clip_set, prompt.name, prompt.text, video, key, found_in(clip), values, features)
        write_result(self.folder_uri, result)
        return result

    def run(
        self, prompts: Sequence[Prompt], clip_set: ClipSet, advance: Callable[[], None] = lambda: None
    ) -> list[ClipResult]:
        """Return the results for prompts, generating those that are not there yet. `null` clips ignore their texts.

        Raises `ValueError` for a size that cannot be marked, before anything is generated.
        """
        keys = [self.key(prompt, clip_set) for prompt in prompts]
        there = [
            read_result(self.folder_uri, clip_set, prompt.name, key) for prompt, key in zip(prompts, keys, strict=True)
        ]
        missing = [prompt for prompt, found in zip(prompts, there, strict=True) if found is None]
        if self.marker is not None:
            for prompt in missing:
                self.marker.check_size(prompt.shape.width, prompt.shape.height)
        texts: dict[str, Tensor] = {}
        if missing and clip_set != "null":
            embeddings = self.model.embed_all([prompt.text for prompt in missing])
            texts = {prompt.name: text for prompt, text in zip(missing, embeddings, strict=True)}
        results = []
        for prompt, key, found in zip(prompts, keys, there, strict=True):
            results.append(found or self._generate(prompt, clip_set, key, texts.get(prompt.name)))
            advance()
        return results

    def _solver(self, prompt: Prompt, clip_set: ClipSet) -> SolverSettings:
        changes: dict[str, object] = {"seed": self.solver.seed + prompt.seed}
        if clip_set == "null":
            changes["guidance"] = 1.0
        own = {name: getattr(self.solver, name) for name in SolverSettings.model_fields}
        return SolverSettings.model_construct(**own).model_copy(update=changes)

    def _generate(self, prompt: Prompt, clip_set: ClipSet, key: str, text_NE: Tensor | None) -> ClipResult:
        text_NE = self.model.parts.null_text_NE if text_NE is None else text_NE
        if self.solver.compile:
            self.model.parts.compile_for_sampling()
        timeline = video_timeline(self.model.parts, text_NE, prompt.shape)
        latent_BCTHW = generate(self.model.parts, timeline, self._solver(prompt, clip_set))
        frames_THWC = self.model.decode(latent_BCTHW)
        video = f"{clip_set}/{prompt.name}.mp4"
        self._write(storage.join(self.folder_uri, video), frames_THWC, prompt)
        write_latent(self.folder_uri, clip_set, prompt.name, latent_BCTHW[0])
        clip = Clip(frames_THWC, prompt.shape.fps, prompt.world, prompt.expected)
        # Written last: a result means that the clip and its latent are whole.
        return self.keep(clip, prompt, clip_set, key, video)

    def _write(self, uri: str, frames_THWC: Pixels, prompt: Prompt) -> None:
        if self.marker is None:
            write_video(uri, frames_THWC, prompt.shape.fps)
        else:
            batch = storage.digest(prompt.text, str(prompt.seed))
            self.marker.write(uri, frames_THWC, prompt.shape.fps, self.model.card.weights, batch)


def write_latent(folder_uri: str, clip_set: ClipSet, name: str, latent_CTHW: Tensor) -> None:
    """Write the latents of a generated clip beside it, as float16."""
    buffer = io.BytesIO()
    np.save(buffer, latent_CTHW.to("cpu", torch.float16).numpy())
    storage.write_bytes(storage.join(folder_uri, clip_set, name + LATENT_SUFFIX), buffer.getvalue())
