"""Settings of an evaluation: the section `evaluate` of a recipe."""

from __future__ import annotations

from pydantic import Field, field_validator

from cluster import storage
from training.sampling.guidance import Guidance
from training.sampling.settings import SolverSettings

EVALUATIONS_FOLDER, SUMMARY_FILE = "evaluation", "summary.json"
"""Folder of a run with the evaluations of its models, a folder each, and the file there with the findings."""
AUDITS_FOLDER, TRAINING_CLIPS_FOLDER = "audit", "training"
"""Folder of a run with the audits of models, a folder each, and the folder there with training clips as videos."""
NO_EVALUATION = "makes a video of an image alone, and evaluate gives it none; remove evaluate, and look at samples"
"""End of a sentence about a model of image to video."""


class EvaluateSettings(SolverSettings):
    """Settings of the clips that are generated and measured. The model, its sizes and frame rate come from its export.

    With `footage`, prompts and the real clips beside them come from the held-out files there. Without it, the videos of
    the section `sample` are measured, by the metrics that need no truth.
    """

    footage: str | None = Field(
        None,
        min_length=1,
        description="Folder of drawn footage with its truth, such as `worldloom demo-footage --world held-out` draws.",
    )
    clips: int = Field(
        64, ge=1, description="Videos of the footage whose captions are prompts; more give narrower intervals."
    )

    features: str | None = Field(
        None,
        min_length=1,
        description="TorchScript file of a network from videos [1, 3, T, H, W] in [-1, 1] to features [1, D], such as "
        "I3D; with it, the Fréchet and the kernel distance of generated to real clips are computed.",
    )

    @field_validator("guidance_method")
    @classmethod
    def _is_of_one_model(cls, method: Guidance) -> Guidance:
        if method.weaker_export is not None:
            raise ValueError(f"{method.name} samples with a second model, and evaluate has one; take another")
        return method

    def with_absolute_paths(self) -> EvaluateSettings:
        """Return the settings with absolute paths of footage and features."""
        paths = {"footage": self.footage, "features": self.features}
        return self.model_copy(update={key: path and storage.absolute(path) for key, path in paths.items()})
