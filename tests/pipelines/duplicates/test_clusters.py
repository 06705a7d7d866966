"""Decisions on clusters of duplicates, and the pairs that are still worth comparing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.duplicates.clusters import Decision, Member, Pair, decide, pairs_to_compare
from pipelines.duplicates.exact import best_copies

MIN_SHARE = 0.5


def member(
    uid: str, pixels: int = 100, duration_s: float = 4.0, sharpness: float = 0.1, source: str | None = None
) -> Member:
    return Member(uid, source or f"{uid}.mp4", pixels, duration_s, sharpness)


def near(a: str, b: str, share_a: float = 1.0, share_b: float = 1.0) -> Pair:
    return Pair(a, b, "near", 2.0, share_a, share_b)


def by_uid(decisions: list[Decision]) -> dict[str, Decision]:
    return {decision.uid: decision for decision in decisions}


@st.composite
def clusters(draw: st.DrawFn) -> tuple[dict[str, Member], list[Pair]]:
    n = draw(st.integers(2, 9))
    clips = {
        f"c{i}": Member(
            f"c{i}",
            f"f{i % 5}",
            draw(st.integers(1, 3)),
            draw(st.sampled_from([1.0, 2.0])),
            draw(st.sampled_from([0.1, 0.2])),
        )
        for i in range(n)
    }
    every = [(f"c{i}", f"c{j}") for i in range(n) for j in range(i + 1, n)]
    shares = st.sampled_from([0.2, 0.5, 1.0])
    chosen = draw(st.lists(st.sampled_from(every), unique=True, max_size=14))
    return clips, [Pair(a, b, "near", draw(st.sampled_from([1.0, 2.0])), draw(shares), draw(shares)) for a, b in chosen]


@pytest.mark.slow
@settings(max_examples=150)
@given(clusters(), st.randoms(use_true_random=False))
def test_every_decision_against_its_definition(
    cluster: tuple[dict[str, Member], list[Pair]], order: random.Random
) -> None:
    clips, pairs = cluster
    decisions = by_uid(decide(clips, {}, pairs, MIN_SHARE))
    shares = {(p.a, p.b): p.share_a for p in pairs} | {(p.b, p.a): p.share_b for p in pairs}
    assert set(decisions) == set(clips)
    for uid, one in decisions.items():
        better = [
            other
            for (x, other), share in shares.items()
            if x == uid and share >= MIN_SHARE and clips[other].rank() < clips[uid].rank()
        ]
        kept = sorted(
            (other for other in better if decisions[other].duplicate_of is None), key=lambda other: clips[other].rank()
        )
        assert one.duplicate_of == (kept[0] if kept else None)
        if one.duplicate_of is not None:
            assert one.share == shares[uid, one.duplicate_of]
            assert decisions[one.duplicate_of].cluster == one.cluster
        assert decisions[one.cluster].duplicate_of is None
        assert all(
            clips[one.cluster].rank() <= clips[other].rank()
            for other in clips
            if decisions[other].cluster == one.cluster
        )
    assert all(decisions[pair.a].cluster == decisions[pair.b].cluster for pair in pairs)
    # The order of the pairs, and of the clips in a pair, does not matter.
    shuffled = [
        Pair(p.b, p.a, p.kind, p.distance, p.share_b, p.share_a) if order.random() < 0.5 else p
        for p in order.sample(pairs, len(pairs))
    ]
    uids = order.sample(list(clips), len(clips))
    assert decide({uid: clips[uid] for uid in uids}, {}, shuffled, MIN_SHARE) == list(decisions.values())


def test_best_has_most_pixels_then_length_then_sharpness() -> None:
    for better, worse in (
        (member("b", pixels=2), member("a", duration_s=9.0, pixels=1)),
        (member("b", duration_s=5.0), member("a", sharpness=0.9)),
        (member("b", sharpness=0.2), member("a")),
        (member("b", source="1.mp4"), member("a", source="2.mp4")),
        (member("a", source="1.mp4"), member("b", source="1.mp4")),
    ):
        clips = {"a": member("a"), **{m.uid: m for m in (better, worse)}}
        decisions = by_uid(decide(clips, {}, [near("a", "b")], MIN_SHARE))
        assert decisions[worse.uid].duplicate_of == better.uid


def test_long_clip_is_not_dropped_for_a_short_part_of_it() -> None:
    clips = {"long": member("long", duration_s=10.0), "short": member("short", pixels=400, duration_s=2.0)}
    pairs = [near("long", "short", 0.2, 1.0)]
    decisions = by_uid(decide(clips, {}, pairs, MIN_SHARE))
    assert decisions["long"].duplicate_of is decisions["short"].duplicate_of is None
    assert decisions["long"].cluster == decisions["short"].cluster == "short"
    decisions = by_uid(decide({**clips, "short": member("short", duration_s=2.0)}, {}, pairs, MIN_SHARE))
    assert (decisions["short"].duplicate_of, decisions["short"].share) == ("long", 1.0)


def test_chain_keeps_its_ends() -> None:
    """The middle clip is a duplicate of the best; the last one is not paired with that, and is kept."""
    clips = {uid: member(uid, pixels=pixels) for uid, pixels in (("a", 3), ("b", 2), ("c", 1))}
    decisions = by_uid(decide(clips, {}, [near("a", "b"), near("b", "c")], MIN_SHARE))
    assert [decisions[uid].duplicate_of for uid in "abc"] == [None, "a", None]
    assert {one.cluster for one in decisions.values()} == {"a"}


def test_exact_copies_share_the_pairs_of_the_best_copy() -> None:
    clips = {uid: member(uid, pixels=4 if uid == "z" else 1) for uid in "abcz"}
    copies = best_copies({"a": "x", "b": "x", "c": "x"}, clips)
    assert copies == {"b": "a", "c": "a"}
    alone = by_uid(decide({uid: clips[uid] for uid in "abc"}, copies, [], MIN_SHARE))
    assert [(alone[uid].duplicate_of, alone[uid].kind) for uid in "abc"] == [
        (None, None),
        ("a", "exact"),
        ("a", "exact"),
    ]
    # A pair of any copy counts for all of them.
    decisions = by_uid(decide(clips, copies, [near("c", "z")], MIN_SHARE))
    assert [(decisions[uid].duplicate_of, decisions[uid].kind) for uid in "abc"] == [("z", "near")] * 3
    assert {one.cluster for one in decisions.values()} == {"z"}


def test_links_join_clusters_and_drop_nothing() -> None:
    clips = {uid: member(uid, pixels=pixels) for uid, pixels in (("a", 3), ("b", 2), ("c", 1))}
    decisions = by_uid(decide(clips, {}, [near("b", "c")], MIN_SHARE, [("a", "b")]))
    assert {one.cluster for one in decisions.values()} == {"a"}
    assert [decisions[uid].duplicate_of for uid in "abc"] == [None, None, "b"]


def test_pairs_to_compare_are_of_one_cluster_and_two_files() -> None:
    clips = {uid: member(uid, pixels=9 - i, source="s" if uid in "de" else None) for i, uid in enumerate("abcde")}
    pairs = [near("a", "b"), near("b", "c"), near("b", "d", 0.1, 0.1), near("b", "e", 0.1, 0.1)]
    decisions = decide(clips, {}, pairs, MIN_SHARE)
    assert pairs_to_compare(decisions, clips, {("a", "b")}, 16) == [
        ("a", "c"),
        ("a", "d"),
        ("a", "e"),
        ("c", "d"),
        ("c", "e"),
    ]
    assert pairs_to_compare(decisions, clips, {("a", "c")}, 1) == [("a", "d"), ("a", "e")]
