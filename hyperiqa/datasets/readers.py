"""Data sets on disk -> records. One small reader per data set, saying only how its layout differs.

What they share, and how a reader's rows become records, is in `reading/records.py`."""

from collections.abc import Container, Mapping
from pathlib import Path

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import HERE
from hyperiqa.datasets.authentic import BID, FLIVE, LIVEC, SPAQ, UHDIQA, AGIQA3k, AGIQA20k, KonIQ10k
from hyperiqa.datasets.csv_table import CSVTable
from hyperiqa.datasets.demo import Demo
from hyperiqa.datasets.names import reader_name, record_name
from hyperiqa.datasets.reader import Reader
from hyperiqa.datasets.records import USUAL, Columns, DataSet
from hyperiqa.datasets.synthetic import CSIQ, LIVE, TID2013, KADID10k

CLASSES = (
    KonIQ10k,
    SPAQ,
    KADID10k,
    AGIQA3k,
    AGIQA20k,
    LIVEC,
    LIVE,
    CSIQ,
    TID2013,
    BID,
    FLIVE,
    UHDIQA,
    CSVTable,
    Demo,
)
READERS: dict[str, type[Reader]] = {reader.name: reader for reader in CLASSES}
DEFAULT_RESIZE = {name: reader.resize for name, reader in READERS.items()}


def find_spaq(spaq_path: Path | None, beside: Path | None = None) -> Path | None:
    """SPAQ's folder for a cross test: the user's, else `beside`, else spaq/ or spaq-test/; None if in no place."""
    places = [beside] if beside else [HERE / "spaq", HERE / "spaq-test"]
    return spaq_path or next((place for place in places if place.exists()), None)


def reader_of(
    name: str,
    path: Path | None,
    seed: int | None,
    lower_is_better: bool = False,
    columns: Columns = USUAL,
) -> Reader:
    """The reader of a set of `named_sets`, under the name that records call it by; path None: its default place.
    lower_is_better, columns: of a CSV file."""
    kind = reader_name(name)
    reader = READERS[kind](path, seed, *((lower_is_better, columns) if kind == "csv" else ()))
    reader.name = record_name(name)
    return reader


def open_set(
    name: str,
    path: Path | None,
    seed: int | None,
    lower_is_better: bool = False,
    columns: Columns = USUAL,
    beside: Path | None = None,
) -> Reader:
    """The reader of a set to test on; path None: its default place, for SPAQ `beside` where that is given.
    lower_is_better, columns: of a CSV file. Raises UserError where SPAQ is in none of its places."""
    if name == "spaq" and (path := find_spaq(path, beside)) is None:
        places = beside or "spaq/ or spaq-test/ beside the scripts"
        raise UserError(f"spaq: no folder {places}; spaq=PATH gives it")
    return reader_of(name, path, seed, lower_is_better, columns)


def read_cross_tests(
    chosen: Mapping[str, Path | None] | None,
    seed: int,
    beside: Path | None,
    lower: Container[str],
    columns: Columns,
) -> tuple[dict[str, DataSet], list[str]]:
    """The sets that every epoch is tested on besides, by name, and what the log owes to the user about them.
    chosen: name -> path or None for its default place; None: SPAQ, where it is found, in `beside` where that is
    given. lower: those of CSV files of badness. Raises UserError for a set that was chosen and is not there."""
    if chosen is None:
        if (spaq := find_spaq(None, beside)) is None:
            return {}, [
                "SPAQ cross test: skipped, found neither spaq/ nor spaq-test/ (--spaq_path gives it)"
            ]
        chosen = {"spaq": spaq}
    sets = {
        record_name(name): open_set(
            name, path, seed, name in lower, columns, beside
        ).read_for_test()[0]
        for name, path in chosen.items()
    }
    return sets, [] if sets else ["SPAQ cross test: off"]
