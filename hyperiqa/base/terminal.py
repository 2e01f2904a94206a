"""Text that people read on a terminal or in a log: nothing in it steers the terminal."""

import errno
import os
import re
from collections.abc import Callable
from typing import Any

# Control characters, separators of lines, overrides and isolates of the writing direction, and
# bytes of a name that are not UTF-8.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# How tqdm goes up to the line of another bar.
_UP = "\x1b[A"


def printable(text: str, kept: str = "") -> str:
    r"""The text with visible escapes, such as `\x1b` or `\n`, for what would steer a terminal.

    Names and texts from files need it: they could clear the screen, or look like other lines.
    kept: characters that stay as they are.
    """
    letters = {letter for letter in _STEERING.findall(text) if letter not in kept}
    escapes = {letter: letter.encode("unicode_escape").decode() for letter in letters}
    return text.translate(str.maketrans(escapes))


class Stream:
    """Standard output or error that does not end the program, and that no text steers.

    It writes a ? for what it cannot encode, and escapes (`printable`) for all control characters
    but line ends and tabs. Once its reader has gone, it drops what is written: `| head` has seen
    enough, and a training goes on with its log.
    """

    def __init__(self, stream: Any):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        self._stream = stream

    def write(self, text: str) -> int:
        shown = text
        # A bar moves up by writing nothing else, and begins its line anew by a first \r.
        if text.replace(_UP, ""):
            content = text.removeprefix("\r")
            shown = text[: len(text) - len(content)] + printable(content, kept="\n\t")
        self._unbroken(lambda: self._stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._unbroken(self._stream.flush)

    def _unbroken(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as problem:
            # EPIPE: the pipe is closed. EIO: the terminal is gone.
            if problem.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
