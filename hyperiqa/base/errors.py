"""The ways a program ends early: a mistake of the user's, a signal, or nothing left to do."""

import importlib.util
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperiqa.base.terminal import printable


class UserError(Exception):
    """A mistake of the user's: shown as one line `error: …`, exit code 2, without a traceback.

    already_shown: whether another process of the run shows the line. If it is None, the first
    process shows it.
    """

    already_shown: bool | None = None


class NothingToDo(Exception):
    """The requested work was done before: shown as one line, exit code 0."""


class Interrupted(BaseException):
    """A signal asked the program to stop, and the program has tidied up.

    It is not an Exception, so that no `except Exception` on the way swallows it.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def first_five(names: Iterable[object]) -> str:
    """`a, b, c, d, e, …`: enough of a long list for the user to recognise it, on one line."""
    texts = [printable(str(name)) for name in names]
    return ", ".join(texts[:5]) + (", …" if len(texts) > 5 else "")


def counted(number: int, one: str, several: str = "") -> str:
    """A number and what it counts, such as `1 image` or `2,010 images`.

    several: the words after any number but one, if they are not `one` with an s.
    """
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def not_installed(feature: str, *packages: str) -> str:
    """The missing packages that a feature needs, with the command that installs them.

    Returns "" if all packages are installed.
    """
    # A name may have an extra, such as ray[data].
    missing = [
        name for name in packages if importlib.util.find_spec(name.partition("[")[0]) is None
    ]
    if not missing:
        return ""
    return f"{feature} needs {', '.join(missing)}: pip install {' '.join(packages)}"


def reason_of(problem: BaseException) -> str:
    """Why something failed, in one line: the system's own words, else the exception's."""
    text = getattr(problem, "strerror", None) or f"{problem}".strip() or type(problem).__name__
    return " ".join(text.split())


@contextmanager
def reading_file(path: Path, what: str, *problems: Any) -> Iterator[None]:
    """Turn the exceptions of a file that cannot be read into a UserError `path: what: reason`.

    what: the failure in words, such as `cannot be read`.
    problems: the exceptions that a damaged file causes; OSError is always among them.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, *problems) as problem:
        reason = reason_of(problem)
        # A caller that catches every exception may get one with a meaningless text, such as "0" for
        # a KeyError. Its type says more.
        if Exception in problems and not isinstance(problem, OSError):
            reason = f"{type(problem).__name__} {reason}"
        raise UserError(f"{path}: {what}: {reason}") from None
