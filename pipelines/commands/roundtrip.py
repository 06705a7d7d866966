"""`worldloom roundtrip`: a video beside what an autoencoder makes of it, with PSNR and SSIM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.config import ConfigError, Document, Settings, parse, parse_document, parse_options
from cluster.plugins import PluginField
from pipelines.commands._console import console, print_value
from pipelines.commands._options import read_recipe, with_options
from pipelines.steps.encode import Encode
from pipelines.video.part import VideoPart
from training.autoencoder import FOLDER, AutoencoderSettings
from training.autoencoders.linear import Linear


class _Choice(Settings):
    autoencoder: Annotated[AutoencoderSettings, PluginField(FOLDER, AutoencoderSettings)] = Linear()


def choose_autoencoder(recipe: Path | None, text: str | None) -> AutoencoderSettings:
    """Return the autoencoder of a recipe, or one written as YAML (`{name: linear, channels: 48}`), or `linear`.

    Raises `ConfigError` if both are given, if the recipe has no encode step, or for bad YAML.
    """
    if recipe is not None and text is not None:
        raise ConfigError("--recipe and --autoencoder both name an autoencoder; give one of them")
    if recipe is not None:
        steps = read_recipe(recipe, None).curate
        if not steps or not isinstance(steps[-1], Encode):
            raise ConfigError(f"{recipe}: the recipe does not end in an encode step; give --autoencoder")
        return steps[-1].autoencoder
    if text is not None:
        data = {"autoencoder": parse_document(text, "--autoencoder").data}
        return parse(_Choice, Document("--autoencoder", data, {})).autoencoder
    return Linear()


@with_options(VideoPart, ("start_s", "frames", "size", "fps"))
def command(
    video: Annotated[str, typer.Argument(help="The video to encode and decode.")],
    options: dict[str, Any],
    recipe: Annotated[Path | None, typer.Option(help="Take the autoencoder of this recipe's encode step.")] = None,
    autoencoder: Annotated[
        str | None, typer.Option(metavar="YAML", help="The autoencoder: '{name: linear, channels: 48}'.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The mp4 to write; the video's name with -roundtrip in this folder by default.")
    ] = None,
) -> None:
    """Encode and decode a video. Writes source, reconstruction and difference (4x, on grey) side by side as an mp4.

    Prints PSNR and SSIM.
    """
    from pipelines.commands._reconstruction import write_roundtrip  # imports torch, which takes 2 s

    part = parse_options(VideoPart, options)
    made = write_roundtrip(video, choose_autoencoder(recipe, autoencoder), part, out)
    shape = f"{made.frames} frames of {made.width}x{made.height} at {made.fps:g} fps"
    text = f"{made.autoencoder}: {shape}: PSNR {made.psnr_db:.2f} dB, SSIM {made.ssim:.4f}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    print_value(made.uri)
