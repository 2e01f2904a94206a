"""The file formats that data sets come in, each as rows; what is wrong with a file is one line for its owner."""

import contextlib
import csv
import io
import itertools
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError, first_five, reading_file
from hyperiqa.base.launching import parallel_map

# What the parser of a MAT file may use, bytes and seconds; the sets' own files are under 1 MB.
MAT_MEMORY, MAT_SECONDS = 4 * 2**30, 60


def number(value: Any) -> float:
    """A score as a float; nan where it is no number, so that all bad scores can be reported together."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _text(path: Path) -> str:
    """A text file in UTF-8 or, as it comes from spreadsheets, UTF-16. Raises OSError, UnicodeDecodeError."""
    data = path.read_bytes()
    return data.decode(json.detect_encoding(data))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises UserError."""
    with reading_file(path, "not a readable text file", UnicodeDecodeError):
        return [line for line in _text(path).splitlines() if line.strip()]


def _cells(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of a table's rows, blanks around the cells and empty rows left out."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    for line in lines:
        cells = [cell.strip() for cell in line]
        if any(cells):
            yield lines.line_num, cells


def _places(header: list[str], columns: Iterable[str]) -> dict[str, int]:
    """Where these columns are, in whatever case; without those that are nowhere."""
    places = {title.lower(): i for i, title in enumerate(header)} | {
        title: i for i, title in enumerate(header)
    }
    return {
        name: places.get(name, places[name.lower()]) for name in columns if name.lower() in places
    }


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), more: str = ""
) -> Iterator[dict[str, str]]:
    """Rows of a CSV file as dicts: these columns, and the optional ones that are there.
    The separator is the comma, semicolon or tab; blanks around cells, empty rows and the case of the header do not
    count. Raises UserError where the file is unreadable, a column is missing (`more`: what helps then) or a row has
    more cells than the header."""
    with reading_file(
        path, "not a readable CSV file in UTF-8 or UTF-16", UnicodeDecodeError, csv.Error
    ):
        text = _text(path)
        headers = {mark: next(_cells(text, mark), (0, []))[1] for mark in ",;\t"}
        separator, header = max(headers.items(), key=lambda found: len(_places(found[1], columns)))
        places = _places(header, (*columns, *optional))
        if missing := [column for column in columns if column not in places]:
            found = f"expected {', '.join(columns)}, found {', '.join(header) or 'none'}"
            raise UserError(f"{path}: no column {', '.join(missing)}; {found}{more}")
        for number, cells in itertools.islice(_cells(text, separator), 1, None):
            if any(cells[len(header) :]):
                found = f"line {number} has {len(cells)} cells below {len(header)} column names"
                raise UserError(
                    f"{path}: {found}: a decimal comma, or a comma within a cell that is not in quotes?"
                )
            yield {name: cells[i] if i < len(cells) else "" for name, i in places.items()}


def read_json_scores(path: Path) -> dict[str, float]:
    """A JSON list of {"image", "score"} -> base name -> score, wherever the paths in it point. Raises UserError."""
    try:
        entries = json.loads(path.read_bytes())
        names = [PurePosixPath(str(e["image"]).replace("\\", "/")).name for e in entries]
        scores = [number(e["score"]) for e in entries]
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise UserError(
            f'{path}: expected a JSON list of {{"image", "score"}}; found {problem!r}'
        ) from None
    listed = dict(zip(names, scores, strict=True))
    if len(listed) < len(entries):
        raise UserError(f"{path}: {len(entries) - len(listed)} images are listed twice")
    return listed


def leaves_its_folder(name: str) -> bool:
    """Whether a path that a data file names points at something else of the user's."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def read_json_list(path: Path) -> list[tuple[str, float, float | None]]:
    """(image path, score, standard deviation or None) of a JSON list of objects, or of the one under `files`. The image
    is `image` or `img_path`; the score `gt_score` or `score`, else what follows -> in `id`. Raises UserError."""
    rows = []
    try:
        entries = json.loads(path.read_bytes())
        for entry in entries["files"] if isinstance(entries, Mapping) else entries:
            image = entry["image"] if "image" in entry else entry["img_path"]
            score = entry.get(
                "gt_score", entry.get("score", str(entry.get("id", "")).rpartition("->")[2])
            )
            rows.append(
                (str(image), number(score), number(entry["std"]) if "std" in entry else None)
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        wanted = '{"image", "gt_score"}, or with the score in "id"'
        raise UserError(f"{path}: expected a JSON list of {wanted}; found {problem!r}") from None
    return rows


def read_mat(path: Path, *variables: str) -> list[tuple]:
    """Arrays of a MATLAB file (to version 7.2), entry by entry: numbers, and the text of cell arrays of text.
    An n×1, 1×n or n array gives n entries; the variables must agree in n. Raises UserError."""
    what = "not a readable MAT file"
    # The parser meets a damaged file with whatever comes first, the end of its process among it.
    with reading_file(path, what, Exception):
        path.open("rb").close()
        try:
            (content,) = parallel_map(partial(_mat, path), [variables], 1, apart=True)
        except BrokenProcessPool:
            raise UserError(f"{path}: {what}: it is damaged, the parser crashed") from None
    if missing := [name for name in variables if name not in content]:
        raise UserError(
            f"{path}: no variable {', '.join(missing)}; expected {', '.join(variables)}"
        )
    return aligned(path, content)


def _mat(path: Path, variables: Sequence[str]) -> dict[str, list]:
    """The variables that the file has, in a process of their own, bounded by MAT_MEMORY and MAT_SECONDS."""
    from scipy.io import loadmat

    with contextlib.suppress(ImportError, ValueError, OSError):  # another system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAT_MEMORY, MAT_MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (MAT_SECONDS, MAT_SECONDS))
    with path.open("rb") as file:
        content = loadmat(file, variable_names=variables)
    return {
        name: [_entry(x) for x in np.ravel(content[name])] for name in variables if name in content
    }


def aligned(source: Path, columns: Mapping[str, Sequence]) -> list[tuple]:
    """Rows of columns that must be of one length. Raises UserError."""
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise UserError(f"{source}: these must be of one length: {lengths}")
    return list(zip(*columns.values(), strict=True))


def read_sheet(path: Path, owner: str, sheet: str | None = None) -> list[tuple]:
    """Rows of a worksheet (None: of the first) of an .xlsx file as tuples of values, without the empty rows.
    `owner` is the data set that needs the file. Raises UserError, also where openpyxl is not installed."""
    try:
        from openpyxl import load_workbook  # optional: few data sets come as workbooks
    except ImportError:
        raise UserError(
            f"{owner}: reading {path} needs the package openpyxl: pip install openpyxl"
        ) from None
    # A damaged archive or XML: the parsers raise what they like.
    with (
        reading_file(path, "not a readable workbook", Exception),
        warnings.catch_warnings(),
        path.open("rb") as file,
    ):
        warnings.simplefilter("ignore")  # about styles and extensions, which hold no data
        book = load_workbook(file, read_only=True, data_only=True)
        sheets = {found.title: found for found in book.worksheets}
        chosen = sheets.get(sheet) if sheet else next(iter(sheets.values()), None)
        if chosen is None:
            raise UserError(
                f"{path}: no sheet {sheet or 'in it'}; found {', '.join(sheets) or 'none'}"
            )
        chosen.reset_dimensions()  # the size that a file states of itself may be wrong
        rows = list(chosen.iter_rows(values_only=True))
    return [row for row in rows if any(value is not None for value in row)]


def under_header(path: Path, rows: list[tuple], columns: tuple[str, ...]) -> list[tuple]:
    """The values of these columns below the first row that names them all, wherever it lies. Raises UserError."""
    for i, row in enumerate(rows):
        titles = [str(value).strip().lower() for value in row]
        if all(column.lower() in titles for column in columns):
            places = [titles.index(column.lower()) for column in columns]
            found = [
                tuple(row[p] if p < len(row) else None for p in places) for row in rows[i + 1 :]
            ]
            return [values for values in found if any(value is not None for value in values)]
    seen = first_five(value for value in rows[0] if value is not None) if rows else "nothing"
    raise UserError(
        f"{path}: no row with the columns {', '.join(columns)}; its first row holds {seen}"
    )


def cell_text(value: object) -> str:
    """A cell's text; whole numbers without a decimal point, however the workbook keeps them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _entry(value: object) -> object:
    """An entry of a MATLAB array as a number or text; empty text for an empty cell."""
    while isinstance(value, np.ndarray):  # a cell is an array around its content
        value = value.flat[0] if value.size == 1 else ""
    return value.strip() if isinstance(value, str) else value
