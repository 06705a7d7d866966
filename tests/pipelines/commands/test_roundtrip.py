"""`worldloom roundtrip`: its options, and which autoencoder it takes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from cluster.config import ConfigError
from pipelines.commands._reconstruction import GAP_WIDTH
from pipelines.commands.roundtrip import choose_autoencoder
from tests.support.command_line import CommandLine
from tests.support.videos import encode, sliding
from training.autoencoders.linear import Linear

YAML = "{name: linear, channels: 48}"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Return a video of 23 frames of 68x48 at 24 fps."""
    return encode(tmp_path / "source.mp4", sliding(23, 3, 68, 48), time_base=Fraction(1, 24))


@pytest.mark.slow
def test_the_mp4_is_written_and_named_last(video: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    out = tmp_path / "made.mp4"
    part = ("--start-s", "0.1", "--frames", "9", "--size", "32", "--fps", "12")
    ended = worldloom("roundtrip", video, "--autoencoder", YAML, *part, "--out", out)
    assert ended.exit_code == 0, ended.stderr
    scores, name = ended.stdout.splitlines()
    assert "9 frames of 40x32 at 12 fps: PSNR " in scores
    assert name == str(out)
    with av.open(str(out)) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert shapes == [(32, 3 * 40 + 2 * GAP_WIDTH, 3)] * 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value"), [("--fps", "0"), ("--start-s", "nan"), ("--start-s", "-1"), ("--frames", "0"), ("--size", "0")]
)
def test_impossible_options_are_bad_input(
    option: str, value: str, video: Path, tmp_path: Path, worldloom: CommandLine
) -> None:
    ended = worldloom("roundtrip", video, option, value, "--out", tmp_path / "made.mp4")
    assert (ended.exit_code, option in ended.stderr) == (2, True), ended.stderr
    assert not (tmp_path / "made.mp4").exists()


def test_the_recipe_names_the_autoencoder(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    head = f"name: mine\nout: {tmp_path}\nsources: [{{videos: 'in/*.mp4'}}]\n"
    step = f"encode: {{autoencoder: {YAML}, buckets: [{{size: 64, frames: [1], fps: 8}}]}}"
    path.write_text(f"{head}curate: [scan: {{}}, cut: {{}}, caption: {{engine: signals}}, {step}]\n")
    assert choose_autoencoder(path, None) == Linear(channels=48)
    assert choose_autoencoder(None, YAML) == Linear(channels=48)
    assert choose_autoencoder(None, None) == Linear()
    path.write_text(head + "curate: [scan: {}]\n")
    for recipe, text, message in [
        (path, None, "does not end in an encode step"),
        (path, "linear", "give one of them"),
        (None, "{name: lineer}", "did you mean 'linear'"),
        (None, "{name: linear, chanels: 16}", "did you mean 'channels'"),
        (None, "{name: [", "not valid YAML"),
    ]:
        with pytest.raises(ConfigError, match=message):
            choose_autoencoder(recipe, text)
