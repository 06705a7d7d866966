"""The documentation names commands, options, settings and files that exist, and its examples run."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from pydantic import TypeAdapter

import worldloom
from cluster import plugins
from cluster.config import parse, read_document
from pipelines.cli import app
from pipelines.commands.train_autoencoder import AutoencoderRecipe
from pipelines.recipe import Recipe
from pipelines.scenes.footage import make_footage
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), ROOT / "examples" / "plugins" / "README.md"]
PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
GENERATED = {f"reference/{name}.md" for name in ("commands", "recipe", "steps", "plugins", "columns")}
"""Pages that `docs/reference_pages.py` writes when the site is built."""
TOP_FOLDERS = ("cluster", "captioning", "training", "pipelines", "benchmarks", "docs", "tests", "examples")
EXAMPLE_FILES = {"pipelines/steps/score/warmth.py"}
"""Files that the guide to plug-ins asks readers to write."""


torch.set_num_threads(1)  # On busy cores, threads of a tiny model wait for each other.


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page; those in tabs and lists are indented."""
    text = (ROOT / page).read_text()
    fences = re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [
        Block(page, text.count("\n", 0, fence.start()) + 2, fence[2], textwrap.dedent(fence[3])) for fence in fences
    ]


def blocks_in(language: str) -> list[Block]:
    return [block for page in PAGE_NAMES for block in blocks_of(page) if block.language == language]


def prose_of(page: str) -> str:
    """Return the text of a page without fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def spans_of(page: str) -> list[str]:
    """Return the texts in backticks."""
    return re.findall(r"`([^`\n]+)`", prose_of(page))


def commands_of(page: str) -> Iterator[list[str]]:
    """Yield the words of each worldloom command, in blocks and in backticks."""
    lines = [span for span in spans_of(page) if span.startswith("worldloom ")]
    for block in blocks_of(page):
        if block.language in ("", "sh", "bash", "console"):
            lines += block.text.replace("\\\n", " ").splitlines()
    for line in lines:
        if found := re.search(r"(?:^|[\s/=])worldloom (?=[a-z-])(.*)", line):
            words = shlex.split(found[1], comments=True)
            yield words[: next((i for i, word in enumerate(words) if word in ("|", "&&", ">", ";")), len(words))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGE_NAMES)
def test_commands_and_options_exist(page: str) -> None:
    group: Any = typer.main.get_command(app)
    for name, *words in commands_of(page):
        assert name in group.commands, f"worldloom {name}"
        parameters = group.commands[name].params
        known = {"--help", *(option for one in parameters for option in (*one.opts, *one.secondary_opts))}
        options = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        assert options <= known, f"worldloom {name} has no {sorted(options - known)}"


def test_pages_have_commands() -> None:
    assert sum(1 for page in PAGE_NAMES for _ in commands_of(page)) > 100


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_benchmarks_exist(page: str) -> None:
    for module in re.findall(r"python -m (benchmarks\.\w+)", (ROOT / page).read_text()):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose_of(page)):
        if "://" not in target and not target.startswith("mailto:"):
            path = (ROOT / page).parent / target
            is_generated = path.resolve().is_relative_to(DOCS) and str(path.resolve().relative_to(DOCS)) in GENERATED
            assert path.exists() or is_generated, target


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_paths_of_the_repository_exist(page: str) -> None:
    for span in spans_of(page):
        path = span.partition(":")[0].rstrip("/")
        if re.fullmatch(rf"(?:{'|'.join(TOP_FOLDERS)})/[\w./*-]+", path) and path not in EXAMPLE_FILES:
            assert any(ROOT.glob(path)), f"`{span}`"


def validate_yaml(path: Path) -> None:
    """Check a whole recipe, some of its sections, or some steps of `curate`. Other YAML has to parse."""
    document = yaml.safe_load(path.read_text())
    if isinstance(document, list) and all(isinstance(item, dict) for item in document):
        document = {"curate": document}
    if not isinstance(document, dict):
        return
    if {"name", "out", "clips"} <= set(document):
        parse(AutoencoderRecipe, read_document(path))
    elif {"name", "out"} <= set(document):
        worldloom.load_recipe(path)
    elif set(document) <= set(Recipe.model_fields):
        for key, value in document.items():
            TypeAdapter(Recipe.model_fields[key].rebuild_annotation()).validate_json(json.dumps(value))


def unknown_names(text: str, folder: Path) -> str:
    """Return the error that YAML causes if it is about an unknown key or name.

    Parts of recipes leave out required keys, and weights at paths like `/models` do not exist here.
    """
    path = folder / "recipe.yaml"
    path.write_text(text)
    try:
        validate_yaml(path)
    except ValueError as error:
        return str(error) if re.search("unknown|Extra inputs", str(error)) else ""
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks_in("yaml"), ids=str)
@pytest.mark.usefixtures("guide_plugins")
def test_yaml_has_known_names(block: Block, tmp_path: Path) -> None:
    assert unknown_names(block.text, tmp_path) == ""


@pytest.mark.parametrize(
    "text",
    [
        "- cut: {min: 1}",
        "- cuts: {}",
        "train: {step: 1}",
        "name: a\nout: b\nsource: []\n",
        "curate: [{encode: {autoencoder: {name: causal, path: a}}}]",
        "name: a\nout: b\nclips: {side: 64}\n",
    ],
)
def test_unknown_names_are_found(text: str, tmp_path: Path) -> None:
    assert unknown_names(text, tmp_path)


@pytest.fixture
def guide_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Offer the plug-ins of the guide as an installed package: its modules and entry points are blocks of the page."""
    blocks = blocks_of("docs/guides/plugins.md")
    codes = [block.text for block in blocks if block.language == "python"]
    (project,) = (tomllib.loads(block.text)["project"] for block in blocks if block.language == "toml")
    package = tmp_path / "site" / "my_package"
    package.mkdir(parents=True)
    for name, code in zip(("warmth", "shouting", "blur", "_blur_network"), codes, strict=True):
        (package / f"{name}.py").write_text(code)
    metadata = package.with_name("my_package.dist-info")
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: my_package\nVersion: 1\n")
    lines = [f"{name} = {module}" for name, module in project["entry-points"]["worldloom.plugins"].items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[worldloom.plugins]", *lines]))
    monkeypatch.syspath_prepend(package.parent)
    plugins._entry_points.cache_clear()
    yield
    plugins._entry_points.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("guide_plugins")
def test_plugins_of_the_guide_run(tmp_path: Path) -> None:
    make_footage(tmp_path / "footage", videos=6, seed=0)
    document = f"""
name: guide
out: {tmp_path}/out
sources: [{{videos: "{tmp_path}/footage/*.mp4", captions: sidecar}}]
curate:
  - scan: {{}}
  - cut: {{min_s: 1.0, max_s: 4.2}}
  - score.warmth: {{scale: 2.0}}
  - keep: {{warmth: {{min: 0.0}}}}
  - caption: {{engine: shouting}}
  - encode: {{autoencoder: causal, text: hashing, buckets: [{{size: 64, frames: [17], fps: 8}}]}}
train:
  model: {{name: blur, width: 16}}
  steps: 3
  warmup_steps: 1
  batch: {{tokens_per_step: 500}}
"""
    (tmp_path / "recipe.yaml").write_text(document)
    recipe = worldloom.load_recipe(tmp_path / "recipe.yaml")
    outcome = worldloom.run(recipe, in_process=True)
    rows = [row for row in worldloom.read_table(recipe).to_pylist() if row["warmth"] is not None]
    assert {row["fate"] == "kept" for row in rows} == {True, False}
    for row in rows:
        assert row["warmth"] >= 0 or row["fate_reason"] == "warmth under 0"
    captions = [row["caption"] for row in rows if row["caption"]]
    assert captions
    assert all(caption.isupper() for caption in captions)
    assert outcome.training is not None
    video = worldloom.load_model(outcome.training.export_uri).sample("RED", seconds=2, size=(64, 64), steps=2)
    assert video.shape == (17, 64, 64, 3)


def write_small_quickstart(path: Path) -> None:
    """Write the recipe `quickstart` with a smaller model, and samples of few steps."""
    document = yaml.safe_load((ROOT / "pipelines" / "recipes" / "quickstart.yaml").read_text())
    document["train"]["model"] = {"name": "dit", "depth": 1, "dim": 32, "heads": 2}
    document["sample"] = [{**sample, "steps": 2} for sample in document["sample"]]
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(document))


@pytest.mark.slow
def test_python_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_footage(tmp_path / "footage" / "demo", videos=6, seed=0)
    write_small_quickstart(tmp_path / "pipelines" / "recipes" / "quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks_of("docs/guides/python.md"):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), namespace)
    assert list(tmp_path.glob("*.mp4")), "the guide writes a video"


@pytest.mark.parametrize("page", ["cluster", "captioning", "training", "pipelines", "project"])
def test_the_index_lists_all_decisions(page: str) -> None:
    decisions = ROOT / "docs" / "decisions"
    titles = re.findall(r"(?m)^## (.*)$", (decisions / f"{page}.md").read_text())
    listed = re.findall(rf"(?m)^- \[(.*)\]\({page}\.md#.*\)$", (decisions / "index.md").read_text())
    assert listed == titles
