"""Errors on the command line: a sentence with an exit code, or how to report an error that is not expected."""

from __future__ import annotations

import importlib.metadata
import linecache
import platform
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.config import ConfigError
from cluster.storage import DamagedFileError
from training.data.footer import DamagedError
from training.stopping import NonFiniteLossError

FAILED = 1
"""Exit code of a command whose work failed, as for a damaged file or a full disk."""
BAD_INPUT = 2
"""Exit code for input that is refused: a recipe, an option, a file that is named."""
UNEXPECTED = 70
"""Exit code of an error that nobody foresaw (EX_SOFTWARE of sysexits.h); the traceback is printed."""
STOPPED = 130
"""Exit code after Ctrl-C, as shells give it, and after SIGTERM."""

SHARDS = "/tables/latents-"
"""Part of the path of every latent shard."""
MAKE_SHARD_AGAIN = (
    "to make a shard again, remove it if it is there and run `worldloom curate`; "
    "clips in other shards are not encoded again"
)
PACKAGES = ("cluster", "captioning", "training", "pipelines")


@dataclass(frozen=True)
class Explanation:
    """A sentence about an error, and the exit code that it ends with."""

    text: str
    exit_code: int


def explain(error: Exception) -> Explanation | None:
    """Return what to say about an error, or None for one that needs its traceback."""
    cause = _cause_in_a_worker(error)
    text = str(cause).strip() or type(cause).__name__
    if isinstance(cause, ConfigError):
        return Explanation(text, BAD_INPUT)
    if isinstance(cause, DamagedFileError):
        again = "remove it, and the same command makes again what it held if a run wrote it"
        return Explanation(f"{text}; {again}", FAILED)
    if isinstance(cause, DamagedError) and SHARDS in text:
        return Explanation(f"{text}; {MAKE_SHARD_AGAIN}", FAILED)
    if isinstance(cause, DamagedError | NonFiniteLossError):
        return Explanation(text, FAILED)
    if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
        first_line = text.partition("\n")[0]
        advice = "in training, lower batch.tokens_per_step or raise zero_stage; in curation, lower workers per machine"
        return Explanation(f"out of memory: {first_line}; {advice}", FAILED)
    if isinstance(cause, OSError):
        # A missing folder, missing rights, a full disk, an object store that cannot be reached.
        return Explanation(text if _is_our_class(cause) else f"{type(cause).__name__}: {text}", FAILED)
    if isinstance(cause, RuntimeError) and (_is_our_class(cause) or _is_raised(cause)):
        return Explanation(text, FAILED)
    if isinstance(cause, ValueError) and (_is_our_class(cause) or _is_raised(cause, PACKAGES)):
        return Explanation(text, BAD_INPUT)
    return None


def _cause_in_a_worker(error: Exception) -> Exception:
    """Return the error that Ray carried from a worker, which is in an attribute of Ray's own; others unchanged."""
    cause = getattr(error, "cause", None) if _package_of(type(error).__module__) == "ray" else None
    return _cause_in_a_worker(cause) if isinstance(cause, Exception) else error


def _package_of(module: str) -> str:
    return module.partition(".")[0]


def _is_our_class(error: Exception) -> bool:
    return _package_of(type(error).__module__) in PACKAGES


def _is_raised(error: Exception, packages: Sequence[str] = ()) -> bool:
    """Return whether a `raise` statement, of one of these packages if any are given, made an error.

    Its message is then written for people. An error that a builtin or a C function raised shows a bug of the caller.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    frame, line = frames[-1]
    package = _package_of(frame.f_globals.get("__name__", ""))
    statement = linecache.getline(frame.f_code.co_filename, line, frame.f_globals)
    return statement.lstrip().startswith("raise") and (not packages or package in packages)


def how_to_report(arguments: Sequence[str]) -> str:
    """Return what to do about an error that nobody foresaw, with the facts that a report needs."""
    versions = f"worldloom {importlib.metadata.version('worldloom')}, Python {platform.python_version()}"
    return (
        "This error is not expected. Please report it to the issue tracker of worldloom, with the traceback above and "
        f"these lines:\n  {versions}, {platform.platform()}\n  worldloom {shlex.join(arguments)}"
    )


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise `ConfigError` for an argument whose bytes are not text: Python keeps them as lone surrogates."""
    for position, argument in enumerate(arguments, 1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise ConfigError(f"argument {position} is not UTF-8 text: {shown}; write it in UTF-8") from None


def escape_what_terminals_cannot_show() -> None:
    """Let output that is not UTF-8 show characters that it lacks as escapes, since an error would end the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # tests and notebooks replace the streams
            stream.reconfigure(errors="backslashreplace")
