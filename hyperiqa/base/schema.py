"""What a file from elsewhere may contain, and one line on a value that does not fit.

A schema is built from `Kind`, `Every` and `Fields`. `mismatch` compares a value with it and names
the first field that does not fit, what was expected and what was found, such as
`certificate.epoch: expected a whole number of at least 1, found 'x'`. The values are those of JSON;
tuples count as lists. A long value is neither copied nor printed whole.
"""

import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

# No sensible number is larger, and a float can hold every smaller number.
HUGE = 1e300


@dataclass(frozen=True)
class Kind:
    """A kind of single values: what is expected, in words, and whether a value fits."""

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Every:
    """A list of `least` to `most` values of one kind."""

    kind: "Schema"
    least: int = 0
    most: int = 1_000_000


@dataclass(frozen=True)
class Fields:
    """Named fields: the required ones, the optional ones, and the kind of all others."""

    required: Mapping[str, "Schema"]
    optional: Mapping[str, "Schema"]
    others: "Schema"


Schema = Union[Kind, Every, Fields]  # noqa: UP007  (names in quotes)


def number(low: float = -HUGE, high: float = HUGE) -> Kind:
    """Numbers from `low` to `high`, without nan and infinity."""
    return Kind(f"a number{_range(low, high)}", lambda x: _is_number(x) and low <= x <= high)


def whole_number(low: int, high: float = HUGE) -> Kind:
    """Whole numbers from `low` to `high`."""
    return Kind(
        f"a whole number{_range(low, high)}",
        lambda x: _is_number(x) and isinstance(x, int) and low <= x <= high,
    )


def _is_number(value: object) -> bool:
    # To Python, True is the number 1.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _range(low: float, high: float) -> str:
    if high < HUGE:
        return f" from {low:.10g} to {high:.10g}"
    return f" of at least {low:.10g}" if low > -HUGE else ""


def text(pattern: str = r"[\s\S]*", words: str = "a text", longest: int = 10_000) -> Kind:
    """Texts that a regular expression matches as a whole."""
    return Kind(
        words,
        lambda x: isinstance(x, str) and len(x) <= longest and bool(re.fullmatch(pattern, x)),
    )


def one_of(*choices: str) -> Kind:
    """One of a few texts."""
    return Kind(f"one of {', '.join(choices)}", lambda x: isinstance(x, str) and x in choices)


def maybe(kind: Kind) -> Kind:
    """A value of the kind, or none (null)."""
    return Kind(f"{kind.words}, or null", lambda x: x is None or kind.fits(x))


TRUTH = Kind("true or false", lambda x: isinstance(x, bool))
# A figure of merit may be undefined: it is nan in a pickle and null in JSON.
FIGURE = Kind("a number, or null", lambda x: x is None or x != x or number().fits(x))


def plain(depth: int) -> Kind:
    """Anything that JSON can hold, with at most so many levels of lists and fields."""
    return Kind(f"plain values, at most {depth} levels deep", lambda x: _is_plain(x, depth))


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return False
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, (str, int, float))


PLAIN = plain(20)


def table(kind: Schema) -> Fields:
    """Fields with any names, all of one kind."""
    return Fields({}, {}, kind)


def mismatch(value: Any, schema: Schema, name: str = "") -> str | None:
    """One line on the first field of a value that does not fit; None if everything fits.

    name: the name of the field that has the value; "" for the outermost one.
    """
    expected = None
    inner: list[tuple[str, Any, Schema]] = []
    if isinstance(schema, Kind):
        expected = None if schema.fits(value) else schema.words
    elif isinstance(schema, Every):
        if isinstance(value, (list, tuple)) and schema.least <= len(value) <= schema.most:
            inner = [(f"{name}[{i}]", item, schema.kind) for i, item in enumerate(value)]
        else:
            span = f"{schema.least} to {schema.most}"
            expected = f"a list of {schema.least if schema.least == schema.most else span} values"
    elif not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        expected = "named fields"
    elif missing := [key for key in schema.required if key not in value]:
        return f"{_joined(name, missing[0])}: missing"
    else:
        kinds = {**schema.optional, **schema.required}
        inner = [
            (_joined(name, key), item, kinds.get(key, schema.others)) for key, item in value.items()
        ]
    if expected is not None:
        return f"{name or 'the whole'}: expected {expected}, found {reprlib.repr(value)}"
    return next(filter(None, (mismatch(item, kind, field) for field, item, kind in inner)), None)


def _joined(name: str, key: str) -> str:
    # A key comes from the file too, and may be as long as the file.
    return f"{name}.{key[:40]}" if name else key[:40]
