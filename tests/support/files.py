"""Small files for tests of listings."""

from __future__ import annotations

from pathlib import Path


def write_files(folder: Path, **files: str) -> None:
    """Write text files; `__` in a name stands for the dot of its suffix."""
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
