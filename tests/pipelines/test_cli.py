"""What the command line says: every name as it is, bad input in one line with exit code 2, and nothing half done."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cluster import storage, telemetry
from pipelines import cli, inline, show, upkeep
from pipelines.commands import doctor
from pipelines.commands import export as exporting
from pipelines.commands.quarantine import Failure
from pipelines.curation import run_segments
from pipelines.export.exporter import Summary
from pipelines.ledger import Account
from pipelines.recipe import load_recipe
from tests.support.paths import ROOT
from training.data.footer import DamagedError

ODD = "/films/[bold]a [/dim] b.mp4"
"""A path that is markup to the library that prints: the one tag would vanish, and the other, which closes nothing, is an error."""


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """All that is printed through any console."""
    sink = io.StringIO()
    console = Console(file=sink, width=400)
    for module in (cli, show, upkeep, exporting, telemetry):
        monkeypatch.setattr(module, "console", console)
    monkeypatch.setattr(show, "console", console)
    return sink.getvalue


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["worldloom", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def recipe_file(folder: Path, pattern: str, curate_: str = "[{scan: {}}, {cut: {}}]", name: str = "my.yaml") -> Path:
    (folder / "in").mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"name: mine\nout: {folder / 'out'}\nsources:\n  - videos: '{pattern}'\ncurate: {curate_}\n")
    return path


def test_paths_are_printed_as_they_are(printed: Callable[[], str]) -> None:
    show.accounts(
        [
            Account(
                "videos",
                1,
                {"kept": 0, "dropped": 0, "failed": 1, "duplicate": 0},
                (("failed", "scan", f"DecodeError: {ODD}", 1),),
            )
        ]
    )
    upkeep.failures([Failure("uid", ODD, None, "scan", "DecodeError", f"of {ODD}")])
    exporting.show(Summary(ODD, 1, 0, 1, 0, 5, (("uid", f"of {ODD}"),) * 13))
    assert printed().count(ODD) == 17


@pytest.mark.parametrize(
    "error",
    [RuntimeError(ODD), DamagedError(ODD), OSError(28, "No space left on device", ODD)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_a_line_and_not_a_traceback(
    error: Exception, printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, assignments: list[str] | None) -> None:
        raise error

    monkeypatch.setattr(cli, "read", fail)
    assert ended(monkeypatch, "plan", "my.yaml") == 1
    assert printed().startswith("failed ")
    assert ODD in printed()


def test_a_recipe_that_is_not_there_is_named(printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, "validate", ODD) == 2
    assert printed() == f"error {ODD}: no such file\n"


def test_what_to_install_is_told_with_its_extra(printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    monkeypatch.setattr(doctor, "_ray_sees", dict)
    assert not doctor.report(show.console)
    assert "pip install 'worldloom[models]'" in printed()


def test_a_wrong_size_to_sample_is_bad_input(
    tmp_path: Path, printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_file(tmp_path, f"{tmp_path}/in/*.mp4")
    assert ended(monkeypatch, "sample", recipe, "--prompt", "x", "--size", "7") == 2
    assert "--size 7: " in printed()
    assert "such as 96x64" in printed()


@pytest.mark.parametrize("option", ["--first", "--last"])
def test_a_picture_that_cannot_be_given_is_bad_input(
    option: str, tmp_path: Path, printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else is looked at: the recipe has neither clips nor a model."""
    recipe = recipe_file(tmp_path, f"{tmp_path}/in/*.mp4")
    no_picture = tmp_path / "words.png"
    no_picture.write_text("words")
    for picture, complaint in (
        (tmp_path / "gone.png", "gone.png: cannot be read: "),
        (no_picture, "words.png: cannot be read as a picture: "),
    ):
        assert ended(monkeypatch, "sample", recipe, "--prompt", "x", option, picture) == 2
        assert complaint in printed()
    assert ended(monkeypatch, "sample", recipe, option, "a.png") == 2
    assert "say what it shows with --prompt" in printed()
    assert ended(monkeypatch, "sample", recipe, "--prompt", "x", option, "a.png", "--seconds", "0") == 2
    assert f"{option} a.png: " in printed()


def test_verify_says_that_a_recipe_makes_no_shards(
    tmp_path: Path, printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(monkeypatch, "verify", recipe_file(tmp_path, f"{tmp_path}/in/*.mp4")) == 2
    assert "does not end in an encode step" in printed()


def test_quarantine_says_what_it_cannot_know(
    tmp_path: Path, printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_file(tmp_path, f"{tmp_path}/in/*.mp4")
    broken = tmp_path / "in" / "a.mp4"
    broken.write_bytes(b"no video")
    assert ended(monkeypatch, "run", recipe, "--only", "curate", "--inline") == 0
    assert ended(monkeypatch, "quarantine", recipe) == 0
    assert "1 failed rows in 1 files" in printed()
    assert "curation is not complete" not in printed()
    broken.write_bytes(b"another version")
    os.utime(broken, ns=(1, 1))
    assert ended(monkeypatch, "quarantine", recipe, "--retry") == 0
    assert "curation is not complete: scan has 0 of 1 rows" in printed()


def test_samples_and_exports_are_not_taken_for_footage(
    tmp_path: Path, printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_file(tmp_path, f"{tmp_path}/**/*.mp4")
    (tmp_path / "in" / "a.mp4").write_bytes(b"no video")
    assert ended(monkeypatch, "plan", recipe) == 0
    assert ended(monkeypatch, "run", recipe, "--only", "curate", "--inline") == 0
    assert ended(monkeypatch, "export", recipe, "--to", "mp4", "--inline") == 2
    assert "would take exported clips for footage" in printed()
    for layout in ("webdataset", "hf-parquet"):
        assert ended(monkeypatch, "export", recipe, "--to", layout, "--inline") == 0, (
            "what is packed in other files is no footage"
        )
    elsewhere = recipe_file(tmp_path, f"{tmp_path}/in/*.mp4", name="elsewhere.yaml")
    for layout in ("mp4", "fastvideo"):
        assert ended(monkeypatch, "export", elsewhere, "--to", layout, "--inline") == 0
        assert ended(monkeypatch, "export", elsewhere, "--to", layout, "--inline", "--out", tmp_path / "in") == 2
    for made in ("samples/x.mp4", "export-2/train/x.mp4"):
        storage.write_bytes(str(tmp_path / "out" / made), b"made here")
        assert ended(monkeypatch, "plan", recipe) == 2
        assert f"{tmp_path}/out/{made} is no footage" in printed()
        storage.remove(str(tmp_path / "out" / made))


def test_footage_may_lie_in_the_folder_of_the_run(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, f"{tmp_path}/out/in/*.mp4"))
    storage.write_bytes(str(tmp_path / "out" / "in" / "a.mp4"), b"no video")
    assert len(run_segments(recipe, inline).sources) == 1


def test_the_command_line_starts_without_ray() -> None:
    code = "import sys, pipelines.cli; print(sorted({'ray', 'deepspeed', 'plotly'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    assert found == "[]"
