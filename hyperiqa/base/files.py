"""Files that are written whole or not at all."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from hyperiqa.base.errors import UserError, reason_of

# The folder that holds this package: a checkout with the scripts, or site-packages once it is installed.
CHECKOUT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (CHECKOUT / "HyperIQASolver.py").is_file()
# Where users keep data sets and the cache: beside the scripts, or where they stand; never in site-packages.
HERE = CHECKOUT if IS_CHECKOUT else Path.cwd()
# hf://USER/NAME[@REVISION][/FILE], also as a Path leaves it, with one of the slashes.
HUB = re.compile(r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")


def exists_or_on_hub(path: Path) -> bool:
    """Whether there is such a file or folder; one of the Hugging Face Hub is looked for only once it is needed."""
    return HUB.fullmatch(str(path)) is not None or path.exists()


class _Watched:
    """A file for writing that remembers why a write failed: torch.save hides it behind an error of its own."""

    def __init__(self, file: BinaryIO):
        self.file, self.flush = file, file.flush
        self.problem: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as problem:
            self.problem = problem
            raise


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write the content, or what `content(file)` writes, to a file beside `path`, and move it there once it is safe.
    A crash leaves the old file or the new one, never a part. Raises UserError where it cannot be written."""
    temporary, watched = None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(descriptor, "wb") as file:
            watched = _Watched(file)
            if callable(content):
                content(watched)  # type: ignore[arg-type]
            else:
                watched.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.umask(mask := os.umask(0))
        Path(temporary).chmod(
            0o666 & ~mask
        )  # mkstemp makes private files; a result is as readable as any other
        Path(temporary).replace(path)
    except (OSError, RuntimeError) as error:
        problem = error if isinstance(error, OSError) else getattr(watched, "problem", None)
        if problem is None:
            raise
        raise UserError(f"{path}: cannot be written: {reason_of(problem)}") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
