"""The standard streams of a command. Standard library only."""

import os
import sys


def open_standard_streams() -> None:
    """Open the null device in place of the standard streams that this process was started without (`2>&-`).

    Python has None for them, which progress bars cannot write to, and the next file to be opened would take the
    stream's number, to which libraries in C write.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8")
            try:
                os.fstat(number)
            except OSError:
                os.dup2(null.fileno(), number)
            setattr(sys, name, null)
