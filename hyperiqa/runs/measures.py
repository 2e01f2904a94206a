"""Runs measured: a figure of each with its interval, several seeds as one entry, and the table of them."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hyperiqa.base.command_line import Range
from hyperiqa.runs.reading import DONE, UNDER_WAY, Key, Run, Scores
from hyperiqa.stats import intervals, metrics, resampling
from hyperiqa.stats.intervals import NAN, Estimate

_NOT_OF_A_GROUP = {"seed", "device", "code", "images"}


_NAMES = f"[SET_]FIGURE, FIGURE one of {', '.join(metrics.FIGURES)}"


FIGURE: Range = (
    _NAMES,
    lambda name: metrics.figure_of(name)[1] in metrics.FIGURES,
)  # what `--metric` takes


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of the table: one run, or the runs of one setting with different seeds."""

    name: str
    runs: tuple[Run, ...]

    def mean(self, of: Callable[[Run], float]) -> float:
        return float(np.mean([of(run) for run in self.runs]))

    def setting(self, name: str) -> str:
        """Its runs' values of a setting; `?` where a log doesn't hold it."""
        return ",".join(dict.fromkeys(run.settings.get(name, "?") for run in self.runs))


def group(runs: Sequence[Run]) -> tuple[list[Entry], list[str]]:
    """Entries of the runs with equal settings but for the seed, and notes on what was left out of them.
    A run that is not done is no seed of a setting, nor is the older of two with the same seed. Logs that
    don't hold their settings (the public code's) are grouped with the other rounds of their file alone."""
    notes: list[str] = []
    groups: dict[tuple, dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: run.path.stat().st_mtime):
        if run.status not in DONE:
            notes.append(f"{run.name}: {run.status}, left out of the groups")
            continue
        equal = {name: value for name, value in run.settings.items() if name not in _NOT_OF_A_GROUP}
        if "seed" not in run.settings:
            equal["file"] = str(run.path)
        members = groups.setdefault((*sorted(equal.items()), *sorted(run.images.items())), {})
        seed = run.settings.get("seed", run.name)
        if seed in members:
            notes.append(f"{members[seed].name}: seed {seed} once more in {run.name}, left out")
        members[seed] = run
    settings = [tuple(members.values()) for members in groups.values()]
    names = _names_of([of[0] for of in settings])
    unique = [
        name if name and names.count(name) == 1 else of[0].name for name, of in zip(names, settings)
    ]
    return list(map(Entry, unique, settings)), notes


def _names_of(runs: Sequence[Run]) -> list[str]:
    """The settings that tell a group from the others; what most of them have goes without saying."""
    differing = [name for name in differences(runs) if name not in _NOT_OF_A_GROUP]
    values = {name: [run.settings.get(name, "?") for run in runs] for name in differing}
    told = [
        [f"{n}={of[i]}" for n, of in values.items() if 2 * of.count(of[i]) <= len(runs)]
        for i in range(len(runs))
    ]
    return [" ".join(each) or ("as most" if values else "") for each in told]


def differences(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that two of the runs are known to have differently."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        name
        for name in names
        if len({run.settings[name] for run in runs if name in run.settings}) > 1
    ]


@dataclass
class Measure:
    """A figure of merit and how it is taken. epoch: `best`, `last` or a number; logistic: PLCC, RMSE after the fit."""

    metric: str = "srcc"
    epoch: str = "best"
    logistic: bool = False
    resamples: int = resampling.RESAMPLES
    _draws: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.part, self.name = metrics.figure_of(self.metric)
        self.higher_is_better = metrics.FIGURES[self.name].higher_is_better
        self.fitted = (
            self.logistic and metrics.FIGURES[self.name].fitted
        )  # the scores, by the logistic
        # The interval from the number of images alone; None where there is none.
        self.formula = None if self.fitted else intervals.FORMULAS.get(self.name)

    def scores(self, run: Run) -> Scores | None:
        """The predictions behind the figure, mapped by the logistic where asked for; None where there are none."""
        found = run.scores(self.part) if run.epoch(self.epoch) == run.best else None
        if found is None or not self.fitted:
            return found
        mapped = metrics.fitted(found.score, found.mos)
        return None if mapped is None else replace(found, score=mapped)

    def value(self, run: Run, keys: Sequence[Key] | None = None) -> float:
        """The figure, on these images alone if any are given."""
        recorded = NAN if self.fitted else run.figure(self.part, self.name, run.epoch(self.epoch))
        if keys is None and not math.isnan(recorded):
            return recorded
        found = self.scores(run)
        return (
            NAN if found is None else metrics.FIGURES[self.name].of(*found.on(keys or found.keys))
        )

    def draws(self, run: Run, keys: tuple[Key, ...]) -> np.ndarray:
        """The figure on each resample (B,) of these images; the same resamples for every run that has them."""
        if (run, keys) not in self._draws:
            score, mos = self.scores(run).on(keys)
            self._draws[run, keys] = resampling.bootstrap(self.name, score, mos, self.resamples)[
                :, 0
            ]
        return self._draws[run, keys]

    def draw_together(self, entries: Iterable[Entry]) -> None:
        """Resample all runs with the same images at once: half the time of one after the other."""
        alike: dict[tuple, list[tuple[Run, Scores]]] = {}
        for run in (run for entry in entries for run in entry.runs):
            if (found := self.scores(run)) is not None:
                alike.setdefault((found.keys, found.mos.tobytes()), []).append((run, found))
        for (keys, _), members in alike.items():
            scores = np.stack([found.score for _, found in members])
            draws = resampling.bootstrap(self.name, scores, members[0][1].mos, self.resamples)
            self._draws |= {(run, keys): draws[:, i] for i, (run, _) in enumerate(members)}

    def estimate(self, entry: Entry) -> Estimate:
        """The entry's figure with its interval: over images, and over seeds too where it has several."""
        values, keys = [self.value(run) for run in entry.runs], self.common_images(entry.runs)
        draws = None if keys is None else np.stack([self.draws(run, keys) for run in entry.runs], 1)
        if len(values) > 1:
            constant = [0.0, 0.0]  # two seeds without any spread
            if draws is None:
                mean = intervals.welch_difference(values, constant)
            else:
                mean = intervals.group_difference(
                    values, constant, draws, np.zeros((len(draws), 2))
                )
            return Estimate(
                mean.value, mean.low, mean.high, mean.approximate, float(np.std(values, ddof=1))
            )
        if draws is not None:
            return Estimate(values[0], *intervals.percentile_interval(draws[:, 0]))
        images = entry.runs[0].images.get(self.part)
        if self.formula is None or images is None or math.isnan(values[0]):
            return Estimate(values[0])
        return Estimate(values[0], *self.formula(values[0], images), approximate=True)

    def common_images(self, runs: Sequence[Run]) -> tuple[Key, ...] | None:
        """The images of all these runs where they have the same ones, else None."""
        keys = [scores.keys if scores else None for scores in map(self.scores, runs)]
        return keys[0] if all(of_run == keys[0] for of_run in keys) else None


def ranked(entries: Iterable[Entry], measure: Measure) -> list[Entry]:
    """Best first; entries without the figure last, in the order of their names."""
    sign = -1 if measure.higher_is_better else 1
    values = {entry: sign * measure.estimate(entry).value for entry in entries}
    return sorted(values, key=lambda e: (math.inf if math.isnan(values[e]) else values[e], e.name))


def table(
    entries: Sequence[Entry], measure: Measure, grouped: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header (of two lines at most) and rows; grouped: of settings, which show seeds instead of epoch and status."""
    own = [measure.name] if measure.part == "test" else []
    titles = {name: name.upper() for name in (*metrics.RECORDED, *own)}
    for part in dict.fromkeys(
        part for entry in entries for run in entry.runs for part in run.cross_tests
    ):
        titles |= {f"{part}_{name}": f"{part.upper()}\n{name.upper()}" for name in metrics.RECORDED}
    titles.setdefault(measure.metric, measure.metric.upper().replace("_", "\n"))
    for name in titles if measure.logistic else ():
        part, figure = metrics.figure_of(name)
        if metrics.FIGURES[figure].fitted:
            titles[name] = (
                f"{'fitted' if part == 'test' else f'{part.upper()} fit'}\n{figure.upper()}"
            )
    header = [
        "setting" if grouped else "run",
        "backbone",
        "seeds" if grouped else "best/\nepochs",
        "train\nSRCC",
    ]
    header += [
        f"{title} [95 %]" if name == measure.metric else title for name, title in titles.items()
    ]
    rows = []
    for entry in entries:
        run, minutes = entry.runs[0], entry.mean(lambda run: run.minutes)
        count = (
            str(len(entry.runs))
            if grouped
            else f"{run.epoch(measure.epoch) or '–'}/{len(run.epochs)}"
        )
        means = [
            _shown_number(entry.mean(replace(measure, metric=name).value), 4)
            for name in ("train_srcc", *titles)
        ]
        cells = [entry.name, run.backbone, count, *means]
        cells[4 + list(titles).index(measure.metric)] = estimate_text(measure.estimate(entry))
        status = "running?" if run.status == UNDER_WAY else run.status.replace("_", " ")
        rows.append(
            [*cells, _shown_number(minutes, 1 if minutes >= 1 else 2)]
            + ([] if grouped else [status])
        )
    return [*header, "min/\nepoch"] + ([] if grouped else ["status"]), rows


def _shown_number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def estimate_text(estimate: Estimate) -> str:
    """`0.9205 [.912 .928]`, `~` before an approximate interval, `±` the deviation over seeds."""
    if math.isnan(estimate.value):
        return "–"
    text = f"{estimate.value:.4f}"
    if not math.isnan(estimate.deviation):
        text += f" ±{estimate.deviation:.4f}".replace("0.", ".", 1)
    if math.isnan(estimate.low):
        return text
    low, high = (
        re.sub(r"^(-?)0\.", r"\1.", f"{bound:.3f}") for bound in (estimate.low, estimate.high)
    )
    return f"{text} {'~' if estimate.approximate else ''}[{low} {high}]"


def settings_table(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Only the settings in which the entries differ; `?` where a log doesn't hold one."""
    names = differences([run for entry in entries for run in entry.runs])
    return ["run", *names], [[entry.name, *map(entry.setting, names)] for entry in entries]
