"""A shipped recipe of a published model from footage to a sample: the folder of the model is all that it needs."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, Ended
from tests.support.paths import ROOT
from tests.support.published_models import I2V_A14B, write_pipeline
from tests.support.videos import encode, sliding
from training.checkpoints.model_card import read_card
from training.sampling.media import write_png

TINY = """
curate.cut.min_s=0.5
curate.keep={luma: {min: 0.01}}
curate.encode={min_psnr_db: 0, buckets: [{size: 32, frames: [9], fps: 8, aspects: ["3:2"]}]}
splits.val=0.3
train.steps=2
train.warmup_steps=1
train.precision=fp32
train.zero_stage=0
train.batch.tokens_per_step=100
"""
"""Settings by which the recipe runs on a CPU in seconds."""


def write_footage(folder: Path) -> None:
    """Write three videos with captions beside them."""
    folder.mkdir()
    for number in range(3):
        video = sliding(40, 1.0 + number, 96, 64, seed=number)
        encode(folder / f"{number}.mp4", video, time_base=Fraction(1, 24))
        (folder / f"{number}.txt").write_text(f"ball {number}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "encoder", "options"),
    [
        ("wan", "t5", {}),
        ("ltx2", "gemma", {"size": "96x64"}),
        ("hunyuan", "llama_clip", {"guidance_method": "embedded"}),
    ],
)
def test_footage_becomes_samples_by_the_models_own_encoders(
    family: str, encoder: str, options: dict[str, str], tmp_path: Path, worldloom: CommandLine
) -> None:
    model = write_pipeline(tmp_path / "model", family)
    write_footage(tmp_path / "in")
    sample = {"prompt": "a ball", "seconds": 1, "size": "64x32", "steps": 2, "name": "ball"} | options
    # The decoder of LTX-2 takes at least two cells of 32 pixels along a side.
    tiny = TINY.replace("size: 32", "size: 80") if family == "ltx2" else TINY
    assignments = [
        *tiny.strip().splitlines(),
        f"out={tmp_path}/out",
        f"train.model.path={model}",
        f"sources=[{{videos: '{tmp_path}/in/*.mp4', captions: sidecar}}]",
        f"sample=[{json.dumps(sample)}]",
    ]
    sets = [part for one in assignments for part in ("--set", one)]
    ended = worldloom("run", ROOT / "pipelines/recipes/finetune-wan.yaml", "--inline", *sets)
    assert ended.exit_code == 0, ended.stderr
    assert (tmp_path / "out" / "samples" / "ball.mp4").stat().st_size > 0
    (export,) = (tmp_path / "out").glob("run-*/export")
    card = read_card(str(export))
    assert card.text_encoder.name == encoder
    assert card.autoencoder.name == "diffusers"
    assert card.adapter is not None
    assert card.adapter.base == str(model)


@pytest.mark.slow
def test_an_expert_of_image_to_video_makes_a_video_of_an_image(tmp_path: Path, worldloom: CommandLine) -> None:
    model = write_pipeline(tmp_path / "model", "wan", I2V_A14B, in_channels=36)
    write_footage(tmp_path / "in")
    write_png(str(tmp_path / "first.png"), sliding(1, 1.0, 64, 32, seed=9)[0])
    sample = "prompt: a ball, seconds: 1, size: 64x32, steps: 4, name: ball, guidance_low_noise: 3"
    assignments = [
        *TINY.strip().splitlines(),
        f"out={tmp_path}/out",
        f"train.model={{name: diffusers, path: {model}, expert: high_noise}}",
        f"sources=[{{videos: '{tmp_path}/in/*.mp4', captions: sidecar}}]",
    ]

    def run(settings: str) -> Ended:
        sets = [part for one in [*assignments, settings] for part in ("--set", one)]
        return worldloom("run", ROOT / "pipelines/recipes/finetune-wan.yaml", "--inline", *sets)

    ended = run(f"sample=[{{{sample}}}]")
    assert "sample.0: model diffusers makes a video of an image alone; give first, the image" in ended.stderr
    ended = run("evaluate={clips: 1}")
    assert "evaluate: model diffusers makes a video of an image alone, and evaluate gives it none" in ended.stderr
    assert not (tmp_path / "out").exists()
    ended = run(f"sample=[{{{sample}, first: {tmp_path}/first.png}}]")
    assert ended.exit_code == 0, ended.stderr
    assert (tmp_path / "out" / "samples" / "ball.mp4").stat().st_size > 0
