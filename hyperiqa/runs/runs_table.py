"""The tables of entries: their figures, the lines below them, and the settings that differ."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hyperiqa.base.errors import counted
from hyperiqa.runs.measures import Entry, Measure, differing_settings
from hyperiqa.runs.reading import UNDER_WAY, Run, setting_text
from hyperiqa.runs.tables import FEW_IMAGES, FEW_IMAGES_NOTE, estimate_text
from hyperiqa.stats import intervals, metrics
from hyperiqa.training.options import figure_settings

# Below or above the standards' figures, wherever they are shown.
STANDARDS_NOTE = (
    "ITU-T P.1401 and J.149, and Krasula: errors after a monotonic cubic, in units of the MOS; "
    "what needs votes is – without"
)
_PAPERS = {"srcc": "Bonett & Wright 2000", "plcc": "Fisher"}


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
    titles = {name: name.upper() for name in metrics.RECORDED}
    if measure.part == "test":
        titles[measure.name] = measure.name.upper()
    runs = [run for entry in entries for run in entry.runs]
    parts = [part for run in runs for part in run.cross_tests]
    for part, name in itertools.product(parts, metrics.RECORDED):
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


def footnotes(entries: Sequence[Entry], measure: Measure) -> Iterator[str]:
    """The lines below a table of entries.

    What its signs mean, what flatters, and what a perfect model would reach.
    """
    estimates = [measure.estimate(entry) for entry in entries]
    runs = [run for entry in entries for run in entry.runs]
    yield from _interval_notes(estimates, measure, any(len(entry.runs) > 1 for entry in entries))
    scores = [measure.scores(run) for run in runs if measure.name == "plcc"]
    if any(of_run and len(of_run.keys) < FEW_IMAGES for of_run in scores):
        yield FEW_IMAGES_NOTE
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
        yield from _ceiling_notes(runs, measure)


def _interval_notes(
    estimates: Sequence[intervals.Estimate], measure: Measure, grouped: bool
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
    biases = sorted(run.selection_bias for run in runs if not math.isnan(run.selection_bias))
    if biases:
        most = "" if biases[0] == biases[-1] else f" to {biases[-1]:+.4f}"
        yield f"chosen on the test set, which flatters the SRCC by about {biases[0]:+.4f}{most}"


def _ceiling_notes(runs: Sequence[Run], measure: Measure) -> Iterator[str]:
    # Each test set once: it is the same for all runs that have its images.
    notes: dict[str, None] = {}
    for run in runs:
        scores = measure.scores(run)
        error = None if scores is None else run.errors(measure.part, scores.keys)
        # Votes that explain all of the spread leave nothing that a model could reach: nan.
        best = math.nan if error is None else intervals.ceiling(scores.mos, error)[measure.name]
        if not math.isnan(best):
            notes[
                f"{run.set_name(measure.part)}: a perfect model would reach "
                f"{measure.name.upper()} {best:.4f}, given the votes of "
                f"{counted(len(error), 'image')}"
            ] = None
    yield from notes


def settings_table(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Only the settings in which the entries differ; `?` where a log doesn't hold one."""
    names = differing_settings([run for entry in entries for run in entry.runs])
    return ["run", *names], [[entry.name, *map(entry.setting, names)] for entry in entries]


def settings_of(entry: Entry) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name, value) of the entry's settings: those that are not the defaults, and all."""
    defaults = {name: setting_text(value) for name, value in figure_settings({}).items()}
    rows = [(name, entry.setting(name)) for name in sorted(entry.runs[0].settings)]
    # What is no flag, such as the device, has no default to differ from.
    return [(name, text) for name, text in rows if text != defaults.get(name, text)], rows
