"""Which of a sample's captions it is trained with: drawn anew each epoch, by weights of their kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.storage import digest


def choose(kinds: Sequence[str], weights: Mapping[str, float], seed: int, epoch: int, uid: str) -> int:
    """Which of a sample's captions, whose kinds these are with the main one first, is trained with in an epoch.

    A kind is drawn in proportion to its weight among those the sample has; kinds without a weight are not drawn. A sample that has
    none with a weight keeps its main caption. It follows from (seed, epoch, uid) alone, whatever rank or batch the sample is in.
    """
    shares = [weights.get(kind, 0.0) for kind in kinds]
    if not any(shares):
        return 0
    point = int(digest(str(seed), str(epoch), uid, "caption", size_bytes=8), 16) / 2**64 * sum(shares)
    for number, share in enumerate(shares):
        point -= share
        if point < 0:
            return number
    return max(number for number, share in enumerate(shares) if share)
