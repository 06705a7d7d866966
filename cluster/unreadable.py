"""Files that cannot be read now, as opposed to files whose content is bad: an outage says nothing about a file."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from cluster.block_file import BlockFile, RandomAccess

READ_BYTES = 4 << 20

NOT_OF_CONTENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT})
"""Numbers of errors that FFmpeg passes on from the operating system, and never reports for damaged content."""


KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
CLOCK = "set this machine's clock, which is off"
BUCKET = "create the bucket, or check its name and AWS_ENDPOINT_URL"
GOOGLE = "check GOOGLE_APPLICATION_CREDENTIALS, and what its account may do"

REFUSALS = {
    "INVALID_ACCESS_KEY": f"the store does not know the access key: check {KEYS}",
    "SIGNATURE_DOES_NOT_MATCH": f"the secret key is wrong: check {KEYS}",
    # Answers to HEAD have no text, so that these three cannot be told apart.
    "ACCESS_DENIED": f"check {KEYS}, what that key may do, and this machine's clock",
    "REQUEST_TIME_TOO_SKEWED": CLOCK,
    "RequestTimeTooSkewed": CLOCK,
    "REQUEST_EXPIRED": CLOCK,
    "NO_SUCH_BUCKET": BUCKET,
    "PERMISSION_DENIED": GOOGLE,
    "UNAUTHENTICATED": GOOGLE,
}
"""Answers of stores that are the same a minute later, and what to do about each."""

STORE_ANSWERS = ("AWS Error", "google::cloud::Status")
"""Parts of pyarrow's messages about what a store answered, or that it did not."""


class UnreadableError(OSError):
    """The bytes of a file cannot be had now: the store is away, the file is gone, or this user may not read it."""

    may_pass_soon = True
    """Whether it is worth waiting for."""


def cannot_be_read(error: BaseException) -> bool:
    """Return whether an error says that bytes or memory cannot be had now, and nothing about the content of a file.

    Operating systems number their errors. Decoders raise an `OSError` without a number for bad content (Pillow), or
    their own subclass with any number (PyAV), so neither counts.
    """
    if isinstance(error, UnreadableError | MemoryError):
        return not _is_decoders(error)
    if isinstance(error, OSError):
        return error.errno is not None and not _is_decoders(error)
    return type(error).__name__ == "OutOfMemoryError"  # torch's, which the light installation lacks


def may_pass_soon(error: BaseException) -> bool:
    """Return whether it is worth waiting until an error of `cannot_be_read` has passed."""
    if isinstance(error, UnreadableError):
        return error.may_pass_soon
    return not isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError)


def _is_decoders(error: BaseException) -> bool:
    # FFmpeg gives "cannot allocate memory" and "input/output error" for damaged headers, too.
    return type(error).__module__.partition(".")[0] == "av"


@contextlib.contextmanager
def unreadable_errors(uri: str, advice: str = "") -> Iterator[None]:
    """Turn an `OSError` without a number into `UnreadableError`, in a block that asks a store for something.

    pyarrow raises such errors for all that a store answers but "not found". A refusal is told with its fix.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None or isinstance(error, UnreadableError):
            raise
        raise unreadable(f"{uri}: {error}", advice) from error


def unreadable(message: str, advice: str = "") -> UnreadableError:
    """Return the error with the message about what a store answered, and with the fix for a refusal."""
    text = message.partition(" error_info=")[0]  # Google's client repeats the message in its metadata
    fix = next((fix for answer, fix in REFUSALS.items() if answer in text), "")
    error = UnreadableError(f"{text}; {fix}" if fix else f"{text}{advice}")
    error.may_pass_soon = not fix
    return error


def comes_from_store(error: BaseException) -> bool:
    """Return whether an error is about an object store, and says nothing about the content of a file."""
    return isinstance(error, UnreadableError) or (
        isinstance(error, OSError) and error.errno is None and any(part in str(error) for part in STORE_ANSWERS)
    )


class WatchedFile:
    """A remote file that is open for a decoder, which may take an error of reading for the end of the file.

    It is read in blocks (`BlockFile`). `error` is the first error of reading.
    """

    def __init__(self, uri: str, handle: RandomAccess) -> None:
        self.error: OSError | None = None
        self._uri = uri
        with self._watched():
            self._handle = BlockFile(handle)

    def read(self, size: int = -1) -> bytes:
        with self._watched():
            return self._handle.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._watched():
            return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            with unreadable_errors(self._uri):
                yield
        except OSError as error:
            self.error = self.error or error
            raise


def check_readable(path: str, error: Exception) -> None:
    """Raise `OSError` if a local file that a decoder refused with `error` cannot be read.

    The file is read once more to know it: FFmpeg reports "input/output error" for damaged content, and takes a read
    that failed for the end of the file.
    """
    try:
        with open(path, "rb", buffering=0) as handle:
            while handle.read(READ_BYTES):
                pass
    except OSError as reading:
        raise reading from error
    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.errno in NOT_OF_CONTENT:
        raise UnreadableError(f"{path}: {cause}") from error
