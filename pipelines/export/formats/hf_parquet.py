"""hf-parquet: Parquet files with the videos inside, as `datasets.load_dataset(folder)` and the Hugging Face hub read
them.

`data/<split>-00000-of-000NN.parquet` has a column `video` (stored as `datasets.Video` stores it: bytes and path), the
caption, and every plain column of the curated table. README.md is the data set card; its header has the splits and the
columns' types.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from cluster import storage
from pipelines.export.format import ShardedFormat, clip_suffix, uid_of
from pipelines.export.index import without_cut_prefix

VIDEO = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

SPLIT_NAMES = {"val": "validation"}
"""Names of splits that differ on the hub."""

ROW_GROUP_BYTES = 64 << 20
"""Bytes of videos at which a row group ends; a reader holds one row group in memory."""

DTYPE_NAMES = {"double": "float64", "float": "float32", "halffloat": "float16", "large_string": "string"}
"""Names of types in `datasets`, by Arrow's name where the two differ."""

LEADING_COLUMNS = (
    "uid",
    "caption",
    "duration_s",
    "n_frames",
    "fps",
    "width",
    "height",
    "source",
    "start_pts",
    "end_pts",
)
"""Columns that come first, since readers look for them."""

CARD = "README.md"


class HfParquet(ShardedFormat):
    """A format of Parquet files with the videos inside, and a data set card; without images."""

    name: str = "hf_parquet"
    kinds: ClassVar[tuple[str, ...]] = ("video",)

    def shard_file(self, split: str, number: int, count: int) -> str:
        return f"data/{SPLIT_NAMES.get(split, split)}-{number:05d}-of-{count:05d}.parquet"

    def write_shard(self, uri: str, clips: pa.Table, contents: Iterator[bytes]) -> None:
        columns = without_cut_prefix(clips).drop_columns(["split"])
        leading = [name for name in LEADING_COLUMNS if name in columns.column_names]
        columns = columns.select([*leading, *(name for name in columns.column_names if name not in leading)])
        fields = [pa.field(field.name, field.type) for field in columns.schema]
        schema = _with_features(pa.schema([pa.field("video", VIDEO), *fields]))
        with storage.atomic_output(uri) as handle, pq.ParquetWriter(handle, schema, compression="NONE") as writer:
            start, videos = 0, []
            for number, (clip, content) in enumerate(zip(clips.to_pylist(), contents, strict=True)):
                videos.append({"bytes": content, "path": f"{clip['uid']}{clip_suffix(clip)}"})
                if sum(len(video["bytes"]) for video in videos) >= ROW_GROUP_BYTES or number + 1 == len(clips):
                    rows = columns.slice(start, len(videos)).add_column(
                        0, schema.field("video"), pa.array(videos, VIDEO)
                    )
                    writer.write_table(rows.cast(schema))
                    start, videos = number + 1, []

    def read_shard(self, uri: str) -> Iterator[tuple[str, bytes]]:
        with storage.open_input(uri) as handle:
            file = pq.ParquetFile(handle)
            for group in range(file.num_row_groups):
                for video in file.read_row_group(group, ["video"])["video"].to_pylist():
                    yield uid_of(video["path"]), video["bytes"]

    def write_metadata(self, folder: str, index: pa.Table) -> None:
        exported = index.filter(pc.is_valid(index["file"]))
        if not len(exported):
            storage.remove(storage.join(folder, CARD))
            return
        files = sorted(set(exported["file"].to_pylist()))
        sizes = {
            entry.uri.removeprefix(folder.rstrip("/") + "/"): entry.size_bytes
            for entry in storage.list_files(folder, ".parquet")
        }
        splits, paths = [], []
        for split in sorted(set(exported["split"].to_pylist())):
            rows = exported.filter(pc.equal(exported["split"], split))
            name = SPLIT_NAMES.get(split, split)
            n_bytes = sum(sizes[file] for file in set(rows["file"].to_pylist()))
            splits.append({"name": name, "num_bytes": n_bytes, "num_examples": len(rows)})
            paths.append({"split": name, "path": f"data/{name}-*"})
        size = sum(sizes[file] for file in files)
        features = [_card_feature(field) for field in storage.read_schema(storage.join(folder, files[0]))]
        header = {
            "configs": [{"config_name": "default", "data_files": paths}],
            "dataset_info": {"features": features, "splits": splits, "download_size": size, "dataset_size": size},
            "task_categories": ["text-to-video"],
        }
        frames_and_fps = zip(exported["n_frames"].to_pylist(), exported["fps"].to_pylist(), strict=True)
        hours = sum(n_frames / fps for n_frames, fps in frames_and_fps if fps) / 3600
        origin = "Sources and spans are in `source`, `start_pts` and `end_pts`."
        card = (
            f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n"
            f"Clips: {len(exported)}, {hours:.2f} hours. {origin}\n"
        )
        storage.write_bytes(storage.join(folder, CARD), card.encode())


def _with_features(schema: pa.Schema) -> pa.Schema:
    """Return the schema with the metadata that `datasets` writes, so that it reads a single file's video column."""
    features: dict[str, Any] = {}
    for field in schema:
        if field.name == "video":
            features[field.name] = {"_type": "Video"}
        elif pa.types.is_list(field.type):
            features[field.name] = {
                "feature": {"dtype": _dtype(field.type.value_type), "_type": "Value"},
                "_type": "Sequence",
            }
        else:
            features[field.name] = {"dtype": _dtype(field.type), "_type": "Value"}
    return schema.with_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})


def _card_feature(field: pa.Field) -> dict[str, Any]:
    if field.name == "video":
        return {"name": field.name, "dtype": "video"}
    if pa.types.is_list(field.type):
        return {"name": field.name, "sequence": _dtype(field.type.value_type)}
    return {"name": field.name, "dtype": _dtype(field.type)}


def _dtype(kind: pa.DataType) -> str:
    return DTYPE_NAMES.get(str(kind), str(kind))
