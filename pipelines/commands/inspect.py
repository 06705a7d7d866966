"""`worldloom inspect`: what files say of how they were made, and whether it holds."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cluster.config import ConfigError
from pipelines.commands._console import print_facts, print_value
from pipelines.commands._options import AsJson
from pipelines.errors import FAILED
from pipelines.video.decode import DecodeError

UNMARKED = 3
"""Exit code if all files could be read and none was changed, but one says nothing of having been generated."""


def command(
    files: Annotated[list[str], typer.Argument(help="Videos, animations and images, local or remote.")],
    as_json: AsJson = False,
    key: Annotated[
        str | None, typer.Option(metavar="FILE", help="Secret of the watermark, if it was written with one.")
    ] = None,
    watermark: Annotated[
        bool, typer.Option("--watermark/--no-watermark", help="Look for invisible watermarks, which decodes frames.")
    ] = True,
) -> None:
    """Show what files say of how they were made: signed credentials, source type, invisible watermark and record.

    Exits 0 if all files say that they were generated, 3 if one does not, and 1 if one was changed after it was signed
    or cannot be read.
    """
    from pipelines.commands._inspection import inspect_file, usable_methods  # import cryptography
    from training.sampling.marks import read_key

    try:
        secret = read_key(key)
    except ValueError as error:
        raise ConfigError(f"--key: {error}") from error
    methods = usable_methods() if watermark else []
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            one = inspect_file(file, secret, methods)
            found.append(one.to_json())
            lines = one.lines()
        except (DecodeError, OSError, RuntimeError) as error:
            text = str(error) if isinstance(error, DecodeError) else f"{type(error).__name__}: {error}"
            found.append({"file": file, "error": text})
            lines = list(found[-1].items())
        if not as_json:
            print_facts(lines)
    if as_json:
        print_value(json.dumps(found, indent=2, ensure_ascii=False))
    if any("error" in one or one["verdict"] == "changed" for one in found):
        raise typer.Exit(FAILED)
    if any(one["verdict"] == "unmarked" for one in found):
        raise typer.Exit(UNMARKED)
