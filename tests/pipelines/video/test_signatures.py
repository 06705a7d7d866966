"""Comparisons of signatures against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.video.signatures import Signatures
from tests.support.frame_features import draw_shot, features_of


def test_comparisons_against_plain_numpy() -> None:
    signatures = Signatures(features_of(np.concatenate([draw_shot(1, 20, 0.5), draw_shot(2, 20)])))
    luma, chroma = signatures.luma_ND.astype(float), signatures.chroma_ND.astype(float)
    a, b = np.array([0, 5, 19, 39]), np.array([1, 25, 20, 0])
    apart = np.abs(luma[a] - luma[b]).mean(axis=1) + np.abs(chroma[a] - chroma[b]).mean(axis=1)
    assert signatures.distance(a, b) == pytest.approx(apart, rel=1e-5)
    neighbours = signatures.distance(np.arange(39), np.arange(1, 40))
    assert signatures.frame_differences[1:] == pytest.approx(neighbours)
    half = chroma.shape[1] // 2
    assert signatures.contrasts == pytest.approx(
        luma.std(axis=1) + chroma[:, :half].std(axis=1) + chroma[:, half:].std(axis=1), rel=1e-4
    )
    assert signatures.correlation(a, b) == pytest.approx(
        [np.corrcoef(luma[i], luma[j])[0, 1] for i, j in zip(a, b, strict=True)], abs=1e-4
    )


def test_histogram_distance_against_plain_numpy() -> None:
    signatures = Signatures(features_of(np.concatenate([draw_shot(1, 20, 0.5), draw_shot(2, 20)])))
    luma, chroma = signatures.luma_ND.astype(float), signatures.chroma_ND.astype(float)
    half = chroma.shape[1] // 2
    assert signatures.histogram_distance(np.array([0]), np.array([0]))[0] == 0
    expected = np.abs(np.sort(luma[0]) - np.sort(luma[30])).mean()
    for plane in (slice(half), slice(half, None)):
        expected += 0.5 * np.abs(np.sort(chroma[0, plane]) - np.sort(chroma[30, plane])).mean()
    assert signatures.histogram_distance(np.array([0]), np.array([30]))[0] == pytest.approx(expected, rel=1e-5)
