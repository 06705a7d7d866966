"""Files of weights: where they are, and what is in them."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cluster import storage

HUB = "hf-hub:"
"""Prefix of what is on the Hugging Face hub: `hf-hub:owner/name`, or `hf-hub:owner/name/file` for one file."""

SUFFIXES = frozenset({".onnx", ".pt", ".pth", ".bin", ".safetensors"})


def is_path(value: str) -> bool:
    """Whether a setting names a file or folder rather than something on the hub or a tag."""
    return bool(value) and not value.startswith(HUB) and ("/" in value or Path(value).suffix in SUFFIXES)


def absolute(value: str) -> str:
    """A path as every process would write it; anything else as it is."""
    return storage.absolute(value) if is_path(value) else value


def packaged(package: str, *parts: str) -> Path:
    """A file inside an installed package, which is not imported for it. Raises `ValueError` where its version lacks the file."""
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.is_file():
        raise ValueError(f"the installed {package} has no file {'/'.join(parts)}; set model to the path of one")
    return path


def identity(path: str | Path) -> str:
    """Hash of what is in a file, or in all files of a folder. Raises `ValueError` where there is none."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return storage.digest(*(part for file in files for part in (file.name, identity(file))))
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, size_bytes: int, mtime_ns: int) -> str:
    """Worked out once for each state a file is in: plans ask for it again and again, and a gigabyte takes about a second."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:20]
