"""Speed of the transformer's training: tokens per second, share of the machine's arithmetic, and memory.

    python -m benchmarks.train_step [--sizes S B] [--shapes image pack] [--kernels sdpa] [--modes eager compiled]

Needs torch 2.11 or newer and nothing else. A training step is a forward pass, a backward pass, clipping and AdamW, on
weights in bf16 on a GPU and in fp32 on a CPU. There is a case for each combination of size, shape, kernel and mode.

The operations of a forward pass are counted by the model's formula, and training counts as three times as many, even
if activations are recomputed. So the share of the machine's peak is MFU. The peak of a GPU is `--peak-tflops`, or that
of its data sheet if known. `ratio_to_matmul` compares with what the machine reaches: the time of a step over that of
plain matrix products of the model's width with as many operations.

Each case runs in its own process, so running out of memory fails that case alone. Prints one line per case and one
line of JSON last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import peak_memory_mb
from training.models._dit_architecture import PRESETS, Architecture, flops
from training.models._dit_network import DiffusionTransformer, Execution
from training.network import Condition
from training.tracking.gpu_peaks import peak_tflops

CHANNELS, TEXT_DIM, PATCH = 16, 1024, (1, 2, 2)
TEXT_TOKENS = (77, 120, 30, 200)
"""Lengths of texts, taken in turn."""
SHAPES = {
    "image": [(1, 64, 64)] * 16,
    "short": [(9, 32, 32)] * 7,
    "long": [(33, 44, 44)],
    "pack": [(1, 64, 64), (1, 64, 64), (5, 36, 64), (9, 32, 32), (17, 32, 32), (1, 32, 32), (9, 44, 44)],
}
"""Latent frames, rows and columns of each sample, about 16,000 tokens in each pack.

They are images of 512 px, clips of 33 frames at 256 px, one clip of 129 frames at 352 px, and a mixture.
"""
CPU_SHAPES = {
    "image": [(1, 32, 32)] * 4,
    "short": [(5, 16, 16)] * 3,
    "long": [(17, 16, 16)],
    "pack": [(1, 32, 32), (1, 32, 16), (5, 16, 16), (4, 12, 12)],
}
"""As `SHAPES`, about 1,000 tokens in each pack."""
WEIGHT_NOISE = 0.02
"""Standard deviation of the noise that is added to the initial weights; without it half of the gradients are zero."""
MAX_MATMULS = 20
"""Largest number of matrix products that are timed; more would not change their mean time."""

Shape = tuple[int, int, int]


def architecture(size: str) -> Architecture:
    """Return the architecture of a preset."""
    return Architecture(PRESETS[size], 4 * PRESETS[size].dim, PATCH, CHANNELS, TEXT_DIM)


def build(options: argparse.Namespace, device: torch.device) -> DiffusionTransformer:
    """Return the model of a case."""
    torch.manual_seed(0)
    execution = Execution(options.kernel, options.checkpoint_every, options.compiled)
    with device:
        model = DiffusionTransformer(architecture(options.size), execution)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(WEIGHT_NOISE * torch.randn_like(parameter))
    return model.to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def random_pack(shapes: Sequence[Shape], device: torch.device) -> tuple[list[Tensor], Condition]:
    """Return random latents `[C, t, h, w]` of these shapes and their condition."""
    lengths = itertools.cycle(TEXT_TOKENS)
    frames = [shape[0] for shape in shapes]
    condition = Condition(
        texts=[torch.randn(next(lengths), TEXT_DIM, device=device) for _ in shapes],
        times=[torch.full((count,), 0.5, device=device) for count in frames],
        conditioning_masks=[torch.zeros(count, device=device) for count in frames],
        seconds=[torch.arange(count, device=device) / 6 for count in frames],
        fps_B=torch.full((len(shapes),), 24.0, device=device),
        size_B2=torch.full((len(shapes), 2), 256.0, device=device),
        crop_B2=torch.zeros(len(shapes), 2, device=device),
        source_B2=torch.full((len(shapes), 2), 1024.0, device=device),
    )
    return [torch.randn(CHANNELS, *shape, device=device) for shape in shapes], condition


def cost(size: str, shapes: Sequence[Shape]) -> tuple[int, int]:
    """Return the tokens and the operations of a training step."""
    tokens = [frames * height * width // (PATCH[1] * PATCH[2]) for frames, height, width in shapes]
    lengths = itertools.cycle(TEXT_TOKENS)
    sizes, hidden = PRESETS[size], architecture(size).hidden
    return sum(tokens), 3 * sum(flops(sizes, hidden, count, next(lengths)) for count in tokens)


def timed(action: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Return the seconds on the clock of each call."""
    taken = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start_s)
    return taken


class MatrixProducts:
    """Plain matrix products `[tokens, dim] x [dim, 4 dim]`, about as many operations as a training step has."""

    def __init__(self, dim: int, tokens: int, operations: int, device: torch.device, dtype: torch.dtype) -> None:
        self._left = torch.randn(tokens, dim, device=device, dtype=dtype)
        self._right = torch.randn(dim, 4 * dim, device=device, dtype=dtype)
        self._out = self._left @ self._right
        each = 8 * tokens * dim * dim
        self._calls = max(1, min(MAX_MATMULS, round(operations / each)))
        self._scale = operations / (self._calls * each)
        self._device = device

    def times(self, repeats: int) -> list[float]:
        """Return the seconds on the clock that `operations` take, once per repeat."""
        return [seconds * self._scale for seconds in timed(self._run, repeats, self._device)]

    def _run(self) -> None:
        for _ in range(self._calls):
            torch.matmul(self._left, self._right, out=self._out)


def mean_squares(predictions: Sequence[Tensor], latents: Sequence[Tensor]) -> Tensor:
    """Return a loss that all weights influence."""
    pairs = zip(predictions, latents, strict=True)
    return torch.stack([(prediction - latent).square().mean() for prediction, latent in pairs]).mean()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one case, measured in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shapes = (SHAPES if device.type == "cuda" else CPU_SHAPES)[options.shape]
    model = build(options, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    latents, condition = random_pack(shapes, device)

    def step() -> None:
        torch.autograd.backward(mean_squares(model(latents, condition), latents))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    tokens, operations = cost(options.size, shapes)
    found: dict[str, Any] = {
        "tokens": tokens,
        "tflop": round(operations / 1e12, 3),
        "first_two_steps_s": round(sum(timed(step, 2, device)), 2),
    }
    products = MatrixProducts(PRESETS[options.size].dim, tokens, operations, device, dtype)
    products.times(1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step_s = statistics.median(timed(step, options.repeats, device))
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        ratio = step_s / statistics.median(products.times(options.repeats))
    else:
        # In turn, so that other work on the machine slows both alike.
        pairs = [(timed(step, 1, device)[0], products.times(1)[0]) for _ in range(options.repeats)]
        step_s = statistics.median(pair[0] for pair in pairs)
        ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
        found["peak_gib"] = round(peak_memory_mb() / 1024, 2)
    achieved = operations / step_s / 1e12
    found |= {"step_s": round(step_s, 4), "tokens_per_s": round(tokens / step_s), "tflops": round(achieved, 3)}
    found["ratio_to_matmul"] = round(ratio, 3)
    if options.peak_tflops:
        found["mfu"] = round(achieved / options.peak_tflops, 4)
    return found


def run_case(case: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return a case with its figures, measured in a process of its own, or with the reason why it failed."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--case", json.dumps(case)]
    command += ["--repeats", str(options.repeats), "--peak-tflops", str(options.peak_tflops)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return case | found
    return case | {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:300]}


def parse_arguments(gpu: bool) -> argparse.Namespace:
    """Return the arguments of the command line; the defaults depend on whether there is a GPU."""
    modes = ["eager", "compiled"]
    peak = peak_tflops(torch.device("cuda"), "bf16") if gpu else None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=PRESETS, default=["S", "B", "L", "XL"] if gpu else ["nano", "S"])
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--kernels",
        nargs="*",
        choices=["auto", "sdpa", "varlen", "flex"],
        default=["sdpa", "varlen", "flex"] if gpu else ["sdpa"],
    )
    parser.add_argument("--modes", nargs="*", choices=modes, default=modes if gpu else modes[:1])
    parser.add_argument(
        "--checkpoint-every", type=int, default=0, help="recompute the activations of every n-th block; 0 for none"
    )
    parser.add_argument("--repeats", type=int, default=10 if gpu else 3)
    parser.add_argument(
        "--peak-tflops", type=float, default=peak or 0.0, help="peak of the machine; 0 if unknown, without MFU then"
    )
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    gpu = torch.cuda.is_available()
    options = parse_arguments(gpu)
    if options.case is not None:
        print(json.dumps(measure(argparse.Namespace(**{**vars(options), **options.case}))))
        return
    cases = []
    for size, shape, kernel, mode in itertools.product(options.sizes, options.shapes, options.kernels, options.modes):
        case = {"size": size, "shape": shape, "kernel": kernel, "compiled": mode == "compiled"}
        cases.append(run_case(case | {"checkpoint_every": options.checkpoint_every}, options))
        print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    best: dict[str, Any] = {}
    for case in cases:
        name, value = f"{case['size']} {case['shape']}", case.get("mfu") or case.get("tflops", 0.0)
        best[name] = max(best.get(name, 0.0), value)
    result = {
        "best_mfu" if options.peak_tflops else "best_tflops": best,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cases": cases,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
