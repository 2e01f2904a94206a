"""Which difference more runs like one would show."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from hyperiqa.runs.entries import Entry
from hyperiqa.runs.measures import Measure
from hyperiqa.runs.reading import Run
from hyperiqa.stats import intervals, resampling, standards

ALIKE = 0.9  # correlation of two models' errors where there is no second run to measure it on


def power(entry: Entry, entries: Sequence[Entry], measure: Measure) -> Iterator[str]:
    """What difference could be seen by more runs like this entry's, on its images."""
    run, keys = entry.runs[0], measure.common_images(entry.runs)
    if keys is None:
        yield f"{entry.name}: no power without predictions of its best epoch"
        return
    draws = [measure.draws(each, keys) for each in entry.runs]
    others = [
        r
        for e in entries
        if e is not entry
        for r in e.runs
        if (s := measure.scores(r)) and s.keys == keys
    ]
    if others:
        pair = float(
            np.median([np.nanvar(draws[0] - measure.draws(other, keys)) for other in others])
        )
        like = f"another setting is taken to differ like the other runs here ({len(others)})"
    else:
        pair = _made_up_pair(measure, run, keys)
        like = f"another setting's errors are taken to correlate by {ALIKE} with this run's"
    of_seeds, spread, said = (
        0.0,
        0.0,
        "how seeds spread, and what more of them bring, is not known from one",
    )
    if len(draws) > 1:
        of_seeds = float(np.mean([np.nanvar(x - y) for x, y in itertools.combinations(draws, 2)]))
        spread = max(
            0.0, float(np.var([measure.value(each) for each in entry.runs], ddof=1)) - of_seeds / 2
        )
        said = f"seeds spread by {math.sqrt(spread):.4f} beyond what images do, known from {len(draws)}"
    found = intervals.visible_differences(pair, of_seeds, spread)
    yield f"Smallest difference in {measure.metric} found 80 times in 100, {len(keys):,} images, by seeds per setting:"
    yield "  ".join(
        f"{k}{' (images alone)' if k == 1 else ''}: {value:.4f}" for k, value in enumerate(found, 1)
    )
    yield f"{entry.name}: {like}; {said}"


def _made_up_pair(measure: Measure, run: Run, keys: Sequence) -> float:
    """The variance over resamples of the difference to a run whose errors are like this one's, but not the same."""
    score, mos = measure.scores(run).on(keys)
    mapped = standards.monotonic_cubic(score, mos)
    error = mapped - mos
    other = (
        mos + ALIKE * error + math.sqrt(1 - ALIKE**2) * np.random.default_rng(0).permutation(error)
    )
    draws = resampling.bootstrap(measure.name, np.stack([mapped, other]), mos, measure.resamples)
    return float(np.nanvar(draws[:, 0] - draws[:, 1]))
