"""`worldloom doctor`: what is installed, what Ray sees, what is missing and how to install it."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec

import av
import typer
from rich.markup import escape

from cluster.ray_settings import RaySettings
from pipelines.commands._console import console

REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "ray": "ray",
    "deepspeed": "deepspeed",
    "av": "av",
    "scenedetect": "scenedetect-headless",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "tensorboard": "tensorboard",
    "open_clip": "open-clip-torch",
    "c2pa": "c2pa-python",
    "cryptography": "cryptography",
}
"""The package to install for a module that every installation has."""
OPTIONAL = {
    "transformers": "worldloom[models]",
    "diffusers": "worldloom[models]",
    "peft": "worldloom[models]",
    "rapidocr": "worldloom[scores]",
    "nudenet": "worldloom[people]",
    "wandb": "worldloom[wandb]",
    "mlflow": "worldloom[mlflow]",
}
"""The package to install for a module that some settings need."""
CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4")


def print_report() -> bool:
    """Print the report. Return False if a required package is missing."""
    lines = [
        ("worldloom", _version("pipelines") or "not installed: pip install -e ."),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    lines += [(name, _version(name) or f"MISSING: pip install {package}") for name, package in REQUIRED.items()]
    lines += [(name, _version(name) or f"not installed; pip install '{package}'") for name, package in OPTIONAL.items()]
    lines.append(("decoders", ", ".join(name if _decodes(name) else f"no {name}" for name in CODECS)))
    lines.append(
        ("encoder", "libx264" if _encodes("libx264") else "no libx264: demo footage and samples are written as mpeg4")
    )
    lines.append(("accelerators", _accelerators()))
    lines.append(("disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"))
    lines.append(("ray sees", _ray_sees()))
    for name, text in lines:
        console.print(
            f"[bold]{name:>16}[/]  {escape(text)}",
            style="red" if "MISSING" in text else "",
            highlight=False,
            soft_wrap=True,
        )
    healthy = all(_version(name) for name in REQUIRED) and sys.version_info >= (3, 11)
    console.print("nothing required is missing" if healthy else "a required package is missing: see above")
    return healthy


def _ray_sees() -> str:
    from cluster.session import cluster_resources, ray_connection  # imports Ray, which other commands need not wait for

    try:
        with ray_connection(RaySettings()):
            seen = cluster_resources()
    except Exception as error:  # whatever keeps Ray from starting is what the report is for
        return f"nothing: Ray does not start: {type(error).__name__}: {error}"
    return f"{seen.get('CPU', 0):g} CPUs, {seen.get('GPU', 0):g} GPUs, {seen.get('memory', 0) / 2**30:.0f} GiB"


def _version(module: str) -> str | None:
    """Return the version of the package that a module belongs to, None if there is no such module.

    One module may come from several packages, as `scenedetect` from scenedetect and scenedetect-headless.
    """
    spec = find_spec(module)
    # wandb leaves a folder ./wandb behind, which looks like a package without an origin.
    if spec is None or spec.origin is None:
        return None
    packages = _packages_of_modules().get(module)
    return importlib.metadata.version(packages[0]) if packages else "of an unknown version"


@functools.cache
def _packages_of_modules() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _decodes(codec: str) -> bool:
    return _known(codec, "r")


def _encodes(codec: str) -> bool:
    return _known(codec, "w")


def _known(codec: str, mode: str) -> bool:
    try:
        av.Codec(codec, mode)  # type: ignore[arg-type]
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _accelerators() -> str:
    import torch  # takes two seconds, which no other command need wait for

    if not torch.cuda.is_available():
        return "none; everything runs on the CPU"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in names)


def command() -> None:
    """Show what is installed, which accelerators there are, what Ray sees, what is missing and how to install it."""
    if not print_report():
        raise typer.Exit(1)
