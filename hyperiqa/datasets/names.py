"""The names of data sets in flags and in records.

A flag has NAME, NAME=PATH or csv:NAME=FILE.csv; records call the last one NAME.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hyperiqa.base.errors import UserError

# What a record of an epoch has beside the figures of its sets.
EPOCH_KEYS = ("type", "round", "epoch", "train", "val", "test", "lr", "seconds")
# No CSV set may have these names, in whatever case. Tests compare them with the readers, with the
# records of a real run and with the lines that are read in a log.
RESERVED = (
    *("koniq-10k", "spaq", "spaq-official", "kadid-10k", "agiqa-3k", "agiqa-20k", "livec", "live"),
    *("csiq", "tid2013", "bid", "flive", "uhd-iqa", "csv", "demo"),
    *EPOCH_KEYS,
    *("seed", "best_epoch", "selection_price", "votes"),
    # With a colon behind them they begin a line that says something else.
    *("run", "settings", "device", "precision", "error", "interrupted"),
)
# A set's validation images go by its name and the first of these, SPAQ's release by the other.
RESERVED_ENDINGS = ("_val", "-official")


def reader_name(name: str) -> str:
    """The reader of a set of `parse_set_names`: csv for csv:NAME, else the name itself."""
    return name.partition(":")[0]


def record_name(name: str) -> str:
    """The name in records of a set of `parse_set_names`: NAME for csv:NAME, else the name."""
    return name.removeprefix("csv:")


def set_named(word: str, names: Iterable[str]) -> str | None:
    """The one of these sets of `parse_set_names` that a word of a flag means; None: it means none.

    A CSV set may be called as its own flag calls it, csv:NAME, or as records do, NAME.
    """
    return next((name for name in names if word in (name, record_name(name))), None)


def parse_set_names(
    flag: str, words: Sequence[str], readers: Iterable[str], others: Iterable[str] = ()
) -> dict[str, Path | None]:
    """Turn the words `NAME[=PATH] …` of a flag into name -> path, None where no path is given.

    A CSV set may have a name of its own, as in csv:NAME=PATH. Raises UserError that names all words
    with an unknown, repeated or reserved name, and CSV sets without a file.

    readers: the names that are accepted. others: the sets of the command's other flags.
    """
    readers = list(readers)
    sets: dict[str, Path | None] = {}
    mistakes = []
    # Columns of logs and folders of some systems tell no cases apart.
    taken = {record_name(name).casefold(): name for name in others}
    for word in words:
        name, _, path = word.partition("=")
        prefix, colon, csv_name = name.partition(":")
        is_csv = prefix == "csv"
        problem = _problem_of_name(csv_name) if is_csv and colon else ""
        same_name = taken.setdefault(record_name(name).casefold(), name)
        if problem:
            mistakes.append(f"{flag} {word}: expected csv:NAME=FILE.csv, NAME {problem}")
        elif (prefix if is_csv else name) not in readers:
            expected = f"NAME or NAME=PATH, NAME one of {', '.join(readers)}"
            mistakes.append(f"{flag} {word}: expected {expected}")
        elif name in sets:
            mistakes.append(f"{flag}: {name} is listed twice")
        elif same_name != name:
            mistakes.append(f"{flag} {word}: expected a name that {same_name} does not have too")
        elif is_csv and not path:
            mistakes.append(f"{flag} {name}: expected {name}=FILE.csv")
        sets[name] = Path(path).expanduser() if path else None
    if mistakes:
        raise UserError("; ".join(mistakes))
    return sets


def _problem_of_name(name: str) -> str:
    """What a CSV set's name ought to be; "" where it is."""
    if not re.fullmatch(r"[\w.-]{1,100}", name):
        return "of up to 100 letters, digits and _ . -"
    lower = name.casefold()
    # It would pass for another set in records, or replace what else they say.
    if lower in RESERVED or lower.endswith(RESERVED_ENDINGS):
        return (
            "not one that records use for other sets and facts "
            f"({', '.join(RESERVED)}, …{', …'.join(RESERVED_ENDINGS)})"
        )
    return ""


def lower_is_better_sets(flag: bool | list[str], names: Iterable[str]) -> set[str]:
    """The CSV sets among `names` whose scores mean badness, as `--lower_is_better` says.

    flag: False: no set. True, or a list without names: every CSV set. Else the sets by their names.
    """
    if flag is False:
        return set()
    csv_sets = [name for name in names if reader_name(name) == "csv"]
    if flag is True or not flag:
        return set(csv_sets)
    return {set_named(word, csv_sets) for word in flag} - {None}


def check_lower_is_better(flag: bool | list[str], names: Iterable[str]) -> None:
    """Raise UserError where `--lower_is_better` lists what is no CSV set of the command."""
    csv_sets = [name for name in names if reader_name(name) == "csv"]
    words = flag if isinstance(flag, list) else []
    unknown = [word for word in words if set_named(word, csv_sets) is None]
    if unknown:
        raise UserError(
            f"--lower_is_better {' '.join(unknown)}: expected CSV sets of this run: "
            f"{', '.join(map(record_name, csv_sets))}"
        )
