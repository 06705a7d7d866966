"""webdataset: tar files <split>-000000.tar with <uid>.json, <uid>.mp4 (or an image) and <uid>.txt of each clip in turn.

The standard library writes them, since the format is plain tar. They hold no times and owners, so that the same clips
give the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pyarrow as pa

from cluster import storage
from pipelines.export.format import ShardedFormat, caption_bytes, clip_suffix, description_json, uid_of

FILE_MODE = 0o644

SIDECAR_SUFFIXES = (".txt", ".json")


class WebDataset(ShardedFormat):
    """A format of tar files with clips, captions and descriptions, as `webdataset.WebDataset` reads them."""

    name: str = "webdataset"

    def shard_file(self, split: str, number: int, count: int) -> str:
        return f"{split}-{number:06d}.tar"

    def write_shard(self, uri: str, clips: pa.Table, contents: Iterator[bytes]) -> None:
        with (
            storage.atomic_output(uri) as handle,
            tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for clip, content in zip(clips.to_pylist(), contents, strict=True):
                _add(tar, f"{clip['uid']}.json", description_json(clip))
                _add(tar, f"{clip['uid']}{clip_suffix(clip)}", content)
                _add(tar, f"{clip['uid']}.txt", caption_bytes(clip))

    def read_shard(self, uri: str) -> Iterator[tuple[str, bytes]]:
        with storage.open_input(uri) as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
            for member in tar:
                if not member.name.endswith(SIDECAR_SUFFIXES):
                    content = tar.extractfile(member)
                    assert content is not None, f"{uri}: {member.name} is not a file"
                    yield uid_of(member.name), content.read()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), FILE_MODE
    tar.addfile(member, io.BytesIO(data))
