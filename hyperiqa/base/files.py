"""Files that are written whole or not at all, and the folders that the program knows."""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from hyperiqa.base.errors import UserError, reason_of

# The folder that holds this package: a checkout with the scripts, or site-packages once installed.
CHECKOUT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (CHECKOUT / "HyperIQASolver.py").is_file()
# Where users keep data sets and the cache: beside the scripts of a checkout, else in the working
# folder, never in site-packages.
HERE = CHECKOUT if IS_CHECKOUT else Path.cwd()
# USER/NAME[@REVISION][/FILE] of a model, as huggingface_hub's `parse_hf_uri` reads it: of all
# revisions, only refs/pr/N and refs/convert/NAME have slashes. What (?>…) matches is final.
_ON_HUB = re.compile(
    r"(?>(?:models/)?)(?!(?:datasets|spaces|kernels|buckets)/)(?P<repo>\w[\w.-]*/\w[\w.-]*)"
    r"(?:@(?P<revision>(?>refs/(?:pr/\d+|convert/[\w.-]+)|[^/]+)))?(?:/(?P<file>.+))?"
)
# The address of a page of the Hub, in which `/tree/REVISION/FILE` stands for `@REVISION/FILE`.
_PAGE = re.compile(
    r"(?P<host>[^/?#]+)/(?P<repo>(?:models/)?[^/?#]+/[^/?#]+)"
    r"(?:/(?:blame|blob|raw|resolve|tree)(?:/(?P<rest>[^?#]+?))?)?/?(?:[?#].*)?"
)
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")


def hub_file(path: Path) -> tuple[str, str | None, str] | None:
    """(repository, revision or None, file or "") that a name means on the Hugging Face Hub.

    None where it is a path of this machine. The name is `hf://USER/NAME[@REVISION][/FILE]` or the
    address of a page or file of the Hub. Raises UserError for other names of these forms. The Hub
    itself is not asked.
    """
    scheme, colon, rest = str(path).partition(":/")
    if not colon or scheme not in ("hf", "http", "https"):
        return None
    # A Path keeps only one of the two slashes.
    location = rest.lstrip("/")
    name = _ON_HUB.fullmatch(location if scheme == "hf" else _location_of_page(location))
    if name is None:
        raise UserError(
            f"{scheme}://{location}: expected hf://USER/NAME[@REVISION][/FILE] of a model, "
            "or the address of its page on huggingface.co"
        )
    revision = unquote(name["revision"] or "") or None
    # The Hub's client makes these names folders of its cache.
    for names in filter(None, (revision, name["file"])):
        if not {"", ".", ".."}.isdisjoint(names.split("/")):
            raise UserError(f"{scheme}://{location}: expected a path without .. in {names}")
    return name["repo"], revision, name["file"] or ""


def _location_of_page(address: str) -> str:
    """What stands after `hf://` for the address of a page of the Hub; "" for other addresses."""
    own_host = os.environ.get("HF_ENDPOINT", "").rpartition("://")[2].strip("/")
    page = _PAGE.fullmatch(address)
    if page is None or page["host"].lower() not in (*_HOSTS, own_host):
        return ""
    if not page["rest"]:
        return page["repo"]
    # The slash of a revision such as `new/idea` stays encoded, as in hf://.
    names = [unquote(name).replace("/", "%2F") for name in page["rest"].split("/")]
    return f"{page['repo']}@{'/'.join(names)}"


# What `write_whole` adds to a file's name, behind a dot in front, while it writes the file.
UNFINISHED = r"\.[a-z0-9_]{8}\.tmp"


def exists_or_on_hub(path: Path) -> bool:
    """Whether the path exists, or names a file or folder of the Hugging Face Hub.

    The Hub itself is asked only once the file is needed. Raises as `hub_file`.
    """
    return hub_file(path) is not None or path.exists()


def known_place(path: str | Path) -> Path | None:
    """A path that a file names, where a folder or a regular file with content lies; else None.

    Nothing else is to be opened at the word of a file: a pipe or a device may never end, and files
    of the kernel, which seem to be empty, may wait.
    """
    place = Path(path)
    # The system may refuse a name as such: too long, or with a null character.
    with contextlib.suppress(OSError, ValueError):
        if place.is_dir() or (place.is_file() and place.stat().st_size):
            return place
    return None


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


def can_write(path: Path) -> bool:
    """Whether the system lets a file or folder be written or made there.

    To be asked before the work whose result goes there.
    """
    place = path
    while not os.access(place, os.F_OK):
        place = place.parent
    return os.access(place, os.W_OK) and (place == path or place.is_dir())


def remove_unfinished(folder: Path, names: str, age: float = 0) -> None:
    """Delete the temporary files that killed processes left in the folder, where it is possible.

    names: a regular expression of the files that `write_whole` was writing.
    age: the seconds since when nobody may have written to them.
    """
    pattern = re.compile(rf"\.(?:{names}){UNFINISHED}")
    latest = time.time() - age
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            # Of a link, the link itself goes, never the file that it leads to.
            if pattern.fullmatch(path.name) and path.lstat().st_mtime <= latest:
                path.unlink()


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a crash leaves the old file or the new one, never a part.

    content: text, bytes, or a function that writes to the open file that it is given.

    The content goes to a temporary file beside `path`, which replaces `path` once it is on the
    disk. One that a killed process left there is deleted an hour after it was last written to.
    Raises UserError where it cannot be written.
    """
    temporary: str | None = None
    watched: _WatchedFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent, re.escape(path.name), age=3600)
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
