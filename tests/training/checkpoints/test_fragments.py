"""Fragments: the elements of any sharding can be assembled from files of any other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.checkpoints.fragments import CopyRange, Fragment, merge_adjacent, pack, plan_copies, rank_share

SIZES = {"a": 7, "b": 1, "c": 12, "d": 5}


@st.composite
def shardings(draw: st.DrawFn) -> list[list[Fragment]]:
    """Draw a sharding: parameters in any sequence, cut at any elements, spread over ranks, with padding in between."""
    n_ranks = draw(st.integers(1, 4))
    ranks: list[list[Fragment]] = [[] for _ in range(n_ranks)]
    ends = [0] * n_ranks
    for name in draw(st.permutations(sorted(SIZES))):
        cuts = sorted(draw(st.sets(st.integers(1, SIZES[name] - 1), max_size=3))) if SIZES[name] > 1 else []
        for start, stop in zip([0, *cuts], [*cuts, SIZES[name]], strict=True):
            rank = draw(st.integers(0, n_ranks - 1))
            offset = ends[rank] + draw(st.integers(0, 2))
            ranks[rank].append(Fragment(name, start, stop - start, 0, offset))
            ends[rank] = offset + stop - start
    return ranks


@pytest.mark.slow
@given(written=shardings(), wanted=shardings())
def test_any_sharding_is_assembled_from_any_other(written: list[list[Fragment]], wanted: list[list[Fragment]]) -> None:
    whole = {name: torch.arange(size) + 100 * number for number, (name, size) in enumerate(SIZES.items(), 1)}
    files = []
    for fragments in written:
        memory = torch.zeros(64, dtype=torch.int64)
        for one in fragments:
            memory[one.offset : one.offset + one.length] = whole[one.name][one.start : one.start + one.length]
        files.append(torch.zeros(sum(one.length for one in fragments), dtype=torch.int64))
        for copy in pack(fragments):
            files[-1][copy.position : copy.position + copy.length] = memory[copy.offset : copy.offset + copy.length]
    for fragments in wanted:
        memory = torch.full((64,), -1)
        for copy in plan_copies(fragments, written):
            memory[copy.offset : copy.offset + copy.length] = files[copy.source][
                copy.position : copy.position + copy.length
            ]
        for one in fragments:
            assert memory[one.offset : one.offset + one.length].equal(
                whole[one.name][one.start : one.start + one.length]
            )
        assert int((memory >= 0).sum()) == sum(one.length for one in fragments)


@pytest.mark.slow
@given(world_size=st.integers(1, 40), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_rank_shares_are_even_and_cover_everything_once(world_size: int, sizes: list[int]) -> None:
    fragments = [Fragment(str(i), 0, size, i, 0) for i, size in enumerate(sizes)]
    shares = [rank_share(fragments, rank, world_size) for rank in range(world_size)]
    seen = [(one.name, one.start + i) for own in shares for one in own for i in range(one.length)]
    assert seen == [(str(i), j) for i, size in enumerate(sizes) for j in range(size)]
    counts = [sum(one.length for one in own) for own in shares]
    assert max(counts) - min(counts) <= 1
    assert all(one.start == one.offset for own in shares for one in own)


def test_adjacent_copies_are_merged() -> None:
    parts = [CopyRange(0, 0, 4, 0, 8), CopyRange(0, 4, 2, 0, 12), CopyRange(0, 6, 1, 1, 0), CopyRange(1, 7, 1, 1, 1)]
    assert merge_adjacent(parts) == [CopyRange(0, 0, 6, 0, 8), CopyRange(0, 6, 1, 1, 0), CopyRange(1, 7, 1, 1, 1)]


@pytest.mark.parametrize(("name", "length", "missing"), [("e", 1, "e from element 0"), ("a", 9, "a from element 7")])
def test_missing_elements_are_named(name: str, length: int, missing: str) -> None:
    with pytest.raises(ValueError, match=f"parameter {missing} is not in it"):
        plan_copies([Fragment(name, 0, length, 0, 0)], [[Fragment("a", 0, 7, 0, 0)]])
