"""The watermark: unseen, found after what happens to files, and not found where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from benchmarks.watermark import EDITS as ALL_EDITS
from cluster.arrays import Pixels
from training.sampling import watermark_code
from training.sampling.watermark import CELLS, FLAT, MAX_STRENGTH, SLOTS, Watermark, cell_px, layout, strength
from training.sampling.watermark_detection import (
    FALSE_POSITIVES,
    Detection,
    _pilot_energy,
    _Search,
    detect,
)

PAYLOAD, FPS = 0x1234ABCD, 8


def drawn_clip(n_frames: int = 17, height: int = 96, width: int = 128, seed: int = 0) -> Pixels:
    """Return a clip `[T, H, W, 3]` of a disc that moves over a rough background with a slope."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    rough = cv2.GaussianBlur(rng.normal(0, 30, (height, width, 3)), (0, 0), 1.5)
    ground = np.stack([60 + x * 0.5, 90 + y * 0.5, 160 - x * 0.3], axis=-1) + rough
    frames = []
    for index in range(n_frames):
        inside = (x - width / 3 - 2 * index) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2
        frames.append(np.where(inside[..., None], (200, 60, 40), ground))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def marked(clip: Pixels, payload: int = PAYLOAD) -> Pixels:
    watermark = Watermark(payload)
    return np.stack([watermark.mark(frame, index, FPS) for index, frame in enumerate(clip)])


def found_in(frames: Pixels, fps: float = FPS, key: bytes | None = None) -> Detection:
    times: Iterator[tuple[float, Pixels]] = ((index / fps, frame) for index, frame in enumerate(frames))
    return detect(times) if key is None else detect(times, key)


def test_codes_correct_errors_and_tell_what_they_cannot() -> None:
    rng = np.random.default_rng(0)
    for payload in (0, PAYLOAD, 2**32 - 1):
        coded = watermark_code.encode(payload).astype(float)
        assert watermark_code.decode(coded) == (payload, True)
        assert watermark_code.decode(coded + rng.normal(0, 0.6, len(coded))) == (payload, True)
    wrong = [watermark_code.decode(rng.normal(size=watermark_code.CODED_BITS))[1] for _ in range(200)]
    assert sum(wrong) <= 1
    assert watermark_code._crc(int.from_bytes(b"1234", "big")) == 0x5349, "CRC-16/CCITT-FALSE"
    with pytest.raises(ValueError, match="more than 32 bits"):
        watermark_code.encode(2**32)


def test_keys_decide_the_layout() -> None:
    ours, other = layout(b"one"), layout(b"another")
    assert np.array_equal(ours.signs, layout(b"one").signs)
    assert abs(float(np.mean(ours.signs * other.signs))) < 0.05
    assert abs(float(np.mean(ours.signs))) < 0.05
    assert np.mean(ours.bits < 0) == 0.5
    counts = np.bincount(ours.bits[:, :12, :16][ours.bits[:, :12, :16] >= 0], minlength=watermark_code.CODED_BITS)
    assert counts.min() >= 4, "two seconds of 64x48 carry every bit more than once"


def test_changes_are_small_and_smallest_on_flat_areas() -> None:
    clip = drawn_clip()
    change = marked(clip).astype(float) - clip
    assert 10 * math.log10(255**2 / np.mean(change**2)) > 41
    assert np.abs(change).max() <= MAX_STRENGTH + 1
    flat = np.full((64, 96, 3), 120, np.uint8)
    assert np.abs(Watermark(PAYLOAD).mark(flat, 0, FPS).astype(int) - 120).max() <= 2
    edge = np.full((64, 96), 50, np.float32)
    edge[:, 48:] = 200
    assert strength(edge).max() <= FLAT + 1e-4, "an edge between flat areas hides nothing"
    black = Watermark(PAYLOAD).mark(np.zeros((64, 96, 3), np.uint8), 0, FPS)
    assert black.max() <= 2


def test_frames_are_marked_alone_and_alike() -> None:
    clip, watermark = drawn_clip(9), Watermark(PAYLOAD)
    whole = marked(clip)
    for index in (8, 0, 5):
        assert np.array_equal(watermark.mark(clip[index], index, FPS), whole[index])
    assert not np.array_equal(watermark.mark(clip[0], 2, FPS), whole[0]), "the mark changes four times a second"
    later = SLOTS * FPS // 4
    assert np.array_equal(watermark.mark(clip[0], later, FPS), whole[0]), "and returns"


EDITS = (
    *("none", "h264-18", "h264-28", "scale-0.5", "scale-2", "crop-0.8", "cut-0.4s", "6fps", "24fps"),
    *("bright+25", "gamma-1.25"),
)
"""Edits of the benchmark that a mark of this size survives whole."""


@pytest.mark.slow
def test_marks_survive_edits() -> None:
    clip = drawn_clip(height=192, width=256)
    mark = marked(clip)
    for name in EDITS:
        assert found_in(*ALL_EDITS[name](mark)).payload == PAYLOAD, name
    assert found_in(clip).log_p > math.log(FALSE_POSITIVES)
    assert not found_in(mark, key=b"another key that is secret").found


@pytest.mark.slow
@pytest.mark.parametrize("edit", ["none", "h264-18", "scale-2", "cut-0.4s"])
def test_small_clips_are_found(edit: str) -> None:
    assert found_in(*ALL_EDITS[edit](marked(drawn_clip(height=48, width=64)))).found


@pytest.mark.slow
def test_large_frames_are_reduced_and_images_suffice() -> None:
    image = cv2.resize(drawn_clip(1, 270, 480)[0], (1920, 1080), interpolation=cv2.INTER_CUBIC)
    mark = Watermark(PAYLOAD).mark(image, 0, FPS)
    assert cell_px(1080, 1920) == 8
    assert found_in(mark[None]).payload == PAYLOAD
    later = Watermark(PAYLOAD).mark(image, 9, FPS)
    assert found_in(later[None]).payload == PAYLOAD, "a frame of any time"
    assert not found_in(image[None]).found


def test_tiny_and_missing_frames_have_no_mark() -> None:
    assert not detect(iter([])).found
    assert not found_in(np.zeros((1, 2, 2, 3), np.uint8)).found
    assert not found_in(np.zeros((3, 48, 64, 3), np.uint8)).found


def test_energy_equals_a_plain_sum() -> None:
    slots = np.array([1, 2, 6])
    values = np.random.default_rng(0).normal(size=(3, 2 * CELLS, 2 * CELLS)).astype(np.float32)
    energy = _pilot_energy(slots, values)
    whole = np.zeros((SLOTS, 2 * CELLS, 2 * CELLS), np.float32)
    whole[slots] = values
    for offset in ((0, 0, 0), (1, 3, 2), (5, 62, 63), (2, 0, 7)):
        moved = np.roll(whole, [-step for step in offset], (0, 1, 2))[:, ::2, ::2]
        expected = np.square(moved[layout(b"any").bits < 0]).sum()
        assert energy[offset] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_bound_holds_for_random_keys() -> None:
    """Of one clip, the ratio at one place exceeds z for at most a share exp(-z^2 / 2) of all keys."""
    means = {index * 2: frame.astype(np.float32).mean(-1) for index, frame in enumerate(drawn_clip(9))}
    ratios = np.array([_Search(means, b"key %d" % number)._at(4, 0)[0].z for number in range(200)])
    for z in (1.0, 1.5, 2.0, 2.5):
        assert np.mean(ratios > z) <= math.exp(-(z**2) / 2)
    assert np.std(ratios) == pytest.approx(1, abs=0.15)
