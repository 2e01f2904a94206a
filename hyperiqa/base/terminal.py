"""Text that people read on a terminal or in a log, without anything that controls the terminal."""

import errno
import os
import re
from collections.abc import Callable
from typing import Any

# Control characters, separators of lines, overrides and isolates of the writing direction, and
# bytes of a name that are not UTF-8.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, kept: str = "") -> str:
    r"""The text with visible escapes, such as `\x1b` or `\n`, in place of control characters.

    Names and texts from files need it: they could clear the screen, or look like other lines.
    kept: characters that stay as they are.
    """
    steering = set(_STEERING.findall(text)) - set(kept)
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in steering})


class Stream:
    """Standard output or error that never ends the program, and writes no control characters.

    It writes a ? for a character that it cannot encode, and escapes (`printable`) for all control
    characters except line ends and tabs. Once its reader is gone, it drops the text: `| head` has
    seen enough, and a training goes on with its log.
    """

    def __init__(self, stream: Any):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        self._stream = stream

    def write(self, text: str) -> int:
        shown = text
        # A progress bar moves up by writing nothing else, and starts its line again by a first \r.
        if text.replace("\x1b[A", ""):
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
