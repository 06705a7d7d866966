"""Signing with a private key that this process never sees: a program of the user's signs with it.

So the key may be in a security module (PKCS#11) or a signing service. The program is named by the environment and not
by the recipe, because who wrote a recipe does not decide what runs on this machine.
"""

from __future__ import annotations

import os
import shlex
import subprocess

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

VARIABLE = "WORLDLOOM_SIGN_COMMAND"
"""Environment variable with the program and its arguments, as a shell would split them. No shell runs it."""
TIMEOUT_S = 60.0
INTEGER_BYTES = {"es256": 32, "es384": 48, "es512": 66}
"""Length of each of the two integers of a signature, by the algorithm's name in C2PA."""


def sign_command() -> list[str]:
    """Return the program that signs, with its arguments; empty if the environment names none.

    Raises `ValueError` if the variable has a quote that is not closed.
    """
    try:
        return shlex.split(os.environ.get(VARIABLE, ""))
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: cannot be split into a program and its arguments: {error}") from error


def sign_by_command(data: bytes, algorithm: str) -> bytes:
    """Return the signature of data, which the program reads from its standard input, in the form of COSE (RFC 8152).

    The program writes the signature alone to its standard output. One by ECDSA may be in DER, as of OpenSSL, or the
    two integers one after the other. Raises `RuntimeError` with what it wrote to its standard error if it fails.
    """
    command = sign_command()
    try:
        ended = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{VARIABLE}: {error}") from error
    if ended.returncode or not ended.stdout:
        said = ended.stderr.decode(errors="replace").strip()[-500:] or "it wrote no signature"
        raise RuntimeError(f"{VARIABLE}: '{command[0]}' ended with {ended.returncode}: {said}")
    return _as_cose(ended.stdout, algorithm)


def _as_cose(signature: bytes, algorithm: str) -> bytes:
    """Return a signature with its two integers one after the other, if it is by ECDSA and in DER."""
    size = INTEGER_BYTES.get(algorithm)
    if size is None or len(signature) == 2 * size:
        return signature
    try:
        r, s = decode_dss_signature(signature)
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    except (ValueError, OverflowError) as error:
        raise RuntimeError(f"{VARIABLE}: wrote {len(signature)} bytes that are no signature of {algorithm}") from error
