"""Recipes: those in the repository are valid, and every fault is refused with its location and the closest name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster import weight_files
from cluster.config import ConfigError
from pipelines.engine.segments import segments_of
from pipelines.recipe import Recipe, load_recipe, resolved
from pipelines.steps.encode import Encode
from tests.support.paths import ROOT
from tests.support.quickstart import QUICKSTART

OTHERS = {"autoencoder.yaml"}
"""YAML files that are no recipes of a run."""
FOLDERS = ("pipelines", "docs", "benchmarks", "tests")
PUBLISHED = {"finetune-wan.yaml": "wan", "finetune-ltx.yaml": "ltx", "full-wan-zero3.yaml": "wan"}
"""Recipes that train a published model, whose folder the user names, and the family of the model."""
YAML = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.yaml") if path.name not in OTHERS)
RECIPES = [path for path in YAML if path.name not in PUBLISHED]


def test_recipes_are_found() -> None:
    assert QUICKSTART in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_in_the_repository_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert len(recipe.curate) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_published_models_need_their_folder(name: str, tmp_path: Path) -> None:
    """With the folder alone they are valid, and encode by the model's own encoders."""
    from tests.support.published_models import write_pipeline

    (path,) = (path for path in YAML if path.name == name)
    with pytest.raises(ConfigError, match=r"train\.model: path is not set; .*--set train\.model\.path=FOLDER"):
        load_recipe(path)
    folder = write_pipeline(tmp_path / "model", PUBLISHED[name])
    recipe = load_recipe(path, [f"train.model.path={folder}"])
    encode = recipe.curate[-1]
    assert isinstance(encode, Encode)
    assert encode.autoencoder.identity().startswith(f"diffusers-v1 {weight_files.identity(folder / 'vae')}")
    assert encode.text.identity().startswith(f"t5-v1 {weight_files.identity(folder / 'text_encoder')}")
    assert encode.text.resources().gpus == 1
    (tmp_path / "run.yaml").write_text(resolved(recipe))
    assert load_recipe(tmp_path / "run.yaml") == recipe
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ConfigError, match=r"train\.model\.path: .*/tokenizer: no such folder; without it, name auto"):
        load_recipe(path, [f"train.model.path={folder}"])


def test_the_resolved_recipe_equals_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(QUICKSTART)
    (tmp_path / "run.yaml").write_text(resolved(recipe))
    again = load_recipe(tmp_path / "run.yaml")
    assert resolved(again) == resolved(recipe)
    assert [segment.lineages for segment in segments_of(again.curate, again.labels)] == [
        segment.lineages for segment in segments_of(recipe.curate, recipe.labels)
    ]


@pytest.mark.slow
def test_the_schema_accepts_recipes_and_refuses_typos() -> None:
    validator = jsonschema.Draft202012Validator(Recipe.model_json_schema())
    for path in YAML:
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
    ("ray.address='ray://head:10001'", "on the head node or send it there: ray job submit --address http://HEAD:8265"),
    ("sources=[{videos: a, images: b}]", "give either videos or images"),
    ("sample.0.size=big", "WIDTHxHEIGHT"),
    ("seed=-1", "seed"),
    ("manifest=x.parquet", "manifest: names a finished data set; leave out sources and curate, or manifest"),
    ("sources=[]", "sources: must have at least one entry; a recipe that only trains names a manifest"),
    ("curate=[]", "curate: must have at least one entry; a recipe that only trains names a manifest"),
    ("outt=x", "unknown key 'outt'; did you mean 'out'"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("assignment", "expected"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_faults_are_refused_with_key_and_closest_name(assignment: str, expected: str) -> None:
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


def run_quickstart(folder: Path, assignment: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe into `folder/out`, with one assignment, in a process of its own."""
    sets = ["--set", assignment, "--set", f"out={folder / 'out'}"]
    command = [sys.executable, "-m", "pipelines.cli", "run", str(QUICKSTART), *sets]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.slow
def test_bad_input_exits_2_before_ray_starts(tmp_path: Path) -> None:
    ended = run_quickstart(tmp_path, "train.stepz=1")
    assert ended.returncode == 2
    assert "stepz" in ended.stderr
    assert "steps" in ended.stderr
    assert "Ray" not in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_pattern_that_matches_nothing_exits_2(tmp_path: Path) -> None:
    ended = run_quickstart(tmp_path, f"sources=[{{videos: '{tmp_path}/*.mp4'}}]")
    assert (ended.returncode, "no file matches" in ended.stderr) == (2, True), ended.stderr


def test_labels_address_repeated_steps() -> None:
    curate = "curate=[{scan: {}}, {cut: {}}, {keep: {luma: {min: 0.1}}}, {keep: {motion: {min: 0.1}}}]"
    recipe = load_recipe(QUICKSTART, [curate, "train=null", "sample=[]"])
    assert recipe.labels == ["scan", "cut", "keep", "keep#2"]
    assert json.loads(recipe.curate[3].model_dump_json())["motion"]["min"] == 0.1


def test_a_manifest_is_a_parquet_file(tmp_path: Path) -> None:
    text = "name: mine\nout: out\nmanifest: out/dataset.json\ntrain: {steps: 5, warmup_steps: 1}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml:3: manifest: must be the path of a _manifest\.parquet"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.slow
def test_a_recipe_may_name_a_manifest(tmp_path: Path) -> None:
    text = "name: mine\nout: out\nmanifest: data/_manifest.parquet\ntrain: {steps: 5, warmup_steps: 1}\n"
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    recipe = load_recipe(path)
    assert (recipe.manifest, recipe.sources, recipe.curate) == ("data/_manifest.parquet", (), ())
    assert jsonschema.Draft202012Validator(Recipe.model_json_schema()).is_valid(yaml.safe_load(text))
    path.write_text(resolved(recipe))
    assert load_recipe(path) == recipe
    with pytest.raises(ConfigError, match=r"mine: the recipe trains on data/_manifest\.parquet and curates nothing"):
        recipe.check_curates()


CAPTIONED = """
name: a
out: out
sources: [{videos: a.mp4}]
curate:
  - scan: {}
  - cut: {}
  - frames: {}
  - caption:
      engine: {name: vllm, model: hf-hub:a/b, ENGINE}
      prompt: dense
upsample:
  engine: {name: transformers, model: hf-hub:a/b, trust_remote_code: true}
"""


def test_a_recipe_that_brings_code_needs_the_flag(tmp_path: Path) -> None:
    """A recipe is data: who runs the command decides whether code that comes with a model is run."""
    path = tmp_path / "recipe.yaml"
    path.write_text(CAPTIONED.replace("ENGINE", "trust_remote_code: true, engine_args: {worker_cls: a.B, seed: 1}"))
    with pytest.raises(ConfigError, match="add --allow-remote-code to the command") as raised:
        load_recipe(path)
    assert [line.split(": ")[:2] for line in str(raised.value).splitlines()] == [
        [f"{path}:10", "curate.3.caption.engine.trust_remote_code"],
        [f"{path}:10", "curate.3.caption.engine.engine_args.worker_cls"],
        [f"{path}:13", "upsample.engine.trust_remote_code"],
    ]
    recipe = load_recipe(path, allow_remote_code=True)
    path.write_text(resolved(recipe))
    with pytest.raises(ConfigError, match="add --allow-remote-code"):
        load_recipe(path)
    path.write_text(CAPTIONED.replace("ENGINE", "revision: main").replace("trust_remote_code: true", "gpus: 1"))
    load_recipe(path)


def test_a_runtime_environment_holds_packages_only(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(CAPTIONED.replace("ENGINE", "runtime_env: {py_executable: id}"))
    with pytest.raises(ConfigError) as raised:
        load_recipe(path, allow_remote_code=True)
    assert str(raised.value) == (
        f"{path}:10: curate.3.caption.engine.runtime_env.py_executable: "
        "unknown key 'py_executable'; Known keys: uv, pip, image_uri"
    )
