"""The example plug-ins: each alone, and all of them in one run as an installed package."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from captioning.engine import Answer, Question
from pipelines.engine.step import Context
from training.network import Condition, VideoModel

if TYPE_CHECKING:
    from example_plugins.palette import Palette

PACKAGE = Path(__file__).parents[1]
CHANNELS, TEXT_DIM = 4, 12

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package is installed, with its entry points."""
    folder = tmp_path_factory.mktemp("plugins")
    sources = folder / "sources"  # A build leaves files beside its sources.
    shutil.copytree(PACKAGE, sources, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    target = folder / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, sources], check=True)
    return target


@pytest.fixture(scope="module", autouse=True)
def importable(site: Path) -> Iterator[None]:
    """The package can be imported in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield


@pytest.fixture(scope="module")
def worldloom(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A function that runs the command worldloom in a folder with drawn footage."""
    folder = tmp_path_factory.mktemp("run")
    paths = [str(site), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "COLUMNS": "200"}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("worldloom")), *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    run("demo-footage", "footage/demo", "--videos", "6")
    return run


def test_recipe_is_valid(worldloom: Command) -> None:
    assert "trains unet" in worldloom("validate", PACKAGE / "recipe.yaml").stdout


def test_step_is_listed_with_its_settings(worldloom: Command) -> None:
    listed = worldloom("steps").stdout
    assert "score.sharp_motion" in listed
    assert "writes sharp_motion" in listed


def test_whole_recipe_runs(worldloom: Command, tmp_path: Path) -> None:
    few = ["steps=6", "warmup_steps=1", "decay_steps=2", "validate_every=0", "previews.every=0", "model.width=16"]
    settings = [f"out={tmp_path}", *(f"train.{value}" for value in few)]
    settings.append("sample=[{prompt: The video is mostly green., seconds: 1, size: 80x48, steps: 2, name: video}]")
    options = [part for setting in settings for part in ("--set", setting)]
    worldloom("run", PACKAGE / "recipe.yaml", "--inline", *options)

    (tables,) = (tmp_path / "tables").glob("encode-*")
    clips = [row for row in pa.dataset.dataset(tables).to_table().to_pylist() if row["fate"] == "kept"]
    assert {row["kind"] for row in clips} == {"video", "image"}
    for row in clips:
        assert 0 < row["blur"] < 0.7
        if row["kind"] == "image":
            assert row["sharp_motion"] is None
        else:
            assert row["sharp_motion"] == pytest.approx(row["motion"] * (1 - row["blur"]))
        assert row["caption_engine"].startswith("palette-v1")
        assert row["caption"].startswith(row["source_caption"])
        assert [caption["kind"] for caption in row["captions"]] == ["dense", "medium", "short", "source"]
    backgrounds = ["light blue", "dark green", "lavender", "maroon", "mint green"]
    for colour in backgrounds:
        (row, *_) = [row for row in clips if f"{colour} background" in row["source_caption"]]
        assert f"mostly {colour}" in row["caption"]

    (export,) = tmp_path.glob("run-*/export")
    card = json.loads((export / "model.json").read_text())
    assert card["model"] == {"name": "unet", "width": 16, "levels": 3, "blocks": 1}
    assert (export / "model.safetensors").stat().st_size > 0
    assert (tmp_path / "samples" / "video.mp4").stat().st_size > 0


def jpeg(pixels: np.ndarray | Image.Image) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def textured(width: int = 160, height: int = 90) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(noise.repeat(5, axis=0).repeat(5, axis=1))


def measure(rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    from example_plugins.sharp_motion import SharpMotion

    step = SharpMotion(**settings)
    kinds = {"uid": pa.string(), "frames": pa.list_(pa.binary()), "motion": pa.float64()}
    table = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})
    measured = step.open(Context(tables_uri="unused", seed=0))(table)
    assert [field.name for field in step.writes()] == ["blur", "sharp_motion"]
    assert step.reads() == ("frames", "motion")
    return measured.to_pylist()


def test_blur_lowers_sharp_motion() -> None:
    image = textured()
    images = [image, image.filter(ImageFilter.BoxBlur(2)), image.filter(ImageFilter.BoxBlur(5))]
    rows = [{"uid": str(i), "frames": [jpeg(image)], "motion": 0.1} for i, image in enumerate(images)]
    blurs = [row["blur"] for row in measure(rows)]
    assert blurs == sorted(blurs)
    assert blurs[0] < 0.3
    assert blurs[2] > 0.7
    for row in measure(rows):
        assert row["sharp_motion"] == pytest.approx(0.1 * (1 - row["blur"]))


def test_blur_along_one_axis_counts_whole() -> None:
    pixels = np.asarray(textured(), dtype=float)
    smeared = np.mean([np.roll(pixels, shift, axis=1) for shift in range(11)], axis=0).astype(np.uint8)
    sharp, horizontal, vertical = measure(
        [
            {"uid": "a", "frames": [jpeg(pixels.astype(np.uint8))], "motion": 0.1},
            {"uid": "b", "frames": [jpeg(smeared)], "motion": 0.1},
            {"uid": "c", "frames": [jpeg(np.ascontiguousarray(smeared.transpose(1, 0, 2)))], "motion": 0.1},
        ]
    )
    assert horizontal["blur"] > sharp["blur"] + 0.3
    assert vertical["blur"] == pytest.approx(horizontal["blur"], abs=0.02)


def test_plain_images_stills_and_damaged_images() -> None:
    plain = jpeg(np.full((32, 32, 3), 90, np.uint8))
    rows = measure(
        [
            {"uid": "a", "frames": [plain], "motion": 0.1},
            {"uid": "b", "frames": [jpeg(textured())], "motion": None},
            {"uid": "c", "frames": [b"no image"], "motion": 0.1},
        ]
    )
    assert rows[0]["blur"] == 1
    assert rows[0]["sharp_motion"] == 0
    assert rows[1]["sharp_motion"] is None
    assert [row["fate"] for row in rows] == ["kept", "kept", "failed"]


@pytest.fixture
def palette() -> Palette:
    from example_plugins.palette import Palette

    return Palette(colours=2)


def picture(background: tuple[int, int, int], square: tuple[int, int, int]) -> bytes:
    pixels = np.full((90, 160, 3), background, np.uint8)
    pixels[20:60, 40:80] = square
    return jpeg(pixels)


def ask(settings: Palette, *images: bytes, schema: dict[str, Any] | None = None, **columns: Any) -> Answer:
    known = {"motion": 0.3, "camera": "pan", "luma": 0.2, "source_caption": None, **columns}
    question = Question(key="k", uid="u", text="Describe.", images=images, columns=known, json_schema=schema)
    (answer,) = settings.open().answer([question])
    assert (answer.key, answer.uid) == ("k", "u")
    return answer


BLUE, GREEN, RED = (45, 95, 210), (60, 170, 70), (210, 40, 40)


def test_caption_names_colours_light_and_tempo(palette: Palette) -> None:
    answer = ask(palette, picture(BLUE, RED), picture(BLUE, RED))
    assert answer.text == "The video is mostly blue (89%) with red (11%). It is dark and fast, while the camera pans."
    assert answer == ask(palette, picture(BLUE, RED), picture(BLUE, RED))


def test_caption_of_an_image_has_no_tempo(palette: Palette) -> None:
    answer = ask(palette, picture(GREEN, GREEN), motion=None, camera=None, luma=0.5, source_caption="A lawn.")
    assert answer.text == "A lawn. The picture is mostly green (100%). It is evenly lit."


def test_caption_says_that_the_colour_changes(palette: Palette) -> None:
    answer = ask(palette, picture(BLUE, BLUE), picture(BLUE, BLUE), picture(GREEN, GREEN))
    assert answer.text.endswith("It begins mostly blue and ends mostly green.")


def test_settings_change_captions_and_identity(palette: Palette) -> None:
    other = palette.model_copy(update={"colours": 1, "fast": 0.5})
    assert "is mostly blue (89%). It is dark and calm" in ask(other, picture(BLUE, RED)).text
    assert other.identity() != palette.identity()


def test_answers_follow_the_schema(palette: Palette) -> None:
    schema = {"type": "object", "properties": {"dense": {"type": "string"}, "short": {"type": "string"}}}
    captions = json.loads(ask(palette, picture(BLUE, RED), schema=schema).text)
    assert captions["short"] == "The video is mostly blue with red."
    assert list(captions) == ["dense", "short"]


@pytest.mark.parametrize("images", [0, 1])
def test_unanswerable_questions_have_an_error(palette: Palette, images: int) -> None:
    schema = {"type": "object", "properties": {"subject": {"type": "string"}}}
    answer = ask(palette, *[picture(BLUE, RED)] * images, schema=schema)
    assert answer.text == ""
    assert answer.error is not None
    assert ("has no subject" if images else "looks at images") in answer.error


def build(seed: int = 0, scramble: bool = False) -> VideoModel:
    from example_plugins.unet import UNet

    torch.manual_seed(seed)
    network = UNet(width=16, levels=3).build(CHANNELS, TEXT_DIM)
    if scramble:  # The last layer begins with zeros.
        for weight in network.parameters():
            nn.init.normal_(weight, std=0.1)
    return network


SHAPES = [(1, 6, 10), (5, 6, 10), (3, 7, 5), (1, 3, 3)]


def make_pack(shapes: list[tuple[int, int, int]]) -> tuple[list[Tensor], Condition]:
    rng = torch.Generator().manual_seed(1)
    latents = [torch.randn(CHANNELS, *shape, generator=rng) for shape in shapes]
    frames = [shape[0] for shape in shapes]
    condition = Condition(
        texts=[torch.randn(3 + i, TEXT_DIM, generator=rng) for i in range(len(shapes))],
        times=[torch.rand(n, generator=rng) for n in frames],
        conditioning_masks=[torch.zeros(n) for n in frames],
        seconds=[torch.arange(n) / 2 for n in frames],
        fps_B=torch.full((len(shapes),), 8.0),
        size_B2=torch.full((len(shapes), 2), 64.0),
        crop_B2=torch.zeros(len(shapes), 2),
        source_B2=torch.full((len(shapes), 2), 64.0),
    )
    return latents, condition


def choose(condition: Condition, order: list[int]) -> Condition:
    names = ["texts", "times", "conditioning_masks", "seconds"]
    lists = {name: [getattr(condition, name)[i] for i in order] for name in names}
    tensors = {name: getattr(condition, name)[order] for name in ["fps_B", "size_B2", "crop_B2", "source_B2"]}
    return Condition(**lists, **tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_have_the_shapes_of_latents(dtype: torch.dtype) -> None:
    latents, condition = make_pack(SHAPES)
    predictions = build(scramble=True).to(dtype)(latents, condition)
    assert [p.shape for p in predictions] == [z.shape for z in latents]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in predictions)


def test_samples_are_independent_of_their_pack() -> None:
    network = build(scramble=True)
    latents, condition = make_pack(SHAPES)
    with torch.no_grad():
        together = network(latents, condition)
        order = [2, 0, 3, 1]
        shuffled = network([latents[i] for i in order], choose(condition, order))
        for position, i in enumerate(order):
            (alone,) = network([latents[i]], choose(condition, [i]))
            torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(shuffled[position], alone, rtol=1e-4, atol=1e-5)


def test_predictions_depend_on_noise_level_mask_and_text() -> None:
    network = build(scramble=True)
    latents, condition = make_pack([(3, 4, 4)])
    before = network(latents, condition)[0]
    for values in (condition.times[0], condition.conditioning_masks[0], condition.seconds[0], condition.texts[0]):
        values += 0.5
        after = network(latents, condition)[0]
        assert (after - before).abs().max() > 1e-4
        before = after


def test_each_layer_is_called_once_per_pack() -> None:
    network = build()
    calls: dict[str, int] = {}
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    network(*make_pack(SHAPES))
    assert set(calls.values()) == {1}
    assert {name.rpartition(".")[0] for name, _ in network.named_parameters()} == set(calls)


def test_network_without_memory_begins_with_the_same_weights() -> None:
    from example_plugins.unet import UNet

    with torch.device("meta"):
        later = UNet(width=16, levels=3).build(CHANNELS, TEXT_DIM)
    assert all(weight.is_meta for weight in later.parameters())
    later.to_empty(device="cpu")
    torch.manual_seed(3)
    later.initialise()
    for (name, weight), other in zip(build(seed=3).named_parameters(), later.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_flops_are_about_those_that_torch_counts() -> None:
    from example_plugins.unet import UNet

    settings = UNet(width=32, levels=3)
    network = settings.build(CHANNELS, TEXT_DIM)
    latents, condition = make_pack([(5, 16, 16)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(latents, condition)
    assert settings.tokens(5, 16, 16) == 320
    assert settings.tokens(1, 3, 5) == 6
    assert settings.flops(settings.tokens(5, 16, 16), 3) == pytest.approx(counter.get_total_flops(), rel=0.2)


def test_loss_falls_when_one_batch_is_learnt_by_heart() -> None:
    network = build()
    latents, condition = make_pack([(3, 6, 6), (3, 6, 6), (1, 6, 6)])
    noise = [torch.randn_like(z) for z in latents]
    levels = [time[None, :, None, None] for time in condition.times]
    noisy = [(1 - t) * z + t * e for z, e, t in zip(latents, noise, levels, strict=True)]
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        predictions = network(noisy, condition)
        parts = [(p - (e - z)).square().mean() for p, e, z in zip(predictions, noise, latents, strict=True)]
        loss = torch.stack(parts).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.2 * losses[0]
