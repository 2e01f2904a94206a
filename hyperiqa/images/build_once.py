"""Folders that one process builds for all, and that appear under their name only when complete."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from hyperiqa.base.errors import UserError


def half_built(folder: Path) -> Path:
    """The folder in which `build_once` builds `folder`."""
    return folder.with_name(f".{folder.name}.tmp")


def build_once(
    folder: Path,
    opened: Callable[[], bool],
    build: Callable[[Path], None],
    waiting: str,
    what: str,
    goes_on: bool = False,
) -> bool:
    """Make a folder that several processes may need, once; return whether this process made it.

    opened(): opens the folder, and returns False where it is missing or damaged.
    build(temporary): fills the temporary folder, which then gets its name.
    waiting: printed by a process that must wait for another one that builds.
    what: the contents in words, for the message of an error.
    goes_on: whether `build` continues what a killed process has built; else that is removed.

    Raises UserError where the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            held_lock = lock.acquire(blocking=False)
        except Timeout:
            print(waiting, file=sys.stderr)
            held_lock = lock.acquire()
        with held_lock:
            # The process that held the lock before may have built it.
            if opened():
                return False
            _build_under_lock(folder, build, goes_on)
    except OSError as problem:
        raise UserError(
            f"{problem.filename or folder}: the {what} cannot be written: {problem.strerror}; "
            "give --cache_dir PATH or --no_cache"
        ) from None
    if not opened():
        raise RuntimeError(f"{folder} cannot be opened though it was just built")
    return True


def _build_under_lock(folder: Path, build: Callable[[Path], None], goes_on: bool) -> None:
    temporary = half_built(folder)
    # No other process is building: what lies there is damaged, or was left by a killed process.
    if not goes_on:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.mkdir(exist_ok=goes_on)
    try:
        build(temporary)
        temporary.rename(folder)
    finally:
        if not goes_on:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_stale(folders: Iterable[Path], is_current: Callable[[Path, dict], bool]) -> None:
    """Delete the folders that no run can use any more.

    is_current(folder, index): judges a folder by the contents of its index.json. A folder whose
    index is missing or damaged is deleted too.
    """
    for folder in folders:
        try:
            usable = is_current(folder, json.loads((folder / "index.json").read_text()))
        except (OSError, ValueError, KeyError):
            usable = False
        if not usable:
            shutil.rmtree(folder, ignore_errors=True)
