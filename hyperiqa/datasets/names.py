"""How users name data sets in flags: NAME, NAME=PATH, or csv:NAME=FILE.csv."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hyperiqa.base.errors import UserError


def reader_name(name: str) -> str:
    """What reads a set of `parse_set_names`: csv of csv:NAME, else the name."""
    return name.partition(":")[0]


def record_name(name: str) -> str:
    """What a set of `parse_set_names` is called in records: NAME of csv:NAME, else the name."""
    return name.removeprefix("csv:")


def parse_set_names(
    flag: str, words: Sequence[str], known: Iterable[str]
) -> dict[str, Path | None]:
    """`NAME[=PATH] …` of a flag -> name -> path; a CSV set may be given a name of its own, as in csv:NAME=PATH.
    Raises UserError for unknown and repeated names."""
    known, sets, problems = list(known), {}, []
    for word in words:
        name, _, path = word.partition("=")
        kind, colon, own = name.partition(":")
        if kind == "csv" and colon and not (re.fullmatch(r"[\w.-]+", own) and own not in known):
            rule = "with letters, digits and _ . + -, no set's name"
            problems.append(f"{flag} {word}: expected csv:NAME=FILE.csv, {rule}")
        elif (kind if kind == "csv" else name) not in known:
            problems.append(
                f"{flag} {word}: expected NAME or NAME=PATH, NAME one of {', '.join(known)}"
            )
        elif name in sets:
            problems.append(f"{flag}: {name} is listed twice")
        elif kind == "csv" and not path:
            problems.append(f"{flag} {name}: expected {name}=FILE.csv")
        sets[name] = Path(path).expanduser() if path else None
    if problems:
        raise UserError("; ".join(problems))
    return sets


def lower_is_better_sets(flag: bool | list[str], names: Iterable[str]) -> set[str]:
    """The CSV sets of these whose scores mean badness, as `--lower_is_better` says. Raises UserError."""
    csv = {record_name(name): name for name in names if name.startswith("csv")}
    if isinstance(flag, bool) or not flag:
        return set(csv.values()) if flag is not False else set()
    if unknown := [name for name in flag if name not in csv]:
        raise UserError(
            f"--lower_is_better {' '.join(unknown)}: expected CSV sets of this run: {', '.join(csv)}"
        )
    return {csv[name] for name in flag}
