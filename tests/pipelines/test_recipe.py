from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster.config import ConfigError
from pipelines.engine.segments import segments_of
from pipelines.recipe import Recipe, load_recipe, resolved
from tests.support.paths import ROOT

OTHERS = {"autoencoder.yaml"}
"""Recipes of another kind."""
FOLDERS = ("pipelines", "docs", "benchmarks", "tests")
RECIPES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.yaml") if path.name not in OTHERS)
QUICKSTART = ROOT / "pipelines" / "recipes" / "quickstart.yaml"


def test_there_are_recipes() -> None:
    assert QUICKSTART in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_in_the_repository_validates(path: Path) -> None:
    recipe = load_recipe(path)
    assert len(recipe.curate) >= 1


def test_the_resolved_recipe_is_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(QUICKSTART)
    (tmp_path / "run.yaml").write_text(resolved(recipe))
    again = load_recipe(tmp_path / "run.yaml")
    assert resolved(again) == resolved(recipe)
    assert [segment.lineages for segment in segments_of(again.curate, again.labels)] == [
        segment.lineages for segment in segments_of(recipe.curate, recipe.labels)
    ]


def test_the_schema_accepts_the_recipes_and_refuses_misspelt_ones() -> None:
    validator = jsonschema.Draft202012Validator(Recipe.model_json_schema())
    for path in RECIPES:
        validator.validate(yaml.safe_load(path.read_text()))
    bad = yaml.safe_load(QUICKSTART.read_text())
    bad["trian"] = bad.pop("train")
    assert not validator.is_valid(bad)


FAULTS = [
    ("curate.keep.lumma={min: 1}", "curate.2.keep.lumma: unknown column 'lumma'; did you mean 'luma'"),
    ("curate.dedup.metod=x", "curate.3.dedup.metod: unknown key 'metod'; did you mean 'method'"),
    ("curate=[{scam: {}}]", "curate.0: unknown name 'scam'; did you mean 'scan'"),
    ("curate=[{cut: {}}]", "It is written by scan: put that step before this one"),
    ("curate.keep={}", "names no column"),
    ("curate.keep.luma={min: 2, max: 1}", "min 2 is over max 1"),
    ("curate.keep.luma={min: low}", "valid number"),
    ("curate.encode.buckets=[{size: 64, frames: [8], fps: 8}]", "8 frames"),
    ("curate.encode.autoencoder.name=liner", "did you mean 'linear'"),
    ("train.model.name=dot", "did you mean 'dit'"),
    ("train.steps=-1", "train.steps"),
    ("train.stepz=1", "did you mean 'steps'"),
    ("train.captions={measurd: 1}", "train.captions.measurd: unknown caption kind 'measurd'; did you mean 'measured'"),
    ("ray.address=here", "ray.address: 'here' is not an address"),
    ("sources=[{videos: a, images: b}]", "give either videos or images"),
    ("sample.0.size=big", "WIDTHxHEIGHT"),
    ("seed=-1", "seed"),
    ("outt=x", "unknown key 'outt'; did you mean 'out'"),
]


@pytest.mark.parametrize(("assignment", "expected"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_faults_are_refused_by_place_and_closest_name(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"quickstart\.yaml") as caught:
        load_recipe(QUICKSTART, [assignment])
    assert expected in str(caught.value)


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    text = QUICKSTART.read_text().replace("detector: signature", "detecter: signature")
    path = tmp_path / "typo.yaml"
    path.write_text(text)
    line = next(number for number, content in enumerate(text.splitlines(), 1) if "detecter" in content)
    with pytest.raises(
        ConfigError,
        match=rf"typo\.yaml:{line}: curate\.0\.scan\.detecter: unknown key 'detecter'; did you mean 'detector'",
    ):
        load_recipe(path)


@pytest.mark.slow
def test_bad_input_exits_2_before_ray_starts(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "run",
        str(QUICKSTART),
        "--set",
        "train.stepz=1",
        "--set",
        f"out={tmp_path / 'out'}",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 2
    assert "stepz" in ended.stderr
    assert "steps" in ended.stderr
    assert "Ray" not in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_pattern_that_matches_nothing_exits_2(tmp_path: Path) -> None:
    assignments = [f"out={tmp_path / 'out'}", f"sources=[{{videos: '{tmp_path}/*.mp4'}}]"]
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "run",
        str(QUICKSTART),
        *(part for a in assignments for part in ("--set", a)),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (ended.returncode, "no file matches" in ended.stderr) == (2, True), ended.stderr


def test_labels_address_repeated_steps() -> None:
    recipe = load_recipe(
        QUICKSTART,
        [
            "curate=[{scan: {}}, {cut: {}}, {keep: {luma: {min: 0.1}}}, {keep: {motion: {min: 0.1}}}]",
            "train=null",
            "sample=[]",
        ],
    )
    assert recipe.labels == ["scan", "cut", "keep", "keep#2"]
    assert json.loads(recipe.curate[3].model_dump_json())["motion"]["min"] == 0.1
