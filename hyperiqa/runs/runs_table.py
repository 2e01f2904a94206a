"""The tables of entries: their figures, and the settings in which they differ."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hyperiqa.runs.entries import Entry, differing_settings
from hyperiqa.runs.measures import Measure
from hyperiqa.runs.reading import UNDER_WAY
from hyperiqa.runs.tables import estimate_text
from hyperiqa.stats import metrics


def table(
    entries: Sequence[Entry], measure: Measure, grouped: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header, of two lines at most, and rows.

    grouped: the entries are settings, which show their seeds instead of epoch and status.
    """
    titles = _titles(entries, measure)
    if grouped:
        header = ["setting", "backbone", "seeds", "train\nSRCC"]
    else:
        header = ["run", "backbone", "best/\nepochs", "train\nSRCC"]
    for name, title in titles.items():
        header.append(f"{title} [95 %]" if name == measure.metric else title)
    header.append("min/\nepoch")
    if not grouped:
        header.append("status")
    return header, [_row(entry, measure, titles, grouped) for entry in entries]


def _titles(entries: Sequence[Entry], measure: Measure) -> dict[str, str]:
    """Figure -> its column's title, in the order of the columns."""
    titles = {name: name.upper() for name in metrics.RECORDED}
    if measure.part == "test":
        titles[measure.name] = measure.name.upper()
    for entry in entries:
        for run in entry.runs:
            for part in run.cross_tests:
                for name in metrics.RECORDED:
                    titles[f"{part}_{name}"] = f"{part.upper()}\n{name.upper()}"
    # The metric has its column even where no run has the figure.
    titles.setdefault(measure.metric, measure.metric.upper().replace("_", "\n"))
    if measure.logistic:
        for name in titles:
            part, figure = metrics.figure_of(name)
            if metrics.FIGURES[figure].fitted:
                origin = "fitted" if part == "test" else f"{part.upper()} fit"
                titles[name] = f"{origin}\n{figure.upper()}"
    return titles


def _row(entry: Entry, measure: Measure, titles: Iterable[str], grouped: bool) -> list[str]:
    run = entry.runs[0]
    count = str(len(entry.runs))
    if not grouped:
        count = f"{run.epoch(measure.epoch) or '–'}/{len(run.epochs)}"
    train_srcc = entry.mean(replace(measure, metric="train_srcc").value)
    cells = [entry.name, run.backbone, count, _number_text(train_srcc, 4)]
    for name in titles:
        # Of the metric the interval too.
        if name == measure.metric:
            cells.append(estimate_text(measure.estimate(entry)))
        else:
            cells.append(_number_text(entry.mean(replace(measure, metric=name).value), 4))
    minutes = entry.mean(lambda run: run.minutes)
    cells.append(_number_text(minutes, 1 if minutes >= 1 else 2))
    if not grouped:
        cells.append("running?" if run.status == UNDER_WAY else run.status.replace("_", " "))
    return cells


def _number_text(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def settings_table(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Only the settings in which the entries differ; `?` where a log doesn't hold one."""
    names = differing_settings([run for entry in entries for run in entry.runs])
    return ["run", *names], [[entry.name, *map(entry.setting, names)] for entry in entries]
