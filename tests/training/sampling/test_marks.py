"""Marks: on by default, off only by a word, and told in the log; the prompt stays private unless asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.config import validate
from pipelines.commands._media import read_frames
from tests.support.exported_models import write_untrained_export
from tests.training.sampling.test_certificates import write_files
from tests.training.sampling.test_media import moving_gradient
from training.sampling import credentials
from training.sampling.credentials import read_credentials
from training.sampling.mark_settings import MarkSettings
from training.sampling.marks import Marker, payload_of, read_key
from training.sampling.media import write_png
from training.sampling.settings import SampleSettings
from training.sampling.source_type import source_types
from training.sampling.tasks import Inputs, sample

SETTINGS = SampleSettings(prompt="a red circle", seconds=1, size="48x32", steps=2)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_untrained_export(tmp_path_factory.mktemp("export"))


def test_settings_are_on_unless_a_word_says_off() -> None:
    assert MarkSettings().missing == []
    assert validate(MarkSettings, "off").missing == ["credentials", "watermark"]
    for data, message in (
        ("on", "marks are a mapping such as {prompt: true}, or off; got 'on'"),
        ({"private_key": "a.pem"}, "private_key signs together with certificate"),
        ({"credentials": False, "timestamp": "http://a"}, "timestamp has no effect with credentials: false"),
        ({"credentials": False, "prompt": True}, "prompt has no effect with credentials: false"),
        ({"watermark": False, "watermark_key": "k"}, "has no effect with watermark: false"),
        ({"timestamp": "ftp://a"}, "String should match pattern"),
    ):
        with pytest.raises(ValueError, match=message):
            validate(MarkSettings, data)


def test_wrong_keys_and_certificates_are_told_first(tmp_path: Path) -> None:
    certificate, key = map(str, write_files(tmp_path))
    Marker(MarkSettings(certificate=certificate, private_key=key))
    (tmp_path / "short").write_text("secret\n")
    cases = [
        (MarkSettings(certificate=key, private_key=certificate), "is no certificate in PEM"),
        (MarkSettings(watermark_key=str(tmp_path / "none")), "the key of the watermark cannot be read"),
        (MarkSettings(watermark_key=str(tmp_path / "short")), "has 6 bytes; it needs 16 that nobody can guess"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            Marker(settings)
        # There is no model at that path: marks come before it.
        with pytest.raises(ValueError, match=message):
            sample(SETTINGS, str(tmp_path / "no-model"), str(tmp_path), marks=settings)


def test_a_key_is_the_text_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef\n")
    assert read_key(str(tmp_path / "key")) == b"0123456789abcdef"
    assert payload_of("a", "b") >> 16 == payload_of("a", "c") >> 16 != payload_of("b", "b") >> 16


@pytest.mark.slow
def test_the_prompt_is_private_unless_asked_for(export: str, tmp_path: Path) -> None:
    private = sample(SETTINGS, export, str(tmp_path / "private"))
    told = sample(SETTINGS, export, str(tmp_path / "told"), marks=MarkSettings(prompt=True))
    assert b"a red circle" not in Path(private).read_bytes()
    report = read_credentials(told)
    assert report is not None
    assert report.facts["prompt"] == "a red circle"
    assert np.array_equal(read_frames(private), read_frames(told))


@pytest.mark.slow
def test_other_marks_make_a_file_again(export: str, tmp_path: Path) -> None:
    def made(marks: MarkSettings) -> int:
        return Path(sample(SETTINGS, export, str(tmp_path), marks=marks)).stat().st_mtime_ns

    first = made(MarkSettings())
    assert made(MarkSettings()) == first
    assert made(MarkSettings(watermark=False)) != first


@pytest.mark.slow
def test_images_become_ingredients(export: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = tmp_path / "first.png"
    write_png(str(image), moving_gradient(width=48, height=32)[0])
    inputs = Inputs(read_image=lambda *_: moving_gradient(width=48, height=32)[0])
    settings = SETTINGS.model_copy(update={"first": str(image), "last": str(tmp_path / "gone.png")})
    report = read_credentials(sample(settings, export, str(tmp_path / "out"), inputs))
    assert report is not None
    assert report.hold
    assert report.ingredients == ("first.png",)
    assert "gone.png: is not named in the credentials of the sample" in caplog.text


@pytest.mark.slow
def test_without_the_package_there_is_xmp(
    export: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(credentials, "is_installed", lambda: False)
    file = sample(SETTINGS, export, str(tmp_path))
    assert "c2pa-python is not installed; `pip install c2pa-python` adds it" in caplog.text
    with Path(file).open("rb") as handle:
        assert source_types(handle) == {"xmp": ["trainedAlgorithmicMedia"]}


@pytest.mark.slow
def test_records_hold_no_secret(export: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = write_files(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("a secret of nobody else")
    marks = MarkSettings(certificate=str(certificate), private_key=str(key), watermark_key=str(secret))
    file = sample(SETTINGS, export, str(tmp_path / "out"), marks=marks)
    written = json.dumps(marks.model_dump()) + repr(Marker(marks)) + Path(f"{file}.json").read_text() + caplog.text
    for hidden in (key.read_text().splitlines()[1], "a secret of nobody else"):
        assert hidden not in written
        assert hidden.encode() not in Path(file).read_bytes()
