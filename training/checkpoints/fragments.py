"""Which elements of which parameters a rank holds, and where, so that any sharding can be written and read as any other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of a flattened parameter in one rank's memory."""

    name: str
    """The parameter's, as the model calls it."""
    start: int
    """Its first element here."""
    length: int
    shard: int
    """Number of the tensor that holds them."""
    offset: int
    """Of the first of them in that tensor, flattened."""


@dataclass(frozen=True)
class Copy:
    """Consecutive elements of one sequence that go to consecutive places of a shard."""

    source: int
    """Number of the sequence, a file's say."""
    position: int
    """Of the first element in it."""
    length: int
    shard: int
    offset: int


def share(fragments: Sequence[Fragment], rank: int, world_size: int) -> list[Fragment]:
    """The part that one of several ranks writes of what all of them hold: consecutive elements, as many as the others' but for one."""
    total = sum(fragment.length for fragment in fragments)
    first, stop = total * rank // world_size, total * (rank + 1) // world_size
    own, begin = [], 0
    for fragment in fragments:
        skipped, length = max(0, first - begin), min(fragment.length, stop - begin)
        if skipped < length:
            own.append(
                replace(
                    fragment, start=fragment.start + skipped, length=length - skipped, offset=fragment.offset + skipped
                )
            )
        begin += fragment.length
    return own


def packed(fragments: Sequence[Fragment]) -> list[Copy]:
    """Fragments laid one after the other in sequence 0."""
    copies, position = [], 0
    for fragment in fragments:
        copies.append(Copy(0, position, fragment.length, fragment.shard, fragment.offset))
        position += fragment.length
    return joined(copies)


def assembled(wanted: Sequence[Fragment], written: Sequence[Sequence[Fragment]]) -> list[Copy]:
    """What to copy from where to have all `wanted` elements, if each sequence of `written` lies packed in its own file.

    Raises `ValueError` when elements were not written.
    """
    pieces: dict[str, list[Copy]] = {}
    for source, fragments in enumerate(written):
        position = 0
        for fragment in fragments:
            # Offset here is the place in the parameter.
            pieces.setdefault(fragment.name, []).append(Copy(source, position, fragment.length, 0, fragment.start))
            position += fragment.length
    for found in pieces.values():
        found.sort(key=lambda piece: piece.offset)
    copies = []
    for fragment in wanted:
        reached, stop = fragment.start, fragment.start + fragment.length
        for piece in pieces.get(fragment.name, ()):
            if piece.offset <= reached < min(stop, piece.offset + piece.length):
                length = min(stop, piece.offset + piece.length) - reached
                place = fragment.offset + reached - fragment.start
                copies.append(
                    Copy(piece.source, piece.position + reached - piece.offset, length, fragment.shard, place)
                )
                reached += length
        if reached < stop:
            raise ValueError(f"parameter {fragment.name} from element {reached} is not in it")
    return joined(copies)


def joined(copies: Iterable[Copy]) -> list[Copy]:
    """Fewer copies with the same effect: those that go on where the one before ends are made part of it."""
    result: list[Copy] = []
    for copy in copies:
        last = result[-1] if result else None
        if last and (last.source, last.position + last.length, last.shard, last.offset + last.length) == (
            copy.source,
            copy.position,
            copy.shard,
            copy.offset,
        ):
            result[-1] = replace(last, length=last.length + copy.length)
        else:
            result.append(copy)
    return result
