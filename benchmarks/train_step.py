"""How fast the transformer trains: tokens a second, share of the machine's arithmetic, and memory, by size, shape, kernel and compilation.

Needs torch 2.11 or newer and nothing else. A step is forward, backward, clipping and AdamW on weights in bf16 on a GPU, in fp32 on a CPU.
Forward operations are counted by the model's formula and training takes three times as many, whatever is computed again: so the share is
MFU. A GPU's peak is `--peak-tflops`, or that of its data sheet where it is known; and beside it, on a CPU alone, stands the speed of plain
matrix products that this machine reaches: as many operations as a step takes, in products of the model's own width (`ratio_to_matmul`).

Every case runs in a process of its own, so that one that runs out of memory costs no other.
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

from training.models._dit_network import DiffusionTransformer
from training.models._dit_size import PRESETS, flops
from training.network import Condition
from training.tracking.gpu_peaks import peak_tflops

CHANNELS, TEXT_DIM, TEXT_TOKENS, PATCH = 16, 1024, (77, 120, 30, 200), (1, 2, 2)
"""Text lengths are taken in turn."""
SHAPES = {
    "image": [(1, 64, 64)] * 16,
    "short": [(9, 32, 32)] * 7,
    "long": [(33, 44, 44)],
    "pack": [(1, 64, 64), (1, 64, 64), (5, 36, 64), (9, 32, 32), (17, 32, 32), (1, 32, 32), (9, 44, 44)],
}
"""Latent frames, rows and columns of each sample, all of about 16,000 tokens: 512 px images, 256 px clips of 33 frames, a 352 px clip of
129 frames, and a mixture."""
CPU_SHAPES = {
    "image": [(1, 32, 32)] * 4,
    "short": [(5, 16, 16)] * 3,
    "long": [(17, 16, 16)],
    "pack": [(1, 32, 32), (1, 32, 16), (5, 16, 16), (4, 12, 12)],
}
"""About 1,000 tokens."""


def build(size: str, kernel: str, compiled: bool, checkpoint_every: int, device: torch.device) -> DiffusionTransformer:
    dim = PRESETS[size].dim
    torch.manual_seed(0)
    with device:
        model = DiffusionTransformer(
            PRESETS[size],
            4 * dim,
            PATCH,
            CHANNELS,
            TEXT_DIM,
            kernel=kernel,
            checkpoint_every=checkpoint_every,
            compiled=compiled,
        )
    with torch.no_grad():
        # Away from zero initialisation, where half of the gradients are zeros.
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def pack(shapes: Sequence[tuple[int, int, int]], device: torch.device) -> tuple[list[Tensor], Condition]:
    frames = [shape[0] for shape in shapes]
    condition = Condition(
        texts=[
            torch.randn(length, TEXT_DIM, device=device)
            for length, _ in zip(itertools.cycle(TEXT_TOKENS), shapes, strict=False)
        ],
        times=[torch.full((count,), 0.5, device=device) for count in frames],
        conditioning_masks=[torch.zeros(count, device=device) for count in frames],
        seconds=[torch.arange(count, device=device) / 6 for count in frames],
        fps_B=torch.full((len(shapes),), 24.0, device=device),
        size_B2=torch.full((len(shapes), 2), 256.0, device=device),
        crop_B2=torch.zeros(len(shapes), 2, device=device),
        source_B2=torch.full((len(shapes), 2), 1024.0, device=device),
    )
    return [torch.randn(CHANNELS, *shape, device=device) for shape in shapes], condition


def cost(size: str, shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Tokens, and operations of a training step."""
    tokens = [frames * height * width // (PATCH[1] * PATCH[2]) for frames, height, width in shapes]
    lengths = itertools.cycle(TEXT_TOKENS)
    return sum(tokens), 3 * sum(flops(PRESETS[size], 4 * PRESETS[size].dim, count, next(lengths)) for count in tokens)


def timed(action: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each call."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return taken


def matmul_s(dim: int, operations: int, tokens: int, repeats: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that plain products `[tokens, dim] x [dim, 4 dim]` of that many operations in all take."""
    left, right = (
        torch.randn(tokens, dim, device=device, dtype=dtype),
        torch.randn(dim, 4 * dim, device=device, dtype=dtype),
    )
    each = 8 * tokens * dim * dim
    calls = max(1, min(20, round(operations / each)))
    out = left @ right

    def run() -> None:
        for _ in range(calls):
            torch.matmul(left, right, out=out)

    timed(run, 1, device)
    return statistics.median(timed(run, repeats, device)) * operations / (calls * each)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One case, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shapes = (SHAPES if device.type == "cuda" else CPU_SHAPES)[options.shape]
    model = build(options.size, options.kernel, options.compiled, options.checkpoint_every, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    latents, condition = pack(shapes, device)

    def step() -> None:
        predictions = model(latents, condition)
        torch.stack(
            [(prediction - latent).square().mean() for prediction, latent in zip(predictions, latents, strict=True)]
        ).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    warm_s = sum(timed(step, 2, device))
    tokens, operations = cost(options.size, shapes)
    found: dict[str, Any] = {
        "tokens": tokens,
        "tflop": round(operations / 1e12, 3),
        "first_two_steps_s": round(warm_s, 2),
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step_s = statistics.median(timed(step, options.repeats, device))
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        plain_s = matmul_s(PRESETS[options.size].dim, operations, tokens, options.repeats, device, dtype)
    else:
        # In turn, because others on the machine slow both alike.
        pairs = [
            (timed(step, 1, device)[0], matmul_s(PRESETS[options.size].dim, operations, tokens, 1, device, dtype))
            for _ in range(options.repeats)
        ]
        step_s = statistics.median(pair[0] for pair in pairs)
        plain_s = step_s / statistics.median(pair[0] / pair[1] for pair in pairs)
        import resource  # not there on Windows

        found["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    achieved = operations / step_s / 1e12
    found |= {"step_s": round(step_s, 4), "tokens_per_s": round(tokens / step_s), "tflops": round(achieved, 3)}
    found["ratio_to_matmul"] = round(step_s / plain_s, 3)
    if options.peak_tflops:
        found["mfu"] = round(achieved / options.peak_tflops, 4)
    return found


def run(case: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One case, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.train_step",
        "--case",
        json.dumps(case),
        "--repeats",
        str(options.repeats),
    ]
    done = subprocess.run(
        [*command, "--peak-tflops", str(options.peak_tflops)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return case | json.loads(done.stdout.splitlines()[-1])
    return case | {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:300]}


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=PRESETS, default=["S", "B", "L", "XL"] if gpu else ["nano", "S"])
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--kernels",
        nargs="*",
        choices=["auto", "sdpa", "varlen", "flex"],
        default=["sdpa", "varlen", "flex"] if gpu else ["sdpa"],
    )
    parser.add_argument(
        "--modes", nargs="*", choices=["eager", "compiled"], default=["eager", "compiled"] if gpu else ["eager"]
    )
    parser.add_argument(
        "--checkpoint-every", type=int, default=0, help="compute every n-th block's activations again; 0 for none"
    )
    parser.add_argument("--repeats", type=int, default=10 if gpu else 3)
    parser.add_argument(
        "--peak-tflops", type=float, default=(peak_tflops(torch.device("cuda"), "bf16") if gpu else None) or 0.0
    )
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(argparse.Namespace(**{**vars(options), **options.case}))))
        return
    cases = []
    for size, shape, kernel, mode in itertools.product(options.sizes, options.shapes, options.kernels, options.modes):
        case = {
            "size": size,
            "shape": shape,
            "kernel": kernel,
            "compiled": mode == "compiled",
            "checkpoint_every": options.checkpoint_every,
        }
        cases.append(run(case, options))
        print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    best: dict[str, Any] = {}
    for case in cases:
        name, value = f"{case['size']} {case['shape']}", case.get("mfu") or case.get("tflops", 0.0)
        best[name] = max(best.get(name, 0.0), value)
    device = torch.cuda.get_device_name() if gpu else "cpu"
    what = "best_mfu" if options.peak_tflops else "best_tflops"
    print(
        json.dumps(
            {
                what: best,
                "device": device,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "cases": cases,
            }
        )
    )


if __name__ == "__main__":
    main()
