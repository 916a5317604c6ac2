"""The standard streams of a command, and text that is safe to show there. Standard library only.

Names of files, keys of checkpoints and texts of others may hold terminal escape sequences, line ends and marks that
reverse the direction of writing. What people read shows these as escapes, such as `\\x1b`; files such as csv, JSON and
npz keep them as they are.
"""

import os
import re
import sys

# C0 and C1 controls, surrogates, line and paragraph separators, and Unicode's controls of the direction of writing
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
CURSOR_MOVES = re.compile("(\n|\x1b\\[A)*")  # of several progress bars


def printable(text: str) -> str:
    """Return the text in one line, with escapes in place of line ends, tabs and control characters.

    >>> printable("a\\tb\\x1b[2J\\u202e.mp4")
    'a\\\\tb\\\\x1b[2J\\\\u202e.mp4'
    """
    return escape_controls(text).replace("\n", "\\n").replace("\t", "\\t")


def escape_controls(text: str) -> str:
    """Return the text with escapes in place of control characters other than line end and tab."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TerminalStream:
    """A text stream that escapes control characters; progress bars may return to the start of their lines."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text; return its length."""
        if not CURSOR_MOVES.fullmatch(text):
            inner = text.strip("\r")
            start = text[: len(text) - len(text.lstrip("\r"))]
            text = start + escape_controls(inner) + text[len(start) + len(inner) :]
        self._stream.write(text)
        return len(text)

    def writelines(self, lines) -> None:
        """Write all texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def open_standard_streams() -> None:
    """Prepare the standard streams: open what is missing, escape controls, and accept every character.

    This process may have been started without some (`2>&-`). Python has None for them, which progress bars cannot write
    to, and the next file to be opened would take the stream's number, to which libraries in C write. Characters that
    the encoding of the terminal lacks are written as escapes, so that the last line of a run cannot fail.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8")
            try:
                os.fstat(number)
            except OSError:
                os.dup2(null.fileno(), number)
            setattr(sys, name, null)
        stream = getattr(sys, name)
        if mode == "w" and not isinstance(stream, TerminalStream):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, TerminalStream(stream))
