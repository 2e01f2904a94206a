"""The standards' figures of runs and of test sets, as rows of a table."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from hyperiqa.runs import measures, tables
from hyperiqa.stats import intervals, standards

ALL = "all sets"
_UNKNOWN = standards.Measured(intervals.NAN, np.empty(0))

# Data set -> figure -> what was measured.
Sets = dict[str, dict[str, standards.Measured]]


def with_overall(sets: Sets) -> Sets:
    """Add the figures over all sets, where there are several sets, that every set has."""
    if len(sets) < 2:
        return sets
    overall = {
        name: standards.over_sets(name, [figures[name] for figures in sets.values()])
        for name in _in_all(list(sets.values()))
    }
    return {**sets, ALL: overall} if overall else sets


def _in_all(figures: Sequence[Mapping[str, standards.Measured]]) -> list[str]:
    return [name for name in standards.STANDARDS if all(name in measured for measured in figures)]


def entry_standards(entry: measures.Entry) -> Sets:
    """The standards' figures on a run's test set and cross tests with known scores.

    Of several seeds, the figures and each image's influence are averaged.
    """
    sets: Sets = {}
    for part in ("test", *entry.runs[0].cross_tests):
        scores = [run.scores(part) for run in entry.runs]
        if None in scores or any(of_run.keys != scores[0].keys for of_run in scores):
            continue
        # Seeds share the images, and so the votes.
        errors = entry.runs[0].errors(part, scores[0].keys)
        figures = [standards.measure(of_run.score, of_run.mos, errors) for of_run in scores]
        for name in _in_all(figures):
            sets.setdefault(part, {})[name] = standards.Measured(
                value=float(np.mean([measured[name].value for measured in figures])),
                influence=np.mean([measured[name].influence for measured in figures], 0),
            )
    return with_overall(sets)


def table(
    rows: Sequence[tuple[str, str, Mapping[str, standards.Measured]]], first: str
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of (name, set, figures); first: the title of the names."""
    names = [name for name in standards.STANDARDS if any(name in figures for _, _, figures in rows)]
    lines = []
    for row_name, dataset, figures in rows:
        estimates = [standards.estimate(name, figures.get(name, _UNKNOWN)) for name in names]
        lines.append([row_name, dataset, *map(tables.estimate_text, estimates)])
    return [first, "set", *(standards.STANDARDS[name].title for name in names)], lines


def differences(
    a: measures.Entry, b: measures.Entry, sets: Mapping[measures.Entry, Sets]
) -> list[tuple[str, str, intervals.Difference, float]]:
    """(set, figure, A − B, p-value of Pitman and Morgan) of entries with the same images.

    The p-value is nan but for the RMSE of two single runs.
    """
    tested = []
    for dataset, name in itertools.product(sets[a], standards.STANDARDS):
        figure_a = sets[a][dataset].get(name)
        figure_b = sets[b].get(dataset, {}).get(name)
        # Influences are subtracted image by image, of which both must have the same number.
        if not figure_a or not figure_b or len(figure_a.influence) != len(figure_b.influence):
            continue
        difference = standards.difference(figure_a, figure_b)
        # A figure that is undefined for one of them, or not surely known, is not tested.
        if np.isnan(difference.p):
            continue
        p = _residuals_p(a, b, dataset) if name == "rmse" and dataset != ALL else intervals.NAN
        tested.append((dataset, name, difference, p))
    return tested


def _residuals_p(a: measures.Entry, b: measures.Entry, part: str) -> float:
    scores = [run.scores(part) for run in (*a.runs, *b.runs)]
    if len(scores) != 2 or scores[0].keys != scores[1].keys:
        return intervals.NAN
    residuals = [standards.monotonic_cubic(run.score, run.mos) - run.mos for run in scores]
    return standards.pitman_morgan(*residuals)
