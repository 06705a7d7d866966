"""A user's folder with packages that have the names of ours, and commands that run in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

COMMAND = "import sys; from worldloom_command import main; sys.argv[0] = 'worldloom'; main()"


def write_users_folder(folder: Path) -> Path:
    """Write packages that fail when they are imported, and return their folder."""
    for name in ("training", "pipelines", "cluster", "captioning"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('the {name} of the user was imported')\n")
    return folder


def worldloom_in(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `worldloom` in a folder that is also first on the module path, as Ray puts the working folder of a job."""
    # The last of the paths stands in for an installation.
    path = {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder,
        env=os.environ | path | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
