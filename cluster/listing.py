"""Find files by patterns with `*`, `?`, `[ab]`, `{a,b}` and `**`, as shells and Python's glob do.

Only folders that a pattern can match are opened. A hidden file or folder, whose name begins with a dot, is found only
by a pattern that names it. Links are followed, a folder behind several links or a loop of links once.
"""

from __future__ import annotations

import fnmatch
import heapq
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import pyarrow.fs as pafs

from cluster import storage
from cluster.config import ConfigError
from cluster.storage import Entry
from cluster.telemetry import log
from cluster.unreadable import unreadable_errors

ANY_DEPTH = "**"
MAGIC = re.compile(r"[*?\[]")
INFOS_PER_REQUEST = 4096
"""Objects of a store that are looked up together: pyarrow sends their requests in parallel."""

Rest = tuple[str, ...]
"""Components of a pattern that are left below a folder."""
States = frozenset[Rest]
"""The rests of patterns that may match below a folder."""


def glob(pattern: str) -> list[Entry]:
    """Return the files that match a pattern, sorted by URI, a file behind several links once.

    A local name that is not UTF-8, a link without a target, a pipe, socket or device, and a folder that may not be read
    are left out, with one warning per reason that counts them. Raises `ConfigError` if a folder cannot be listed for
    another reason.
    """
    found: dict[str, Entry] = {}
    left_out = LeftOut()
    for root, states in _roots(pattern).items():
        for entry in _walk(root, states, left_out) if storage.is_local(root) else _remote(root, states):
            found.setdefault(entry.real, entry)
    left_out.warn(pattern)
    return sorted(found.values(), key=lambda entry: entry.uri)


def matches(pattern: str, uri: str) -> bool:
    """Return whether `glob(pattern)` would find a file with this URI."""
    uri = storage.absolute(uri)
    for root, states in _roots(pattern).items():
        if not states:
            if uri == root:
                return True
        elif uri.startswith(root.rstrip("/") + "/"):
            *folders, name = uri.removeprefix(root).lstrip("/").split("/")
            for folder in folders:
                states = _below(states, folder)
            if states and _files_of(states).match(name):
                return True
    return False


def files_beside(folder: str, suffixes: Sequence[str]) -> Iterator[Entry]:
    """Yield the files of a folder itself whose names end in one of `suffixes` (lower case), in any case."""
    endings = tuple(suffixes)
    if not storage.is_local(folder):
        yield from (entry for entry in _infos(folder, recursive=False) if entry.uri.lower().endswith(endings))
        return
    left_out = LeftOut()  # without a warning: `glob` has warned of the same folder
    for child in _children(folder, left_out):
        if child.name.lower().endswith(endings) and (entry := _entry(child, folder, left_out)):
            yield entry


def look_up(uris: Sequence[str]) -> list[Entry | None]:
    """Return the entry of each URI, and None for one that is no file. Raises `ValueError` for an unknown scheme."""
    found: dict[str, Entry] = {}
    remote: defaultdict[str, list[str]] = defaultdict(list)
    for uri in uris:
        if storage.is_local(uri):
            if os.path.isfile(uri):
                stat = os.stat(uri)
                found[uri] = Entry(uri, stat.st_size, str(stat.st_mtime_ns), os.path.realpath(uri))
        else:
            remote["/".join(uri.split("/", 3)[:3])].append(uri)
    for bucket, of_bucket in remote.items():
        filesystem, _ = storage.resolve(of_bucket[0])
        scheme = bucket.partition("://")[0]
        for start in range(0, len(of_bucket), INFOS_PER_REQUEST):
            paths = [uri.partition("://")[2] for uri in of_bucket[start : start + INFOS_PER_REQUEST]]
            with unreadable_errors(bucket):
                infos = filesystem.get_file_info(paths)
            for info in infos:
                if info.is_file:
                    uri = f"{scheme}://{info.path}"
                    found[uri] = Entry(uri, info.size, str(info.mtime_ns), uri)
    return [found.get(uri) for uri in uris]


@dataclass
class LeftOut:
    """Files and folders that a listing left out: their number and the first of them, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Count a path."""
        self.counts[reason] += 1
        # Printable: the bytes of a name that is not UTF-8 are escaped.
        name = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self.first[reason] = min(name, self.first.get(reason, name))

    def warn(self, pattern: str) -> None:
        """Log one warning for each reason."""
        for reason, count in sorted(self.counts.items()):
            more = f" and {count - 1} more" if count > 1 else ""
            log.warning(f"{pattern}: left out {self.first[reason]}{more}: {reason}")


NOT_UTF8 = "the name is not UTF-8; rename it to use it"
NO_PERMISSION = "it may not be read by this user"
BROKEN_LINK = "a link without a target"
NO_FILE = "it is a pipe, a socket or a device, and not a file"


def _roots(pattern: str) -> dict[str, States]:
    """Return the deepest folders that a pattern names, with the components below each; a plain path has none."""
    found: defaultdict[str, set[Rest]] = defaultdict(set)
    plain = storage.absolute(pattern)
    if storage.is_local(plain) and os.path.isfile(plain):
        return {plain: frozenset()}
    for each in _expand_braces(plain):
        parts = storage.absolute(each).split("/")
        first = next((i for i, part in enumerate(parts) if MAGIC.search(part)), len(parts))
        rest = tuple(parts[first:])
        rest = (*rest, "*") if rest[-1:] == (ANY_DEPTH,) else rest
        found["/".join(parts[:first]) or "/"] |= {rest} if rest else set()
    return {root: _closed(states) for root, states in found.items()}


def _expand_braces(pattern: str) -> list[str]:
    """Return a pattern without `{a,b}`: one for each combination of its alternatives. Braces may be nested."""
    for opening in re.finditer(r"\{", pattern):
        depth, commas = 0, [opening.start()]
        for end in range(opening.start(), len(pattern)):
            depth += (pattern[end] == "{") - (pattern[end] == "}")
            if depth == 1 and pattern[end] == ",":
                commas.append(end)
            if depth == 0:
                cuts = [*commas, end]
                choices = [pattern[a + 1 : b] for a, b in pairwise(cuts)]
                before, after = pattern[: opening.start()], pattern[end + 1 :]
                return [full for choice in choices for full in _expand_braces(before + choice + after)]
    return [pattern]


def _closed(states: set[Rest]) -> States:
    """Return states with those in which a leading `**` stands for no folder."""
    closed = set(states)
    for rest in states:
        while len(rest) > 1 and rest[0] == ANY_DEPTH:
            rest = rest[1:]
            closed.add(rest)
    return frozenset(closed)


@lru_cache(maxsize=65536)
def _below(states: States, folder: str) -> States:
    """Return the states below a folder of this name; none if no pattern matches it."""
    left: set[Rest] = set()
    for rest in states:
        if rest[0] == ANY_DEPTH:
            left |= {rest} if not folder.startswith(".") else set()
        elif len(rest) > 1 and re.match(_expression(rest[0]), folder):
            left.add(rest[1:])
    return _closed(left)


@lru_cache(maxsize=1024)
def _files_of(states: States) -> re.Pattern[str]:
    """Return the expression of the names of files that match inside a folder."""
    return re.compile("|".join(sorted(_expression(rest[0]) for rest in states if len(rest) == 1)) or "(?!)")


def _expression(component: str) -> str:
    """Return the regular expression of one component of a pattern; a name equal to the component always matches."""
    hidden = "" if component.startswith(".") else r"(?!\.)"
    return rf"(?:{hidden}{fnmatch.translate(component)}|{re.escape(component)}\Z)"


def _walk(root: str, states: States, left_out: LeftOut) -> Iterator[Entry]:
    """Yield the files that match below a local folder; links come after all that is reached without them."""
    if not states:
        yield from (entry for entry in look_up([root]) if entry is not None)
        return
    real_root = os.path.realpath(root)
    seen = {(real_root, states)}
    folders = [(root, real_root, states)]
    linked_folders: list[tuple[str, States]] = []
    linked_files: list[Entry] = []
    while folders or linked_folders:
        if folders:
            folder, real, states = folders.pop()
        else:
            folder, states = heapq.heappop(linked_folders)
            real = os.path.realpath(folder)
            if (real, states) in seen:
                continue
            seen.add((real, states))
        files = _files_of(states)
        for child in _children(folder, left_out):
            if _is_folder(child):
                path, below = f"{folder.rstrip('/')}/{child.name}", _below(states, child.name)
                if not below:
                    continue
                if not _is_utf8(child.name):
                    left_out.add(NOT_UTF8, path)
                elif child.is_symlink():
                    heapq.heappush(linked_folders, (path, below))
                elif (state := (f"{real.rstrip('/')}/{child.name}", below)) not in seen:
                    seen.add(state)
                    folders.append((path, *state))
            elif files.match(child.name) and (entry := _entry(child, folder, left_out, real)):
                if child.is_symlink():
                    linked_files.append(entry)
                else:
                    yield entry
    yield from sorted(linked_files, key=lambda entry: entry.uri)


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link to itself, or to what may not be read
        return False


def _children(folder: str, left_out: LeftOut) -> Iterator[os.DirEntry[str]]:
    """Yield what a local folder holds; nothing if it may not be read or is gone."""
    try:
        with os.scandir(folder) as children:
            yield from children
    except PermissionError:
        left_out.add(NO_PERMISSION, folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be listed: {error.strerror or error}") from error


def _entry(child: os.DirEntry[str], folder: str, left_out: LeftOut, real: str | None = None) -> Entry | None:
    """Return the entry of a file in a local folder, whose real path is `real`; None if it is no file or left out."""
    path = f"{folder.rstrip('/')}/{child.name}"
    if not _is_utf8(child.name):
        left_out.add(NOT_UTF8, path)
        return None
    try:
        if not child.is_file():
            left_out.add(NO_FILE if os.path.exists(path) else BROKEN_LINK, path)
            return None
        stat = child.stat()
    except FileNotFoundError:  # deleted meanwhile
        return None
    except OSError:
        left_out.add(NO_PERMISSION if not child.is_symlink() else BROKEN_LINK, path)
        return None
    real_path = os.path.realpath(path) if child.is_symlink() or real is None else f"{real.rstrip('/')}/{child.name}"
    return Entry(path, stat.st_size, str(stat.st_mtime_ns), path if real_path == path else real_path)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _remote(root: str, states: States) -> Iterator[Entry]:
    """Yield the objects of a store that match below a prefix."""
    if not states:
        yield from (entry for entry in look_up([root]) if entry is not None)
        return
    states_of = {"": states}

    def below(folder: str) -> States:
        if folder not in states_of:
            parent, _, name = folder.rpartition("/")
            states_of[folder] = _below(below(parent), name)
        return states_of[folder]

    for entry in _infos(root, recursive=any(len(rest) > 1 for rest in states)):
        folder, _, name = entry.uri.removeprefix(root).lstrip("/").rpartition("/")
        left = below(folder)
        if left and _files_of(left).match(name):
            yield entry


def _infos(root: str, recursive: bool) -> Iterator[Entry]:
    """Yield the objects below a prefix of a store."""
    filesystem, path = storage.resolve(root)
    scheme = root.partition("://")[0]
    with unreadable_errors(root):
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=recursive, allow_not_found=True))
    for info in infos:
        if info.is_file:
            uri = f"{scheme}://{info.path}"
            yield Entry(uri, info.size, str(info.mtime_ns), uri)
