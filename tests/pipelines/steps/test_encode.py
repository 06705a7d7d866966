"""The encode step: samples do not depend on their batch, and a clip that fails costs no other clip anything."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image
from torch import Tensor

from cluster import storage
from pipelines import inline
from pipelines.commands.plan import bucket_losses
from pipelines.curation import inspect, run_segments
from pipelines.dataset.build import build_dataset
from pipelines.engine.step import Context, start_fates
from pipelines.recipe import Recipe
from pipelines.steps import _encoder
from pipelines.steps._encoder import Encoder
from pipelines.steps.encode import Encode
from pipelines.video.spans import FrameGrid, SampledSpan, read_span
from tests.support.encode_recipes import recipe_of
from tests.support.videos import encode, sliding
from training.autoencoder import Autoencoder
from training.autoencoders.linear import Linear
from training.data.buckets import BucketSettings
from training.data.manifest import read_manifest
from training.data.shard_reader import RowReference, ShardReader
from training.data.shards import clip_uid, read_index, read_info, sample_uid
from training.data.verify import verify
from training.pixels import psnr_db, ssim

BUCKETS = (BucketSettings(size=32, frames=(1, 5, 9), fps=8, aspects=("1:1", "2:1")),)
FPS = 24
TICKS = 512
"""Units of the time base per frame in the files of the tests."""
N_FRAMES = 40
SPANS = ((0, 40), (0, 18), (10, 40), (20, 40), (38, 39))
"""First frame and end of the clips: 9, 5, 9 and 5 frames at 8 fps, and one that fits only a bucket of one frame."""


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("footage")
    for name, width, seed in (("wide", 96, 0), ("square", 48, 1)):
        encode(folder / f"{name}.mp4", sliding(N_FRAMES, 2.0, width, 48, seed), time_base=Fraction(1, FPS))
    return {path.stem: path for path in folder.iterdir()}


def clips(footage: dict[str, Path]) -> pa.Table:
    """Return a clip per span of every file, as `cut` writes them."""
    rows = []
    for name, path in sorted(footage.items()):
        for start, end in SPANS:
            rows.append(
                {
                    "uid": storage.digest(name, str(start), str(end)),
                    "source": str(path),
                    "kind": "video",
                    "width": 96 if name == "wide" else 48,
                    "height": 48,
                    "start_pts": start * TICKS,
                    "end_pts": end * TICKS,
                    "time_base_num": 1,
                    "time_base_den": FPS * TICKS,
                    "duration_s": (end - start) / FPS,
                    "captions": [],
                }
            )
    return start_fates(pa.Table.from_pylist(rows))


def encoder(tmp_path: Path, stored: tuple[str, ...] = (), **settings: Any) -> Encoder:
    step = Encode(buckets=BUCKETS, **settings)
    function = step.open(Context(str(tmp_path), 0, "f" * 32, pa.array(stored, pa.string())))
    assert isinstance(function, Encoder)
    return function


def shards_of(tmp_path: Path) -> list[str]:
    return [entry.uri for entry in storage.list_files(str(tmp_path), ".parquet")]


def stored(tmp_path: Path) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return the latents of every sample in the shards; each is stored once."""
    reader, found = ShardReader(str(tmp_path)), {}
    for uri in shards_of(tmp_path):
        for row in read_index(uri).to_pylist():
            assert row["uid"] not in found
            sample = reader.read(*RowReference(uri.removeprefix(f"{tmp_path}/"), row["row_group"], row["row"]))
            found[row["uid"]] = sample.latent, sample.last_frame_latent
    return found


def pixels_of(row: dict[str, Any], frames: int) -> Tensor:
    width = 48 if row["width"] == 96 else 32
    span = read_span(
        row["source"],
        row["start_pts"],
        row["end_pts"],
        FrameGrid(fps=8, frames=frames, width=width, height=32 if width == 32 else 16),
    )
    return torch.from_numpy(span.frames.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


class ScriptedAutoencoder(Autoencoder):
    """The autoencoder `linear`, with functions of a test on its input, its latents and its decoded pixels."""

    def __init__(
        self, before: Any = lambda video: None, after: Any = lambda latent: latent, back: Any = lambda video: video
    ) -> None:
        self._linear = Linear().open()
        for name in ("time_factor", "space_factor", "channels", "identity", "mean", "std"):
            setattr(self, name, getattr(self._linear, name))
        self._before, self._after, self._back = before, after, back

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        self._before(video_BCTHW)
        latent: Tensor = self._after(self._linear.encode(video_BCTHW))
        return latent

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        video: Tensor = self._back(self._linear.decode(latent_BCTHW))
        return video


def with_autoencoder(function: Encoder, autoencoder: Autoencoder) -> Encoder:
    function._autoencoder = autoencoder
    return function


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    done = encoder(tmp_path)(table)
    frames = [9, 5, 9, 5, 1]
    names = [row["bucket"] for row in done.to_pylist()]
    assert names == [f"32x32x{n}" for n in frames] + [f"48x16x{n}" for n in frames]
    assert done["n_tokens"].to_pylist() == [(1 + (n - 1) // 4) * cells for cells in (16, 12) for n in frames]
    found, linear = stored(tmp_path), Linear().open()
    assert sorted(found) == sorted(table["uid"].to_pylist())
    for row, count in zip(table.to_pylist(), frames * 2, strict=True):
        video = pixels_of(row, count)
        latent, last_frame = found[row["uid"]]
        assert torch.equal(latent, linear.encode(video)[0].to(torch.bfloat16))
        assert (last_frame is None) == (count == 1)
        assert last_frame is None or torch.equal(last_frame, linear.encode(video[:, :, -1:])[0].to(torch.bfloat16))


@pytest.mark.slow
def test_shorter_lengths_and_mirror_images_are_samples(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    encoder(tmp_path, lengths="all", mirror=True)(table)
    found, linear = stored(tmp_path), Linear().open()
    wanted = {}
    for row, longest in zip(table.to_pylist(), [9, 5, 9, 5, 1] * 2, strict=True):
        video = pixels_of(row, longest)
        for count in (count for count in (1, 5, 9) if count <= longest):
            for mirrored in (False, True):
                name = row["uid"] + (
                    ""
                    if count == longest and not mirrored
                    else f".{'' if count == longest else count}{'m' if mirrored else ''}"
                )
                assert sample_uid(row["uid"], None if count == longest else count, mirrored) == name
                assert clip_uid(name) == row["uid"]
                wanted[name] = linear.encode(video[:, :, :count].flip(-1) if mirrored else video[:, :, :count])[0].to(
                    torch.bfloat16
                )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name][0], wanted[name]) for name in wanted)
    # A shard holds one shape.
    for uri in shards_of(tmp_path):
        assert f"bucket={read_info(uri).bucket.name}/" in uri


@pytest.mark.slow
def test_stored_samples_are_not_encoded_again(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    whole = encoder(tmp_path, lengths="all")(table)
    before = stored(tmp_path)
    lost = [uri for uri in shards_of(tmp_path) if "x5/" in uri]
    for uri in lost:
        storage.remove(uri)
    left = stored(tmp_path)
    assert 0 < len(left) < len(before)
    function = encoder(tmp_path, tuple(left), lengths="all")
    assert function(table).equals(whole)
    after = stored(tmp_path)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[uid][0], before[uid][0]) for uid in before)

    def never(video: Tensor) -> None:
        raise AssertionError("encoded again")

    again = with_autoencoder(encoder(tmp_path, tuple(after), lengths="all"), ScriptedAutoencoder(before=never))
    assert again(table).equals(whole)


def test_undecodable_clip_fails_alone(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    at_fault = table["uid"][2].as_py()
    sources = [
        str(tmp_path / "gone.mp4") if uid == at_fault else source
        for uid, source in zip(*(table[n].to_pylist() for n in ("uid", "source")), strict=True)
    ]
    broken = table.set_column(table.schema.get_field_index("source"), "source", [sources])
    done = encoder(tmp_path / "out")(broken).to_pylist()
    assert [row["fate"] for row in done] == ["kept", "kept", "failed", *["kept"] * 7]
    assert "gone.mp4" in done[2]["fate_reason"]
    assert done[2]["bucket"] is None
    assert stored(tmp_path / "out").keys() == set(table["uid"].to_pylist()) - {at_fault}


@pytest.mark.slow
def test_batch_too_large_for_the_device_goes_one_by_one(footage: dict[str, Path], tmp_path: Path) -> None:
    def small(video: Tensor) -> None:
        if len(video) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    table = clips(footage)
    done = with_autoencoder(encoder(tmp_path / "small"), ScriptedAutoencoder(before=small))(table)
    assert done["fate"].to_pylist() == ["kept"] * len(table)
    encoder(tmp_path / "together")(table)
    alone, together = stored(tmp_path / "small"), stored(tmp_path / "together")
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[uid][0], together[uid][0]) for uid in alone)


def test_latents_that_are_not_finite_fail_only_their_clip(footage: dict[str, Path], tmp_path: Path) -> None:
    def spoil(latent: Tensor) -> Tensor:
        return torch.cat((latent[:1] * torch.nan, latent[1:])) if len(latent) > 1 else latent

    done = with_autoencoder(encoder(tmp_path), ScriptedAutoencoder(after=spoil))(clips(footage)).to_pylist()
    reasons = Counter(row["fate_reason"] for row in done)
    # The first clip of the batch, in each of the four buckets with two clips.
    assert reasons == {None: 6, "its latents hold a value that is not finite": 4}
    assert len(stored(tmp_path)) == 6


@pytest.mark.slow
def test_shard_footer_has_the_fidelity_of_a_checked_clip(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    encoder(tmp_path)(table)
    linear = Linear().open()
    rows = {row["uid"]: row for row in table.to_pylist()}
    for uri in shards_of(tmp_path):
        info = read_info(uri)
        assert info.fidelity is not None
        assert info.fidelity["rows"] == 1
        expected = []
        for uid, (latent, _) in stored(Path(uri).parent).items():
            latent = latent[:, :2]
            video = pixels_of(rows[uid], info.bucket.frames)[:, :, : 4 * latent.shape[1] - 3]
            back = linear.decode(latent[None].float())
            shown = sorted({0, video.shape[2] // 2, video.shape[2] - 1})
            expected.append((float(psnr_db(back, video)), float(ssim(back[:, :, shown], video[:, :, shown]))))
        close = [
            pair
            for pair in expected
            if (info.fidelity["psnr_db"], info.fidelity["ssim"]) == pytest.approx(pair, abs=1e-3)
        ]
        assert len(close) == 1
        assert info.fidelity["min_psnr_db"] == info.fidelity["psnr_db"]


@pytest.mark.slow
def test_clip_below_min_psnr_fails_and_all_others_are_checked(
    footage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_encoder.BATCH_VALUES, "cpu", 1)
    table = clips(footage)
    decoded = []

    def white(video: Tensor) -> Tensor:
        decoded.append(video.shape)
        return torch.ones_like(video)

    done = with_autoencoder(encoder(tmp_path / "bad"), ScriptedAutoencoder(back=white))(table).to_pylist()
    assert len(decoded) == len(table)
    assert {row["fate"] for row in done} == {"failed"}
    reason = "dB of PSNR to its pixels, below min_psnr_db 10"
    assert all(reason in row["fate_reason"] for row in done)
    assert all(row["fate_value"] < 10 == row["fate_bound"] for row in done)
    assert shards_of(tmp_path / "bad") == []
    grey = ScriptedAutoencoder(back=lambda video: video * 0)
    fine = with_autoencoder(encoder(tmp_path / "any", min_psnr_db=0), grey)(table)
    assert set(fine["fate"].to_pylist()) == {"kept"}


def test_next_batch_is_decoded_while_the_device_works(
    footage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_encoder.BATCH_VALUES, "cpu", 1)
    decoded = threading.Semaphore(0)
    first = threading.Event()
    plain = _encoder.read_span

    def counted(*arguments: Any, **options: Any) -> SampledSpan:
        span = plain(*arguments, **options)
        decoded.release()
        return span

    def wait_for_the_next(video: Tensor) -> None:
        if not first.is_set():
            first.set()
            # The first batch and one more are decoded before any clip is encoded.
            assert decoded.acquire(timeout=30)
            assert decoded.acquire(timeout=30)

    monkeypatch.setattr(_encoder, "read_span", counted)
    table = clips(footage)
    table = table.filter(pc.is_in(table["start_pts"], pa.array([0, 10 * TICKS]))).filter(
        [True, False, True, True, False, True]
    )
    done = with_autoencoder(encoder(tmp_path), ScriptedAutoencoder(before=wait_for_the_next))(table)
    assert done["fate"].to_pylist() == ["kept"] * 4
    assert first.is_set()


def test_clips_without_a_bucket_are_dropped_and_counted(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    large = Encode(buckets=(BucketSettings(size=64, frames=(9,), fps=8, aspects=("1:1", "2:1")),))
    done = large.open(Context(str(tmp_path), 0, "f" * 32, pa.array([], pa.string())))(table).to_pylist()
    reasons = Counter(row["fate_reason"] for row in done if row["fate"] == "dropped")
    assert large.count_unassigned(table) == reasons
    assert sum(reasons.values()) == 8
    assert all("is smaller than" in reason or "is shorter than" in reason for reason in reasons)


def test_image_is_one_frame_with_any_lengths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((48, 48), Image.Resampling.BICUBIC).save(
        tmp_path / "a.png"
    )
    row = {
        "uid": "0a",
        "source": str(tmp_path / "a.png"),
        "kind": "image",
        "width": 48,
        "height": 48,
        "duration_s": 0.0,
        "captions": [],
    }
    row |= {"start_pts": 0, "end_pts": 1, "time_base_num": 1, "time_base_den": 1}
    done = encoder(tmp_path / "out", lengths="all", mirror=True)(start_fates(pa.Table.from_pylist([row])))
    assert done["fate_reason"].to_pylist() == [None]
    assert stored(tmp_path / "out").keys() == {"0a", "0a.m"}


TWO_LENGTHS = {"frames": [1, 9], "aspects": ["1:1", "2:1"]}


def losses(recipe: Recipe) -> str | None:
    encode_step = recipe.curate[-1]
    assert isinstance(encode_step, Encode)
    return bucket_losses(encode_step, inspect(recipe))


@pytest.mark.slow
def test_plan_warns_of_clips_that_no_bucket_takes(footage: dict[str, Path], tmp_path: Path) -> None:
    for path in footage.values():
        shutil.copyfile(path, tmp_path / path.name)
    fitting, large = (recipe_of(tmp_path, {**TWO_LENGTHS, "size": size}) for size in (32, 64))
    assert losses(fitting) is None
    run_segments(fitting, inline)
    assert losses(fitting) is None
    warning = losses(large)
    assert warning is not None
    assert warning.startswith(
        "no bucket fits 1 of 2 clips (50.0%) that filters keep: 1 because 48x48 is smaller than 64x64"
    )
    assert warning.endswith("Add smaller or shorter buckets")


@pytest.mark.slow
def test_manifest_has_every_sample_with_its_clips_values(footage: dict[str, Path], tmp_path: Path) -> None:
    for path in footage.values():
        shutil.copyfile(path, tmp_path / path.name)
    recipe = recipe_of(tmp_path, TWO_LENGTHS, lengths="all", mirror=True)
    made = build_dataset(recipe, run_segments(recipe, inline), inline)
    table, _ = read_manifest(made.manifest_uri)
    rows = table.to_pylist()
    clips = {clip_uid(row["uid"]) for row in rows}
    assert len(clips) == 2
    assert {row["uid"].partition(".")[2] for row in rows} == {"", "m", "1", "1m"}
    assert len(rows) == 8
    for row in rows:
        still = ".1" in row["uid"]
        (main,) = [other for other in rows if other["uid"] == clip_uid(row["uid"])]
        assert row["bucket"].endswith("x1" if still else "x9")
        assert row["n_tokens"] * (3 if still else 1) == main["n_tokens"]
        same = ("kind", "caption", "text_key", "source", "start_pts", "end_pts", "cluster", "split", "fps")
        assert [row[name] for name in same] == [main[name] for name in same]
    assert verify(made.manifest_uri) == []
