"""Fixtures of all tests.

ERROR log lines, leaked random state and changed scheduling fail a test; pyproject.toml turns warnings into errors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rich.style  # noqa: F401  draws from the global generators when it is imported; no test should be blamed for it
from hypothesis import settings

from tests.support.drawn_footage import draw_footage
from tests.support.paths import ROOT

PRIVATE_FOOTAGE = Path(os.environ.get("WORLDLOOM_VIDEOS", ROOT.parent / "shared" / "videos"))

LONGEST_FILES = (
    "tests/test_end_to_end.py",
    "tests/training/test_zero.py",
    "tests/training/test_loop.py",
    "tests/training/test_engine.py",
    "tests/training/test_run.py",
)
"""Test files that take minutes each. They come first, so that the processes of `make test` end at about the same time;
the two that use Ray longest are not side by side."""

# Ray's workers have a niceness of 15 by default. Beside the other test process and its children they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")

# The time of an example depends on the machine's load, so none has a deadline.
settings.register_profile("worldloom", deadline=None)
settings.load_profile("worldloom")


def global_random_state() -> tuple[object, bytes]:
    """Return the states of the global generators of Python and NumPy."""
    return random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and mark tests of footage as slow: drawn footage takes half a minute."""
    rank = {ROOT / file: index for index, file in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    for item in items:
        if "video_folder" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _own_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make the certificate that signs samples in a folder of the tests, not in that of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield


@pytest.fixture(autouse=True)
def _no_error_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    # Ray logs the deaths of workers that tests kill on purpose.
    records = [record for record in caplog.get_records("call") if not record.name.startswith("ray")]
    errors = [record.getMessage() for record in records if record.levelno >= logging.ERROR]
    assert not errors, f"errors were logged: {errors}"


@pytest.fixture(autouse=True)
def _no_leaked_random_state() -> Iterator[None]:
    before = global_random_state()
    yield
    assert global_random_state() == before, "the test drew from global random state"


@pytest.fixture(autouse=True)
def _same_scheduling() -> Iterator[None]:
    """Fail a test that changes the scheduling policy.

    Libraries can make a process of root real-time. Processes that later tests start would then starve.
    """
    policy = getattr(os, "sched_getscheduler", lambda _: None)
    before = policy(0)
    yield
    assert policy(0) == before, "the test left its process with another scheduling policy"


@pytest.fixture(scope="session")
def footage_is_drawn() -> bool:
    """Return True if there is no private footage at `WORLDLOOM_VIDEOS`, so that drawn files stand in for it."""
    return not PRIVATE_FOOTAGE.is_dir()


@pytest.fixture(scope="session")
def video_folder(footage_is_drawn: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of private footage, or of drawn files with the same names."""
    if not footage_is_drawn:
        return PRIVATE_FOOTAGE.resolve()
    folder = tmp_path_factory.mktemp("drawn-footage")
    draw_footage(folder)
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Run one local Ray for all tests that need one."""
    from cluster.session import RaySettings, ray_connection

    # Workers are other processes, which find the test modules through the environment.
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        stack.enter_context(ray_connection(RaySettings(cpus=2)))
        yield
