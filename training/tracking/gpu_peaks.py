"""Peak TFLOP/s of GPUs, by their data sheets. This module imports torch alone."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import torch


class Peak(NamedTuple):
    """Peak TFLOP/s of dense matrix products with sums in fp32, by the precision of the factors."""

    bf16: float
    tf32: float
    fp32: float


PEAKS = {
    "GB200": Peak(2500.0, 1250.0, 80.0),
    "B200": Peak(2250.0, 1100.0, 75.0),
    "GH200": Peak(989.5, 494.7, 67.0),
    "H200": Peak(989.5, 494.7, 67.0),
    "H200 NVL": Peak(835.5, 417.5, 60.0),
    "H100": Peak(989.5, 494.7, 67.0),
    "H100 NVL": Peak(835.5, 417.5, 60.0),
    "H100 PCIe": Peak(756.5, 378.0, 51.0),
    "H800": Peak(989.5, 494.7, 67.0),
    "H20": Peak(148.0, 74.0, 44.0),
    "A100": Peak(312.0, 156.0, 19.5),
    "A800": Peak(312.0, 156.0, 19.5),
    "A10G": Peak(70.0, 35.0, 35.0),
    "A10": Peak(125.0, 62.5, 31.2),
    "L40S": Peak(362.0, 183.0, 91.6),
    "L40": Peak(181.0, 90.5, 90.5),
    "L4": Peak(121.0, 60.0, 30.3),
    "RTX 6000 Ada": Peak(364.2, 182.1, 91.1),
    "RTX A6000": Peak(154.8, 77.4, 38.7),
    "RTX 5090": Peak(209.5, 104.8, 104.8),
    "RTX 4090": Peak(165.2, 82.6, 82.6),
    "RTX 3090": Peak(71.0, 35.6, 35.6),
    "MI300X": Peak(1307.4, 653.7, 163.4),
}
"""Peaks by a part of the name that `torch.cuda.get_device_name` returns; the longest part that matches applies.

Figures are those of the vendors' data sheets, or of NVIDIA's architecture papers for GeForce cards. They are dense,
half of the figures printed "with sparsity". They hold at boost clocks, which a GPU under full load may not keep. H100,
H200 and A100 without a suffix are the SXM ones; PCIe cards of the A100 have the same figures.
"""


def peak_of(name: str) -> Peak | None:
    """Return the peak of the GPU with this name in torch, or None if it is unknown.

    Slices of a GPU (MIG) and GPUs of laptops, which are other chips under the same name, are unknown.
    """
    if re.search(r"\b(MIG|Laptop)\b", name):
        return None
    known = [part for part in PEAKS if re.search(rf"\b{part}\b", name)]
    return PEAKS[max(known, key=len)] if known else None


def peak_tflops(device: torch.device, precision: Literal["fp32", "tf32", "bf16"]) -> float | None:
    """Return the peak TFLOP/s of a device in a run of this precision, or None if it is unknown, as for CPUs."""
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else getattr(peak, precision)
