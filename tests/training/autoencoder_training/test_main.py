"""The command `python -m training.autoencoder_training`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.autoencoder_training.__main__ import main
from training.autoencoders.causal import Causal

pytestmark = pytest.mark.slow

ABSENT = ("ray", "deepspeed", "av", "cv2", "transformers", "diffusers")


def test_the_command_trains_and_prints_the_path_of_weights(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "s.yaml"
    settings.write_text("preset: tiny\nwarmup_steps: 1\ncrops: [{size: 16, frames: 5, batch: 2}]\n")
    assignments = ["--set", "steps=2", "--set", "precision=bf16"]
    main([str(data), str(tmp_path / "out"), "--settings", str(settings), *assignments, "--minutes", "5"])
    path, report = capsys.readouterr().out.splitlines()
    assert Causal(weights=path).open().channels == 16
    assert json.loads(report)["steps"] == 2


def test_the_command_needs_only_torch_and_small_packages(data: Path, tmp_path: Path) -> None:
    """A machine with PyTorch and small packages can train, without Ray, DeepSpeed and PyAV."""
    code = (
        f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
        "from training.autoencoder_training.__main__ import main\n"
        f"main([{str(data)!r}, {str(tmp_path)!r}, '--set', 'preset=tiny', '--set', 'steps=1', "
        "'--set', 'warmup_steps=0', '--set', 'crops=[{size: 16, frames: 5, batch: 1}]'])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120, env=environment
    )
