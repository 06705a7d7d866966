"""`worldloom inspect`: samples say that they were generated, other files do not, and changed ones are told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.commands._given_videos import read_given_video
from pipelines.commands._inspection import inspect_file
from pipelines.commands._media import read_frames
from tests.support.command_line import CommandLine
from tests.support.watermark_networks import flat_frames, install
from tests.training.sampling.test_media import moving_gradient
from training.sampling.mark_settings import MarkSettings
from training.sampling.marks import Marker, payload_of
from training.sampling.media import write_mp4, write_png
from training.sampling.settings import SampleSettings
from training.sampling.tasks import Inputs, sample
from training.sampling.watermarks.rivagan import RivaGAN
from training.sampling.watermarks.trustmark import TrustMark

MODEL = "drawn-world"
"""The shipped model: an untrained one makes noise, in which no mark is found."""
SETTINGS = SampleSettings(prompt="A red circle spins.", seconds=2, size="112x64", steps=3, guidance=1)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp", "png"])
def test_a_sample_tells_all_of_itself(suffix: str, tmp_path: Path, worldloom: CommandLine) -> None:
    change = {"seconds": 0.0, "size": "192x128"} if suffix == "png" else {"format": suffix}
    file = sample(SETTINGS.model_copy(update=change), MODEL, str(tmp_path))
    ended = worldloom("inspect", file, "--json")
    assert ended.exit_code == 0, ended.stderr
    (found,) = json.loads(ended.stdout)
    assert (found["file"], found["verdict"]) == (file, "generated")
    assert list(found["digital_source_types"].values()) == [["trainedAlgorithmicMedia"]] * 2
    assert found["credentials"]["hold"]
    record = json.loads(Path(f"{file}.json").read_text())
    assert found["record"] == {"fits": True, **record}
    facts = found["credentials"]["facts"]
    assert (facts["model"], facts["watermark"]) == (record["model"]["weights"], record["marks"]["watermark"])
    assert "prompt" not in facts
    if suffix == "mp4":
        assert found["watermark"]["payload"] == record["marks"]["watermark"]
        assert found["watermark"]["false_positive_probability"] < 1e-10
    lines = worldloom("inspect", file).stdout
    assert "hold; made by worldloom 0.1.0, signed by worldloom local signer" in lines
    assert "the one that the credentials name" in lines


@pytest.mark.slow
def test_changed_and_stripped_samples(tmp_path: Path, worldloom: CommandLine) -> None:
    file = Path(sample(SETTINGS, MODEL, str(tmp_path)))
    stripped = tmp_path / "stripped.mp4"
    write_mp4(str(stripped), read_frames(str(file)), 8)
    ended = worldloom("inspect", stripped, "--json")
    assert ended.exit_code == 0
    (found,) = json.loads(ended.stdout)
    assert (found["verdict"], found["credentials"], found["record"]) == ("generated", None, None)
    assert found["watermark"]["found"], "the watermark outlives the metadata"
    assert worldloom("inspect", stripped, "--no-watermark").exit_code == 3
    data = bytearray(file.read_bytes())
    start = data.index(b"mdat")
    data[start + 800] ^= 1
    (tmp_path / "changed.mp4").write_bytes(data)
    ended = worldloom("inspect", file, tmp_path / "changed.mp4", "--no-watermark")
    assert ended.exit_code == 1
    assert "DO NOT HOLD: assertion.bmffHash.mismatch" in ended.stdout
    Path(f"{file}.json").write_text('{"prompt": "another"}')
    assert "NOT that of the credentials" in worldloom("inspect", file, "--no-watermark").stdout


@pytest.mark.slow
def test_unmarked_and_unreadable_files(tmp_path: Path, worldloom: CommandLine) -> None:
    write_mp4(str(tmp_path / "a.mp4"), moving_gradient(), 8)
    write_png(str(tmp_path / "a.png"), moving_gradient()[0])
    Image.fromarray(moving_gradient()[0]).save(tmp_path / "a.jpg")
    ended = worldloom("inspect", *sorted(tmp_path.iterdir()))
    assert ended.exit_code == 3
    assert ended.stdout.count("verdict  unmarked") == 3
    assert "not found" in ended.stdout
    (tmp_path / "text.mp4").write_text("no video")
    for file, message in (("text.mp4", "cannot be read"), ("none.mp4", "FileNotFoundError")):
        ended = worldloom("inspect", tmp_path / "a.png", tmp_path / file, "--json")
        assert ended.exit_code == 1
        sound, unreadable = json.loads(ended.stdout)
        assert sound["verdict"] == "unmarked"
        assert message in unreadable["error"]
    ended = worldloom("inspect", tmp_path / "a.png", "--key", tmp_path / "none")
    assert (ended.exit_code, "the key of the watermark cannot be read" in ended.stderr) == (2, True)


@pytest.mark.slow
def test_marks_that_are_off_and_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    off = sample(SETTINGS, MODEL, str(tmp_path / "off"), marks=MarkSettings.model_validate("off"))
    assert "marks: credentials and watermark off" in caplog.text
    assert inspect_file(off).verdict == "unmarked"
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef")
    marks = MarkSettings(credentials=False, watermark_key=str(secret))
    hidden = sample(SETTINGS, MODEL, str(tmp_path / "hidden"), marks=marks)
    assert inspect_file(hidden).verdict == "unmarked"
    found = inspect_file(hidden, secret.read_bytes()).watermarks["spread_spectrum"]
    record = json.loads(Path(f"{hidden}.json").read_text())
    assert found.payload == int(record["marks"]["watermark"], 16)
    assert found.payload >> 16 == payload_of(record["model"]["weights"], "any batch") >> 16
    assert "0123456789abcdef" not in Path(f"{hidden}.json").read_text() + caplog.text


@pytest.mark.slow
def test_given_frames_are_not_marked(tmp_path: Path) -> None:
    given = np.full((24, 64, 112, 3), 128, np.uint8)
    write_mp4(str(tmp_path / "given.mp4"), given, 8, crf=0)
    settings = SETTINGS.model_copy(update={"video": str(tmp_path / "given.mp4"), "extend": "forward", "format": "webp"})
    file = sample(settings, MODEL, str(tmp_path), Inputs(read_video=read_given_video))
    found = inspect_file(file)
    assert found.credentials is not None
    assert found.credentials.hold
    assert found.credentials.ingredients == ("given.mp4",)
    assert found.credentials.source_types == ("compositeWithTrainedAlgorithmicMedia",)
    assert found.found_watermark == "spread_spectrum"
    with Image.open(file) as animation:
        first = np.asarray(animation.convert("RGB")).astype(int)
    assert np.ptp(first) <= 2


@pytest.mark.slow
def test_marks_of_installed_networks_are_found(
    tmp_path: Path, worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("trustmark", tmp_path / "site", monkeypatch)
    file = str(tmp_path / "a.png")
    marker = Marker(MarkSettings(credentials=False, watermark_method=TrustMark()))
    marks = marker.write(file, flat_frames()[0], 8, "weights", "batch")
    ended = worldloom("inspect", file, "--json")
    assert ended.exit_code == 0, ended.stderr
    (found,) = json.loads(ended.stdout)
    assert (found["verdict"], found["watermark"]["method"]) == ("generated", "trustmark")
    assert found["watermark"]["methods"] == ["spread_spectrum", "trustmark"]
    assert found["watermark"]["payload"] == marks["watermark"]
    assert found["watermark"]["false_positive_probability"] == pytest.approx(2.0**-29)
    assert (
        "found by trustmark; without a mark, the probability of this is at most 10^-8"
        in worldloom("inspect", file).stdout
    )
    write_png(str(tmp_path / "plain.png"), flat_frames()[0])
    ended = worldloom("inspect", tmp_path / "plain.png")
    assert (ended.exit_code, "not found by spread_spectrum, trustmark" in ended.stdout) == (3, True)


def test_samples_too_small_for_a_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("rivagan", tmp_path / "site", monkeypatch)
    marks = MarkSettings(credentials=False, watermark_method=RivaGAN())
    with pytest.raises(ValueError, match="watermark_method rivagan: frames of 112x64 are too small"):
        sample(SETTINGS, MODEL, str(tmp_path), marks=marks)
