import json
import math

import pytest

from hyperiqa.base.schema import (
    FIGURE,
    PLAIN,
    TRUTH,
    Every,
    Fields,
    maybe,
    mismatch,
    number,
    one_of,
    table,
    text,
    whole_number,
)

NESTED = []
for _ in range(30):
    NESTED = [NESTED]

SCHEMA = Fields(
    {"count": whole_number(1, 9), "crop": one_of("center", "grid")},
    {
        "mean": Every(number(), 3, 3),
        "flag": TRUTH,
        "name": text(r"\w+", "a name", longest=8),
        "share": maybe(number(0, 1)),
        "figures": table(table(FIGURE)),
    },
    PLAIN,
)
GOOD = {"count": 9, "crop": "grid", "mean": (1, 2.5, -3), "flag": False, "name": "a_1"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"share": None},
        {"share": 1},
        {"figures": {"test": {"srcc": None, "plcc": math.nan, "rmse": 2}}},
        {"a new field": [{"of": [1, "any"]}, None, True]},
    ],
)
def test_what_fits(change):
    assert mismatch(GOOD | change, SCHEMA) is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"count": 0}, "count: expected a whole number from 1 to 9, found 0"),
        ({"count": 4.0}, "count: expected a whole number from 1 to 9, found 4.0"),
        ({"count": True}, "count: expected a whole number from 1 to 9, found True"),
        ({"count": "4"}, "count: expected a whole number from 1 to 9, found '4'"),
        ({"crop": "evil"}, "crop: expected one of center, grid, found 'evil'"),
        ({"crop": ["grid"]}, "crop: expected one of center, grid, found ['grid']"),
        ({"mean": [1, 2]}, "mean: expected a list of 3 values, found [1, 2]"),
        ({"mean": [1, 2, math.nan]}, "mean[2]: expected a number, found nan"),
        ({"mean": [1, 2, math.inf]}, "mean[2]: expected a number, found inf"),
        ({"flag": 1}, "flag: expected true or false, found 1"),
        ({"name": "a b"}, "name: expected a name, found 'a b'"),
        ({"name": "a" * 9}, "name: expected a name, found 'aaaaaaaaa'"),
        ({"share": 1.5}, "share: expected a number from 0 to 1, or null, found 1.5"),
        ({"figures": {"test": 3}}, "figures.test: expected named fields, found 3"),
        (
            {"figures": {"test": {"srcc": "high"}}},
            "figures.test.srcc: expected a number, or null, found 'high'",
        ),
        ({"figures": {1: {}}}, "figures: expected named fields, found {1: {}}"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_field(change, line):
    assert mismatch(GOOD | change, SCHEMA) == line


def test_a_missing_field_is_named():
    assert mismatch({"crop": "grid"}, SCHEMA, "certificate") == "certificate.count: missing"
    assert mismatch([], SCHEMA) == "the whole: expected named fields, found []"


def test_long_values_and_names_are_not_printed_whole():
    for content in ({"count": "x" * 10**6}, {"y" * 10**6: {1: 2}}, {"count": [[0] * 10**5] * 9}):
        assert len(mismatch(GOOD | content, SCHEMA)) < 400


def test_values_that_are_too_deep_or_not_of_json_are_not_plain():
    assert "at most 20 levels deep" in mismatch(GOOD | {"new": NESTED}, SCHEMA)
    assert mismatch(GOOD | {"new": {"of": object()}}, SCHEMA).startswith("new: expected plain")


def test_numbers_beyond_floats_are_no_numbers():
    huge = json.loads("1" + "0" * 400)
    assert mismatch(huge, number()).startswith("the whole: expected a number, found 1000")
