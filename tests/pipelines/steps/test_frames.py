"""The frames step: images of the clips of a table, and rows that cannot be decoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster.arrays import Pixels
from pipelines.engine.segments import is_heavy
from pipelines.engine.step import Context, start_fates
from pipelines.steps.frames import FRAMES, Frames
from pipelines.steps.score._base import decode_jpeg
from pipelines.video.decode import OPEN_LOG
from pipelines.video.frame_images import FrameSampling, images_of_spans
from tests.support.videos import encode, numbered, sliding, with_hole

SAMPLING = FrameSampling(fps=4.0, max_frames=8, long_side=128, quality=95)


def table_of(rows: list[tuple[Path, str, int, int]], crop: list[int] | None = None) -> pa.Table:
    columns = {
        "uid": [f"clip{i}" for i in range(len(rows))],
        "source": [str(row[0]) for row in rows],
        "kind": [row[1] for row in rows],
        "start_pts": pa.array([row[2] for row in rows], pa.int64()),
        "end_pts": pa.array([row[3] for row in rows], pa.int64()),
        "crop": pa.array([crop] * len(rows), pa.list_(pa.int32())),
    }
    return start_fates(pa.table(columns))


def run(table: pa.Table, **settings: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Frames(**settings).open(Context("", 0))(table).to_pylist()
    return rows


@pytest.mark.slow
def test_images_do_not_depend_on_other_clips_or_their_order(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(90), options={"g": "25", "bf": "3"})
    spans = [(k * 512 * 9, (k + 2) * 512 * 9) for k in range(9)]
    together = images_of_spans(str(path), spans, SAMPLING)
    assert [images_of_spans(str(path), [span], SAMPLING)[0] for span in spans] == together
    rows = [(path, "video", *span) for span in spans]
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    settings: dict[str, Any] = {"fps": SAMPLING.fps, "long_side": SAMPLING.long_side, "quality": SAMPLING.quality}
    mixed = run(table_of([rows[i] for i in order]), **settings)
    assert [tuple(row["frames"]) for row in mixed] == [together[i].images for i in order]  # type: ignore[union-attr]


@pytest.mark.slow
def test_file_is_opened_once_for_all_its_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", numbered(90), options={"g": "25"})
    monkeypatch.setenv(OPEN_LOG, str(tmp_path / "opens"))
    rows = run(table_of([(path, "video", k * 512 * 15, (k + 1) * 512 * 15) for k in (5, 0, 3, 2, 1, 4)]))
    assert [row["fate"] for row in rows] == ["kept"] * 6
    assert (tmp_path / "opens").read_text().split() == [str(path)]


def test_image_row_gives_the_image_upright(tmp_path: Path) -> None:
    image = Image.fromarray(sliding(1, 1.0, 320, 160)[0])
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    (row,) = run(table_of([(tmp_path / "turned.png", "image", 0, 1)]), long_side=200)
    assert row["frame_times_s"] == [0.0]
    assert [Image.open(io.BytesIO(data)).size for data in row["frames"]] == [(100, 200)]


def barred(n: int, bar: int) -> Pixels:
    """Return frames of a moving pattern with black bars at the top and the bottom."""
    frames = sliding(n, 2.0, 128, 96)
    frames[:, :bar] = frames[:, -bar:] = 0
    return frames


@pytest.mark.parametrize("at", ["middles", "peaks"])
def test_images_show_the_content_without_bars(tmp_path: Path, at: str) -> None:
    path = encode(tmp_path / "film.mp4", barred(12, 17), options={"crf": "0"})
    Image.fromarray(barred(1, 17)[0]).save(tmp_path / "still.png")
    spans = [(path, "video", 0, 512 * 12), (tmp_path / "still.png", "image", 0, 1)]
    for row in run(table_of(spans, crop=[0, 17, 128, 79]), at=at):
        images = [decode_jpeg(data) for data in row["frames"]]
        assert {image.shape for image in images} == {(62, 128, 3)}
        assert all(image[[0, -1]].mean() > 30 for image in images)
    whole = run(table_of(spans), at=at)
    assert {decode_jpeg(data).shape for row in whole for data in row["frames"]} == {(96, 128, 3)}
    assert decode_jpeg(whole[0]["frames"][0])[0].mean() < 5


def test_a_crop_outside_the_frame_fails_its_clip_alone(tmp_path: Path) -> None:
    path = encode(tmp_path / "film.mp4", sliding(12, 2.0, 64, 48), options={"crf": "0"})
    spans = [(path, "video", k * 512, 512 * 12) for k in range(2)]
    good, bad = (table_of([span], crop=[0, 0, side, 48]) for span, side in zip(spans, (64, 65), strict=True))
    rows = run(pa.concat_tables([good, bad]))
    assert [row["fate"] for row in rows] == ["kept", "failed"]
    assert "crop (0, 0, 65, 48) is not inside the image of 64x48" in rows[1]["fate_reason"]


@pytest.mark.slow
def test_undecodable_clips_fail_alone(tmp_path: Path) -> None:
    good = encode(tmp_path / "good.mp4", numbered(60), options={"g": "10"})
    hole = with_hole(tmp_path / "hole.mp4", good)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.png").write_text("no image")
    tick = 512
    rows = run(
        table_of(
            [
                (hole, "video", 0, 60 * tick),
                (hole, "video", 50 * tick, 60 * tick),
                (tmp_path / "text.mp4", "video", 0, tick),
                (good, "video", 0, 60 * tick),
                (good, "video", 600 * tick, 660 * tick),
                (tmp_path / "text.png", "image", 0, 1),
                (tmp_path / "gone.mp4", "video", 0, 1),
            ]
        )
    )
    assert [row["fate"] for row in rows] == ["failed", "kept", "failed", "kept", "failed", "failed", "pending"]
    assert all((row["frames"] is None) == (row["fate"] != "kept") for row in rows)
    assert rows[0]["fate_reason"].startswith("DecodeError: hole.mp4")
    assert "before the clip from 307200" in rows[4]["fate_reason"]
    assert "gone.mp4" in rows[6]["fate_reason"]


def test_frames_are_heavy() -> None:
    assert is_heavy(FRAMES)


@pytest.mark.slow
def test_flash_is_seen_at_peaks_and_not_at_middles(tmp_path: Path) -> None:
    frames = np.full((60, 64, 128, 3), 60, np.uint8)
    frames[23] = 230
    path = encode(tmp_path / "flash.mp4", frames, options={"g": "30"})
    bright = {
        at: [
            decode_jpeg(data).mean() > 150 for data in run(table_of([(path, "video", 0, 512 * 60)]), at=at)[0]["frames"]
        ]
        for at in ("middles", "peaks")
    }
    assert bright == {"middles": [False, False], "peaks": [True, False]}


@pytest.mark.slow
def test_flat_clip_gives_one_image_per_part(tmp_path: Path) -> None:
    path = encode(tmp_path / "flat.mp4", np.full((60, 64, 128, 3), 60, np.uint8), options={"g": "30", "crf": "0"})
    (row,) = run(table_of([(path, "video", 0, 512 * 60)]), at="peaks")
    # The first frame has no frame before it, so it is taken only if it is alone.
    assert row["frame_times_s"] == [1 / 30, 1.0]
    (row,) = run(table_of([(path, "video", 0, 512)]), at="peaks")
    assert row["frame_times_s"] == [0.0]


def test_settings_digest_is_pinned() -> None:
    """A digest that changes makes every run decode its clips again."""
    assert Frames().settings_digest() == "5353abe70e59f859b63b"
    assert Frames(fps=2.0, max_frames=256).settings_digest() == "10b0d6609ca867be68bd"
    assert Frames(at="peaks").settings_digest() != Frames().settings_digest()
