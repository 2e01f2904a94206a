"""The tables of entries: their figures, the lines below them, and the settings that differ."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hyperiqa.base.errors import counted
from hyperiqa.runs import measures, reading, tables
from hyperiqa.stats import intervals, metrics

# The title of a column that tables have where runs were tested on different sets.
DATA_SET = "data set"
# Below or above the standards' figures, wherever they are shown.
STANDARDS_NOTE = (
    "ITU-T P.1401 and J.149, and Krasula: errors after a monotonic cubic, in units of the MOS; "
    "figures that need votes are – where a set has none"
)
_PAPERS = {"srcc": "Bonett & Wright 2000", "plcc": "Fisher"}


def table(
    entries: Sequence[measures.Entry], measure: measures.Measure, grouped: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header, of two lines at most, and rows.

    grouped: the entries are settings, which show their seeds instead of epoch and status.
    """
    titles = _titles(entries, measure)
    titles[measure.metric] += " [95 %]"
    header = [
        "setting" if grouped else "run",
        "backbone",
        *([DATA_SET] if measures.differ_in_sets(entries) else []),
        "seeds" if grouped else "best/\nepochs",
        "train\nSRCC",
        *titles.values(),
        "min/\nepoch",
        *([] if grouped else ["status"]),
    ]
    return header, [_row(entry, measure, titles, grouped, DATA_SET in header) for entry in entries]


def _titles(entries: Sequence[measures.Entry], measure: measures.Measure) -> dict[str, str]:
    names = [*metrics.RECORDED, *([measure.name] if measure.part == "test" else [])]
    titles = {name: f"test\n{name.upper()}" for name in names}
    runs = [run for entry in entries for run in entry.runs]
    # A dictionary drops what comes twice and keeps the order.
    parts = {part: None for run in runs for part in run.cross_tests}
    for part, name in itertools.product(parts, metrics.RECORDED):
        # Beside runs on real sets the column of the data set says that a row is synthetic.
        synthetic = all(part in run.of_demo for run in runs if part in run.cross_tests)
        upper, lower = ("synthetic", f"{part.upper()} ") if synthetic else (part.upper(), "")
        titles[f"{part}_{name}"] = f"{upper}\n{lower}{name.upper()}"
    # The metric has its column even where no run has the figure.
    titles.setdefault(measure.metric, measure.metric.upper().replace("_", "\n"))
    if measure.logistic:
        for name in titles:
            part, figure = metrics.figure_of(name)
            if metrics.FIGURES[figure].fitted:
                origin = f"{part if part == 'test' else part.upper()} fit"
                titles[name] = f"{origin}\n{figure.upper()}"
    return titles


def _row(
    entry: measures.Entry,
    measure: measures.Measure,
    titles: Iterable[str],
    grouped: bool,
    with_set: bool,
) -> list[str]:
    run = entry.runs[0]
    count = str(len(entry.runs))
    if not grouped:
        count = f"{run.epoch(measure.epoch) or '–'}/{len(run.epochs)}"
    train_srcc = entry.mean(replace(measure, metric="train_srcc").value)
    data_set = [run.title("test")] if with_set else []
    cells = [entry.name, run.backbone, *data_set, count, _number_text(train_srcc, 4)]
    for name in titles:
        # Of the metric the interval too.
        if name == measure.metric:
            cells.append(tables.estimate_text(measure.estimate(entry)))
        else:
            cells.append(_number_text(entry.mean(replace(measure, metric=name).value), 4))
    minutes = entry.mean(lambda run: run.minutes)
    cells.append(_number_text(minutes, 1 if minutes >= 1 else 2))
    if not grouped:
        cells.append(
            "running?" if run.status == reading.UNDER_WAY else run.status.replace("_", " ")
        )
    return cells


def _number_text(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def footnotes(entries: Sequence[measures.Entry], measure: measures.Measure) -> Iterator[str]:
    """The lines below a table of entries.

    Which images were tested, what the signs mean, what choosing the epoch does to the figures, and
    what a perfect model would reach.
    """
    estimates = [measure.estimate(entry) for entry in entries]
    runs = [run for entry in entries for run in entry.runs]
    yield from _set_notes(runs)
    yield from _interval_notes(estimates, measure, any(len(entry.runs) > 1 for entry in entries))
    scores = [measure.scores(run) for run in runs if measure.name == "plcc"]
    if any(of_run and len(of_run.keys) < tables.FEW_IMAGES for of_run in scores):
        yield tables.FEW_IMAGES_NOTE
    if any(run.status == reading.UNDER_WAY for run in runs):
        yield "running?: the records have no end; the run goes on, or it was killed"
    if measure.epoch == "best":
        yield (
            "best: the epoch that the run chose; where its log names none, the one with the "
            "highest test SRCC"
        )
        if measure.metric == "srcc":
            yield from _selection_note(runs)
    # The figures of which `intervals.ceiling` knows the largest.
    if measure.name in ("srcc", "plcc"):
        yield from _ceiling_notes(runs, measure)


def _set_notes(runs: Sequence[reading.Run]) -> Iterator[str]:
    # A log of the public code may not say which set it is of.
    tests = [(run, "test") for run in runs if "dataset" in run.settings]
    cross_tests = [(run, part) for run in runs for part in run.cross_tests]
    for kind, pairs in (("tested on", tests), ("cross tests", cross_tests)):
        # A dictionary drops what comes twice and keeps the order.
        sets = dict.fromkeys(run.title_and_number(part) for run, part in pairs)
        if sets:
            yield f"{kind}: {'; '.join(sets)}"


def _interval_notes(
    estimates: Sequence[intervals.Estimate], measure: measures.Measure, grouped: bool
) -> Iterator[str]:
    if any(not estimate.approximate and not math.isnan(estimate.low) for estimate in estimates):
        yield f"[…] 95 % interval: bootstrap over test images, {measure.resamples} resamples"
    if any(estimate.approximate for estimate in estimates):
        origin = (
            f"from the number of test images ({_PAPERS.get(measure.name, '')}), "
            "since no predictions are there"
        )
        yield f"~ approximate: {'from the seeds alone' if grouped else origin}"
    if any(not math.isnan(estimate.deviation) for estimate in estimates):
        yield "± standard deviation over seeds; intervals over seeds and images"


def _selection_note(runs: Sequence[reading.Run]) -> Iterator[str]:
    biases = sorted(run.selection_bias for run in runs if not math.isnan(run.selection_bias))
    if biases and biases[-1] >= 0.00005:
        most = "" if biases[0] == biases[-1] else f" to {biases[-1]:.4f}"
        yield (
            f"choosing the epoch on the test set inflates the SRCC by about {biases[0]:.4f}{most}"
        )


def _ceiling_notes(runs: Sequence[reading.Run], measure: measures.Measure) -> Iterator[str]:
    # Each test set once: it is the same for all runs that have its images.
    notes: dict[str, None] = {}
    for run in runs:
        scores = measure.scores(run)
        error = None if scores is None else run.errors(measure.part, scores.keys)
        # Votes that explain all of the spread leave nothing that a model could reach: nan.
        best = math.nan if error is None else intervals.ceiling(scores.mos, error)[measure.name]
        if not math.isnan(best):
            notes[
                f"{run.title(measure.part)}: a perfect model would reach "
                f"{measure.name.upper()} {best:.4f}, given the votes of "
                f"{counted(len(error), 'image')}"
            ] = None
    yield from notes


def settings_table(entries: Sequence[measures.Entry]) -> tuple[list[str], list[list[str]]]:
    """Only the settings in which the entries differ; `?` where a log doesn't hold one."""
    names = measures.differing_settings([run for entry in entries for run in entry.runs])
    return ["run", *names], [[entry.name, *map(entry.setting, names)] for entry in entries]


def settings_of(entry: measures.Entry) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name, value) of the entry's settings: those that are not the defaults, and all."""
    defaults = measures.default_texts()
    rows = [(name, entry.setting(name)) for name in sorted(entry.runs[0].settings)]
    # What is no flag, such as the device, has no default to differ from.
    return [(name, text) for name, text in rows if text != defaults.get(name, text)], rows
