"""What the user names -> image files: files, folders, patterns, and paths on standard input."""

import glob
import os
import select
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hyperiqa.base.errors import UserError, first_five, reason_of
from hyperiqa.datasets.records import IMAGE_SUFFIXES

SUFFIXES = IMAGE_SUFFIXES | set(
    ".apng .avif .dib .gif .j2k .jfif .jpe .jpx .pbm .pgm .pnm .ppm .tga".split()
)
# Pictures that are not read here: passing them over is said.
OTHERS = set(
    ".heic .heif .hif .jxl .jxr .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw .psd .exr .hdr .svg .eps .ico".split()
)
LONGEST = 1 << 16  # bytes of a path on standard input; more means that it is something else
PAUSE = (
    0.2  # seconds without a path on standard input after which those before it are not kept waiting
)


def find_images(
    sources: Iterable[str], leave_out: Path | None = None, passed: list[str] | None = None
) -> list[str]:
    """The images of all sources but `-`, in order; `passed` is filled with the pictures of OTHERS. Raises UserError,
    naming every source that has none."""
    passed = [] if passed is None else passed
    found: list[str] = []
    problems: list[str] = []
    images: Iterable[str]
    for source in (source for source in sources if source != "-"):
        before = len(passed)
        try:
            if Path(source).is_dir():
                images, none = images_below(source, passed), "no images in this folder"
            elif Path(source).exists():
                images, none = [source], "this is where the results go"
            elif glob.has_magic(source):
                images, none = images_matching(source, passed), "no images match this pattern"
            else:
                images, none = [], "no such file or folder"
            kept = [image for image in images if leave_out is None or Path(image) != leave_out]
            found += kept
            problems += (
                [f"{source}: {none}{skipped_note(passed[before:], ', ')}"] if not kept else []
            )
        except (OSError, ValueError) as problem:  # a name that is too long, `**` within a name
            problems.append(f"{source}: {reason_of(problem)}")
    if problems:
        raise UserError("; ".join(problems[:5]) + ("; …" if len(problems) > 5 else ""))
    return found


def skipped_note(pictures: Sequence[str], before: str = "") -> str:
    """What is said of pictures that were passed over, "" without any."""
    suffixes = ", ".join(sorted({Path(picture).suffix.lower() for picture in pictures}))
    said = f"passed over {len(pictures)} pictures of formats that are not read here ({suffixes}): "
    return f"{before}{said}{first_five(pictures)}" if pictures else ""


def images_below(folder: str, passed: list[str]) -> Iterator[str]:
    """Image files in and below a folder, sorted; links are followed, each folder is entered once."""
    seen: set[tuple[int, int]] = set()
    unreadable: list[OSError] = []
    for here, folders, files in os.walk(folder, followlinks=True, onerror=unreadable.append):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield from _read_here(Path(here, name), passed)
    yield from (problem.filename for problem in unreadable)  # a row with the reason, like a file's


def _read_here(path: Path, passed: list[str]) -> Iterator[str]:
    """The path, where its suffix is one of an image; noted in `passed` where it is one of OTHERS."""
    if (suffix := path.suffix.lower()) in SUFFIXES:
        yield str(path)
    elif suffix in OTHERS:
        passed.append(str(path))


def images_matching(pattern: str, passed: list[str]) -> Iterator[str]:
    """Image files that a pattern matches, sorted, and those in the folders that it matches."""
    parts = Path(pattern).parts
    # A folder that is really called `a[1]` is no pattern.
    first = next(
        i
        for i, part in enumerate(parts)
        if glob.has_magic(part) and not Path(*parts[: i + 1]).exists()
    )
    hidden_too = any(part.startswith(".") for part in parts[first:])
    for path in sorted(Path(*parts[:first]).glob(str(Path(*parts[first:])))):
        if not hidden_too and any(part.startswith(".") for part in path.parts[first:]):
            continue
        if path.is_dir():
            yield from images_below(str(path), passed)
        else:
            yield from _read_here(path, passed)


def paths_from(descriptor: int) -> Iterator[str | None]:
    """Paths, one per line, as they come; None when none has come for a moment. Raises UserError."""
    rest, more = b"", True
    while more:
        if not select.select([descriptor], [], [], PAUSE)[0]:
            yield None
        data = os.read(descriptor, LONGEST)
        more = bool(data)
        *lines, rest = (rest + data + (b"" if more else b"\n")).split(b"\n")
        if len(rest) > LONGEST:
            raise UserError(
                f"standard input: expected a path per line, found a line of over {LONGEST} bytes"
            )
        yield from (os.fsdecode(line) for line in (line.rstrip(b"\r") for line in lines) if line)


def canonical_path(image: str) -> str:
    """What tells images apart: `a.jpg` and `./a.jpg` are one."""
    return str(Path(image).absolute())


def without_repeats(images: Iterable[str | None], done: set[str]) -> Iterator[str | None]:
    """The images (and Nones) without those whose place is in `done`, where each is entered."""
    for image in images:
        if image is None or canonical_path(image) not in done:
            done.update([canonical_path(image)] if image is not None else [])
            yield image
