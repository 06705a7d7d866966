"""The autoencoder `linear`: an orthonormal projection of blocks, causal, and the same on every machine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.plugins import build
from tests.support.noise import uniform_noise
from tests.support.paths import ROOT
from training.autoencoder import FOLDER, AutoencoderSettings
from training.autoencoders._linear_blocks import LinearAutoencoder, from_blocks, to_blocks
from training.autoencoders.linear import Linear

CHANNELS = (16, 48)
VIDEO_SHAPES = st.tuples(st.integers(1, 2), st.integers(0, 3), st.integers(1, 4), st.integers(1, 4)).map(
    lambda s: (s[0], 3, 1 + 4 * s[1], 8 * s[2], 8 * s[3])
)


@pytest.fixture(params=CHANNELS, ids=lambda channels: f"{channels}ch")
def autoencoder(request: pytest.FixtureRequest) -> LinearAutoencoder:
    opened = Linear(channels=request.param).open()
    assert isinstance(opened, LinearAutoencoder)
    return opened


def bases(autoencoder: LinearAutoencoder) -> list[Tensor]:
    return [autoencoder._first._basis_PC, autoencoder._group._basis_PC]


def test_name_in_a_recipe_finds_the_settings() -> None:
    found = build(FOLDER, AutoencoderSettings, {"name": "linear", "channels": 48})
    assert found == Linear(channels=48)
    assert build(FOLDER, AutoencoderSettings, "linear") == Linear()
    with pytest.raises(ValueError, match="channels"):
        build(FOLDER, AutoencoderSettings, {"name": "linear", "channels": 17})


@pytest.mark.parametrize("channels", CHANNELS)
def test_identity_is_a_hash_of_the_shipped_weights(channels: int) -> None:
    opened = Linear(channels=channels).open()
    assert Linear(channels=channels).identity() == opened.identity
    assert opened.identity.startswith(f"linear{channels}-")
    digests = {16: "63b6f9b6", 48: "db77c796"}
    path = ROOT / f"training/autoencoders/weights/linear{channels}.safetensors"
    # Other weights make every stored latent unreadable: only a new fit, with a note in the change log, may change them.
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:8] == digests[channels]


def test_bases_are_orthonormal(autoencoder: LinearAutoencoder) -> None:
    for basis_PC in bases(autoencoder):
        gram_CC = basis_PC.double().T @ basis_PC.double()
        assert torch.allclose(gram_CC, torch.eye(autoencoder.channels, dtype=torch.float64), atol=1e-6)


def test_components_are_in_order_of_variance_and_have_signs(autoencoder: LinearAutoencoder) -> None:
    """The first large value of each component is positive."""
    std_2C = torch.tensor(autoencoder.std).reshape(2, -1)
    assert (std_2C.diff(dim=1) <= 0).all()
    for basis_PC in bases(autoencoder):
        for vector_P in basis_PC.T:
            first_large = int((vector_P.abs() > 0.5 * vector_P.abs().max()).to(torch.int8).argmax())
            assert vector_P[first_large] > 0


def test_first_and_later_frames_have_statistics(autoencoder: LinearAutoencoder) -> None:
    assert len(autoencoder.mean) == len(autoencoder.std) == 2 * autoencoder.channels
    assert min(autoencoder.std) > 0


@settings(max_examples=25)
@given(shape=VIDEO_SHAPES, channels=st.sampled_from(CHANNELS), seed=st.integers(0, 1000))
def test_decoded_latents_are_encoded_to_the_same_latents(shape: tuple[int, ...], channels: int, seed: int) -> None:
    """encode(decode(z)) = z, because decoded frames lie in the space that the encoder keeps."""
    autoencoder = Linear(channels=channels).open()
    video_BCTHW = uniform_noise(shape, seed)
    latent_BCTHW = autoencoder.encode(video_BCTHW)
    assert tuple(latent_BCTHW.shape) == (shape[0], *autoencoder.latent_shape(*shape[2:]))
    decoded_BCTHW = autoencoder.decode(latent_BCTHW)
    assert decoded_BCTHW.shape == video_BCTHW.shape
    assert torch.allclose(autoencoder.encode(decoded_BCTHW), latent_BCTHW, atol=1e-4)
    random_BCTHW = torch.randn(latent_BCTHW.shape, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(autoencoder.encode(autoencoder.decode(random_BCTHW)), random_BCTHW, atol=2e-4)


def test_decoding_is_the_exact_transpose(autoencoder: LinearAutoencoder) -> None:
    """<encode(x), z> = <x, decode(z)> for the linear parts, without mean and normalisation."""
    video_BCTHW, latent_BCTHW = uniform_noise((1, 3, 9, 16, 24)), uniform_noise((1, autoencoder.channels, 3, 2, 3), 1)
    std_CT = torch.tensor(autoencoder.std).reshape(2, -1).T[:, [0, 1, 1]]
    scale = std_CT[None, :, :, None, None]
    zero = autoencoder.encode(torch.zeros_like(video_BCTHW))
    encoded = (autoencoder.encode(video_BCTHW) - zero) * scale
    decoded = autoencoder.decode(latent_BCTHW / scale) - autoencoder.decode(torch.zeros_like(latent_BCTHW))
    assert float((encoded.double() * latent_BCTHW).sum()) == pytest.approx(
        float((video_BCTHW.double() * decoded).sum()), rel=1e-4
    )


def test_latents_equal_those_of_a_loop_over_blocks(autoencoder: LinearAutoencoder) -> None:
    """The reference is an independent encoder in numpy."""
    video_BCTHW = uniform_noise((1, 3, 5, 16, 24))
    video = video_BCTHW[0].numpy().astype(np.float64)
    expected = np.zeros((autoencoder.channels, 2, 2, 3))
    for t, part in enumerate((autoencoder._first, autoencoder._group)):
        frames = slice(0, 1) if t == 0 else slice(1, 5)
        std = np.array(autoencoder.std).reshape(2, -1)[t]
        for row in range(2):
            for column in range(3):
                block = video[:, frames, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1)
                expected[:, t, row, column] = (
                    part._basis_PC.numpy().astype(np.float64).T @ (block - part._mean_P.numpy()) / std
                )
    assert np.allclose(autoencoder.encode(video_BCTHW)[0].numpy(), expected, atol=1e-4)


def test_latents_have_the_smallest_error(autoencoder: LinearAutoencoder) -> None:
    """The error is orthogonal to the space that is kept, so a change of the latents only adds to it."""
    video_BCTHW = uniform_noise((1, 3, 5, 8, 8))
    latent_BCTHW = autoencoder.encode(video_BCTHW)
    min_error = (autoencoder.decode(latent_BCTHW) - video_BCTHW).double().square().sum()
    for seed in range(5):
        other = latent_BCTHW + 0.1 * torch.randn(latent_BCTHW.shape, generator=torch.Generator().manual_seed(seed))
        assert (autoencoder.decode(other) - video_BCTHW).double().square().sum() > min_error


def test_latents_do_not_depend_on_later_frames(autoencoder: LinearAutoencoder) -> None:
    """An image is the first latent of a video, and latents up to k do not change with frames after 1 + 4k."""
    video_BCTHW = uniform_noise((2, 3, 13, 16, 16))
    latent_BCTHW = autoencoder.encode(video_BCTHW)
    assert torch.equal(autoencoder.encode(video_BCTHW[:, :, :1]), latent_BCTHW[:, :, :1])
    assert torch.allclose(autoencoder.encode(video_BCTHW[:, :, :9]), latent_BCTHW[:, :, :3], atol=1e-6)
    changed = video_BCTHW.clone()
    changed[:, :, 9:] = 0
    assert torch.equal(autoencoder.encode(changed)[:, :, :3], latent_BCTHW[:, :, :3])


def test_first_latents_decode_alone(autoencoder: LinearAutoencoder) -> None:
    latent_BCTHW = autoencoder.encode(uniform_noise((1, 3, 9, 16, 16)))
    assert torch.allclose(
        autoencoder.decode(latent_BCTHW[:, :, :2]), autoencoder.decode(latent_BCTHW)[:, :, :5], atol=1e-6
    )


def test_bfloat16_differs_by_its_rounding_only(autoencoder: LinearAutoencoder) -> None:
    video_BCTHW = uniform_noise((1, 3, 9, 32, 32)).to(torch.bfloat16)
    latent_BCTHW = autoencoder.encode(video_BCTHW)
    assert latent_BCTHW.dtype == torch.bfloat16
    assert torch.equal(latent_BCTHW, autoencoder.encode(video_BCTHW.float()).to(torch.bfloat16))
    assert autoencoder.decode(latent_BCTHW).dtype == torch.bfloat16
    assert torch.equal(autoencoder.decode(latent_BCTHW), autoencoder.decode(latent_BCTHW.float()).to(torch.bfloat16))


@pytest.mark.slow
def test_latents_are_the_same_bits_in_another_process(autoencoder: LinearAutoencoder) -> None:
    code = (
        "import hashlib, torch; from training.autoencoders.linear import Linear\n"
        "video = torch.rand((1, 3, 9, 32, 48), generator=torch.Generator().manual_seed(0)) * 2 - 1\n"
        f"latent = Linear(channels={autoencoder.channels}).open().encode(video)\n"
        "print(hashlib.sha256(latent.contiguous().numpy().tobytes()).hexdigest())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    latent_BCTHW = autoencoder.encode(uniform_noise((1, 3, 9, 32, 48)))
    assert hashlib.sha256(latent_BCTHW.contiguous().numpy().tobytes()).hexdigest() == found


@settings(max_examples=20)
@given(frames=st.sampled_from([1, 4]), groups=st.integers(1, 3), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_blocks_are_split_and_joined_without_loss(frames: int, groups: int, rows: int, columns: int) -> None:
    video_BCTHW = uniform_noise((2, 3, frames * groups, 8 * rows, 8 * columns))
    blocks_BTHWP = to_blocks(video_BCTHW, frames)
    assert tuple(blocks_BTHWP.shape) == (2, groups, rows, columns, 192 * frames)
    assert torch.equal(from_blocks(blocks_BTHWP, frames), video_BCTHW)


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 0, 16, 16), (1, 4, 5, 16, 16), (1, 3, 5, 0, 16)]
)
def test_videos_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames|multiples of 8|give \[B, 3"):
        Linear().open().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 48, 1, 2, 2), (16, 1, 2, 2), (1, 16, 0, 2, 2)])
def test_latents_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"give \[B, 16, t, h, w\]"):
        Linear().open().decode(torch.zeros(shape))


@pytest.mark.slow
def test_footage_has_the_measured_error(video_folder: Path, footage_is_drawn: bool) -> None:
    """A sharp clip of talking people, one of those that the shipped bases were fitted to, had 28.3 dB at first."""
    autoencoder = Linear(channels=48).open()
    with av.open(str(video_folder / "talk_640x360.mp4")) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(17), strict=False)
        ]
        assert container.streams.video[0].average_rate == Fraction(24)
    video_BCTHW = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    latent_BCTHW = autoencoder.encode(video_BCTHW)
    squared_error = (autoencoder.decode(latent_BCTHW).clamp(-1, 1) - video_BCTHW).square().mean()
    assert 10 * np.log10(4 / float(squared_error)) == pytest.approx(31.9 if footage_is_drawn else 28.3, abs=0.2)
    assert 0.2 < float(latent_BCTHW.std()) < 2
