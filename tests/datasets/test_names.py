"""The names of sets in flags: what they may be, and that both spellings of one mean the same."""

import re
from argparse import Namespace
from pathlib import Path

import pytest

import certify
from hyperiqa.base.errors import UserError
from hyperiqa.base.files import CHECKOUT
from hyperiqa.datasets.names import (
    RESERVED,
    check_lower_is_better,
    demo_folder,
    lower_is_better_sets,
    parse_set_names,
    set_named,
)
from hyperiqa.datasets.readers import READERS
from hyperiqa.pages.scored_sets import _places_now
from hyperiqa.runs.measures import Measure
from hyperiqa.runs.old_logs import _ACTIONS


def refused(word):
    with pytest.raises(UserError, match=f"^--dataset {re.escape(word)}: expected csv:NAME=FILE"):
        parse_set_names("--dataset", [word], READERS)


@pytest.mark.parametrize("name", [*READERS, "spaq-official", *RESERVED, "a_val", "a-official"])
def test_no_csv_set_has_a_name_that_records_use(name):
    """Nor the name of a set that has a reader, in whatever case: columns are read in lower case."""
    for spelling in (name, name.upper(), name.capitalize()):
        refused(f"csv:{spelling}=x.csv")


def test_no_csv_set_begins_a_line_of_a_log_that_says_something_else():
    """`NAME: 4 test images` beside what `old_logs` takes for a setting, a device or an error."""
    words = {word for pattern in _ACTIONS for word in re.findall(r"[A-Za-z]+", pattern)}
    taken = [w for w in words if any(re.match(p, f"{w}: 4 test images") for p in _ACTIONS)]
    assert {"Run", "Settings", "Device", "Interrupted", "error"} <= set(taken)
    for word in taken:
        refused(f"csv:{word}=x.csv")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a+b", "a" * 101])
def test_a_name_has_letters_digits_and_three_marks(name):
    refused(f"csv:{name}=x.csv")


def test_names_that_only_resemble_ours_are_free():
    words = ["csv:mine=a.csv", "csv:tests=b.csv", "csv:val1=c.csv", "csv:koniq=d.csv", "live"]
    assert list(parse_set_names("--dataset", words, READERS)) == [
        *("csv:mine", "csv:tests", "csv:val1", "csv:koniq", "live")
    ]


def test_two_sets_never_have_one_name_in_records():
    said = "--dataset csv:LOW=b.csv: expected a name that csv:low does not have too"
    with pytest.raises(UserError, match=said):
        parse_set_names("--dataset", ["csv:low=a.csv", "csv:LOW=b.csv"], READERS)
    with pytest.raises(UserError, match="--cross_test csv:Low=b.csv: expected a name that csv:low"):
        parse_set_names("--cross_test", ["csv:Low=b.csv"], READERS, others=["koniq-10k", "csv:low"])


def test_both_spellings_of_a_set_mean_it():
    names = ["koniq-10k", "csv:low", "csv"]
    spelt = {word: set_named(word, names) for word in ("low", "csv:low", "koniq-10k", "csv")}
    assert spelt == {"low": "csv:low", "csv:low": "csv:low", "koniq-10k": "koniq-10k", "csv": "csv"}
    assert set_named("csv:koniq-10k", names) is None
    for word in ("low", "csv:low"):
        assert lower_is_better_sets([word], names) == {"csv:low"}
        check_lower_is_better([word], names)
    assert lower_is_better_sets(True, names) == {"csv:low", "csv"}
    # A certificate's sets are read one by one with the settings of all.
    assert lower_is_better_sets(["other"], names) == set()
    with pytest.raises(UserError, match="--lower_is_better other: expected CSV sets .*: low, csv$"):
        check_lower_is_better(["other", "low"], names)


@pytest.mark.parametrize("prefix", ["", "csv:"])
def test_tools_take_both_spellings(prefix):
    """certify.py, report.py, and --metric of compare_logs.py and search.py."""
    sets = {
        "low": {"flag": "csv:low", "path": None, "trained": True},
        "other": {"flag": "csv:other", "path": None, "trained": False},
        "spaq-official": {"flag": "spaq", "path": None, "trained": False},
    }
    flags = Namespace(
        cross_test=[f"{prefix}other=x", "spaq-official=z"],
        dataset_path=[f"{prefix}low=y", "spaq=z"],
        spaq_path=None,
    )
    places = {"low": Path("y"), "other": Path("x"), "spaq-official": Path("z")}
    assert certify.find_sets(flags, sets) == places
    then = {"csv:low": "there", "spaq": None}
    now = {"csv:low": Path("here"), "spaq": None}
    assert _places_now(then, {f"{prefix}low": Path("here"), "elsewhere": Path("x")}) == now
    assert (Measure(f"{prefix}low_plcc").part, Measure("plcc").part) == ("low", "test")


@pytest.mark.parametrize("places", [{}, {"demo": None}, {"spaq": Path("elsewhere")}])
def test_the_demo_lies_beside_the_scripts_unless_a_place_is_given(places):
    assert demo_folder(places) == CHECKOUT / "demo"
    assert demo_folder({**places, "demo": Path("mine/demo")}) == Path("mine/demo")
