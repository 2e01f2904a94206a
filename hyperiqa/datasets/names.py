"""The names of data sets in flags: NAME, NAME=PATH, or csv:NAME=FILE.csv."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hyperiqa.base.errors import UserError


def reader_name(name: str) -> str:
    """The reader of a set of `parse_set_names`: csv for csv:NAME, else the name itself."""
    return name.partition(":")[0]


def record_name(name: str) -> str:
    """The name in records of a set of `parse_set_names`: NAME for csv:NAME, else the name."""
    return name.removeprefix("csv:")


def parse_set_names(
    flag: str, words: Sequence[str], readers: Iterable[str]
) -> dict[str, Path | None]:
    """Turn the words `NAME[=PATH] …` of a flag into name -> path, None where no path is given.

    A CSV set may have a name of its own, as in csv:NAME=PATH. Raises UserError that names all words
    with an unknown or repeated name, and CSV sets without a file.

    readers: the names that are accepted.
    """
    readers = list(readers)
    sets: dict[str, Path | None] = {}
    mistakes = []
    for word in words:
        name, _, path = word.partition("=")
        prefix, colon, csv_name = name.partition(":")
        is_csv = prefix == "csv"
        # A CSV set that took the name of another data set would pass for it in records.
        is_free_name = re.fullmatch(r"[\w.-]+", csv_name) and csv_name not in readers
        if is_csv and colon and not is_free_name:
            rule = "with letters, digits and _ . + -, no set's name"
            mistakes.append(f"{flag} {word}: expected csv:NAME=FILE.csv, {rule}")
        elif (prefix if is_csv else name) not in readers:
            expected = f"NAME or NAME=PATH, NAME one of {', '.join(readers)}"
            mistakes.append(f"{flag} {word}: expected {expected}")
        elif name in sets:
            mistakes.append(f"{flag}: {name} is listed twice")
        elif is_csv and not path:
            mistakes.append(f"{flag} {name}: expected {name}=FILE.csv")
        sets[name] = Path(path).expanduser() if path else None
    if mistakes:
        raise UserError("; ".join(mistakes))
    return sets


def lower_is_better_sets(flag: bool | list[str], names: Iterable[str]) -> set[str]:
    """The CSV sets among `names` whose scores mean badness, as `--lower_is_better` says.

    flag: False: no set. True, or a list without names: every CSV set. Else the sets by their names
    in records. Raises UserError for names that are no CSV set.
    """
    csv_sets = {record_name(name): name for name in names if name.startswith("csv")}
    if flag is False:
        return set()
    if flag is True or not flag:
        return set(csv_sets.values())
    unknown = [name for name in flag if name not in csv_sets]
    if unknown:
        raise UserError(
            f"--lower_is_better {' '.join(unknown)}: expected CSV sets of this run: "
            f"{', '.join(csv_sets)}"
        )
    return {csv_sets[name] for name in flag}
