"""The encode step: samples do not depend on their batch, and a clip that fails costs no other clip anything."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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
from pipelines.curation import inspect, run_segments
from pipelines.dataset.build import build_dataset
from pipelines.dataset.coverage import bucket_coverage, coverage
from pipelines.engine.step import Context, RunError, start_fates
from pipelines.steps import _encoder, _window_decoding
from pipelines.steps._encoder import Encoder
from pipelines.steps.encode import Encode
from pipelines.video.decode import OPEN_LOG
from pipelines.video.spans import FrameGrid, SampledSpan, read_span
from tests.support.encode_recipes import recipe_of
from tests.support.videos import encode, sliding
from training.autoencoder import Autoencoder
from training.autoencoders.causal import Causal
from training.autoencoders.linear import Linear
from training.data.buckets import BucketSettings
from training.data.manifest import CONTENT_COLUMNS, read_manifest
from training.data.shard_reader import RowReference, ShardReader
from training.data.shards import CROP_COLUMNS, clip_uid, read_index, read_info, sample_uid
from training.data.verify import verify
from training.pixels import psnr_db, ssim

BUCKETS = (BucketSettings(size=32, frames=(1, 5, 9), fps=8, aspects=("1:1", "2:1")),)
FPS = 24
TICKS = 512
"""Units of the time base per frame in the files of the tests."""
N_FRAMES = 40
SPANS = ((0, 40), (0, 18), (10, 40), (20, 40), (38, 39))
"""First frame and end of the clips: 13.3, 6, 10, 6.7 and 0.3 steps of 8 fps, which are 3 frames each."""
WINDOWS = (((9, 0), (5, 24)), ((5, 0), (5, 6)), ((9, 0), (5, 18)), ((5, 0), (5, 8)), ((1, 0),))
"""Frames of the windows of each clip, and the frames of the source from the clip's start to theirs. The last clip fits
only a bucket of one frame."""


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
                    "crop": None,
                    "captions": [],
                }
            )
    return start_fates(pa.Table.from_pylist(rows))


def encoder(tmp_path: Path, stored: tuple[str, ...] = (), **settings: Any) -> Encoder:
    step = Encode(buckets=BUCKETS, **{"stills": True, **settings})
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


@dataclass(frozen=True)
class ExpectedWindow:
    """A window of a clip that the step is expected to encode."""

    uid: str
    row: dict[str, Any]
    frames: int
    first_pts: int

    @property
    def end_pts(self) -> int:
        """Exclusive end: after the last frame, unless the clip ends there."""
        return min(self.first_pts + (self.frames - 1) * 3 * TICKS + 1, self.row["end_pts"])

    def pixels(self, frames: int | None = None) -> Tensor:
        """Return the first frames of the window, all by default, `[1, 3, T, H, W]`."""
        width = 48 if self.row["width"] == 96 else 32
        grid = FrameGrid(fps=8, frames=frames or self.frames, width=width, height=32 if width == 32 else 16)
        span = read_span(self.row["source"], self.first_pts, self.end_pts, grid)
        return torch.from_numpy(span.frames.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def windows_of(table: pa.Table) -> list[ExpectedWindow]:
    found = []
    for row, windows in zip(table.to_pylist(), WINDOWS * 2, strict=True):
        for number, (frames, offset) in enumerate(windows):
            uid = f"{row['uid']}.w{number}" if number else row["uid"]
            found.append(ExpectedWindow(uid, row, frames, row["start_pts"] + offset * TICKS))
    return found


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
    frames = [[count for count, _ in windows] for windows in WINDOWS]
    names = [row["bucket"] for row in done.to_pylist()]
    assert names == [f"32x32x{n}" for n, *_ in frames] + [f"48x16x{n}" for n, *_ in frames]
    cells = [sum(1 + (n - 1) // 4 for n in counts) for counts in frames]
    assert done["n_tokens"].to_pylist() == [16 * t for t in cells] + [12 * t for t in cells]
    assert done["n_samples"].to_pylist() == [2, 2, 2, 2, 1] * 2
    # The clips have 40, 18, 30, 20 and 1 frames at 24 fps.
    assert done["used_s"].to_pylist() == [36 / 24, 18 / 24, 30 / 24, 20 / 24, 0.0] * 2
    found, linear = stored(tmp_path), Linear().open()
    expected = {window.uid: window for window in windows_of(table)}
    assert found.keys() == expected.keys()
    for uid, window in expected.items():
        video = window.pixels()
        latent, last_frame = found[uid]
        assert torch.equal(latent, linear.encode(video)[0].to(torch.bfloat16))
        assert (last_frame is None) == (window.frames == 1)
        assert last_frame is None or torch.equal(last_frame, linear.encode(video[:, :, -1:])[0].to(torch.bfloat16))
    spans = {row["uid"]: row for uri in shards_of(tmp_path) for row in read_index(uri).to_pylist()}
    assert {uid: (row["start_pts"], row["end_pts"]) for uid, row in spans.items()} == {
        uid: (window.first_pts, window.end_pts) for uid, window in expected.items()
    }


@pytest.mark.slow
def test_shorter_lengths_and_mirror_images_are_samples(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    encoder(tmp_path, lengths="all", mirror=True)(table)
    found, linear = stored(tmp_path), Linear().open()
    wanted = {}
    for window in windows_of(table):
        whole = window.pixels()
        number = int(window.uid.partition(".w")[2] or 0)
        for count in (count for count in (1, 5, 9) if count <= window.frames):
            for mirrored in (False, True):
                shorter = None if count == window.frames else count
                name = sample_uid(window.row["uid"], number, shorter, mirrored)
                assert name.startswith(window.uid)
                assert clip_uid(name) == window.row["uid"]
                video = whole[:, :, :count]
                wanted[name] = linear.encode(video.flip(-1) if mirrored else video)[0].to(torch.bfloat16)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name][0], wanted[name]) for name in wanted)
    # A shard holds one shape.
    for uri in shards_of(tmp_path):
        assert f"bucket={read_info(uri).bucket.name}/" in uri


def test_clips_give_no_stills_unless_the_recipe_says_so(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    done = encoder(tmp_path, stills=False, lengths="all")(table).to_pylist()
    assert [row["fate"] for row in done] == ["kept", "kept", "kept", "kept", "dropped"] * 2
    assert done[4]["fate_reason"] == (
        "0.04 s is shorter than 0.50 s, the duration of 5 frames at 8 fps; set stills: true of encode to encode its "
        "first frame as an image"
    )
    assert {read_info(uri).bucket.frames for uri in shards_of(tmp_path)} == {5, 9}


def test_a_clip_is_decoded_once(footage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "opened"
    monkeypatch.setenv(OPEN_LOG, str(log))
    # Two sizes, and two windows at each.
    sizes = (*BUCKETS, BucketSettings(size=16, frames=(5, 9), fps=8, aspects=("1:1", "2:1")))
    step = Encode(buckets=sizes)
    table = clips(footage).slice(0, 4)
    done = step.open(Context(str(tmp_path / "out"), 0, "f" * 32, pa.array([], pa.string())))(table)
    assert done["n_samples"].to_pylist() == [4] * 4
    assert len(log.read_text().split()) == 4


@pytest.mark.slow
def test_long_clip_is_decoded_in_parts(
    footage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = clips(footage)
    encoder(tmp_path / "whole")(table)
    monkeypatch.setattr(_window_decoding, "DECODE_VALUES", 1)
    monkeypatch.setattr(_encoder, "HELD_BYTES", 1)
    encoder(tmp_path / "parts")(table)
    whole, parts = stored(tmp_path / "whole"), stored(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[uid][0], parts[uid][0]) for uid in whole)
    # A shard is written as soon as a clip is complete.
    assert len(shards_of(tmp_path / "parts")) > len(shards_of(tmp_path / "whole"))


def test_latents_show_the_content_without_bars(tmp_path: Path) -> None:
    """A film of 64x36 in a frame of 64x48: its bucket is that of its own aspect, and no bar is in its pixels."""
    frames = sliding(N_FRAMES, 2.0, 64, 48)
    frames[:, :6] = frames[:, -6:] = 0
    path = encode(tmp_path / "film.mp4", frames, time_base=Fraction(1, FPS), options={"crf": "0"})
    buckets = (BucketSettings(size=40, frames=(9,), fps=8, aspects=("4:3", "16:9"), multiple=8),)
    step = Encode(buckets=buckets)
    found = {}
    for crop, bucket in (([0, 6, 64, 42], "56x32x9"), (None, "48x32x9")):
        (row,) = clips({"film": path}).slice(0, 1).to_pylist()
        row |= {"width": 64, "height": 48, "crop": crop}
        seen: list[Tensor] = []
        function = step.open(Context(str(tmp_path / bucket), 0, "f" * 32, pa.array([], pa.string())))
        assert isinstance(function, Encoder)
        with_autoencoder(function, ScriptedAutoencoder(before=seen.append))
        (done,) = function(start_fates(pa.Table.from_pylist([row]))).to_pylist()
        assert done["bucket"] == bucket
        found[bucket] = seen[0]
        (uri,) = shards_of(tmp_path / bucket)
        stored_row, _ = read_index(uri).to_pylist()
        box = [stored_row[name] for name in CROP_COLUMNS]
        left, top, right, bottom = crop or (0, 0, 64, 48)
        assert left <= box[0] < box[2] <= right
        assert top <= box[1] < box[3] <= bottom
    assert found["56x32x9"][..., [0, -1], :].mean() > -0.7
    assert found["48x32x9"][..., [0, -1], :].mean() < -0.95


def test_a_crop_outside_the_frame_fails_its_clip_alone(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    crops = pa.array([[0, 0, 97, 48], *[None] * (len(table) - 1)], pa.list_(pa.int32()))
    done = encoder(tmp_path)(table.set_column(table.schema.get_field_index("crop"), "crop", crops)).to_pylist()
    assert [row["fate"] for row in done] == ["failed", *["kept"] * 9]
    assert "crop [0, 0, 97, 48] is not inside the frame of 48x48" in done[0]["fate_reason"]


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


@pytest.mark.parametrize(("name", "fate"), [("broken.mp4", "failed"), ("gone.mp4", "pending")])
def test_clip_without_pixels_fails_alone(footage: dict[str, Path], tmp_path: Path, name: str, fate: str) -> None:
    """A file that cannot be decoded fails its clip; one that is not there leaves it to the next run."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    table = clips(footage)
    at_fault = table["uid"][2].as_py()
    sources = [
        str(tmp_path / name) if uid == at_fault else source
        for uid, source in zip(*(table[n].to_pylist() for n in ("uid", "source")), strict=True)
    ]
    broken = table.set_column(table.schema.get_field_index("source"), "source", [sources])
    done = encoder(tmp_path / "out")(broken).to_pylist()
    assert [row["fate"] for row in done] == ["kept", "kept", fate, *["kept"] * 7]
    assert name in done[2]["fate_reason"]
    assert done[2]["bucket"] is None
    assert {clip_uid(uid) for uid in stored(tmp_path / "out")} == set(table["uid"].to_pylist()) - {at_fault}


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Let torch compute in three threads, with which convolutions round differently than with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_latents_do_not_depend_on_tasks_or_threads(
    footage: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whichever clips share a task, and whatever the number of threads, the CPU computes the same bits."""
    table = clips(footage).slice(0, 6)
    encoder(tmp_path / "together", autoencoder=Causal())(table)
    request.getfixturevalue("three_threads")
    function = encoder(tmp_path / "apart", autoencoder=Causal())
    for start, length in ((3, 3), (0, 1), (1, 2)):
        function(table.slice(start, length))
    together, apart = stored(tmp_path / "together"), stored(tmp_path / "apart")
    assert apart.keys() == together.keys()
    for uid, (latent, last_frame) in together.items():
        assert torch.equal(apart[uid][0], latent)
        assert last_frame is None or torch.equal(apart[uid][1], last_frame)  # type: ignore[arg-type]


@pytest.mark.usefixtures("three_threads")
def test_a_cpu_encodes_in_one_thread(footage: dict[str, Path], tmp_path: Path) -> None:
    threads = []
    scripted = ScriptedAutoencoder(before=lambda video: threads.append((len(video), torch.get_num_threads())))
    with_autoencoder(encoder(tmp_path), scripted)(clips(footage))
    assert set(threads) == {(1, 1)}
    assert torch.get_num_threads() == 3


@pytest.mark.slow
@pytest.mark.usefixtures("batches")
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


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU encode in batches, as a GPU does."""
    monkeypatch.setitem(_window_decoding.BATCH_VALUES, "cpu", 2**22)


@pytest.mark.usefixtures("batches")
def test_latents_that_are_not_finite_fail_only_their_clip(footage: dict[str, Path], tmp_path: Path) -> None:
    def spoil(latent: Tensor) -> Tensor:
        return torch.cat((latent[:1] * torch.nan, latent[1:])) if len(latent) > 1 else latent

    done = with_autoencoder(encoder(tmp_path), ScriptedAutoencoder(after=spoil))(clips(footage)).to_pylist()
    reasons = Counter(row["fate_reason"] for row in done)
    # The first window of each batch of several, in each of four buckets. No window of its clip is stored.
    assert reasons == {None: 6, "its latents hold a value that is not finite": 4}
    kept = {row["uid"] for row in done if row["fate"] == "kept"}
    assert {clip_uid(uid) for uid in stored(tmp_path)} == kept


@pytest.mark.slow
def test_shard_footer_has_the_fidelity_of_a_checked_clip(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    encoder(tmp_path)(table)
    linear = Linear().open()
    windows = {window.uid: window for window in windows_of(table)}
    for uri in shards_of(tmp_path):
        info = read_info(uri)
        assert info.fidelity is not None
        assert info.fidelity["rows"] == 1
        expected = []
        for uid, (latent, _) in stored(Path(uri).parent).items():
            latent = latent[:, :2]
            video = windows[uid].pixels()[:, :, : 4 * latent.shape[1] - 3]
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
    monkeypatch.setitem(_window_decoding.BATCH_VALUES, "cpu", 1)
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
    monkeypatch.setitem(_window_decoding.AHEAD_VALUES, "cpu", 1)
    decoded = threading.Semaphore(0)
    first = threading.Event()
    plain = _window_decoding.read_spans

    def counted(*arguments: Any, **options: Any) -> list[SampledSpan]:
        spans = plain(*arguments, **options)
        decoded.release()
        return spans

    def wait_for_the_next(video: Tensor) -> None:
        if not first.is_set():
            first.set()
            # The first batch and one more are decoded before any clip is encoded.
            assert decoded.acquire(timeout=120)
            assert decoded.acquire(timeout=120)

    monkeypatch.setattr(_window_decoding, "read_spans", counted)
    table = clips(footage)
    table = table.filter(pc.is_in(table["start_pts"], pa.array([0, 10 * TICKS]))).filter(
        [True, False, True, True, False, True]
    )
    done = with_autoencoder(encoder(tmp_path), ScriptedAutoencoder(before=wait_for_the_next))(table)
    assert done["fate"].to_pylist() == ["kept"] * 4
    assert first.is_set()


def test_as_many_clips_are_decoded_together_as_cpus(
    footage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clips are of both shapes, so no bucket has enough of them alone."""
    together = threading.Barrier(4)
    plain = _window_decoding.read_spans

    def waiting(*arguments: Any, **options: Any) -> list[SampledSpan]:
        together.wait(timeout=120)  # a barrier that too few threads reach raises an error
        return plain(*arguments, **options)

    monkeypatch.setattr(_window_decoding, "read_spans", waiting)
    table = clips(footage).slice(3, 4)
    done = with_autoencoder(encoder(tmp_path, cpus=4), ScriptedAutoencoder())(table)
    assert done["fate"].to_pylist() == ["kept"] * 4


def test_a_shard_is_written_while_the_device_works(
    footage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_encoder, "HELD_BYTES", 1)  # each window is a shard
    writing, encoding = threading.Event(), threading.Event()
    plain = _encoder.write_shard

    def slow(*arguments: Any) -> None:
        writing.set()
        assert encoding.wait(timeout=120)
        plain(*arguments)

    def watch(video: Tensor) -> None:
        if writing.is_set():
            encoding.set()

    monkeypatch.setattr(_encoder, "write_shard", slow)
    table = clips(footage).slice(3, 2)
    with_autoencoder(encoder(tmp_path), ScriptedAutoencoder(before=watch))(table)
    assert encoding.is_set()
    assert len(stored(tmp_path)) == sum(len(WINDOWS[index]) for index in (3, 4))


@pytest.mark.parametrize("held_bytes", [1, 2**28])
def test_a_shard_that_cannot_be_written_ends_the_run(
    footage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(_encoder, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(_encoder, "write_shard", full)
    with pytest.raises(RunError, match=r"a shard of bucket .* cannot be written: OSError: no space left"):
        encoder(tmp_path)(clips(footage))


def test_clips_without_a_bucket_are_dropped_and_counted(footage: dict[str, Path], tmp_path: Path) -> None:
    table = clips(footage)
    large = Encode(buckets=(BucketSettings(size=64, frames=(9,), fps=8, aspects=("1:1", "2:1")),))
    done = large.open(Context(str(tmp_path), 0, "f" * 32, pa.array([], pa.string())))(table).to_pylist()
    reasons = Counter(row["fate_reason"] for row in done if row["fate"] == "dropped")
    assert coverage(large, table).unassigned == reasons
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
        "crop": None,
        "captions": [],
    }
    row |= {"start_pts": 0, "end_pts": 1, "time_base_num": 1, "time_base_den": 1}
    done = encoder(tmp_path / "out", lengths="all", mirror=True)(start_fates(pa.Table.from_pylist([row])))
    assert done["fate_reason"].to_pylist() == [None]
    assert stored(tmp_path / "out").keys() == {"0a", "0a.m"}


TWO_LENGTHS = {"frames": [1, 9], "aspects": ["1:1", "2:1"]}


@pytest.mark.slow
def test_plan_warns_of_clips_that_no_bucket_takes(footage: dict[str, Path], tmp_path: Path) -> None:
    for path in footage.values():
        shutil.copyfile(path, tmp_path / path.name)
    videos = {"frames": [9], "aspects": ["1:1", "2:1"]}
    fitting, large = (recipe_of(tmp_path, {**videos, "size": size}) for size in (32, 64))
    assert bucket_coverage(inspect(fitting)) is None
    # A curation that has just run counts the rows that were done before it.
    assert (found := bucket_coverage(run_segments(fitting, inline))) is not None
    assert found == bucket_coverage(inspect(fitting))
    assert found.warnings() == []
    # Two windows of 1 s cover each clip of 40 frames at 24 fps.
    assert [(use.name, use.n_samples) for use in found.buckets] == [("48x16x9", 2), ("32x32x9", 2)]
    assert found.used_s == pytest.approx(found.kept_s)
    other = bucket_coverage(inspect(large))
    assert other is not None
    assert other.warnings()[0].startswith(
        "no bucket fits 1 of 2 clips (50.0%) that filters keep: 1 because 48x48 is smaller than 64x64"
    )
    assert other.warnings()[0].endswith("Add smaller or shorter buckets")


@pytest.mark.slow
def test_manifest_has_every_sample_with_its_clips_values(footage: dict[str, Path], tmp_path: Path) -> None:
    for path in footage.values():
        shutil.copyfile(path, tmp_path / path.name)
    recipe = recipe_of(tmp_path, TWO_LENGTHS, lengths="all", mirror=True, stills=True)
    made = build_dataset(recipe, run_segments(recipe, inline), inline)
    table, _ = read_manifest(made.manifest_uri)
    rows = table.to_pylist()
    clips = {clip_uid(row["uid"]) for row in rows}
    assert len(clips) == 2
    variants = {"", "m", "1", "1m"}
    assert {row["uid"].partition(".")[2] for row in rows} == {*variants, "w1", "w1m", "w1-1", "w1-1m"}
    assert len(rows) == 16
    for row in rows:
        still = row["uid"].rstrip("m").endswith(("-1", ".1"))
        (main,) = [other for other in rows if other["uid"] == clip_uid(row["uid"])]
        assert row["bucket"].endswith("x1" if still else "x9")
        assert row["n_tokens"] * (3 if still else 1) == main["n_tokens"]
        same = ("kind", "caption", "text_key", "source", "clip_start_pts", "clip_end_pts", "cluster", "split", "fps")
        assert [row[name] for name in same] == [main[name] for name in same]
        # The caption is that of the clip; the sample shows a window of it, or its first frame.
        assert row["clip_start_pts"] <= row["start_pts"] < row["end_pts"] <= row["clip_end_pts"]
        assert row["end_pts"] - row["start_pts"] == (1 if still else 24 * TICKS + (".w1" not in row["uid"]))
        assert [row[name] for name in CONTENT_COLUMNS] == [0, 0, row["source_width"], row["source_height"]]
    assert verify(made.manifest_uri) == []
