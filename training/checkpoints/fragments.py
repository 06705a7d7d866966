"""The parameter elements that each rank holds, and the copies that turn any sharding into any other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of a flattened parameter in one rank's memory."""

    name: str
    """Name of the parameter in the model."""
    start: int
    """Index in the parameter of the fragment's first element."""
    length: int
    shard: int
    """Index of the weight shard that holds the elements."""
    offset: int
    """Index in the flattened shard of the fragment's first element."""


@dataclass(frozen=True)
class CopyRange:
    """Consecutive elements of a sequence, a file for example, and the consecutive elements of a shard that they are
    copied to or from.
    """

    source: int
    """Number of the sequence."""
    position: int
    """Index of the first element in the sequence."""
    length: int
    shard: int
    """Index of the weight shard."""
    offset: int
    """Index of the first element in the flattened shard."""


def rank_share(fragments: Sequence[Fragment], rank: int, world_size: int) -> list[Fragment]:
    """Return the part that a rank writes of fragments that all ranks hold.

    The part is consecutive, and the parts' lengths differ by at most one element.
    """
    total = sum(fragment.length for fragment in fragments)
    first, stop = total * rank // world_size, total * (rank + 1) // world_size
    share, begin = [], 0
    for fragment in fragments:
        skipped, length = max(0, first - begin), min(fragment.length, stop - begin)
        if skipped < length:
            share.append(
                replace(
                    fragment, start=fragment.start + skipped, length=length - skipped, offset=fragment.offset + skipped
                )
            )
        begin += fragment.length
    return share


def pack(fragments: Sequence[Fragment]) -> list[CopyRange]:
    """Return the copies that put the fragments one after the other in sequence 0."""
    copies, position = [], 0
    for fragment in fragments:
        copies.append(CopyRange(0, position, fragment.length, fragment.shard, fragment.offset))
        position += fragment.length
    return merge_adjacent(copies)


def plan_copies(wanted: Sequence[Fragment], written: Sequence[Sequence[Fragment]]) -> list[CopyRange]:
    """Return the copies that fill all `wanted` fragments from files, each of which holds one sequence of `written`,
    packed.

    Raises `ValueError` if some elements were not written.
    """
    pieces: dict[str, list[CopyRange]] = {}
    for source, fragments in enumerate(written):
        position = 0
        for fragment in fragments:
            # These pieces are of a parameter, not a shard: `offset` is the index in the parameter.
            pieces.setdefault(fragment.name, []).append(CopyRange(source, position, fragment.length, 0, fragment.start))
            position += fragment.length
    for found in pieces.values():
        found.sort(key=lambda piece: piece.offset)
    copies = []
    for fragment in wanted:
        reached, stop = fragment.start, fragment.start + fragment.length
        for piece in pieces.get(fragment.name, ()):
            if piece.offset <= reached < min(stop, piece.offset + piece.length):
                length = min(stop, piece.offset + piece.length) - reached
                position = piece.position + reached - piece.offset
                offset = fragment.offset + reached - fragment.start
                copies.append(CopyRange(piece.source, position, length, fragment.shard, offset))
                reached += length
        if reached < stop:
            raise ValueError(f"parameter {fragment.name} from element {reached} is not in it")
    return merge_adjacent(copies)


def merge_adjacent(copies: Iterable[CopyRange]) -> list[CopyRange]:
    """Return fewer copies with the same effect: a copy that continues the one before, in sequence and shard, becomes
    part of it.
    """
    result: list[CopyRange] = []
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
