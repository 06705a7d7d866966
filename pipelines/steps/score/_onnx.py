"""Networks in ONNX files, run by onnxruntime on one core or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.engine.step import RunError

Floats = NDArray[np.float32]
Network = Callable[[Sequence[Floats]], Floats]
"""From inputs of one shape to the outputs, stacked."""

FATAL = 4
"""onnxruntime writes to stderr from this severity on; what fails is raised as well."""


def load_network(path: str | Path, gpus: float, at_once: int) -> Network:
    """A network of one input and one output, both float32, that takes at most `at_once` inputs.

    One thread: workers come one a core, and by default each would start as many threads as there are cores. Fewer inputs than
    `at_once` are padded, so that what is said of one never depends on how many there are. Raises `RunError` for a file that
    onnxruntime cannot read, and where it has no CUDA for the GPU asked for.
    """
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpus:
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RunError(
                f"gpus is {gpus:g}, but this onnxruntime has no CUDA: pip install onnxruntime-gpu in its place, or set gpus to 0"
            )
        # The default takes the kernels that are fastest in a trial, which may be others on another day.
        providers.insert(0, ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}))
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise RunError(f"{path}: onnxruntime cannot load it: {type(error).__name__}: {error}") from error
    name = session.get_inputs()[0].name

    def run(inputs: Sequence[Floats]) -> Floats:
        batch = np.stack([*inputs, *[inputs[-1]] * (at_once - len(inputs))])
        output: Floats = session.run(None, {name: batch})[0]
        return output[: len(inputs)]

    return run
