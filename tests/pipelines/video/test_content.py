"""The hash of what a file holds: the same in whatever container, other for other packets, and found in one read."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.video.content_hash import GOP_DIGEST_BYTES, PacketDigests, content_hash
from pipelines.video.scan import ScanSettings, join_pieces, scan_image, scan_piece, scan_video
from tests.pipelines.video.test_scan import patches
from tests.support.videos import encode

CODECS = {
    "libx264": {"bf": "3", "g": "30"},
    "libx265": {"x265-params": "keyint=30:log-level=error"},
    "mpeg4": {"g": "20"},
    "libvpx-vp9": {"g": "30"},
}


def film(seconds: int = 3, seed: int = 0) -> np.ndarray:
    return np.concatenate([patches(24, seed + k) for k in range(seconds)])


def remux(source: Path, path: Path, **metadata: str) -> Path:
    """The best video stream of a file in another container, packet by packet; nothing else of it."""
    with av.open(str(source)) as given_, av.open(str(path), "w") as out:
        stream = given_.streams.best("video")
        assert stream is not None
        target = out.add_stream_from_template(stream)
        out.metadata.update(metadata)
        for packet in given_.demux(stream):
            if packet.size:
                packet.stream = target
                out.mux(packet)
    return path


def content(path: Path) -> str:
    return scan_video(str(path)).media.content_hash


@pytest.mark.parametrize("codec", CODECS)
def test_a_remux_is_the_same_content_and_a_re_encode_is_not(tmp_path: Path, codec: str) -> None:
    source = encode(tmp_path / "a.mp4", film(), codec=codec, time_base=Fraction(1, 24), options=CODECS[codec])
    known = content(source)
    assert len(known) == 32
    suffixes = ("mp4", "mkv") if codec == "libvpx-vp9" else ("mp4", "mkv", "mov")
    for suffix in suffixes:
        assert content(remux(source, tmp_path / f"b.{suffix}", title="another", comment="name")) == known, suffix
    assert content(remux(tmp_path / "b.mkv", tmp_path / "c.mp4")) == known, "and back"
    again = encode(
        tmp_path / "d.mp4",
        film(),
        codec=codec,
        time_base=Fraction(1, 24),
        options={**CODECS[codec], "b": "200k", "crf": "40"},
    )
    assert content(again) != known


def test_sound_does_not_count(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mp4", film(), time_base=Fraction(1, 24))
    loud = tmp_path / "loud.mp4"
    with av.open(str(source)) as given_, av.open(str(loud), "w") as out:
        stream = given_.streams.video[0]
        target = out.add_stream_from_template(stream)
        sound = out.add_stream("aac", rate=16000, layout="mono")
        for k in range(48):
            frame = av.AudioFrame.from_ndarray(
                np.full((1, 1024), 0.1 * (k % 3), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 16000, k * 1024
            out.mux(sound.encode(frame))
        for packet in given_.demux(stream):
            if packet.size:
                packet.stream = target
                out.mux(packet)
        out.mux(sound.encode(None))
    assert content(loud) == content(source)


def test_it_is_the_digest_of_the_packets_in_order(tmp_path: Path) -> None:
    """Against the packets of a plain read: one digest for each key frame and what follows it."""
    source = encode(tmp_path / "a.mkv", film(), time_base=Fraction(1, 24), options={"bf": "3", "g": "17"})
    groups: list[bytes] = []
    with av.open(str(source)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.is_keyframe and packet.size:
                groups.append(b"")
            if packet.size:
                groups[-1] += bytes(packet)
    assert len(groups) >= 5
    digests = b"".join(hashlib.blake2b(group, digest_size=GOP_DIGEST_BYTES).digest() for group in groups)
    assert content(source) == hashlib.blake2b(digests, digest_size=16).hexdigest()


GROUPS = {
    "closed": ("libx264", {"bf": "3", "g": "48"}),
    "open": ("libx264", {"bf": "3", "g": "48", "x264-params": "open-gop=1"}),
    "mpeg4": ("mpeg4", {"bf": "2", "g": "48"}),
    "key frames only": ("ffv1", {}),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_pieces_have_the_content_of_the_whole(tmp_path: Path, groups: str) -> None:
    """Also where frames stored after a key frame are shown before it, and where every frame is one."""
    codec, options = GROUPS[groups]
    source = str(encode(tmp_path / "a.mkv", film(17), codec=codec, time_base=Fraction(1, 24), options=options))
    settings = ScanSettings()
    whole = scan_video(source, settings).media.content_hash
    for edges in ([0, 1, 2, 3, None], [0, 2, None], [0, 3, 40, None]):
        parts = [scan_piece(source, settings, first or 0, end) for first, end in pairwise(edges)]
        assert join_pieces(source, settings, parts).media.content_hash == whole, edges


def test_an_image_has_the_hash_of_its_file(tmp_path: Path) -> None:
    picture = Image.fromarray(patches(1, 3)[0])
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name)
    picture.save(tmp_path / "c.png", compress_level=1)
    a, b, c = (scan_image(str(tmp_path / name)).media.content_hash for name in ("a.png", "b.png", "c.png"))
    assert a == b == content_hash([(tmp_path / "a.png").read_bytes()])
    assert a != c


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=9)), min_size=1, max_size=12), st.data())
def test_parts_that_begin_with_a_key_frame_join_to_the_whole(
    stream: list[tuple[bool, bytes]], data: st.DataObject
) -> None:
    packets = []
    for key, payload in stream:
        packet = av.Packet(payload)
        packet.is_keyframe = key
        packets.append(packet)
    cuts = [i for i, packet in enumerate(packets) if i and packet.is_keyframe]
    chosen = data.draw(st.lists(st.sampled_from(cuts), unique=True).map(sorted)) if cuts else []
    whole = PacketDigests()
    for packet in packets:
        whole.push(packet)
    parts = b""
    for first, end in pairwise([0, *chosen, len(packets)]):
        part = PacketDigests()
        # The key frame after the part, and what else was read, is known not to belong to it.
        for packet in packets[first:end]:
            part.push(packet)
        groups = part.n_groups
        for packet in packets[end:]:
            part.push(packet)
        parts += part.digests(groups)
    assert parts == whole.digests()
    assert whole.digests() == whole.digests(), "asking twice changes nothing"
