"""Watermarks of published networks, which write a word of bits into each frame and read it back.

A network reads a word in every frame, marked or not, and tells no probability. So the word holds bits that are known,
the pilot, beside the payload: `word = signs * (1, ..., 1, payload)`, with signs that the key decides.

**False positives.** Signs are drawn independently of all footage. So of footage without the mark, whatever word a
network reads in it, each of the n bits of the pilot has the right sign with probability 1/2, independently of the
others: the probability of at least k right ones is `sum(C(n, i) for i >= k) / 2^n`.
"""

from __future__ import annotations

import abc
import hashlib
import math
from collections.abc import Iterable
from functools import cache
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Pixels
from training.sampling import watermark_code
from training.sampling.watermark_detection import MAX_S, NOTHING, Detection
from training.sampling.watermark_method import FrameMarker, WatermarkMethod

READ_EVERY_S = 1.0
"""Seconds between frames that are read: a network takes up to some seconds for each."""
MIN_PILOT = 24
"""Smallest pilot in bits: of 17 all must be right for the stated rate of false positives, of 24 one may be wrong."""

Bits = NDArray[np.int8]
"""Bits as -1 and 1."""
Soft = NDArray[np.float64]
"""Soft bits, above 0 for a 1."""


class WordNetwork(Protocol):
    """A network that writes and reads words."""

    def embed(self, frame_HWC: Pixels, word: Bits) -> Pixels:
        """Return a frame, uint8 `[H, W, 3]`, with a word."""

    def read(self, frame_HWC: Pixels) -> Soft | None:
        """Return the word of a frame, None if the network tells that there is none."""


class LearnedWatermark(WatermarkMethod):
    """The base of the settings of a published network."""

    word_bits: ClassVar[int]
    """Number of bits of a word."""

    @abc.abstractmethod
    def open(self) -> WordNetwork:
        """Return the network. Raises `ValueError` if it, or its weights, cannot be read."""

    def marker(self, payload: int, key: bytes) -> FrameMarker:
        return _Marker(_open(self), word_of(payload, self.word_bits, key))

    def detect(self, frames: Iterable[tuple[float, Pixels]], key: bytes) -> Detection:
        return judge(self.read_word(frames), key)

    def read_word(self, frames: Iterable[tuple[float, Pixels]]) -> Soft:
        """Return the sum of the words of frames, each of which has a time in seconds; 0 if no frame has a word."""
        network, total, due_s = _open(self), np.zeros(self.word_bits), -math.inf
        for time_s, frame in frames:
            if time_s >= MAX_S:
                break
            if time_s < due_s:
                continue
            due_s = time_s + READ_EVERY_S - 1e-3
            soft = network.read(frame)
            if soft is not None:
                total += soft / max(float(np.abs(soft).mean()), 1e-12)
        return total


@cache
def _open(method: LearnedWatermark) -> WordNetwork:
    return method.open()


class _Marker:
    def __init__(self, network: WordNetwork, word: Bits) -> None:
        self._network, self._word = network, word

    def mark(self, frame_HWC: Pixels, index: int, fps: float) -> Pixels:
        return self._network.embed(frame_HWC, self._word)


def payload_bits(word_bits: int) -> int:
    """Return how many bits of a word carry the payload: in a code if there is room for it, plain, or not at all."""
    carried = (watermark_code.CODED_BITS, watermark_code.PAYLOAD_BITS)
    return next((count for count in carried if word_bits - count >= MIN_PILOT), 0)


def word_of(payload: int, word_bits: int, key: bytes) -> Bits:
    """Return the word of a payload: first the pilot, then the payload."""
    n_payload = payload_bits(word_bits)
    if n_payload == watermark_code.CODED_BITS:
        carried = watermark_code.encode(payload)
    else:
        carried = np.array([2 * (payload >> shift & 1) - 1 for shift in reversed(range(n_payload))], np.int8)
    pilot = np.ones(word_bits - n_payload, np.int8)
    return np.concatenate([pilot, carried]) * _signs(word_bits, key)


def judge(soft: Soft, key: bytes) -> Detection:
    """Return what a word tells that was read, or a sum of words that were read in several frames.

    A plain payload, which has no checksum, is believed only if the whole pilot is right.
    """
    if not soft.any():
        return NOTHING
    values = soft * _signs(len(soft), key)
    n_payload = payload_bits(len(soft))
    pilot, carried = np.split(values, [len(soft) - n_payload])
    n_right = int((pilot > 0).sum())
    log_p = math.log(sum(math.comb(len(pilot), count) for count in range(n_right, len(pilot) + 1)))
    log_p -= len(pilot) * math.log(2)
    if n_payload == watermark_code.CODED_BITS:
        return Detection(log_p, *watermark_code.decode(carried))
    payload = sum(int(value > 0) << shift for value, shift in zip(carried, reversed(range(n_payload)), strict=True))
    return Detection(log_p, payload, n_payload > 0 and n_right == len(pilot))


def _signs(word_bits: int, key: bytes) -> Bits:
    """Return the signs of a word's bits, as -1 and 1."""
    stream = hashlib.shake_256(b"word" + key).digest(-(-word_bits // 8))
    return np.unpackbits(np.frombuffer(stream, np.uint8))[:word_bits].astype(np.int8) * 2 - 1
