"""Files of scores: a row per image as CSV or JSON lines, written through at once and taken up again after a kill.

A row has the columns image, score, error and made_with; the last names what the score depends on, so that rows of
different models or settings are never mixed unnoticed."""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperiqa.base.errors import UserError, reason_of
from hyperiqa.base.files import write_whole

COLUMNS = ("image", "score", "error", "made_with")
STARTS = {"csv": b"image,score", "jsonl": b'{"image": '}  # of every such file
LONGEST = 1 << 16  # bytes of a row; more means that it is something else


class ScoreFile:
    """Rows to the end of a file, or to standard output (None). Raises UserError where they cannot be written.
    Each is written through at once: nothing is left in a buffer that could fail, or get lost, later."""

    def __init__(self, path: Path | None, form: str):
        self.name, self.form = str(path or "standard output"), form
        self.file: Any = sys.stdout
        try:
            if path or _is_real_output():
                self.file = (
                    path.open("ab", buffering=0)
                    if path
                    else os.fdopen(1, "wb", buffering=0, closefd=False)
                )
            if form == "csv" and not (path and path.stat().st_size):
                self._write(",".join(COLUMNS) + "\n")
        except OSError as problem:
            self._fail(problem)

    def add(self, image: str, score: float | None, error: str | None, made_with: str) -> None:
        values = (image, None if score is None else round(score, 6), error, made_with)
        if (
            self.form == "jsonl"
        ):  # a name that is not text in UTF-8 is escaped: the file stays valid
            line = json.dumps(dict(zip(COLUMNS, values)), ensure_ascii=not image.isprintable())
        else:
            cells = ("" if value is None else str(value) for value in values)
            line = ",".join(
                '"' + c.replace('"', '""') + '"' if re.search('[",\r\n]', c) else c for c in cells
            )
        try:
            self._write(line + "\n")
        except BrokenPipeError:
            raise
        except OSError as problem:
            self._fail(problem)

    def _write(self, text: str) -> None:
        if self.file is sys.stdout:
            self.file.write(text.encode("utf-8", "replace").decode())
            self.file.flush()
            return
        data = text.encode("utf-8", "surrogateescape")
        while data:
            data = data[self.file.write(data) :]

    def _fail(self, problem: OSError) -> None:
        raise UserError(f"{self.name}: cannot be written: {reason_of(problem)}") from None


def _is_real_output() -> bool:
    """Whether standard output is the process's own, not what a notebook or a capture has put into its place."""
    try:
        return sys.stdout is None or sys.stdout.fileno() == 1
    except (AttributeError, OSError, ValueError):
        return False


def read_rows(path: Path, form: str) -> Iterator[tuple[bytes, dict | None]]:
    """Each whole row of an output file: its bytes and columns (None: the header). Raises UserError if not ours."""
    record, number = b"", 0
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(LONGEST), b""):
            record += line
            if len(record) < LONGEST and (
                not line.endswith(b"\n") or (form == "csv" and record.count(b'"') % 2)
            ):
                continue  # goes on in the next line, or nowhere
            number += 1
            yield record, _parse_row(path, form, number, record.decode("utf-8", "surrogateescape"))
            record = b""
    if number == 0 and not record.startswith(STARTS[form][: len(record)]):
        raise UserError(f"--output {path}: exists, and is no {form} file of predict.py's")


def _parse_row(path: Path, form: str, number: int, text: str) -> dict | None:
    try:
        row = (
            json.loads(text)
            if form == "jsonl"
            else dict(zip(COLUMNS, next(csv.reader([text])), strict=True))
        )
        if form == "csv" and number == 1:
            if tuple(row.values()) != COLUMNS:
                raise ValueError
            return None
        score = None if row["score"] in (None, "") else float(row["score"])
        return {**{name: row[name] for name in COLUMNS}, "score": score}
    except (ValueError, KeyError, TypeError, StopIteration, csv.Error):
        wanted = ",".join(COLUMNS)
        raise UserError(
            f"--output {path}: row {number} is not {form} of predict.py's, with {wanted}"
        ) from None


def take_up(
    path: Path, form: str, made_with: str, again: Callable[[str], bool]
) -> tuple[dict[str, float], str]:
    """Make a file of scores ready to be gone on with: (image -> score of what it holds, what to tell the user).
    Rows without a score go where `again(image)` says that the image is tried once more, a row that was cut off goes
    anyway. Raises UserError where the file is none of predict.py's, or was made with something else."""
    done, failed, whole = {}, 0, 0
    for record, row in read_rows(path, form):
        whole += len(record)
        if row is None:
            continue
        if row["made_with"] != made_with:
            raise UserError(
                f"--output {path}: {_differences(str(row['made_with']), made_with)}; scores of different models or "
                "settings are not mixed: give another --output, or the checkpoint and flags of before"
            )
        if row["score"] is not None:
            done[row["image"]] = row["score"]
        failed += _goes(row, again)
    torn = path.stat().st_size > whole
    if failed or torn:

        def rest(file) -> None:
            for record, row in read_rows(path, form):
                if not _goes(row, again):
                    file.write(record)

        write_whole(path.resolve(), rest)  # a link stays a link
    notes = [f"{len(done)} images have a score already"]
    notes += [f"{failed} failed ones are tried again"] if failed else []
    notes += ["the last row was cut off and is dropped"] if torn else []
    return done, f"{path}: {'; '.join(notes)}"


def _goes(row: dict | None, again: Callable[[str], bool]) -> bool:
    return row is not None and row["score"] is None and again(row["image"])


def _differences(then: str, now: str) -> str:
    """`a=1 b=2`, `a=1 b=3` -> what differs, in words."""
    was, becomes = (dict(part.partition("=")[::2] for part in text.split()) for text in (then, now))
    names = [name for name in {**was, **becomes} if was.get(name) != becomes.get(name)]
    made, this = (
        ", ".join(f"{name} {side.get(name, 'unknown')}" for name in names)
        for side in (was, becomes)
    )
    return f"its rows were made with {made}; this command has {this}"
