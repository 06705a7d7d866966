"""Data sets that a published model does not take, with the recipe lines that make them right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from captioning.encoders.llama_clip import LlamaClip
from cluster import weight_files
from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.published_models import POOLED_DIM, write_pipeline, write_published
from tests.support.random_llama_clip import save_llama_clip
from training.autoencoders.diffusers import Diffusers as Autoencoder
from training.data.dataset import Dataset
from training.models.diffusers import Diffusers
from training.published_parts import encoder_faults, part_faults

pytestmark = pytest.mark.slow


def test_mismatched_parts_are_named_with_recipe_lines(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", [(32, 32, 1, 3)], n_val=1)
    folder = write_published(tmp_path / "model", "wan")
    model = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    channels, text = part_faults(model, Dataset.open(manifest, "train"))
    assert f"16 channels, and {folder} takes 4" in channels
    assert channels.endswith(f"autoencoder: {{name: diffusers, path: {folder}, subfolder: vae}}")
    assert "width 128" in text
    assert text.endswith("max_tokens: 512, cleaning: html, padded: false}")


def test_parts_are_compared_by_rule_and_weights(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model", "ltx")
    for part in ("vae", "text_encoder"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(part)
    model = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    info = Dataset.open(write_dataset(tmp_path / "data", [(32, 32, 1, 3)], n_val=1), "train").info
    right: dict[str, Any] = {"name": "t5", "max_tokens": 128, "cleaning": "spaces", "padded": True}
    vae, encoder = (weight_files.identity(folder / part) for part in ("vae", "text_encoder"))

    def faults(autoencoder: str = vae, encoder: str = encoder, **rule: Any) -> list[str]:
        seen = replace(
            info,
            channels=4,
            autoencoder_identity=f"diffusers-v1 {autoencoder} auto",
            text_encoder=right | rule,
            text_encoder_identity=f"t5-v1 {encoder} bfloat16",
        )
        table = pa.table({"bucket": ["32x32x1"]})
        dataset: Any = SimpleNamespace(info=seen, table=table, null_text=lambda: torch.zeros(1, 24))
        return list(part_faults(model, dataset))

    assert faults() == []
    assert "trained with its own autoencoder in the folder vae" in faults(autoencoder="0000")[0]
    assert "other weights than the folder text_encoder" in faults(encoder="0000")[0]
    assert "has padded False, not True" in faults(padded=False)[0]
    assert "has max_tokens 512, not 128" in faults(max_tokens=512)[0]


def test_encoders_of_hunyuan_are_named_with_recipe_lines(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "model", "hunyuan")
    model = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    autoencoder = Autoencoder(path=str(folder), subfolder="vae")
    paths = {
        "model": "text_encoder",
        "tokenizer": "tokenizer",
        "clip": "text_encoder_2",
        "clip_tokenizer": "tokenizer_2",
    }
    own = {key: f"{folder}/{name}" for key, name in paths.items()}
    assert list(encoder_faults(model, autoencoder, LlamaClip(**own))) == []
    lines = ", ".join(f"{key}: {path}" for key, path in own.items())
    ((key, message),) = encoder_faults(model, autoencoder, LlamaClip(**own, max_tokens=77))
    assert key == "text"
    assert "has max_tokens 77, not 256" in message
    assert message.endswith(f"set text: {{name: llama_clip, {lines}, max_tokens: 256}}")
    other = save_llama_clip(tmp_path / "other", seed=1, clip_dim=POOLED_DIM)
    ((_, message),) = encoder_faults(model, autoencoder, LlamaClip(**own | {"clip": f"{other}/text_encoder_2"}))
    assert f"clip {other}/text_encoder_2 has other weights than the folder text_encoder_2 of {folder}" in message
