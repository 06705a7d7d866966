"""The networks between Gemma and the transformer of LTX-2 (`LTX2TextConnectors` of diffusers).

A projection makes a vector for each token of all hidden states of Gemma; a small transformer for video and one for
sound follow.
"""

from __future__ import annotations

from typing import Any

from captioning.engine import EngineError
from captioning.pretrained import place_arguments
from cluster.telemetry import silenced


def load_connectors(path: str, revision: str, dtype_name: str) -> Any:
    """Load the networks of a folder or of the hub on the CPU.

    Raises `EngineError` if they cannot be loaded, or if weights are missing.
    """
    import torch
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from diffusers.utils import logging

    fix = "set it to the folder connectors of a pipeline of LTX-2, or download its files again"
    try:
        with silenced(logging, logging.CRITICAL), torch.random.fork_rng(devices=[]):
            network, report = LTX2TextConnectors.from_pretrained(
                **place_arguments(path, revision), torch_dtype=getattr(torch, dtype_name), output_loading_info=True
            )
    except Exception as error:  # errors of diffusers have many classes
        message = " ".join(str(error).split())
        raise EngineError(
            f"connectors {path} cannot be loaded by diffusers: {type(error).__name__}: {message}; {fix}"
        ) from error
    if missing := sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])}):
        # Diffusers would initialise them at random.
        raise EngineError(f"connectors {path}: {len(missing)} weights are missing, {missing[0]} first; {fix}")
    return network.eval().requires_grad_(False)
