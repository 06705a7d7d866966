"""Forgetting: nothing is left of what goes, nothing else goes, and whoever is killed on the way can finish."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.encoder import TextEmbedding
from cluster import storage
from cluster.config import ConfigError
from pipelines import inline
from pipelines.commands import run
from pipelines.curation import Curation, inspect, run_segments
from pipelines.engine import exclusions, tables
from pipelines.engine.exclusions import Exclusions, Span, check_no_unfinished_removal
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Step
from pipelines.forgetting.request import forget
from pipelines.ledger import ledger
from pipelines.recipe import Recipe, load_recipe, resolved
from pipelines.scenes.footage import make_footage
from pipelines.steps.keep import Bound, Keep
from pipelines.video.decode import OPEN_LOG
from tests.support.killing import Killed, Killer, files_of
from tests.support.paths import ROOT
from tests.support.toy_steps import LongMeasure, Measure, Pick, Score, Split
from training.autoencoders.linear import Linear
from training.data import shards, text_tables
from training.data.buckets import Bucket
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import ShardInfo
from training.data.verify import verify

NAMES = ["a-3", "b-0", "c-6", "broken-1", "d-1", "e-5"]


def make_recipe(folder: Path, out: str = "out", calls: str | None = None) -> Recipe:
    steps: list[Step] = [Measure(calls=calls), Split(), Keep(name="keep", number=Bound(max=4)), Score(), Pick()]  # type: ignore[call-arg]
    return Recipe(
        name="toy",
        out=str(folder / out),
        sources=(SourceSettings(videos=str(folder / "in" / "*.toy")),),
        curate=tuple(steps),
    )


def make_sources(folder: Path, names: list[str]) -> None:
    (folder / "in").mkdir(exist_ok=True, parents=True)
    for name in names:
        (folder / "in" / f"{name}.toy").write_text(name)


def content(curation: Curation) -> list[dict[str, Any]]:
    return list(curation.final.rows.read().to_pylist())


def raw_files_naming(out: str, *words: str) -> list[str]:
    """Files, but the records, in whose bytes any of these words is; tables as CSV, so that nothing is hidden by compression."""
    found = []
    for path in sorted(Path(out).rglob("*")):
        if not path.is_file() or exclusions.FOLDER in path.relative_to(out).parts:
            continue
        data = path.read_bytes() + path.name.encode()
        if path.suffix == ".parquet":
            data += (
                repr(pq.read_table(path, partitioning=None).to_pylist()).encode()
                + repr(pq.read_metadata(path).metadata).encode()
            )
        found += [str(path)] if any(word.encode() in data for word in words) else []
    return found


@pytest.mark.slow
@settings(max_examples=8)
@given(clips=st.lists(st.integers(0, 6), min_size=2, max_size=6), chosen=st.integers(0, 5), by_uid=st.booleans())
def test_what_is_left_is_what_there_would_be_without_it(
    tmp_path_factory: pytest.TempPathFactory, clips: list[int], chosen: int, by_uid: bool
) -> None:
    folder = tmp_path_factory.mktemp("forget")
    names = [f"{letter}-{count}" for letter, count in zip("abcdef", clips, strict=False)]
    make_sources(folder, names)
    recipe = make_recipe(folder)
    rows = content(run_segments(recipe, inline))
    gone = folder / "in" / f"{names[chosen % len(names)]}.toy"
    own = [row for row in rows if row["source"] == str(gone)]
    outcome = forget(recipe, uid=own[0]["source_uid"]) if by_uid else forget(recipe, source=str(gone))
    assert outcome is not None
    uids = {row[name] for row in own for name in ("uid", "source_uid")}
    assert raw_files_naming(recipe.out_uri, str(gone), *uids) == []
    assert (outcome.record.state, outcome.proof.left) == ("done", [])
    after = run_segments(recipe, inline)
    gone.unlink()
    assert content(after) == content(run_segments(make_recipe(folder, "straight"), inline))
    assert all(account.balanced for account in ledger(after))


def test_the_rest_is_not_worked_on_again_and_the_file_stays_out(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    calls = tmp_path / "calls"
    recipe = make_recipe(tmp_path, calls=str(calls))
    before = content(run_segments(recipe, inline))
    calls.write_text("")
    gone = tmp_path / "in" / "c-6.toy"
    forget(recipe, source=str(gone))
    after = run_segments(recipe, inline)
    gone.write_text("another version of the file")
    assert content(run_segments(recipe, inline)) == content(after)
    assert calls.read_text() == ""
    # A clip that was a duplicate of one of the file's is chosen anew.
    revived = {row["uid"] for row in content(after) if row["fate"] == "kept"} - {
        row["uid"] for row in before if row["fate"] == "kept"
    }
    assert (
        revived
        == {row["uid"] for row in before if row["fate"] == "duplicate" and row["cluster"] in _uids(before, str(gone))}
        & revived
        != set()
    )


def _uids(rows: list[dict[str, Any]], source: str) -> set[str]:
    return {row["uid"] for row in rows if row["source"] == source}


def test_rows_that_name_it_no_longer_do(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path)
    rows = content(run_segments(recipe, inline))
    named = Counter(row["cluster"] for row in rows if row["fate"] == "duplicate")
    kept = {row["uid"]: row["source"] for row in rows}
    source = kept[named.most_common(1)[0][0]]
    folder = inspect(recipe).final.folder
    outcome = forget(recipe, source=source)
    assert outcome is not None
    assert sum(outcome.record.mentions.values()) == sum(
        row["cluster"] in _uids(rows, source) and row["source"] != source for row in rows
    )
    left = [
        row for entry in storage.list_files(folder, ".parquet") for row in storage.read_table(entry.uri).to_pylist()
    ]
    assert {row["uid"] for row in left} == {row["uid"] for row in rows if row["source"] != source}
    assert all(
        row["cluster"] in {None, row["uid"]}
        for row in left
        if row["cluster"] not in {row["uid"] for row in left} or row["cluster"] is None
    )


def _odds_and_ends(out: str, recipe: Recipe) -> str:
    """What else a run leaves that names a file and its clips: exports, splits, a summary, a plan with pieces. Returns the file."""
    rows = content(inspect(recipe))
    clips = [row for row in rows if "/c-" in row["source"]]
    others = [row for row in rows if "/e-" in row["source"]]
    split = pa.table(
        {
            "uid": [row["uid"] for row in rows],
            "source_uid": [row["source_uid"] for row in rows],
            "split": ["train"] * len(rows),
        }
    )
    storage.write_table(f"{out}/splits.parquet", split)
    storage.write_bytes(
        f"{out}/ledger.json", json.dumps({"reason": f"near-duplicate of a clip of {clips[0]['source']}"}).encode()
    )
    storage.write_bytes(f"{out}/report.html", f"<p>{clips[0]['source']}".encode())
    for kind, files in (
        ("mp4", [f"{row['uid']}.mp4" for row in (*clips, *others)]),
        ("webdataset", ["train-0.tar"] * len((*clips, *others))),
    ):
        index = pa.table(
            {
                "uid": [row["uid"] for row in (*clips, *others)],
                "source": [row["source"] for row in (*clips, *others)],
                "file": files,
            }
        )
        for name in files:
            storage.write_bytes(f"{out}/export/{kind}/{name}", b"a film")
        storage.write_table(f"{out}/export/{kind}/index.parquet", index)
    storage.write_bytes(f"{out}/export/mp4/{clips[0]['uid']}.json", json.dumps({"source": clips[0]["source"]}).encode())
    storage.write_bytes(f"{out}/export/mp4/all.json", json.dumps([f"{clips[0]['uid']}.mp4"]).encode())
    for step, uid in ((500, clips[0]["uid"]), (1000, others[0]["uid"])):
        storage.write_bytes(
            f"{out}/run-0/previews/step-{step:06d}.json", json.dumps({"samples": [{"uid": uid}]}).encode()
        )
    source_uid = clips[0]["source_uid"]
    storage.write_bytes(f"{out}/tables/scan-0/{source_uid}.plan.json", b"[]")
    storage.write_bytes(f"{out}/tables/scan-0/{source_uid}~3.piece", b"D...")
    storage.write_bytes(f"{out}/tables/scan-0/0123456789abcdef0123~0.piece", b"of a version that is listed no more")
    return str(clips[0]["source"])


def test_exports_summaries_and_pieces_go_too(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path)
    run_segments(recipe, inline)
    source = _odds_and_ends(recipe.out_uri, recipe)
    uids = _uids(content(inspect(recipe)), source)
    run = Path(recipe.out_uri) / "run.yaml"
    run.write_text(f"name: earlier\nsources:\n  - videos: {source}\n")
    forget(recipe, source=source)
    assert run.read_text() == resolved(recipe)
    assert raw_files_naming(recipe.out_uri, source, *uids) == []
    names = set(files_of(recipe.out_uri))
    assert not {
        name
        for name in names
        if name.endswith((".piece", ".plan.json", "ledger.json", "report.html", ".tar", "all.json"))
    }
    assert {name for name in names if "/previews/" in name} == {"run-0/previews/step-001000.json"}
    assert "export/webdataset/index.parquet" not in names, "its only file had clips of both"
    left = pq.read_table(f"{recipe.out_uri}/export/mp4/index.parquet")
    assert (
        {name for name in names if name.endswith(".mp4")}
        == {f"export/mp4/{file}" for file in left["file"].to_pylist()}
        != set()
    )


def _stable(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files without the records, whose moments differ."""
    return {name: data for name, data in files.items() if not name.startswith(exclusions.FOLDER)}


@pytest.mark.slow
def test_killed_at_any_file_operation_it_can_be_finished(tmp_path: Path) -> None:
    make_sources(tmp_path, ["c-2", "e-2"])
    recipe = make_recipe(tmp_path)
    run_segments(recipe, inline)
    source = _odds_and_ends(recipe.out_uri, recipe)
    whole = tmp_path / "whole"
    shutil.copytree(recipe.out_uri, whole)
    with pytest.MonkeyPatch.context() as patch:
        killer = Killer(patch)
        forget(recipe, source=source)
    straight, record = _stable(files_of(recipe.out_uri)), exclusions.read_records(recipe.out_uri)[0]
    assert killer.kill_points > 40
    for at in range(killer.kill_points):
        shutil.rmtree(recipe.out_uri)
        shutil.copytree(whole, recipe.out_uri)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            with pytest.raises(Killed):
                forget(recipe, source=source)
        if exclusions.unfinished(recipe.out_uri):
            with pytest.raises(ConfigError, match="cut short"):
                check_no_unfinished_removal(recipe.out_uri)
            forget(recipe)
        else:
            # Killed before it was written down, or after all was done.
            forget(recipe, source=source)
        assert _stable(files_of(recipe.out_uri)) == straight, at
        again = exclusions.read_records(recipe.out_uri)[0]
        assert (again.id, again.state, again.rows, again.proof, again.dataset_digest) == (
            record.id,
            "done",
            record.rows,
            record.proof,
            record.dataset_digest,
        ), at
        assert not exclusions.unfinished(recipe.out_uri)


def test_a_part_loses_rows_at_once_or_not_at_all(tmp_path: Path) -> None:
    folder = str(tmp_path / "table")
    rows = pa.table({"uid": [f"u{i}" for i in range(6)], "fate": ["kept"] * 6, "size": list(range(6))})
    parts = [tables.write_part(folder, rows.slice(start, 3), {"label": "x"}) for start in (0, 3)]
    gone = pa.array(["u1", "u3", "u4", "u5"])
    for at in (*range(4), None):
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            for part in parts:
                with contextlib.suppress(Killed):
                    tables.remove_rows(part, gone) if storage.exists(part) else None
                seen = tables.index_table(folder).uids.to_pylist()
                assert len(seen) == len(set(seen))
                assert {"u0", "u2"} <= set(seen)
    assert tables.index_table(folder).uids.to_pylist() == ["u0", "u2"]
    assert tables.read_metadata(parts[0]) == {"label": "x"}
    straight = tables.write_part(
        str(tmp_path / "other"), rows.filter(pc.is_in(rows["uid"], pa.array(["u0", "u2"]))), {"label": "x"}
    )
    assert Path(parts[0]).read_bytes() == Path(straight).read_bytes()


AUTOENCODER = Linear()
BUCKET = Bucket(32, 16, 9, 8.0)


def latent_rows(count: int) -> list[LatentRow]:
    chance = torch.Generator().manual_seed(0)
    channels, t, h, w = ShardInfo.of(AUTOENCODER, AUTOENCODER.open(), BUCKET, "f").latent_shape
    return [
        LatentRow(
            uid=f"{number:020x}",
            latent=torch.randn(channels, t, h, w, generator=chance).to(torch.bfloat16),
            last_frame_latent=torch.randn(channels, 1, h, w, generator=chance).to(torch.bfloat16),
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


@settings(max_examples=15)
@given(left=st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_shard_without_rows_is_the_shard_written_without_them(
    tmp_path_factory: pytest.TempPathFactory, left: list[bool]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rows, info = latent_rows(len(left)), ShardInfo.of(AUTOENCODER, AUTOENCODER.open(), BUCKET, "f")
    with pytest.MonkeyPatch.context() as patch:
        # Several row groups, so that rows move from one to another.
        patch.setattr(shards, "ROW_GROUP_BYTES", 40_000)
        write_shard(str(folder / "all.parquet"), rows, info)
        gone = {row.uid for row, stays in zip(rows, left, strict=True) if not stays}
        before = (folder / "all.parquet").read_bytes()
        assert shards.remove_rows(str(folder / "all.parquet"), gone) == len(gone)
        if not any(left):
            assert not (folder / "all.parquet").exists()
            return
        write_shard(str(folder / "left.parquet"), [row for row in rows if row.uid not in gone], info)
        assert (folder / "all.parquet").read_bytes() == (folder / "left.parquet").read_bytes()
        assert gone or before == (folder / "all.parquet").read_bytes()


def test_a_text_table_without_keys_is_the_one_written_without_them(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    embeddings = {f"k{i}": TextEmbedding(chance.standard_normal((1 + i % 3, 8)).astype(np.float32)) for i in range(7)}
    text_tables.write_text_table(str(tmp_path / "all.parquet"), embeddings, "me")
    assert text_tables.remove_keys(str(tmp_path / "all.parquet"), {"k0", "k5", "k9"}) == 2
    text_tables.write_text_table(
        str(tmp_path / "left.parquet"),
        {key: value for key, value in embeddings.items() if key not in {"k0", "k5"}},
        "me",
    )
    assert (tmp_path / "all.parquet").read_bytes() == (tmp_path / "left.parquet").read_bytes()
    assert text_tables.remove_keys(str(tmp_path / "all.parquet"), set(embeddings)) == 5
    assert not (tmp_path / "all.parquet").exists()


def test_what_cannot_be_removed_is_told_and_the_request_stays_open(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path)
    run_segments(recipe, inline)
    notes = Path(recipe.out_uri) / "notes.txt"
    source = str(tmp_path / "in" / "a-3.toy")
    notes.write_text(f"look at {source}!")
    with pytest.raises(RuntimeError, match=r"notes\.txt: its content"):
        forget(recipe, source=source)
    assert exclusions.read_records(recipe.out_uri)[0].state == "begun"
    with pytest.raises(ConfigError, match="cut short"):
        run.run_recipe(recipe, "curate", in_process=True)
    notes.unlink()
    outcome = forget(recipe)
    assert outcome is not None
    assert outcome.record.state == "done"
    text = (Path(recipe.out_uri) / exclusions.FOLDER / f"{outcome.record.id}.json").read_text()
    assert source not in text
    assert "a-3" not in text


def test_bad_requests_are_refused_with_the_fix(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path)
    with pytest.raises(ConfigError, match="give --source"):
        forget(recipe)
    with pytest.raises(ConfigError, match="is no source of this recipe"):
        forget(recipe, source=str(tmp_path / "other.toy"))
    with pytest.raises(ConfigError, match="is of no source and no clip"):
        forget(recipe, uid="0123456789abcdef0123")
    named = recipe.model_copy(
        update={"sources": (*recipe.sources, SourceSettings(videos=str(tmp_path / "in" / "a-3.toy")))}
    )
    with pytest.raises(ConfigError, match="the recipe itself names"):
        forget(named, source=str(tmp_path / "in" / "a-3.toy"))
    assert forget(recipe, source=str(tmp_path / "in" / "a-3.toy"), agree=lambda work: False) is None
    assert not (tmp_path / "out").exists() or not exclusions.read_records(recipe.out_uri)


def test_a_damaged_record_stops_a_run_rather_than_letting_the_file_in(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path)
    outcome = forget(recipe, source=str(tmp_path / "in" / "a-3.toy"))
    assert outcome is not None
    Path(exclusions.record_uri(recipe.out_uri, outcome.record.id)).write_text("{}")
    with pytest.raises(ConfigError, match="put it back"):
        inspect(recipe)


def test_a_file_done_in_pieces_leaves_none(tmp_path: Path) -> None:
    make_sources(tmp_path, ["a-3", "b-2"])
    calls = tmp_path / "calls"
    calls.touch()
    steps = (LongMeasure(calls=str(calls), stop_at=3), Split())
    recipe = make_recipe(tmp_path).model_copy(update={"curate": steps})
    with pytest.raises(RuntimeError, match="the disk is full"):
        run_segments(recipe, inline)
    assert any(name.endswith(".piece") for name in files_of(recipe.out_uri))
    source = str(tmp_path / "in" / "a-3.toy")
    outcome = forget(recipe, source=source)
    assert outcome is not None
    assert outcome.record.files >= 1
    calls.write_text("")
    rest = run_segments(recipe.model_copy(update={"curate": (LongMeasure(calls=str(calls)), Split())}), inline)
    assert {Path(row["source"]).stem for row in content(rest)} == {"b-2"}


def test_a_span_stays_out_whatever_clips_it_is_cut_into() -> None:
    row = {"source": "/in/a.mp4", "uid": "s", "time_base_num": 1, "time_base_den": 30}
    clips = [{"uid": f"c{i}", "start_pts": 30 * i, "end_pts": 30 * i + 30} for i in range(4)]
    span = Span(Fraction(1), Fraction(2))
    forgotten = Exclusions(spans={exclusions.uri_digest("/in/a.mp4"): (span,)})
    left = forgotten.filter_clips(row, clips)
    assert isinstance(left, list)
    assert [clip["uid"] for clip in left] == ["c0", "c2", "c3"]
    assert forgotten.filter_clips({**row, "source": "/in/b.mp4"}, clips) == clips
    longer = [{"uid": "long", "start_pts": 0, "end_pts": 31}]
    assert getattr(forgotten.filter_clips(row, longer), "reason", None) == exclusions.REASON
    assert pickle.loads(pickle.dumps(forgotten)) == forgotten, "it travels to workers"


# Real footage, drawn: scan, cut, dedup, captions, latents, training.

QUICKSTART = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
TRAINING = (
    "train.model={name: dit, depth: 1, dim: 32, heads: 2}",
    "train.warmup_steps=2",
    "train.decay_steps=0",
    "train.checkpoint_every=2",
    "train.validate_every=0",
    "train.batch.tokens_per_step=4096",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Footage, and an `out` curated from it and trained on for 4 steps."""
    folder = tmp_path_factory.mktemp("drawn")
    make_footage(folder / "in", videos=6, seed=0)
    recipe = drawn_recipe(folder / "in", folder / "out", "train.steps=4")
    assert run.run_recipe(recipe, in_process=True).training is not None
    return folder / "in", folder / "out"


def drawn_recipe(footage: Path, out: Path, *changes: str) -> Recipe:
    videos, images = (
        f"{{videos: '{footage}/*.mp4', captions: sidecar}}",
        f"{{images: '{footage}/*.{{png,jpg}}', captions: sidecar}}",
    )
    return load_recipe(
        QUICKSTART,
        [
            f"out={out}",
            f"sources=[{videos}, {images}]",
            "sample=[]",
            "curate.dedup={method: near}",
            *TRAINING,
            *changes,
        ],
    )


def moved(trained: tuple[Path, Path], to: Path) -> tuple[Path, Path]:
    shutil.copytree(trained[1], to / "out")
    return trained[0], to / "out"


def manifests_of(out: Path) -> list[str]:
    return [entry.uri for entry in storage.list_files(str(out / "tables"), "_manifest.parquet")]


@pytest.mark.slow
def test_training_goes_on_without_the_file(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    footage, out = moved(trained, tmp_path)
    recipe = drawn_recipe(footage, out, "train.steps=6")
    source = str(footage / "clip_000.mp4")  # clip_004 is a copy of it
    final = inspect(recipe).final.rows.read(["uid", "source", "source_uid", "fate"]).to_pylist()
    uids = {row[name] for row in final if row["source"] == source for name in ("uid", "source_uid")}
    (run,) = out.glob("run-*")
    outcome = forget(recipe, source=source)
    assert outcome is not None
    assert raw_files_naming(str(out), source, *uids) == []
    assert [(run_.folder, run_.trained_on_it) for run_ in outcome.record.runs] == [(run.name, True)]
    assert outcome.proof.shared > 0, "its copy has the same pictures, and stays"
    assert [problem for uri in manifests_of(out) for problem in verify(uri)] == []
    opened = tmp_path / "opens"
    opened.touch()
    monkeypatch.setenv(OPEN_LOG, str(opened))
    after = run.run_recipe(recipe, in_process=True)
    assert {Path(line).name for line in opened.read_text().split()} <= {"clip_004.mp4"}, (
        "only the copy, which was dropped before, is encoded"
    )
    rows = after.curation.final.rows.read(["uid", "source", "fate"]).to_pylist() if after.curation else []
    assert Counter(row["fate"] for row in rows if row["source"].endswith("clip_004.mp4"))["kept"] > 0
    assert not run.exists()
    assert after.training is not None
    assert (after.training.steps, len(after.training.losses)) == (6, 6)
    assert raw_files_naming(str(out), source, *uids) == []
    assert run.run_recipe(recipe, in_process=True).training == after.training


@pytest.mark.slow
def test_training_starts_over_where_more_has_changed_than_was_forgotten(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    footage, out = moved(trained, tmp_path)
    recipe = drawn_recipe(footage, out, "train.steps=2")
    forget(recipe, source=str(footage / "clip_000.mp4"))
    (run,) = out.glob("run-*")
    after = run.run_recipe(drawn_recipe(footage, out, "train.steps=2", "curate.keep.luma.max=0.96"), in_process=True)
    assert after.training is not None
    assert run.exists()
    assert run.name not in after.training.export_uri


@pytest.mark.slow
def test_one_clip_goes_with_its_span_and_the_others_stay(trained: tuple[Path, Path], tmp_path: Path) -> None:
    footage, out = moved(trained, tmp_path)
    recipe = drawn_recipe(footage, out, "train=null")
    before = (
        inspect(recipe).final.rows.read(["uid", "source", "clip_index", "start_pts", "end_pts", "fate"]).to_pylist()
    )
    clip = next(row for row in before if row["fate"] == "kept" and row["source"].endswith("clip_001.mp4"))
    outcome = forget(recipe, uid=clip["uid"])
    assert outcome is not None
    assert raw_files_naming(str(out), clip["uid"]) == []
    assert [problem for uri in manifests_of(out) for problem in verify(uri)] == []
    after = run.run_recipe(recipe, in_process=True)
    assert after.curation is not None
    assert all(account.balanced for account in after.accounts)
    left = after.curation.final.rows.read(["uid", "source", "start_pts", "end_pts"]).to_pylist()
    assert {row["uid"] for row in left} == {row["uid"] for row in before} - {clip["uid"]}
    # Shorter clips of the same file: none shows any of the span.
    shorter = run.run_recipe(
        drawn_recipe(footage, out, "train=null", "curate.cut={min_s: 0.4, max_s: 0.9}"), in_process=True
    )
    assert shorter.curation is not None
    cut = [
        row
        for row in shorter.curation.final.rows.read(["uid", "source", "start_pts", "end_pts"]).to_pylist()
        if row["source"] == clip["source"]
    ]
    assert len(cut) > 2
    assert not [row for row in cut if row["start_pts"] < clip["end_pts"] and clip["start_pts"] < row["end_pts"]]
    scanned = [
        row
        for row in shorter.curation.segments[0].rows.read(["uid", "source", "shots"]).to_pylist()
        if row["source"] == clip["source"]
    ]
    shown = [shot for row in scanned for shot in row["shots"] if shot["thumbnails"]]
    assert shown
    assert not [shot for shot in shown if shot["start_pts"] < clip["end_pts"] and clip["start_pts"] < shot["end_pts"]]


@pytest.mark.slow
def test_killed_while_shards_and_manifests_are_rewritten_it_can_be_finished(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    footage, out = moved(trained, tmp_path)
    recipe = drawn_recipe(footage, out)
    source = str(footage / "clip_002.mp4")
    with pytest.MonkeyPatch.context() as patch:
        killer = Killer(patch)
        forget(recipe, source=source)
    straight = _stable(files_of(out))
    moments = random.Random(0).sample(range(killer.kill_points), 5)
    for at in moments:
        shutil.rmtree(out)
        moved(trained, tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            with pytest.raises(Killed):
                forget(recipe, source=source)
        forget(recipe, source=source)
        assert _stable(files_of(out)) == straight, at
