"""The benchmark of a GPU, and that of training which it includes: on a CPU tiny cases run, with torch alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.gpu_cases import SECTIONS

WITHOUT_OTHER_PACKAGES = """
import runpy, sys
missing = ("ray", "deepspeed", "av", "pydantic", "pyarrow", "safetensors", "yaml", "numpy", "PIL", "cv2")
sys.modules.update(dict.fromkeys(missing))
sys.argv = ["benchmarks.gpu"]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.mark.slow
def test_tiny_cases_need_torch_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_OTHER_PACKAGES],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["sections"].keys() == SECTIONS.keys()
    for name, cases in result["sections"].items():
        assert cases, name
        assert not any("error" in case for case in cases), cases
    assert all(case["correct"] for case in result["sections"]["correctness"])
