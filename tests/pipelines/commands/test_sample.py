"""`worldloom sample`: it needs an exported model, and neither footage nor a manifest."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cluster import listing, storage
from pipelines.commands._media import read_frames
from pipelines.video.decode import OPEN_LOG
from tests.support.command_line import CommandLine
from tests.support.exported_models import write_untrained_export
from tests.support.paths import ROOT
from tests.support.videos import encode, sliding
from training.sampling.credentials import read_credentials

SHORT = ("--seconds", "1", "--size", "32x32", "--steps", "2")
"""Options of a sample that takes less than a second."""


@pytest.mark.slow
def test_a_model_is_sampled_in_an_empty_folder(export: Path, tmp_path: Path) -> None:
    opened, folder = tmp_path / "opened", tmp_path / "empty"
    opened.touch()
    folder.mkdir()
    program = [sys.executable, "-X", "importtime", "-m", "pipelines.cli"]
    command = [*program, "sample", "--model", str(export), "--prompt", "a red circle"]
    ended = subprocess.run(
        [*command, *SHORT],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), OPEN_LOG: str(opened)},
    )
    assert ended.returncode == 0, ended.stderr
    (video,) = folder.rglob("*.mp4")
    assert ended.stdout == f"{video}\n"
    assert video.parent == folder / "samples"
    with av.open(str(video)) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert shapes == [(32, 32, 3)] * 9
    assert [path.name for path in folder.iterdir()] == ["samples"], "nothing else is written"
    assert opened.read_text() == "", "a video was opened"
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "torch" in imported
    # Seconds before the first solver step.
    assert imported & {"ray", "pandas", "sympy", "triton", "torch._dynamo", "torch.distributed.fsdp"} == set()


@pytest.fixture
def _no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if source files are listed."""

    def fail(pattern: str) -> list[storage.Entry]:
        raise AssertionError(f"sampling lists {pattern}")

    monkeypatch.setattr(listing, "glob", fail)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_listing")
def test_a_recipe_is_sampled_without_footage(trained: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    out = ("--out", tmp_path / "samples")
    ended = worldloom("sample", trained, "--prompt", "a red circle", *SHORT, *out, "--name", "circle")
    assert (ended.exit_code, ended.stdout) == (0, f"{tmp_path / 'samples' / 'circle.mp4'}\n"), ended.stderr
    # Without a prompt, the samples of the recipe are generated.
    samples = "sample=[{prompt: a star, seconds: 0, size: 32x32, steps: 1}, {prompt: a star, seconds: 1, steps: 1}]"
    listed = worldloom("sample", trained, *out, "--set", samples)
    assert listed.exit_code == 0, listed.stderr
    assert [Path(line).suffix for line in listed.stdout.splitlines()] == [".png", ".mp4"]


@pytest.mark.slow
@pytest.mark.usefixtures("_no_listing")
def test_a_prompt_is_upsampled_from_stored_captions(trained: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    for arguments in ((trained,), ("--model", next((trained.parent / "out").glob("run-*/export")))):
        ended = worldloom("sample", *arguments, "--prompt", "a star", *SHORT, "--upsample", "--out", tmp_path / "s")
        assert ended.exit_code == 0, ended.stderr


@pytest.mark.slow
def test_several_seeds_load_the_model_once(
    export: Path, tmp_path: Path, worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.sampling import exported_model

    reads: list[str] = []
    read_model = exported_model.read_model
    monkeypatch.setattr(exported_model, "read_model", lambda uri: reads.append(uri) or read_model(uri))
    options = ("--model", export, "--prompt", "a star", *SHORT, "--out", tmp_path, "--solver", "heun", "--name", "star")
    ended = worldloom("sample", *options, "--seed", "3", "--seeds", "2")
    assert ended.exit_code == 0, ended.stderr
    files = [Path(line) for line in ended.stdout.splitlines()]
    assert [file.name for file in files] == ["star-seed3.mp4", "star-seed4.mp4"]
    assert not np.array_equal(*(read_frames(str(file)) for file in files))
    assert reads == [str(export)]
    before = [file.stat().st_mtime_ns for file in files]
    again = worldloom("sample", *options, "--seed", "3", "--seeds", "2")
    assert (again.stdout, [file.stat().st_mtime_ns for file in files]) == (ended.stdout, before)
    assert reads == [str(export)], "files that are made are kept, and nothing is loaded"


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "seconds"), [("mp4", "1"), ("gif", "1"), ("webp", "1"), ("png", "0")])
def test_seeds_side_by_side(suffix: str, seconds: str, tmp_path: Path, worldloom: CommandLine) -> None:
    model = write_untrained_export(tmp_path / "model")
    short = ("--seconds", seconds, "--size", "32x32", "--steps", "1", "--guidance", "1", "--name", "star")
    kind = () if suffix == "png" else ("--format", suffix)
    options = ("--model", model, "--prompt", "a star", *short, *kind, "--out", tmp_path / "s")
    ended = worldloom("sample", *options, "--seeds", "2", "--grid")
    assert ended.exit_code == 0, ended.stderr
    *files, grid = map(Path, ended.stdout.splitlines())
    names = [f"star-seed0.{suffix}", f"star-seed1.{suffix}", f"star-seed0-grid2.{suffix}"]
    assert [file.name for file in (*files, grid)] == names
    frames_THWC = read_frames(str(grid))
    assert frames_THWC.shape == (1 if suffix == "png" else 9, 32, 66, 3)
    for column, file in enumerate(files):
        shown = frames_THWC[:, :, 34 * column : 34 * column + 32].astype(int)
        assert np.abs(shown - read_frames(str(file))).mean() < 8, "each is compressed once more"
    for path in (*files, grid):
        report = read_credentials(path)
        assert report is not None
        assert report.hold


@pytest.mark.slow
def test_marks_are_set_before_a_model_is_read(tmp_path: Path, worldloom: CommandLine) -> None:
    options = ("--model", tmp_path / "no-model", "--prompt", "a star", *SHORT)
    for marks, message in (
        ("on", "--marks:1: marks are a mapping such as {prompt: true}, or off; got 'on'"),
        ("{promt: true}", "unknown key 'promt'"),
        (f"{{certificate: {tmp_path}/a.pem, private_key: {tmp_path}/b.pem}}", "a.pem: cannot be read"),
    ):
        ended = worldloom("sample", *options, "--marks", marks)
        assert ended.exit_code == 2
        assert message in ended.stderr + ended.stdout
    model = write_untrained_export(tmp_path / "model")
    ended = worldloom("sample", "--model", model, *options[2:], "--out", tmp_path, "--marks", "off")
    assert ended.exit_code == 0
    assert read_credentials(ended.stdout.strip()) is None


@pytest.mark.slow
def test_given_videos_are_continued_looped_and_edited(export: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    video = tmp_path / "given.mp4"
    encode(video, sliding(48, 1.0, 64, 64, seed=0), time_base=Fraction(1, 24))
    tasks = [
        (("--video", video, "--extend", "forward"), 16 + 8),
        (("--video", f"{video}#t=0.5", "--extend", "backward"), 12 + 8),
        (("--video", video, "--connect", f"{video}#t=0,1.5"), 16 + 7 + 12),
        (("--video", video, "--loop"), 16 + 7),
        (("--loop",), 8),
        (("--video", video, "--edit", "sdedit"), 9),
        (("--video", video, "--edit", "flowedit", "--source-prompt", "a circle"), 9),
        (("--window", "1.5", "--seconds", "3", "--spans", "1-2: a star", "--spans", "2-3: a circle"), 25),
    ]
    for options, n_frames in tasks:
        ended = worldloom("sample", "--model", export, "--prompt", "a star", *SHORT, "--out", tmp_path, *options)
        assert ended.exit_code == 0, ended.stderr
        file = Path(ended.stdout.strip())
        with av.open(str(file)) as container:
            assert len(list(container.decode(video=0))) == n_frames, options
        assert storage.read_json(f"{file}.json")["frames"] == n_frames
    windows = ("--seconds", "3", "--window", "1", "--context", "0.9")
    full = worldloom("sample", "--model", export, "--prompt", "a star", "--size", "32x32", *windows)
    assert (full.exit_code, "a context of 0.9 s leaves nothing new in windows of 1 s" in full.stderr) == (2, True)
    short = worldloom("sample", "--model", export, "--prompt", "a star", "--video", f"{video}#t=0,1", "--loop")
    assert (short.exit_code, "video" in short.stderr) == (2, True)
    assert "has 8 frames at 8 fps, and context 1 takes 9; lower context to 0.5 or give a longer video" in short.stderr


@pytest.mark.slow
def test_a_recipe_that_is_not_trained_names_the_fix(trained: Path, worldloom: CommandLine) -> None:
    ended = worldloom("sample", trained, "--prompt", "a star", "--set", "train.steps=4")
    assert ended.exit_code == 2
    assert "no model is trained to step 4 yet; run `worldloom train` first" in ended.stderr


@pytest.mark.slow
def test_a_model_or_a_recipe_is_required(export: Path, worldloom: CommandLine) -> None:
    neither = worldloom("sample", "--prompt", "a star")
    assert (neither.exit_code, "--model with the folder of an export" in neither.stderr) == (2, True)
    no_prompt = worldloom("sample", "--model", export)
    assert (no_prompt.exit_code, "give --prompt" in no_prompt.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--edit", "sdedit"), "--edit sdedit: edit needs a video; name its file with video"),
        (("--loop", "--seconds", "0"), "--seconds 0.0: seconds: 0 makes an image of 1 frame, and loop needs a length"),
        (("--spans", "0-2: a", "--spans", "1-2: b"), "spans 0-2 and 1-2 overlap; end one where the other begins"),
        (("--solver", "eulr"), "--solver eulr: "),
        (("--guidance-method", "autoguidance"), "export"),
        (("--negative", "blur", "--guidance", "1"), "a negative prompt has no effect with guidance: 1"),
        (("--grid",), "--grid shows the seeds of a prompt: give --seeds"),
        (("--format", "avi"), "avi"),
    ],
)
def test_wrong_options_are_bad_input(
    options: tuple[str, ...], message: str, export: Path, worldloom: CommandLine
) -> None:
    ended = worldloom("sample", "--model", export, "--prompt", "a star", *options)
    assert (ended.exit_code, message in ended.stderr) == (2, True), ended.stderr


def test_a_folder_without_a_model_is_named(tmp_path: Path, worldloom: CommandLine) -> None:
    ended = worldloom("sample", "--model", tmp_path, "--prompt", "a star")
    assert (ended.exit_code, f"{tmp_path}: there is no model.json" in ended.stderr) == (2, True), ended.stderr


def test_a_size_that_the_model_cannot_make_is_bad_input(export: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    options = ("--prompt", "a star", "--size", "1x900", "--out", tmp_path)
    ended = worldloom("sample", "--model", export, *options)
    assert (ended.exit_code, "1x900" in ended.stderr) == (2, True), ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_size_is_bad_input(scan_recipe: Path, worldloom: CommandLine) -> None:
    ended = worldloom("sample", scan_recipe, "--prompt", "x", "--size", "7")
    assert ended.exit_code == 2
    assert "--size 7: " in ended.stderr
    assert "such as 96x64" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--first", "--last"])
def test_conditioning_images_are_checked_first(
    option: str, tmp_path: Path, scan_recipe: Path, worldloom: CommandLine
) -> None:
    """The recipe has neither a data set nor a model, and still the image is what the message names."""
    no_image = tmp_path / "words.png"
    no_image.write_text("words")
    for image, message in (
        (tmp_path / "gone.png", "gone.png: cannot be read: "),
        (no_image, "words.png: cannot be read as an image: "),
    ):
        ended = worldloom("sample", scan_recipe, "--prompt", "x", option, image)
        assert (ended.exit_code, message in ended.stderr) == (2, True), ended.stderr
    no_prompt = worldloom("sample", scan_recipe, option, "a.png")
    assert (no_prompt.exit_code, "describe it with --prompt" in no_prompt.stderr) == (2, True)
    image_sample = worldloom("sample", scan_recipe, "--prompt", "x", option, "a.png", "--seconds", "0")
    assert (image_sample.exit_code, f"{option} a.png: " in image_sample.stderr) == (2, True)
