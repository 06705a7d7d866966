"""The certificate that signs content credentials: the user's own, or a local one that is made at first use.

The local one is a leaf below a certificate authority of its own, as C2PA refuses certificates that sign themselves. The
authority's private key is never stored: it signs the leaf and is forgotten.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster import storage
from cluster.telemetry import log

CERTIFICATE_FILE, KEY_FILE = "certificate.pem", "private-key.pem"
VALID_DAYS = 3652
"""Days that a local certificate is valid. Without a timestamp, credentials hold as long as their certificate."""
MAX_PEM_BYTES = 1 << 20
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""Algorithms of C2PA 2.2, section 13.2.1, by the curve of the key."""


@dataclass(frozen=True)
class SigningIdentity:
    """A certificate with those of its issuers, and its private key, which no text of this object shows."""

    certificates_pem: bytes
    private_key_pem: bytes | None = field(repr=False)
    """None if a program signs with it (`training.sampling.sign_command`)."""
    algorithm: str
    """Name of the signature's algorithm in C2PA, such as `es256`."""
    name: str
    """Common name of the certificate's subject."""


def configuration_folder() -> Path:
    """Return the user's folder for worldloom: `$XDG_CONFIG_HOME/worldloom`, by default `~/.config/worldloom`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "worldloom"


def local_identity() -> SigningIdentity:
    """Return the local identity of this user, which is made at first use. Raises `ValueError` once it expired."""
    folder = configuration_folder() / "signing"
    if not folder.is_dir():
        _make_local(folder)
    try:
        return read_identity(str(folder / CERTIFICATE_FILE), str(folder / KEY_FILE))
    except ValueError as error:
        raise ValueError(f"{error}. Remove the folder {folder}, and a new one is made") from error


def read_identity(certificate_uri: str, key_uri: str | None) -> SigningIdentity:
    """Read the PEM files of a certificate, with those of its issuers, and of its private key if a file has that.

    Raises `ValueError`, naming the file and the fix, if one cannot be read, if they do not belong together, and if the
    certificate is not valid now or signed by itself.
    """
    certificates_pem = _read(certificate_uri)
    try:
        certificates = x509.load_pem_x509_certificates(certificates_pem)
    except ValueError as error:
        raise ValueError(f"{certificate_uri}: is no certificate in PEM: {error}") from error
    leaf, pkcs8 = certificates[0], None
    if key_uri is not None:
        key = _load_key(key_uri, _read(key_uri))
        if _public_bytes(leaf.public_key()) != _public_bytes(key.public_key()):
            raise ValueError(
                f"{certificate_uri}: the first certificate is not that of the key {key_uri}; the signer's certificate "
                "comes first, then those of its issuers"
            )
        pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _check_validity(leaf, certificate_uri)
    if leaf.issuer == leaf.subject:
        raise ValueError(f"{certificate_uri}: the certificate signs itself, which C2PA refuses; take one of an issuer")
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(names[0].value) if names else leaf.subject.rfc4514_string()
    return SigningIdentity(certificates_pem, pkcs8, _algorithm(leaf.public_key(), certificate_uri), name)


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri, MAX_PEM_BYTES)
    except OSError as error:
        raise ValueError(f"{uri}: cannot be read: {error}") from error


def _load_key(uri: str, pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, None)
    except TypeError as error:
        raise ValueError(f"{uri}: the key has a password; write one without, readable by you alone") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{uri}: is no private key in PEM") from error


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _check_validity(leaf: x509.Certificate, uri: str) -> None:
    now = datetime.now(UTC)
    if now > leaf.not_valid_after_utc:
        raise ValueError(f"{uri}: the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d}; renew it")
    if now < leaf.not_valid_before_utc:
        raise ValueError(
            f"{uri}: the certificate is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; check the clock"
        )


def _algorithm(key: PublicKeyTypes, uri: str) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return "ps256"
    raise ValueError(f"{uri}: C2PA signs with keys of P-256, P-384, P-521, Ed25519 or RSA from 2048 bits on")


def _make_local(folder: Path) -> None:
    """Make a local identity. Of several processes that do so at once, all end up with the same one."""
    certificates_pem, key_pem = _issue()
    temporary = folder.with_name(f".signing-{secrets.token_hex(6)}")
    try:
        temporary.mkdir(0o700, parents=True)
        for name, data in ((CERTIFICATE_FILE, certificates_pem), (KEY_FILE, key_pem)):
            descriptor = os.open(temporary / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        # A folder that is not empty is never replaced: the first process wins.
        with contextlib.suppress(OSError):
            temporary.rename(folder)
            log.info(f"made a certificate that signs content credentials, valid for 10 years: {folder}")
    except OSError as error:
        raise ValueError(
            f"{folder}: the certificate that signs samples cannot be stored: {error}; set XDG_CONFIG_HOME, or name a "
            "certificate of your own in `marks`"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _issue() -> tuple[bytes, bytes]:
    """Return a new certificate with that of its authority, and its private key, in PEM."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name, name = _name("worldloom local authority"), _name("worldloom local signer")
    extensions = (
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_usage(certificates=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), False),
    )
    authority = _sign(authority_name, authority_name, authority_key.public_key(), extensions, authority_key)
    extensions_of_leaf = (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(certificates=False), True),
        # C2PA wants a purpose; that of signed mail is accepted everywhere.
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    )
    leaf = _sign(name, authority_name, key.public_key(), extensions_of_leaf, authority_key)
    chain = leaf.public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM)
    return chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(common_name: str) -> x509.Name:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "worldloom")
    return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(certificates: bool) -> x509.KeyUsage:
    """Return what a key signs: certificates and their revocations, or data."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...],
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    # An hour ago, for clocks that are behind where the file is read.
    start = datetime.now(UTC) - timedelta(hours=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=VALID_DAYS))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())
