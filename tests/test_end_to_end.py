"""The main job on drawn footage and on real footage: whole, repeated, changed, killed."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster import storage
from pipelines import inline
from pipelines.commands import run
from pipelines.curation import Curation, inspect, run_segments
from pipelines.dataset.build import build_dataset
from pipelines.ledger import ledger
from pipelines.recipe import Recipe, load_recipe
from pipelines.scenes.footage import make_footage
from pipelines.video.decode import OPEN_LOG
from tests.support.command_line import CommandLine, Ended
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks
from tests.support.users_folder import start_in, write_users_folder
from training.data.manifest import read_manifest
from training.data.shards import clip_uid
from training.data.verify import verify
from training.loop import train_loop
from training.settings import TrainSettings

pytestmark = pytest.mark.slow

QUICKSTART = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
TINY_TRAINING = (
    "train.model={name: dit, depth: 2, dim: 64, heads: 2}",
    "train.workers=2",
    "train.steps=6",
    "train.warmup_steps=2",
    "train.decay_steps=0",
    "train.checkpoint_every=2",
    "train.validate_every=3",
    "train.batch.tokens_per_step=4096",
)


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    make_footage(folder, videos=12, seed=0)
    return folder


def assignments(footage: Path, out: Path) -> list[str]:
    videos, images = (
        f"{{videos: '{footage}/*.mp4', captions: sidecar}}",
        f"{{images: '{footage}/*.{{png,jpg}}', captions: sidecar}}",
    )
    return [f"out={out}", f"sources=[{videos}, {images}]", "train=null", "sample=[]"]


def recipe_for(footage: Path, out: Path, *changes: str) -> Recipe:
    return load_recipe(QUICKSTART, [*assignments(footage, out), *changes])


def run_inline(recipe: Recipe) -> Curation:
    curation = run_segments(recipe, inline)
    build_dataset(recipe, curation, inline)
    return curation


def rows_of(curation: Curation) -> list[dict[str, Any]]:
    return curation.final.rows.read().to_pylist()


def latents_of(recipe: Recipe) -> dict[str, tuple[bytes, bytes | None]]:
    """Latent bytes of every uid in the shards; a uid must be there once."""
    files = [entry.uri for entry in storage.list_files(recipe.tables_uri, ".parquet") if "/latents-" in entry.uri]
    rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    assert max(Counter(row["uid"] for row in rows).values()) == 1
    return {row["uid"]: (row["latent"], row["last_frame_latent"]) for row in rows}


def manifest_of(recipe: Recipe, curation: Curation) -> pa.Table:
    table, _ = read_manifest(build_dataset(recipe, curation, inline).manifest_uri)
    return table.drop_columns(["file", "row_group", "row"])


@pytest.fixture(scope="session")
def undisturbed(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Curation]:
    recipe = recipe_for(footage, tmp_path_factory.mktemp("undisturbed"))
    return recipe, run_inline(recipe)


class Opens:
    """Which videos are opened, in whatever process, while the block runs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = folder / "opens"
        self._path.touch()
        monkeypatch.setenv(OPEN_LOG, str(self._path))

    def take(self) -> list[str]:
        names = [Path(line).name for line in self._path.read_text().splitlines()]
        self._path.write_text("")
        return names


@pytest.fixture
def opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opens:
    return Opens(tmp_path, monkeypatch)


def test_every_trouble_of_the_demo_footage_is_found(footage: Path, undisturbed: tuple[Recipe, Curation]) -> None:
    _, curation = undisturbed
    truth = json.loads((footage / "truth.json").read_text())
    troubled = {video["trouble"]: video for video in truth["videos"] if video["trouble"]}
    fates: dict[str, Counter[str]] = {}
    for row in rows_of(curation):
        fates.setdefault(Path(row["source"]).name, Counter())[f"{row['fate']} {row['fate_step'] or ''}".strip()] += 1
    assert fates[troubled["truncated"]["file"]] == {"failed scan": 1}
    for kind in ("copy", "recompressed"):
        one, other = fates[troubled[kind]["file"]], fates[troubled[kind]["copy_of"]]
        assert {one["duplicate dedup"], other["duplicate dedup"]} == {0, one.total()}, (kind, one, other)
    for kind in ("black", "frozen"):
        assert fates[troubled[kind]["file"]]["dropped keep"] >= 1, (kind, fates[troubled[kind]["file"]])
    assert all(account.balanced for account in ledger(curation))
    assert [row["source"] for row in rows_of(curation) if row["fate"] == "failed"] == [
        str(footage / troubled["truncated"]["file"])
    ]


def test_every_clip_has_the_caption_of_its_own_shot(footage: Path, undisturbed: tuple[Recipe, Curation]) -> None:
    truth = {video["file"]: video for video in json.loads((footage / "truth.json").read_text())["videos"]}
    checked = 0
    for row in rows_of(undisturbed[1]):
        video = truth.get(Path(row["source"]).name)
        if (
            row["fate"] != "kept"
            or video is None
            or any(transition["kind"] != "cut" for transition in video["transitions"])
        ):
            continue
        seconds_per_pts = row["time_base_num"] / row["time_base_den"]
        middle_frame = (row["start_pts"] + row["end_pts"]) / 2 * seconds_per_pts * video["fps"]
        (shot,) = [shot for shot in video["shots"] if shot["start_frame"] <= middle_frame < shot["end_frame"]]
        assert row["caption"].startswith(shot["caption"])
        checked += 1
    assert checked > 10


def test_the_manifest_is_sound_and_splits_keep_groups_apart(undisturbed: tuple[Recipe, Curation]) -> None:
    recipe, curation = undisturbed
    dataset = build_dataset(recipe, curation, inline)
    assert verify(dataset.manifest_uri) == []
    table, _ = read_manifest(dataset.manifest_uri)
    assert dataset.n_val >= 1
    kept = [row for row in rows_of(curation) if row["fate"] == "kept" and row["clip_index"] is not None]
    assert {clip_uid(uid) for uid in table["uid"].to_pylist()} == {row["uid"] for row in kept}
    assert len(table) == sum(row["n_samples"] for row in kept)
    split_of: dict[str, set[str]] = {}
    for row in table.to_pylist():
        split_of.setdefault(row["cluster"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())


def test_a_rerun_opens_no_video_and_a_threshold_none_either(
    footage: Path, undisturbed: tuple[Recipe, Curation], tmp_path: Path, opens: Opens
) -> None:
    recipe, curation = undisturbed
    out = tmp_path / "out"
    shutil.copytree(recipe.out_uri, out)
    # A tighter bound keeps fewer clips; a looser one (below) keeps more, and only those are decoded.
    motions = sorted(row["motion"] for row in rows_of(curation) if row["fate"] == "kept" and row["motion"] is not None)
    middle = motions[len(motions) // 2]
    run_inline(recipe_for(footage, out))
    assert opens.take() == []
    tight = run_inline(recipe_for(footage, out, f"curate.keep.motion={{min: {middle}}}"))
    assert opens.take() == []
    assert 0 < tight.final.rows.live().rows.num_rows < curation.final.rows.live().rows.num_rows
    loose = run_inline(recipe_for(footage, out, "curate.keep.frozen_share={max: 1.0}"))
    new = {row["uid"] for row in rows_of(loose) if row["fate"] == "kept"} - {
        row["uid"] for row in rows_of(curation) if row["fate"] == "kept"
    }
    assert len(opens.take()) == len(new) == 1


def test_only_a_new_file_is_scanned(
    footage: Path, undisturbed: tuple[Recipe, Curation], tmp_path: Path, opens: Opens
) -> None:
    more = tmp_path / "more"
    # Other paths: other files. Four videos and the images are enough.
    shutil.copytree(footage, more, ignore=shutil.ignore_patterns("clip_00[4-9]*", "clip_01*"))
    added = sorted(more.glob("*.mp4"))[0]
    aside = tmp_path / added.name
    added.rename(aside)
    recipe = recipe_for(more, tmp_path / "out")
    run_inline(recipe)
    opens.take()
    aside.rename(added)
    run_inline(recipe)
    assert set(opens.take()) == {added.name}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", *arguments]


def run_cli(name: str, sets: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    sets_ = [part for assignment in sets for part in ("--set", assignment)]
    return subprocess.run(
        command(name, str(QUICKSTART), *options, *sets_), capture_output=True, text=True, check=False, timeout=900
    )


def kill_when(sets: Sequence[str], ready: Callable[[], bool], folder: Path) -> None:
    """Start a run in a folder with packages named as ours, and kill -9 its driver as soon as something is there."""
    sets_ = [part for assignment in sets for part in ("--set", assignment)]
    worldloom, environment = start_in(write_users_folder(folder))
    process = subprocess.Popen(
        [*worldloom, "run", str(QUICKSTART), *sets_],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 900
    while not ready():
        assert process.poll() is None, (
            f"the run ended before it could be killed: {process.stderr and process.stderr.read()!r}"
        )
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # The workers of a dead driver go with it; what they were writing must not disturb the run after.
    time.sleep(2)


TERMINAL = """
import os, pty, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored by what a shell starts in the background
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""


def interrupt_when(sets: Sequence[str], ready: Callable[[], bool], folder: Path) -> None:
    """Start a run at a terminal and press Ctrl-C as soon as something is there.

    `ffmpeg` changes the terminal's settings as the real one does: the kernel stops a process in the background that
    does so.
    """
    ffmpeg = folder / "ffmpeg"
    ffmpeg.write_text("#!/bin/sh\nstty sane\n")
    ffmpeg.chmod(0o755)
    sets_ = [part for assignment in sets for part in ("--set", assignment)]
    worldloom = command("run", str(QUICKSTART), *sets_)
    # Nobody reads a pipe before the run has ended, and one that is full would stop the run: a progress bar is drawn
    # ten times per second.
    terminal = folder / "terminal.txt"
    with terminal.open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-c", TERMINAL, *worldloom],
            stdin=subprocess.PIPE,
            stdout=stdout,
            cwd=folder,
            env=os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "TERM": "xterm"},
        )
    assert process.stdin is not None
    deadline = time.monotonic() + 900
    while not ready():
        assert process.poll() is None, terminal.read_bytes()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.stdin.write(b"\x03")
    process.communicate(timeout=120)
    output = terminal.read_bytes()
    assert (process.returncode, b"the same command resumes" in output) == (130, True), output


def has_parts(recipe: Recipe, segment: str) -> bool:
    """Return True if the table of a segment has a part."""
    return any(f"/{segment}-" in entry.uri for entry in storage.list_files(recipe.tables_uri, ".parquet"))


def train_undisturbed(settings: TrainSettings, manifest_uri: str, run_uri: str) -> None:
    """Train on ranks without Ray."""
    train_loop(settings, manifest_uri, run_uri, 0, torch.device("cpu"))


def losses_of(out: Path) -> list[float]:
    (metrics,) = out.rglob("metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


@pytest.mark.timeout(1800)  # its runs take two minutes on two free cores, and must not be cut off on busy ones
def test_rerun_of_a_killed_run_ends_as_if_undisturbed(
    footage: Path, undisturbed: tuple[Recipe, Curation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, straight = undisturbed
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in the ranks below
    out, undisturbed_out = tmp_path / "killed", tmp_path / "undisturbed"
    sets = [*assignments(footage, out)[:2], "sample=[]", *TINY_TRAINING, "train.steps=20"]
    killed = recipe_for(footage, out)
    (terminal := tmp_path / "terminal").mkdir()
    kill_when(sets, functools.partial(has_parts, killed, "scan"), tmp_path / "scanning")
    assert not inspect(killed).complete
    interrupt_when(sets, functools.partial(has_parts, killed, "encode"), terminal)
    assert not inspect(killed).complete
    kill_when(sets, lambda: any(out.rglob("checkpoints/step-*")), tmp_path / "training")
    curation = inspect(killed)
    assert curation.complete
    # The killed runs were on Ray, the undisturbed one was not: their tables are the same.
    for one, other in zip(curation.segments, straight.segments, strict=True):
        assert one.segment == other.segment
        assert one.rows.read().equals(other.rows.read())
    assert manifest_of(killed, curation).equals(manifest_of(recipe, straight))
    assert latents_of(killed) == latents_of(recipe)
    resumed = run_cli("run", sets)
    assert resumed.returncode == 0, resumed.stderr
    # Two ranks without Ray and without a kill, on the latents of a run without Ray, have the losses of the same bits.
    settings, manifest_uri = load_recipe(QUICKSTART, sets).train, build_dataset(recipe, straight, inline).manifest_uri
    run_ranks(train_undisturbed, 2, settings, manifest_uri, str(undisturbed_out))
    assert len(losses_of(undisturbed_out)) == 20
    assert losses_of(out) == losses_of(undisturbed_out)


def test_the_whole_recipe_samples_a_playable_clip_in_process(
    footage: Path, undisturbed: tuple[Recipe, Curation], tmp_path: Path
) -> None:
    recipe, _ = undisturbed
    out = tmp_path / "out"
    shutil.copytree(recipe.out_uri, out)
    image = min(footage.glob("*.png"))
    first_clip = f"{{prompt: a red circle, seconds: 2, size: 96x64, steps: 2, first: '{image}'}}"
    samples = f"[{first_clip}, {{prompt: a star, seconds: 0, size: 64x96, steps: 2}}]"
    whole = load_recipe(QUICKSTART, [*assignments(footage, out)[:2], *TINY_TRAINING, f"sample={samples}"])
    outcome = run.run(whole, in_process=True)
    assert outcome.training is not None
    assert outcome.training.steps == 6
    clip, image = outcome.samples
    with av.open(clip) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 17
    assert frames[0].shape == (64, 96, 3)
    assert image.endswith(".png")
    times = [os.stat(sample).st_mtime_ns for sample in outcome.samples]
    again = run.run(whole, in_process=True)
    assert again.training == outcome.training
    assert again.samples == outcome.samples
    assert [os.stat(sample).st_mtime_ns for sample in again.samples] == times, "samples that are there are kept"


def test_the_command_line_reports_ledger_plan_and_verify(
    footage: Path,
    undisturbed: tuple[Recipe, Curation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worldloom = CommandLine(monkeypatch, capsys)

    def ended(name: str, out: Path) -> Ended:
        sets = [part for assignment in assignments(footage, out) for part in ("--set", assignment)]
        return worldloom(name, QUICKSTART, *sets)

    ledger_, plan, verify = (ended(name, Path(undisturbed[0].out_uri)) for name in ("ledger", "plan", "verify"))
    assert (ledger_.exit_code, plan.exit_code, verify.exit_code) == (0, 0, 0), (
        ledger_.stderr + plan.stderr + verify.stderr
    )
    assert "clips: " in ledger_.stdout
    assert plan.stdout.count("has every row") == 4
    assert "0 problem(s)" in verify.stdout
    assert ended("ledger", tmp_path / "out").exit_code == 1


def test_every_file_of_mixed_footage_is_accounted_for(video_folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        QUICKSTART,
        [
            f"out={tmp_path}",
            f"sources=[{{videos: '{video_folder}/*.{{mp4,mov,mkv,avi}}'}}]",
            "curate.encode.autoencoder={name: linear}",  # half of the time is the network's of the other one
            "train=null",
            "sample=[]",
        ],
    )
    curation = run_inline(recipe)
    accounts = ledger(curation)
    assert all(account.balanced for account in accounts)
    videos, _, _ = accounts
    assert videos.inputs == 17
    assert videos.fates["failed"] == 1
    rows = rows_of(curation)
    by_file: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_file.setdefault(Path(row["source"]).name, []).append(row)
    (corrupted,) = by_file["corrupted.mp4"]
    assert corrupted["fate"] == "failed"
    assert "InvalidDataError" in corrupted["fate_reason"]
    upright = by_file["rotated_90.mov"][0]
    assert upright["height"] > upright["width"]
    kept, duplicates = (
        [row for row in rows if "carphone" in row["source"] and row["fate"] == fate] for fate in ("kept", "duplicate")
    )
    assert len(kept) == len(duplicates) >= 1
    assert {row["cluster"] for row in duplicates} == {row["uid"] for row in kept}
    assert verify(build_dataset(recipe, curation, inline).manifest_uri) == []
