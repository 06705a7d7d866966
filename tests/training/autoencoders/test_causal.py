"""The autoencoder `causal`: causal and streaming to the bit, tiles without a seam, weights that come back, sizes refused."""

from __future__ import annotations

import hashlib
import itertools
import json
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
from training.autoencoder import FOLDER, AutoencoderSettings
from training.autoencoders._causal_layers import Past
from training.autoencoders._causal_network import PRESETS, Decoder, Encoder
from training.autoencoders._causal_weights import Trained, new_network, read_trained, write_trained
from training.autoencoders._halo import in_tiles, spans
from training.autoencoders.causal import Causal, CausalAutoencoder
from training.autoencoders.linear import Linear
from training.pixels import psnr_db


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_weights(preset: str = "tiny", seed: int = 0) -> bytes:
    """Weights of which every one counts, with the zeros of the start replaced."""
    network = new_network(PRESETS[preset], seed)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(0.05 * torch.randn(weight.shape, generator=chance))
    statistics = torch.rand((2, 2, 16), generator=chance) + 0.5
    return write_trained(Trained(network, statistics[0] - 1, statistics[1], {"steps": 0}))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(random_weights())
    return path


@pytest.fixture(scope="module")
def autoencoder(weights: Path) -> CausalAutoencoder:
    return Causal(weights=str(weights)).open()


LENGTHS = st.integers(0, 5)


@settings(max_examples=25)
@given(groups=LENGTHS, cut=LENGTHS, rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_latents_do_not_depend_on_later_frames(
    autoencoder: CausalAutoencoder, groups: int, cut: int, rows: int, columns: int
) -> None:
    """Bit for bit, whether the later frames are others or not there."""
    cut = min(cut, groups)
    video_BCTHW = noise((1, 3, 1 + 4 * groups, 8 * rows, 8 * columns))
    latent_BCTHW = autoencoder.encode(video_BCTHW)
    changed = video_BCTHW.clone()
    changed[:, :, 1 + 4 * cut :] = 0.5
    assert torch.equal(autoencoder.encode(changed)[:, :, : 1 + cut], latent_BCTHW[:, :, : 1 + cut])
    assert torch.equal(autoencoder.encode(video_BCTHW[:, :, : 1 + 4 * cut]), latent_BCTHW[:, :, : 1 + cut])
    assert torch.equal(
        autoencoder.decode(latent_BCTHW[:, :, : 1 + cut]), autoencoder.decode(latent_BCTHW)[:, :, : 1 + 4 * cut]
    )


def test_earlier_frames_do_count(autoencoder: CausalAutoencoder) -> None:
    video_BCTHW = noise((1, 3, 9, 16, 16))
    changed = video_BCTHW.clone()
    changed[:, :, 0] = 0
    assert ((autoencoder.encode(changed) - autoencoder.encode(video_BCTHW)).abs().amax((0, 1, 3, 4)) > 1e-4).all()
    latent_BCTHW = noise((1, 16, 3, 2, 2))
    changed = latent_BCTHW.clone()
    changed[:, :, 0] = 0
    assert ((autoencoder.decode(changed) - autoencoder.decode(latent_BCTHW)).abs().amax((0, 1, 3, 4)) > 1e-4).all()


@settings(max_examples=20)
@given(data=st.data(), groups=st.integers(0, 5), chunk=st.integers(1, 3))
def test_a_stream_is_the_whole(weights: Path, data: st.DataObject, groups: int, chunk: int) -> None:
    """However it is cut into pieces; and pieces of several latent frames are the whole but for rounding."""
    streaming = Causal(weights=str(weights), chunk=chunk).open()
    frames = 1 + 4 * groups
    video_BCTHW = noise((1, 3, frames, 16, 24))
    whole = CausalAutoencoder(read_trained(weights.read_bytes(), "it"), "", torch.device("cpu"), 768, chunk=100)
    latent_BCTHW = whole.encode(video_BCTHW)
    cuts = sorted(data.draw(st.sets(st.integers(1, frames - 1))) if frames > 1 else [])
    pieces = [video_BCTHW[:, :, a:b] for a, b in itertools.pairwise([0, *cuts, frames])]
    assert torch.allclose(torch.cat(list(streaming.encode_stream(pieces)), 2), latent_BCTHW, atol=1e-5)
    cuts = sorted(data.draw(st.sets(st.integers(1, groups))) if groups else [])
    parts = [latent_BCTHW[:, :, a:b] for a, b in itertools.pairwise([0, *cuts, 1 + groups])]
    assert torch.allclose(torch.cat(list(streaming.decode_stream(parts)), 2), whole.decode(latent_BCTHW), atol=1e-5)


def test_a_stream_holds_no_more_than_its_pieces(autoencoder: CausalAutoencoder) -> None:
    """Latents come while frames are still read, and what is kept of a stream does not grow."""
    read = 0

    def frames() -> object:
        nonlocal read
        for number in range(1 + 4 * 50):
            read += 1
            yield noise((1, 3, 1, 16, 16), number)

    came = [read for _ in autoencoder.encode_stream(frames())]  # type: ignore[arg-type]
    assert came == [1 + 4 * k for k in range(51)]


def test_what_goes_through_at_once_is_bounded(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long and large a video is: `chunk` latent frames of a tile and its surroundings."""
    seen: set[tuple[int, int, int]] = set()
    encode, decode = Encoder.forward, Decoder.forward

    def encoding(self: Encoder, pixels: Tensor, past: Past | None = None) -> Tensor:
        seen.add((pixels.shape[1] // 4, *(side // 8 for side in pixels.shape[2:4])))
        return encode(self, pixels, past)

    def decoding(self: Decoder, latent: Tensor, past: Past | None = None) -> Tensor:
        seen.add(tuple(latent.shape[1:4]))
        return decode(self, latent, past)

    monkeypatch.setattr(Encoder, "forward", encoding)
    monkeypatch.setattr(Decoder, "forward", decoding)
    bounded = Causal(weights=str(weights), tile=64, chunk=2).open()
    video_BCTHW = noise((1, 3, 33, 136, 200))
    bounded.decode(bounded.encode(video_BCTHW))
    list(bounded.decode_stream(bounded.encode_stream([video_BCTHW])))
    reach = PRESETS["tiny"].reach
    assert max(frames for frames, _, _ in seen) == 2
    assert max(max(height, width) for _, height, width in seen) <= 8 + 2 * reach


def test_a_stream_that_ends_inside_a_group_is_an_error(autoencoder: CausalAutoencoder) -> None:
    with pytest.raises(ValueError, match="ends 2 frames after a group"):
        list(autoencoder.encode_stream([noise((1, 3, 7, 16, 16))]))


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_tiles_change_nothing_but_rounding(preset: str) -> None:
    trained = read_trained(random_weights(preset), preset)
    whole, tiled = (CausalAutoencoder(trained, "", torch.device("cpu"), tile, 1) for tile in (4096, 64))
    video_BCTHW = noise((1, 3, 5, 72, 264))
    latent_BCTHW = whole.encode(video_BCTHW)
    assert torch.allclose(tiled.encode(video_BCTHW), latent_BCTHW, atol=1e-5)
    assert torch.allclose(tiled.decode(latent_BCTHW), whole.decode(latent_BCTHW), atol=1e-5)
    assert torch.allclose(torch.cat(list(tiled.encode_stream(video_BCTHW.split(1, 2))), 2), latent_BCTHW, atol=1e-5)
    assert torch.allclose(
        torch.cat(list(tiled.decode_stream(latent_BCTHW.split(1, 2))), 2), whole.decode(latent_BCTHW), atol=1e-5
    )


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_network_reaches_as_far_as_it_says(preset: str) -> None:
    """Not one cell less than the convolutions add up to, of which one test looks at the edge."""
    shape = PRESETS[preset]
    assert shape.reach * 8 >= shape.encoder_fine * 4 + (shape.encoder_coarse + 1) * 8
    assert shape.reach * 8 >= (shape.decoder_fine + 1) * 4 + (shape.decoder_coarse + 1) * 8
    if preset != "tiny":
        return
    network = read_trained(random_weights(), "it").network
    video = noise((1, 3, 1, 8, 160)).requires_grad_()
    network.encode(video)[0][..., 10].sum().backward()
    seen = video.grad.abs().sum((0, 1, 2, 3)).nonzero()  # type: ignore[union-attr]
    assert 80 - 8 * shape.reach <= seen.min() < 80 - 8 * (shape.reach - 2)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 20))
def test_spans_cover_all_once(length: int, most: int, halo: int) -> None:
    found = spans(length, most, halo)
    assert [cell for span in found for cell in range(span.start, span.stop)] == list(range(length))
    assert len(found) == -(-length // most)
    for span in found:
        assert 0 < span.stop - span.start <= most
        assert span.seen_start == max(0, span.start - halo)
        assert span.seen_stop == min(length, span.stop + halo)


def test_no_tile_is_larger_than_asked_for() -> None:
    seen: list[tuple[int, ...]] = []

    def run(part: Tensor, number: int) -> Tensor:
        assert number == len(seen)
        seen.append(tuple(part.shape[-2:]))
        return part

    x = noise((1, 1, 1, 40, 100))
    assert torch.equal(in_tiles(run, x, 16, 3, 1, 1), x)
    assert len(seen) == 3 * 7
    assert max(max(shape) for shape in seen) <= 16 + 2 * 3


def test_tiles_of_real_footage_have_no_seam(real_videos: Path) -> None:
    trained = read_trained(random_weights("small"), "small")
    with av.open(str(real_videos / "bt709_full_range_720p.mp4")) as container:
        pixels = next(iter(container.decode(video=0))).to_ndarray(format="rgb24")[:360, :360]
    video_BCTHW = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    whole, tiled = (CausalAutoencoder(trained, "", torch.device("cpu"), tile, 1) for tile in (4096, 192))
    error = tiled.decode(tiled.encode(video_BCTHW)) - whole.decode(whole.encode(video_BCTHW))
    assert 10 * np.log10(4 / float(error.double().square().mean())) > 100


def test_it_starts_as_the_linear_autoencoder() -> None:
    network = new_network(PRESETS["tiny"], 0)
    linear = Linear(channels=16).open()
    video_BCTHW = noise((2, 3, 9, 16, 24))
    latent_BCTHW, _ = network.encode(video_BCTHW)
    assert torch.allclose(latent_BCTHW, linear.encode(video_BCTHW), atol=1e-5)
    assert torch.allclose(network.decode(latent_BCTHW), linear.decode(latent_BCTHW), atol=1e-5)


@pytest.mark.parametrize(("preset", "low", "high"), [("small", 3e6, 4e6), ("large", 60e6, 100e6)])
def test_presets_have_the_sizes_they_promise(preset: str, low: float, high: float) -> None:
    n_weights = sum(weight.numel() for weight in new_network(PRESETS[preset], 0).parameters())
    assert low < n_weights < high
    if preset == "small":
        assert (
            len(write_trained(Trained(new_network(PRESETS[preset], 0), torch.zeros(2, 16), torch.ones(2, 16), {})))
            < 8e6
        )


def test_weights_come_back_as_written(tmp_path: Path) -> None:
    data = random_weights(seed=3)
    read = read_trained(data, "it")
    assert read.about == {"steps": 0}
    assert write_trained(read) == data
    (path := tmp_path / "a.safetensors").write_bytes(data)
    opened = Causal(weights=str(path)).open()
    assert opened.identity == Causal(weights=str(path)).identity()
    assert opened.identity.startswith("causal-v1-")
    assert (len(opened.mean), opened.std[16:]) == (32, tuple(read.std_2C[1].tolist()))
    path.write_bytes(random_weights(seed=4))
    assert Causal(weights=str(path)).identity() != opened.identity


def test_identity_is_that_of_what_changes_latents(weights: Path) -> None:
    plain = Causal(weights=str(weights)).identity()
    assert Causal(weights=str(weights), tile=64, chunk=3).identity() == plain
    assert Causal(weights=str(weights), dtype="bfloat16").identity() == f"{plain}-bfloat16"


def test_latents_are_normalised_with_statistics_of_their_own_for_the_first(
    weights: Path, autoencoder: CausalAutoencoder
) -> None:
    trained = read_trained(weights.read_bytes(), "it")
    video_BCTHW = noise((1, 3, 9, 16, 16))
    raw_BCTHW, _ = trained.network.encode(video_BCTHW)
    rows = torch.tensor([0, 1, 1])
    expected = (raw_BCTHW - trained.mean_2C[rows].T[..., None, None]) / trained.std_2C[rows].T[..., None, None]
    assert torch.allclose(autoencoder.encode(video_BCTHW), expected, atol=1e-5)


def test_half_precision_of_the_convolutions_differs_by_rounding(weights: Path, autoencoder: CausalAutoencoder) -> None:
    half = Causal(weights=str(weights), dtype="bfloat16").open()
    video_BCTHW = noise((1, 3, 9, 32, 32))
    latent_BCTHW = autoencoder.encode(video_BCTHW)
    assert 0 < (half.encode(video_BCTHW) - latent_BCTHW).abs().max() < 0.05
    assert half.decode(latent_BCTHW).dtype == torch.float32
    assert autoencoder.encode(video_BCTHW.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 0, 16, 16), (1, 4, 5, 16, 16), (3, 5, 16, 16)]
)
def test_videos_it_cannot_take_are_refused(autoencoder: CausalAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames|multiples of 8|give \[B, 3"):
        autoencoder.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 48, 1, 2, 2), (16, 1, 2, 2), (1, 16, 0, 2, 2)])
def test_latents_it_cannot_take_are_refused(autoencoder: CausalAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"give \[B, 16, t, h, w\]"):
        autoencoder.decode(torch.zeros(shape))


def test_weights_that_are_not_there_or_not_ours_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown weights 'smoll'.*train-autoencoder"):
        Causal(weights="smoll").identity()
    with pytest.raises(ValueError, match=r"nowhere\.safetensors: no such file"):
        Causal(weights=str(tmp_path / "nowhere.safetensors")).open()
    for data in (
        b"nothing",
        Path("training/autoencoders/weights/linear16.safetensors").read_bytes(),
        random_weights()[:-7],
    ):
        (path := tmp_path / "bad.safetensors").write_bytes(data)
        with pytest.raises(ValueError, match=r"bad\.safetensors: no weights of the autoencoder causal"):
            Causal(weights=str(path)).open()


SHIPPED = Path(str(resources.files("training.autoencoders.weights"))) / "causal-small.safetensors"


def test_shipped_weights_are_small_and_say_what_they_have_seen() -> None:
    assert SHIPPED.stat().st_size <= 8_000_000
    card = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert read_trained(SHIPPED.read_bytes(), "it").about["steps"] == card["steps"]
    assert all(len(digest) == 64 for digest in card["trained_on"])
    assert not set(card["trained_on"].values()) & set(card["held_out"])


@pytest.mark.parametrize("name", ["nasa_320x180.mp4", "carphone_pristine.mp4"])
def test_shipped_weights_beat_the_linear_autoencoder_on_footage_they_have_not_seen(
    real_videos: Path, name: str
) -> None:
    """The linear one has: by 3 dB all the same, on the mean of three spans. And they stream, and a prefix has the whole's latents."""
    assert (
        hashlib.sha256((real_videos / name).read_bytes()).hexdigest()
        not in json.loads(SHIPPED.with_suffix(".json").read_text())["trained_on"]
    )
    with av.open(str(real_videos / name)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    height, width = (side // 16 * 16 for side in frames[0].shape[:2])
    causal, linear = Causal().open(), Linear(channels=16).open()
    gains = []
    for start in (0, len(frames) // 2, len(frames) - 17):
        video_BCTHW = (
            torch.from_numpy(np.stack(frames[start : start + 17])[:, :height, :width]).movedim(-1, 0)[None].float()
            / 127.5
            - 1
        )
        latent_BCTHW = causal.encode(video_BCTHW)
        assert latent_BCTHW.shape == linear.encode(video_BCTHW).shape
        made = [one.decode(one.encode(video_BCTHW)) for one in (causal, linear)]
        gains.append(float(psnr_db(made[0], video_BCTHW) - psnr_db(made[1], video_BCTHW)))
    assert sum(gains) / 3 > 3, gains
    assert causal.encode(video_BCTHW[:, :, :9]).equal(latent_BCTHW[:, :, :3])
    streamed = torch.cat(list(causal.decode_stream(latent_BCTHW.split(2, 2))), 2)
    assert (streamed - made[0]).abs().max() < 1e-5


def test_the_name_in_a_recipe_finds_it(weights: Path) -> None:
    assert build(FOLDER, AutoencoderSettings, {"name": "causal", "weights": str(weights)}) == Causal(
        weights=str(weights)
    )
    with pytest.raises(ValueError, match="tile"):
        build(FOLDER, AutoencoderSettings, {"name": "causal", "tile": 100})
