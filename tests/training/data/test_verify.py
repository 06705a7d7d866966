"""Tests of `verify`: each kind of damage to a data set is one problem, named by file, row and uid."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.stored import CLIPS, STILLS, bytes_of, flip_bit, latent_row, shard_file, shard_info, write_dataset
from training.data import footer
from training.data.manifest import read_manifest
from training.data.manifest_writer import write_manifest
from training.data.shard_writer import write_shard
from training.data.verify import Problem, verify

CLIPS_FILE, STILLS_FILE = shard_file(CLIPS), shard_file(STILLS)


@pytest.fixture
def manifest_uri(tmp_path: Path) -> str:
    return write_dataset(tmp_path, {CLIPS: 6, STILLS: 5})


def test_an_intact_data_set_has_no_problems(manifest_uri: str) -> None:
    assert verify(manifest_uri) == []
    assert verify(manifest_uri, n_decoded=0) == []


@pytest.mark.parametrize("part", ["latent", "last_frame_latent"])
def test_a_flipped_bit_is_reported_with_file_row_and_uid(manifest_uri: str, tmp_path: Path, part: str) -> None:
    row = latent_row(CLIPS, 3)
    flip_bit(tmp_path / CLIPS_FILE, (tmp_path / CLIPS_FILE).read_bytes().index(bytes_of(getattr(row, part))) + 7)
    (problem,) = verify(manifest_uri)
    assert (problem.file, problem.row_group, problem.row, problem.uid) == (CLIPS_FILE, 0, 3, row.uid)
    assert "the bytes have changed" in str(problem)
    assert str(problem).startswith(f"{CLIPS_FILE}: row 3 of row group 0, sample {row.uid}: ")


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_foreign(path: Path) -> None:
    pq.write_table(pa.table({"uid": ["a"]}), path)


def damage_version(path: Path) -> None:
    table = pq.read_table(path)
    description = json.loads(table.schema.metadata[footer.METADATA_KEY]) | {"version": 99}
    pq.write_table(table.replace_schema_metadata({footer.METADATA_KEY: json.dumps(description)}), path)


DAMAGE = {
    damage_missing: "cannot be opened",
    damage_truncated: "cannot be opened",
    damage_empty: "cannot be opened",
    damage_foreign: "no description by worldloom",
    damage_version: "format version 99, and this program reads version 1",
}


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "message"), DAMAGE.items())
@pytest.mark.parametrize("file", [CLIPS_FILE, STILLS_FILE])
def test_a_damaged_shard_hides_no_other_problem(
    manifest_uri: str, tmp_path: Path, damage: Callable[[Path], None], message: str, file: str
) -> None:
    damage(tmp_path / file)
    other = STILLS if file == CLIPS_FILE else CLIPS
    other_file = STILLS_FILE if file == CLIPS_FILE else CLIPS_FILE
    flip_bit(tmp_path / other_file, (tmp_path / other_file).read_bytes().index(bytes_of(latent_row(other, 1).latent)))
    first, second = sorted(verify(manifest_uri), key=lambda problem: problem.file != file)
    assert (first.file, first.uid) == (file, None)
    assert message in first.message
    assert "samples are lost" in first.message
    assert (second.file, second.uid) == (other_file, latent_row(other, 1).uid)


@pytest.mark.parametrize(("damage", "message"), DAMAGE.items())
def test_a_damaged_manifest_is_reported(manifest_uri: str, damage: Callable[[Path], None], message: str) -> None:
    damage(Path(manifest_uri))
    (problem,) = verify(manifest_uri)
    assert problem.file == manifest_uri
    assert message.replace("opened", "read") in problem.message


def test_a_damaged_or_missing_text_table_is_reported(manifest_uri: str, tmp_path: Path) -> None:
    path = tmp_path / "texts/part-0.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-50])
    (problem,) = verify(manifest_uri)
    assert "texts/part-0.parquet: cannot be opened" in problem.message
    path.unlink()
    problems = verify(manifest_uri)
    assert any("holds embeddings by None" in problem.message for problem in problems)
    assert sum("no embedding of text" in problem.message for problem in problems) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("uid", "zz-new", "uid is 32x16x9-0005 in the shard and zz-new in the manifest"),
        ("checksum", 7, "checksum is"),
        ("n_tokens", 99, "n_tokens is 24 in the shard and 99 in the manifest"),
        ("fps", 9.5, "fps is 8.0 in the shard and 9.5 in the manifest"),
        ("bucket", "64x64x9", "bucket is 32x16x9 in the shard and 64x64x9 in the manifest"),
        ("row", 41, "the shard has no such row"),
        ("row_group", 3, "the shard has no such row"),
        ("n_text", 77, "tokens, and the manifest says 77"),
    ],
)
def test_a_manifest_that_differs_from_its_shards_is_reported(
    manifest_uri: str, column: str, value: object, message: str
) -> None:
    table, info = read_manifest(manifest_uri)
    last = len(table) - 1
    values = table[column].to_pylist()
    values[last] = value
    changed = table.set_column(
        table.column_names.index(column), column, pa.array(values, table.schema.field(column).type)
    )
    write_manifest(manifest_uri, changed, info)
    (problem,) = verify(manifest_uri)
    assert message in problem.message


def test_a_second_autoencoder_is_reported(manifest_uri: str, tmp_path: Path) -> None:
    other = replace(shard_info(STILLS), autoencoder_identity="causal-1")
    write_shard(str(tmp_path / STILLS_FILE), [latent_row(STILLS, number) for number in range(5)], other)
    (problem,) = verify(manifest_uri)
    assert problem.file == STILLS_FILE
    assert "autoencoder_identity is causal-1, and the manifest's linear16-" in problem.message


def test_latents_that_are_not_finite_are_reported(
    manifest_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [latent_row(STILLS, number) for number in range(5)]
    rows[2].latent[3, 0, 1, 1] = torch.inf
    with monkeypatch.context() as patch:
        patch.setattr(torch, "isfinite", lambda tensor: torch.ones_like(tensor, dtype=torch.bool))
        write_shard(str(tmp_path / STILLS_FILE), rows, shard_info(STILLS))
    checksum = pq.read_table(tmp_path / STILLS_FILE, columns=["checksum"])["checksum"].to_pylist()[2]
    table, info = read_manifest(manifest_uri)
    index = table["uid"].to_pylist().index(rows[2].uid)
    checksums = table["checksum"].to_pylist()
    checksums[index] = checksum
    write_manifest(
        manifest_uri, table.set_column(table.column_names.index("checksum"), "checksum", pa.array(checksums)), info
    )
    (problem,) = verify(manifest_uri)
    assert (problem.uid, problem.message) == (rows[2].uid, "its latents hold a value that is not finite")


def test_a_latent_that_decodes_to_another_image_is_reported(tmp_path: Path) -> None:
    """Latents have the opposite sign, so shapes and checksums are right and images are not."""
    manifest_uri = write_dataset(tmp_path, {CLIPS: 3})
    rows = [latent_row(CLIPS, number) for number in range(3)]
    rows = [replace(row, latent=-row.latent) for row in rows]
    write_shard(str(tmp_path / CLIPS_FILE), rows, shard_info(CLIPS))
    table, info = read_manifest(manifest_uri)
    checksums = pq.read_table(tmp_path / CLIPS_FILE, columns=["checksum"])["checksum"]
    write_manifest(manifest_uri, table.set_column(table.column_names.index("checksum"), "checksum", checksums), info)
    problems = verify(manifest_uri, n_decoded=2)
    assert len(problems) == 2
    assert all("decoded last frame" in problem.message for problem in problems)


def test_latents_of_other_weights_are_not_decoded(tmp_path: Path) -> None:
    manifest_uri = write_dataset(tmp_path, {CLIPS: 2})
    table, info = read_manifest(manifest_uri)
    write_manifest(manifest_uri, table, replace(info, autoencoder_identity="linear16-older"))
    older = replace(shard_info(CLIPS), autoencoder_identity="linear16-older")
    write_shard(str(tmp_path / CLIPS_FILE), [latent_row(CLIPS, number) for number in range(2)], older)
    (problem,) = verify(manifest_uri)
    assert "its latents are by linear16-older; here 'linear' is linear16-" in problem.message


def test_a_problem_names_its_file() -> None:
    assert str(Problem("a.parquet", "is gone")) == "a.parquet: is gone"
