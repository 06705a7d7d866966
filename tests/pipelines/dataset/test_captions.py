"""Captions as columns have the keys, the distinct ones and the order of Python's own strings."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.encoder import NULL_CAPTION, text_key
from cluster import large_tables
from pipelines.dataset.captions import Captions

CAPTION = pa.struct([("kind", pa.string()), ("text", pa.string())])
LISTS = st.lists(st.lists(st.text("aé ", max_size=3), min_size=1, max_size=3), max_size=6)


@given(chunks=st.lists(LISTS, max_size=3), stored=st.lists(st.text("aé ", max_size=3)))
def test_columns_say_what_strings_say(chunks: list[list[list[str]]], stored: list[str]) -> None:
    columns = [[[{"kind": "dense", "text": text} for text in texts] for texts in chunk] for chunk in chunks]
    texts = [text for chunk in chunks for clip in chunk for text in clip] + [NULL_CAPTION]
    stored_keys = pa.chunked_array([[text_key(text, "me") for text in stored]], pa.string())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_tables, "ROWS_PER_CHUNK", 2)
        captions = Captions.of_clips(pa.chunked_array(columns, pa.list_(CAPTION)), "me")
        distinct = list(captions.rows(captions.distinct))
        missing = list(captions.rows(captions.missing(stored_keys)))
    assert captions.key_N.to_pylist() == [text_key(text, "me") for text in texts]
    assert distinct == [(text_key(text, "me"), text) for text in dict.fromkeys(texts)]
    assert missing == [row for row in distinct if row[1] not in stored]
    longest = list(captions.rows(captions.longest_first(captions.distinct)))
    assert longest == sorted(distinct, key=lambda row: (-len(row[1].encode()), row[0]))


def test_no_clip_has_the_null_caption_alone() -> None:
    captions = Captions.of_clips(pa.chunked_array([], pa.list_(CAPTION)), "me")
    assert list(captions.rows(np.array([0]))) == [(text_key(NULL_CAPTION, "me"), NULL_CAPTION)]
    assert len(captions.key_N) == 1
