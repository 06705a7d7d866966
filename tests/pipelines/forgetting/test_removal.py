"""Forgetting words: captions of every kind with their embeddings, answers that are in no table yet, and files nobody can read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from captioning.dialogue import journal
from captioning.encoder import TextEmbedding, text_key
from captioning.engine import Answer
from cluster import storage
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.engine.exclusions import check_no_unfinished_removal
from pipelines.engine.sources import SourceSettings
from pipelines.forgetting.request import forget
from pipelines.recipe import Recipe
from tests.support.toy_steps import Measure, Split
from training.data import shards, text_tables
from training.data.footer import DamagedError, metadata

ENCODER = "me"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe whose `out` holds the clips of two files."""
    (tmp_path / "in").mkdir()
    for name in ("a-2", "b-2"):
        (tmp_path / "in" / f"{name}.toy").write_text(name)
    made = Recipe(
        name="toy",
        out=str(tmp_path / "out"),
        sources=(SourceSettings(videos=str(tmp_path / "in" / "*.toy")),),
        curate=(Measure(), Split()),
    )
    run_segments(made, inline)
    return made


def clips_of(recipe: Recipe) -> list[dict[str, Any]]:
    found = run_segments(recipe, inline).final.rows.read(["uid", "source"]).to_pylist()
    return sorted(found, key=lambda row: (row["source"], row["uid"]))


def test_captions_of_every_kind_go_with_their_embeddings(recipe: Recipe) -> None:
    mine, *_, other = clips_of(recipe)
    said = {
        mine["uid"]: ["a red ball", "a ball", "shared words"],
        other["uid"]: ["a blue cube", "shared words", "a cube"],
    }
    kinds = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
    rows = pa.table(
        {
            "uid": [mine["uid"], other["uid"]],
            "source": [mine["source"], other["source"]],
            "caption": [said[mine["uid"]][0], said[other["uid"]][0]],
            "captions": pa.array(
                [[{"kind": f"k{i}", "text": text} for i, text in enumerate(said[row["uid"]])] for row in (mine, other)],
                kinds,
            ),
        }
    )
    storage.write_table(f"{recipe.tables_uri}/told-0/part-0.parquet", rows)
    everything = {text for captions in said.values() for text in captions}
    chance = np.random.default_rng(0)
    embeddings = {
        text_key(text, ENCODER): TextEmbedding(chance.standard_normal((40, 8)).astype(np.float32))
        for text in sorted(everything)
    }
    text_tables.write_text_table(f"{recipe.tables_uri}/texts-0/part-0.parquet", embeddings, ENCODER)
    outcome = forget(recipe, source=mine["source"])
    assert outcome is not None
    assert (outcome.record.rows["texts-0"], outcome.proof.left) == (2, [])
    left = storage.read_table(f"{recipe.tables_uri}/texts-0/part-0.parquet", ["key"])["key"].to_pylist()
    assert set(left) == {text_key(text, ENCODER) for text in said[other["uid"]]}


def test_answers_that_are_in_no_table_go_and_what_they_cost_stays_known(recipe: Recipe) -> None:
    mine, *_, other = clips_of(recipe)
    folder = f"{recipe.tables_uri}/answers-0"
    writer = journal.Journal(folder)
    for row in (mine, other):
        writer.add(
            "engine",
            Answer(
                key=f"key of {row['uid']}", uid=row["uid"], text=f"words of {Path(row['source']).stem}", cost_usd=0.25
            ),
        )
    writer.close()
    forget(recipe, source=mine["source"])
    kept = journal.read(folder)
    assert [answer.uid for answer in kept.answers.values()] == [other["uid"]]
    assert kept.spent_usd == {"engine": 0.5}
    assert b"words of a-2" not in b"".join(storage.read_bytes(entry.uri) for entry in storage.list_files(folder))


def test_a_manifest_of_another_version_does_not_stop_a_removal(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    mine, *_, other = clips_of(recipe)
    uri = f"{recipe.tables_uri}/manifest-0/_manifest.parquet"
    rows = pa.table(
        {"uid": [mine["uid"], other["uid"]], "source": [mine["source"], other["source"]], "caption": ["x", "y"]}
    )
    storage.write_table(uri, rows.replace_schema_metadata(metadata("manifest", {"tables_root": ".."})))
    with pytest.raises(DamagedError):
        shards.read_manifest(uri)
    with caplog.at_level(logging.WARNING, "worldloom"):
        outcome = forget(recipe, source=mine["source"])
    assert outcome is not None
    assert outcome.record.state == "done"
    assert not storage.exists(uri), "where its rows are cannot be told once shards are rewritten"
    assert any(uri in record.getMessage() and "removed as a whole" in record.getMessage() for record in caplog.records)
    check_no_unfinished_removal(recipe.out_uri)
