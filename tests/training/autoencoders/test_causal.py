"""The autoencoder `causal`: causal and streaming to the bit, tiles without a seam, sizes that are refused."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.plugins import build
from tests.support.causal_weights import random_weights
from tests.support.noise import uniform_noise
from training.autoencoder import FOLDER, AutoencoderSettings
from training.autoencoders._causal_convolutions import PRESETS, Decoder, Encoder
from training.autoencoders._causal_layers import FrameCache
from training.autoencoders._causal_weights import TrainedNetwork
from training.autoencoders.causal import Causal, CausalAutoencoder
from training.autoencoders.linear import Linear
from training.pixels import psnr_db

CPU = torch.device("cpu")
N_GROUPS = st.integers(0, 5)
SHIPPED = Path(str(resources.files("training.autoencoders.weights"))) / "causal-small.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(random_weights())
    return path


@pytest.fixture(scope="module")
def autoencoder(weights: Path) -> CausalAutoencoder:
    return Causal(weights=str(weights)).open()


def concatenated(pieces: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(pieces), dim=2)


@pytest.mark.slow
@settings(max_examples=25)
@given(groups=N_GROUPS, kept=N_GROUPS, rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_latents_do_not_depend_on_later_frames(
    autoencoder: CausalAutoencoder, groups: int, kept: int, rows: int, columns: int
) -> None:
    """Bit for bit, whether the later frames differ or are missing."""
    kept = min(kept, groups)
    video_BCTHW = uniform_noise((1, 3, 1 + 4 * groups, 8 * rows, 8 * columns))
    latent_BCTHW = autoencoder.encode(video_BCTHW)
    changed = video_BCTHW.clone()
    changed[:, :, 1 + 4 * kept :] = 0.5
    assert torch.equal(autoencoder.encode(changed)[:, :, : 1 + kept], latent_BCTHW[:, :, : 1 + kept])
    assert torch.equal(autoencoder.encode(video_BCTHW[:, :, : 1 + 4 * kept]), latent_BCTHW[:, :, : 1 + kept])
    decoded = autoencoder.decode(latent_BCTHW)[:, :, : 1 + 4 * kept]
    assert torch.equal(autoencoder.decode(latent_BCTHW[:, :, : 1 + kept]), decoded)


def test_latents_and_pixels_depend_on_earlier_frames(autoencoder: CausalAutoencoder) -> None:
    video_BCTHW = uniform_noise((1, 3, 9, 16, 16))
    changed = video_BCTHW.clone()
    changed[:, :, 0] = 0
    assert ((autoencoder.encode(changed) - autoencoder.encode(video_BCTHW)).abs().amax((0, 1, 3, 4)) > 1e-4).all()
    latent_BCTHW = uniform_noise((1, 16, 3, 2, 2))
    changed = latent_BCTHW.clone()
    changed[:, :, 0] = 0
    assert ((autoencoder.decode(changed) - autoencoder.decode(latent_BCTHW)).abs().amax((0, 1, 3, 4)) > 1e-4).all()


@pytest.mark.slow
@settings(max_examples=20)
@given(data=st.data(), groups=N_GROUPS, chunk=st.integers(1, 3))
def test_a_stream_equals_the_whole(weights: Path, data: st.DataObject, groups: int, chunk: int) -> None:
    """Up to rounding, for any pieces and any number of latent frames at a time."""
    streaming = Causal(weights=str(weights), chunk=chunk).open()
    n_frames = 1 + 4 * groups
    video_BCTHW = uniform_noise((1, 3, n_frames, 16, 24))
    trained = TrainedNetwork.from_bytes(weights.read_bytes(), "it")
    whole = CausalAutoencoder(trained, "", CPU, tile=768, chunk=100)
    latent_BCTHW = whole.encode(video_BCTHW)
    cuts = sorted(data.draw(st.sets(st.integers(1, n_frames - 1))) if n_frames > 1 else [])
    videos = [video_BCTHW[:, :, a:b] for a, b in itertools.pairwise([0, *cuts, n_frames])]
    assert torch.allclose(concatenated(streaming.encode_stream(videos)), latent_BCTHW, atol=1e-5)
    cuts = sorted(data.draw(st.sets(st.integers(1, groups))) if groups else [])
    latents = [latent_BCTHW[:, :, a:b] for a, b in itertools.pairwise([0, *cuts, 1 + groups])]
    assert torch.allclose(concatenated(streaming.decode_stream(latents)), whole.decode(latent_BCTHW), atol=1e-5)


def test_latents_of_a_stream_come_with_their_last_frame(autoencoder: CausalAutoencoder) -> None:
    """A stream reads no frame before it is needed, so it holds no more than a group."""
    n_read = 0

    def frames() -> Iterator[Tensor]:
        nonlocal n_read
        for index in range(1 + 4 * 50):
            n_read += 1
            yield uniform_noise((1, 3, 1, 16, 16), index)

    assert [n_read for _ in autoencoder.encode_stream(frames())] == [1 + 4 * k for k in range(51)]


@pytest.mark.slow
def test_input_of_the_network_is_bounded(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any length and size it is at most `chunk` latent frames of a tile and its halo."""
    inputs: set[tuple[int, ...]] = set()
    encoder_forward, decoder_forward = Encoder.forward, Decoder.forward

    def encode(self: Encoder, pixels: Tensor, cache: FrameCache | None = None) -> Tensor:
        inputs.add((pixels.shape[1] // 4, *(side // 8 for side in pixels.shape[2:4])))
        return encoder_forward(self, pixels, cache)

    def decode(self: Decoder, latent: Tensor, cache: FrameCache | None = None) -> Tensor:
        inputs.add(tuple(latent.shape[1:4]))
        return decoder_forward(self, latent, cache)

    monkeypatch.setattr(Encoder, "forward", encode)
    monkeypatch.setattr(Decoder, "forward", decode)
    bounded = Causal(weights=str(weights), tile=64, chunk=2).open()
    video_BCTHW = uniform_noise((1, 3, 33, 136, 200))
    bounded.decode(bounded.encode(video_BCTHW))
    list(bounded.decode_stream(bounded.encode_stream([video_BCTHW])))
    assert max(frames for frames, _, _ in inputs) == 2
    assert max(max(height, width) for _, height, width in inputs) <= 8 + 2 * PRESETS["tiny"].receptive_radius


def test_a_stream_that_ends_inside_a_group_is_refused(autoencoder: CausalAutoencoder) -> None:
    with pytest.raises(ValueError, match="ends 2 frames after a group"):
        list(autoencoder.encode_stream([uniform_noise((1, 3, 7, 16, 16))]))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_tiles_change_results_by_rounding_only(preset: str) -> None:
    trained = TrainedNetwork.from_bytes(random_weights(preset), preset)
    whole, tiled = (CausalAutoencoder(trained, "", CPU, tile, chunk=1) for tile in (4096, 64))
    video_BCTHW = uniform_noise((1, 3, 5, 72, 264))
    latent_BCTHW = whole.encode(video_BCTHW)
    decoded_BCTHW = whole.decode(latent_BCTHW)
    assert torch.allclose(tiled.encode(video_BCTHW), latent_BCTHW, atol=1e-5)
    assert torch.allclose(tiled.decode(latent_BCTHW), decoded_BCTHW, atol=1e-5)
    streamed_latent_BCTHW = concatenated(tiled.encode_stream(video_BCTHW.split(1, 2)))
    assert torch.allclose(streamed_latent_BCTHW, latent_BCTHW, atol=1e-5)
    streamed_BCTHW = concatenated(tiled.decode_stream(latent_BCTHW.split(1, 2)))
    assert torch.allclose(streamed_BCTHW, decoded_BCTHW, atol=1e-5)


@pytest.mark.slow
def test_tiles_of_footage_have_no_seam(video_folder: Path) -> None:
    trained = TrainedNetwork.from_bytes(random_weights("small"), "small")
    with av.open(str(video_folder / "bt709_full_range_720p.mp4")) as container:
        pixels = next(iter(container.decode(video=0))).to_ndarray(format="rgb24")[:360, :360]
    video_BCTHW = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    whole, tiled = (CausalAutoencoder(trained, "", CPU, tile, chunk=1) for tile in (4096, 192))
    error = tiled.decode(tiled.encode(video_BCTHW)) - whole.decode(whole.encode(video_BCTHW))
    assert 10 * np.log10(4 / float(error.double().square().mean())) > 100


def test_identity_names_all_that_changes_latents(weights: Path) -> None:
    identity = Causal(weights=str(weights)).identity()
    assert Causal(weights=str(weights), tile=64, chunk=3).identity() == identity
    assert Causal(weights=str(weights), dtype="bfloat16").identity() == f"{identity}-bfloat16"


def test_first_latent_frame_has_its_own_statistics(weights: Path, autoencoder: CausalAutoencoder) -> None:
    trained = TrainedNetwork.from_bytes(weights.read_bytes(), "it")
    video_BCTHW = uniform_noise((1, 3, 9, 16, 16))
    raw_BCTHW, _ = trained.network.encode(video_BCTHW)
    rows = torch.tensor([0, 1, 1])
    expected = (raw_BCTHW - trained.mean_2C[rows].T[..., None, None]) / trained.std_2C[rows].T[..., None, None]
    assert torch.allclose(autoencoder.encode(video_BCTHW), expected, atol=1e-5)


def test_bfloat16_convolutions_are_close_to_float32(weights: Path, autoencoder: CausalAutoencoder) -> None:
    half = Causal(weights=str(weights), dtype="bfloat16").open()
    video_BCTHW = uniform_noise((1, 3, 9, 32, 32))
    latent_BCTHW = autoencoder.encode(video_BCTHW)
    assert 0 < (half.encode(video_BCTHW) - latent_BCTHW).abs().max() < 0.05
    assert half.decode(latent_BCTHW).dtype == torch.float32
    assert autoencoder.encode(video_BCTHW.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 0, 16, 16), (1, 4, 5, 16, 16), (3, 5, 16, 16)]
)
def test_videos_of_other_shapes_are_refused(autoencoder: CausalAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames|multiples of 8|give \[B, 3"):
        autoencoder.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 48, 1, 2, 2), (16, 1, 2, 2), (1, 16, 0, 2, 2)])
def test_latents_of_other_shapes_are_refused(autoencoder: CausalAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"give \[B, 16, t, h, w\]"):
        autoencoder.decode(torch.zeros(shape))


def test_shipped_weights_are_small_and_have_a_card() -> None:
    assert SHIPPED.stat().st_size <= 8_000_000
    card = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert TrainedNetwork.from_bytes(SHIPPED.read_bytes(), "it").about["steps"] == card["steps"]
    assert all(len(digest) == 64 for digest in card["trained_on"])
    assert not set(card["trained_on"].values()) & set(card["held_out"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nasa_320x180.mp4", "carphone_pristine.mp4"])
def test_shipped_weights_beat_linear_by_3_db_on_new_footage(video_folder: Path, name: str) -> None:
    """On the mean of three spans; `linear` was fitted to this footage. And they stream, and are causal."""
    digest = hashlib.sha256((video_folder / name).read_bytes()).hexdigest()
    assert digest not in json.loads(SHIPPED.with_suffix(".json").read_text())["trained_on"]
    with av.open(str(video_folder / name)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    height, width = (side // 16 * 16 for side in frames[0].shape[:2])
    causal, linear = Causal().open(), Linear(channels=16).open()
    gains = []
    for start in (0, len(frames) // 2, len(frames) - 17):
        pixels_THWC = np.stack(frames[start : start + 17])[:, :height, :width]
        video_BCTHW = torch.from_numpy(pixels_THWC).movedim(-1, 0)[None].float() / 127.5 - 1
        latent_BCTHW = causal.encode(video_BCTHW)
        assert latent_BCTHW.shape == linear.encode(video_BCTHW).shape
        by_causal, by_linear = (one.decode(one.encode(video_BCTHW)) for one in (causal, linear))
        gains.append(float(psnr_db(by_causal, video_BCTHW) - psnr_db(by_linear, video_BCTHW)))
    assert sum(gains) / 3 > 3, gains
    assert causal.encode(video_BCTHW[:, :, :9]).equal(latent_BCTHW[:, :, :3])
    streamed = concatenated(causal.decode_stream(latent_BCTHW.split(2, 2)))
    assert (streamed - by_causal).abs().max() < 1e-5


def test_name_in_a_recipe_finds_the_settings(weights: Path) -> None:
    found = build(FOLDER, AutoencoderSettings, {"name": "causal", "weights": str(weights)})
    assert found == Causal(weights=str(weights))
    with pytest.raises(ValueError, match="tile"):
        build(FOLDER, AutoencoderSettings, {"name": "causal", "tile": 100})
