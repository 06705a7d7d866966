"""Damaged files of every kind, in this process: each ends as a scan or as a `DecodeError` that names it.

`python -m benchmarks.fuzz` does the same by the thousand, on real footage, and finds crashes and hangs too.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from benchmarks.damage import KINDS, MP4_KINDS, boxes, is_mp4, make_variant
from benchmarks.fuzz import FAILED, SCANNED, check_scan, scan_outcome, summary, variants
from benchmarks.sps import raw_h264, with_huge_sps
from pipelines.video.decode import DecodeError
from pipelines.video.scan import scan_video
from tests.support.videos import encode, sliding

FORMATS = {"h264.mp4": "libx264", "mpeg4.avi": "mpeg4", "jpeg.mkv": "mjpeg", "vp8.webm": "libvpx"}
CASES = [("h264.mp4", kind) for kind in KINDS] + [
    (name, kind)
    for name, kinds in {
        "mpeg4.avi": ("truncated", "header_flips", "payload_flips", "lost_packets"),
        "jpeg.mkv": ("huge_image", "many_flips", "years_between"),
        "vp8.webm": ("huge_image", "zeroed_packets", "header_flips"),
    }.items()
    for kind in kinds
]


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 2 s of a moving texture in four codecs and containers."""
    folder = tmp_path_factory.mktemp("footage")
    frames = sliding(24, 2.0, width=128, height=64)
    for name, codec in FORMATS.items():
        pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        encode(
            folder / name,
            frames,
            codec=codec,
            time_base=Fraction(1, 12),
            pixel_format=pixel_format,
            aspect=Fraction(4, 3),
        )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_damaged_file_is_scanned_or_fails_by_name(footage: Path, tmp_path: Path, name: str, kind: str) -> None:
    source = footage / name
    rng = np.random.default_rng(7)
    variant = make_variant(name, source.read_bytes(), source.suffix, kind, rng)
    path = tmp_path / f"damaged{variant.suffix}"
    path.write_bytes(variant.data)
    outcome, detail = scan_outcome(path)
    assert outcome in (SCANNED, FAILED), detail


@pytest.mark.parametrize("name", FORMATS)
def test_undamaged_footage_is_scanned(footage: Path, name: str) -> None:
    assert scan_outcome(footage / name) == (SCANNED, "")


@pytest.mark.parametrize("kind", ["empty", "text", "noise", "missing_index", "beheaded"])
def test_files_without_video_fail(footage: Path, tmp_path: Path, kind: str) -> None:
    data = KINDS[kind]((footage / "h264.mp4").read_bytes(), np.random.default_rng(0))
    path = tmp_path / "no-video.mp4"
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=r"no-video\.mp4"):
        scan_video(str(path))


@pytest.mark.slow
@pytest.mark.parametrize("side", [16000, 30000])
def test_frame_of_a_gigabyte_is_refused(tmp_path: Path, side: int) -> None:
    # 2 kB that would take 400 MB and a second per frame.
    small = encode(tmp_path / "small.mp4", sliding(2, 2.0, width=128, height=64))
    data = with_huge_sps(small.read_bytes(), side)
    assert data is not None
    path = tmp_path / "bomb.h264"
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=r"bomb\.h264"):
        scan_video(str(path))


@pytest.mark.parametrize("target", ["whole.mp4", "list.mp4"])
def test_list_of_other_files_is_not_followed(footage: Path, tmp_path: Path, target: str) -> None:
    # FFmpeg knows such a list by its first line, whatever its name.
    # A list that names itself never ends, and a list can name files outside the run.
    (tmp_path / "whole.mp4").write_bytes((footage / "h264.mp4").read_bytes())
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\n" + f"file {target}\n" * 3)
    with pytest.raises(DecodeError, match=r"list\.mp4"):
        scan_video(str(path))


@pytest.mark.parametrize("aspect", [(1, 4000), (4000, 1), (1, 60000), (60000, 1)])
def test_pixels_of_absurd_shape(tmp_path: Path, aspect: tuple[int, int]) -> None:
    # Displayed 0 pixels wide, or millions: neither may reach the size at which frames are measured.
    path = encode(tmp_path / "aspect.mp4", sliding(6, 2.0, width=128, height=64), aspect=Fraction(4, 3))
    data = path.read_bytes()
    box = data.index(b"pasp") + 4
    path.write_bytes(data[:box] + struct.pack(">II", *aspect) + data[box + 8 :])
    outcome, detail = scan_outcome(path)
    assert outcome in (SCANNED, FAILED), detail


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["matrix_coefficients", "transfer_characteristics", "colour_primaries"])
def test_undefined_colour_codes(footage: Path, tmp_path: Path, setting: str) -> None:
    # FFmpeg's scaler refuses some of them, after the decoder has taken them.
    for value in (0, 3, 8, 10, 14, 15, 22, 99, 255):
        data = raw_h264((footage / "h264.mp4").read_bytes(), f"h264_metadata={setting}={value}")
        assert data is not None
        path = tmp_path / f"colour-{value}.h264"
        path.write_bytes(data)
        outcome, detail = scan_outcome(path)
        assert outcome in (SCANNED, FAILED), f"{setting}={value}: {detail}"


@pytest.mark.parametrize("years", [0.01, 30.0])
def test_years_between_two_frames_cost_no_memory_or_time(tmp_path: Path, years: float) -> None:
    # 30 years at a hash each half second would be two billion hashes.
    pts = [*range(6), *(int(years * 365 * 86400 * 12) + k for k in range(6))]
    path = encode(tmp_path / "jump.mkv", sliding(12, 2.0, width=128, height=64), pts=pts, time_base=Fraction(1, 12))
    outcome, detail = scan_outcome(path)
    assert outcome in (SCANNED, FAILED), detail


def test_one_frame_per_hour_is_scanned(tmp_path: Path) -> None:
    # Frame rates so low that fractions of them round to zero.
    path = encode(
        tmp_path / "slow.mkv",
        sliding(4, 2.0, width=128, height=64),
        pts=[k * 3600 * 12 for k in range(4)],
        time_base=Fraction(1, 12),
    )
    assert scan_outcome(path) == (SCANNED, "")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_repeats_for_a_seed_and_differs_between_seeds(footage: Path, kind: str) -> None:
    data = (footage / "h264.mp4").read_bytes()
    first, again = (make_variant("a", data, ".mp4", kind, np.random.default_rng(3)) for _ in range(2))
    assert first == again
    assert kind in {"twice"} or any(
        make_variant("a", data, ".mp4", kind, np.random.default_rng(seed)).data != data for seed in range(4)
    )
    assert len(first.data) <= max(3 * len(data), 100_000)


def test_index_damage_leaves_other_containers_unchanged(footage: Path) -> None:
    data = (footage / "jpeg.mkv").read_bytes()
    assert not is_mp4(data)
    for kind in MP4_KINDS:
        assert KINDS[kind](data, np.random.default_rng(0)) == data


def test_boxes_of_an_mp4_file(footage: Path) -> None:
    data = (footage / "h264.mp4").read_bytes()
    found = {box.kind: box for box in boxes(data)}
    assert {b"ftyp", b"mdat", b"moov", b"mvhd", b"trak", b"tkhd", b"mdia", b"stbl", b"stts", b"stsz"} <= set(found)
    assert struct.unpack_from(">HH", data, found[b"stsd"].body + 40) == (128, 64)


def test_rewritten_size_is_what_ffmpeg_reads(footage: Path) -> None:
    # An independent reader of the sequence parameter set: FFmpeg's parser, which does not decode.
    data = with_huge_sps((footage / "h264.mp4").read_bytes(), 1600)
    assert data is not None
    with av.open(io.BytesIO(data), "r", format="h264") as container:
        context = container.streams.video[0].codec_context
        assert (context.width, context.height) == (1600, 1600)


@pytest.mark.parametrize(("seed", "count"), [(0, 12), (5, 3)])
def test_variants_follow_from_the_seed(footage: Path, seed: int, count: int) -> None:
    made = list(variants(footage, count, seed))
    assert made == list(variants(footage, count + 2, seed))[:count]
    assert len(made) == count
    assert made != list(variants(footage, count, seed + 1))


def test_summary_accounts_for_every_variant() -> None:
    def result(outcome: str, detail: str = "", peak_mb: float = 100.0) -> SimpleNamespace:
        return SimpleNamespace(outcome=outcome, detail=detail, seconds=1.0, peak_mb=peak_mb)

    results = [
        result("scanned"),
        result("failed"),
        result("failed"),
        result("raised", "ValueError: x"),
        result("hung", peak_mb=float("nan")),
    ]
    line = summary(results, 6)
    counts = {key: line[key] for key in ("scanned", "failed", "crashed", "hung", "unaccounted")}
    assert counts == {"scanned": 1, "failed": 2, "crashed": 0, "hung": 1, "unaccounted": 2}
    assert line["other_errors"] == {"ValueError": 1}
    assert line["peak_mb"] == 100


def shot(start: int, end: int, luma: float = 0.5) -> SimpleNamespace:
    return SimpleNamespace(start_pts=start, end_pts=end, signals=SimpleNamespace(luma=luma))


@pytest.mark.parametrize(
    ("shots", "fault"),
    [
        ([], "no shots"),
        ([shot(0, 0)], "from 0 to 0"),
        ([shot(0, 5), shot(6, 9)], "ends at 5"),
        ([shot(0, 5, luma=float("nan"))], "not finite"),
    ],
)
def test_unsound_scans_are_found(shots: list[SimpleNamespace], fault: str) -> None:
    scan = SimpleNamespace(shots=shots, boundaries=[], media=SimpleNamespace(n_frames=3, source_duration_s=1.0))
    with pytest.raises(AssertionError, match=fault):
        check_scan(scan)
