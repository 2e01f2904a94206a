"""A figure of merit, how it is taken of runs, and the entries that a tool shows by it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hyperiqa.base.command_line import Range
from hyperiqa.base.errors import UserError
from hyperiqa.runs.entries import Entry, group
from hyperiqa.runs.reading import Key, Run, Scores
from hyperiqa.stats import intervals, metrics, resampling
from hyperiqa.stats.intervals import NAN, Estimate


def _is_figure(name: str) -> bool:
    return metrics.figure_of(name)[1] in metrics.FIGURES


# What `--metric` takes.
FIGURE: Range = (f"[SET_]FIGURE, FIGURE one of {', '.join(metrics.FIGURES)}", _is_figure)


@dataclass
class Measure:
    """A figure of merit and how it is taken.

    epoch: `best`, `last` or a number. logistic: PLCC and RMSE after the fit.
    """

    metric: str = "srcc"
    epoch: str = "best"
    logistic: bool = False
    resamples: int = resampling.RESAMPLES
    # (run, keys of its images) -> the figure on each resample (B,).
    _draws: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.part, self.name = metrics.figure_of(self.metric)
        self.higher_is_better = metrics.FIGURES[self.name].higher_is_better
        # Whether the scores are mapped by the logistic.
        self.fitted = self.logistic and metrics.FIGURES[self.name].fitted
        # The interval from the number of images alone; None where there is none.
        self.formula = None if self.fitted else intervals.FORMULAS.get(self.name)

    def scores(self, run: Run) -> Scores | None:
        """The predictions behind the figure; None where there are none.

        They are mapped by the logistic where it is asked for.
        """
        # A run leaves the predictions of its best epoch alone.
        scores = run.scores(self.part) if run.epoch(self.epoch) == run.best else None
        if scores is None or not self.fitted:
            return scores
        mapped = metrics.fitted(scores.score, scores.mos)
        return None if mapped is None else replace(scores, score=mapped)

    def value(self, run: Run, keys: Sequence[Key] | None = None) -> float:
        """The figure, on these images alone if any are given."""
        recorded = NAN if self.fitted else run.figure(self.part, self.name, run.epoch(self.epoch))
        # Plain logs record SRCC and PLCC alone; the predictions give any figure.
        if keys is None and not math.isnan(recorded):
            return recorded
        scores = self.scores(run)
        if scores is None:
            return NAN
        return metrics.FIGURES[self.name].of(*scores.on(keys or scores.keys))

    def draws(self, run: Run, keys: tuple[Key, ...]) -> np.ndarray:
        """The figure on each resample (B,) of these images.

        The resamples are the same for every run that has the images.
        """
        if (run, keys) not in self._draws:
            draws = resampling.bootstrap(self.name, *self.scores(run).on(keys), self.resamples)
            self._draws[run, keys] = draws[:, 0]
        return self._draws[run, keys]

    def draw_together(self, entries: Iterable[Entry]) -> None:
        """Resample all runs with the same images at once: half the time of one after the other."""
        alike: dict[tuple, list[tuple[Run, Scores]]] = {}
        for entry in entries:
            for run in entry.runs:
                scores = self.scores(run)
                if scores is not None:
                    # Two releases of a set may have other opinions of images of the same names.
                    images = (scores.keys, scores.mos.tobytes())
                    alike.setdefault(images, []).append((run, scores))
        for (keys, _), members in alike.items():
            predictions = np.stack([scores.score for _, scores in members])
            mos = members[0][1].mos
            draws = resampling.bootstrap(self.name, predictions, mos, self.resamples)
            for (run, _), draws_of_run in zip(members, draws.T):
                self._draws[run, keys] = draws_of_run

    def estimate(self, entry: Entry) -> Estimate:
        """The entry's figure with its interval, over images and, where it has several, seeds."""
        values = [self.value(run) for run in entry.runs]
        keys = self.common_images(entry.runs)
        if len(values) > 1:
            return self._estimate_over_seeds(entry, values, keys)
        if keys is not None:
            bounds = intervals.percentile_interval(self.draws(entry.runs[0], keys))
            return Estimate(values[0], *bounds)
        images = entry.runs[0].images.get(self.part)
        if self.formula is None or images is None or math.isnan(values[0]):
            return Estimate(values[0])
        return Estimate(values[0], *self.formula(values[0], images), approximate=True)

    def _estimate_over_seeds(
        self, entry: Entry, values: Sequence[float], keys: tuple[Key, ...] | None
    ) -> Estimate:
        # The interval of a mean is that of its difference to two seeds without any spread at zero.
        constant = [0.0, 0.0]
        if keys is None:
            mean = intervals.welch_difference(values, constant)
        else:
            draws = np.stack([self.draws(run, keys) for run in entry.runs], 1)
            mean = intervals.group_difference(values, constant, draws, np.zeros((len(draws), 2)))
        deviation = float(np.std(values, ddof=1))
        return Estimate(mean.value, mean.low, mean.high, mean.approximate, deviation)

    def common_images(self, runs: Sequence[Run]) -> tuple[Key, ...] | None:
        """The images of all these runs where they have the same ones, else None."""
        keys = None
        for i, run in enumerate(runs):
            scores = self.scores(run)
            if scores is None or (i > 0 and scores.keys != keys):
                return None
            keys = scores.keys
        return keys


def choose_entries(
    runs: Sequence[Run], measure: Measure, grouped: bool, sort: str | None = None
) -> tuple[list[Entry], list[str]]:
    """The entries of these runs, best first, and notes on what the groups leave out.

    grouped: all seeds of a setting are one entry. sort: the figure that orders the entries, where
    it is not the measure's. Raises UserError where no run can be grouped.
    """
    notes: list[str] = []
    if grouped:
        entries, notes = group(runs)
    else:
        entries = [Entry(run.name, (run,)) for run in runs]
    if not entries:
        raise UserError(f"--group: expected finished runs; {'; '.join(notes)}")
    measure.draw_together(entries)
    return ranked(entries, replace(measure, metric=sort or measure.metric)), notes


def ranked(entries: Iterable[Entry], measure: Measure) -> list[Entry]:
    """Best first; entries without the figure last, in the order of their names."""
    sign = -1 if measure.higher_is_better else 1

    def place(entry: Entry) -> tuple[float, str]:
        value = sign * measure.estimate(entry).value
        return math.inf if math.isnan(value) else value, entry.name

    return sorted(entries, key=place)
