"""Training of the autoencoder: it learns one clip, resumes to the bit, does the same on several ranks, and names what it cannot use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cluster import storage
from tests.support.ranks import run_ranks
from training.autoencoder_training import loop
from training.autoencoder_training.__main__ import main
from training.autoencoder_training.crops import Clips, Crops
from training.autoencoder_training.loop import WEIGHTS, run_folder, train_autoencoder
from training.autoencoder_training.losses import kl_divergence, reconstruction_loss
from training.autoencoder_training.settings import AutoencoderTrainSettings, CropSettings, LossSettings
from training.autoencoders._causal_network import PRESETS
from training.autoencoders._causal_weights import new_network, read_trained
from training.autoencoders.causal import Causal
from training.checkpoints.checkpoint import newest_checkpoint
from training.pixels import psnr_db, ssim
from training.stopping import NonFiniteLossError
from training.tracking.metrics import read_metrics

CPU = torch.device("cpu")
SETTINGS = AutoencoderTrainSettings(
    preset="tiny",
    steps=6,
    crops=(CropSettings(size=16, frames=5, batch=4), CropSettings(size=24, frames=1, batch=2, share=0.5)),
    strides=(1, 2),
    warmup_steps=1,
    checkpoint_every=2,
    validate_every=3,
    loaders=2,
)


def moving(frames: int, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A coloured texture that slides."""
    chance = np.random.default_rng(seed)
    texture = cv2.resize(
        chance.integers(0, 256, (6, 8, 3), dtype=np.uint8), (2 * width, height), interpolation=cv2.INTER_CUBIC
    )
    return np.stack([texture[:, 2 * k : 2 * k + width] for k in range(frames)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for split, number in (("train", 4), ("val", 2)):
        (folder / split).mkdir()
        for index in range(number):
            np.save(folder / split / f"{index}.npy", moving(12 if index else 1, 32, 40, len(split) * 10 + index))
    return folder


def train(data: Path, out: Path, wanted: AutoencoderTrainSettings = SETTINGS, seconds: float = 1e9) -> str:
    run_uri = run_folder(wanted, data, str(out), 0)
    train_autoencoder(wanted, data, run_uri, 0, CPU, seconds)
    return run_uri


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(data, tmp_path_factory.mktemp("undisturbed"))


def weights_of(run_uri: str) -> bytes:
    return storage.read_bytes(storage.join(run_uri, "export", WEIGHTS))


def test_a_run_leaves_all_that_it_promises(undisturbed: str, data: Path) -> None:
    records = read_metrics(undisturbed)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records if "val_psnr_db" in record] == [3, 6]
    assert {record["samples"] for record in records} == {2, 4}
    assert (Path(undisturbed) / "loss_curve.svg").read_text().startswith("<svg")
    strip = Image.open(Path(undisturbed) / "strips" / "step-00000006.png")
    assert strip.size == (5 * 16, 2 * 16)
    done = loop.find_result(SETTINGS, undisturbed)
    assert done is not None
    assert {"val_psnr_db", "val_ssim", "linear"} <= done.report.keys()
    opened = Causal(weights=done.weights_uri).open()
    latent_BCTHW = opened.encode(torch.from_numpy(moving(9, 32, 40, 5)).movedim(-1, 0)[None].float() / 127.5 - 1)
    assert latent_BCTHW.shape == (1, 16, 3, 4, 5)
    assert 0.3 < float(latent_BCTHW.std()) < 3
    assert loop.find_result(SETTINGS.model_copy(update={"steps": 7}), undisturbed) is None


def test_latents_have_mean_0_and_variance_1(undisturbed: str, data: Path) -> None:
    trained = read_trained(weights_of(undisturbed), "it")
    crops = Crops(Clips(data, "train"), SETTINGS, 1)
    latents = [trained.network.encode(crops.batch(step).pixels(CPU))[0] for step in range(loop.STATISTICS_STEPS)]
    for row, parts in enumerate(([latent[:, :, :1] for latent in latents], [latent[:, :, 1:] for latent in latents])):
        values = torch.cat([part.movedim(1, 0).flatten(1) for part in parts], 1)
        assert torch.allclose(values.mean(1), trained.mean_2C[row], atol=1e-4)
        assert torch.allclose(values.std(1, correction=0), trained.std_2C[row], rtol=1e-3)


def test_the_same_run_gives_the_same_bytes(undisturbed: str, data: Path, tmp_path: Path) -> None:
    assert weights_of(train(data, tmp_path)) == weights_of(undisturbed)


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(
    undisturbed: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = loop.take_step

    def failing(settings_: Any, engine: Any, seed: int, step: int, *rest: Any) -> None:
        if step == 5:
            raise RuntimeError("killed")
        take_step(settings_, engine, seed, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", failing)
        with pytest.raises(RuntimeError, match="killed"):
            train(data, tmp_path)
    run_uri = run_folder(SETTINGS, data, str(tmp_path), 0)
    assert newest_checkpoint(run_uri).step == 4  # type: ignore[union-attr]
    assert train(data, tmp_path) == run_uri
    assert weights_of(run_uri) == weights_of(undisturbed)
    assert [record["loss"] for record in read_metrics(run_uri)] == [
        record["loss"] for record in read_metrics(undisturbed)
    ]


def test_out_of_time_leaves_weights_and_a_checkpoint_to_go_on_from(
    undisturbed: str, data: Path, tmp_path: Path
) -> None:
    run_uri = train(data, tmp_path, seconds=0)
    assert read_trained(weights_of(run_uri), "it").about["steps"] == 1
    assert loop.find_result(SETTINGS, run_uri) is None
    assert weights_of(train(data, tmp_path)) == weights_of(undisturbed)


def _train_a_rank(data: str, run_uri: str, wanted: str) -> None:
    train_autoencoder(AutoencoderTrainSettings.model_validate_json(wanted), Path(data), run_uri, 0, CPU)


@pytest.mark.slow
def test_two_ranks_do_what_one_does(undisturbed: str, data: Path, tmp_path: Path) -> None:
    wanted = SETTINGS.model_copy(update={"workers": 2})
    run_uri = run_folder(wanted, data, str(tmp_path), 0)
    assert Path(run_uri).name == Path(undisturbed).name
    run_ranks(_train_a_rank, 2, str(data), run_uri, wanted.model_dump_json())
    two, one = read_metrics(run_uri), read_metrics(undisturbed)
    for key in ("loss", "kl", "tokens", "grad_norm"):
        assert [record[key] for record in two] == pytest.approx([record[key] for record in one], rel=1e-3)
    assert [r["val_psnr_db"] for r in two if "val_psnr_db" in r] == pytest.approx(
        [r["val_psnr_db"] for r in one if "val_psnr_db" in r], abs=1e-2
    )


@pytest.mark.slow
def test_it_learns_one_clip(tmp_path: Path) -> None:
    """Far beyond the linear autoencoder it starts as."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "a.npy", moving(5, 16, 16, 3))
    wanted = SETTINGS.model_copy(
        update={"steps": 150, "crops": SETTINGS.crops[:1], "lr": 5e-3, "ema_decay": 0.9, "checkpoint_every": 150}
    )
    wanted = wanted.model_copy(update={"decay_steps": 100, "validate_every": 150, "strides": (1,)})
    done = loop.find_result(wanted, train(tmp_path, tmp_path / "out", wanted))
    assert done is not None
    assert done.report["val_psnr_db"] > done.report["linear"]["val_psnr_db"] + 6
    assert done.report["val_ssim"] > done.report["linear"]["val_ssim"]


def test_gradients_reach_every_weight() -> None:
    """After the zeros that training starts with are left."""
    network = new_network(PRESETS["tiny"], 0)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=chance))
    video_BCTHW = torch.rand((2, 3, 9, 16, 16), generator=chance) * 2 - 1
    made, mean, log_variance = network(video_BCTHW, torch.randn((2, 16, 3, 2, 2), generator=chance))
    (reconstruction_loss(LossSettings(), made, video_BCTHW) + kl_divergence(mean, log_variance)).sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert (weight.grad != 0).float().mean() > 0.5, name


@settings(max_examples=10)
@given(step=st.integers(0, 100), world_size=st.sampled_from([1, 2]))
def test_crops_of_a_step_do_not_depend_on_workers(data: Path, step: int, world_size: int) -> None:
    crops = Crops(Clips(data, "train"), SETTINGS, 7)
    whole = crops.batch(step)
    for rank in range(world_size):
        part = crops.batch(step, rank, world_size)
        assert part.items == whole.items[rank::world_size]
        assert torch.equal(part.video_BCTHW, whole.video_BCTHW[rank::world_size])


def test_crops_are_what_the_clips_show(tmp_path: Path) -> None:
    """Each is somewhere in its clip, at one of the strides, in one of eight ways of turning and playing it; no kind of draw is left out."""
    (tmp_path / "train").mkdir()
    t, y, x = np.meshgrid(np.arange(12), np.arange(32), np.arange(40), indexing="ij")
    np.save(tmp_path / "train" / "a.npy", np.stack([t, y, x], -1).astype(np.uint8))
    crops = Crops(Clips(tmp_path, "train"), SETTINGS, 0)
    kinds, strides, ways = set(), set(), set()
    for step in range(60):
        batch = crops.batch(step)
        assert set(batch.names) == {"a.npy"}
        for crop_CTHW in batch.video_BCTHW.int():
            frames, size = crop_CTHW.shape[1:3]
            kinds.add((frames, size))
            turned = bool((crop_CTHW[1].diff(dim=1) == 0).all())
            down, across = (2, 1) if turned else (1, 2)
            assert (crop_CTHW[1].diff(dim=down) == 1).all()
            (side,) = crop_CTHW[2].diff(dim=across).unique().tolist()
            assert side in (1, -1)
            if frames > 1:
                (stride,) = crop_CTHW[0].diff(dim=0).unique().tolist()
                strides.add(abs(stride))
                ways.add((turned, side, stride > 0))
    assert (kinds, strides, len(ways)) == ({(5, 16), (1, 24)}, {1, 2}, 8)


def test_a_loss_that_is_no_number_names_the_clips(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"step \d: the loss is (nan|inf), from clips \d\.npy"):
        train(data, tmp_path, SETTINGS.model_copy(update={"lr": 1e30, "clip_norm": 1e30, "validate_every": 0}))


def test_clips_that_cannot_be_used_are_named(data: Path, tmp_path: Path) -> None:
    large = AutoencoderTrainSettings(crops=(CropSettings(size=256),))
    with pytest.raises(ValueError, match=r"train: of 4 clips none has 17 frames of 256x256"):
        Crops(Clips(data, "train"), large, 0)
    with pytest.raises(ValueError, match=r"train: of 0 clips none has"):
        Crops(Clips(tmp_path, "train"), SETTINGS, 0)
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "a.npy", np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"a\.npy: uint8 \[4, 8, 8\]; a clip is uint8 \[T, H, W, 3\]"):
        Crops(Clips(tmp_path, "train"), SETTINGS, 0)
    (tmp_path / "train" / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.npy: not a clip"):
        Crops(Clips(tmp_path, "train"), SETTINGS, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crops": [{"frames": 4}]}, "frames 4: write 1 \\+ a multiple of 4, 1 or 5"),
        ({"workers": 3}, "batch 8 cannot be shared by 3 workers"),
        ({"strides": [0]}, "every n-th frame"),
        ({"steps": 5, "warmup_steps": 6}, "exceed the 5 steps"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderTrainSettings.model_validate_json(json.dumps(wrong))


def random_pair(seed: int) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    video = torch.rand((2, 3, 2, 24, 32), generator=chance) * 2 - 1
    return (video + 0.3 * torch.randn(video.shape, generator=chance)).clamp(-1, 1), video


def test_ssim_and_psnr_are_those_of_opencv() -> None:
    """Gaussian windows and PSNR by OpenCV, on levels of 255."""
    made, video = random_pair(0)
    levels = [((x.double() + 1) * 127.5).numpy() for x in (made, video)]

    def blurred(picture: Any) -> Any:
        return cv2.GaussianBlur(picture, (11, 11), 1.5)[5:-5, 5:-5]

    for index in range(2):
        found = []
        for colour in range(3):
            for frame in range(2):
                a, b = (x[index, colour, frame] for x in levels)
                mean_a, mean_b = blurred(a), blurred(b)
                var_a, var_b, cov = (
                    blurred(a * a) - mean_a**2,
                    blurred(b * b) - mean_b**2,
                    blurred(a * b) - mean_a * mean_b,
                )
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                ratio = (
                    (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                )
                found.append(ratio.mean())
        assert float(ssim(made, video)[index]) == pytest.approx(np.mean(found), abs=1e-4)
        assert float(psnr_db(made, video)[index]) == pytest.approx(
            cv2.PSNR(levels[0][index].copy(), levels[1][index].copy(), 255), abs=1e-3
        )
    assert torch.allclose(ssim(video, video), torch.ones(2))


def test_parts_of_the_loss_are_what_they_say() -> None:
    made, video = random_pair(1)
    error = (made - video).double().numpy()
    expected = {
        "l1": np.abs(error).mean((1, 2, 3, 4)),
        "gradient": sum(np.abs(np.diff(error, axis=axis)).mean((1, 2, 3, 4)) for axis in (2, 3, 4)),
        "frequency": np.abs(np.fft.rfft2(error, norm="ortho")).mean((1, 2, 3, 4)),
    }
    for name, value in expected.items():
        only = LossSettings(**{"l1": 0.0, "gradient": 0.0, "frequency": 0.0, name: 2.0})
        assert reconstruction_loss(only, made, video).tolist() == pytest.approx((2 * value).tolist(), rel=1e-4)
    posterior = torch.distributions.Normal(torch.full((1, 16, 1, 2, 2), 0.7), 0.3)
    exact = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    assert float(kl_divergence(posterior.mean, 2 * posterior.stddev.log())) == pytest.approx(float(exact), rel=1e-5)


def test_the_command_trains_and_prints_where_the_weights_are(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text("preset: tiny\nwarmup_steps: 1\ncrops: [{size: 16, frames: 5, batch: 2}]\n")
    main(
        [
            str(data),
            str(tmp_path / "out"),
            "--settings",
            str(tmp_path / "s.yaml"),
            "--set",
            "steps=2",
            "--set",
            "precision=bf16",
            "--minutes",
            "5",
        ]
    )
    path, report = capsys.readouterr().out.splitlines()
    assert Causal(weights=path).open().channels == 16
    assert json.loads(report)["steps"] == 2


@pytest.mark.slow
def test_it_needs_neither_ray_nor_deepspeed_nor_av(data: Path, tmp_path: Path) -> None:
    """So that a machine with nothing but PyTorch and small libraries can train."""
    code = (
        "import sys\nfor name in ('ray', 'deepspeed', 'av', 'cv2', 'transformers', 'diffusers'): sys.modules[name] = None\n"
        "from training.autoencoder_training.__main__ import main\n"
        f"main([{str(data)!r}, {str(tmp_path)!r}, '--set', 'preset=tiny', '--set', 'steps=1', '--set', 'warmup_steps=0', "
        "'--set', 'crops=[{size: 16, frames: 5, batch: 1}]'])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120, env=environment
    )
