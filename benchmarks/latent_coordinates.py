"""What a small model learns from latents in two coordinates: `python -m benchmarks.latent_coordinates`.

Draws still images of the drawn world, 80x80 pixels, and encodes them by `causal` with `--weights`. One model is trained
on the latents as they are, each channel normalised (`channels`), and one on the same latents in the coordinates of
`training.autoencoder_training.pixel_scale`, normalised as a whole (`pixels`). Both are trained in this process for
`--seconds` of its CPU time, in one thread, from the same weights, images and noise. Then images of `--prompts` held-out
captions are sampled at each `--guidance` and decoded by the same autoencoder, and the tracker judges what they show:
the shares of right `background`, `colours`, `kinds` (forms) and `number`.

Prints a line per coordinates and guidance, and one line of JSON last. With `--image PATH.png` the first samples are
saved, a row per coordinates.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.stills import FPS, SIDE, drawn, judge, still_images
from captioning.encoders.hashing import Hashing
from cluster.arrays import UInt8Array
from pipelines.scenes.stream import StreamFile
from training.autoencoder_training.pixel_scale import pixel_coordinates, pixel_metric
from training.autoencoders._causal_weights import TrainedNetwork
from training.autoencoders.causal import Causal
from training.models.dit import DiT
from training.network import Condition, VideoModel
from training.objectives.flow_matching import FlowMatching
from training.sampling.coding import to_pixels

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width.

BATCH = 32
WARMUP_STEPS = 100
DECAY_SHARE = 0.7
NULL_SHARE = 0.1
MAX_EMA_DECAY = 0.999
STEPS = 30
"""Steps of Euler's method of each sample."""
TIME_MEANS = {"channels": 0.0, "pixels": 0.7}
"""Means of the noise level's logit: what is large in coordinates of pixels is hidden by more noise."""
METRIC_IMAGES = 96


class Coordinates(NamedTuple):
    """A linear map of an autoencoder's latents, and the mean and standard deviation of the result."""

    map_KC: Tensor
    mean_K: Tensor
    std_K: Tensor

    @classmethod
    def of(cls, latents_BCTHW: Tensor, map_KC: Tensor, per_channel: bool) -> Coordinates:
        """Return coordinates in which these latents have unit variance, in each channel or over all channels."""
        mapped_BKTHW = mapped(map_KC, latents_BCTHW)
        axes = (0, 2, 3, 4)
        mean_K, std_K = mapped_BKTHW.mean(axes), mapped_BKTHW.std(axes)
        return cls(map_KC, mean_K, std_K if per_channel else std_K.square().mean().sqrt().expand_as(std_K))

    def forward(self, latents_BCTHW: Tensor) -> Tensor:
        mapped_BKTHW = mapped(self.map_KC, latents_BCTHW)
        return (mapped_BKTHW - self.mean_K[:, None, None, None]) / self.std_K[:, None, None, None]

    def inverse(self, values_BKTHW: Tensor) -> Tensor:
        scaled_BKTHW = values_BKTHW * self.std_K[:, None, None, None] + self.mean_K[:, None, None, None]
        return mapped(torch.linalg.inv(self.map_KC), scaled_BKTHW)


def mapped(map_KC: Tensor, latents_BCTHW: Tensor) -> Tensor:
    """Return latents whose channels are multiplied by a matrix."""
    return torch.einsum("kc,bcthw->bkthw", map_KC, latents_BCTHW)


class Captions:
    """Embeddings of captions; None is the null caption."""

    def __init__(self) -> None:
        self._encoder = Hashing().open()
        self._known: dict[str, Tensor] = {}

    def __call__(self, caption: str | None) -> Tensor:
        key = caption or ""
        if key not in self._known:
            self._known[key] = torch.from_numpy(self._encoder.encode([key])[0].tokens)
        return self._known[key]


def condition(texts: Sequence[Tensor], time_B: Tensor) -> Condition:
    """Return the condition of images with these texts and noise levels."""
    n, ones_B2 = len(texts), torch.ones(len(texts), 2)
    zeros, size_B2 = [torch.zeros(1)] * n, SIDE * ones_B2
    return Condition(texts, list(time_B[:, None]), zeros, zeros, torch.full((n,), FPS), size_B2, 0 * ones_B2, size_B2)


def train(
    model: VideoModel, values_BKTHW: Tensor, captions: Sequence[str], seconds: float, lr: float, objective: FlowMatching
) -> int:
    """Train a model for so many CPU seconds, and give it the averaged weights. Return the number of steps."""
    torch.manual_seed(0)
    rng, embed = np.random.default_rng(0), Captions()
    weights: list[Tensor] = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    averages = [weight.detach().clone() for weight in weights]
    start_s, step, share = time.process_time(), 0, 0.0
    while share < 1:
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / WARMUP_STEPS, (1 - share) / DECAY_SHARE, 1)
        rows = rng.integers(0, len(values_BKTHW), BATCH)
        clean = values_BKTHW[torch.from_numpy(rows)]
        noise = torch.randn_like(clean)
        time_B = torch.tensor([objective.time((n + rng.random()) / BATCH, 1) for n in range(BATCH)])
        time_B1111 = time_B[:, None, None, None, None]
        texts = [embed(None if rng.random() < NULL_SHARE else captions[row]) for row in rows]
        predicted = model(list(objective.corrupt(clean, noise, time_B1111)), condition(texts, time_B))
        target = objective.training_target(clean, noise, time_B1111)
        torch.autograd.backward((torch.stack(predicted) - target).square().mean())
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - min(MAX_EMA_DECAY, (1 + step) / (10 + step)))
        step, share = step + 1, (time.process_time() - start_s) / seconds
    with torch.no_grad():
        torch._foreach_copy_(weights, averages)
    return step


@torch.no_grad()
def sample(model: VideoModel, files: Sequence[StreamFile], shape: torch.Size, guidance: float) -> Tensor:
    """Return values `[B, K, 1, H, W]` for the captions of files, always from the same noise."""
    torch.manual_seed(1)
    embed = Captions()
    noisy = torch.randn(len(files), *shape)
    texts, nulls = [embed(file.plan.caption) for file in files], [embed(None)] * len(files)
    for step in range(STEPS):
        time_B = torch.full((len(files),), 1 - step / STEPS)
        told, untold = (torch.stack(model(list(noisy), condition(one, time_B))) for one in (texts, nulls))
        noisy -= (untold + guidance * (told - untold)) / STEPS
    return noisy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="drawn-world", help="of the autoencoder `causal`")
    parser.add_argument("--images", type=int, default=15000)
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5, 3.0])
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--patch", type=int, default=1)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--image", metavar="PATH.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = TrainedNetwork.from_bytes(Causal(weights=arguments.weights).weights_file().read_bytes(), "").network
    files, prompts = still_images("train", arguments.images), still_images("held_out", arguments.prompts)
    with torch.no_grad():
        latents_BCTHW = torch.cat([network.encode(images_BCTHW)[0] for images_BCTHW in drawn(files)])
    captions = [file.plan.caption for file in files]
    identity_CC = torch.eye(latents_BCTHW.shape[1])
    pixels_CC = pixel_coordinates(pixel_metric(network, drawn(files[:METRIC_IMAGES]))).float()
    patch, heads = (1, arguments.patch, arguments.patch), arguments.dim // 32
    result: dict[str, Any] = {name: getattr(arguments, name) for name in ("weights", "images", "seconds", "prompts")}
    rows: list[UInt8Array] = []
    for name, map_KC in (("channels", identity_CC), ("pixels", pixels_CC)):
        coordinates = Coordinates.of(latents_BCTHW, map_KC, per_channel=name == "channels")
        torch.manual_seed(0)
        model = DiT(depth=6, dim=arguments.dim, heads=heads, patch=patch).build(len(identity_CC), Hashing().dim)
        objective = FlowMatching(time_mean=TIME_MEANS[name])
        values = coordinates.forward(latents_BCTHW)
        result[name] = {"steps": train(model, values, captions, arguments.seconds, arguments.lr, objective)}
        for guidance in arguments.guidance:
            made = coordinates.inverse(sample(model.eval(), prompts, values.shape[1:], guidance))
            with torch.no_grad():
                images = list(to_pixels(network.decode(made))[:, 0].numpy())
            result[name][f"guidance {guidance:g}"] = judge(images, prompts)
            print(name, guidance, result[name][f"guidance {guidance:g}"], flush=True)
        rows.append(np.concatenate(images[:12], axis=1))
    if arguments.image:
        Image.fromarray(np.concatenate(rows)).resize((12 * 160, 2 * 160), Image.Resampling.NEAREST).save(
            arguments.image
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
