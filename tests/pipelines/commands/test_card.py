"""`worldloom card`: cards of a data set and of its model, from what a run left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from tests.support.command_line import CommandLine


@pytest.mark.slow
@pytest.mark.usefixtures("footage")
def test_a_trained_run_has_two_cards(trained: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    folder = tmp_path / "card"
    ended = worldloom("card", trained, "--out", folder, "--license", "apache-2.0")
    assert ended.exit_code == 0, ended.stderr
    dataset, model = (json.loads((folder / kind / "card.json").read_text()) for kind in ("dataset", "model"))
    head = DatasetCard((folder / "dataset" / "README.md").read_text()).data
    assert (head.pretty_name, head.license) == ("trained", "unknown")
    assert sum(dataset["clips"].values()) == sum(row["clips"] for row in dataset["licenses"])
    assert dataset["dataset"]["fingerprint"] == model["card"]["data"]
    assert sum(dataset["dataset"]["buckets"].values()) == dataset["dataset"]["samples"]
    text = (folder / "model" / "README.md").read_text()
    assert (ModelCard(text).data.license, model["license"]) == ("apache-2.0", "apache-2.0")
    assert model["training"]["steps"] == 3
    assert "# trained" in text


@pytest.mark.slow
@pytest.mark.usefixtures("footage")
def test_a_run_without_a_model_has_the_card_of_its_data(trained: Path, worldloom: CommandLine) -> None:
    ended = worldloom("card", trained, "--set", "train.steps=4")
    assert ended.exit_code == 0, ended.stderr
    written = trained.parent / "out" / "card"
    assert [path.name for path in written.iterdir()] == ["dataset"]


@pytest.mark.slow
def test_a_manifest_without_a_model_has_no_card(
    trained: Path, manifest: Path, tmp_path: Path, worldloom: CommandLine
) -> None:
    recipe = tmp_path / "again.yaml"
    recipe.write_text(
        f"name: again\nout: {tmp_path / 'out'}\nmanifest: {manifest}\ntrain: {{steps: 2, warmup_steps: 0}}\n"
    )
    ended = worldloom("card", recipe)
    assert ended.exit_code == 2
    assert "no model is trained to step 2 yet" in ended.stderr
