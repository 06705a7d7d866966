"""Given videos of samples: all frames at the rate and size of the sample, and faults that name the file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from cluster.config import ConfigError
from pipelines.commands._given_videos import check_videos, read_given_video
from tests.support.videos import LOSSLESS, encode, number_of, numbered
from training.sampling.settings import SampleSettings, VideoShape

SHAPE = VideoShape(1, 32, 64, 8.0)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of 2 seconds at 24 frames per second, whose frames carry their number."""
    path = tmp_path_factory.mktemp("given") / "numbers.mp4"
    encode(path, numbered(48), time_base=Fraction(1, 24), options=LOSSLESS)
    return str(path)


@pytest.mark.parametrize(
    ("part", "frames"),
    [
        ("", range(0, 48, 3)),
        ("#t=1", range(24, 48, 3)),
        ("#t=0.5,1", range(12, 24, 3)),
        ("#t=,0.5", range(0, 12, 3)),
        ("#t=1.5,90", range(36, 48, 3)),
    ],
)
def test_all_frames_of_a_part_are_read(video: str, part: str, frames: range) -> None:
    found = read_given_video(video + part, SHAPE)
    assert found.shape == (len(frames), 32, 64, 3)
    assert [number_of(frame) for frame in found] == list(frames)


def test_small_videos_are_enlarged_with_a_warning(video: str, caplog: pytest.LogCaptureFixture) -> None:
    found = read_given_video(f"{video}#t=0,0.1", VideoShape(1, 128, 256, 8.0))
    assert found.shape == (1, 128, 256, 3)
    assert "is 128x64 and is enlarged to 256x128" in caplog.text


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("#t=2", "nothing in that part; the video has 2 seconds"),
        ("#t=1,1", "nothing in that part"),
        ("#t=1.1.1", "'#t=1.1.1' is not a part of a video; write its seconds"),
        (".gone", "numbers.mp4.gone: cannot be read as a video: "),
    ],
)
def test_faults_name_the_file(video: str, part: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_videos([SampleSettings(prompt="x", video=video + part, extend="forward")])


def test_files_that_are_no_video_are_named(tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_text("words")
    with pytest.raises(ConfigError, match=r"words.mp4: cannot be read as a video: .*; name a video file"):
        check_videos([SampleSettings(prompt="x", video=str(tmp_path / "words.mp4"), edit="sdedit")])
