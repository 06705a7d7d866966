"""Files of model weights: how settings name them, where packages keep them, and hashes of their content."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cluster import storage

HUB_PREFIX = "hf-hub:"
"""Prefix of a name on the Hugging Face hub: `hf-hub:owner/name`, or `hf-hub:owner/name/file` for one file."""

SUFFIXES = frozenset({".onnx", ".pt", ".pth", ".bin", ".safetensors"})
"""Suffixes that mark a name without a slash as a file."""


def is_path(value: str) -> bool:
    """Return whether a setting names a file or folder, rather than a repository on the hub or a tag."""
    return bool(value) and not value.startswith(HUB_PREFIX) and ("/" in value or Path(value).suffix in SUFFIXES)


def absolute(value: str) -> str:
    """Return a path as an absolute path, and any other value unchanged."""
    return storage.absolute(value) if is_path(value) else value


def absolute_or_none(value: str | None) -> str | None:
    """Return `absolute` of a setting that may be None."""
    return None if value is None else absolute(value)


def package_file(package: str, *parts: str) -> Path:
    """Return the path of a file inside an installed package, without importing the package.

    Raises `ValueError` if the installed version lacks the file.
    """
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.is_file():
        raise ValueError(f"the installed {package} has no file {'/'.join(parts)}; set model to the path of one")
    return path


def identity(path: str | Path) -> str:
    """Return a hash of the content of a file, or of all files directly in a folder.

    Raises `ValueError` if the path does not exist.
    """
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
    # Cached per size and modification time: plans need it repeatedly, and hashing a gigabyte takes about a second.
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:20]
