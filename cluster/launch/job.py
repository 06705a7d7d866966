"""A recipe as text, and the command that runs it: all that is launched. Every target renders one of these."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

MAX_NAME = 47
"""Most characters in the name of a KubeRay RayJob; other targets allow more."""


@dataclass(frozen=True)
class LaunchJob:
    """One job on a cluster."""

    name: str
    """Name of the recipe."""
    command: tuple[str, ...]
    """Words of the command, such as `worldloom run`; the path of the recipe follows them."""
    recipe: str
    """The recipe as YAML, with `ray.address: auto`."""

    time: str
    """When it was launched, as 20261130-064500: part of names that may exist only once."""

    @property
    def label(self) -> str:
        """The name as a DNS label that begins with a letter: a-z, 0-9 and `-`, at most `MAX_NAME` characters."""
        return self._label(MAX_NAME)

    @property
    def unique_label(self) -> str:
        """The label with the time at its end, at most `MAX_NAME` characters."""
        return f"{self._label(MAX_NAME - len(self.time) - 1)}-{self.time}"

    def _label(self, length: int) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"worldloom-{words}"[:length].rstrip("-")


def send(command: Sequence[str], text: str) -> str:
    """Give a text to a program on its standard input and return what it prints.

    Raises `RuntimeError` with its message if it fails, or is not installed.
    """
    try:
        ended = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(
            f"{command[0]} is not installed here; print the file with --dry-run, and give it to {command[0]} elsewhere"
        ) from None
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr.strip() or f'exit code {ended.returncode}'}")
    return ended.stdout.strip()
