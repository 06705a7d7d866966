"""fastvideo: what the preprocessing of hao-ai-lab/FastVideo reads with `dataset_type: merged`: videos and a list of captions.

A folder a split, each a dataset of its own: give `<folder>/train` as `dataset_path`. In it `videos/`, `videos2caption.json` and
`merge.txt`, which names the two. The fields of an entry are those that FastVideo's validators and its older loader read:
fastvideo/workflow/preprocess/components.py and fastvideo/dataset/preprocessing_datasets.py.
"""

from __future__ import annotations

import json
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from pipelines.export.format import Clip, Format, suffix

VIDEOS = "videos"
CAPTIONS = "videos2caption.json"
MERGE = "merge.txt"


class FastVideo(Format):
    """Videos in a folder a split, with a JSON list of their captions, rates and sizes. Images are left out."""

    name: str = "fastvideo"
    kinds: ClassVar[tuple[str, ...]] = ("video",)

    def clip_file(self, clip: Clip) -> str:
        return f"{clip['split']}/{VIDEOS}/{clip['uid']}{suffix(clip)}"

    def finish(self, folder: str, index: pa.Table) -> None:
        there = index.filter(pc.is_valid(index["file"]))
        splits = sorted(set(there["split"].to_pylist()))
        for split in splits:
            rows = there.filter(pc.equal(there["split"], split)).sort_by("uid").to_pylist()
            entries = [
                {
                    "path": f"{row['uid']}{suffix(row)}",
                    "cap": row["caption"] or "",
                    "resolution": {"width": row["width"], "height": row["height"]},
                    "fps": row["fps"],
                    "duration": row["n_frames"] / row["fps"] if row["fps"] else None,
                    "num_frames": row["n_frames"],
                    "size": row["size_bytes"],
                }
                for row in rows
            ]
            storage.write_bytes(
                storage.join(folder, split, CAPTIONS),
                (json.dumps(entries, ensure_ascii=False, indent=1) + "\n").encode(),
            )
            storage.write_bytes(storage.join(folder, split, MERGE), f"{VIDEOS},{CAPTIONS}\n".encode())
        for entry in storage.list_files(folder, CAPTIONS):
            split_folder = entry.uri.removesuffix("/" + CAPTIONS)
            if split_folder.rpartition("/")[2] not in splits:
                storage.remove(split_folder)
