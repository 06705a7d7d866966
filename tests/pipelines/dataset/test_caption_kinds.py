"""Training with kinds of captions that nothing has is refused, before curation where that is known."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config import ConfigError
from pipelines.dataset.caption_kinds import check_manifest, check_sources
from pipelines.engine.sources import SCHEMA
from training.data.manifest import OTHER_CAPTION
from training.settings import TrainSettings


def training(**weights: float) -> TrainSettings:
    """Return training settings of these caption kinds."""
    return TrainSettings.model_construct(captions=weights)


def sources(sidecar: str | None = None, listed_caption: str | None = None) -> pa.Table:
    """Return two sources, of which one may have a caption."""
    rows = [{"uid": "a"}, {"uid": "b", "sidecar": sidecar, "listed_caption": listed_caption}]
    return pa.Table.from_pylist(rows, SCHEMA)


def test_source_captions_alone_need_a_source_with_one() -> None:
    with pytest.raises(ConfigError, match=r"none of 2 sources has a caption: put clip\.txt beside"):
        check_sources(training(source=1.0), sources())
    check_sources(training(source=1.0), sources(sidecar="b.txt"))
    check_sources(training(source=1.0), sources(listed_caption="A ball."))
    check_sources(training(source=0.1, dense=0.9), sources())
    check_sources(training(), sources())
    check_sources(None, sources())


def manifest(folder: Path, *kinds: tuple[str, list[str], str]) -> str:
    """Write the columns of a manifest that the check reads: main kind, other kinds and split of each sample."""
    other = {"caption": "x", "text_key": "k", "n_text": 1}
    rows = [
        {"caption_kind": main, "other_captions": [{**other, "kind": kind} for kind in others], "split": split}
        for main, others, split in kinds
    ]
    fields = [("split", pa.string()), ("caption_kind", pa.string()), ("other_captions", pa.list_(OTHER_CAPTION))]
    uri = str(folder / "_manifest.parquet")
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), uri)
    return uri


def test_training_samples_need_a_caption_of_the_kinds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = manifest(tmp_path, ("dense", ["short"], "train"), ("dense", [], "train"), ("source", ["source"], "val"))
    with pytest.raises(ConfigError, match="none of 2 training samples has a caption of kind source"):
        check_manifest(training(source=1.0), uri)
    check_manifest(training(dense=1.0, source=0.1), uri)
    check_manifest(training(), "none")
    assert not caplog.records
    check_manifest(training(short=1.0, source=1.0), uri)
    assert "1 of 2 training samples have no caption of kind short or source" in caplog.text
