"""The names of data sets in flags and in records.

A flag takes NAME, NAME=PATH or csv:NAME=FILE.csv. Records call the last of these NAME.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hyperiqa.base import errors, files

# The fields of an epoch's record other than the figures of its sets.
EPOCH_KEYS = ("type", "round", "epoch", "train", "val", "test", "lr", "seconds")
# No CSV set may have one of these names, in upper or lower case. Tests compare them with the
# readers, with the records of a real run and with the lines that are read in a log.
RESERVED = (
    *("koniq-10k", "spaq", "spaq-official", "kadid-10k", "agiqa-3k", "agiqa-20k", "livec", "live"),
    *("csiq", "tid2013", "bid", "flive", "uhd-iqa", "csv", "demo"),
    *EPOCH_KEYS,
    *("seed", "best_epoch", "selection_price", "votes"),
    # Followed by a colon, each of these begins a line of a log that says something else.
    *("run", "settings", "device", "precision", "error", "interrupted"),
)
# The first one is added to a set's name for its validation images, the second to SPAQ's name for
# its official release.
RESERVED_ENDINGS = ("_val", "-official")


def reader_name(name: str) -> str:
    """The name of the reader of a set: csv for csv:NAME, else the name itself."""
    return name.partition(":")[0]


def record_name(name: str) -> str:
    """The name of a set in records: NAME for csv:NAME, else the name itself."""
    return name.removeprefix("csv:")


def demo_folder(places: Mapping[str, Path | None]) -> Path:
    """Where the demo lies: in the place that is given for it, else beside the scripts.

    places: set -> its folder or file, None for its usual place.
    """
    return Path(places.get("demo") or files.HERE / "demo")


def set_title(name: str, of_demo: bool) -> str:
    """What tables, cards and pages call a set of records; the demo's sets are marked as synthetic.

    of_demo: whether it is the demo or the SPAQ-like set beside it.
    """
    if not of_demo:
        return name
    return f"{name if name.startswith('demo') else f'demo {name}'} (synthetic)"


def set_named(word: str, names: Iterable[str]) -> str | None:
    """The set among `names` that a word of a flag means; None if it means none of them.

    names: as `parse_set_names` returns them. A CSV set may be called csv:NAME, as in its own flag,
    or NAME, as in records.
    """
    return next((name for name in names if word in (name, record_name(name))), None)


def parse_set_names(
    flag: str, words: Sequence[str], readers: Iterable[str], others: Iterable[str] = ()
) -> dict[str, Path | None]:
    """Turn the words `NAME[=PATH] …` of a flag into name -> path, None where no path is given.

    A CSV set may have a name of its own, as in csv:NAME=PATH; NAME=FILE.csv means the same. Raises
    UserError that names all words with an unknown, repeated or reserved name, and CSV sets without
    a file.

    readers: the names that are accepted. others: the sets of the command's other flags.
    """
    readers = list(readers)
    sets: dict[str, Path | None] = {}
    mistakes = []
    # Columns of logs do not tell upper and lower case apart, nor do the folders of some systems.
    taken = {record_name(name).casefold(): name for name in others}
    for word in words:
        name, _, path = word.partition("=")
        # The name of a file says enough.
        if name not in readers and ":" not in name and path.lower().endswith(".csv"):
            name = f"csv:{name}"
        prefix, colon, csv_name = name.partition(":")
        is_csv = prefix == "csv"
        problem = _problem_of_name(csv_name) if is_csv and colon else ""
        same_name = taken.setdefault(record_name(name).casefold(), name)
        rules = [
            (problem, f"{flag} {word}: expected csv:NAME=FILE.csv, NAME {problem}"),
            (
                (prefix if is_csv else name) not in readers,
                f"{flag} {word}: expected NAME or NAME=PATH, NAME one of {', '.join(readers)}",
            ),
            (name in sets, f"{flag}: {name} is listed twice"),
            (
                same_name != name,
                f"{flag} {word}: expected a name that {same_name} does not have too",
            ),
            (is_csv and not path, f"{flag} {name}: expected {name}=FILE.csv"),
        ]
        # The first mistake of a word may cause the others.
        mistakes += [message for is_broken, message in rules if is_broken][:1]
        sets[name] = Path(path).expanduser() if path else None
    if mistakes:
        raise errors.UserError("; ".join(mistakes))
    return sets


def _problem_of_name(name: str) -> str:
    # What a CSV set's name ought to be; "" if it is so.
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

    flag: False means no set; True, or a list without names, means every CSV set. A list of names
    means these sets.
    """
    csv_sets = [name for name in names if reader_name(name) == "csv"]
    if isinstance(flag, list) and flag:
        return {set_named(word, csv_sets) for word in flag} - {None}
    return set() if flag is False else set(csv_sets)


def check_lower_is_better(flag: bool | list[str], names: Iterable[str]) -> None:
    """Raise UserError if `--lower_is_better` lists a word that names no CSV set of the command."""
    csv_sets = [name for name in names if reader_name(name) == "csv"]
    words = flag if isinstance(flag, list) else []
    unknown = [word for word in words if set_named(word, csv_sets) is None]
    if unknown:
        raise errors.UserError(
            f"--lower_is_better {' '.join(unknown)}: expected CSV sets of this run: "
            f"{', '.join(map(record_name, csv_sets))}"
        )
