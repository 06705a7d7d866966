"""Everything that matters on a GPU, in one command of under 8 minutes on one H100 or H200.

    python -m benchmarks.gpu [--sections correctness compiled ...] [--minutes 7.5]

Needs torch 2.11 or newer and nothing that does not come with it. Each section runs in a process of its own and has a
share of the time; a case that fails, or that there is no time for, is reported and stops no other:

- `correctness`: predictions and gradients of a small model with each attention kernel, compared with fp32 on the CPU,
  for samples of one shape and of mixed shapes, eager and compiled;
- `compiled`, `eager`: MFU of training steps in bf16 (`benchmarks.train_step`) with images, about 16,000 tokens and
  75,600 tokens a step. The latter have a quarter of the blocks, which changes the time and hardly the MFU;
- `attention`: TFLOP/s of attention kernels, forward and backward, by the width of heads;
- `memory`: highest memory of a step, and what `training.memory` computes for it, with the checkpointing it chooses;
- `autoencoder`: frames per second of encoding and decoding with the convolutions of `causal`;
- `sampling`: seconds of a guided step, with both predictions in one pass and in turn.

Without a GPU it runs tiny cases in this process, which shows that it works and nothing about speed. Prints one line per
case, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.train_step import CHANNELS, PATCH, TEXT_DIM, WEIGHT_NOISE, Shape, cost, random_pack
from training.autoencoders._causal_convolutions import CHANNELS as LATENT_CHANNELS
from training.autoencoders._causal_convolutions import PRESETS as AUTOENCODERS
from training.autoencoders._causal_convolutions import Decoder, Encoder
from training.device import gpu_environment
from training.memory import Blocks, MicroBatchSize, choose_checkpointing, usable_bytes
from training.models._attention import attention_kernel
from training.models._dit_architecture import PRESETS, Architecture, Size
from training.models._dit_network import DiffusionTransformer, Execution
from training.network import Condition
from training.tracking.gpu_peaks import peak_tflops

Case = dict[str, Any]
"""Names and figures of one measurement, or an `error`."""

IMAGES: list[Shape] = [(1, 32, 32)] * 64
CLIP: list[Shape] = [(16, 64, 64)]
MIXED: list[Shape] = [(1, 64, 64), (1, 64, 64), (5, 36, 64), (9, 32, 32), (17, 32, 32), (1, 32, 32), (9, 44, 44)]
LONG: list[Shape] = [(21, 90, 160)]
SHAPES = {"64 images": IMAGES, "16k": CLIP, "16k mixed": MIXED, "76k": LONG}
"""Latent frames, rows and columns of the samples of a training step: 64 images of 256 tokens, one clip of 16,384, seven
samples of about 16,000, and one clip of 75,600."""
LONG_SHARE = 4
"""Factor by which the number of blocks is divided for 76k: one step of all blocks would take up to 8 s."""
TINY = Size(2, 64, 2)
TINY_SHAPES: dict[str, list[Shape]] = {"images": [(1, 8, 8)] * 4, "mixed": [(1, 8, 8), (3, 4, 8)]}


@dataclass(frozen=True)
class Options:
    """The machine of a run, and when it must end."""

    device: torch.device
    peak_tflops: float
    """Peak of the GPU in bf16; 0 if unknown."""
    deadline_s: float
    """Time of `time.monotonic` after which no case starts."""

    @property
    def gpu(self) -> bool:
        """Whether there is a GPU; otherwise cases are tiny."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return torch.bfloat16 if self.gpu else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_per_call(action: Callable[[], object], device: torch.device, budget_s: float = 1.0) -> float:
    """Return the median seconds of a call, of 2 to 20 within about `budget_s`."""
    action()
    taken: list[float] = []
    while len(taken) < 2 or (sum(taken) < budget_s and len(taken) < 20):
        synchronize(device)
        start_s = time.perf_counter()
        action()
        synchronize(device)
        taken.append(time.perf_counter() - start_s)
        if device.type == "cpu":
            break
    return statistics.median(taken)


def build(size: Size, execution: Execution, device: torch.device, dtype: torch.dtype) -> DiffusionTransformer:
    """Return a model with random weights; those of a small one are the same on every device up to rounding."""
    torch.manual_seed(0)
    # A CPU takes 10 s for the random weights of a large model.
    small = size.dim <= PRESETS["S"].dim
    with torch.device("cpu" if small else "meta"):
        model = DiffusionTransformer(Architecture(size, 4 * size.dim, PATCH, CHANNELS, TEXT_DIM), execution)
    if not small:
        model.to_empty(device=device)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = WEIGHT_NOISE * torch.randn_like(weight)
            weight.copy_((weight if small else float("norm" in name)) + noise)
    return model.to(device, dtype)


def mean_squares(predictions: Sequence[Tensor], latents: Sequence[Tensor]) -> Tensor:
    """Return a loss that all weights influence."""
    pairs = zip(predictions, latents, strict=True)
    return torch.stack([(prediction - latent).square().mean() for prediction, latent in pairs]).mean()


def correctness(options: Options) -> Iterator[Case]:
    """Yield the relative errors of predictions and gradients, which bf16 rounds to about 1%."""
    size = PRESETS["S"]._replace(depth=2) if options.gpu else TINY
    for pack, shapes in {"one shape": [(3, 16, 16)] * 3, "mixed": [(1, 16, 16), (5, 8, 16), (3, 16, 16)]}.items():
        expected: tuple[Tensor, Tensor] | None = None
        cases = [("sdpa", torch.float32, False)]
        if options.gpu:
            kernels = ("auto", "sdpa", "varlen", "flex")
            cases += [(kernel, torch.bfloat16, False) for kernel in kernels] + [("auto", torch.bfloat16, True)]
        for kernel, dtype, compiled in [("sdpa", None, False), *cases]:
            case: Case = {"pack": pack, "kernel": kernel, "dtype": str(dtype or "cpu fp32"), "compiled": compiled}
            device = options.device if dtype else torch.device("cpu")

            execution = Execution(kernel, 0, compiled)
            try:
                found = predictions_and_gradients(
                    build(size, execution, device, dtype or torch.float32), shapes, device
                )
            except Exception as error:
                yield case | {"error": failure(error)}
                continue
            if expected is None:
                expected = found
                continue
            errors = [float((got - want).norm() / want.norm()) for got, want in zip(found, expected, strict=True)]
            limit = 1e-3 if dtype is torch.float32 else 0.05
            yield case | {
                "prediction_error": round(errors[0], 6),
                "gradient_error": round(errors[1], 6),
                "correct": max(errors) < limit,
            }


def predictions_and_gradients(
    model: DiffusionTransformer, shapes: Sequence[Shape], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return all predictions for the same random pack and the gradients of their loss, each as one vector in fp32."""
    torch.manual_seed(1)
    latents, condition = random_pack(shapes, torch.device("cpu"))
    latents, condition = [one.to(device) for one in latents], moved(condition, device)
    predictions = model(latents, condition)
    mean_squares(predictions, latents).backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    joined, joined_gradients = (
        torch.cat([one.detach().float().cpu().flatten() for one in part]) for part in (predictions, gradients)
    )
    return joined, joined_gradients


def moved(condition: Condition, device: torch.device) -> Condition:
    """Return a condition on another device."""
    return Condition(
        *(
            [one.to(device) for one in value] if isinstance(value, list) else value.to(device)
            for value in vars(condition).values()
        )
    )


class Training:
    """Training steps of a model of this size on a pack: forward, backward, clipping, and AdamW on its weights."""

    def __init__(self, size: Size, shapes: Sequence[Shape], execution: Execution, options: Options) -> None:
        self.model = build(size, execution, options.device, options.dtype)
        self.latents, self.condition = random_pack(shapes, options.device)
        self.n_text = sum(len(text) for text in self.condition.texts)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self) -> None:
        """Take one step."""
        mean_squares(self.model(self.latents, self.condition), self.latents).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state_bytes(self) -> int:
        """Return the bytes of weights, gradients and moments, all of the weights' type."""
        return sum(4 * weight.numel() * weight.element_size() for weight in self.model.parameters())


def training_speed(options: Options, compiled: bool) -> Iterator[Case]:
    """Yield the MFU of training steps, the goals (XL and 1.3B) first."""
    shapes = SHAPES if options.gpu else TINY_SHAPES
    for preset in ("XL", "1.3B", "L", "B", "S") if options.gpu else ("tiny",):
        for name, pack in shapes.items():
            size = PRESETS.get(preset, TINY)
            if name == "76k":
                size = size._replace(depth=size.depth // LONG_SHARE)
            case: Case = {"preset": preset, "depth": size.depth, "shape": name}

            def measure(size: Size = size, pack: Sequence[Shape] = pack) -> Case:
                first_s = time.perf_counter()
                training = Training(size, pack, Execution("auto", 0, compiled), options)
                training.step()
                synchronize(options.device)
                first_s = time.perf_counter() - first_s
                step_s = seconds_per_call(training.step, options.device)
                tokens, operations = cost(preset, pack) if preset in PRESETS else (0, 0)
                operations = operations * size.depth // PRESETS[preset].depth if preset in PRESETS else 0
                return {
                    "tokens": tokens,
                    "first_step_s": round(first_s, 2),
                    "step_s": round(step_s, 4),
                    "tflops": round(operations / step_s / 1e12, 1),
                    "mfu": round(operations / step_s / 1e12 / options.peak_tflops, 4) if options.peak_tflops else None,
                }

            yield run_case(case, measure, options)


def attention(options: Options) -> Iterator[Case]:
    """Yield the TFLOP/s of self-attention 1,152 wide, forward and backward, by the width of heads."""
    packs = {"64 x 256": [256] * 64, "16k": [16_384], "16k mixed": [4096, 4096, 2880, 2304, 4352, 256], "76k": [75_600]}
    for name, lengths in packs.items() if options.gpu else {"tiny": [16, 8]}.items():
        for heads in (9, 18, 16) if options.gpu else (2,):
            width = 1152 // heads if options.gpu else 32
            for kernel in ("sdpa", "varlen", "flex") if options.gpu else ("sdpa",):

                def measure(
                    lengths: list[int] = lengths, heads: int = heads, width: int = width, kernel: str = kernel
                ) -> Case:
                    shape = (sum(lengths), heads, width)
                    q, k, v = (
                        torch.randn(shape, device=options.device, dtype=options.dtype, requires_grad=True)
                        for _ in range(3)
                    )
                    attend = attention_kernel(kernel, lengths, lengths, options.device, options.dtype)
                    direction = torch.randn_like(q)
                    step_s = seconds_per_call(lambda: attend(q, k, v).backward(direction), options.device, 0.2)
                    # The forward pass has 4 S^2 d operations, the backward pass two and a half times as many.
                    operations = 3.5 * 4 * heads * width * sum(length**2 for length in lengths)
                    return {"step_s": round(step_s, 5), "tflops": round(operations / step_s / 1e12, 1)}

                yield run_case({"pack": name, "head_width": width, "kernel": kernel}, measure, options)


def memory(options: Options) -> Iterator[Case]:
    """Yield the highest memory of steps, beside what the guard computes for them."""
    total = torch.cuda.get_device_properties(options.device).total_memory if options.gpu else 1 << 33
    cases = [("XL", CLIP, 0), ("XL", CLIP, 2), ("XL", MIXED, 0), ("XL", CLIP, 1), ("1.3B", LONG, None)]
    for preset, pack, every in cases if options.gpu else [("tiny", TINY_SHAPES["mixed"], 1)]:
        size, tokens = PRESETS.get(preset, TINY), sum(t * h * w // 4 for t, h, w in pack)

        def measure(
            pack: Sequence[Shape] = pack, every: int | None = every, size: Size = size, tokens: int = tokens
        ) -> Case:
            mixed = len({shape[1:] for shape in pack}) > 1
            batch = MicroBatchSize(tokens, 110 * len(pack), mixed)
            blocks, item = Blocks(size.depth, size.dim), options.dtype.itemsize
            weights = 16 * size.depth * size.dim**2 * 4 * item
            if every is None:
                every = choose_checkpointing(blocks, batch, item, usable_bytes(total) - weights)
            training = Training(size, pack, Execution("auto", 1 if every is None else every), options)
            computed = training.state_bytes() + blocks.activation_bytes(batch, 1 if every is None else every, item)
            training.step()
            synchronize(options.device)
            peak = torch.cuda.max_memory_allocated() if options.gpu else 0
            return {
                "checkpoint_every": every,
                "computed_gib": round(computed / 2**30, 2),
                "peak_gib": round(peak / 2**30, 2),
                "peak_over_computed": round(peak / computed, 3),
            }

        yield run_case({"preset": preset, "tokens": tokens}, measure, options)


def autoencoder(options: Options) -> Iterator[Case]:
    """Yield the frames per second of the autoencoder's convolutions on clips of 16 frames."""
    side, frames = (512, 16) if options.gpu else (16, 4)
    for preset in ("small", "large") if options.gpu else ("tiny",):
        torch.manual_seed(0)
        for name, network, shape in (
            ("encode", Encoder(AUTOENCODERS[preset]), (1, frames, side, side, 3)),
            ("decode", Decoder(AUTOENCODERS[preset]), (1, frames // 4, side // 8, side // 8, LATENT_CHANNELS)),
        ):

            def measure(network: nn.Module = network, shape: tuple[int, ...] = shape) -> Case:
                network.to(options.device)
                x = torch.randn(shape, device=options.device)

                @torch.no_grad()
                def run() -> None:
                    with torch.autocast(options.device.type, dtype=torch.bfloat16, enabled=options.gpu):
                        network(x)

                return {"frames_per_s": round(frames / seconds_per_call(run, options.device), 1)}

            yield run_case({"preset": preset, "side": side, "part": name}, measure, options)


def sampling(options: Options) -> Iterator[Case]:
    """Yield the seconds of a step with guidance, which predicts with and without the prompt; 76k has a quarter of the
    blocks, as in training.
    """
    presets = ("XL", "1.3B") if options.gpu else ("tiny",)
    for preset in presets:
        for name, pack in {"16k": CLIP, "76k": LONG}.items() if options.gpu else {"tiny": [(3, 8, 8)]}.items():

            def measure(preset: str = preset, pack: Sequence[Shape] = pack) -> Case:
                size = PRESETS.get(preset, TINY)
                if pack == LONG:
                    size = size._replace(depth=size.depth // LONG_SHARE)
                model = build(size, Execution(), options.device, options.dtype).eval()
                latents, both = random_pack([*pack, *pack], options.device)
                one = random_pack(pack, options.device)[1]

                @torch.no_grad()
                def together() -> None:
                    model(latents, both)

                @torch.no_grad()
                def in_turn() -> None:
                    for latent in latents:
                        model([latent], one)

                return {
                    "together_s": round(seconds_per_call(together, options.device, 0.5), 4),
                    "in_turn_s": round(seconds_per_call(in_turn, options.device, 0.5), 4),
                }

            yield run_case({"preset": preset, "shape": name}, measure, options)


SECTIONS: dict[str, tuple[float, Callable[[Options], Iterator[Case]]]] = {
    "correctness": (0.09, correctness),
    "compiled": (0.37, lambda options: training_speed(options, compiled=options.gpu)),
    "eager": (0.22, lambda options: training_speed(options, compiled=False)),
    "attention": (0.09, attention),
    "memory": (0.1, memory),
    "autoencoder": (0.05, autoencoder),
    "sampling": (0.08, sampling),
}
"""Sections with their shares of the time."""


def run_case(case: Case, measure: Callable[[], Case], options: Options) -> Case:
    """Return a case with its figures, or with the reason why it has none."""
    if time.monotonic() > options.deadline_s:
        return case | {"error": "no time left"}
    if options.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        return case | measure()
    except Exception as error:
        return case | {"error": failure(error)}


def failure(error: Exception) -> str:
    """Return an error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def run_here(section: str, seconds: float) -> list[Case]:
    """Run a section in this process, print each case when it is done, and return all."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = Options(device, peak_tflops(device, "bf16") or 0.0, time.monotonic() + seconds)
    cases = []
    try:
        for case in SECTIONS[section][1](options):
            cases.append(case)
            print(json.dumps({"section": section} | case), flush=True)
    except Exception as error:
        cases.append({"error": failure(error)})
    return cases


def run_apart(section: str, seconds: float) -> list[Case]:
    """Run a section in a process of its own, which ends at the latest after `seconds`, and return its cases."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", section, "--minutes", str(0.8 * seconds / 60)]
    environment = os.environ | gpu_environment()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        out, err = process.communicate(timeout=seconds)
        error = None if process.returncode == 0 else (err.strip().splitlines() or ["killed"])[-1][:300]
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        error = f"stopped after {seconds:.0f} s"
    print(out, end="", flush=True)
    cases = [json.loads(line) for line in out.splitlines() if line.startswith('{"section"')]
    return [*cases, {"section": section, "error": error}] if error else cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=7.5, help="longest time of the whole command")
    parser.add_argument("--one", choices=SECTIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    total_s = 60 * arguments.minutes
    if arguments.one:
        run_here(arguments.one, total_s)
        return
    gpu = torch.cuda.is_available()
    start_s, shares = time.monotonic(), sum(SECTIONS[name][0] for name in arguments.sections)
    found = {}
    for name in arguments.sections:
        # Time that a section leaves goes to those after it.
        left_s = total_s - (time.monotonic() - start_s)
        seconds = left_s * SECTIONS[name][0] / shares
        shares -= SECTIONS[name][0]
        found[name] = (run_apart if gpu else run_here)(name, seconds)
    result = {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start_s, 1),
        "errors": sum("error" in case for cases in found.values() for case in cases),
        "sections": found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
