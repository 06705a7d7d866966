"""Removal from tables, shards, texts, answers and manifests: rewritten files equal those written without the rows."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.dialogue import journal
from captioning.encoder import TextEmbedding, text_key
from captioning.engine import Answer
from cluster import storage
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.engine import tables
from pipelines.engine.exclusions import Span, check_no_unfinished_removal
from pipelines.engine.table_index import index_table
from pipelines.forgetting.request import forget
from pipelines.recipe import Recipe
from tests.support.killing import Killed, Killer
from tests.support.toy_recipes import final_rows, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Split
from training.autoencoders.linear import Linear
from training.data import shards, text_tables
from training.data.buckets import Bucket
from training.data.footer import DamagedError, metadata
from training.data.manifest import read_manifest
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import ShardInfo

AUTOENCODER = Linear()
BUCKET = Bucket(32, 16, 9, 8.0)
ENCODER = "me"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Return a recipe whose `out` holds the clips of two files."""
    write_toys(tmp_path, ["a-2", "b-2"])
    recipe = toy_recipe(tmp_path, [Measure(), Split()])
    run_segments(recipe, inline)
    return recipe


def first_and_last_clip(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a clip of the file that is removed and one of the file that stays."""
    rows = sorted(final_rows(run_segments(recipe, inline)), key=lambda row: (row["source"], row["uid"]))
    return rows[0], rows[-1]


def test_a_part_loses_all_rows_or_none(tmp_path: Path) -> None:
    folder = str(tmp_path / "table")
    rows = pa.table(
        {"uid": [f"u{i}" for i in range(6)], "fate": ["kept"] * 6, "fate_step": [""] * 6, "size": list(range(6))}
    )
    parts = [tables.write_part(folder, rows.slice(start, 3), {"label": "x"}) for start in (0, 3)]
    gone = pa.array(["u1", "u3", "u4", "u5"])
    for at in (*range(4), None):
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            for part in parts:
                with contextlib.suppress(Killed):
                    tables.remove_rows(part, gone) if storage.exists(part) else None
                seen = index_table(folder).uids.to_pylist()
                assert len(seen) == len(set(seen))
                assert {"u0", "u2"} <= set(seen)
    assert index_table(folder).uids.to_pylist() == ["u0", "u2"]
    assert tables.read_metadata(parts[0]) == {"label": "x"}
    left = rows.filter(pc.is_in(rows["uid"], pa.array(["u0", "u2"])))
    written = tables.write_part(str(tmp_path / "other"), left, {"label": "x"})
    assert Path(parts[0]).read_bytes() == Path(written).read_bytes()


def latent_rows(count: int) -> list[LatentRow]:
    rng = torch.Generator().manual_seed(0)
    channels, t, h, w = ShardInfo.from_autoencoder(AUTOENCODER, AUTOENCODER.open(), BUCKET, "f").latent_shape
    return [
        LatentRow(
            uid=f"{number:020x}",
            latent=torch.randn(channels, t, h, w, generator=rng).to(torch.bfloat16),
            last_frame_latent=torch.randn(channels, 1, h, w, generator=rng).to(torch.bfloat16),
            source=f"/in/{number}.mp4",
            start_pts=0,
            end_pts=9,
            time_base_num=1,
            time_base_den=8,
            fps=8.0,
            crop=(0, 0, 32, 16),
        )
        for number in range(count)
    ]


@pytest.mark.slow
@settings(max_examples=15)
@given(stays=st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_shard_equals_one_written_without_the_rows(
    tmp_path_factory: pytest.TempPathFactory, stays: list[bool]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rows, info = latent_rows(len(stays)), ShardInfo.from_autoencoder(AUTOENCODER, AUTOENCODER.open(), BUCKET, "f")
    rewritten = folder / "rewritten.parquet"
    with pytest.MonkeyPatch.context() as patch:
        # Several row groups, so that rows move from one to another.
        patch.setattr(shards, "ROW_GROUP_BYTES", 40_000)
        write_shard(str(rewritten), rows, info)
        gone = {row.uid for row, kept in zip(rows, stays, strict=True) if not kept}
        before = rewritten.read_bytes()
        assert shards.remove_rows(str(rewritten), gone) == len(gone)
        if not any(stays):
            assert not rewritten.exists()
            return
        write_shard(str(folder / "left.parquet"), [row for row in rows if row.uid not in gone], info)
        assert rewritten.read_bytes() == (folder / "left.parquet").read_bytes()
        assert gone or before == rewritten.read_bytes()


def test_a_text_table_equals_one_written_without_keys(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    embeddings = {f"k{i}": TextEmbedding(rng.standard_normal((1 + i % 3, 8)).astype(np.float32)) for i in range(7)}
    rewritten, written = tmp_path / "all.parquet", tmp_path / "left.parquet"
    text_tables.write_text_table(str(rewritten), embeddings, ENCODER)
    assert text_tables.remove_keys(str(rewritten), {"k0", "k5", "k9"}) == 2
    left = {key: value for key, value in embeddings.items() if key not in {"k0", "k5"}}
    text_tables.write_text_table(str(written), left, ENCODER)
    assert rewritten.read_bytes() == written.read_bytes()
    assert text_tables.remove_keys(str(rewritten), set(embeddings)) == 5
    assert not rewritten.exists()


@pytest.mark.slow
def test_captions_are_removed_with_their_embeddings(recipe: Recipe) -> None:
    removed, other = first_and_last_clip(recipe)
    captions = {
        removed["uid"]: ["a red ball", "a ball", "shared words"],
        other["uid"]: ["a blue cube", "shared words", "a cube"],
    }
    kinds = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
    clips = (removed, other)
    of_kinds = [[{"kind": f"k{i}", "text": text} for i, text in enumerate(captions[clip["uid"]])] for clip in clips]
    rows = pa.table(
        {
            "uid": [clip["uid"] for clip in clips],
            "source": [clip["source"] for clip in clips],
            "caption": [captions[clip["uid"]][0] for clip in clips],
            "captions": pa.array(of_kinds, kinds),
        }
    )
    storage.write_table(f"{recipe.tables_uri}/caption-0/part-0.parquet", rows)
    rng = np.random.default_rng(0)
    embeddings = {
        text_key(text, ENCODER): TextEmbedding(rng.standard_normal((40, 8)).astype(np.float32))
        for text in sorted({text for texts in captions.values() for text in texts})
    }
    texts_uri = f"{recipe.tables_uri}/texts-0/part-0.parquet"
    text_tables.write_text_table(texts_uri, embeddings, ENCODER)
    outcome = forget(recipe, source=removed["source"])
    assert outcome is not None
    assert (outcome.record.removed_rows["texts-0"], outcome.proof.left) == (2, [])
    left = storage.read_table(texts_uri, ["key"])["key"].to_pylist()
    assert set(left) == {text_key(text, ENCODER) for text in captions[other["uid"]]}


@pytest.mark.slow
def test_answers_not_in_a_table_are_removed(recipe: Recipe) -> None:
    removed, other = first_and_last_clip(recipe)
    folder = f"{recipe.tables_uri}/answers-0"
    writer = journal.Journal(folder)
    for row in (removed, other):
        words = f"words of {Path(row['source']).stem}"
        writer.add("engine", Answer(key=f"key of {row['uid']}", uid=row["uid"], text=words, cost_usd=0.25))
    writer.close()
    forget(recipe, source=removed["source"])
    kept = journal.read(folder)
    assert [answer.uid for answer in kept.answers.values()] == [other["uid"]]
    assert kept.spent_usd == {"engine": 0.5}, "what the removed answers cost stays known"
    assert b"words of a-2" not in b"".join(storage.read_bytes(entry.uri) for entry in storage.list_files(folder))


@pytest.mark.slow
def test_a_manifest_of_another_version_is_removed(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    removed, other = first_and_last_clip(recipe)
    uri = f"{recipe.tables_uri}/manifest-0/_manifest.parquet"
    rows = pa.table(
        {"uid": [removed["uid"], other["uid"]], "source": [removed["source"], other["source"]], "caption": ["x", "y"]}
    )
    storage.write_table(uri, rows.replace_schema_metadata(metadata("manifest", {"tables_root": ".."})))
    with pytest.raises(DamagedError):
        read_manifest(uri)
    with caplog.at_level(logging.WARNING, "worldloom"):
        outcome = forget(recipe, source=removed["source"])
    assert outcome is not None
    assert outcome.record.state == "finished"
    assert not storage.exists(uri), "where its rows are in rewritten shards is unknown"
    assert any(uri in record.getMessage() and "removed as a whole" in record.getMessage() for record in caplog.records)
    check_no_unfinished_removal(recipe.out_uri)


@pytest.mark.slow
@pytest.mark.parametrize("sample", ["", ".w1", ".w1-5m"])
def test_a_clip_is_removed_with_all_its_windows(recipe: Recipe, sample: str) -> None:
    removed, other = first_and_last_clip(recipe)
    base = {"time_base_num": 1, "time_base_den": 10}
    clips = [
        {"uid": clip["uid"], "source": clip["source"], "start_pts": start_pts, "end_pts": start_pts + 100, **base}
        for clip, start_pts in ((removed, 200), (other, 0))
    ]
    storage.write_table(f"{recipe.tables_uri}/cut-0/part-0.parquet", pa.Table.from_pylist(clips))
    spans = {
        removed["uid"]: (200, 250),
        f"{removed['uid']}.w1": (250, 300),
        f"{removed['uid']}.w1-5m": (250, 251),
        other["uid"]: (0, 100),
    }
    source_of = {uid: other["source"] if uid == other["uid"] else removed["source"] for uid in spans}
    rows = [
        replace(row, uid=uid, source=source_of[uid], start_pts=start_pts, end_pts=end_pts, **base)  # type: ignore[arg-type]
        for row, (uid, (start_pts, end_pts)) in zip(latent_rows(len(spans)), spans.items(), strict=True)
    ]
    uri = f"{recipe.tables_uri}/latents-0/bucket={BUCKET.name}/part-0.parquet"
    write_shard(uri, rows, ShardInfo.from_autoencoder(AUTOENCODER, AUTOENCODER.open(), BUCKET, "f"))
    outcome = forget(recipe, uid=removed["uid"] + sample)
    assert outcome is not None
    assert outcome.proof.left == []
    # The record has the span of the whole clip, so that no later run cuts a clip out of it.
    assert outcome.record.span == Span(Fraction(20), Fraction(30))
    assert shards.read_index(uri)["uid"].to_pylist() == [other["uid"]]
