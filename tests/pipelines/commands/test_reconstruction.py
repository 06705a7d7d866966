"""Reconstruction of a video: frames, pieces and scores equal those of one pass through independent code."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cluster.arrays import Pixels
from cluster.config import ConfigError
from pipelines.commands import _reconstruction
from pipelines.commands._reconstruction import GAP_WIDTH, difference, reconstructed, sampled, write_roundtrip
from pipelines.video.decode import probe
from pipelines.video.part import VideoPart
from pipelines.video.spans import FrameGrid, read_span
from tests.support.random_autoencoders import save_autoencoder
from tests.support.videos import encode, sliding
from training.autoencoder import AutoencoderSettings
from training.autoencoders._causal_convolutions import PRESETS
from training.autoencoders._causal_weights import TrainedNetwork, new_network
from training.autoencoders.causal import Causal
from training.autoencoders.diffusers import Diffusers
from training.autoencoders.linear import Linear
from training.pixels import psnr_db, ssim
from training.sampling.media import write_mp4

WIDTH, HEIGHT = 64, 48
IMAGE = "sd"
"""A published autoencoder of images, which encodes each frame alone."""
VIDEO = "wan"
"""A published autoencoder of videos, which encodes a video in one pass."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roundtrip")


@pytest.fixture(scope="module")
def video(folder: Path) -> str:
    """Return a video of 23 frames at 24 fps, 68 pixels wide: no autoencoder takes that length or width."""
    path, frames = folder / "source.mp4", sliding(23, 3, 68, HEIGHT)
    return str(encode(path, frames, time_base=Fraction(1, 24), options={"crf": "8", "g": "6"}))


@pytest.fixture(scope="module")
def causal(folder: Path) -> Causal:
    """Return an autoencoder whose frames depend on earlier ones; with the initial weights they would not."""
    path = folder / "causal.safetensors"
    network, rng = new_network(PRESETS["tiny"], 0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=rng)
    path.write_bytes(TrainedNetwork(network, torch.zeros(2, 16), torch.ones(2, 16), {}).to_bytes())
    return Causal(weights=str(path))


@pytest.fixture(scope="module")
def published(folder: Path) -> dict[str, Diffusers]:
    return {kind: Diffusers(path=str(save_autoencoder(folder / kind, kind))) for kind in (IMAGE, VIDEO)}


def frames_of(path: Path) -> Pixels:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def root_mean_square(x: NDArray[np.float64]) -> float:
    return float(np.sqrt((x**2).mean()))


def as_video(frames_THWC: Pixels) -> Tensor:
    """Return frames as a video `[1, 3, T, H, W]` in [-1, 1]."""
    return torch.from_numpy(frames_THWC).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


@pytest.mark.parametrize(("start_s", "fps"), [(0.0, 24.0), (0.25, 24.0), (0.4, 10.0), (0.1, 60.0)])
def test_frames_equal_those_of_encode(video: str, start_s: float, fps: float) -> None:
    info = probe(video)
    found = np.stack(list(sampled(video, start_s, fps, WIDTH, HEIGHT)))
    start_pts = info.start_pts + round(Fraction(start_s) / info.time_base)
    end_pts = info.start_pts + round(Fraction(23, 24) / info.time_base)
    expected = read_span(video, start_pts, end_pts, FrameGrid(fps=fps, frames=len(found), width=WIDTH, height=HEIGHT))
    assert np.array_equal(found, expected.frames)
    with pytest.raises(ValueError, match="ask for fewer"):
        read_span(video, start_pts, end_pts, FrameGrid(fps=fps, frames=len(found) + 2, width=WIDTH, height=HEIGHT))


@pytest.mark.slow
def test_pieces_equal_one_pass(causal: Causal, published: dict[str, Diffusers]) -> None:
    whole_BCTHW = torch.randint(
        0, 256, (1, 3, 17, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    cases: list[tuple[AutoencoderSettings, list[int]]] = [
        (Linear(channels=48), [5, 4, 8]),
        (causal, [5, 4, 8]),
        (published[IMAGE], [2, 5, 10]),
    ]
    for settings, lengths in [*cases, (published[VIDEO], [5, 12])]:
        autoencoder = settings.open()
        made = torch.cat(
            list(reconstructed(autoencoder, torch.split(whole_BCTHW, lengths, dim=2), torch.device("cpu"))), dim=2
        )
        with torch.no_grad():
            expected = autoencoder.decode(autoencoder.encode(whole_BCTHW.float() / 127.5 - 1))
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "causal"])
def test_frames_and_scores_equal_one_pass(
    name: str, video: str, causal: Causal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mp4 shows source, reconstruction and difference; independent formulas give the scores and the difference."""
    monkeypatch.setattr(_reconstruction, "PIECE_PIXELS", WIDTH * HEIGHT * 8)
    settings: AutoencoderSettings = causal if name == "causal" else Linear()
    made = write_roundtrip(video, settings, VideoPart(), str(tmp_path / "out.mp4"))
    assert (made.frames, made.width, made.height, made.fps) == (21, WIDTH, HEIGHT, 24.0), (
        "the last two frames fill no group"
    )
    info = probe(video)
    end_pts = info.start_pts + round(Fraction(21, 24) / info.time_base)
    source_THWC = read_span(
        video, info.start_pts, end_pts, FrameGrid(fps=24, frames=21, width=WIDTH, height=HEIGHT)
    ).frames
    autoencoder = settings.open()
    with torch.no_grad():
        made_BCTHW = autoencoder.decode(autoencoder.encode(as_video(source_THWC)))
    assert made.psnr_db == pytest.approx(float(psnr_db(made_BCTHW, as_video(source_THWC))), abs=1e-3)
    assert made.ssim == pytest.approx(float(ssim(made_BCTHW, as_video(source_THWC))), abs=1e-5)
    made_THWC = ((made_BCTHW[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    error_THWC = 128 + 4 * (made_THWC.astype(float) - source_THWC)
    gap_THWC = np.full((21, HEIGHT, GAP_WIDTH, 3), 255, np.uint8)
    row = [source_THWC, gap_THWC, made_THWC, gap_THWC, error_THWC.clip(0, 255).astype(np.uint8)]
    write_mp4(str(tmp_path / "expected.mp4"), np.concatenate(row, axis=2), 24)
    shown, expected = (frames_of(tmp_path / name).astype(float) for name in ("out.mp4", "expected.mp4"))
    assert root_mean_square(shown - expected) < 1, "rounding may change a few 8-bit values by 1"
    assert root_mean_square((shown[:, :, :WIDTH] - source_THWC).mean(-1)) < 3, "the source is shown unchanged"
    assert probe(str(tmp_path / "out.mp4")).fps == pytest.approx(24)


def test_the_difference_is_amplified_around_grey() -> None:
    source = np.array([[[10, 200, 0]]], np.uint8)
    made = np.array([[[10, 190, 255]]], np.uint8)
    assert difference(source, made).tolist() == [[[128, 88, 255]]]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (VideoPart(frames=8), "take 5 or 9"),
        (VideoPart(frames=25), "--frames 21"),
        (VideoPart(start_s=9), "no frame at 9 s"),
        (VideoPart(size=8), "larger --size"),
        (VideoPart(size=8192), "smaller --size"),
    ],
    ids=str,
)
def test_an_impossible_part_is_refused(part: VideoPart, message: str, video: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        write_roundtrip(video, Linear(), part, str(tmp_path / "out.mp4"))
    assert not list(tmp_path.iterdir())


def test_bad_files_and_bad_outputs_are_refused(video: str, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no video")
    photo = tmp_path / "photo.mp4"
    Image.fromarray(sliding(1, 1.0, WIDTH, HEIGHT)[0]).save(photo, "PNG")
    for uri, out, message in [
        (str(text), "out.mp4", "notes.mp4"),
        (str(photo), "out.mp4", "photo.mp4: is an image"),
        (str(tmp_path / "gone.png"), "out.mp4", "No such file or directory: .*gone.png"),
        (video, "out.avi", "ends in .mp4"),
    ]:
        with pytest.raises(ConfigError, match=message):
            write_roundtrip(uri, Linear(), VideoPart(), str(tmp_path / out))
    with pytest.raises(ConfigError, match="is the source"):
        write_roundtrip(video, Linear(), VideoPart(), video)
    with pytest.raises(ConfigError, match="no such file"):
        write_roundtrip(
            video, Causal(weights=str(tmp_path / "none.safetensors")), VideoPart(), str(tmp_path / "out.mp4")
        )


@pytest.mark.slow
def test_an_autoencoder_of_videos_has_a_size_limit(
    video: str, published: dict[str, Diffusers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reconstruction, "ONE_PASS_PIXELS", WIDTH * HEIGHT * 12)
    with pytest.raises(ConfigError, match="give --frames 9 or a --size"):
        write_roundtrip(video, published[VIDEO], VideoPart(), str(tmp_path / "out.mp4"))
    assert write_roundtrip(video, published[VIDEO], VideoPart(frames=9), str(tmp_path / "out.mp4")).frames == 9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hevc_10bit_200x200.mp4", "mpeg4_320x240.avi", "rotated_90.mov"])
def test_roundtrip_of_footage(name: str, video_folder: Path, tmp_path: Path) -> None:
    made = write_roundtrip(str(video_folder / name), Linear(), VideoPart(size=64), str(tmp_path / "out.mp4"))
    assert made.psnr_db > 15
    assert len(frames_of(tmp_path / "out.mp4")) == made.frames
