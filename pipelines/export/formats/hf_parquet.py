"""hf-parquet: a data set as `datasets.load_dataset(folder)` and the Hugging Face hub read it: Parquet with the videos inside.

`data/<split>-00000-of-000NN.parquet` with a column `video` (the storage of `datasets.Video`: bytes and path), the caption and every
plain column of the curated table; and README.md, the data set's card, whose header names the splits and the columns' types.
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
from pipelines.export.format import Sharded, stem, suffix
from pipelines.export.index import named_as_in_index

VIDEO = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

SPLIT_NAMES = {"val": "validation"}
"""Names that the hub and its users expect."""

ROW_GROUP_BYTES = 64 << 20
"""Videos of a row group together: what a reader holds in memory at a time."""

DTYPES = {"double": "float64", "float": "float32", "halffloat": "float16", "large_string": "string"}
"""Arrow's names of types where those of `datasets` differ."""

FIRST = ("uid", "caption", "duration_s", "n_frames", "fps", "width", "height", "source", "start_pts", "end_pts")
"""Columns that people look at first."""

CARD = "README.md"


class HfParquet(Sharded):
    """Parquet files with the videos inside, and a data set card. Images are left out."""

    name: str = "hf_parquet"
    kinds: ClassVar[tuple[str, ...]] = ("video",)

    def shard_file(self, split: str, number: int, count: int) -> str:
        return f"data/{SPLIT_NAMES.get(split, split)}-{number:05d}-of-{count:05d}.parquet"

    def write_shard(self, uri: str, clips: pa.Table, contents: Iterator[bytes]) -> None:
        columns = named_as_in_index(clips).drop_columns(["split"])
        columns = columns.select(
            [name for name in FIRST if name in columns.column_names]
            + [n for n in columns.column_names if n not in FIRST]
        )
        schema = _with_features(
            pa.schema([pa.field("video", VIDEO), *(pa.field(field.name, field.type) for field in columns.schema)])
        )
        with storage.atomic_output(uri) as handle, pq.ParquetWriter(handle, schema, compression="NONE") as writer:
            start, videos = 0, []
            for number, (clip, content) in enumerate(zip(clips.to_pylist(), contents, strict=True)):
                videos.append({"bytes": content, "path": f"{clip['uid']}{suffix(clip)}"})
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
                    yield stem(video["path"]), video["bytes"]

    def finish(self, folder: str, index: pa.Table) -> None:
        there = index.filter(pc.is_valid(index["file"]))
        if not len(there):
            storage.remove(storage.join(folder, CARD))
            return
        files = sorted(set(there["file"].to_pylist()))
        sizes = {
            entry.uri.removeprefix(folder.rstrip("/") + "/"): entry.size_bytes
            for entry in storage.list_files(folder, ".parquet")
        }
        splits, paths = [], []
        for split in sorted(set(there["split"].to_pylist())):
            rows = there.filter(pc.equal(there["split"], split))
            name = SPLIT_NAMES.get(split, split)
            n_bytes = sum(sizes[file] for file in set(rows["file"].to_pylist()))
            splits.append({"name": name, "num_bytes": n_bytes, "num_examples": len(rows)})
            paths.append({"split": name, "path": f"data/{name}-*"})
        size = sum(sizes[file] for file in files)
        features = [_card_feature(field) for field in storage.read_schema(storage.join(folder, files[0]))]
        head = {
            "configs": [{"config_name": "default", "data_files": paths}],
            "dataset_info": {"features": features, "splits": splits, "download_size": size, "dataset_size": size},
            "task_categories": ["text-to-video"],
        }
        hours = (
            sum(n / fps for n, fps in zip(there["n_frames"].to_pylist(), there["fps"].to_pylist(), strict=True) if fps)
            / 3600
        )
        text = (
            f"Clips: {len(there)}, {hours:.2f} hours. Sources and spans are in `source`, `start_pts` and `end_pts`.\n"
        )
        storage.write_bytes(
            storage.join(folder, CARD), f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{text}".encode()
        )


def _with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with the note that `datasets` leaves in the files it writes, so that a file alone is read with its video column."""
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
    return DTYPES.get(str(kind), str(kind))
