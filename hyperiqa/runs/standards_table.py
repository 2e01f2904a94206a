"""The standards' figures of runs and of test sets, as rows of a table."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from hyperiqa.runs.entries import Entry
from hyperiqa.runs.tables import estimate_text
from hyperiqa.stats import standards
from hyperiqa.stats.intervals import NAN, Difference
from hyperiqa.stats.standards import STANDARDS, Measured

ALL = "all sets"

Sets = dict[str, dict[str, Measured]]  # data set -> figure -> what was measured


def with_overall(sets: Sets) -> Sets:
    """The sets, and where there are several the figures over all of those that have them."""
    shared = [name for name in STANDARDS if all(name in found for found in sets.values())]
    if len(sets) < 2 or not shared:
        return sets
    return {
        **sets,
        ALL: {n: standards.over_sets(n, [found[n] for found in sets.values()]) for n in shared},
    }


def entry_standards(entry: Entry) -> Sets:
    """The standards' figures on a run's test set and cross tests with known scores; over seeds means, by image."""
    sets: Sets = {}
    for part in ("test", *entry.runs[0].cross_tests):
        scores = [run.scores(part) for run in entry.runs]
        if None in scores or any(each.keys != scores[0].keys for each in scores):
            continue
        errors = entry.runs[0].errors(part, scores[0].keys)
        found = [standards.measure(each.score, each.mos, errors) for each in scores]
        for name in (name for name in STANDARDS if all(name in each for each in found)):
            values, influences = zip(*((each[name].value, each[name].influence) for each in found))
            sets.setdefault(part, {})[name] = Measured(
                float(np.mean(values)), np.mean(influences, 0)
            )
    return with_overall(sets)


def table(
    rows: Sequence[tuple[str, str, Mapping[str, Measured]]], first: str
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of (name, set, figures); first: the title of the names."""
    names = [name for name in STANDARDS if any(name in found for _, _, found in rows)]
    shown = lambda name, found: (
        estimate_text(standards.estimate(name, found[name])) if name in found else "–"
    )  # noqa: E731
    cells = [[who, of, *(shown(name, found) for name in names)] for who, of, found in rows]
    return [first, "set", *(STANDARDS[name].title for name in names)], cells


def differences(
    a: Entry, b: Entry, sets: Mapping[Entry, Sets]
) -> list[tuple[str, str, Difference, float]]:
    """(set, figure, A − B, Pitman and Morgan's p of two runs' RMSE, else nan) of entries with the same images."""
    found = []
    for of, name in itertools.product(sets[a], STANDARDS):
        both = [sets[each].get(of, {}).get(name) for each in (a, b)]
        if None in both or len(both[0].influence) != len(both[1].influence):
            continue
        p, runs = NAN, [run.scores(of) for run in (*a.runs, *b.runs)]
        if name == "rmse" and of != ALL and len(runs) == 2 and runs[0].keys == runs[1].keys:
            p = standards.pitman_morgan(
                *(standards.monotonic_cubic(each.score, each.mos) - each.mos for each in runs)
            )
        found.append((of, name, standards.difference(*both), p))
    return found
