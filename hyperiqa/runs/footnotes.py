"""What is said below a table of runs."""

import math
from collections.abc import Iterator, Sequence

from hyperiqa.runs.entries import Entry
from hyperiqa.runs.measures import Measure
from hyperiqa.runs.reading import UNDER_WAY
from hyperiqa.stats import intervals


def footnotes(entries: Sequence[Entry], measure: Measure) -> Iterator[str]:
    """What is said below a table of entries: what its signs mean, what flatters, what a perfect model would reach."""
    found, runs = (
        [measure.estimate(entry) for entry in entries],
        [run for entry in entries for run in entry.runs],
    )
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
    prices = sorted(run.selection_bias for run in runs if not math.isnan(run.selection_bias))
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
