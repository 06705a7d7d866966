"""Scores by CLIP, on a tiny model with random weights that is saved and loaded like a real one, and heads against
torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cluster.config import ConfigError
from pipelines.engine.segments import is_heavy
from pipelines.engine.step import RunError
from pipelines.recipe import load_recipe
from pipelines.steps.score import _base, _clip
from pipelines.steps.score._base import decode_jpeg
from pipelines.steps.score._head import load_head
from pipelines.steps.score.aesthetics import Aesthetics
from pipelines.steps.score.clip_text import ClipText
from pipelines.steps.score.embedding import EMBEDDING, Embedding
from pipelines.video.still_images import encode_jpeg
from tests.support.paths import ROOT
from tests.support.score_rows import run, table_of, texture

pytestmark = pytest.mark.slow

QUICKSTART = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
DIM = 16
CONFIG = {
    "embed_dim": DIM,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def random_like(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=generator) * 0.2 for key, value in tensors.items()}


def save_model(folder: Path, seed: int = 0) -> Path:
    """Save a model in the layout of open_clip's folders and return its folder."""
    import open_clip  # takes seconds, which not every process that collects tests should spend

    folder.mkdir(exist_ok=True)
    preprocess = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocess}))
    with torch.random.fork_rng():
        model = open_clip.CLIP(**CONFIG)
    save_file(random_like(model.state_dict(), seed), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    _clip.load_clip_model.cache_clear()
    yield
    _clip.load_clip_model.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "tiny")


CLIPS = [texture(3, 5.0, seed=1), texture(1, 0.0, seed=2), texture(2, 5.0, seed=3)]


def embeddings(folder: Path, clips: list[Any] = CLIPS) -> np.ndarray:
    return np.array([row["embedding"] for row in run(Embedding(model=str(folder)), table_of(clips))])


def test_embeddings_equal_those_of_open_clip(folder: Path) -> None:
    """The reference uses open_clip's own factory and transforms, batched by clip, and scales the mean of unit vectors
    to length 1."""
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    expected = []
    with torch.no_grad():
        for clip in CLIPS:
            images = torch.stack([preprocess(Image.fromarray(decode_jpeg(encode_jpeg(image, 95)))) for image in clip])
            mean = torch.nn.functional.normalize(model.eval().encode_image(images), dim=-1).mean(dim=0)
            expected.append(torch.nn.functional.normalize(mean, dim=0).numpy())
    found = embeddings(folder)
    np.testing.assert_allclose(found, np.array(expected), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert is_heavy(EMBEDDING)


def test_embeddings_do_not_depend_on_other_clips(folder: Path) -> None:
    together = embeddings(folder)
    for i, clip in enumerate(CLIPS):
        _clip.load_clip_model.cache_clear()
        np.testing.assert_array_equal(embeddings(folder, [clip])[0], together[i])
    _clip.load_clip_model.cache_clear()
    np.testing.assert_array_equal(embeddings(folder, CLIPS[::-1])[::-1], together)


def test_embedding_does_not_depend_on_position_in_batch(folder: Path) -> None:
    clip_model = _clip.load_clip_model(str(folder), "", "main", False, 4)
    images = [image for clip in CLIPS for image in clip]
    alone = []
    for image in images:
        _clip.load_clip_model.cache_clear()
        alone += _clip.load_clip_model(str(folder), "", "main", False, 4).embed_images([image])
    np.testing.assert_array_equal(
        np.array(clip_model.embed_images(images[:4]) + clip_model.embed_images(images[4:])), np.array(alone)
    )


def test_second_score_of_a_worker_reuses_embeddings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    embed = _clip.ClipModel._embed
    monkeypatch.setattr(
        _clip.ClipModel, "_embed", lambda self, images: calls.append(len(images)) or embed(self, images)
    )
    embeddings(folder)
    assert sum(calls) == 6
    run(ClipText(model=str(folder)), table_of(CLIPS, caption=["a", "b", "c"]))
    assert sum(calls) == 6


def test_clip_text_is_a_hundred_times_the_cosine(folder: Path) -> None:
    import open_clip

    captions = ["waves of colour", "a very long caption " * 40, "something else"]
    rows = run(ClipText(model=str(folder)), table_of(CLIPS, caption=captions))
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        for row, clip, caption in zip(rows, CLIPS, captions, strict=True):
            text = torch.nn.functional.normalize(model.eval().encode_text(tokenizer([caption])), dim=-1)[0]
            images = torch.stack([preprocess(Image.fromarray(decode_jpeg(encode_jpeg(image, 95)))) for image in clip])
            cosines = torch.nn.functional.normalize(model.encode_image(images), dim=-1) @ text
            assert row["clip_text"] == pytest.approx(float(100 * cosines.clamp(min=0).mean()), abs=1e-3)
    (row,) = run(ClipText(model=str(folder)), table_of(CLIPS[:1], caption=[None]))
    assert (row["fate"], row["fate_reason"]) == ("failed", "ValueError: the clip has no caption")


def linear_head() -> torch.nn.Module:
    return torch.nn.Linear(DIM, 1)


def improved_head() -> torch.nn.Module:
    """Return the layers of the improved aesthetic predictor, for a smaller embedding."""
    sizes, dropouts = (DIM, 1024, 128, 64, 16, 1), (0.2, 0.2, 0.1, None, None)
    layers: list[torch.nn.Module] = []
    for wide, narrow, dropout in zip(sizes, sizes[1:], dropouts, strict=False):
        layers += [torch.nn.Linear(wide, narrow), *([torch.nn.Dropout(dropout)] if dropout else [])]
    head = torch.nn.Module()
    head.layers = torch.nn.Sequential(*layers)
    head.forward = head.layers.forward  # type: ignore[method-assign]
    return head


@pytest.mark.parametrize("make", [linear_head, improved_head])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_aesthetics_is_the_mean_of_the_head_over_images(make: Any, suffix: str, folder: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        head = make()
    head.load_state_dict(random_like(head.state_dict(), seed=5))
    path = tmp_path / f"head{suffix}"
    if suffix == ".pth":
        torch.save(head.state_dict(), path)
    else:
        save_file(head.state_dict(), path)
    if make is improved_head:
        assert sorted(head.state_dict())[::2] == [f"layers.{n}.bias" for n in (0, 2, 4, 6, 7)]
    rows = run(Aesthetics(model=str(folder), head=str(path)), table_of(CLIPS))
    clip_model = _clip.load_clip_model(str(folder), "openai", "main", False, 1)
    with torch.no_grad():
        for row, clip in zip(rows, CLIPS, strict=True):
            vectors = torch.tensor(
                np.array([clip_model.embed_images([decode_jpeg(encode_jpeg(image, 95))])[0] for image in clip])
            )
            assert row["aesthetics"] == pytest.approx(float(head.eval().double()(vectors.double()).mean()), rel=1e-9)


FAULTS = [
    (
        {"weight": (1, DIM + 1), "bias": (1,)},
        r"layer 0 takes embeddings of 17 numbers, and tiny gives 16: take the CLIP model it was trained on",
    ),
    (
        {"layers.0.weight": (8, DIM), "layers.0.bias": (8,), "layers.2.weight": (1, 9), "layers.2.bias": (1,)},
        r"layer 2 takes 9 numbers, and .* 8",
    ),
    ({"weight": (2, DIM), "bias": (2,)}, r"gives 2 numbers per image"),
    ({"weight": (1, DIM)}, r"layer 0 is not a weight of two dimensions with its bias"),
    ({"visual.proj": (4, 4)}, r"'visual.proj' is not a key of a known head"),
]


@pytest.mark.parametrize(("shapes", "message"), FAULTS)
def test_head_that_does_not_fit_is_refused_with_the_reason(
    shapes: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "head.safetensors")
    with pytest.raises(RunError, match=message) as caught:
        load_head(tmp_path / "head.safetensors", DIM, "tiny")
    assert "head.safetensors" in str(caught.value)


def test_digest_follows_weights_not_paths(folder: Path, tmp_path: Path) -> None:
    digest = Embedding(model=str(folder)).settings_digest()
    assert Embedding(model=str(save_model(tmp_path / "copy"))).settings_digest() == digest, (
        "the path of the weights must not matter"
    )
    assert Embedding(model=str(save_model(tmp_path / "other", seed=1))).settings_digest() != digest
    assert (
        Embedding(model="ViT-B-32", pretrained="openai").settings_digest()
        != Embedding(model="ViT-B-32", pretrained="laion2b_e16").settings_digest()
    )
    assert (
        Embedding(model="hf-hub:a/b", revision="1").settings_digest()
        != Embedding(model="hf-hub:a/b", revision="2").settings_digest()
    )
    head = tmp_path / "head.pth"
    head.write_bytes(b"1")
    scored = Aesthetics(model=str(folder), head=str(head)).settings_digest()
    head.write_bytes(b"22")
    assert Aesthetics(model=str(folder), head=str(head)).settings_digest() != scored


def test_faulty_recipes_are_refused_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = ["train=null", "sample=[]"]

    def load(step: str) -> None:
        load_recipe(QUICKSTART, [f"curate=[{{scan: {{}}}}, {{cut: {{}}}}, {{frames: {{}}}}, {{{step}}}]", *bare])

    with pytest.raises(ConfigError, match=r"unknown column 'caption'.*written by caption"):
        load("score.clip_text: {}")
    with pytest.raises(ConfigError, match=r"ViT-B-32 has no weights: set pretrained"):
        load("score.embedding: {model: ViT-B-32, pretrained: ''}")
    with pytest.raises(ConfigError, match=r"no such folder"):
        load(f"score.embedding: {{model: {tmp_path}/none}}")
    with pytest.raises(ConfigError, match=r"names no file: write hf-hub:owner/name/file"):
        load("score.aesthetics: {head: 'hf-hub:owner/name'}")
    monkeypatch.setattr(_base, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package open-clip-torch: pip install 'worldloom\[models\]'"):
        load("score.embedding: {}")


def test_importing_scores_loads_no_network_library() -> None:
    modules = ["frames", *(f"score.{name}" for name in ("text_area", "people", "embedding", "aesthetics", "clip_text"))]
    imports = ", ".join(f"pipelines.steps.{module}" for module in modules)
    libraries = ["ray", "torch", "onnxruntime", "rapidocr", "nudenet", "open_clip"]
    code = f"import sys, {imports}; print(sorted(set({libraries}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_unreadable_weights_end_the_run_with_their_name(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match=r"tiny cannot be loaded by open_clip"):
        embeddings(folder)


def test_zero_or_infinite_embedding_is_an_error() -> None:
    with pytest.raises(ValueError, match="zero or not finite"):
        _clip.unit_rows(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="zero or not finite"):
        _clip.unit_rows(np.zeros((1, 4)))
