"""The cases of `benchmarks.gpu`: for each section, measurements by name. Needs nothing but torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.train_step import CHANNELS, PATCH, TEXT_DIM, WEIGHT_NOISE, Shape, cost, mean_squares, random_pack
from training.autoencoders._causal_convolutions import CHANNELS as LATENT_CHANNELS
from training.autoencoders._causal_convolutions import PRESETS as AUTOENCODERS
from training.autoencoders._causal_convolutions import Decoder, Encoder
from training.memory import Blocks, MicroBatchSize, choose_checkpointing, usable_bytes
from training.models._attention import attention_kernel
from training.models._dit_architecture import PRESETS, Architecture, Size
from training.models._dit_network import DiffusionTransformer, Execution

Figures = dict[str, Any]
"""Names of a case, or its figures."""
Case = tuple[Figures, Callable[[], Figures]]
"""Names of a case, and the function that measures it."""

IMAGES: list[Shape] = [(1, 32, 32)] * 64
CLIP: list[Shape] = [(16, 64, 64)]
MIXED: list[Shape] = [(1, 64, 64), (1, 64, 64), (5, 36, 64), (9, 32, 32), (17, 32, 32), (1, 32, 32), (9, 44, 44)]
LONG: list[Shape] = [(21, 90, 160)]
SHAPES = {"64 images": IMAGES, "16k": CLIP, "16k mixed": MIXED, "76k": LONG}
"""Latent frames, rows and columns of the samples of a training step: 64 images of 256 tokens, one clip of 16,384, seven
samples of about 16,000, and one clip of 75,600."""
LONG_SHARE = 4
"""Factor by which the number of blocks is divided for 76k: one step of all blocks would take up to 8 s."""
ATTENTION_WIDTH = 1152
"""Width of the model in measurements of attention alone: that of XL."""
ATTENTION_PACKS = {
    "64 x 256": [256] * 64,
    "16k": [16_384],
    "16k mixed": [4096, 4096, 2880, 2304, 2752],
    "76k": [75_600],
}
"""Tokens of the samples in measurements of attention alone."""
MAX_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest relative error of predictions and gradients that passes for rounding."""

TINY = Size(2, 64, 2)
TINY_SHAPES: dict[str, list[Shape]] = {"images": [(1, 8, 8)] * 4, "mixed": [(1, 8, 8), (3, 4, 8)]}


@dataclass(frozen=True)
class Machine:
    """The device to measure. Without a GPU cases are tiny, in fp32."""

    device: torch.device
    peak_tflops: float
    """Peak of the GPU in bf16; 0 if unknown."""

    @property
    def gpu(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return torch.bfloat16 if self.gpu else torch.float32

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.gpu:
            torch.cuda.synchronize()

    def seconds_per_call(self, action: Callable[[], object], budget_s: float = 1.0) -> float:
        """Return the median seconds of a call, after one to warm up: of 2 to 20 calls within about `budget_s`, or of 2
        without a GPU.
        """
        action()
        taken: list[float] = []
        while len(taken) < 2 or (self.gpu and sum(taken) < budget_s and len(taken) < 20):
            self.synchronize()
            start_s = time.perf_counter()
            action()
            self.synchronize()
            taken.append(time.perf_counter() - start_s)
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


def size_of(preset: str, shape: str = "") -> Size:
    """Return the size of a preset, with fewer blocks for the longest clip."""
    size = PRESETS.get(preset, TINY)
    return size._replace(depth=size.depth // LONG_SHARE) if shape == "76k" else size


def correctness(machine: Machine) -> Iterator[Case]:
    """Yield cases of small models, whose predictions and gradients are compared with fp32 on the CPU."""
    size = PRESETS["S"]._replace(depth=2) if machine.gpu else TINY
    executions = [("sdpa", torch.float32, False)]
    if machine.gpu:
        executions += [(kernel, torch.bfloat16, False) for kernel in ("auto", "sdpa", "varlen", "flex")]
        executions.append(("auto", torch.bfloat16, True))
    packs = {"one shape": [(3, 16, 16)] * 3, "mixed": [(1, 16, 16), (5, 8, 16), (3, 16, 16)]}
    for pack, shapes in packs.items():
        for kernel, dtype, compiled in executions:
            case = {"pack": pack, "kernel": kernel, "dtype": str(dtype), "compiled": compiled}
            yield case, partial(compare, size, shapes, Execution(kernel, 0, compiled), machine.device, dtype)


def compare(
    size: Size, shapes: Sequence[Shape], execution: Execution, device: torch.device, dtype: torch.dtype
) -> Figures:
    """Return the relative errors of predictions and gradients against fp32 on the CPU."""
    cpu = torch.device("cpu")
    expected = predictions_and_gradients(build(size, Execution("sdpa"), cpu, torch.float32), shapes, cpu)
    found = predictions_and_gradients(build(size, execution, device, dtype), shapes, device)
    prediction, gradient = (float((got - want).norm() / want.norm()) for got, want in zip(found, expected, strict=True))
    return {
        "prediction_error": round(prediction, 6),
        "gradient_error": round(gradient, 6),
        "correct": max(prediction, gradient) < MAX_ERROR[dtype],
    }


def predictions_and_gradients(
    model: DiffusionTransformer, shapes: Sequence[Shape], device: torch.device
) -> list[Tensor]:
    """Return all predictions for the same random pack and the gradients of their loss, each as one vector in fp32."""
    torch.manual_seed(1)
    latents, condition = random_pack(shapes, torch.device("cpu"))
    latents, condition = [one.to(device) for one in latents], condition.to(device)
    predictions = model(latents, condition)
    torch.autograd.backward(mean_squares(predictions, latents))
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [torch.cat([one.detach().float().cpu().flatten() for one in part]) for part in (predictions, gradients)]


class Training:
    """Training steps of a model of this size on a pack: forward, backward, clipping, and AdamW on its weights."""

    def __init__(self, size: Size, shapes: Sequence[Shape], execution: Execution, machine: Machine) -> None:
        self.model = build(size, execution, machine.device, machine.dtype)
        self._latents, self._condition = random_pack(shapes, machine.device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    @property
    def state_bytes(self) -> int:
        """Bytes of weights, gradients and moments, all of the weights' type."""
        return sum(4 * weight.numel() * weight.element_size() for weight in self.model.parameters())

    @property
    def text_tokens(self) -> int:
        """Text tokens of the pack."""
        return sum(len(text) for text in self._condition.texts)

    def step(self) -> None:
        """Take one step."""
        torch.autograd.backward(mean_squares(self.model(self._latents, self._condition), self._latents))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def training_speed(machine: Machine, compiled: bool) -> Iterator[Case]:
    """Yield cases of training steps, those with a goal (XL and 1.3B) first."""
    for preset in ("XL", "1.3B", "L", "B", "S") if machine.gpu else ("tiny",):
        for shape, pack in (SHAPES if machine.gpu else TINY_SHAPES).items():
            case = {"preset": preset, "depth": size_of(preset, shape).depth, "shape": shape}
            yield case, partial(measure_training, preset, shape, pack, Execution("auto", 0, compiled), machine)


def measure_training(preset: str, shape: str, pack: Sequence[Shape], execution: Execution, machine: Machine) -> Figures:
    """Return the time of a step, and MFU where the peak is known."""
    start_s, size = time.perf_counter(), size_of(preset, shape)
    training = Training(size, pack, execution, machine)
    training.step()
    machine.synchronize()
    first_s = time.perf_counter() - start_s
    step_s = machine.seconds_per_call(training.step)
    figures = {"first_step_s": round(first_s, 2), "step_s": round(step_s, 4)}
    if preset not in PRESETS:
        return figures
    tokens, operations = cost(preset, pack)
    tflops = operations * size.depth / PRESETS[preset].depth / step_s / 1e12
    figures |= {"tokens": tokens, "tflops": round(tflops, 1)}
    return figures | ({"mfu": round(tflops / machine.peak_tflops, 4)} if machine.peak_tflops else {})


def attention(machine: Machine) -> Iterator[Case]:
    """Yield cases of self-attention alone, by the width of heads."""
    packs = ATTENTION_PACKS if machine.gpu else {"tiny": [16, 8]}
    for pack, lengths in packs.items():
        for head_width in (128, 64, 72) if machine.gpu else (32,):
            for kernel in ("sdpa", "varlen", "flex") if machine.gpu else ("sdpa",):
                case = {"pack": pack, "head_width": head_width, "kernel": kernel}
                yield case, partial(measure_attention, lengths, head_width, kernel, machine)


def measure_attention(lengths: Sequence[int], head_width: int, kernel: str, machine: Machine) -> Figures:
    """Return the TFLOP/s of attention, forward and backward."""
    heads = ATTENTION_WIDTH // head_width
    shape = (sum(lengths), heads, head_width)
    q, k, v = (torch.randn(shape, device=machine.device, dtype=machine.dtype, requires_grad=True) for _ in range(3))
    attend = attention_kernel(kernel, lengths, lengths, machine.device, machine.dtype, head_width)
    direction = torch.randn_like(q)
    step_s = machine.seconds_per_call(lambda: torch.autograd.backward(attend(q, k, v), direction), budget_s=0.2)
    # The forward pass has 4 S^2 d operations, the backward pass two and a half times as many.
    operations = 3.5 * 4 * ATTENTION_WIDTH * sum(length**2 for length in lengths)
    return {"step_s": round(step_s, 5), "tflops": round(operations / step_s / 1e12, 1)}


def memory(machine: Machine) -> Iterator[Case]:
    """Yield cases of whole models, whose memory is compared with the formula; None lets it choose checkpointing."""
    cases = [("XL", "16k", 0), ("XL", "16k", 2), ("XL", "16k mixed", 0), ("XL", "16k", 1), ("1.3B", "76k", None)]
    for preset, shape, every in cases if machine.gpu else [("tiny", "mixed", 1)]:
        pack = (SHAPES if machine.gpu else TINY_SHAPES)[shape]
        case = {"preset": preset, "shape": shape, "checkpointing": "auto" if every is None else every}
        yield case, partial(measure_memory, preset, pack, every, machine)


def measure_memory(preset: str, pack: Sequence[Shape], every: int | None, machine: Machine) -> Figures:
    """Return the highest memory of a step, and what `training.memory` computes for it."""
    size = PRESETS.get(preset, TINY)
    blocks, item_bytes = Blocks(size.depth, size.dim), machine.dtype.itemsize
    training = Training(size, pack, Execution("auto", every or 0), machine)
    tokens = sum(frames * height * width // (PATCH[1] * PATCH[2]) for frames, height, width in pack)
    batch = MicroBatchSize(tokens, training.text_tokens, mixed=len({shape[1:] for shape in pack}) > 1)
    if every is None:
        device_bytes = torch.cuda.get_device_properties(machine.device).total_memory
        budget = usable_bytes(device_bytes) - training.state_bytes
        every = choose_checkpointing(blocks, batch, item_bytes, budget)
        if every is None:
            raise ValueError("the step does not fit with all blocks recomputed")
        training.model.execution = Execution("auto", every)
    computed = training.state_bytes + blocks.activation_bytes(batch, every, item_bytes)
    training.step()
    machine.synchronize()
    figures: Figures = {"tokens": tokens, "checkpoint_every": every, "computed_gib": round(computed / 2**30, 2)}
    if machine.gpu:
        peak = torch.cuda.max_memory_allocated()
        figures |= {"peak_gib": round(peak / 2**30, 2), "peak_over_computed": round(peak / computed, 3)}
    return figures


def autoencoder(machine: Machine) -> Iterator[Case]:
    """Yield cases of the convolutions of the autoencoder `causal`, on 16 frames of 512 x 512."""
    frames, side = (16, 512) if machine.gpu else (4, 16)
    for preset in ("small", "large") if machine.gpu else ("tiny",):
        architecture = AUTOENCODERS[preset]
        pixels, latents = (1, frames, side, side, 3), (1, frames // 4, side // 8, side // 8, LATENT_CHANNELS)
        for part, network, shape in (("encode", Encoder, pixels), ("decode", Decoder, latents)):
            yield (
                {"preset": preset, "part": part},
                partial(measure_convolutions, partial(network, architecture), shape, frames, machine),
            )


def measure_convolutions(
    build_network: Callable[[], nn.Module], shape: Sequence[int], frames: int, machine: Machine
) -> Figures:
    """Return frames per second."""
    with machine.device:
        network, x = build_network(), torch.randn(*shape)

    @torch.no_grad()
    def run() -> None:
        with torch.autocast(machine.device.type, dtype=torch.bfloat16, enabled=machine.gpu):
            network(x)

    return {"frames_per_s": round(frames / machine.seconds_per_call(run), 1)}


def sampling(machine: Machine) -> Iterator[Case]:
    """Yield cases of a solver's step with guidance, which predicts with and without the prompt."""
    for preset in ("XL", "1.3B") if machine.gpu else ("tiny",):
        for shape in ("16k", "76k") if machine.gpu else ("images",):
            pack = (SHAPES if machine.gpu else TINY_SHAPES)[shape][:1]
            case = {"preset": preset, "depth": size_of(preset, shape).depth, "shape": shape}
            yield case, partial(measure_sampling, size_of(preset, shape), pack, machine)


def measure_sampling(size: Size, pack: list[Shape], machine: Machine) -> Figures:
    """Return the seconds of a step with both predictions in one forward pass, and in turn."""
    model = build(size, Execution(), machine.device, machine.dtype).eval()
    latents, both = random_pack(pack * 2, machine.device)
    one = random_pack(pack, machine.device)[1]

    @torch.no_grad()
    def in_turn() -> None:
        for latent in latents:
            model([latent], one)

    with torch.no_grad():
        together_s = machine.seconds_per_call(lambda: model(latents, both), budget_s=0.5)
    return {
        "together_s": round(together_s, 4),
        "in_turn_s": round(machine.seconds_per_call(in_turn, budget_s=0.5), 4),
    }


SECTIONS: dict[str, tuple[float, Callable[[Machine], Iterator[Case]]]] = {
    "correctness": (0.09, correctness),
    "compiled": (0.37, lambda machine: training_speed(machine, compiled=machine.gpu)),
    "eager": (0.22, lambda machine: training_speed(machine, compiled=False)),
    "attention": (0.09, attention),
    "memory": (0.1, memory),
    "autoencoder": (0.05, autoencoder),
    "sampling": (0.08, sampling),
}
"""Sections with their shares of the time."""
