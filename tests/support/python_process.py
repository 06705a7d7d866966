"""A Python process of its own, for code that needs a Ray or an interpreter that no other test shares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def run_python(code: str, *arguments: str, folder: Path, timeout_s: float) -> None:
    """Run code in another process, in a folder and with the project's packages; it must end with exit status 0."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert ended.returncode == 0, ended.stderr
