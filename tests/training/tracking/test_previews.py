"""Previews: always the same samples, by the averaged weights, without any effect on training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines.scenes.stream import WORLD, Stream
from tests.support.drawn import write_dataset
from tests.support.ranks import run_ranks
from training import run
from training.autoencoders.linear import Linear
from training.checkpoints.export import read_export
from training.checkpoints.model_card import read_card
from training.checkpoints.run_folder import run_folder
from training.data.dataset import Dataset
from training.data.plan import PlanSettings
from training.evaluation.truth import write_truth
from training.loop import train_loop
from training.models.dit import DiT
from training.sampling.coding import decode_video
from training.sampling.generation import ModelParts, generate, video_timeline
from training.sampling.mark_settings import MarkSettings
from training.sampling.settings import SolverSettings, VideoShape
from training.settings import PreviewSettings, TrainSettings
from training.tracking import previews
from training.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow

OFF = PreviewSettings(every=0)
UNMARKED = MarkSettings(credentials=False, watermark=False)
"""Pixels and files are compared, to the bit."""
SETTINGS = TrainSettings(
    model=DiT(depth=1, dim=48, heads=2),
    steps=10,
    batch=PlanSettings(tokens_per_step=120),
    lr=2e-3,
    warmup_steps=2,
    checkpoint_every=4,
    validate_every=0,
    previews=PreviewSettings(every=4, steps=3, marks=UNMARKED),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 10), (48, 32, 1, 8)], n_val=2)


def train(manifest: str, out: Path, **changes: Any) -> Path:
    """Train in this process with changed settings, and return the folder of the run."""
    result = run.train(SETTINGS.model_copy(update=changes), manifest, str(out), seed=3, distributed=False)
    return Path(result.export_uri).parent


def preview_files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of previews, by name."""
    return {path.name: path.read_bytes() for path in (folder / "previews").glob("*")}


def losses(folder: Path) -> list[float]:
    """Return the training loss of every step."""
    return [record["loss"] for record in read_metrics(str(folder))]


@pytest.fixture(scope="module")
def whole(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(manifest, tmp_path_factory.mktemp("whole"))


def test_a_preview_is_a_video_a_poster_and_a_record(whole: Path, manifest: str) -> None:
    assert sorted(preview_files(whole)) == [
        f"step-{step:06d}.{ending}" for step in (4, 8, 10) for ending in ("json", "mp4", "png")
    ]
    record = json.loads((whole / "previews/step-000008.json").read_text())
    assert (record["step"], record["frames"], record["fps"]) == (8, 5, 8.0)
    assert PreviewSettings.model_validate(record["settings"]) == SETTINGS.previews
    held_out = Dataset.open(manifest, "val").table
    captions = dict(zip(held_out["uid"].to_pylist(), held_out["caption"].to_pylist(), strict=True))
    shown = {sample["uid"]: sample["caption"] for sample in record["samples"]}
    assert shown == captions, "four samples are held out, and four are shown"
    with av.open(str(whole / "previews/step-000008.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 5
    assert (
        frames[0].shape == np.asarray(Image.open(whole / "previews/step-000008.png")).shape == (32, 4 * 48 + 3 * 2, 3)
    )
    recorded = [record["step"] for record in read_metrics(str(whole)) if record.get("preview_s", 0) > 0]
    assert recorded == [4, 8, 10]
    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    assert [image.step for image in events.Images("previews")] == [4, 8, 10]


def assert_shows_what_the_export_samples(folder: Path, manifest: str, name: str) -> None:
    """Assert that a preview equals, to the bit, the samples of the averaged weights in the run's export."""
    record = json.loads((folder / f"previews/{name}.json").read_text())
    poster = np.asarray(Image.open(folder / f"previews/{name}.png"))
    card, model, null_text = read_export(str(folder / "export"))
    dataset = Dataset.open(manifest, "val")
    rows = {uid: row for row, uid in enumerate(dataset.table["uid"].to_pylist())}
    for seed, shown in enumerate(record["samples"]):
        solver = SolverSettings(steps=3, guidance=SETTINGS.previews.guidance, seed=seed)
        shape = VideoShape(shown["frames"], shown["height"], shown["width"], shown["fps"])
        parts = ModelParts(card, model, Linear().open(), null_text)
        text = dataset.sample(rows[shown["uid"]]).text.float()
        video = decode_video(parts.autoencoder, generate(parts, video_timeline(parts, text, shape), solver))
        cell = poster[shown["y"] : shown["y"] + shown["height"], shown["x"] : shown["x"] + shown["width"]]
        np.testing.assert_array_equal(cell, video[min(2, len(video) - 1)])


def test_the_last_preview_is_what_the_export_samples(whole: Path, manifest: str) -> None:
    assert_shows_what_the_export_samples(whole, manifest, "step-000010")


def test_training_does_not_depend_on_previews(whole: Path, manifest: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    without = train(manifest, tmp_path, previews=OFF)
    assert not (without / "previews").exists()
    assert without.name == whole.name, "settings of previews do not name a run"
    assert losses(without) == losses(whole)
    assert read_card(str(without / "export")).weights == read_card(str(whole / "export")).weights
    assert torch.equal(torch.get_rng_state(), state)


def test_a_resumed_run_writes_the_same_previews(whole: Path, manifest: str, tmp_path: Path) -> None:
    train(manifest, tmp_path, steps=6, previews=OFF)
    resumed = train(manifest, tmp_path)
    assert {name: data for name, data in preview_files(whole).items() if "000004" not in name} == preview_files(resumed)


def test_previews_without_videos_and_validation_split(tmp_path: Path) -> None:
    """A preview of images alone is an image, and training samples take the place of held-out ones."""
    manifest = write_dataset(tmp_path / "data", [(48, 32, 1, 4)], n_val=0)
    folder = train(manifest, tmp_path / "out", steps=2, previews=PreviewSettings(every=2, steps=1, count=9))
    assert sorted(preview_files(folder)) == ["step-000002.json", "step-000002.png"]
    shown = [sample["uid"] for sample in json.loads(preview_files(folder)["step-000002.json"])["samples"]]
    assert sorted(shown) == [f"48x32x1-{i:04d}" for i in range(4)], "no more than the split has"


def test_captions_of_drawn_footage_are_scored(manifest: str, tmp_path: Path) -> None:
    file = next(file for file in map(Stream(0, "held_out").file, range(400)) if not file.is_image)
    write_truth(str(tmp_path / "truth.parquet"), WORLD, [file.truth(file.name)])
    scored = PreviewSettings(every=2, steps=1, count=1, footage=str(tmp_path))
    folder = train(manifest, tmp_path / "out", steps=2, previews=scored)
    record = read_metrics(str(folder))[-1]
    assert "preview_failed" not in record
    assert 0 <= record["score_number"] <= 1
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert "score/number" in events.Tags()["scalars"]


def test_a_failed_preview_does_not_stop_the_run(
    whole: Path, manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*arguments: object) -> None:
        raise ValueError("no weights at /models/vae")

    monkeypatch.setattr(previews, "open_autoencoder", missing)
    folder = train(manifest, tmp_path)
    assert losses(folder) == losses(whole)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    failure = "no preview of step 4: ValueError: no weights at /models/vae"
    assert warnings == [
        f"{failure}. Training continues and the next one is tried; `previews: {{every: 0}}` turns them off"
    ]
    assert [record["step"] for record in read_metrics(str(folder)) if record.get("preview_failed")] == [4, 8, 10]
    assert sorted(preview_files(folder)) == ["step-000004.json", "step-000008.json", "step-000010.json"]
    assert json.loads(preview_files(folder)["step-000008.json"]) == {
        "step": 8,
        "failed": "ValueError: no weights at /models/vae",
    }


def test_a_preview_that_takes_too_long_is_the_last(
    whole: Path, manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(previews, "LIMIT_S", -1.0)
    folder = train(manifest, tmp_path)
    assert losses(folder) == losses(whole)
    assert "Training continues and there are no more previews" in caplog.text
    assert sorted(preview_files(folder)) == ["step-000004.json"]


def test_an_unwritable_folder_does_not_stop_the_run(whole: Path, manifest: str, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"previews": PreviewSettings(every=10, steps=1)})
    folder = Path(run_folder(settings, manifest, str(tmp_path), 3))
    folder.mkdir()
    (folder / "previews").write_text("in the way")
    assert losses(train(manifest, tmp_path, previews=settings.previews)) == losses(whole)


@pytest.mark.parametrize(
    ("ranks", "tokens_per_step", "changes", "every"),
    [
        # 160 forward passes, and 3 * 100 of training in a step.
        (1, 6400, {}, 500),
        # 160 of one sample a step, whose training takes 3: 5,334 steps for 2%.
        (1, 64, {"steps": 40}, 5500),
        (1, 64, {"steps": 40, "guidance": 1.0}, 3000),
        # Each of 4 ranks makes one of the samples, and trains with a quarter of the step.
        (4, 64, {"steps": 40}, 5500),
        (8, 64, {"steps": 40}, 11000),
        (1, 64, {"steps": 40, "every": 7}, 7),
    ],
)
def test_previews_take_two_percent_by_default(
    ranks: int, tokens_per_step: int, changes: dict[str, Any], every: int
) -> None:
    settings = SETTINGS.model_copy(
        update={"previews": PreviewSettings(**changes), "batch": PlanSettings(tokens_per_step=tokens_per_step)}
    )
    dataset = SimpleNamespace(table=pa.table({"n_tokens": [32, 96]}))
    run_of_ranks = SimpleNamespace(settings=settings, dataset=dataset, engine=SimpleNamespace(world_size=ranks))
    assert previews.Previews(cast(Any, run_of_ranks)).every == every


SHORT = {"batch": PlanSettings(tokens_per_step=64), "steps": 3}
STAGES = (0, 2, 3)


def train_with_and_without(manifest: str, out: str) -> None:
    """Train the same run with and without previews, under each stage."""
    for stage in STAGES:
        for name, chosen in (("on", PreviewSettings(every=2, steps=3, marks=UNMARKED)), ("off", OFF)):
            settings = SETTINGS.model_copy(update=SHORT | {"workers": 2, "zero_stage": stage, "previews": chosen})
            train_loop(settings, manifest, f"{out}/{stage}-{name}", 3, torch.device("cpu"))


def test_previews_are_the_same_under_every_zero_stage(manifest: str, tmp_path: Path) -> None:
    """They show the averaged weights, and change nothing in training."""
    run_ranks(train_with_and_without, 2, manifest, str(tmp_path))
    for stage in STAGES:
        on, off = tmp_path / f"{stage}-on", tmp_path / f"{stage}-off"
        assert losses(on) == losses(off)
        assert read_card(str(on / "export")).weights == read_card(str(off / "export")).weights
        assert sorted(preview_files(on)) == [
            f"step-{step:06d}.{ending}" for step in (2, 3) for ending in ("json", "mp4", "png")
        ]
        assert_shows_what_the_export_samples(on, manifest, "step-000003")
