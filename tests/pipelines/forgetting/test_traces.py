"""Identifiers and payloads in cells and bytes: all are found, and nothing else."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.forgetting.traces import REDACTED, Identifiers, hex_words, payload_digest, payloads, text_cells


def test_uris_are_found_and_longer_paths_are_not() -> None:
    uid = "0123456789abcdef0123"
    identifiers = Identifiers(frozenset({uid}), ("/b/clip é.mp4",))
    present = [
        "/b/clip é.mp4",
        "near-duplicate of a clip of /b/clip é.mp4.",
        '"/b/clip \\u00e9.mp4"',
        "file:///b/clip%20%C3%A9.mp4",
        f"{uid}.mp4",
        f"part-{uid}~3",
        f"a{uid}",
    ]
    absent = [
        "/b/clip é.mp4.bak",
        "/a/b/clip é.mp4",
        "/b/clip é.mp4/x",
        "/b/clip é.mp45",
        "/b/clip.mp4",
        uid[1:],
        uid[:-1] + "4",
    ]
    assert [identifiers.occur_in_text(text) for text in present] == [True] * len(present)
    assert [identifiers.occur_in_text(text) for text in absent] == [False] * len(absent)
    in_column = identifiers.occur_in_column(pa.array([*present, None, *absent])).to_pylist()
    assert in_column == [True] * len(present) + [False] * (1 + len(absent))
    for text in present:
        assert not identifiers.occur_in_text(identifiers.redact(text))
    assert (
        identifiers.redact(f"of {uid} and /b/clip é.mp4, and /b/clip é.mp4.bak")
        == f"of {REDACTED} and {REDACTED}, and /b/clip é.mp4.bak"
    )
    assert identifiers.occur_in_bytes(b"\x2f/b/clip \xc3\xa9.mp4\x5f", is_text=False)
    assert not identifiers.occur_in_bytes("/b/clip é.mp4.bak".encode(), is_text=True)


@given(st.binary(max_size=80).map(lambda data: bytes(b"0123456789abcdefX"[byte % 17] for byte in data)))
def test_hex_words_equal_a_regular_expression(data: bytes) -> None:
    assert list(hex_words(data)) == [match[1].decode() for match in re.finditer(rb"(?=([0-9a-f]{20}))", data)]


def test_nested_cells_are_found_with_their_row() -> None:
    image = bytes(range(100))
    table = pa.table(
        {
            "shots": pa.array(
                [None, [{"kind": "cut", "thumbnails": [image, None]}, {"kind": "x", "thumbnails": []}], []]
            ),
            "embedding": pa.array([[0.5] * 64, None, [0.5] * 3], pa.list_(pa.float32())),
            "fixed": pa.array([image, None, image], pa.binary(100)),
            "size": pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string(), 2)),
        }
    )
    assert list(payloads(table["shots"])) == [(1, payload_digest(image))]
    assert list(payloads(table["embedding"])) == [(0, payload_digest(np.full(64, 0.5, np.float32).tobytes()))]
    assert [row for row, _ in payloads(table["fixed"])] == [0, 2]
    assert [(cells.to_pylist(), rows.to_pylist()) for cells, rows in text_cells(table["size"])] == [
        (["a", "b", "c", "d"], [0, 0, 2, 2])
    ]
    assert [(cells.to_pylist(), rows.to_pylist()) for cells, rows in text_cells(table["shots"])] == [
        (["cut", "x"], [1, 1])
    ]
