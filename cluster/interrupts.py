"""The end of a command from another thread of its process."""

from __future__ import annotations

import signal
import threading


def interrupt_main_thread() -> None:
    """Let the main thread raise `KeyboardInterrupt`, as Ctrl-C does; a wait of it ends, too."""
    # A process that a shell started in the background ignores SIGINT. The command line takes SIGTERM as SIGINT.
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    number = signal.SIGTERM if is_ignored else signal.SIGINT
    signal.pthread_kill(threading.main_thread().ident or 0, number)
