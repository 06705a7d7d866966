"""The name of a run's folder: a hash of the settings, seed and data that determine the run's result."""

from __future__ import annotations

from pathlib import Path

from training.checkpoints.run_folder import run_folder
from training.models.dit import DiT
from training.settings import TrainSettings

SETTINGS = TrainSettings(model=DiT(depth=1, dim=32, heads=2), keep_checkpoints=2)


def test_only_what_determines_the_result_names_the_folder(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest"
    manifest.write_bytes(b"rows")

    def folder(seed: int = 0, **changes: object) -> str:
        return run_folder(SETTINGS.model_copy(update=changes), str(manifest), "out", seed)

    assert folder() == folder(steps=7, checkpoint_every=1, workers=2, zero_stage=2, cpu_offload=True)
    assert folder() == folder(model=SETTINGS.model.model_copy(update={"checkpointing": "blocks"}))
    assert len({folder(), folder(lr=0.5), folder(seed=1), folder(model=DiT(depth=2, dim=32, heads=2))}) == 4
    before = folder()
    manifest.write_bytes(b"other rows")
    assert folder() != before
