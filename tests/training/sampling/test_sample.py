"""Generated files: any size and length, the same for the same seed, and honest about how they came to be."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from captioning.encoders.hashing import Hashing
from training.autoencoders.linear import Linear
from training.checkpoints.export import write_export
from training.checkpoints.model_card import ModelCard
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching
from training.sampling.settings import SampleSettings
from training.sampling.tasks import n_frames, pixels, sample

SETTINGS = SampleSettings(prompt="a red circle", seconds=1, size="48x32", steps=4)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that was never trained, away from its zero initialisation."""
    folder = str(tmp_path_factory.mktemp("export"))
    encoder = Hashing().open()
    settings = DiT(depth=1, dim=32, heads=2)
    chance = torch.Generator().manual_seed(0)
    weights = {
        name: 0.1 * torch.randn(value.shape, generator=chance)
        for name, value in settings.build(16, encoder.dim).state_dict().items()
    }
    card = ModelCard(
        model=settings,
        objective=FlowMatching(),
        channels=16,
        text_dim=encoder.dim,
        autoencoder=Linear(),
        autoencoder_identity=Linear().identity(),
        text_encoder=Hashing(),
        text_encoder_identity=encoder.identity,
        fps=8.0,
        source_side=64.0,
        buckets=("48x32x9",),
        step=1,
        seed=0,
        data="none",
        weights="",
        worldloom="0",
    )
    write_export(
        folder,
        weights,
        {name: value.clone() for name, value in weights.items()},
        torch.from_numpy(encoder.encode([""])[0].tokens),
        card,
    )
    return folder


def frames_of(uri: str) -> list[np.ndarray]:
    with av.open(uri) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("size", "seconds", "shape"),
    [("48x32", 1, (9, 32, 48)), ("32x64", 2.1, (17, 64, 32)), ("100x50", 0.01, (5, 48, 96))],
)
def test_any_size_length_and_aspect(
    export: str, tmp_path: Path, size: str, seconds: float, shape: tuple[int, ...]
) -> None:
    uri = sample(SETTINGS.model_copy(update={"size": size, "seconds": seconds}), export, str(tmp_path))
    assert np.stack(frames_of(uri)).shape == (*shape, 3)
    with av.open(uri) as container:
        assert container.streams.video[0].average_rate == 8


def test_zero_seconds_make_an_image(export: str, tmp_path: Path) -> None:
    uri = sample(SETTINGS.model_copy(update={"seconds": 0.0, "name": "still"}), export, str(tmp_path))
    assert Path(uri).name == "still.png"
    assert Image.open(uri).size == (48, 32)


def test_the_same_seed_gives_the_same_file(export: str, tmp_path: Path) -> None:
    first, second = (sample(SETTINGS, export, str(tmp_path / name)) for name in ("a", "b"))
    other = sample(SETTINGS.model_copy(update={"seed": 1}), export, str(tmp_path))
    assert Path(first).read_bytes() == Path(second).read_bytes() != Path(other).read_bytes()


def test_the_file_beside_says_how_it_was_made(export: str, tmp_path: Path) -> None:
    uri = sample(SETTINGS, export, str(tmp_path))
    record = json.loads(Path(uri).with_suffix(".json").read_text())
    assert (record["prompt"], record["seed"], record["frames"], record["width"], record["height"], record["fps"]) == (
        "a red circle",
        0,
        9,
        48,
        32,
        8.0,
    )
    assert SampleSettings.model_validate(record["settings"]) == SETTINGS
    assert record["model"]["autoencoder"] == Linear().identity()
    assert sample(SampleSettings.model_validate(record["settings"]), record["model"]["export"], str(tmp_path / "again"))


class Doubler:
    """Says a prompt twice, and counts how often it is asked."""

    identity = "doubler"

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []

    def upsample(self, prompt: str, seconds: float) -> str:
        self.asked.append((prompt, seconds))
        return f"{prompt}, {prompt}"


def test_an_upsampled_prompt_is_what_the_model_sees_and_both_are_recorded(export: str, tmp_path: Path) -> None:
    doubler = Doubler()
    wanted = SETTINGS.model_copy(update={"upsample": True})
    uri = sample(wanted, export, str(tmp_path), doubler)
    record = json.loads(Path(uri).with_suffix(".json").read_text())
    assert (record["prompt"], record["prompt_asked_for"], record["upsampler"]) == (
        "a red circle, a red circle",
        "a red circle",
        "doubler",
    )
    whole = sample(
        SETTINGS.model_copy(update={"prompt": "a red circle, a red circle", "name": "whole"}), export, str(tmp_path)
    )
    assert Path(uri).read_bytes() == Path(whole).read_bytes()
    assert sample(wanted, export, str(tmp_path), doubler) == uri
    sample(wanted.model_copy(update={"steps": 5}), export, str(tmp_path), doubler)
    assert doubler.asked == [("a red circle", 1.0)], "what was paid for is not asked again"
    with pytest.raises(ValueError, match="asks to be upsampled"):
        sample(wanted, export, str(tmp_path / "other"))


def test_a_video_begins_and_ends_with_the_pictures_it_is_given(export: str, tmp_path: Path) -> None:
    """The model was never trained: what stays as given shows, and everything else is noise."""
    asked: list[tuple[str, int, int]] = []
    ramp_HWC = np.broadcast_to(np.linspace(20, 220, 48)[None, :, None], (32, 48, 3)).astype(np.uint8)
    pictures = {"ramp.png": ramp_HWC, "turned.png": ramp_HWC[:, ::-1]}

    def read(uri: str, width: int, height: int) -> np.ndarray:
        asked.append((uri, width, height))
        return pictures[uri]

    wanted = SETTINGS.model_copy(update={"first": "ramp.png"})
    uri = sample(wanted, export, str(tmp_path), read_picture=read)
    free = sample(SETTINGS, export, str(tmp_path), read_picture=read)
    assert asked == [("ramp.png", 48, 32)], "at the size of the video, and nothing where nothing is given"
    given, other = (np.stack(frames_of(one)).astype(int) for one in (uri, free))
    assert given.shape == other.shape == (9, 32, 48, 3)
    # The autoencoder and the video's compression lose a little.
    assert abs(given[0] - ramp_HWC).mean() < 8
    assert abs(other[0] - ramp_HWC).mean() > 30
    both = sample(wanted.model_copy(update={"last": "turned.png"}), export, str(tmp_path), read_picture=read)
    assert len(frames_of(both)) == 9
    assert len({Path(one).read_bytes() for one in (uri, free, both)}) == 3


def test_another_picture_under_the_same_name_is_another_sample(export: str, tmp_path: Path) -> None:
    shown = [np.zeros((32, 48, 3), np.uint8)]
    wanted = SETTINGS.model_copy(update={"last": "x.png"})

    def made() -> tuple[str, int]:
        uri = sample(wanted, export, str(tmp_path), read_picture=lambda *_: shown[-1])
        return json.loads(Path(uri).with_suffix(".json").read_text())["pictures"]["last"], Path(uri).stat().st_mtime_ns

    before = made()
    assert made() == before, "what is there is kept"
    shown.append(np.full((32, 48, 3), 255, np.uint8))
    assert made()[0] != before[0]
    with pytest.raises(ValueError, match=r"is given x\.png, and nothing was given to read it with"):
        sample(wanted, export, str(tmp_path))


def test_prompt_and_guidance_matter(export: str, tmp_path: Path) -> None:
    changes: list[dict[str, object]] = [{}, {"prompt": "a blue square"}, {"guidance": 1.0}, {"steps": 8}]
    files = [
        Path(sample(SETTINGS.model_copy(update={**change, "name": f"f{i}"}), export, str(tmp_path)))
        for i, change in enumerate(changes)
    ]
    assert len({file.read_bytes() for file in files}) == len(files)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [(0, 8, 1), (1, 8, 9), (2, 8, 17), (2, 24, 49), (0.01, 8, 5), (2.3, 8, 21), (2.3, 10, 25)],
)
def test_lengths_are_whole_latent_frames(seconds: float, fps: float, frames: int) -> None:
    assert n_frames(seconds, fps, 4) == frames


def test_impossible_sizes_are_refused(export: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="size 48x6: 6 pixels are too few; the model makes sides in steps of 16 pixels"
    ):
        sample(SETTINGS.model_copy(update={"size": "48x6"}), export, str(tmp_path))


def test_another_autoencoder_is_refused(export: str, tmp_path: Path) -> None:
    card = json.loads((Path(export) / "model.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((Path(export) / "model.safetensors").read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(card | {"autoencoder_identity": "linear16-other"}))
    with pytest.raises(ValueError, match="trained on latents of linear16-other"):
        sample(SETTINGS, str(tmp_path), str(tmp_path))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model\.json there"):
        sample(SETTINGS, str(tmp_path), str(tmp_path))


def test_pixels_round_and_clamp() -> None:
    video = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert pixels(video)[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
