"""What ends a program early: a mistake of the user's, a signal, or that there is nothing left to do."""

import importlib.util
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A mistake of the user's: shown as one line `error: …`, exit code 2, without a traceback.
    said: whether another process shows it; None: the first one does."""

    already_shown: bool | None = None


class NothingToDo(Exception):
    """What was asked for has been done before: shown as one line, exit code 0."""


class Interrupted(BaseException):
    """A signal asked the program to stop, and it has tidied up. Not an Exception: nobody is to swallow it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def first_five(names: Iterable[object]) -> str:
    """`a, b, c, d, e, …`: enough of a long list for the user to recognise what it is about."""
    said = [str(name) for name in names]
    return ", ".join(said[:5]) + (", …" if len(said) > 5 else "")


def not_installed(what: str, *packages: str) -> str:
    """What `what` needs and is not here, with the command that gets it; "" where all of it is."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{what} needs {', '.join(missing)}: pip install {' '.join(packages)}" if missing else ""


def reason_of(problem: BaseException) -> str:
    """Why something failed, in one line: the system's own words, else the exception's."""
    text = getattr(problem, "strerror", None) or f"{problem}".strip() or type(problem).__name__
    return " ".join(text.split())


@contextmanager
def reading_file(path: Path, what: str, *problems: Any) -> Iterator[None]:
    """Turn OSError, and the `problems` that a damaged file gives, into the UserError `path: what: reason`."""
    try:
        yield
    except UserError:
        raise
    except (OSError, *problems) as problem:
        # Where anything may come, what came says more than its words.
        name = (
            f"{type(problem).__name__} "
            if Exception in problems and not isinstance(problem, OSError)
            else ""
        )
        raise UserError(f"{path}: {what}: {name}{reason_of(problem)}") from None
