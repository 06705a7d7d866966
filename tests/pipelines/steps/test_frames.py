"""Pictures of clips: the frames shown at their moments, the same whatever else is asked for."""

from __future__ import annotations

import io
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.engine.segments import is_heavy
from pipelines.engine.step import Context, start_fates
from pipelines.steps.frames import FRAMES, Frames
from pipelines.video import pictures
from pipelines.video.decode import OPEN_LOG, DecodeError, open_video, probe
from pipelines.video.pictures import Manner, Taken, moments, of_spans
from pipelines.video.still import jpeg
from tests.support.videos import encode, number_of, numbered, sliding

MANNER = Manner(per_s=4.0, most=8, long_side=128, quality=95)


def decoded(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(data)), np.uint8)


def numbers_of(taken: Taken | Exception) -> list[int]:
    assert isinstance(taken, Taken), taken
    return [number_of(decoded(data)) for data in taken.pictures]


def table_of(rows: list[tuple[Path, str, int, int]]) -> pa.Table:
    columns = {
        "uid": [f"clip{i}" for i in range(len(rows))],
        "source": [str(row[0]) for row in rows],
        "kind": [row[1] for row in rows],
        "start_pts": pa.array([row[2] for row in rows], pa.int64()),
        "end_pts": pa.array([row[3] for row in rows], pa.int64()),
    }
    return start_fates(pa.table(columns))


def run(table: pa.Table, **settings: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Frames(**settings).open(Context("", 0))(table).to_pylist()
    return rows


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6), st.integers(1, 64))
def test_moments_are_the_middles_of_equal_parts(start: int, length: int, count: int) -> None:
    found = moments(start, start + length, count)
    assert all(start <= moment < start + length for moment in found)
    assert found == sorted(found)
    for k, moment in enumerate(found):
        assert 0 <= start + Fraction(length * (2 * k + 1), 2 * count) - moment < 1


@pytest.mark.parametrize(
    ("seconds", "count"), [(0, 1), (Fraction(2, 5), 1), (Fraction(3, 2), 2), (3, 3), (Fraction(17, 2), 8), (60, 8)]
)
def test_one_picture_a_second_one_at_least_and_no_more_than_most(seconds: Fraction, count: int) -> None:
    assert Manner().count(Fraction(seconds)) == count


def test_pictures_are_the_frames_shown_at_the_moments(tmp_path: Path) -> None:
    """With gaps between frames: the expectation counts in whole PTS, from the frames that were written."""
    gaps = [1, 3, 1, 7, 2, 2, 5, 1, 1, 4] * 6
    pts = [1000, *itertools.accumulate(gaps[:-1], initial=1000)][1:]
    path = encode(
        tmp_path / "gaps.mkv", numbered(60), pts=pts, time_base=Fraction(1, 30), options={"g": "20", "bf": "2"}
    )
    info = probe(str(path))
    stored = [round(Fraction(p, 30) / info.time_base) for p in pts]
    first, end = stored[0], stored[-1] + round(Fraction(1, 30) / info.time_base)
    spans = [(first, end), (stored[7] + 1, stored[31]), (stored[31], stored[32]), (stored[50], end)]
    for (start, stop), taken in zip(spans, of_spans(str(path), spans, MANNER), strict=True):
        wanted = moments(start, stop, MANNER.count((stop - start) * info.time_base))
        shown = [max((k for k in range(60) if stored[k] <= moment), default=0) for moment in wanted]
        assert numbers_of(taken) == sorted(set(shown))
        assert isinstance(taken, Taken)
        assert taken.at_s == tuple(max(0.0, float((stored[k] - start) * info.time_base)) for k in sorted(set(shown)))


def test_clips_give_the_same_alone_together_and_in_any_order(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(90), options={"g": "25", "bf": "3"})
    spans = [(k * 512 * 9, (k + 2) * 512 * 9) for k in range(9)]
    together = of_spans(str(path), spans, MANNER)
    assert [of_spans(str(path), [span], MANNER)[0] for span in spans] == together
    rows = [(path, "video", *span) for span in spans]
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    settings: dict[str, Any] = {"per_s": MANNER.per_s, "long_side": MANNER.long_side, "quality": MANNER.quality}
    mixed = run(table_of([rows[i] for i in order]), **settings)
    assert [tuple(row["frames"]) for row in mixed] == [together[i].pictures for i in order]  # type: ignore[union-attr]


def test_a_file_is_opened_once_for_all_its_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", numbered(90), options={"g": "25"})
    monkeypatch.setenv(OPEN_LOG, str(tmp_path / "opens"))
    rows = run(table_of([(path, "video", k * 512 * 15, (k + 1) * 512 * 15) for k in (5, 0, 3, 2, 1, 4)]))
    assert [row["fate"] for row in rows] == ["kept"] * 6
    assert (tmp_path / "opens").read_text().split() == [str(path)]


def test_moments_far_apart_are_sought_where_every_frame_is_a_key_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "intra.mp4", numbered(120), options={"g": "1"})
    manner = Manner(1.0, 8, 128, 95)
    with open_video(str(path)) as video:
        tick = round(1 / (30 * video.info.time_base))
    span = (tick * 10, tick * 120)
    seeks: list[int] = []
    seek = pictures.Video.seek
    monkeypatch.setattr(pictures.Video, "seek", lambda self, pts: seeks.append(pts) or seek(self, pts))
    (leaping,) = of_spans(str(path), [span], manner)
    assert len(seeks) == 1 + 4, "one for the clip, and one for each moment"
    monkeypatch.setattr(pictures, "LEAP_GROUPS", 10**6)
    assert of_spans(str(path), [span], manner) == [leaping]
    assert numbers_of(leaping) == [10 + 110 * (2 * k + 1) // 8 for k in range(4)]


def test_pictures_are_upright_of_the_same_aspect_and_never_enlarged(tmp_path: Path) -> None:
    path = encode(tmp_path / "turned.mp4", sliding(10, 1.0, 320, 160), rotation_deg=90)
    info = probe(str(path))
    assert (info.width, info.height) == (160, 320)
    for long_side, size in ((80, (40, 80)), (448, (160, 320))):
        (taken,) = of_spans(str(path), [(0, 512 * 10)], Manner(long_side=long_side))
        assert isinstance(taken, Taken)
        assert [Image.open(io.BytesIO(data)).size for data in taken.pictures] == [size]


def test_images_give_themselves(tmp_path: Path) -> None:
    image = Image.fromarray(sliding(1, 1.0, 320, 160)[0])
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    (row,) = run(table_of([(tmp_path / "turned.png", "image", 0, 1)]), long_side=200)
    assert row["frames_s"] == [0.0]
    assert [Image.open(io.BytesIO(data)).size for data in row["frames"]] == [(100, 200)]


def test_what_cannot_be_decoded_fails_alone(tmp_path: Path) -> None:
    good = encode(tmp_path / "good.mp4", numbered(60), options={"g": "10"})
    data = bytearray(good.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + len(data) // 20] = bytes(len(data) // 20)
    (tmp_path / "hole.mp4").write_bytes(data)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.png").write_text("no picture")
    tick = 512
    rows = run(
        table_of(
            [
                (tmp_path / "hole.mp4", "video", 0, 60 * tick),
                (tmp_path / "hole.mp4", "video", 50 * tick, 60 * tick),
                (tmp_path / "text.mp4", "video", 0, tick),
                (good, "video", 0, 60 * tick),
                (good, "video", 600 * tick, 660 * tick),
                (tmp_path / "text.png", "image", 0, 1),
                (tmp_path / "gone.mp4", "video", 0, 1),
            ]
        )
    )
    assert [row["fate"] for row in rows] == ["failed", "kept", "failed", "kept", "failed", "failed", "failed"]
    assert all((row["frames"] is None) == (row["fate"] == "failed") for row in rows)
    assert rows[0]["fate_reason"].startswith("DecodeError: hole.mp4")
    assert "before the clip from 307200" in rows[4]["fate_reason"]
    assert "gone.mp4" in rows[6]["fate_reason"]


def test_damage_between_two_clips_costs_neither(tmp_path: Path) -> None:
    """The second is first come to by decoding on through the damage, then from a key frame of its own."""
    good = encode(tmp_path / "good.mp4", numbered(60), options={"g": "10"})
    data = bytearray(good.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + len(data) // 20] = bytes(len(data) // 20)
    hole = tmp_path / "hole.mp4"
    hole.write_bytes(data)
    spans = [(0, 9 * 512), (50 * 512, 60 * 512)]
    assert isinstance(of_spans(str(hole), [(0, 60 * 512)], MANNER)[0], DecodeError)
    assert of_spans(str(hole), spans, MANNER) == of_spans(str(good), spans, MANNER)


def test_frames_are_heavy_so_that_tables_do_not_carry_them_further_than_needed() -> None:
    assert is_heavy(FRAMES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "av1_640x360.mkv",
        "hevc_10bit_200x200.mp4",
        "mpeg4_320x240.avi",
        "talk_640x360.mp4",
        "nasa_320x180.mp4",
        "rotated_90.mov",
    ],
)
def test_real_footage_against_a_decode_of_every_frame(real_videos: Path, name: str) -> None:
    uri = str(real_videos / name)
    manner = Manner(2.0, 5, 200, 90)
    with open_video(uri) as video:
        size = manner.size(video.info.width, video.info.height)
        time_base = video.info.time_base
        every = [(picture.pts, jpeg(video.array(picture.frame, *size), 90)) for picture in video.pictures()]
    first, end = every[0][0], every[-1][0] + 1
    edges = [first + (end - first) * k // 3 for k in range(4)]
    for (start, stop), taken in zip(
        itertools.pairwise(edges), of_spans(uri, list(itertools.pairwise(edges)), manner), strict=True
    ):
        wanted = moments(start, stop, manner.count((stop - start) * time_base))
        shown = dict.fromkeys(
            max((k for k, (pts, _) in enumerate(every) if pts <= moment), default=0) for moment in wanted
        )
        assert isinstance(taken, Taken), taken
        assert taken.pictures == tuple(every[k][1] for k in shown)


def test_a_span_before_the_frames_of_a_file_shows_its_first(tmp_path: Path) -> None:
    path = encode(tmp_path / "late.mkv", numbered(30), pts=list(range(300, 330)))
    with open_video(str(path)) as video:
        first = video.info.start_pts
    (taken,) = of_spans(str(path), [(first - 100, first + 1)], MANNER)
    assert numbers_of(taken) == [0]
    (error,) = of_spans(str(path), [(first - 100, first - 50)], MANNER)
    assert isinstance(error, DecodeError)


def every_frame(path: Path, size: tuple[int, int]) -> list[tuple[int, np.ndarray[Any, np.dtype[np.int16]]]]:
    with open_video(str(path)) as video:
        return [
            (picture.pts, video.array(picture.frame, *size, "gray8").astype(np.int16)) for picture in video.pictures()
        ]


def peaks(every: list[tuple[int, np.ndarray[Any, np.dtype[np.int16]]]], start: int, end: int, count: int) -> list[int]:
    """PTS of the frame of each part that differs most from the one before, from all frames at once."""
    first = max((i for i, (pts, _) in enumerate(every) if pts <= start), default=0)
    own = [i for i in range(first, len(every)) if every[i][0] < end]
    found = []
    for k in range(count):
        low, high = start + Fraction((end - start) * k, count), start + Fraction((end - start) * (k + 1), count)
        inside = [i for i in own if low <= every[i][0] < high or (k == 0 and i == first)]
        if inside:
            changes = {i: -1.0 if i == first else float(np.abs(every[i][1] - every[i - 1][1]).mean()) for i in inside}
            found.append(every[max(inside, key=lambda i: (changes[i], -i))][0])
    return found


@pytest.mark.parametrize("gaps", [[1], [1, 3, 1, 7, 2, 2, 5, 1, 1, 4], [40]])
def test_peaks_are_the_frames_that_differ_most_from_the_one_before(tmp_path: Path, gaps: list[int]) -> None:
    n = 60 if gaps != [40] else 8
    steps = np.random.default_rng(1).choice([0, 1, 2, 9], n).cumsum()
    texture = sliding(int(steps.max()) + 1, 1.0)
    pts = [1000, *itertools.accumulate((gaps * n)[: n - 1], initial=1000)][1:]
    path = encode(
        tmp_path / "jumps.mkv",
        [texture[step] for step in steps],
        pts=pts,
        time_base=Fraction(1, 30),
        options={"g": "12", "bf": "2"},
    )
    every = every_frame(path, (64, 36))
    first, end = every[0][0], every[-1][0] + 30
    third = (end - first) // 3
    spans = [(first, end), (first + third + 1, first + 2 * third), (first + 2 * third, end)]
    manner = Manner(per_s=4.0, most=6, long_side=128, quality=95, at="peaks")
    time_base = probe(str(path)).time_base
    for (start, stop), taken in zip(spans, of_spans(str(path), spans, manner), strict=True):
        count = manner.count((stop - start) * time_base)
        wanted = list(dict.fromkeys(peaks(every, start, stop, count)))
        assert isinstance(taken, Taken), taken
        assert taken.at_s == tuple(float(max(0, pts - start) * time_base) for pts in wanted)
    assert [of_spans(str(path), [span], manner)[0] for span in spans] == of_spans(str(path), spans, manner)


def test_a_flash_is_seen_at_peaks_and_not_in_the_middles(tmp_path: Path) -> None:
    frames = np.full((60, 64, 128, 3), 60, np.uint8)
    frames[23] = 230
    path = encode(tmp_path / "flash.mp4", frames, options={"g": "30"})
    bright = {
        at: [decoded(data).mean() > 150 for data in run(table_of([(path, "video", 0, 512 * 60)]), at=at)[0]["frames"]]
        for at in ("middles", "peaks")
    }
    assert bright == {"middles": [False, False], "peaks": [True, False]}


def test_a_flat_clip_gives_a_picture_a_part_and_never_its_first_frame_but_alone(tmp_path: Path) -> None:
    path = encode(tmp_path / "flat.mp4", np.full((60, 64, 128, 3), 60, np.uint8), options={"g": "30", "crf": "0"})
    (row,) = run(table_of([(path, "video", 0, 512 * 60)]), at="peaks")
    assert row["frames_s"] == [1 / 30, 1.0]
    (row,) = run(table_of([(path, "video", 0, 512)]), at="peaks")
    assert row["frames_s"] == [0.0]


def test_pictures_of_the_middles_are_found_again_under_the_digest_they_had_before_there_was_a_choice() -> None:
    assert Frames().settings_digest() == "64430e35bb25427c4310"
    assert Frames(per_s=2.0, most=256).settings_digest() == "b892dbd0c0177888fee4"
    assert Frames(at="peaks").settings_digest() != Frames().settings_digest()
