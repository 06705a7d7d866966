"""A program of the user's signs with a key that worldloom does not see."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.training.sampling.test_certificates import write_files
from tests.training.sampling.test_embedded_metadata import write_media
from training.sampling.certificates import read_identity
from training.sampling.credentials import Origin, Signer, read_credentials
from training.sampling.mark_settings import MarkSettings
from training.sampling.marks import Marker
from training.sampling.sign_command import VARIABLE, sign_by_command, sign_command
from training.sampling.source_type import GENERATED

PROGRAM = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

key = load_pem_private_key(Path(sys.argv[1]).read_bytes(), None)
signature = key.sign(sys.stdin.buffer.read(), ec.ECDSA(SHA256()))
if sys.argv[2] == "integers":
    signature = b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(signature))
sys.stdout.buffer.write(signature)
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a certificate and a key; the environment names no program."""
    monkeypatch.delenv(VARIABLE, raising=False)
    return write_files(tmp_path)


def name_program(monkeypatch: pytest.MonkeyPatch, code: str, *arguments: object) -> None:
    monkeypatch.setenv(VARIABLE, shlex.join([sys.executable, "-c", code, *map(str, arguments)]))


@pytest.mark.parametrize("form", ["der", "integers"])
def test_a_program_signs(files: tuple[Path, Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = files
    (tmp_path / "elsewhere").mkdir()
    hidden = key.rename(tmp_path / "elsewhere" / "key of the module.pem")
    name_program(monkeypatch, PROGRAM, hidden, form)
    path = write_media(tmp_path / "a.png")
    Signer(read_identity(str(certificate), None)).sign(path, Origin(GENERATED))
    report = read_credentials(path)
    assert report is not None
    assert (report.hold, report.signer) == (True, "worldloom local signer")


def test_a_certificate_alone_names_both_fixes(files: tuple[Path, Path]) -> None:
    certificate, _ = files
    with pytest.raises(ValueError, match=rf"nothing signs .* as private_key, or set {VARIABLE}"):
        Marker(MarkSettings(certificate=str(certificate)))


def test_another_key_is_told_before_sampling(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, _ = files
    (tmp_path / "other").mkdir()
    _, other = write_files(tmp_path / "other")
    name_program(monkeypatch, PROGRAM, other, "der")
    with pytest.raises(ValueError, match="does not sign"):
        Marker(MarkSettings(certificate=str(certificate)))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('token is locked')", "ended with 1: token is locked"),
        ("pass", "it wrote no signature"),
        ("print('abc')", "wrote 4 bytes that are no signature of es256"),
    ],
)
def test_what_a_program_says_is_repeated(
    files: tuple[Path, Path], code: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_program(monkeypatch, code)
    with pytest.raises(ValueError, match=f"does not sign: {VARIABLE}: .*{message}"):
        Signer(read_identity(str(files[0]), None))


def test_programs_that_cannot_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "no-such-program --sign")
    with pytest.raises(RuntimeError, match=f"{VARIABLE}: .*no-such-program"):
        sign_by_command(b"data", "ps256")
    monkeypatch.setenv(VARIABLE, "sign 'a")
    with pytest.raises(ValueError, match=f"{VARIABLE}: cannot be split"):
        sign_command()
