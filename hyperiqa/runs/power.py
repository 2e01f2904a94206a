"""Which difference more runs like a given one would show."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from hyperiqa.runs.entries import Entry
from hyperiqa.runs.measures import Measure
from hyperiqa.runs.reading import Key, Run
from hyperiqa.stats import intervals, resampling, standards

# Correlation of two models' errors, where there is no second run to measure it on.
ALIKE = 0.9


def power(entry: Entry, entries: Sequence[Entry], measure: Measure) -> Iterator[str]:
    """The smallest differences that more runs like this entry's would show, on its images.

    entries: the settings that are known, which tell how much two of them differ by chance.
    """
    keys = measure.common_images(entry.runs)
    if keys is None:
        yield f"{entry.name}: no power without predictions of its best epoch"
        return
    draws = [measure.draws(run, keys) for run in entry.runs]
    other_runs = _runs_on(keys, [setting for setting in entries if setting is not entry], measure)
    if other_runs:
        differences = [draws[0] - measure.draws(run, keys) for run in other_runs]
        pair = float(np.median([np.nanvar(difference) for difference in differences]))
        pair_note = (
            f"another setting is taken to differ like the other runs here ({len(other_runs)})"
        )
    else:
        pair = _made_up_pair(measure, entry.runs[0], keys)
        pair_note = f"another setting's errors are taken to correlate by {ALIKE} with this run's"
    of_seeds = 0.0
    spread = 0.0
    seeds_note = "how seeds spread, and what more of them bring, is not known from one"
    if len(draws) > 1:
        variances = [np.nanvar(x - y) for x, y in itertools.combinations(draws, 2)]
        of_seeds = float(np.mean(variances))
        values = [measure.value(run) for run in entry.runs]
        # A difference of two seeds varies over images twice as much as a seed does.
        spread = max(0.0, float(np.var(values, ddof=1)) - of_seeds / 2)
        seeds_note = (
            f"seeds spread by {math.sqrt(spread):.4f} beyond what images do, "
            f"known from {len(draws)}"
        )
    yield (
        f"Smallest difference in {measure.metric} found 80 times in 100, {len(keys):,} images, "
        "by seeds per setting:"
    )
    # One seed a setting is as sure as its images, whatever seeds do.
    first, *more = intervals.visible_differences(pair, of_seeds, spread)
    cells = [f"{seeds}: {value:.4f}" for seeds, value in enumerate(more, 2)]
    yield "  ".join([f"1 (images alone): {first:.4f}", *cells])
    yield f"{entry.name}: {pair_note}; {seeds_note}"


def _runs_on(keys: tuple[Key, ...], entries: Sequence[Entry], measure: Measure) -> list[Run]:
    """The entries' runs that have predictions of just these images."""
    runs = []
    for entry in entries:
        for run in entry.runs:
            scores = measure.scores(run)
            if scores is not None and scores.keys == keys:
                runs.append(run)
    return runs


def _made_up_pair(measure: Measure, run: Run, keys: Sequence[Key]) -> float:
    """The variance over resamples of the difference to a made-up run.

    The made-up run's errors are as large as this one's, and correlate with them by `ALIKE`.
    """
    score, mos = measure.scores(run).on(keys)
    mapped = standards.monotonic_cubic(score, mos)
    error = mapped - mos
    shuffled = np.random.default_rng(0).permutation(error)
    made_up = mos + ALIKE * error + math.sqrt(1 - ALIKE**2) * shuffled
    draws = resampling.bootstrap(measure.name, np.stack([mapped, made_up]), mos, measure.resamples)
    return float(np.nanvar(draws[:, 0] - draws[:, 1]))
