"""Folders that one process builds for all, and that appear under their name only when they are complete."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from hyperiqa.base.errors import UserError


def half_built(folder: Path) -> Path:
    """Where `build_once` builds a folder."""
    return folder.with_name(f".{folder.name}.tmp")


def build_once(
    folder: Path,
    opened: Callable[[], bool],
    build: Callable[[Path], None],
    waiting: str,
    what: str,
    goes_on: bool = False,
) -> bool:
    """Make a folder that appears under its name only when it is complete; returns whether this process made it.
    opened: opens it where it is complete; build(temporary): fills it, under a lock: who comes meanwhile says `waiting`
    and waits. goes_on: what a killed process had built is handed to `build`, not removed. Raises UserError."""
    temporary = half_built(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(waiting, file=sys.stderr)
            lock.acquire()
        try:
            if opened():
                return False
            # As no one else is building, half-built folders are those of killed runs.
            for leftover in (folder,) if goes_on else (temporary, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir(exist_ok=goes_on)
            try:
                build(temporary)
                temporary.rename(folder)
            finally:
                if not goes_on:
                    shutil.rmtree(temporary, ignore_errors=True)
        finally:
            lock.release()
    except OSError as problem:
        said = f"{problem.filename or folder}: the {what} cannot be written: {problem.strerror}"
        raise UserError(f"{said}; give --cache_dir PATH or --no_cache") from None
    if not opened():
        raise RuntimeError(f"{folder} cannot be opened though it was just built")
    return True
