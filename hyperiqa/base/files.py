"""Files that are written whole or not at all, and the folders that the program knows."""

import contextlib
import csv
import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from hyperiqa.base import errors, public_models

# The folder that contains this package: a checkout with the scripts, or site-packages.
CHECKOUT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (CHECKOUT / "HyperIQASolver.py").is_file()
# The default folder for data sets and the cache: the checkout with the scripts, or the working
# folder if there is no checkout. It is never site-packages.
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
    """(repository, revision or None, file or "") that a name stands for on the Hugging Face Hub.

    The name is `hf://USER/NAME[@REVISION][/FILE]` or the address of a page or file of the Hub.
    Returns None for a path on this machine. Raises UserError for any other name that starts like
    these. The Hub itself is not asked.
    """
    scheme, colon, rest = str(path).partition(":/")
    if not colon or scheme not in ("hf", "http", "https"):
        return None
    # A Path keeps only one of the two slashes.
    location = rest.lstrip("/")
    name = _ON_HUB.fullmatch(location if scheme == "hf" else _location_of_page(location))
    if name is None:
        raise errors.UserError(
            f"{scheme}://{location}: expected hf://USER/NAME[@REVISION][/FILE] of a model, "
            "or the address of its page on huggingface.co"
        )
    revision = unquote(name["revision"] or "") or None
    # The Hub's client turns these names into folders of its cache.
    for names in filter(None, (revision, name["file"])):
        if not {"", ".", ".."}.isdisjoint(names.split("/")):
            raise errors.UserError(f"{scheme}://{location}: expected a path without .. in {names}")
    return name["repo"], revision, name["file"] or ""


def _location_of_page(address: str) -> str:
    # In the form that follows `hf://`; "" for any address that is not on the Hub.
    own_host = os.environ.get("HF_ENDPOINT", "").rpartition("://")[2].strip("/")
    page = _PAGE.fullmatch(address)
    if page is None or page["host"].lower() not in (*_HOSTS, own_host):
        return ""
    if not page["rest"]:
        return page["repo"]
    # The slash of a revision such as `new/idea` stays encoded, as in hf://.
    names = [unquote(name).replace("/", "%2F") for name in page["rest"].split("/")]
    return f"{page['repo']}@{'/'.join(names)}"


# While `write_whole` writes a file, its name begins with a dot and ends in this.
UNFINISHED = r"\.[a-z0-9_]{8}\.tmp"


def exists_or_on_hub(path: Path) -> bool:
    """Whether the path exists, names a file or folder of the Hugging Face Hub, or a public model.

    The Hub itself is asked only once the file is needed. Raises as `hub_file`.
    """
    return hub_file(path) is not None or path.exists() or str(path) in public_models.PUBLIC_MODELS


def known_place(path: str | Path) -> Path | None:
    """A path that a file names, if it is a folder or a regular file with content; else None.

    Nothing else may be opened because a file says so: a pipe or a device may never end, and reading
    a file of the kernel, which seems to be empty, may block.
    """
    place = Path(path)
    # The system may refuse a name as such: too long, or with a null character.
    with contextlib.suppress(OSError, ValueError):
        if place.is_dir() or (place.is_file() and place.stat().st_size):
            return place
    return None


def can_write(path: Path) -> bool:
    """Whether the system allows a file or folder to be written there.

    Ask it before work that has its result written there.
    """
    # The nearest folder that exists decides about a path that does not.
    place = next(place for place in (path, *path.parents) if os.access(place, os.F_OK))
    return os.access(place, os.W_OK) and (place == path or place.is_dir())


def remove_unfinished(folder: Path, names: str, age: float = 0) -> None:
    """Delete the temporary files that killed processes left in the folder, if that is possible.

    names: a regular expression for the files that `write_whole` was writing.
    age: only files that were last written to at least so many seconds ago are deleted.
    """
    pattern = re.compile(rf"\.(?:{names}){UNFINISHED}")
    latest = time.time() - age
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            # For a link, this deletes the link itself, never the file that it points to.
            if pattern.fullmatch(path.name) and path.lstat().st_mtime <= latest:
                path.unlink()


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a crash leaves the old file or the new one, never a part.

    content: text, bytes, or a function that writes to the open file that it is given.

    The content goes to a temporary file beside `path`, which replaces `path` once it is on the
    disk. A temporary file that a killed process left there is deleted an hour after it was last
    written to. Raises UserError if the file cannot be written.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent, re.escape(path.name), age=3600)
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files, but a result should be as readable as any other new file. The
        # system tells the mask only to those who set it.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except (OSError, RuntimeError) as error:
        # torch.save replaces the OSError of a full disk by a RuntimeError that does not say so.
        problem = error if isinstance(error, OSError) else error.__context__
        # A RuntimeError without a failed write is a bug in `content`.
        if not isinstance(problem, OSError):
            raise
        raise errors.UserError(f"{path}: cannot be written: {errors.reason_of(problem)}") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table as CSV, whole or not at all. Raises UserError if it cannot be written.

    A cell that a row lacks is empty, and what a row has beyond these columns is left out.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
