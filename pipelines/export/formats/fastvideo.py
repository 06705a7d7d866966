"""fastvideo: the input of the preprocessing of hao-ai-lab/FastVideo with `dataset_type: merged`: videos and captions.

Each split is a data set in a folder of its own: pass `<folder>/train` as `dataset_path`. It has `videos/`,
`videos2caption.json`, and `merge.txt`, which names the two. An entry has the fields that FastVideo's validators and its
older loader read: fastvideo/workflow/preprocess/components.py and fastvideo/dataset/preprocessing_datasets.py.
"""

from __future__ import annotations

import json
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from pipelines.export.format import Clip, Format, clip_suffix

VIDEOS = "videos"
CAPTIONS = "videos2caption.json"
MERGE = "merge.txt"


class FastVideo(Format):
    """A format with a folder of videos per split and a JSON list of captions, frame rates and sizes; without images."""

    name: str = "fastvideo"
    kinds: ClassVar[tuple[str, ...]] = ("video",)

    def clip_file(self, clip: Clip) -> str:
        return f"{clip['split']}/{VIDEOS}/{clip['uid']}{clip_suffix(clip)}"

    def write_metadata(self, folder: str, index: pa.Table) -> None:
        exported = index.filter(pc.is_valid(index["file"]))
        splits = sorted(set(exported["split"].to_pylist()))
        for split in splits:
            rows = exported.filter(pc.equal(exported["split"], split)).sort_by("uid").to_pylist()
            entries = [
                {
                    "path": f"{row['uid']}{clip_suffix(row)}",
                    "cap": row["caption"] or "",
                    "resolution": {"width": row["width"], "height": row["height"]},
                    "fps": row["fps"],
                    "duration": row["n_frames"] / row["fps"] if row["fps"] else None,
                    "num_frames": row["n_frames"],
                    "size": row["size_bytes"],
                }
                for row in rows
            ]
            captions = json.dumps(entries, ensure_ascii=False, indent=1) + "\n"
            storage.write_bytes(storage.join(folder, split, CAPTIONS), captions.encode())
            storage.write_bytes(storage.join(folder, split, MERGE), f"{VIDEOS},{CAPTIONS}\n".encode())
        for entry in storage.list_files(folder, CAPTIONS):
            split_folder = entry.uri.removesuffix("/" + CAPTIONS)
            if split_folder.rpartition("/")[2] not in splits:
                storage.remove(split_folder)
