"""Signed files: c2pa's own reader accepts them, pixels stay, and a change of one bit is told."""

from __future__ import annotations

import json
from pathlib import Path

import c2pa
import pytest

from tests.training.sampling.test_embedded_metadata import SUFFIXES, shown, write_media
from training.sampling import certificates
from training.sampling.certificates import SigningIdentity, local_identity
from training.sampling.credentials import Ingredient, Origin, Signer, read_credentials, read_ingredient
from training.sampling.source_type import GENERATED, says_generated

FACTS = {"model": "0123", "recipe": "4567", "prompt": None}


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer(local_identity())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_signed_files_are_valid_and_show_the_same(signer: Signer, suffix: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / f"a.{suffix}")
    before = shown(path)
    signer.sign(path, Origin(GENERATED, FACTS))
    assert shown(path) == before
    assert list(tmp_path.iterdir()) == [path]
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_validation_state() == "Valid"
        manifest = reader.get_active_manifest()
    (actions,) = (one["data"]["actions"] for one in manifest["assertions"] if one["label"].startswith("c2pa.actions"))
    assert [(action["action"], action["digitalSourceType"]) for action in actions] == [("c2pa.created", GENERATED)]
    report = read_credentials(path)
    assert report is not None
    assert (report.hold, report.trusted, report.signer) == (True, False, "worldloom local signer")
    assert (report.source_types, report.facts) == (("trainedAlgorithmicMedia",), {"model": "0123", "recipe": "4567"})
    with path.open("rb") as file:
        assert says_generated(file)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_changed_file_is_told(signer: Signer, suffix: str, tmp_path: Path) -> None:
    path = write_media(tmp_path / f"a.{suffix}")
    plain = path.read_bytes()
    signer.sign(path, Origin(GENERATED))
    data = bytearray(path.read_bytes())
    # A byte of the pixels, which are stored as they were.
    start = data.index(plain[-40:-20]) if suffix != "gif" else data.index(plain[-200:-180])
    data[start] ^= 1
    path.write_bytes(data)
    report = read_credentials(path)
    assert report is not None
    assert not report.hold
    assert any("mismatch" in problem for problem in report.problems)


def test_files_without_credentials_have_none(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        assert read_credentials(write_media(tmp_path / f"a.{suffix}")) is None
    (tmp_path / "a.txt").write_text("x")
    assert read_credentials(tmp_path / "a.txt") is None


def test_ingredients_keep_their_own_credentials(signer: Signer, tmp_path: Path) -> None:
    image, video, out = (write_media(tmp_path / name) for name in ("a.png", "b.mp4", "out.mp4"))
    signer.sign(image, Origin(GENERATED, {"model": "of the image"}))
    ingredients = (read_ingredient(str(image), "inputTo"), read_ingredient(str(video), "componentOf"))
    # As they travel to workers.
    ingredients = tuple(Ingredient(*one) for one in ingredients)
    signer.sign(out, Origin(GENERATED, {}, ingredients))
    report = read_credentials(out)
    assert report is not None
    assert report.hold
    assert report.ingredients == ("a.png", "b.mp4")
    with c2pa.Reader(str(out)) as reader:
        store = json.loads(reader.json())
    assert len(store["manifests"]) == 2
    assert "of the image" in json.dumps(store)
    assert str(tmp_path) not in json.dumps(store), "folders are private"


def test_certificates_that_c2pa_refuses_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        certificates.ExtendedKeyUsageOID, "EMAIL_PROTECTION", certificates.ExtendedKeyUsageOID.CLIENT_AUTH
    )
    chain, key = certificates._issue()
    with pytest.raises(ValueError, match="the certificate of 'mine' does not sign"):
        Signer(SigningIdentity(chain, key, "es256", "mine"))


def test_unreachable_timestamp_authorities_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"with the timestamp authority http://127\.0\.0\.1:9/ does not sign"):
        Signer(local_identity(), "http://127.0.0.1:9/")
