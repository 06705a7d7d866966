"""Generated files: any size and length, the same for the same settings, with a record of how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cluster.arrays import Pixels
from tests.support.exported_models import write_untrained_export
from training.autoencoders.linear import Linear
from training.sampling.settings import SampleSettings
from training.sampling.tasks import Inputs, sample

SETTINGS = SampleSettings(prompt="a red circle", seconds=1, size="48x32", steps=4)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_untrained_export(tmp_path_factory.mktemp("export"))


def frames_of(uri: str) -> Pixels:
    with av.open(uri) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def record_of(uri: str) -> dict[str, Any]:
    """Return the record beside a generated file."""
    record: dict[str, Any] = json.loads(Path(f"{uri}.json").read_text())
    return record


@pytest.mark.parametrize(
    ("size", "seconds", "shape"),
    [("48x32", 1, (9, 32, 48)), ("32x64", 2.1, (17, 64, 32)), ("96x48", 0.01, (5, 48, 96))],
)
def test_any_size_length_and_aspect(
    export: str, tmp_path: Path, size: str, seconds: float, shape: tuple[int, ...]
) -> None:
    uri = sample(SETTINGS.model_copy(update={"size": size, "seconds": seconds}), export, str(tmp_path))
    assert frames_of(uri).shape == (*shape, 3)
    with av.open(uri) as container:
        assert container.streams.video[0].average_rate == 8


def test_zero_seconds_make_an_image(export: str, tmp_path: Path) -> None:
    uri = sample(SETTINGS.model_copy(update={"seconds": 0.0, "name": "still"}), export, str(tmp_path))
    assert Path(uri).name == "still.png"
    assert Image.open(uri).size == (48, 32)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_pixels(export: str, tmp_path: Path) -> None:
    first, second = (sample(SETTINGS, export, str(tmp_path / name)) for name in ("a", "b"))
    other = sample(SETTINGS.model_copy(update={"seed": 1}), export, str(tmp_path))
    # Their signatures differ.
    assert np.array_equal(frames_of(first), frames_of(second))
    assert not np.array_equal(frames_of(first), frames_of(other))


@pytest.mark.slow
def test_record_has_all_that_is_needed_to_make_the_file_again(export: str, tmp_path: Path) -> None:
    uri = sample(SETTINGS, export, str(tmp_path))
    record = record_of(uri)
    expected = {"prompt": "a red circle", "seed": 0, "frames": 9, "width": 48, "height": 32, "fps": 8.0}
    assert record.items() >= expected.items()
    assert record["model"]["autoencoder"] == Linear().identity()
    settings = SampleSettings.model_validate(record["settings"])
    assert settings == SETTINGS
    again = sample(settings, record["model"]["export"], str(tmp_path / "again"))
    assert np.array_equal(frames_of(again), frames_of(uri))


class Doubler:
    """An upsampler that repeats a prompt, and records its calls."""

    identity = "doubler"

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []

    def upsample(self, prompt: str, seconds: float) -> str:
        self.calls.append((prompt, seconds))
        return f"{prompt}, {prompt}"


@pytest.mark.slow
def test_model_sees_the_upsampled_prompt_and_both_are_recorded(export: str, tmp_path: Path) -> None:
    doubler = Doubler()
    settings = SETTINGS.model_copy(update={"upsample": True})
    uri = sample(settings, export, str(tmp_path), Inputs(doubler))
    expected = {"prompt": "a red circle, a red circle", "requested_prompt": "a red circle", "upsampler": "doubler"}
    assert record_of(uri).items() >= expected.items()
    written_out = SETTINGS.model_copy(update={"prompt": "a red circle, a red circle", "name": "written-out"})
    assert np.array_equal(frames_of(uri), frames_of(sample(written_out, export, str(tmp_path))))
    assert sample(settings, export, str(tmp_path), Inputs(doubler)) == uri
    sample(settings.model_copy(update={"steps": 5}), export, str(tmp_path), Inputs(doubler))
    assert doubler.calls == [("a red circle", 1.0)], "a prompt that was upsampled before is not upsampled again"
    with pytest.raises(ValueError, match="'a red circle' is to be upsampled, but no upsampler was passed"):
        sample(settings, export, str(tmp_path / "other"))


@pytest.mark.slow
def test_video_begins_and_ends_with_conditioning_images(export: str, tmp_path: Path) -> None:
    """The model was never trained, so conditioning frames can be seen, and all other frames are noise."""
    calls: list[tuple[str, int, int]] = []
    ramp_HWC = np.broadcast_to(np.linspace(20, 220, 48)[None, :, None], (32, 48, 3)).astype(np.uint8)
    images = {"ramp.png": ramp_HWC, "flipped.png": ramp_HWC[:, ::-1]}

    def read(uri: str, width: int, height: int) -> Pixels:
        calls.append((uri, width, height))
        return images[uri]

    settings = SETTINGS.model_copy(update={"first": "ramp.png"})
    with_first = sample(settings, export, str(tmp_path), Inputs(read_image=read))
    free = sample(SETTINGS, export, str(tmp_path), Inputs(read_image=read))
    assert calls == [("ramp.png", 48, 32)], "images are read at the size of the video, and only if there are any"
    with_first_frames, free_frames = (frames_of(uri).astype(int) for uri in (with_first, free))
    assert with_first_frames.shape == free_frames.shape == (9, 32, 48, 3)
    # The autoencoder and the video's compression lose a little.
    assert abs(with_first_frames[0] - ramp_HWC).mean() < 8
    assert abs(free_frames[0] - ramp_HWC).mean() > 30
    with_both = sample(
        settings.model_copy(update={"last": "flipped.png"}), export, str(tmp_path), Inputs(read_image=read)
    )
    assert len(frames_of(with_both)) == 9
    assert len({frames_of(uri).tobytes() for uri in (with_first, free, with_both)}) == 3


@pytest.mark.slow
def test_a_changed_image_file_makes_another_sample(export: str, tmp_path: Path) -> None:
    contents = [np.zeros((32, 48, 3), np.uint8)]
    settings = SETTINGS.model_copy(update={"last": "x.png"})

    def digest_and_mtime() -> tuple[str, int]:
        uri = sample(settings, export, str(tmp_path), Inputs(read_image=lambda *_: contents[-1]))
        return record_of(uri)["images"]["last"], Path(uri).stat().st_mtime_ns

    before = digest_and_mtime()
    assert digest_and_mtime() == before, "the file is kept"
    contents.append(np.full((32, 48, 3), 255, np.uint8))
    assert digest_and_mtime()[0] != before[0]
    message = "'a red circle' has conditioning images, but no function to read them was passed"
    with pytest.raises(ValueError, match=message):
        sample(settings, export, str(tmp_path))


@pytest.mark.slow
def test_prompt_guidance_and_steps_matter(export: str, tmp_path: Path) -> None:
    changes: list[dict[str, object]] = [{}, {"prompt": "a blue square"}, {"guidance": 1.0}, {"steps": 8}]
    files = [
        sample(SETTINGS.model_copy(update={**change, "name": f"f{i}"}), export, str(tmp_path))
        for i, change in enumerate(changes)
    ]
    assert len({frames_of(file).tobytes() for file in files}) == len(files)


def test_models_of_another_autoencoder_are_refused(export: str, tmp_path: Path) -> None:
    card = json.loads((Path(export) / "model.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((Path(export) / "model.safetensors").read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(card | {"autoencoder_identity": "linear16-other"}))
    with pytest.raises(ValueError, match="trained on latents of linear16-other"):
        sample(SETTINGS, str(tmp_path), str(tmp_path))


def test_impossible_sizes_and_empty_folders_are_refused(export: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"size 48x6: .* multiples of 16 pixels.*; take 48x16"):
        sample(SETTINGS.model_copy(update={"size": "48x6"}), export, str(tmp_path))
    with pytest.raises(ValueError, match=r"size 100x50: .*; take 96x48 or 112x64"):
        sample(SETTINGS.model_copy(update={"size": "100x50"}), export, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"there is no model\.json"):
        sample(SETTINGS, str(tmp_path), str(tmp_path))


@pytest.mark.slow
def test_an_image_and_a_video_of_one_name_have_two_records(export: str, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"name": "both", "steps": 1})
    video, image = (
        sample(settings.model_copy(update={"seconds": seconds}), export, str(tmp_path)) for seconds in (1.0, 0.0)
    )
    assert (record_of(video)["frames"], record_of(image)["frames"]) == (9, 1)
    before = Path(video).stat().st_mtime_ns
    sample(settings, export, str(tmp_path))
    assert Path(video).stat().st_mtime_ns == before, "the video is kept"
