"""Peaks are found by a GPU's name in torch, and unknown GPUs have none."""

from __future__ import annotations

import pytest
import torch

from training.tracking.gpu_peaks import PEAKS, peak_of, peak_tflops


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_each_gpu_has_the_peak_of_its_variant(name: str, part: str) -> None:
    assert peak_of(name) is PEAKS[part]


@pytest.mark.parametrize(
    "name", ["Tesla T4", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA L400", ""]
)
def test_unknown_and_sliced_gpus_have_no_peak(name: str) -> None:
    assert peak_of(name) is None


def test_lower_precision_is_never_slower() -> None:
    assert all(peak.bf16 > peak.tf32 >= peak.fp32 > 0 for peak in PEAKS.values())


def test_the_peak_depends_on_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    gpu = torch.device("cuda", 0)
    assert [peak_tflops(gpu, name) for name in ("bf16", "tf32", "fp32")] == [312.0, 156.0, 19.5]
    assert peak_tflops(torch.device("cpu"), "bf16") is None
