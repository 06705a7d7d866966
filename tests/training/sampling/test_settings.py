"""Settings of a sample: its file name, and values that are refused."""

from __future__ import annotations

import re

import pytest

from cluster.config import validate
from training.sampling.settings import SampleSettings


def sample_settings(**values: object) -> SampleSettings:
    return validate(SampleSettings, {"prompt": "x", **values})


def test_file_names_are_made_from_the_settings() -> None:
    settings = sample_settings(prompt="A red circle, above a Blue square!", size="96x64", seed=3)
    assert re.fullmatch(r"a-red-circle-above-a-blue-square-96x64-seed3-[0-9a-f]{8}", settings.stem())
    assert sample_settings(name="hero").file_name() == "hero.mp4"
    assert sample_settings(name="hero", seconds=0).file_name() == "hero.png"
    with_images = sample_settings(first="/photos/A dog.jpg", last="s3://bucket/猫.png")
    # Conditioning images are part of the name, so that samples with other images have other names.
    assert with_images.stem().startswith("x-96x64-seed0-first-a-dog-last-猫-")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("赤い丸", "赤い丸"),
        ("हिन्दी किताब", "हिन्दी-किताब"),
        ("U\u0308ber", "über"),
        ("../?", "sample"),
        ("a/b\\c", "a-b-c"),
    ],
)
def test_words_of_any_script_are_kept_in_file_names(prompt: str, words: str) -> None:
    assert sample_settings(prompt=prompt).stem().startswith(f"{words}-96x64-seed0-")


def test_long_prompts_fit_into_a_file_name() -> None:
    stem = sample_settings(prompt="猫" * 500, first="a" * 500, last="b" * 500).file_name()
    assert len(stem.encode()) < 250
    assert stem.startswith("猫" * 16 + "-")


def test_samples_of_other_settings_have_other_files() -> None:
    start = "A very long prompt that begins with the same words, and then "
    changes: list[dict[str, object]] = [
        *({"prompt": prompt} for prompt in ("一只猫在跑", "一只狗在睡", f"{start}a cat", f"{start}a dog", "!", "?")),
        *({"seconds": 1.0}, {"seconds": 0}, {"fps": 8}, {"guidance": 1}, {"steps": 4}, {"size": "64x48"}, {"seed": 1}),
        *({"first": "/a/1.png"}, {"first": "/b/1.png"}, {"upsample": True}, {}),
    ]
    names = [sample_settings(**change).file_name() for change in changes]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("size", "units", "sizes"),
    [
        ("128x72", (16, 16), "take 128x64 or 128x80"),
        ("100x50", (16, 16), "take 96x48 or 112x64"),
        ("5x900", (16, 16), "take 16x896 or 16x912"),
        ("96x60", (16, 8), "multiples of 16 and 8 pixels"),
    ],
)
def test_sizes_between_multiples_are_refused(size: str, units: tuple[int, int], sizes: str) -> None:
    with pytest.raises(ValueError, match=size) as caught:
        sample_settings(size=size).check_size(units)
    assert sizes in str(caught.value)
    sample_settings(size="96x64").check_size(units)


@pytest.mark.parametrize(
    "bad",
    [
        {"size": "96"},
        {"size": "0x64"},
        {"size": "96X64"},
        {"seconds": -1},
        {"prompt": ""},
        {"name": "../up"},
        {"task": "txt"},
        {"first": ""},
        {"first": "a.png", "seconds": 0},
        {"last": "a.png", "seconds": 0},
    ],
)
def test_impossible_samples_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        validate(SampleSettings, {"prompt": "a", **bad})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"negative": "blur", "guidance": 1}, "no effect with guidance: 1"),
        (
            {"negative": "blur", "guidance_method": {"name": "autoguidance", "export": "weak"}},
            "guidance_method autoguidance has no negative prompt",
        ),
        ({"negative": "blur", "guidance_method": "embedded"}, "no effect with true_cfg: 1; raise true_cfg"),
        ({"solver": "eulr"}, "euler"),
        ({"guidance_method": "autoguidance"}, "export"),
    ],
)
def test_guidance_and_solvers_that_cannot_work_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_settings(**values)


def test_default_solver_and_guidance_do_not_show_in_file_names() -> None:
    assert sample_settings(solver=sample_settings().solver.name).stem() == sample_settings().stem()
    assert sample_settings(guidance_method="plain").stem() == sample_settings().stem()
    assert sample_settings(guidance_method="apg").stem() != sample_settings().stem()
