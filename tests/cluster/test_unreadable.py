"""Which errors say that a file cannot be read now, and nothing about its content."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
from av.error import FFmpegError, err_check
from PIL import Image, UnidentifiedImageError

from cluster import unreadable
from cluster.unreadable import (
    UnreadableError,
    WatchedFile,
    cannot_be_read,
    check_readable,
    may_pass_soon,
    unreadable_errors,
)


class OutOfMemoryError(RuntimeError):
    """An error named as torch's."""


def ffmpeg_error(number: int) -> FFmpegError:
    """Return PyAV's error of a number of the operating system."""
    with pytest.raises(FFmpegError) as raised:
        err_check(-number)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        UnreadableError("s3://b/a.mp4: AWS Error NETWORK_CONNECTION"),
        MemoryError(),
        OutOfMemoryError("CUDA out of memory"),
    ],
    ids=repr,
)
def test_errors_that_may_pass_are_told_from_bad_content(error: Exception) -> None:
    assert cannot_be_read(error)
    assert may_pass_soon(error)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EACCES, "no")])
def test_missing_and_forbidden_files_are_not_waited_for(error: Exception) -> None:
    assert cannot_be_read(error)
    assert not may_pass_soon(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError("image file is truncated (3 bytes not processed)"),
        UnidentifiedImageError("cannot identify image file"),
        ffmpeg_error(errno.EIO),
        ffmpeg_error(errno.ENOMEM),
        ValueError("no video stream"),
    ],
    ids=repr,
)
def test_errors_of_decoders_say_that_the_content_is_bad(error: Exception) -> None:
    assert not cannot_be_read(error)


def test_truncated_images_are_bad_content() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    with pytest.raises(OSError, match="truncated") as raised, Image.open(io.BytesIO(buffer.getvalue()[:-60])) as image:
        image.load()
    assert not cannot_be_read(raised.value)


def test_refusals_of_a_store_do_not_pass_soon() -> None:
    for answer, passes in (("NETWORK_CONNECTION", True), ("ACCESS_DENIED", False)):
        with (
            pytest.raises(UnreadableError, match=f"^s3://b/a: AWS Error {answer}") as raised,
            unreadable_errors("s3://b/a"),
        ):
            raise OSError(f"AWS Error {answer} during GetObject operation")
        assert may_pass_soon(raised.value) == passes
    with pytest.raises(FileNotFoundError), unreadable_errors("s3://b/a"):
        raise FileNotFoundError(errno.ENOENT, "Path does not exist")


def test_watched_file_remembers_an_error_of_reading() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")

    whole = WatchedFile("s3://b/a", io.BytesIO(b"abc"))
    assert (whole.seek(1), whole.read(1), whole.tell(), whole.error) == (1, b"b", 2, None)
    broken = WatchedFile("s3://b/a", Broken(b"abc"))
    with pytest.raises(UnreadableError):
        broken.read(3)
    assert isinstance(broken.error, UnreadableError)


def test_local_file_is_read_again_to_know_the_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video")
    check_readable(str(path), ValueError("invalid data"))
    with pytest.raises(UnreadableError, match="Too many open files"):
        check_readable(str(path), ffmpeg_error(errno.EMFILE))
    with pytest.raises(FileNotFoundError):
        check_readable(str(tmp_path / "none.mp4"), ValueError("invalid data"))

    class Bad(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(unreadable, "open", lambda *args, **options: Bad(), raising=False)
    with pytest.raises(OSError, match="Input/output error") as raised:
        check_readable(str(path), ValueError("truncated"))
    assert isinstance(raised.value.__cause__, ValueError)
