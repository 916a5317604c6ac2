"""Ctrl-C ends a command with one line and exit code 130, also while it imports. Standard library only."""

import os
import signal
import sys
from functools import partial

EXIT_CODE = 130  # 128 + SIGINT, as shells report it


def exit_on_interrupt(message: str) -> None:
    """Exit at once on Ctrl-C, with this line: for a process that has nothing to clean up, such as one that imports.

    A process that ignores Ctrl-C, as those that a script starts in the background do, goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, partial(exit_interrupted, message))


def raise_on_interrupt() -> None:
    """Raise KeyboardInterrupt on Ctrl-C again, if `exit_on_interrupt` was called."""
    if isinstance(signal.getsignal(signal.SIGINT), partial):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(message: str) -> SystemExit:
    """Print a line to stderr; return the exception that ends the process with exit code 130."""
    print(message, file=sys.stderr)
    error = SystemExit(message)
    error.code = EXIT_CODE
    return error


def exit_interrupted(message: str, number: int, frame) -> None:
    if sys.stderr is not None:
        os.write(sys.stderr.fileno(), f"{message}\n".encode())
    os._exit(EXIT_CODE)
