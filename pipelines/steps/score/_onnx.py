"""Scores that run a network from an ONNX file, with onnxruntime on one core or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from cluster import weight_files
from cluster.arrays import Float32Array
from pipelines.engine.step import RunError
from pipelines.steps.score._base import ImageScore

Network = Callable[[Sequence[Float32Array]], Float32Array]
"""Function from inputs of one shape to the stacked outputs."""

LOG_SEVERITY = 4
"""Lowest severity that onnxruntime writes to stderr: fatal. An error it raises is reported all the same."""


class OnnxScore(ImageScore):
    """A score whose network is an ONNX file, by default one that a package brings along."""

    packaged_file: ClassVar[tuple[str, ...]]
    """Package that has the default weights, and the path of the file in it."""
    extra: ClassVar[str]
    """Extra of worldloom that installs the package and onnxruntime."""
    not_in_digest: ClassVar[frozenset[str]] = ImageScore.not_in_digest | {"model"}

    model: str = Field("", description="ONNX file of the network; by default the one in an installed package.")

    _absolute = field_validator("model")(weight_files.absolute)

    def packages(self) -> Mapping[str, str]:
        return {"onnxruntime": self.extra} | ({} if self.model else {self.packaged_file[0]: self.extra})

    def weights(self) -> str:
        return weight_files.identity(self._path())

    def load_network(self) -> Network:
        """Load the network. Raises `RunError` if it cannot be loaded."""
        return load_network(self._path(), self.gpus, self.batch_size)

    def _path(self) -> str:
        return self.model or str(weight_files.package_file(*self.packaged_file))


def load_network(path: str | Path, gpus: float, batch_size: int) -> Network:
    """Load a network of one input and one output, both float32, that takes at most `batch_size` inputs.

    It runs in one thread: there is one worker per core, and by default each would start a thread per core. Fewer
    inputs than `batch_size` are padded, so that an output never depends on how many inputs there are. Raises
    `RunError` for a file that onnxruntime cannot read, and if `gpus` is over 0 and onnxruntime has no CUDA.
    """
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = LOG_SEVERITY
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpus:
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RunError(
                f"gpus is {gpus:g}, but this onnxruntime has no CUDA: "
                "pip install onnxruntime-gpu in its place, or set gpus to 0"
            )
        # The default search times all kernels and takes the fastest, which may be another one on another day.
        providers.insert(0, ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}))
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise RunError(f"{path}: onnxruntime cannot load it: {type(error).__name__}: {error}") from error
    name = session.get_inputs()[0].name

    def run(inputs: Sequence[Float32Array]) -> Float32Array:
        batch = np.stack([*inputs, *[inputs[-1]] * (batch_size - len(inputs))])
        output: Float32Array = session.run(None, {name: batch})[0]
        return output[: len(inputs)]

    return run
