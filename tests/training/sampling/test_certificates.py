"""Certificates: a local one is made once and kept private; wrong, expired and foreign ones are refused by name."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from training.sampling import certificates
from training.sampling.certificates import local_identity, read_identity


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "worldloom" / "signing"


def write_files(folder: Path) -> tuple[Path, Path]:
    """Write a certificate and its key, and return their paths."""
    paths = folder / "certificate.pem", folder / "key.pem"
    for path, data in zip(paths, certificates._issue(), strict=True):
        path.write_bytes(data)
    return paths


def test_local_identity_is_made_once_and_is_private(folder: Path) -> None:
    first, second = local_identity(), local_identity()
    assert first == second
    assert first.algorithm == "es256"
    assert b"BEGIN" not in repr(first).encode().partition(b"private_key")[2]
    assert "PRIVATE" not in repr(first)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"certificate.pem": 0o600, "private-key.pem": 0o600}


def test_many_at_once_make_one_identity(folder: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: local_identity(), range(16)))
    assert len(set(made)) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["signing"], "nothing is left over"


def test_an_expired_local_identity_names_the_fix(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "VALID_DAYS", 0)
    with pytest.raises(ValueError, match=r"expired on 20.*Remove the folder .*signing, and a new one is made"):
        local_identity()


def test_a_folder_that_cannot_be_written_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be stored: .*; set XDG_CONFIG_HOME, or name a certificate"):
        local_identity()


def test_own_certificates_are_read(tmp_path: Path) -> None:
    certificate, key = write_files(tmp_path)
    identity = read_identity(str(certificate), str(key))
    assert (identity.name, identity.algorithm) == ("worldloom local signer", "es256")
    older = load_pem_private_key(key.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    assert older.startswith(b"-----BEGIN EC PRIVATE KEY")
    key.write_bytes(older)
    assert read_identity(str(certificate), str(key)) == identity, "c2pa takes PKCS 8 alone"


def test_wrong_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = map(str, write_files(tmp_path))
    (tmp_path / "other").mkdir()
    _, other_key = map(str, write_files(tmp_path / "other"))
    secret = load_pem_private_key(Path(key).read_bytes(), None)
    locked = secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a"))
    old_curve = ec.generate_private_key(ec.SECP224R1())
    for name, data in {"locked": locked, "text": b"no key"}.items():
        (tmp_path / name).write_bytes(data)
    cases = [
        (str(tmp_path / "none.pem"), key, "none.pem: cannot be read"),
        (key, key, "key.pem: is no certificate in PEM"),
        (certificate, str(tmp_path / "text"), "text: is no private key in PEM"),
        (certificate, str(tmp_path / "locked"), "locked: the key has a password; write one without"),
        (certificate, other_key, "the first certificate is not that of the key .*other/key.pem"),
    ]
    for certificate_uri, key_uri, message in cases:
        with pytest.raises(ValueError, match=message):
            read_identity(certificate_uri, key_uri)
    with pytest.raises(ValueError, match="k: C2PA signs with keys of P-256"):
        certificates._algorithm(old_curve.public_key(), "k")
    authority = "-----BEGIN".join(("", *Path(certificate).read_text().split("-----BEGIN")[2:]))
    Path(certificate).write_text(authority)
    with pytest.raises(ValueError, match="the first certificate is not that of the key"):
        read_identity(certificate, key)
    future = certificates.datetime.now(certificates.UTC) + timedelta(days=2)

    class Tomorrow(certificates.datetime):
        @classmethod
        def now(cls, tz: object = None) -> certificates.datetime:
            return future

    with monkeypatch.context() as patch:
        patch.setattr(certificates, "datetime", Tomorrow)
        early = write_files(tmp_path)
    with pytest.raises(ValueError, match=r"is valid from .* UTC on; check the clock"):
        read_identity(*map(str, early))
