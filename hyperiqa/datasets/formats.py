"""The file formats of data sets, each read as rows.

Whatever is wrong with a file is reported in one line.
"""

import contextlib
import csv
import io
import itertools
import json
import math
import statistics
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hyperiqa.base import errors, launching

# The limits of the parser of MAT files, in bytes and seconds. The sets' own files are below 1 MB.
MAT_MEMORY = 4 * 2**30
MAT_SECONDS = 60


def number(value: Any) -> float:
    """A score as a float, or nan if it is no number. Bad scores are then reported all at once."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def slope_of(scores: Sequence[float], means: Sequence[float]) -> float:
    """The slope of a set's scores on the means of its opinions; nan if it is unknown.

    Times this slope, the standard deviation of the opinions is the deviation of the scores.
    """
    try:
        return statistics.linear_regression(means, scores).slope
    # All opinions are the same.
    except ValueError:
        return math.nan


def refuse(names: Collection[str], source: object, one: str, several: str, hint: str = "") -> None:
    """If there are any names, raise UserError `source: COUNT mistake: the first names, hint`.

    one, several: the mistake in words, for one name and for several.
    """
    if names:
        raise errors.UserError(
            f"{source}: {errors.counted(len(names), one, several)}: "
            f"{errors.first_five(names)}{hint}"
        )


def _text(path: Path) -> str:
    # Spreadsheets write UTF-16. The function tells UTF-8, UTF-16 and UTF-32 apart, with a byte
    # order mark or without.
    data = path.read_bytes()
    return data.decode(json.detect_encoding(data))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises UserError."""
    with errors.reading_file(path, "not a readable text file", UnicodeDecodeError):
        return list(filter(str.strip, _text(path).splitlines()))


def _cells(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    # The line numbers and cells of a table's rows, without empty rows and blanks around cells.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    for line in lines:
        cells = list(map(str.strip, line))
        if any(cells):
            yield lines.line_num, cells


def _header(text: str, separator: str) -> list[str]:
    return next(_cells(text, separator), (0, []))[1]


def _places(header: list[str], columns: Iterable[str]) -> dict[str, int]:
    # The position of each of these columns that the header has, in upper or lower case.
    numbers = range(len(header))
    # An exact title has priority over another title in lower case.
    positions = dict(zip(map(str.lower, header), numbers)) | dict(zip(header, numbers))
    places = {name: positions.get(name, positions.get(name.lower())) for name in columns}
    return {name: place for name, place in places.items() if place is not None}


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), more: str = ""
) -> Iterator[dict[str, str]]:
    """Rows of a CSV file as dicts: these columns, and the optional ones that the file has.

    The separator is a comma, semicolon or tab. Blanks around cells, empty rows and the case of the
    header do not matter. Raises UserError if the file is unreadable, if a column is missing
    (`more`: a hint for this case) or if a row has more cells than the header.
    """
    with errors.reading_file(
        path, "not a readable CSV file in UTF-8 or UTF-16", UnicodeDecodeError, csv.Error
    ):
        text = _text(path)
        # The separator is the mark with which the header has most of the columns.
        separator = max(",;\t", key=lambda mark: len(_places(_header(text, mark), columns)))
        header = _header(text, separator)
        places = _places(header, (*columns, *optional))
        missing = [column for column in columns if column not in places]
        if missing:
            raise errors.UserError(
                f"{path}: no column {', '.join(missing)}; "
                f"expected {', '.join(columns)}, found {', '.join(header) or 'none'}{more}"
            )
        for line_number, cells in itertools.islice(_cells(text, separator), 1, None):
            if any(cells[len(header) :]):
                raise errors.UserError(
                    f"{path}: line {line_number} has {len(cells)} cells "
                    f"below {len(header)} column names: "
                    "a decimal comma, or a comma within a cell that is not in quotes?"
                )
            # A line that is too short gets empty cells at its end.
            cells += [""] * (len(header) - len(cells))
            yield {name: cells[i] for name, i in places.items()}


def read_json_scores(path: Path) -> dict[str, float]:
    """Base name -> score of a JSON list of {"image", "score"}, whatever folders its paths name.

    Raises UserError.
    """
    entries = _json_entries(
        path, lambda entry: (str(entry["image"]), number(entry["score"])), '{"image", "score"}'
    )
    listed = {PurePosixPath(image.replace("\\", "/")).name: score for image, score in entries}
    repetitions = len(entries) - len(listed)
    if repetitions:
        raise errors.UserError(
            f"{path}: {errors.counted(repetitions, 'image is', 'images are')} listed twice"
        )
    return listed


def _json_entries(path: Path, parse: Callable[[Any], tuple], form: str) -> list[tuple]:
    # The list is the whole file or, in some collections, its field `files`.
    try:
        entries = json.loads(path.read_bytes())
        if isinstance(entries, Mapping):
            entries = entries["files"]
        return list(map(parse, entries))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise errors.UserError(
            f"{path}: expected a JSON list of {form}; found {problem!r}"
        ) from None


def leaves_its_folder(name: str) -> bool:
    """Whether a path that a data file names leads out of the folder that it starts from."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def read_json_list(path: Path) -> list[tuple[str, float, float]]:
    """(image path, score, standard deviation) of a JSON list, or of the list under `files`.

    The image is `image` or `img_path`. The score is `gt_score`, `score` or the text after -> in
    `id`. The deviation is `std`, or nan without it. Raises UserError.
    """

    def parsed(entry: Any) -> tuple[str, float, float]:
        image = entry["image"] if "image" in entry else entry["img_path"]
        score_in_id = str(entry.get("id", "")).rpartition("->")[2]
        score = entry.get("gt_score", entry.get("score", score_in_id))
        return str(image), number(score), number(entry.get("std"))

    return _json_entries(path, parsed, '{"image", "gt_score"}, or with the score in "id"')


def read_mat(path: Path, *variables: str) -> list[tuple]:
    """Rows of the entries of a MATLAB file's arrays: numbers, and the texts of cell arrays.

    The file has a version of at most 7.2. An n×1, 1×n or n array gives n entries, and n must be the
    same for all variables. Raises UserError.
    """
    failure = "not a readable MAT file"
    # A damaged file makes the parser raise any exception, or crash: it has a process of its own.
    with errors.reading_file(path, failure, Exception):
        # Opening it here names a file that is missing or locked at once.
        path.open("rb").close()
        try:
            (content,) = launching.parallel_map(partial(_mat, path), [variables], 1, apart=True)
        except BrokenProcessPool:
            raise errors.UserError(
                f"{path}: {failure}: it is damaged, the parser crashed"
            ) from None
    missing = [name for name in variables if name not in content]
    if missing:
        raise errors.UserError(
            f"{path}: no variable {', '.join(missing)}; expected {', '.join(variables)}"
        )
    return aligned(path, content)


def _mat(path: Path, variables: Sequence[str]) -> dict[str, list]:
    # The entries of the variables that the file has; limits this process for good.
    # Most data sets come without MAT files, and importing scipy takes long.
    from scipy.io import loadmat

    # Other systems lack the module or some of the limits.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAT_MEMORY, MAT_MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (MAT_SECONDS, MAT_SECONDS))
    with path.open("rb") as file:
        content = loadmat(file, variable_names=variables)
    return {
        name: list(map(_entry, np.ravel(content[name]))) for name in variables if name in content
    }


def aligned(source: Path, columns: Mapping[str, Sequence]) -> list[tuple]:
    """The rows of these columns. Raises UserError, naming `source`, if their lengths differ."""
    if len(set(map(len, columns.values()))) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise errors.UserError(f"{source}: these must be of one length: {lengths}")
    return list(zip(*columns.values(), strict=True))


def read_sheet(path: Path, owner: str, sheet: str | None = None) -> list[tuple]:
    """Rows of a worksheet of an .xlsx file as tuples of values, without the empty rows.

    sheet: the name of the sheet; None for the first one. owner: the data set that needs the file.
    Raises UserError, also if openpyxl is not installed.
    """
    try:
        # Optional: few data sets come as workbooks.
        from openpyxl import load_workbook
    except ImportError:
        raise errors.UserError(
            f"{owner}: reading {path} needs the package openpyxl: pip install openpyxl"
        ) from None
    # A damaged archive or XML makes the parsers raise any exception.
    with (
        errors.reading_file(path, "not a readable workbook", Exception),
        warnings.catch_warnings(),
        path.open("rb") as file,
    ):
        # The warnings are about styles and extensions, which hold no data.
        warnings.simplefilter("ignore")
        book = load_workbook(file, read_only=True, data_only=True)
        sheets = {worksheet.title: worksheet for worksheet in book.worksheets}
        chosen = sheets.get(sheet or next(iter(sheets), ""))
        if chosen is None:
            raise errors.UserError(
                f"{path}: no sheet {sheet or 'in it'}; found {', '.join(sheets) or 'none'}"
            )
        # The size that a sheet states may be wrong.
        chosen.reset_dimensions()
        return list(filter(_has_values, chosen.iter_rows(values_only=True)))


def under_header(path: Path, rows: list[tuple], columns: tuple[str, ...]) -> list[tuple]:
    """The values of these columns below the first row that names them all.

    Rows without any value in these columns are left out. Raises UserError.
    """
    titles = list(map(str.lower, columns))
    for i, row in enumerate(rows):
        header = [str(value).strip().lower() for value in row]
        if set(titles) <= set(header):
            # Rows may be shorter than the header: the missing cells become None.
            by_column = list(itertools.zip_longest(*rows[i:]))
            _, *table = zip(*[by_column[header.index(title)] for title in titles])
            return list(filter(_has_values, table))
    first_row = (
        errors.first_five(value for value in rows[0] if value is not None) if rows else "nothing"
    )
    raise errors.UserError(
        f"{path}: no row with the columns {', '.join(columns)}; its first row holds {first_row}"
    )


def _has_values(row: tuple) -> bool:
    return any(value is not None for value in row)


def cell_text(value: object) -> str:
    """The text of a cell. Whole numbers have no decimal point, even if they are kept as floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _entry(value: object) -> object:
    # A cell is an array around its content. An empty one stands for an empty text.
    while isinstance(value, np.ndarray):
        value = value.flat[0] if value.size == 1 else ""
    return value.strip() if isinstance(value, str) else value
