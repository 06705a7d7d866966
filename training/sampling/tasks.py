"""Generate a video or an image from an exported model."""

from __future__ import annotations

from training.sampling.settings import SampleSettings


def sample(settings: SampleSettings, export_uri: str, out_uri: str) -> str:
    """Generate and write `<out_uri>/<stem>.mp4`, or `.png` for an image, with a JSON beside it; returns its URI."""
    raise NotImplementedError
