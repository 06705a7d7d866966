"""What every test file shares: warnings are errors (pyproject.toml), and so are ERROR log lines, leaked random state and changed scheduling."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rich.style
from hypothesis import settings

from tests.support.paths import ROOT

# How long an example takes is the machine's affair.
settings.register_profile("worldloom", deadline=None)
settings.load_profile("worldloom")


@pytest.fixture(autouse=True)
def _no_error_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    # Ray logs the deaths of workers that tests kill on purpose.
    records = [record for record in caplog.get_records("call") if not record.name.startswith("ray")]
    errors = [record.getMessage() for record in records if record.levelno >= logging.ERROR]
    assert not errors, f"errors were logged: {errors}"


@pytest.fixture(autouse=True)
def _no_leaked_random_state() -> Iterator[None]:
    before = (random.getstate(), np.random.get_state()[1].tobytes())
    yield
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before, "the test drew from global random state"


@pytest.fixture(autouse=True)
def _same_scheduling() -> Iterator[None]:
    """A process that a library makes real-time, as it can make root's, starves what all tests after it start, until they hang."""
    policy = getattr(os, "sched_getscheduler", lambda _: None)
    before = policy(0)
    yield
    assert policy(0) == before, "the test left its process with another scheduling policy"


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """Folder of real footage; tests that need it skip where it is not."""
    folder = Path(os.environ.get("WORLDLOOM_VIDEOS", ROOT.parent / "shared" / "videos"))
    if not folder.is_dir():
        pytest.skip(f"no real footage at {folder}; set WORLDLOOM_VIDEOS")
    return folder.resolve()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    from cluster.session import RaySettings, ray_connection

    # Workers are processes of their own: they find the test modules through the environment.
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv(
            "PYTHONPATH",
            str(ROOT),
            prepend=os.pathsep,
        )
        stack.enter_context(ray_connection(RaySettings(cpus=2)))
        yield
