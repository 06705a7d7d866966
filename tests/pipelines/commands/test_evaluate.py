"""`worldloom evaluate`: real, generated and null clips, resumed clip by clip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.commands.evaluate import evaluate
from pipelines.recipe import Recipe, load_recipe
from pipelines.scenes.stream import WORLD, Stream
from tests.support.command_line import CommandLine
from training.evaluation import generation
from training.evaluation.truth import write_truth
from training.sampling.media import write_mp4

N_CLIPS = 2


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the first square videos of the held-out stream, and their truth."""
    folder = tmp_path_factory.mktemp("footage")
    files = (Stream(0, "held_out").file(index) for index in range(200))
    square = (file for file in files if not file.is_image and file.plan.width == file.plan.height == 96)
    truths = []
    for _ in range(N_CLIPS):
        file = next(square)
        frames = file.motion.frames(file.plan.width, file.plan.height, file.backdrop)
        write_mp4(str(folder / file.name), list(frames)[: round(file.plan.fps * 2)], file.plan.fps)
        truths.append(file.truth(file.name))
    write_truth(str(folder / "truth-0.parquet"), WORLD, truths)
    return folder


def recipe_of(trained: Path, footage: Path, out: Path, *assignments: str) -> Recipe:
    """Return the trained recipe with an evaluation, whose results go to another folder."""
    section = f"evaluate={{footage: {footage}, clips: {N_CLIPS}, steps: 2, guidance: 2}}"
    return load_recipe(trained, [section, f"out={out}", *assignments])


def model_of(trained: Path) -> str:
    (export,) = (trained.parent / "out").glob("run-*/export")
    return str(export)


@pytest.mark.slow
def test_an_evaluation_measures_and_resumes(
    trained: Path, footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(trained)
    first = evaluate(recipe_of(trained, footage, tmp_path), model)
    by_name = {row.metric: row for row in first.rows}
    assert by_name["background"].estimates["real"].mean == 1.0
    assert by_name["number"].estimates["generated"].clips == N_CLIPS
    assert by_name["sharpness"].estimates["null"].clips == N_CLIPS
    assert by_name["gravity"].target == WORLD.gravity if "gravity" in by_name else True
    assert first.memorisation is None
    folder = Path(first.folder_uri)
    assert len(list(folder.parent.glob("real/*.json"))) == N_CLIPS, "real clips are not shared by all models"
    assert len(list(folder.glob("generated/*.mp4"))) == len(list(folder.glob("null/*.mp4"))) == N_CLIPS
    summary = json.loads((folder / "summary.json").read_text())
    assert {row["metric"] for row in summary["metrics"]} == set(by_name)

    made: list[str] = []
    generate = generation.generate

    def counted(*arguments: object, **options: object) -> object:
        made.append("clip")
        return generate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "generate", counted)
    assert evaluate(recipe_of(trained, footage, tmp_path), model).rows == first.rows
    assert made == [], "a clip that was measured is generated again"
    one = next(folder.glob("generated/*.json"))
    one.write_text(one.read_text()[:40])
    assert evaluate(recipe_of(trained, footage, tmp_path), model).rows == first.rows
    assert len(made) == 1, "a result that is cut off is made again, and no other"
    evaluate(recipe_of(trained, footage, tmp_path, "evaluate.guidance=3"), model)
    assert len(made) == 1 + N_CLIPS, "null clips have no guidance, so they are kept"


@pytest.mark.slow
def test_faults_of_the_section_are_named(trained: Path, footage: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    ended = worldloom("evaluate", trained)
    assert ended.exit_code == 2
    assert "the recipe has no section evaluate" in ended.stderr
    ended = worldloom("evaluate", trained, "--set", f"evaluate={{footage: {tmp_path}}}")
    assert ended.exit_code == 2
    assert "no truth*.parquet in it" in ended.stderr
    ended = worldloom("evaluate", trained, "--set", "evaluate={clips: 2}")
    assert ended.exit_code == 2
    assert "evaluate has no video to generate" in ended.stderr
    features = tmp_path / "features.pt"
    features.write_bytes(b"nothing")
    ended = worldloom("evaluate", trained, "--set", f"evaluate={{footage: {footage}, features: {features}}}")
    assert ended.exit_code == 2
    assert "is no TorchScript file" in ended.stderr
