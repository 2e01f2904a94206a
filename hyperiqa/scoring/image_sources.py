"""From what the user names to images: files, folders, patterns, paths on standard input.

Many images may also lie in a few files, the stores: shards are tar files of images, and lists are
tables in CSV or Parquet with a column of paths or of the bytes of image files.
"""

import contextlib
import csv
import glob
import hashlib
import itertools
import os
import re
import select
import tarfile
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from hyperiqa.base.errors import UserError, counted, first_five, not_installed, reason_of
from hyperiqa.datasets.records import IMAGE_SUFFIXES

SUFFIXES = IMAGE_SUFFIXES | set(
    ".apng .avif .dib .gif .j2k .jfif .jpe .jpx .pbm .pgm .pnm .ppm .tga".split()
)
# Pictures that are not read here. The user is told that they were passed over.
UNREAD_SUFFIXES = set(
    ".heic .heif .hif .jxl .jxr .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw .psd .exr .hdr "
    ".svg .eps .ico".split()
)
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LIST_SUFFIXES = (".csv", ".parquet")
# The most bytes of a path on standard input, twice what systems take: a longer line is something
# else.
LONGEST = 1 << 13
# The text in a PNG by which a map is known wherever it lies: it says what the map was made with.
MARK = "hyperiqa"


def find_images(
    sources: Iterable[str], outputs: Container[Path] = (), passed: list[str] | None = None
) -> list[str]:
    """The images of all sources but `-`, in order.

    sources: files, folders, patterns and stores, such as `photos-{0000..0999}.tar`. The latter are
    returned as they are. outputs: where the results go; see `is_result`. passed: filled with the
    pictures of UNREAD_SUFFIXES that were passed over. Raises UserError, naming every source that
    has no images.
    """
    passed = [] if passed is None else passed
    images: list[str] = []
    problems: list[str] = []
    for source in itertools.chain.from_iterable(map(with_numbers, sources)):
        if source == "-":
            continue
        passed_before = len(passed)
        try:
            candidates, reason_for_none = _images_of(source, passed)
            kept = [image for image in candidates if not is_result(image, outputs)]
        # The name is too long, or has `**` within it, for example.
        except (OSError, ValueError) as problem:
            problems.append(f"{source}: {reason_of(problem)}")
            continue
        images += kept
        if not kept:
            problems.append(
                f"{source}: {reason_for_none}{skipped_note(passed[passed_before:], ', ')}"
            )
    if problems:
        raise UserError("; ".join(problems[:5]) + ("; …" if len(problems) > 5 else ""))
    return images


def _images_of(source: str, passed: list[str]) -> tuple[Iterable[str], str]:
    """The images of a source, and the reason to give if none of them is taken."""
    if Path(source).is_dir():
        return images_below(source, passed), "no images in this folder"
    # A file that the user names is taken whatever its suffix, and it may be called `a*.png`.
    if Path(source).exists():
        return [source], "a result, which is no image to score"
    if _pattern_start(Path(source).parts) is not None:
        return images_matching(source, passed), "no images match this pattern"
    return [], "no such file or folder"


def with_numbers(source: str) -> list[str]:
    """The names that a source with a range in braces stands for: `a-{08..10}` is three names.

    The numbers are as long as the first one. A file that is really called so is meant itself.
    """
    parts = re.fullmatch(r"(.*?)\{(\d+)\.\.(\d+)\}(.*)", source, re.DOTALL)
    if parts is None or Path(source).exists():
        return [source]
    before, first, last, after = parts.groups()
    names = [
        f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)
    ]
    return list(itertools.chain.from_iterable(map(with_numbers, names))) or [source]


def skipped_note(pictures: Sequence[str], before: str = "") -> str:
    """What the user is told about pictures that were passed over, after `before`; "" if none."""
    if not pictures:
        return ""
    suffixes = ", ".join(sorted({Path(picture).suffix.lower() for picture in pictures}))
    return (
        f"{before}passed over {counted(len(pictures), 'picture')} of formats that are not read "
        f"here ({suffixes}): {first_five(pictures)}"
    )


def images_below(folder: str, passed: list[str]) -> Iterator[str]:
    """Image files in and below a folder, sorted. Links are followed; each folder is entered once.

    Hidden files and folders are left out. Folders that cannot be read come last, as if they were
    images, so that they get a row with the reason like a file.
    """
    entered: set[tuple[int, int]] = set()
    unreadable: list[OSError] = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=unreadable.append):
        status = Path(place).stat()
        # A link may lead to a folder above it: the walk would never end.
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            yield from _readable(Path(place, name), passed)
    yield from (problem.filename for problem in unreadable)


def _readable(path: Path, passed: list[str]) -> Iterator[str]:
    """The path, if its suffix is an image's; `passed` gets it if it is one of UNREAD_SUFFIXES."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        yield str(path)
    elif suffix in UNREAD_SUFFIXES:
        passed.append(str(path))


def images_matching(pattern: str, passed: list[str]) -> Iterator[str]:
    """Image files that a pattern matches, sorted, and those in the folders that it matches.

    `**` stands for any number of folders. Hidden names match only where the pattern names one, and
    stores only where it ends like one.
    """
    parts = Path(pattern).parts
    first = _pattern_start(parts)
    for path in sorted(Path(*parts[:first]).glob(str(Path(*parts[first:])))):
        if _has_hidden(path.parts[first:]) and not _has_hidden(parts[first:]):
            continue
        if path.is_dir():
            yield from images_below(str(path), passed)
        elif is_store(pattern):
            yield str(path)
        else:
            yield from _readable(path, passed)


def _pattern_start(parts: Sequence[str]) -> int | None:
    """Which part of a path is its first pattern; None if it has none.

    A folder that is really called `a[1]` is no pattern.
    """
    for i, part in enumerate(parts):
        if glob.has_magic(part) and not Path(*parts[: i + 1]).exists():
            return i
    return None


def _has_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def paths_from(descriptor: int) -> Iterator[str | None]:
    """Paths, one per line, as they come from a file descriptor; None when none came for a moment.

    Raises UserError for a line that is too long to be a path.
    """
    rest = b""
    ended = False
    while not ended:
        # After 0.2 seconds without a path, those before it need not wait any longer.
        if not select.select([descriptor], [], [], 0.2)[0]:
            yield None
        data = os.read(descriptor, LONGEST)
        ended = not data
        # The last line may lack its line end.
        *lines, rest = (rest + (data or b"\n")).split(b"\n")
        if max(map(len, [*lines, rest])) > LONGEST:
            raise UserError(
                f"standard input: expected a path per line, found a line of over {LONGEST} bytes"
            )
        for line in lines:
            if path := line.rstrip(b"\r"):
                yield os.fsdecode(path)


@dataclass(frozen=True)
class StoredImage:
    """An image in a store: its name, and the bytes of its file or the reason why there are none."""

    name: str
    data: bytes = b""
    problem: str | None = None

    def __str__(self) -> str:
        return self.name


def is_store(source: str) -> bool:
    """Whether a source is a shard or a list, by its name."""
    return source.lower().endswith(SHARD_SUFFIXES + LIST_SUFFIXES) and not Path(source).is_dir()


def is_share(text: str) -> bool:
    """Whether a text is a share `i/n`, i from 0 to n-1."""
    numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    return numbers is not None and int(numbers[1]) < int(numbers[2])


def shared_out(sources: Iterable[str], share: str) -> list[str]:
    """The part of one of n processes: every n-th image, and every n-th store.

    share: `i/n`, i from 0 to n-1.
    """
    first, step = map(int, share.split("/"))
    return sorted(sources, key=is_store)[first::step]


def check_lists(sources: Iterable[str], column: str) -> None:
    """Raise UserError for a list that has no such column, or needs a package that is missing."""
    for source in filter(_is_list, sources):
        row: dict[str, Any] = {column: None}
        # A list that cannot be read gets a row with the reason, as an image does.
        with contextlib.suppress(OSError, ValueError, csv.Error):
            row = next(_rows(source), row)
        if column not in row:
            raise UserError(
                f"{source}: no column {column}; found {first_five(row)}; --image_column says "
                "which column has the paths or bytes of the images"
            )


def images_in(store: str, column: str, passed: list[str]) -> Iterator[str | StoredImage]:
    """The images of a store, in constant memory but for their names.

    column: the column of a list. passed: see `find_images`. A store that has no images, or that
    cannot be read to its end, is itself yielded last, with the reason.
    """
    number = 0
    images = _listed(store, column) if _is_list(store) else _members(store, passed)
    try:
        for image in images:
            number += 1
            yield image
        if not number:
            yield StoredImage(store, problem="no images in it")
    # A damaged file may cause any exception.
    except Exception as problem:
        yield StoredImage(
            store,
            problem=f"cannot be read on after {counted(number, 'image')}: {reason_of(problem)}",
        )


def _is_list(source: str) -> bool:
    return source.lower().endswith(LIST_SUFFIXES)


def _members(shard: str, passed: list[str]) -> Iterator[StoredImage]:
    # Hidden members and those that are no images are left out, as in folders.
    names: set[str] = set()
    with tarfile.open(shard, "r|*") as archive:
        while member := archive.next():
            # The archive would keep every header.
            archive.members.clear()  # type: ignore[attr-defined]
            parts = [part for part in Path(member.name).parts if part not in ("/", "..")]
            # A header may claim any size, and tarfile goes through all of it, even past the end. So
            # many bytes are no photograph, and would fill the memory.
            if member.size > 1 << 30:
                raise ValueError(f"{member.name} claims to have over 1 GiB")
            if member.isdir() or _has_hidden(parts):
                continue
            for name in _readable(Path(shard, *parts), passed):
                if name in names:
                    yield StoredImage(
                        f"{name}@{member.offset}",
                        problem="an earlier image in this shard has the same name",
                    )
                elif not member.isfile():
                    yield StoredImage(name, problem="a link or a device; expected a file")
                else:
                    yield StoredImage(name, archive.extractfile(member).read())
                names.add(name)
        # Two blocks of zeros end a shard, but tarfile takes any damaged header for the end.
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("damaged, or cut off")


def _listed(path: str, column: str) -> Iterator[str | StoredImage]:
    for number, row in enumerate(_rows(path, [column])):
        cell = row[column]
        # The data sets of the Hugging Face Hub have both in one cell.
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str) and cell:
            yield str(Path(path).parent / cell)
        elif isinstance(cell, bytes):
            yield StoredImage(f"{path}/{number}", cell)
        else:
            yield StoredImage(f"{path}/{number}", problem="neither a path nor bytes in this row")


def _rows(path: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    # The rows of a list, a few of them in memory. columns: those that are needed, None for all.
    if path.lower().endswith(".csv"):
        # Spreadsheets put a mark at the beginning. Names of files may have any bytes.
        with Path(path).open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from csv.DictReader(file)
        return
    if problem := not_installed(path, "pyarrow"):
        raise UserError(problem)
    from pyarrow import parquet

    # Without buffers, which hold whole groups of rows.
    with parquet.ParquetFile(path, pre_buffer=False) as table:
        for batch in table.iter_batches(64, columns=columns):
            yield from batch.to_pylist()


def canonical_path(image: str | StoredImage) -> str:
    """The name that tells images apart: `a.jpg`, `./a.jpg` and `b/../a.jpg` are the same image."""
    path = Path(str(image)).absolute()
    # Behind a link, `..` leads to where only the system knows.
    if ".." in path.parts:
        path = path.parent.resolve() / path.name
    return str(path)


def map_path(folder: Path, image: str) -> Path:
    """The file of an image's map in a folder: the same in every run, and no other image's.

    The name has the image's own and its folder's, as far as they fit, and a digest of the whole
    path. It is never hidden, and has at most 200 bytes.
    """
    path = canonical_path(image)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    words = re.sub(r"[^\w.-]+", "_", "_".join(Path(path).parts[-2:]))
    # The end of a name tells most. A letter of several bytes may be cut.
    end = words.encode()[-160:].decode(errors="ignore")
    return folder / f"{end}-{digest}.png".lstrip("._-")


def mark_of(path: Path) -> str | None:
    """What the map in this file was made with; None where it is no map of `predict.py`'s."""
    # Only files with the name of a map are opened to look for the mark.
    if re.fullmatch(r"(?:.*-)?[0-9a-f]{16}\.png", path.name, re.DOTALL) and path.is_file():
        # Decoders raise what they like at foreign files.
        with contextlib.suppress(Exception), Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get(MARK)
    return None


def is_result(image: str, outputs: Container[Path]) -> bool:
    """Whether the file is one of the outputs, or a map from whatever run: never to be scored.

    outputs: without links (`Path.resolve`).
    """
    path = Path(image)
    return mark_of(path) is not None or path.resolve() in outputs


def without_repeats(images: Iterable[Any], done: set[str]) -> Iterator[Any]:
    """The images whose canonical path is not in `done`, each only once, and every None.

    Enters each image into `done` before it is yielded.
    """
    for image in images:
        if image is None:
            yield None
        elif canonical_path(image) not in done:
            done.add(canonical_path(image))
            yield image
