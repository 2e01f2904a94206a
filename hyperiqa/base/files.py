"""Files that are written whole or not at all, and the folders that the program knows."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from hyperiqa.base.errors import UserError, reason_of

# The folder that holds this package: a checkout with the scripts, or site-packages once installed.
CHECKOUT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (CHECKOUT / "HyperIQASolver.py").is_file()
# Where users keep data sets and the cache: beside the scripts of a checkout, else in the working
# folder, never in site-packages.
HERE = CHECKOUT if IS_CHECKOUT else Path.cwd()
# hf://USER/NAME[@REVISION][/FILE]. A Path keeps only one of the two slashes.
HUB = re.compile(r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")

# What `write_whole` adds to a file's name, behind a dot in front, while it writes the file.
UNFINISHED = r"\.[a-z0-9_]{8}\.tmp"


def exists_or_on_hub(path: Path) -> bool:
    """Whether the path exists, or names a file or folder of the Hugging Face Hub.

    The Hub itself is asked only once the file is needed.
    """
    return HUB.fullmatch(str(path)) is not None or path.exists()


class _WatchedFile:
    """A file for writing that remembers why a write failed.

    torch.save replaces the OSError of a full disk by a RuntimeError that does not say so.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.flush = file.flush
        self.problem: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as problem:
            self.problem = problem
            raise


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a crash leaves the old file or the new one, never a part.

    content: text, bytes, or a function that writes to the open file that it is given.

    The content goes to a temporary file beside `path`, which replaces `path` once it is on the
    disk. Raises UserError where it cannot be written.
    """
    temporary: str | None = None
    watched: _WatchedFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(descriptor, "wb") as file:
            watched = _WatchedFile(file)
            if callable(content):
                content(watched)  # type: ignore[arg-type]
            else:
                watched.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files, but a result is as readable as any other new file. The system
        # tells the mask only to those who set it.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except (OSError, RuntimeError) as error:
        problem = error if isinstance(error, OSError) else getattr(watched, "problem", None)
        # A RuntimeError without a failed write is a bug in `content`, not a full disk.
        if problem is None:
            raise
        raise UserError(f"{path}: cannot be written: {reason_of(problem)}") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
