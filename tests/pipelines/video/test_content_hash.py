"""The content hash of a file: the same in any container, another for other packets, and computed in the one read of a
scan."""

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

from cluster.arrays import Pixels
from pipelines.video.content_hash import GOP_DIGEST_BYTES, PacketDigests, content_hash
from pipelines.video.scan import ScanSettings, join_pieces, scan_image, scan_piece, scan_video
from tests.support.images import soft_patches
from tests.support.videos import encode

pytestmark = pytest.mark.slow

CODECS = {
    "libx264": {"bf": "3", "g": "30"},
    "libx265": {"x265-params": "keyint=30:log-level=error"},
    "mpeg4": {"g": "20"},
    "libvpx-vp9": {"g": "30"},
}


def film(seconds: int = 3) -> Pixels:
    """Draw a film at 24 fps with a cut each second."""
    return np.concatenate([soft_patches(24, seed) for seed in range(seconds)])


def remux(source: Path, path: Path, **metadata: str) -> Path:
    """Copy the best video stream of a file to another container, packet by packet, and nothing else of it."""
    with av.open(str(source)) as original, av.open(str(path), "w") as out:
        stream = original.streams.best("video")
        assert stream is not None
        target = out.add_stream_from_template(stream)
        out.metadata.update(metadata)
        for packet in original.demux(stream):
            if packet.size:
                packet.stream = target
                out.mux(packet)
    return path


def scanned_hash(path: Path) -> str:
    return scan_video(str(path)).media.content_hash


@pytest.mark.parametrize("codec", CODECS)
def test_remux_keeps_the_hash_and_a_re_encode_does_not(tmp_path: Path, codec: str) -> None:
    source = encode(tmp_path / "a.mp4", film(), codec=codec, time_base=Fraction(1, 24), options=CODECS[codec])
    known = scanned_hash(source)
    assert len(known) == 32
    suffixes = ("mp4", "mkv") if codec == "libvpx-vp9" else ("mp4", "mkv", "mov")
    for suffix in suffixes:
        assert scanned_hash(remux(source, tmp_path / f"b.{suffix}", title="another", comment="name")) == known, suffix
    assert scanned_hash(remux(tmp_path / "b.mkv", tmp_path / "c.mp4")) == known, "and back"
    options = {**CODECS[codec], "b": "200k", "crf": "40"}
    again = encode(tmp_path / "d.mp4", film(), codec=codec, time_base=Fraction(1, 24), options=options)
    assert scanned_hash(again) != known


def test_sound_does_not_count(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mp4", film(), time_base=Fraction(1, 24))
    loud = tmp_path / "loud.mp4"
    with av.open(str(source)) as original, av.open(str(loud), "w") as out:
        stream = original.streams.video[0]
        target = out.add_stream_from_template(stream)
        sound = out.add_stream("aac", rate=16000, layout="mono")
        for k in range(48):
            samples = np.full((1, 1024), 0.1 * (k % 3), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, k * 1024
            out.mux(sound.encode(frame))
        for packet in original.demux(stream):
            if packet.size:
                packet.stream = target
                out.mux(packet)
        out.mux(sound.encode(None))
    assert scanned_hash(loud) == scanned_hash(source)


def test_hash_is_that_of_the_packets_in_order(tmp_path: Path) -> None:
    """The reference is a plain read of the packets: one digest per key frame and the packets after it."""
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
    assert scanned_hash(source) == hashlib.blake2b(digests, digest_size=16).hexdigest()


GOPS = {
    "closed": ("libx264", {"bf": "3", "g": "48"}),
    "open": ("libx264", {"bf": "3", "g": "48", "x264-params": "open-gop=1"}),
    "mpeg4": ("mpeg4", {"bf": "2", "g": "48"}),
    "key frames only": ("ffv1", {}),
}


@pytest.mark.parametrize("gops", GOPS)
def test_pieces_have_the_hash_of_the_whole(tmp_path: Path, gops: str) -> None:
    """This holds also if frames stored after a key frame are shown before it, and if every frame is a key frame."""
    codec, options = GOPS[gops]
    source = str(encode(tmp_path / "a.mkv", film(17), codec=codec, time_base=Fraction(1, 24), options=options))
    settings = ScanSettings()
    whole = scan_video(source, settings).media.content_hash
    for edges in ([0, 1, 2, 3, None], [0, 2, None], [0, 3, 40, None]):
        pieces = [scan_piece(source, settings, first or 0, end) for first, end in pairwise(edges)]
        assert join_pieces(source, settings, pieces).media.content_hash == whole, edges


def test_image_has_the_hash_of_its_file(tmp_path: Path) -> None:
    image = Image.fromarray(soft_patches(1, 3)[0])
    for name in ("a.png", "b.png"):
        image.save(tmp_path / name)
    image.save(tmp_path / "c.png", compress_level=1)
    a, b, c = (scan_image(str(tmp_path / name)).media.content_hash for name in ("a.png", "b.png", "c.png"))
    assert a == b == content_hash([(tmp_path / "a.png").read_bytes()])
    assert a != c


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=9)), min_size=1, max_size=12), st.data())
def test_digests_split_at_key_frames_join_to_the_whole(stream: list[tuple[bool, bytes]], data: st.DataObject) -> None:
    packets = []
    for key, content in stream:
        packet = av.Packet(content)
        packet.is_keyframe = key
        packets.append(packet)
    keys = [i for i, packet in enumerate(packets) if i and packet.is_keyframe]
    chosen = data.draw(st.lists(st.sampled_from(keys), unique=True).map(sorted)) if keys else []
    whole = PacketDigests()
    for packet in packets:
        whole.push(packet)
    joined = b""
    for first, end in pairwise([0, *chosen, len(packets)]):
        piece = PacketDigests()
        for packet in packets[first:end]:
            piece.push(packet)
        # The packets from the next key frame on are pushed too, and known not to belong to the piece.
        n_groups = piece.n_groups
        for packet in packets[end:]:
            piece.push(packet)
        joined += piece.digests(n_groups)
    assert joined == whole.digests()
    assert whole.digests() == whole.digests(), "a second call changes nothing"
