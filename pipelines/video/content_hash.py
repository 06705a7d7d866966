"""A hash of a file's content that does not depend on the container: of the compressed packets of its video stream.

A remux (mp4 to mkv to mov), other metadata and another sound track leave the packets unchanged; a re-encode does not.
An edit list that hides some of them has no effect. MPEG transport streams store H.264 and HEVC with start codes in
place of lengths (Annex B), so a remux to them counts as different content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from av.packet import Packet

GOP_DIGEST_BYTES, CONTENT_HASH_BYTES = 16, 16


def content_hash(chunks: Iterable[bytes]) -> str:
    """Return the BLAKE2b hash, in hex, of chunks of bytes.

    The only chunk is `PacketDigests.digests` of a video, or the bytes of a whole file.
    """
    state = hashlib.blake2b(digest_size=CONTENT_HASH_BYTES)
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


class PacketDigests:
    """Digests of packets as they are read: 16 bytes per key frame and the packets after it up to the next.

    Each of these groups is digested separately. A stream that several workers read from different key frames therefore
    gives the digests that one worker gives who reads all of it. It costs 0.001 s per megabyte.
    """

    def __init__(self) -> None:
        self._finished: list[bytes] = []
        self._current: Any = None

    def push(self, packet: Packet[Any]) -> None:
        """Add the next packet of the stream, in decoding order."""
        if packet.is_keyframe or self._current is None:
            self._finish_group()
            self._current = hashlib.blake2b(digest_size=GOP_DIGEST_BYTES)
        self._current.update(packet)

    @property
    def n_groups(self) -> int:
        """Number of groups that have begun."""
        return len(self._finished) + (self._current is not None)

    def digests(self, n_groups: int | None = None) -> bytes:
        """Return the concatenated digests of all groups, or of the first `n_groups`."""
        self._finish_group()
        return b"".join(self._finished[:n_groups])

    def _finish_group(self) -> None:
        if self._current is not None:
            self._finished.append(self._current.digest())
            self._current = None
