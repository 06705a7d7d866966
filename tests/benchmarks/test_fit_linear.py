"""Fit of the bases of `linear`: moments, components, held-out sources and the command."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import fit_linear
from benchmarks.fit_linear import (
    Moments,
    fit,
    held_out,
    main,
    measure,
    principal_components,
    psnr_db,
    read_sources,
    report,
    source_of,
    symmetric,
)
from training.autoencoders._linear_blocks import LinearAutoencoder, to_blocks
from training.autoencoders._linear_weights import FIRST_VALUES, GROUP_VALUES


def write_clip(path: Path, seed: int, n_frames: int = 26, fps: int = 24) -> None:
    """Write a clip of waves of random colours and directions that drift, with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:96, 0:128]
    slope, speed, phase = rng.uniform(0.02, 0.4, (3, 2)), rng.uniform(0.1, 0.6, 3), rng.uniform(0, 6, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for k in range(n_frames):
            waves = [np.sin(slope[c, 0] * x + slope[c, 1] * y + speed[c] * k + phase[c]) for c in range(3)]
            pixels = np.clip(128 + 100 * np.stack(waves, -1) + rng.normal(0, 3, (96, 128, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for seed, name in enumerate(("park_a.mp4", "park_b.mp4", "sea.mp4", "town-1.mkv")):
        write_clip(folder / name, seed)
    return folder


def random_moments(n_values: int, n: int = 2000, seed: int = 0) -> tuple[Moments, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    blocks_NP = torch.randn(n, n_values, generator=rng) @ torch.diag(torch.linspace(2, 0.1, n_values)) + 0.3
    moments = Moments(n_values)
    for piece in blocks_NP.split(300):
        moments.add(piece)
    return moments, blocks_NP


@pytest.mark.slow
def test_streamed_components_equal_those_of_all_blocks() -> None:
    moments, blocks_NP = random_moments(FIRST_VALUES)
    mean_P, basis_PC, std_C = principal_components(moments, 16)
    data = blocks_NP.double().numpy()
    _, singular, vectors = np.linalg.svd(data - data.mean(0), full_matrices=False)
    assert np.allclose(mean_P, data.mean(0), atol=1e-6)
    assert np.allclose(std_C, singular[:16] / np.sqrt(len(data)), rtol=1e-5)
    assert np.allclose(np.abs((basis_PC.T.numpy() * vectors[:16]).sum(1)), 1, atol=1e-4)


def test_squared_error_equals_that_of_projecting_every_block() -> None:
    moments, blocks_NP = random_moments(FIRST_VALUES)
    _, other_basis, _ = principal_components(random_moments(FIRST_VALUES, seed=1)[0], 16)
    mean_P = torch.linspace(-1, 1, FIRST_VALUES, dtype=torch.float64)
    about_NP = blocks_NP.double() - mean_P
    direct = (about_NP - about_NP @ other_basis @ other_basis.T).square().mean()
    assert moments.squared_error(mean_P, other_basis) == pytest.approx(float(direct), rel=1e-6)


def test_mirrored_and_reversed_blocks_count_equally() -> None:
    rng = torch.Generator().manual_seed(0)
    video_BCTHW = torch.randn(1, 3, 4, 16, 16, generator=rng)
    once, four = Moments(GROUP_VALUES), Moments(GROUP_VALUES)
    once.add(to_blocks(video_BCTHW, 4).flatten(0, 3))
    for dims in ((), (2,), (4,), (2, 4)):
        four.add(to_blocks(video_BCTHW.flip(dims), 4).flatten(0, 3))
    result = symmetric(once)
    assert torch.allclose(result.outer_PP, four.outer_PP / 4, atol=1e-4)
    assert torch.allclose(result.total_P, four.total_P / 4, atol=1e-4)
    assert result.count == once.count


def test_signs_do_not_depend_on_the_solver() -> None:
    moments, _ = random_moments(FIRST_VALUES)
    _, basis_PC, _ = principal_components(moments, 16)
    for vector_P in basis_PC.T:
        large = (vector_P.abs() > 0.5 * vector_P.abs().max()).nonzero()[0]
        assert vector_P[large] > 0


def test_sources_are_split_by_the_start_of_their_names() -> None:
    assert [
        source_of(Path(name))
        for name in ("a/carphone_pristine.mp4", "b/carphone_distorted.mkv", "talk-1.mp4", "sea.mp4")
    ] == [
        "carphone",
        "carphone",
        "talk",
        "sea",
    ]


@pytest.mark.slow
def test_command_writes_the_same_bases_twice_and_they_open(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_linear, "SIZES", (32, 64))
    for name in ("once", "again"):
        main([str(footage), "--channels", "16", "48", "--seed", "3", "--out", str(tmp_path / name)])
    table = capsys.readouterr().out
    assert "16 channels: PSNR in dB on sources left out of the fit" in table
    assert "| 32² | 8 |" in table
    for channels in (16, 48):
        paths = [tmp_path / name / f"linear{channels}.safetensors" for name in ("once", "again")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        autoencoder = LinearAutoencoder(load_file(paths[0]), "fitted", "cpu")
        assert autoencoder.channels == channels
        assert autoencoder.encode(torch.zeros(1, 3, 5, 16, 16)).shape == (1, channels, 2, 2, 2)


@pytest.mark.slow
def test_latents_of_the_fitted_footage_are_standardised(footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_linear, "SIZES", (64,))
    monkeypatch.setattr(fit_linear, "RATES", (24.0,))
    sources = read_sources(footage, 0)
    autoencoder = LinearAutoencoder(fit(sources, 16), "fitted", "cpu")
    pooled = fit_linear.pooled([cells[(64, 24.0), "group"] for cells in sources.values()])
    basis_PC, std_C = autoencoder._group._basis_PC.double(), autoencoder._group._latent_std_C.double()
    mean_P = pooled.total_P / pooled.count
    covariance_PP = pooled.outer_PP / pooled.count - mean_P.outer(mean_P)
    latent_mean = (mean_P - autoencoder._group._mean_P) @ basis_PC / std_C
    assert torch.allclose(latent_mean, torch.zeros_like(latent_mean), atol=1e-4)
    variance_C = torch.einsum("pc,pq,qc->c", basis_PC, covariance_PP, basis_PC) / std_C**2
    assert torch.allclose(variance_C, torch.ones_like(variance_C), atol=1e-3)


@pytest.mark.slow
def test_a_source_left_out_is_not_in_the_fit_it_measures(footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_linear, "SIZES", (64,))
    monkeypatch.setattr(fit_linear, "RATES", (24.0,))
    sources = read_sources(footage, 0)
    assert sorted(sources) == ["park", "sea", "town"]
    scores = held_out(sources, 16)
    seen = fit(sources, 16)
    for kind in ("first", "group"):
        for index, cells in enumerate(sources.values()):
            in_fit = psnr_db(
                cells[(64, 24.0), kind].squared_error(seen[f"{kind}.mean"].double(), seen[f"{kind}.basis"].double())
            )
            assert scores[(64, 24.0), kind][index] < in_fit
    assert report(scores).count("\n") == 2


@pytest.mark.slow
def test_a_file_that_does_not_decode_is_left_out_and_named(
    footage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in footage.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with caplog.at_level("WARNING", "worldloom"):
        assert sorted(read_sources(tmp_path, 0)) == ["park", "sea", "town"]
    assert "broken.mp4 is left out" in caplog.text


@pytest.mark.slow
def test_one_source_is_too_few(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "sea.mp4").write_bytes((footage / "sea.mp4").read_bytes())
    with pytest.raises(ValueError, match="1 usable sources in 1 videos; at least 2"):
        read_sources(tmp_path, 0)


def test_rates_halve_the_frames_and_never_repeat_one(footage: Path) -> None:
    times = {
        rate: [frame.time for frame in fit_linear.frames_at(footage / "sea.mp4", rate)]
        for rate in (8.0, 12.0, 24.0, 60.0)
    }
    assert [len(times[rate]) for rate in (8.0, 12.0, 24.0, 60.0)] == [9, 13, 26, 26]
    assert all(len(set(values)) == len(values) for values in times.values())


@pytest.mark.slow
def test_nothing_is_enlarged(footage: Path) -> None:
    """128 x 96 has the area of a square of 111, so 128 and more are left out."""
    assert {cell[0] for (cell, _) in measure(footage / "sea.mp4", 0)} == {64}
