"""Files of scores: one row per image, as CSV or JSON lines.

Each row is written through at once, and a file is continued after the program was killed. A row has
the columns image, score, error and made_with, and further ones that the user asks for. made_with
names what the row depends on, so that rows of different models or settings are never mixed
unnoticed.
"""

import csv
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperiqa.base import errors, files, terminal

COLUMNS = ("image", "score", "error", "made_with")
# Their 1,124,250 pairs take a minute or two.
MOST_COMPARED = 1500

# What a terminal says of further columns.
WORDS = {
    "percentile": "percentile {percentile:.0f}",
    "high": "MOS from {low:.3g} to {high:.3g}",
    "keep": "keep: {keep}",
    "note": "{note}",
}

# The first bytes of every such file.
STARTS = {"csv": b"image,score", "jsonl": b'{"image": '}

# The most bytes that a row has: a file with longer ones is something else. A name of as many bytes
# as `image_sources` takes fits, although JSON may write six letters for one of its bytes.
LONGEST = 1 << 16


class ScoreFile:
    """Appends rows to a file, or to standard output.

    Each row is written through at once: nothing is left in a buffer that could fail, or get lost,
    later. path: None for standard output. form: "csv" or "jsonl". file: the open file, where the
    caller has opened it. Raises UserError if the rows cannot be written.
    """

    def __init__(
        self,
        path: Path | None,
        form: str,
        columns: Sequence[str] = COLUMNS,
        file: Any = None,
    ):
        self.path = path or Path("standard output")
        self.form = form
        self.columns = columns
        self.on_terminal = path is None and os.isatty(1)
        with errors.reading_file(self.path, "cannot be written"):
            self.file: Any = file or _open_unbuffered(path)
            if form == "csv" and (file or not (path and path.stat().st_size)):
                self._write(",".join(columns) + "\n")

    def add(
        self,
        image: str,
        score: float | None,
        error: str | None,
        made_with: str,
        meaning: Any = None,
    ) -> None:
        """Write the row of an image.

        meaning: has the values of the columns beyond `COLUMNS` as attributes; None: they are empty.

        Raises UserError if it cannot be written, and BrokenPipeError if the reader of standard
        output has gone.
        """
        more = [getattr(meaning, name, None) for name in self.columns[len(COLUMNS) :]]
        # A reason may be as long as its author likes, but a row may not.
        self.write_row([image, score, error and error[:1000], made_with, *more])

    def write_row(self, row: Sequence[Any]) -> None:
        """Write the values of a row, one for each column. Raises as `add`."""
        values = [round(value, 6) if isinstance(value, float) else value for value in row]
        try:
            self._write(self._line(values) + "\n")
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise errors.UserError(
                f"{self.path}: cannot be written: {errors.reason_of(problem)}"
            ) from None

    def _line(self, values: Sequence[Any]) -> str:
        if self.form == "jsonl":
            # A name that is not text in UTF-8 is escaped, so that the file stays valid. Rows of a
            # comparison have two names.
            names = "".join(value for value in values[:2] if isinstance(value, str))
            return json.dumps(dict(zip(self.columns, values)), ensure_ascii=not names.isprintable())
        # With both as the line's end, the writer quotes a cell that has either.
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(values)
        return line.getvalue().removesuffix("\r\n")

    def _write(self, text: str) -> None:
        # In files and pipes the names of images keep their bytes.
        if self.on_terminal:
            text = terminal.printable(text.removesuffix("\n")) + "\n"
        if self.file is sys.stdout:
            self.file.write(text.encode("utf-8", "replace").decode())
            self.file.flush()
            return
        # An unbuffered file may take a part of the bytes only.
        data = text.encode("utf-8", "surrogateescape")
        while data:
            data = data[self.file.write(data) :]


class ScoreLines(ScoreFile):
    """Shows scores to a reader at a terminal: a sentence for a single image, else aligned lines.

    description: the model's. alone: whether there is a single image.
    """

    def __init__(
        self, description: Mapping[str, Any], alone: bool, columns: Sequence[str] = COLUMNS
    ):
        super().__init__(None, "lines", columns)
        self.scale = scale_text(description)
        low, high = description["score_range"]
        # A thousandth of the scale is shown. A single score in training makes no scale.
        self.digits = max(1, 3 - round(math.log10(abs(high - low) or 100)))
        self.alone = alone
        if not alone:
            self._write(f"Scores on a scale of {self.scale}:\n")

    def _line(self, values: Sequence[Any]) -> str:
        row = dict(zip(self.columns, values))
        score = row["score"]
        text = "–" if score is None else f"{score:.{self.digits}f}"
        remarks = [row["error"]] if row["error"] else []
        if score is not None:
            remarks += [
                words.format_map(row) for name, words in WORDS.items() if row.get(name) is not None
            ]
        note = f"  ({', '.join(remarks)})" if remarks else ""
        if self.alone and score is not None:
            return f"{row['image']}  {text} of {self.scale}{note}"
        return f"{text:>8}  {row['image']}{note}"


class PairFile(ScoreFile):
    """Takes the scores of images, and writes a row for each pair of them when all are known.

    form: "csv", "jsonl", or "lines" for sentences. better: the probability that the image of the
    first of two scores is the better one.
    """

    def __init__(self, path: Path | None, form: str, better: Callable[[float, float], float]):
        super().__init__(path, form, ("first", "second", "probability"))
        self.better = better
        self.scores: dict[str, float | None] = {}

    def add(self, image: str, score: float | None, *more: Any) -> None:
        """Keep the score of an image, or that it has none."""
        self.scores[image] = score

    def write_pairs(self) -> None:
        """Write the rows, in the order of the images. Raises UserError."""
        check_compared(len(self.scores))
        known = [(image, score) for image, score in self.scores.items() if score is not None]
        for (first, score), (second, other_score) in itertools.combinations(known, 2):
            self.write_row([first, second, self.better(score, other_score)])

    def _line(self, values: Sequence[Any]) -> str:
        if self.form != "lines":
            return super()._line(values)
        first, second, probability = values
        if probability < 0.5:
            first, second, probability = second, first, 1 - probability
        return f"{first} is better than {second} with probability {probability:.2f}"


def check_compared(number: int) -> None:
    """Raise UserError if there are too few or too many images to compare."""
    if not 2 <= number <= MOST_COMPARED:
        raise errors.UserError(
            f"--compare: expected 2 to {MOST_COMPARED:,} images, found {number:,}"
        )


def scale_text(description: Mapping[str, Any]) -> str:
    """What a model's scores mean: `0..100, higher is better (koniq-10k)`."""
    low, high = description.get("nominal_range") or description["score_range"]
    better = "higher" if description["higher_is_better"] else "lower"
    dataset = description["dataset"]
    if dataset == "demo":
        dataset += ", synthetic"
    return f"{low:g}..{high:g}, {better} is better ({dataset})"


def head_text(description: Mapping[str, Any]) -> str:
    """What scores the features of a model's encoder: `fusion none`, or `head mlp (mean)`."""
    if description.get("head") == "mlp":
        return f"head mlp ({description['pool']})"
    return f"fusion {description['fusion']}"


def _open_unbuffered(path: Path | None) -> Any:
    if path:
        return path.open("ab", buffering=0)
    # A notebook or a capture may have replaced the process's own standard output.
    try:
        is_own_output = sys.stdout is None or sys.stdout.fileno() == 1
    except (AttributeError, OSError, ValueError):
        is_own_output = False
    return os.fdopen(1, "wb", buffering=0, closefd=False) if is_own_output else sys.stdout


def read_rows(
    path: Path, form: str, columns: Sequence[str] = COLUMNS
) -> Iterator[tuple[bytes, dict | None]]:
    """The complete rows of a file of scores: (its bytes, its columns; None for the header).

    A last row that was cut off is left out. Raises UserError if the file is something else, or has
    other columns.
    """
    record = b""
    number = 0
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(LONGEST), b""):
            record += line
            # A quoted cell of CSV may hold line ends.
            within_quotes = form == "csv" and record.count(b'"') % 2
            is_complete = record.endswith(b"\n") and not within_quotes
            # A record that is too long is parsed as it is, and refused: it is something else.
            if len(record) < LONGEST and not is_complete:
                continue
            number += 1
            text = record.decode("utf-8", "surrogateescape")
            yield record, _parse_row(path, form, number, text, columns)
            record = b""
    if number == 0 and not record.startswith(STARTS[form][: len(record)]):
        raise errors.UserError(f"--output {path}: exists, and is no {form} file of predict.py's")


def _parse_row(
    path: Path, form: str, number: int, text: str, columns: Sequence[str]
) -> dict | None:
    try:
        cells = next(csv.reader([text])) if form == "csv" else []
        if form == "csv" and number == 1:
            if tuple(cells[: len(COLUMNS)]) != COLUMNS:
                raise ValueError
            if tuple(cells) != tuple(columns):
                raise errors.UserError(
                    f"--output {path}: its rows have the columns {','.join(cells)}; this command "
                    f"writes {','.join(columns)}: give another --output, or the flags of before"
                )
            return None
        row = dict(zip(columns, cells, strict=True)) if form == "csv" else json.loads(text)
        values = {name: row[name] for name in COLUMNS}
        values["score"] = None if row["score"] in (None, "") else float(row["score"])
        return values
    except (ValueError, KeyError, TypeError, RecursionError, StopIteration, csv.Error):
        raise errors.UserError(
            f"--output {path}: row {number} is not {form} of predict.py's, with {','.join(COLUMNS)}"
        ) from None


def take_up(
    path: Path,
    form: str,
    made_with: str,
    tries_again: Callable[[str], bool],
    columns: Sequence[str] = COLUMNS,
) -> tuple[dict[str, float], str]:
    """Prepare an existing file of scores for more rows.

    Drops a last row that was cut off, and the rows with an error whose image is tried once more:
    tries_again(image) says so. Returns (image -> score of what the file holds, a note for the
    user). Raises UserError if the file is none of predict.py's, or was made with something else
    than `made_with`.
    """
    done: dict[str, float] = {}
    kept: list[bytes] = []
    complete_bytes = 0
    dropped = 0
    for record, row in read_rows(path, form, columns):
        complete_bytes += len(record)
        if row is not None:
            check_made_with(path, str(row["made_with"]), made_with)
            # A row with a score has an error where the image has no map.
            if (row["score"] is None or row["error"]) and tries_again(row["image"]):
                dropped += 1
                continue
            if row["score"] is not None:
                done[row["image"]] = row["score"]
        kept.append(record)
    notes = [f"{errors.counted(len(done), 'image has', 'images have')} a score already"]
    if dropped:
        notes.append(f"{errors.counted(dropped, 'failed one is', 'failed ones are')} tried again")
    if path.stat().st_size > complete_bytes:
        notes.append("the last row was cut off and is dropped")
    if len(notes) > 1:
        # To what a link points to, so that a link stays a link.
        files.write_whole(path.resolve(), lambda file: file.writelines(kept))
    return done, f"{path}: {'; '.join(notes)}"


def settings_text(description: Mapping[str, Any], precision: str = "fp32") -> str:
    """How images are prepared and scored, in the words of `made_with`."""
    crops = 1 if description["test_crop"] == "center" else description["test_patch_num"]
    return (
        f"resize={description['resize']} patch_size={description['patch_size']} crops={crops} "
        f"exif_rotate={'yes' if description.get('exif_rotate') else 'no'} "
        f"precision={precision}"
    )


def differences(before: str, now: str) -> tuple[str, str]:
    """What tells two values of `made_with` apart: `a 1, b 2` of the first, `a 3, b 4` of the other.

    Both are empty where nothing does.
    """
    # The parts of a word are name, "=" and value.
    parts_before = dict(word.partition("=")[::2] for word in before.split())
    parts_now = dict(word.partition("=")[::2] for word in now.split())
    names = [
        name
        for name in {**parts_before, **parts_now}
        if parts_before.get(name) != parts_now.get(name)
    ]
    before_words, now_words = (
        ", ".join(f"{name} {parts.get(name, 'unknown')}" for name in names)
        for parts in (parts_before, parts_now)
    )
    return before_words, now_words


def check_made_with(path: Path, made_before: str, made_now: str) -> None:
    """Raise UserError that says how two values of `made_with` differ, such as `a=1` and `a=2`."""
    before_words, now_words = differences(made_before, made_now)
    if before_words:
        raise errors.UserError(
            f"--output {path}: its rows were made with {before_words}; this command has "
            f"{now_words}; scores of different models or settings are not mixed: give another "
            "--output, or the checkpoint and flags of before"
        )
