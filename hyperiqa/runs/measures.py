"""The entries of a comparison, and the figure of merit by which a tool shows them.

An entry is a single run, or all seeds of a setting together.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hyperiqa.base import command_line, errors
from hyperiqa.datasets.names import record_name
from hyperiqa.runs.reading import DONE, Key, Run, Scores, setting_text
from hyperiqa.stats import intervals, metrics, resampling
from hyperiqa.training.options import figure_settings

# Settings that runs of one group may have differently.
_NOT_OF_A_GROUP = {"seed", "device", "code", "images"}


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of the table: one run, or the runs of one setting with different seeds."""

    name: str
    runs: tuple[Run, ...]

    def mean(self, figure: Callable[[Run], float]) -> float:
        """The mean of a figure over the entry's runs."""
        return float(np.mean([figure(run) for run in self.runs]))

    def setting(self, name: str) -> str:
        """Its runs' values of a setting; `?` where a log doesn't hold it."""
        return ",".join(dict.fromkeys(run.settings.get(name, "?") for run in self.runs))


def group(runs: Sequence[Run]) -> tuple[list[Entry], list[str]]:
    """Entries of the runs with equal settings but for the seed, and notes on what was left out.

    A run that is not done is no seed of a setting, nor is the older of two with the same seed. Logs
    that don't hold their settings (the public code's) are grouped with the other rounds of their
    file alone.
    """
    notes: list[str] = []
    # Equal settings and numbers of images -> seed -> run.
    groups: dict[tuple, dict[str, Run]] = {}
    # By age, so that of two runs with one seed the newer stays.
    for run in sorted(runs, key=lambda run: run.path.stat().st_mtime):
        if run.status not in DONE:
            notes.append(f"{run.name}: {run.status}, left out of the groups")
            continue
        equal = {name: value for name, value in run.settings.items() if name not in _NOT_OF_A_GROUP}
        # Of a log without settings nothing says that another file's run had the same.
        if "seed" not in run.settings:
            equal["file"] = str(run.path)
        members = groups.setdefault((*sorted(equal.items()), *sorted(run.images.items())), {})
        seed = run.settings.get("seed", run.name)
        if seed in members:
            notes.append(f"{members[seed].name}: seed {seed} once more in {run.name}, left out")
        members[seed] = run
    runs_of_groups = [tuple(members.values()) for members in groups.values()]
    names = _group_names([seeds[0] for seeds in runs_of_groups])
    # Groups that no known setting tells apart are called after their first run.
    return [
        Entry(name if name and names.count(name) == 1 else seeds[0].name, seeds)
        for name, seeds in zip(names, runs_of_groups)
    ], notes


def _group_names(runs: Sequence[Run]) -> list[str]:
    """The settings that tell each group's run from the other groups, where they are no defaults.

    "" where no known setting does.
    """
    differing = [name for name in differing_settings(runs) if name not in _NOT_OF_A_GROUP]
    defaults = default_texts()
    names = []
    for run in runs:
        known = {name: run.settings[name] for name in differing if name in run.settings}
        words = [f"{name}={value}" for name, value in known.items() if value != defaults.get(name)]
        # A log without settings does not say that they are the defaults.
        usual = "default" if differing and "seed" in run.settings else ""
        names.append(" ".join(words) or usual)
    return names


def default_texts() -> dict[str, str]:
    """The defaults of the settings, as tables show them; each script has a backbone of its own."""
    return {name: setting_text(value) for name, value in figure_settings({}).items()}


def differ_in_sets(entries: Iterable[Entry]) -> bool:
    """Whether the runs are known to be tested on different data sets."""
    return "dataset" in differing_settings([run for entry in entries for run in entry.runs])


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that two of the runs are known to have differently."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault(name, set()).add(value)
    return [name for name in values if len(values[name]) > 1]


# What `--metric` takes.
FIGURE: command_line.Range = (
    f"[SET_]FIGURE, FIGURE one of {', '.join(metrics.FIGURES)}",
    lambda name: metrics.figure_of(name)[1] in metrics.FIGURES,
)


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
        # A set may be called as a flag of the training calls it.
        self.metric = record_name(self.metric)
        self.part, self.name = metrics.figure_of(self.metric)
        self.figure = metrics.FIGURES[self.name]
        # Whether the scores are mapped by the logistic.
        self.fitted = self.logistic and self.figure.fitted
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
        recorded = (
            intervals.NAN
            if self.fitted
            else run.figure(self.part, self.name, run.epoch(self.epoch))
        )
        # Plain logs record SRCC and PLCC alone; the predictions give any figure.
        if keys is None and not math.isnan(recorded):
            return recorded
        scores = self.scores(run)
        if scores is None:
            return intervals.NAN
        return self.figure.of(*scores.on(keys or scores.keys))

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
        for run in [run for entry in entries for run in entry.runs]:
            scores = self.scores(run)
            if scores is not None:
                # Two releases of a set may have other opinions of images of the same names.
                alike.setdefault((scores.keys, scores.mos.tobytes()), []).append((run, scores))
        for (keys, _), members in alike.items():
            predictions = np.stack([scores.score for _, scores in members])
            mos = members[0][1].mos
            draws = resampling.bootstrap(self.name, predictions, mos, self.resamples)
            self._draws |= {(run, keys): column for (run, _), column in zip(members, draws.T)}

    def estimate(self, entry: Entry) -> intervals.Estimate:
        """The entry's figure with its interval, over images and, where it has several, seeds."""
        values = [self.value(run) for run in entry.runs]
        keys = self.common_images(entry.runs)
        if len(values) > 1:
            return self._estimate_over_seeds(entry, values, keys)
        if keys is not None:
            bounds = intervals.percentile_interval(self.draws(entry.runs[0], keys))
            return intervals.Estimate(values[0], *bounds)
        images = entry.runs[0].images.get(self.part)
        if self.formula is None or images is None or math.isnan(values[0]):
            return intervals.Estimate(values[0])
        return intervals.Estimate(values[0], *self.formula(values[0], images), approximate=True)

    def _estimate_over_seeds(
        self, entry: Entry, values: Sequence[float], keys: tuple[Key, ...] | None
    ) -> intervals.Estimate:
        # The interval of a mean is that of its difference to two seeds without any spread at zero.
        constant = [0.0, 0.0]
        if keys is None:
            mean = intervals.welch_difference(values, constant)
        else:
            draws = np.stack([self.draws(run, keys) for run in entry.runs], 1)
            mean = intervals.group_difference(values, constant, draws, np.zeros((len(draws), 2)))
        # Few seeds reach far: beyond a correlation of 1, were it not for its scale.
        bounds = self.figure.scale.interval(mean.value, mean.high - mean.value)
        return intervals.Estimate(
            mean.value, *bounds, mean.approximate, deviation=float(np.std(values, ddof=1))
        )

    def common_images(self, runs: Sequence[Run]) -> tuple[Key, ...] | None:
        """The images of all these runs where they have the same ones, else None."""
        scores = [self.scores(run) for run in runs]
        if None in scores or any(of_run.keys != scores[0].keys for of_run in scores):
            return None
        return scores[0].keys


def choose_entries(
    runs: Sequence[Run], measure: Measure, grouped: bool, sort: str | None = None
) -> tuple[list[Entry], list[str]]:
    """The entries of these runs, best first, and notes on what the groups leave out.

    grouped: all seeds of a setting are one entry. sort: the figure that orders the entries, where
    it is not the measure's. Raises UserError where no run can be grouped.
    """
    entries = [Entry(run.name, (run,)) for run in runs]
    notes: list[str] = []
    if grouped:
        entries, notes = group(runs)
    if not entries:
        raise errors.UserError(f"--group: expected finished runs; {'; '.join(notes)}")
    measure.draw_together(entries)
    return ranked(entries, replace(measure, metric=sort or measure.metric)), notes


def ranked(entries: Sequence[Entry], measure: Measure) -> list[Entry]:
    """Best first; entries without the figure last, in the order of their names.

    Figures on different test sets have no order: each set has its entries together.
    """
    sign = -1 if measure.figure.higher_is_better else 1
    by_set = measure.part == "test" and differ_in_sets(entries)

    def place(entry: Entry) -> tuple[str, float, str]:
        value = sign * measure.estimate(entry).value
        data_set = entry.runs[0].title("test") if by_set else ""
        return data_set, math.inf if math.isnan(value) else value, entry.name

    return sorted(entries, key=place)
