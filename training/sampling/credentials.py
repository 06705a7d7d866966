"""Content credentials (C2PA): manifests that say how a file was made, signed into it and read back.

Files are signed as files, not as bytes in memory, so memory does not grow with a video. Nothing is sent anywhere unless
a timestamp authority is named.
"""

from __future__ import annotations

import importlib.util
import io
import mimetypes
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image

from cluster import storage
from training.sampling.certificates import SigningIdentity
from training.sampling.provenance import version
from training.sampling.sign_command import sign_by_command
from training.sampling.source_type import GENERATED

if TYPE_CHECKING:
    import c2pa

RECORD_LABEL = "worldloom.generation"
"""Label of our own assertion: the hashes of the model and of the record, the watermark, and the prompt if wanted."""
UNTRUSTED = "signingCredential.untrusted"
"""Code of C2PA for a signer that is not on a list of trusted ones, which no local certificate is."""
SETTINGS = {
    "version": 1,
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": False},
    "builder": {"thumbnail": {"enabled": False}},
}


def is_installed() -> bool:
    """Return whether the package that signs is installed: `c2pa-python`."""
    return importlib.util.find_spec("c2pa") is not None


Relationship = Literal["inputTo", "componentOf"]
"""Relation of an ingredient to a file, in C2PA's words: a model saw it, or it is in the file itself."""


class Ingredient(NamedTuple):
    """A file that another one is made from."""

    label: str
    relationship: Relationship
    archive: bytes
    """Its hash, and its own credentials if it has some, as c2pa archives them."""


@dataclass(frozen=True)
class Origin:
    """The content of a manifest: how a file was made."""

    source_type: str
    """Digital source type, a URI of the IPTC."""
    facts: Mapping[str, str | None] = field(default_factory=dict)
    """Facts of our own: hashes of the model and of the record, the watermark, the prompt."""
    ingredients: tuple[Ingredient, ...] = ()
    """Files that it was made from."""


class Signer:
    """A signer of files. Raises `ValueError` when it is made, if its certificate or timestamp authority does not sign.

    A tiny image is signed and read back for that.
    """

    def __init__(self, identity: SigningIdentity, timestamp: str | None = None) -> None:
        import c2pa

        self._identity, self._timestamp = identity, timestamp
        self._command_error: Exception | None = None
        try:
            self._signer = self._open()
            problems = self._try()
        except (c2pa.C2paError, RuntimeError) as error:
            raise ValueError(f"{self._named()} does not sign: {self._command_error or error}") from error
        if problems:
            raise ValueError(f"{self._named()} does not sign as C2PA demands: {', '.join(problems)}")

    def _open(self) -> c2pa.Signer:
        import c2pa

        identity, timestamp = self._identity, self._timestamp
        if identity.private_key_pem is None:
            algorithm = c2pa.C2paSigningAlg[identity.algorithm.upper()]
            return c2pa.Signer.from_callback(self._by_command, algorithm, identity.certificates_pem.decode(), timestamp)
        info = c2pa.C2paSignerInfo(
            identity.algorithm.encode(),
            identity.certificates_pem,
            identity.private_key_pem,
            timestamp and timestamp.encode(),
        )
        return c2pa.Signer.from_info(info)

    def _by_command(self, data: bytes) -> bytes:
        """Sign data by the user's program. An error is kept, and an empty signature tells c2pa that there is one."""
        try:
            return sign_by_command(data, self._identity.algorithm)
        except RuntimeError as error:
            self._command_error = error
            return b""

    def _named(self) -> str:
        authority = f" with the timestamp authority {self._timestamp}" if self._timestamp else ""
        return f"the certificate of '{self._identity.name}'{authority}"

    def _try(self) -> list[str]:
        """Sign an image of one pixel and return what is wrong with its credentials, but for trust."""
        with tempfile.TemporaryDirectory(prefix="worldloom-") as folder:
            path = Path(folder) / "pixel.png"
            Image.new("RGB", (1, 1)).save(path)
            self.sign(path, Origin(GENERATED))
            report = read_credentials(path)
        return ["nothing was signed"] if report is None else list(report.problems)

    def sign(self, path: Path, origin: Origin) -> None:
        """Sign a file in place. Raises `RuntimeError`, naming the file, if that fails."""
        import c2pa

        signed = path.with_name(f"signed-{path.name}")
        builder = c2pa.Builder(_manifest(origin), _context())
        for one in origin.ingredients:
            builder.add_ingredient_from_archive(io.BytesIO(one.archive))
        try:
            builder.sign_file(path, signed, self._signer)
            signed.replace(path)
        except c2pa.C2paError as error:
            reason = self._command_error or error
            raise RuntimeError(f"{path.name} cannot be signed by {self._named()}: {reason}") from error
        finally:
            signed.unlink(missing_ok=True)


def _manifest(origin: Origin) -> dict[str, Any]:
    software = {"name": "worldloom", "version": version()}
    action = {"action": "c2pa.created", "digitalSourceType": origin.source_type, "softwareAgent": software}
    placed = [one.label for one in origin.ingredients if one.relationship == "componentOf"]
    placing = [{"action": "c2pa.placed", "parameters": {"ingredientIds": placed}}] if placed else []
    assertions: list[dict[str, Any]] = [{"label": "c2pa.actions.v2", "data": {"actions": [action, *placing]}}]
    facts = {name: value for name, value in origin.facts.items() if value is not None}
    if facts:
        assertions.append({"label": RECORD_LABEL, "data": facts})
    return {"claim_generator_info": [software], "assertions": assertions}


@cache
def _context() -> c2pa.Context:
    import c2pa

    return c2pa.Context.from_dict(SETTINGS)


def read_ingredient(uri: str, relationship: Relationship) -> Ingredient:
    """Return a file as an ingredient, named without its folder. Raises `OSError` if it cannot be read."""
    import c2pa

    name = uri.rpartition("/")[2]
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    label = f"ingredient-{storage.digest(uri, relationship)}"
    description = {"title": name, "relationship": relationship, "label": label, "instance_id": label}
    archive = io.BytesIO()
    with c2pa.Builder({}, _context()) as builder:
        with storage.open_input(uri) as file:
            builder.add_ingredient(description, kind, file)
        builder.write_ingredient_archive(label, archive)
    return Ingredient(label, relationship, archive.getvalue())


@dataclass(frozen=True)
class CredentialsReport:
    """The content of a file's credentials, and whether they hold."""

    problems: tuple[str, ...]
    """Codes of C2PA for what is wrong, apart from a signer that is on no list of trust; empty if they hold."""
    trusted: bool
    """Whether the signer is on a list of trust."""
    signer: str | None
    """Common name of the certificate that signed."""
    generator: str
    """Program that made the file."""
    source_types: tuple[str, ...]
    """Digital source types of its actions, without the vocabulary."""
    facts: Mapping[str, Any]
    """Our own assertion, empty for files of other programs."""
    ingredients: tuple[str, ...]
    """Names of the files that it was made from."""

    @property
    def hold(self) -> bool:
        """Whether file and credentials are as they were signed."""
        return not self.problems


def read_credentials(path: Path | str) -> CredentialsReport | None:
    """Return the credentials of a file and check them; None if it has none.

    The file is read as a whole, in parts. Raises `RuntimeError` if its credentials cannot be read.
    """
    with _reading(path) as reader:
        if reader is None:
            return None
        manifest = reader.get_active_manifest() or {}
        results = (reader.get_validation_results() or {}).get("activeManifest", {})
    codes = [failure["code"] for failure in results.get("failure", [])]
    assertions = {one["label"]: one["data"] for one in manifest.get("assertions", [])}
    actions = [
        action for label, data in assertions.items() if label.startswith("c2pa.actions") for action in data["actions"]
    ]
    types = [action["digitalSourceType"].rpartition("/")[2] for action in actions if "digitalSourceType" in action]
    signature = manifest.get("signature_info") or {}
    generators = manifest.get("claim_generator_info") or [{"name": manifest.get("claim_generator") or "unknown"}]
    return CredentialsReport(
        problems=tuple(dict.fromkeys(code for code in codes if code != UNTRUSTED)),
        trusted=UNTRUSTED not in codes,
        signer=signature.get("common_name") or signature.get("issuer"),
        generator=" ".join(str(generators[0][key]) for key in ("name", "version") if key in generators[0]),
        source_types=tuple(dict.fromkeys(types)),
        facts=assertions.get(RECORD_LABEL, {}),
        ingredients=tuple(one.get("title", "") for one in manifest.get("ingredients", [])),
    )


@contextmanager
def _reading(path: Path | str) -> Iterator[c2pa.Reader | None]:
    import c2pa

    try:
        reader = c2pa.Reader.try_create(str(path), context=_context())
    except c2pa.C2paError as error:
        if "NotSupported" in type(error).__name__:
            yield None
            return
        raise RuntimeError(f"{path}: its credentials cannot be read: {error}") from error
    if reader is None:
        yield None
        return
    with reader:
        yield reader
