"""Behind a figure: the standards, the power to see a difference, what flatters, what a perfect model would reach."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hyperiqa.stats import intervals
from hyperiqa.stats import standards
from hyperiqa.runs.reading import UNDER_WAY, Entry, Measure, Run, shown_estimate
from hyperiqa.stats.intervals import NAN, Difference
from hyperiqa.stats.standards import STANDARDS, Measured

ALIKE = 0.9  # correlation of two models' errors where there is no second run to measure it on
ALL = "all sets"

Sets = dict[str, dict[str, Measured]]  # data set -> figure -> what was measured


def with_all(sets: Sets) -> Sets:
    """The sets, and where there are several the figures over all of those that have them."""
    shared = [name for name in STANDARDS if all(name in found for found in sets.values())]
    if len(sets) < 2 or not shared:
        return sets
    return {**sets, ALL: {n: standards.over_sets(n, [found[n] for found in sets.values()]) for n in shared}}


def of_entry(entry: Entry) -> Sets:
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
            sets.setdefault(part, {})[name] = Measured(float(np.mean(values)), np.mean(influences, 0))
    return with_all(sets)


def table(rows: Sequence[tuple[str, str, Mapping[str, Measured]]], first: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of (name, set, figures); first: the title of the names."""
    names = [name for name in STANDARDS if any(name in found for _, _, found in rows)]
    shown = lambda name, found: shown_estimate(standards.estimate(name, found[name])) if name in found else "–"  # noqa: E731
    cells = [[who, of, *(shown(name, found) for name in names)] for who, of, found in rows]
    return [first, "set", *(STANDARDS[name].title for name in names)], cells


def differences(a: Entry, b: Entry, sets: Mapping[Entry, Sets]) -> list[tuple[str, str, Difference, float]]:
    """(set, figure, A − B, Pitman and Morgan's p of two runs' RMSE, else nan) of entries with the same images."""
    found = []
    for of, name in itertools.product(sets[a], STANDARDS):
        both = [sets[each].get(of, {}).get(name) for each in (a, b)]
        if None in both or len(both[0].influence) != len(both[1].influence):
            continue
        p, runs = NAN, [run.scores(of) for run in (*a.runs, *b.runs)]
        if name == "rmse" and of != ALL and len(runs) == 2 and runs[0].keys == runs[1].keys:
            p = standards.pitman_morgan(*(standards.monotonic_cubic(each.score, each.mos) - each.mos for each in runs))
        found.append((of, name, standards.difference(*both), p))
    return found


def power(entry: Entry, entries: Sequence[Entry], measure: Measure) -> Iterator[str]:
    """What difference could be seen by more runs like this entry's, on its images."""
    run, keys = entry.runs[0], measure.common_images(entry.runs)
    if keys is None:
        yield f"{entry.name}: no power without predictions of its best epoch"
        return
    draws = [measure.draws(each, keys) for each in entry.runs]
    others = [r for e in entries if e is not entry for r in e.runs if (s := measure.scores(r)) and s.keys == keys]
    if others:
        pair = float(np.median([np.nanvar(draws[0] - measure.draws(other, keys)) for other in others]))
        like = f"another setting is taken to differ like the other runs here ({len(others)})"
    else:
        pair = _made_up_pair(measure, run, keys)
        like = f"another setting's errors are taken to correlate by {ALIKE} with this run's"
    of_seeds, spread, said = 0.0, 0.0, "how seeds spread, and what more of them bring, is not known from one"
    if len(draws) > 1:
        of_seeds = float(np.mean([np.nanvar(x - y) for x, y in itertools.combinations(draws, 2)]))
        spread = max(0.0, float(np.var([measure.value(each) for each in entry.runs], ddof=1)) - of_seeds / 2)
        said = f"seeds spread by {math.sqrt(spread):.4f} beyond what images do, known from {len(draws)}"
    found = intervals.visible_differences(pair, of_seeds, spread)
    yield f"Smallest difference in {measure.metric} found 80 times in 100, {len(keys):,} images, by seeds per setting:"
    yield "  ".join(f"{k}{' (images alone)' if k == 1 else ''}: {value:.4f}" for k, value in enumerate(found, 1))
    yield f"{entry.name}: {like}; {said}"


def _made_up_pair(measure: Measure, run: Run, keys: Sequence) -> float:
    """The variance over resamples of the difference to a run whose errors are like this one's, but not the same."""
    score, mos = measure.scores(run).on(keys)
    mapped = standards.monotonic_cubic(score, mos)
    error = mapped - mos
    other = mos + ALIKE * error + math.sqrt(1 - ALIKE**2) * np.random.default_rng(0).permutation(error)
    draws = intervals.bootstrap(measure.name, np.stack([mapped, other]), mos, measure.resamples)
    return float(np.nanvar(draws[:, 0] - draws[:, 1]))


def footnotes(entries: Sequence[Entry], measure: Measure) -> Iterator[str]:
    """What is said below a table of entries: what its signs mean, what flatters, what a perfect model would reach."""
    found, runs = [measure.estimate(entry) for entry in entries], [run for entry in entries for run in entry.runs]
    if any(not e.approximate and not math.isnan(e.low) for e in found):
        yield f"[…] 95 % interval: bootstrap over test images, {measure.resamples} resamples"
    if any(e.approximate for e in found):
        paper = {"srcc": "Bonett & Wright 2000", "plcc": "Fisher"}.get(measure.name, "")
        single = f"from the number of test images alone ({paper}), for want of predictions"
        yield f"~ approximate: {'from the seeds alone' if any(len(e.runs) > 1 for e in entries) else single}"
    if any(not math.isnan(e.deviation) for e in found):
        yield "± standard deviation over seeds; intervals over seeds and images"
    if any(run.status == UNDER_WAY for run in runs):
        yield "running?: its records have no end; it goes on, or it was killed"
    if measure.epoch == "best":
        yield "best: the epoch that the run chose; where its log names none, that of the highest test SRCC"
    prices = sorted(run.price for run in runs if not math.isnan(run.price))
    if prices and measure.metric == "srcc" and measure.epoch == "best":
        most = "" if prices[0] == prices[-1] else f" to {prices[-1]:+.4f}"
        yield f"chosen on the test set: about {prices[0]:+.4f}{most} of the SRCC is that choice's"
    for run in runs:
        scores = measure.scores(run)
        error = None if scores is None else run.errors(measure.part, scores.keys)
        if error is not None and measure.name in ("srcc", "plcc"):
            best = intervals.ceiling(scores.mos, error)[measure.name]
            yield f"a perfect model would reach {measure.metric} {best:.4f}, given the votes of {len(error):,} images"
            return
