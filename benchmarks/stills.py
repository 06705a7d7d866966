"""Still images of the drawn world as squares of one size, and what the tracker finds in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cluster.arrays import Pixels
from pipelines.scenes.stream import WORLD, Selection, Stream, StreamFile
from training.evaluation.metric import Clip, Expected
from training.evaluation.truth import Split
from training.evaluation.world_scores import world_scores
from training.pixels import from_uint8

# Shape suffixes: B images, T H W frames, rows and columns, C colours.

SIDE = 80
"""Width and height in pixels."""
FPS = 8.0


def still_images(split: Split, count: int) -> list[StreamFile]:
    """Return the first still images of a stream, planned for squares of `SIDE` pixels."""
    files = [Stream(0, split).file(index) for index in Selection(0, count).indices()]
    for file in files:
        # `plan` is a cached property, from which everything else of the file follows.
        file.__dict__["plan"] = replace(file.plan, width=SIDE, height=SIDE)
    return files


def drawn(files: Sequence[StreamFile]) -> Iterator[Tensor]:
    """Yield the pixels `[B, 3, 1, H, W]` of still images."""
    for start in range(0, len(files), 64):
        images = [next(file.motion.frames(SIDE, SIDE, file.backdrop)) for file in files[start : start + 64]]
        yield from_uint8(torch.from_numpy(np.stack(images))).permute(0, 3, 1, 2)[:, :, None]


def judge(images: Sequence[Pixels], files: Sequence[StreamFile]) -> dict[str, float]:
    """Return the scores of images of the captions of files."""
    expected = [Expected.of(file.truth(file.name).shots[0]) for file in files]
    # The tracker follows shapes over frames, so it gets clips that stand still.
    clips = (
        Clip(np.repeat(image_HWC[None], 3, axis=0), FPS, WORLD, one)
        for image_HWC, one in zip(images, expected, strict=True)
    )
    return {name: round(score, 3) for name, score in world_scores(clips).items()}
