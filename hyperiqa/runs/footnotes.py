"""The lines below a table of runs: what its signs mean, and what flatters its figures."""

import math
from collections.abc import Iterator, Sequence

from hyperiqa.runs.entries import Entry
from hyperiqa.runs.measures import Measure
from hyperiqa.runs.reading import UNDER_WAY, Run
from hyperiqa.stats import intervals
from hyperiqa.stats.intervals import Estimate

_PAPERS = {"srcc": "Bonett & Wright 2000", "plcc": "Fisher"}


def footnotes(entries: Sequence[Entry], measure: Measure) -> Iterator[str]:
    """The lines below a table of entries.

    What its signs mean, what flatters, and what a perfect model would reach.
    """
    estimates = [measure.estimate(entry) for entry in entries]
    runs = [run for entry in entries for run in entry.runs]
    yield from _interval_notes(estimates, measure, any(len(entry.runs) > 1 for entry in entries))
    if any(run.status == UNDER_WAY for run in runs):
        yield "running?: its records have no end; it goes on, or it was killed"
    if measure.epoch == "best":
        yield (
            "best: the epoch that the run chose; where its log names none, that of the "
            "highest test SRCC"
        )
        if measure.metric == "srcc":
            yield from _selection_note(runs)
    # The figures of which `intervals.ceiling` knows the largest.
    if measure.name in ("srcc", "plcc"):
        yield from _ceiling_note(runs, measure)


def _interval_notes(
    estimates: Sequence[Estimate], measure: Measure, grouped: bool
) -> Iterator[str]:
    if any(not estimate.approximate and not math.isnan(estimate.low) for estimate in estimates):
        yield f"[…] 95 % interval: bootstrap over test images, {measure.resamples} resamples"
    if any(estimate.approximate for estimate in estimates):
        paper = _PAPERS.get(measure.name, "")
        origin = f"from the number of test images alone ({paper}), for want of predictions"
        yield f"~ approximate: {'from the seeds alone' if grouped else origin}"
    if any(not math.isnan(estimate.deviation) for estimate in estimates):
        yield "± standard deviation over seeds; intervals over seeds and images"


def _selection_note(runs: Sequence[Run]) -> Iterator[str]:
    """By how much choosing the epoch on the test set flatters these runs."""
    biases = sorted(run.selection_bias for run in runs if not math.isnan(run.selection_bias))
    if biases:
        most = "" if biases[0] == biases[-1] else f" to {biases[-1]:+.4f}"
        yield f"chosen on the test set: about {biases[0]:+.4f}{most} of the SRCC is that choice's"


def _ceiling_note(runs: Sequence[Run], measure: Measure) -> Iterator[str]:
    """What a perfect model would reach on the images of the first run that has votes."""
    for run in runs:
        scores = measure.scores(run)
        error = None if scores is None else run.errors(measure.part, scores.keys)
        if error is not None:
            best = intervals.ceiling(scores.mos, error)[measure.name]
            yield (
                f"a perfect model would reach {measure.metric} {best:.4f}, given the votes of "
                f"{len(error):,} images"
            )
            return
