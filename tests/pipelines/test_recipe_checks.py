"""Faults between sections of a recipe: each is refused with its key, the value and the fix."""

from __future__ import annotations

import pytest

from cluster.config import ConfigError, parse, parse_document
from pipelines.recipe import Recipe

RECIPE = """
name: mine
out: {out}
sources:
  - {{videos: "footage/**/*.mp4", captions: sidecar}}
  - {{images: "photos/*.png"}}
curate:
  - scan: {{}}
  - cut: {{{cut}}}
  - keep: {{{keep}}}
{steps}
  - caption: {{engine: signals}}
  - encode: {{autoencoder: {autoencoder}, buckets: [{{{bucket}}}]}}
train: {{model: {{name: dit, preset: nano}}, steps: 20, warmup_steps: 5{train}}}
sample:
  - {{prompt: a street, size: {size}, name: street}}
{samples}
"""
DEFAULTS = {
    "out": "runs/mine",
    "cut": "min_s: 1.0, max_s: 6.0",
    "keep": "frozen_share: {max: 0.5}",
    "steps": "",
    "autoencoder": "linear",
    "bucket": "size: 64, frames: [1, 17], fps: 8",
    "train": "",
    "size": "128x80",
    "samples": "",
}


def message_of(**changes: str) -> str:
    """Return the error of a recipe with these changes; empty if it is valid."""
    try:
        parse(Recipe, parse_document(RECIPE.format(**DEFAULTS | changes), "r.yaml"))
    except ConfigError as error:
        return str(error)
    return ""


def test_the_recipe_without_a_change_is_valid() -> None:
    assert message_of() == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"keep": "luma: {min: 16}"},
            "keep.luma.min: luma is in [0, 1], so min 16 keeps no row; divide a percentage",
        ),
        ({"keep": "luma: {max: 235}"}, "keep.luma.max: luma is in [0, 1], so max 235 keeps every row; divide a"),
        ({"keep": "motion: {min: -1}"}, "keep.motion.min: motion is at least 0, so min -1 keeps every row"),
        ({"keep": "motion: {max: -1}"}, "keep.motion.max: motion is at least 0, so max -1 keeps no row"),
        ({"keep": "crop: {min: 0.6}"}, "curate.2.keep.crop: keep compares single values, and crop has type list"),
        ({"keep": "thumbnails: {min: 1}"}, "keep.thumbnails: keep compares single values"),
        ({"keep": "camera: {min: 1}"}, "keep.camera.min: camera is text; write in: ["),
        ({"keep": "camera: {in: [1]}"}, "keep.camera.in.0: camera is text, so 1 keeps no row"),
        ({"keep": "camera: {in: [handhold]}"}, "keep.camera.in.0: unknown value 'handhold'; did you mean 'handheld'"),
        (
            {"keep": "camera: handheld"},
            'keep.camera: Input should be an object (got "handheld"); write a mapping with keys min, max, in',
        ),
        ({"keep": "interlaced: {max: 0}"}, "keep.interlaced.max: interlaced is true or false; write in: [true]"),
        ({"keep": "interlaced: {in: [no]}"}, 'keep.interlaced.in.0: interlaced is true or false, so "no" keeps no row'),
        ({"keep": "luma: {in: [true]}"}, "keep.luma.in.0: luma is a number, so true keeps no row"),
        (
            {"steps": "  - scan: {}"},
            "curate.3.scan: scan is here twice, at curate.0 for whole files and here for",
        ),
        ({"steps": "  - cut: {}"}, "curate.3.cut: cut is here twice, and clips are not divided again"),
        ({"steps": "  - dedup: {}\n  - dedup: {}"}, "curate.4.dedup: the same as curate.3"),
        ({"steps": "  - keep: {frozen_share: {max: 0.5}}"}, "curate.3.keep: the same as curate.2"),
        ({"steps": "  - caption: {prompt: dense}"}, "curate.4.caption: replaces all columns of curate.3"),
        ({"steps": "  - frames: {}\n  - frames: {fps: 2}"}, "curate.4.frames: replaces all columns of curate.3"),
        ({"out": "footage/run"}, "sources.0.videos: footage/**/*.mp4 also matches what the run writes to out"),
        ({"out": "."}, "sources.0.videos: footage/**/*.mp4 is inside out"),
        ({"out": "photos"}, "sources.1.images: photos/*.png is inside out"),
        ({"bucket": "size: 60, frames: [17], fps: 8, multiple: 4"}, "buckets.0.multiple: multiple 4: sides must be"),
        (
            {"bucket": "size: 50, frames: [17], fps: 8"},
            "buckets.0.size: size 50 is no multiple of 16 (`multiple`); take 48",
        ),
        (
            {"cut": "min_s: 1000, max_s: 6000"},
            "curate.1.cut.min_s: 1000 seconds are more than 600; milliseconds divided",
        ),
        (
            {"cut": "max_s: 10000"},
            "curate.1.cut.max_s: 10000 seconds are more than 3600; milliseconds divided by 1000 are 10",
        ),
        ({"cut": "trim_s: 200"}, "curate.1.cut.trim_s: 200 seconds are more than 60"),
        ({"size": "128x72"}, "sample.0.size: size 128x72: width and height must be multiples of 16 pixels"),
        ({"size": "128x72"}, "take 128x64 or 128x80"),
        ({"samples": "  - {prompt: b, name: street}"}, "sample.1.name: sample.0 writes the same file, street.mp4"),
        ({"samples": "  - {prompt: b, name: Street}"}, "sample.1.name: sample.0 writes the same file, Street.mp4"),
        ({"samples": "  - {prompt: b}\n  - {prompt: b, seconds: 2}"}, "sample.2: is the same as sample.1"),
        ({"train": ", lr: .inf"}, "train.lr: Input should be a finite number"),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_faults_name_key_value_and_fix(changes: dict[str, str], expected: str) -> None:
    message = message_of(**changes)
    assert expected in message
    assert message.startswith("r.yaml:")


@pytest.mark.parametrize(
    "changes",
    [
        {"keep": "luma: {min: 0, max: 1}"},
        {"keep": "camera: {in: [still, pan]}, interlaced: {in: [false]}, width: {in: [640, 1280]}"},
        {"steps": "  - dedup: {}\n  - dedup: {method: exact}"},
        {"steps": "  - frames: {}\n  - score.text_area: {}\n  - frames: {fps: 2}"},
        {"steps": "  - keep: {frozen_share: {max: 0.4}}"},
        {"samples": "  - {prompt: b, name: street, seconds: 0}"},
        {"samples": "  - {prompt: 一只猫在跑}\n  - {prompt: 一只狗在睡}"},
        {"train": ", lr: 1e-4"},
        {"bucket": "size: 64, frames: [1, 17], fps: 8, aspects: [16:9, 1:1]"},
    ],
    ids=lambda changes: str(next(iter(changes.items()))),
)
def test_what_may_be_meant_is_accepted(changes: dict[str, str]) -> None:
    assert message_of(**changes) == ""


def test_faults_of_several_sections_are_reported_together() -> None:
    message = message_of(keep="luma: {min: 16, max: 235}, crop: {min: 0.6}", size="128x72", out="photos")
    assert [line.split(": ")[1] for line in message.splitlines()] == [
        "sources.1.images",
        "curate.2.keep.luma.min",
        "curate.2.keep.luma.max",
        "curate.2.keep.crop",
        "sample.0.size",
    ]


def test_lines_are_those_of_the_fault() -> None:
    assert message_of(keep="luma: {max: 50}").startswith("r.yaml:10: ")
