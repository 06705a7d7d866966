"""Measurements of pieces are stored as data and come back bit for bit; other bytes are refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from pipelines.video.measurement_files import TREE, VERSION, dump_measurements, load_measurements
from pipelines.video.scan import ScanSettings, scan_piece
from pipelines.video.segment_meter import Measurements
from pipelines.video.shot_boundaries import DetectorName
from tests.support.videos import encode, sliding


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a video with two shots, the first of which has black bars."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = np.concatenate([sliding(20, 1.0, 160, 96, 0), sliding(20, 1.0, 160, 96, 1)])
    frames[:20, :12] = frames[:20, -12:] = 0
    encode(path, frames, time_base=Fraction(1, 24))
    return str(path)


@pytest.fixture(scope="module")
def measured(film: str) -> Measurements:
    found = scan_piece(film, ScanSettings(), 0, None)
    assert found is not None
    return found


def values(item: Any) -> Any:
    """Return everything that an object holds, with types, as values that can be compared."""
    if dataclasses.is_dataclass(item):
        return type(item), [values(getattr(item, field.name)) for field in dataclasses.fields(item)]
    if isinstance(item, tuple):
        return [values(each) for each in item]
    if isinstance(item, np.ndarray):
        return item.dtype, item.shape, item.tobytes()
    return type(item), item


def with_tree(data: bytes, change: Any) -> bytes:
    """Return a file whose JSON was changed by a function."""
    arrays = load(data)
    tree = change(json.loads(arrays[TREE].tobytes()))
    return save({**arrays, TREE: np.frombuffer(json.dumps(tree).encode(), np.uint8)})


@pytest.mark.parametrize("detector", ["signature", "content"])
def test_measurements_come_back_bit_for_bit(film: str, detector: DetectorName) -> None:
    measured = scan_piece(film, ScanSettings(detector=detector), 0, None)
    assert measured is not None
    assert {type(sample.image).__name__ for sample in measured.samples} == {"PlaneValues", "StoredPlanes"}
    assert values(load_measurements(dump_measurements(measured))) == values(measured)
    assert load_measurements(dump_measurements(None)) is None


def test_other_bytes_are_refused(measured: Measurements) -> None:
    whole = dump_measurements(measured)
    for data in (
        b"",
        whole[:-1],
        pickle.dumps(measured),
        save({"0": np.zeros(3)}),
        with_tree(whole, lambda tree: [VERSION + 1, tree[1]]),
        with_tree(whole, lambda tree: [VERSION, [0, tree[1][1][:-1]]]),
        with_tree(whole, lambda tree: [VERSION, [7, []]]),
        with_tree(whole, lambda tree: [VERSION, [0, ["text", *tree[1][1][1:]]]]),
        with_tree(whole, lambda tree: {}),
        save({**load(whole), "0": np.zeros(3)}),
    ):
        with pytest.raises(ValueError, match="no measurements of version"):
            load_measurements(data)


def test_only_known_types_are_stored(measured: Measurements) -> None:
    """A numpy number would come back as one of Python, which later arithmetic may round otherwise."""
    with pytest.raises(TypeError, match="float32 is not stored"):
        dump_measurements(dataclasses.replace(measured, n_misplaced=np.float32(1)))  # type: ignore[arg-type]
