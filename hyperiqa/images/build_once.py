"""Folders that one process builds for all, and that get their name only when they are complete.

A folder holds one file of data and `index.json`, which is written last. Its name ends in a digest
of what it was made from. The user may keep other folders beside it: nothing is deleted that does
not hold exactly these files, and no link is followed.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hyperiqa.base import errors, files, schema

INDEX = "index.json"
# What reading a folder raises if it is damaged, or if no build made it.
DAMAGED = (OSError, ValueError, OverflowError, RecursionError)
OWN_FILES = re.compile(rf"images\.u8|features\.bin|index\.json|\.index\.json{files.UNFINISHED}")


def half_built(folder: Path) -> Path:
    """The folder in which `build_once` builds `folder`."""
    return folder.with_name(f".{folder.name}.tmp")


def build_once(
    folder: Path,
    opened: Callable[[], bool],
    build: Callable[[Path], None],
    waiting: str,
    contents: str,
    goes_on: bool = False,
) -> bool:
    """Make a folder that several processes may need, once; return whether this process made it.

    opened(): opens the folder, and returns False if it is missing or damaged.
    build(temporary): fills the temporary folder, which then gets its name.
    waiting: what a process prints that must wait for another one to build the folder.
    contents: what the folder holds, in words, for error messages.
    goes_on: whether `build` continues what a killed process has built. If not, that is removed.

    Raises UserError if the folder cannot be written, or holds files of the user's.
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
            # The process that held the lock before may have built the folder.
            if opened():
                return False
            _build_under_lock(folder, build, goes_on)
    except OSError as problem:
        raise errors.UserError(
            f"{problem.filename or folder}: the {contents} cannot be written: {problem.strerror}; "
            "give --cache_dir PATH or --no_cache"
        ) from None
    if not opened():
        raise RuntimeError(f"{folder} cannot be opened though it was just built")
    return True


def _build_under_lock(folder: Path, build: Callable[[Path], None], goes_on: bool) -> None:
    temporary = half_built(folder)
    # No other process is building: what is there is damaged, or was left by a killed process.
    _check_own(temporary)
    if not goes_on:
        remove_built(temporary)
    remove_built(folder)
    temporary.mkdir(exist_ok=goes_on)
    try:
        build(temporary)
        temporary.rename(folder)
    finally:
        if not goes_on:
            with contextlib.suppress(OSError):
                remove_built(temporary)


def _check_own(folder: Path) -> None:
    # A link or a file in place of the folder is the user's.
    other_files = [folder.name] if os.path.lexists(folder) else []
    if folder.is_dir() and not folder.is_symlink():
        other_files = [path.name for path in folder.iterdir() if not _is_own(path)]
    if other_files:
        raise errors.UserError(
            f"{folder}: expected nothing, or what an earlier run has stored, found "
            f"{errors.first_five(other_files)}; move it away, or give --cache_dir PATH or "
            "--no_cache"
        )


def _is_own(path: Path) -> bool:
    return bool(OWN_FILES.fullmatch(path.name)) and path.is_file() and not path.is_symlink()


def remove_built(folder: Path) -> None:
    """Delete a folder with what a build has made in it.

    If it holds anything else, it raises UserError and deletes nothing.
    """
    _check_own(folder)
    if folder.exists():
        # The index goes last: without it, the next run would not know the rest as its own.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == INDEX):
            path.unlink()
        folder.rmdir()


def remove_stale(
    cache_dir: Path,
    name: str,
    read: Callable[[Path], dict[str, Any]],
    is_current: Callable[[Path, dict], bool],
) -> None:
    """Delete the folders that no run can use any more.

    name: a regular expression for the part of their names before the digest.
    read(folder): the index of a complete folder. It raises one of DAMAGED for any other folder,
        which is then kept.
    is_current(folder, index): whether a run can use the folder.
    """
    for folder in cache_dir.iterdir():
        with contextlib.suppress(errors.UserError, *DAMAGED):
            if re.fullmatch(f"{name}_[0-9a-f]{{16}}", folder.name) and not is_current(
                folder, read(folder)
            ):
                remove_built(folder)


def read_index(folder: Path, index_schema: schema.Fields) -> dict[str, Any]:
    """The index of a complete folder. Raises one of DAMAGED if it does not fit the schema."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if problem := schema.mismatch(index, index_schema):
        raise ValueError(problem)
    return index
