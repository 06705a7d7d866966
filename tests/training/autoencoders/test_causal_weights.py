"""Weight files of `causal`: read as written, and refused if they are damaged or of another kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.causal_weights import random_weights
from tests.support.paths import ROOT
from training.autoencoders._causal_weights import TrainedNetwork
from training.autoencoders.causal import Causal


def test_weights_are_read_as_written(tmp_path: Path) -> None:
    data = random_weights(seed=3)
    trained = TrainedNetwork.from_bytes(data, "it")
    assert trained.about == {"steps": 0}
    assert trained.to_bytes() == data
    (path := tmp_path / "a.safetensors").write_bytes(data)
    opened = Causal(weights=str(path)).open()
    assert opened.identity == Causal(weights=str(path)).identity()
    assert opened.identity.startswith("causal-v1-")
    assert (len(opened.mean), opened.std[16:]) == (32, tuple(trained.std_2C[1].tolist()))
    path.write_bytes(random_weights(seed=4))
    assert Causal(weights=str(path)).identity() != opened.identity


def test_unknown_names_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown weights 'smoll'.*train-autoencoder"):
        Causal(weights="smoll").identity()
    with pytest.raises(ValueError, match=r"nowhere\.safetensors: no such file"):
        Causal(weights=str(tmp_path / "nowhere.safetensors")).open()


@pytest.mark.parametrize(
    "data",
    [
        b"nothing",
        (ROOT / "training/autoencoders/weights/linear16.safetensors").read_bytes(),
        random_weights()[:-7],
        random_weights()[:-1] + bytes([random_weights()[-1] ^ 1]),
    ],
    ids=["text", "linear", "truncated", "bit flipped"],
)
def test_other_and_damaged_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (path := tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"bad\.safetensors: not a weight file of the autoencoder causal"):
        Causal(weights=str(path)).open()
