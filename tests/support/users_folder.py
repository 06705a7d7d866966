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


def start_in(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts `worldloom` in a folder, and its environment.

    The folder is also first on the module path, as Ray puts the working folder of a job.
    """
    # The last of the paths stands in for an installation.
    path = {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    return [sys.executable, "-c", COMMAND], os.environ | path


def worldloom_in(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `worldloom` in a folder, as `start_in` starts it."""
    command, own_environment = start_in(folder)
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=own_environment | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
