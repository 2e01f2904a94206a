"""The readers by the names of their data sets, and how a command opens the sets that it gets.

There is one small reader per data set, which says only how its layout differs. Their common part,
which turns a reader's rows into records, is in `reader.py`.
"""

from collections.abc import Container, Mapping
from pathlib import Path

from hyperiqa.base import errors, files
from hyperiqa.datasets import authentic, csv_table, demo, names, reader, records, synthetic

CLASSES = (
    authentic.KonIQ10k,
    authentic.SPAQ,
    synthetic.KADID10k,
    authentic.AGIQA3k,
    authentic.AGIQA20k,
    authentic.LIVEC,
    synthetic.LIVE,
    synthetic.CSIQ,
    synthetic.TID2013,
    authentic.BID,
    authentic.FLIVE,
    authentic.UHDIQA,
    csv_table.CSVTable,
    demo.Demo,
)
READERS: dict[str, type[reader.Reader]] = {set_reader.name: set_reader for set_reader in CLASSES}
DEFAULT_RESIZE = {name: set_reader.resize for name, set_reader in READERS.items()}


def nominal_set(description: Mapping) -> records.DataSet:
    """A set without images that has the nominal range and the direction of a model's scores."""
    set_reader = READERS.get(description["dataset"], csv_table.CSVTable)
    return records.DataSet(
        description["dataset"],
        [],
        description["higher_is_better"],
        nominal_range=description.get("nominal_range")
        or set_reader.nominal_range
        or description["score_range"],
    )


def find_spaq(spaq_path: Path | None, beside: Path | None = None) -> Path | None:
    """SPAQ's folder for a cross test: the user's, else `beside`, else spaq/ or spaq-test/.

    None if there is no such folder. The user's own folder is not checked.
    """
    if spaq_path:
        return spaq_path
    places = [beside] if beside else [files.HERE / "spaq", files.HERE / "spaq-test"]
    return next(filter(Path.exists, places), None)


def reader_of(
    name: str,
    path: Path | None,
    seed: int | None,
    lower_is_better: bool = False,
    columns: records.Columns = records.USUAL,
) -> reader.Reader:
    """The reader of a set of `parse_set_names`, with the name that the set has in records.

    path: None for the set's default place. lower_is_better, columns: the settings of a CSV file.
    """
    kind = names.reader_name(name)
    # A flag about CSV files leaves other sets of the same command alone.
    csv_settings = (lower_is_better, columns) if kind == "csv" else ()
    set_reader = READERS[kind](path, seed, *csv_settings)
    set_reader.name = names.record_name(name)
    return set_reader


def open_set(
    name: str,
    path: Path | None,
    seed: int | None,
    lower_is_better: bool = False,
    columns: records.Columns = records.USUAL,
    beside: Path | None = None,
) -> reader.Reader:
    """The reader of a set to test on.

    path: None for the set's default place, which is `beside`, if given, for SPAQ. lower_is_better,
    columns: the settings of a CSV file. Raises UserError if SPAQ is in none of its places.
    """
    if name == "spaq":
        path = find_spaq(path, beside)
        if path is None:
            raise errors.UserError(
                f"spaq: no folder {beside or 'spaq/ or spaq-test/ beside the scripts'}; "
                "spaq=PATH gives it"
            )
    return reader_of(name, path, seed, lower_is_better, columns)


def read_cross_tests(
    chosen: Mapping[str, Path | None] | None,
    seed: int,
    beside: Path | None,
    lower: Container[str],
    columns: records.Columns,
) -> tuple[dict[str, records.DataSet], list[str]]:
    """The other sets that every epoch is tested on, by name, and lines about them for the log.

    chosen: name -> path, or None for the set's default place. If chosen itself is None, SPAQ is
    taken if it is found; it is looked for in `beside`, if given. lower: the CSV sets with scores
    that mean badness. Raises UserError for a chosen set that does not exist.
    """
    if chosen is None:
        spaq = find_spaq(None, beside)
        if spaq is None:
            return {}, [
                "SPAQ cross test: skipped, found neither spaq/ nor spaq-test/ "
                "(--spaq_path gives it)"
            ]
        chosen = {"spaq": spaq}
    sets = {}
    for name, path in chosen.items():
        set_reader = open_set(name, path, seed, name in lower, columns, beside)
        sets[names.record_name(name)], _ = set_reader.read_for_test()
    return sets, [] if sets else ["SPAQ cross test: off"]
