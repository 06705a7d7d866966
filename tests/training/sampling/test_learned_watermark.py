"""Watermarks of published networks: words of a pilot and a payload, a stated rate, and clear errors without them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cluster.config import validate
from cluster.plugins import build, classes
from tests.support.watermark_networks import flat_frames, install, write_videoseal
from tests.training.sampling.test_watermark import PAYLOAD
from training.sampling.learned_watermark import LearnedWatermark, judge, payload_bits, word_of
from training.sampling.mark_settings import MarkSettings
from training.sampling.marks import Marker
from training.sampling.watermark import PUBLIC_KEY
from training.sampling.watermark_detection import FALSE_POSITIVES, Detection
from training.sampling.watermark_method import FOLDER, WatermarkMethod
from training.sampling.watermarks.rivagan import RivaGAN
from training.sampling.watermarks.videoseal import VARIABLE

NETWORKS = ["rivagan", "trustmark", "videoseal"]
SIZES = {"rivagan": (32, 0), "trustmark": (61, 32), "videoseal": (256, 108)}
"""Bits of the word, and of the payload in it."""


def method(name: str) -> LearnedWatermark:
    found = build(FOLDER, WatermarkMethod, name)
    assert isinstance(found, LearnedWatermark)
    return found


def binomial_tail(n: int, at_least: int) -> float:
    """Return P(X >= at_least) of n fair coins, by convolving them."""
    chances = np.ones(1)
    for _ in range(n):
        chances = np.convolve(chances, [0.5, 0.5])
    return float(chances[at_least:].sum())


@pytest.mark.parametrize("name", NETWORKS)
def test_words_hold_a_pilot_and_a_payload(name: str) -> None:
    word_bits, n_payload = SIZES[name]
    assert (method(name).word_bits, payload_bits(word_bits)) == (word_bits, n_payload)
    assert method(name).has_payload == (n_payload > 0)
    word = word_of(PAYLOAD, word_bits, PUBLIC_KEY)
    assert set(word.tolist()) == {-1, 1}
    found = judge(word.astype(float), PUBLIC_KEY)
    assert found.payload == (PAYLOAD if n_payload else None)
    assert math.exp(found.log_p) == pytest.approx(2.0 ** (n_payload - word_bits))
    assert not judge(word.astype(float), b"another key that is secret").found
    assert not judge(np.zeros(word_bits), PUBLIC_KEY).found


@pytest.mark.parametrize(("name", "n_wrong"), [("rivagan", 4), ("trustmark", 3), ("videoseal", 47)])
def test_wrong_bits_count_as_fair_coins_do(name: str, n_wrong: int) -> None:
    """The last count of wrong bits at which the mark is found, and the first at which it is not."""
    word_bits, n_payload = SIZES[name]
    n_pilot = word_bits - n_payload

    def with_wrong(count: int) -> Detection:
        word = word_of(PAYLOAD, word_bits, PUBLIC_KEY).astype(float)
        word[:count] *= -1
        return judge(word, PUBLIC_KEY)

    for count in (n_wrong, n_wrong + 1):
        assert math.exp(with_wrong(count).log_p) == pytest.approx(binomial_tail(n_pilot, n_pilot - count))
    assert with_wrong(n_wrong).found
    assert not with_wrong(n_wrong + 1).found
    assert binomial_tail(n_pilot, n_pilot - n_wrong) <= FALSE_POSITIVES


def test_payloads_without_checksum_need_the_whole_pilot() -> None:
    word = word_of(PAYLOAD, 61, PUBLIC_KEY).astype(float)
    word[0] *= -1
    found = judge(word, PUBLIC_KEY)
    assert (found.found, found.payload) == (True, None)


def test_the_bound_holds_over_keys() -> None:
    """Of any word that a network reads in unmarked footage, at most this share of keys is below a bound."""
    read = np.where(np.arange(256) % 3 == 0, 5.0, -1.0)
    for word_bits in (32, 61, 256):
        values = np.array([judge(read[:word_bits], b"key %d" % number).log_p for number in range(2000)])
        for bound in (0.3, 0.1, 0.01):
            assert np.mean(values <= math.log(bound)) <= bound + 3 * math.sqrt(bound / len(values))


@pytest.mark.parametrize("name", NETWORKS)
def test_marked_frames_are_found_and_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(name, tmp_path, monkeypatch)
    frames, marker = flat_frames(), Marker(MarkSettings(watermark_method=method(name), credentials=False))
    marks = marker.describe("weights", "batch")
    assert marks["watermark_method"] == name
    marked = np.stack(list(marker.frames(frames, 2, marks)))
    assert marked.dtype == np.uint8
    assert not np.array_equal(marked[0], frames[0])
    found = method(name).detect(((index / 2, frame) for index, frame in enumerate(marked)), PUBLIC_KEY)
    assert found.found
    assert marks["watermark"] == (None if found.payload is None else f"{found.payload:08x}")
    assert (found.payload is not None) == method(name).has_payload
    assert not method(name).detect([(0.0, frames[0])], PUBLIC_KEY).found
    given = list(marker.frames(frames, 2, marks, first=-1))
    assert np.array_equal(given[0], frames[0]), "a frame before the file begins is not marked"


def test_missing_packages_and_weights_are_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, message in (
        ("rivagan", "pip install --no-deps invisible-watermark"),
        ("trustmark", "the package trustmark is not installed; `pip install 'trustmark>=0.9'`"),
        ("videoseal", f"set {VARIABLE} to the path of y_256b_img.jit"),
    ):
        with pytest.raises(ValueError, match=f"watermark_method {name}: .*{message}"):
            Marker(MarkSettings(watermark_method=method(name)))
    monkeypatch.undo()
    install("trustmark", tmp_path, monkeypatch)
    (tmp_path / "trustmark" / "models" / "encoder_Q.ckpt").unlink()
    assert "encoder_Q.ckpt is not there; `python -c" in str(method("trustmark").missing())
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.jit"))
    assert "none.jit, which is no file" in str(method("videoseal").missing())


def test_other_torchscript_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("videoseal", tmp_path, monkeypatch)
    monkeypatch.setenv(VARIABLE, str(write_videoseal(tmp_path / "small.jit", 96)))
    with pytest.raises(ValueError, match=r"small.jit reads 96 bits; the file of 256 bits is needed"):
        method("videoseal").open()
    (tmp_path / "text.jit").write_text("no network")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "text.jit"))
    with pytest.raises(ValueError, match=r"text.jit is no TorchScript file"):
        method("videoseal").open()


def test_sizes_that_a_network_refuses() -> None:
    with pytest.raises(ValueError, match=r"frames of 96x64 are too small; it needs 65536 pixels, as 256x256 has"):
        RivaGAN().check_size(96, 64)
    RivaGAN().check_size(320, 240)
    for _, kind in classes(FOLDER, WatermarkMethod):
        assert kind.has_payload or kind is RivaGAN


def test_settings_name_the_kind() -> None:
    assert validate(MarkSettings, {"watermark_method": "rivagan"}).watermark_method == RivaGAN()
    again = validate(MarkSettings, validate(MarkSettings, "off").model_dump())
    assert again.missing == ["credentials", "watermark"]
    with pytest.raises(ValueError, match="rivagan"):
        validate(MarkSettings, {"watermark_method": "rivagam"})
    with pytest.raises(ValueError, match="has no effect with watermark: false"):
        validate(MarkSettings, {"watermark_method": "rivagan", "watermark": False})
