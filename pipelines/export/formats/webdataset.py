"""webdataset: tar files <split>-000000.tar with <uid>.mp4 (or an image), <uid>.txt and <uid>.json of each clip, one after another.

Written with the standard library, as a tar file is all that the format is; and without times and owners, so that the same clips give
the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pyarrow as pa

from cluster import storage
from pipelines.export.format import Sharded, as_json, caption_of, stem, suffix

MODE = 0o644

BESIDE = (".txt", ".json")
"""Suffixes of members that are not the clip itself."""


class WebDataset(Sharded):
    """Tar files of clips with captions and descriptions, as `webdataset.WebDataset` reads them."""

    name: str = "webdataset"

    def shard_file(self, split: str, number: int, count: int) -> str:
        return f"{split}-{number:06d}.tar"

    def write_shard(self, uri: str, clips: pa.Table, contents: Iterator[bytes]) -> None:
        with (
            storage.atomic_output(uri) as handle,
            tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for clip, content in zip(clips.to_pylist(), contents, strict=True):
                for ending, data in ((".json", as_json(clip)), (suffix(clip), content), (".txt", caption_of(clip))):
                    _add(tar, f"{clip['uid']}{ending}", data)

    def read_shard(self, uri: str) -> Iterator[tuple[str, bytes]]:
        with storage.open_input(uri) as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
            for member in tar:
                if not member.name.endswith(BESIDE):
                    content = tar.extractfile(member)
                    assert content is not None, f"{uri}: {member.name} is no file"
                    yield stem(member.name), content.read()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), MODE
    tar.addfile(member, io.BytesIO(data))
