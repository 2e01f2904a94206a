"""The sections of a page on runs: their figures, differences, settings, curves and certificates."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hyperiqa.base.errors import UserError, counted
from hyperiqa.model import checkpoints
from hyperiqa.pages.page import Page, block
from hyperiqa.runs import differences, measures, reading, runs_table, standards_table
from hyperiqa.scoring import certificate_checks
from hyperiqa.stats.metrics import RECORDED
from hyperiqa.training.run_files import read_records

# Titles of the table of runs -> those of a summary, which has more room.
SUMMARY = {"best/\nepochs": "best epoch/epochs", "min/\nepoch": "minutes per epoch"}


def add_runs(
    page: Page,
    entries: Sequence[measures.Entry],
    measure: measures.Measure,
    grouped: bool,
    comparisons: Sequence[differences.Comparison],
    short_names: Mapping[str, str],
    names_of_runs: Mapping[reading.Run, str],
) -> None:
    """Add the sections on runs to the page, but for their certificates.

    grouped: the entries are settings with several seeds. short_names: of the entries, by name.
    names_of_runs: run -> the name to show.
    """
    head, rows = runs_table.table(entries, measure, grouped)
    lines = [f"{short} = {name}" for name, short in short_names.items() if name != short]
    lines += runs_table.footnotes(entries, measure)
    if len(entries) == 1:
        _add_summary(page, entries[0], zip(head, rows[0]), lines)
    else:
        page.section(
            "Runs",
            block("table", head=head, rows=_with_short_names(rows, short_names), label="Runs"),
            block("text", lines=lines),
        )
    if comparisons:
        page.section(
            f"Differences in {measure.metric.upper()}",
            block("list", lines=list(_sentences(comparisons, measure, dict(short_names)))),
        )
    head, rows = runs_table.settings_table(entries)
    # The first column is the run's name: alone, it says that nothing differs.
    if len(head) > 1:
        page.section(
            "Settings that differ",
            block("table", head=head, rows=_with_short_names(rows, short_names), label="Settings"),
        )
    page.section("Curves", _curves(entries, names_of_runs))
    standards = [
        (short_names[entry.name], part, figures)
        for entry in entries
        for part, figures in standards_table.entry_standards(entry).items()
    ]
    if standards:
        head, rows = standards_table.table(standards, "run")
        page.section(
            "Figures of the standards",
            block("text", lines=[runs_table.STANDARDS_NOTE]),
            block("table", head=head, rows=rows, label="Figures of the standards"),
        )


def _add_summary(
    page: Page, entry: measures.Entry, cells: Iterable[tuple[str, str]], lines: Sequence[str]
) -> None:
    """Add the sections on a page's only entry.

    cells: (title, cell) of the table of runs. lines: its footnotes.
    """
    facts = [(SUMMARY.get(title, title.replace("\n", " ")), cell) for title, cell in cells]
    images = ", ".join(f"{part} {number:,}" for part, number in entry.runs[0].images.items())
    facts.append(("images", images or "–"))
    page.section("Summary", block("facts", rows=facts), block("text", lines=lines))
    chosen, settings = runs_table.settings_of(entry)
    page.section(
        "Settings",
        block("text", lines=["Settings that are not the defaults:"] if chosen else []),
        block("facts", rows=chosen),
        block("facts", rows=settings, folded=f"all of {counted(len(settings), 'setting')}"),
    )


def _with_short_names(
    rows: Sequence[Sequence[str]], short_names: Mapping[str, str]
) -> list[list[str]]:
    return [[short_names[name], *cells] for name, *cells in rows]


def _sentences(
    comparisons: Sequence[differences.Comparison],
    measure: measures.Measure,
    short_names: dict[str, str],
) -> Iterator[str]:
    for comparison in comparisons:
        text = differences.sentence(
            comparison, short_names, len(comparisons), measure.figure.higher_is_better
        )
        yield "; ".join(filter(None, [text, differences.detection_limit(comparison)]))


def _curves(
    entries: Sequence[measures.Entry], names: Mapping[reading.Run, str]
) -> dict[str, object]:
    """A panel for each figure of each set, and for the training loss and its parts."""
    runs = [run for entry in entries for run in entry.runs]
    # A dictionary drops what comes twice and keeps the order.
    parts = dict.fromkeys(["test", *(part for run in runs for part in run.cross_tests), "train"])
    figures = [(part, name) for part in parts for name in RECORDED]
    figures += [("train", name) for name in _loss_names(runs)]
    panels = []
    for part, name in figures:
        title = part if part in ("test", "train") else part.upper()
        figure_title = name.upper() if name in RECORDED else name
        values = [[run.figure(part, name, epoch) for epoch in sorted(run.epochs)] for run in runs]
        panels.append([f"{title} {figure_title}", values])
    return block(
        "curves",
        runs=[{"name": names[run], "epochs": sorted(run.epochs), "best": run.best} for run in runs],
        panels=panels,
    )


def _loss_names(runs: Sequence[reading.Run]) -> list[str]:
    figures = dict.fromkeys(
        name for run in runs for epoch in run.epochs.values() for name in epoch.get("train", {})
    )
    losses = [name for name in figures if name not in RECORDED]
    # A loss of one part is that part.
    return ["loss"] if len(losses) == 2 else losses


def checkpoint_of(run: reading.Run, folder: Path | None) -> Path:
    """The model file of a run.

    A run of several rounds has a checkpoint folder for each; `run` is one of them.
    folder: where the runs' checkpoints are; None: where the run's records say.
    Raises UserError where there is none.
    """
    if run.path.suffix != ".jsonl":
        raise UserError(f"{run.path}: a log alone does not say where its model is")
    flags = next(record["flags"] for record in read_records(run.path) if record["type"] == "run")
    place = (folder or Path(flags.get("checkpoint_dir", "checkpoints"))) / run.path.stem
    number = re.search(r"_round(\d+)$", Path(run.name).name.removeprefix(run.path.stem))
    # The first round's models lie in the run's folder itself.
    if number and number[1] != "1":
        place = place / f"round{number[1]}"
    return checkpoints.find_model(place)


def add_certificates(
    page: Page, short_names: Mapping[reading.Run, str], folder: Path | None
) -> None:
    """Add the certificates of the runs' models to the page, and why there is none.

    short_names: run -> the name to show. folder: as of `checkpoint_of`.
    """
    certificates = []
    missing = []
    for run, name in short_names.items():
        try:
            path = checkpoint_of(run, folder)
            _, description = checkpoints.load_model(path)
            certificates.append(
                block("facts", rows=list(certificate_checks.facts(path.name, description)))
            )
        except UserError as problem:
            missing.append(f"{name}: {problem}")
        except KeyError:
            missing.append(f"{name}: made by a version without certificates")
    hint = ["python certify.py checkpoints/NAME checks them"] if certificates else []
    page.section("Certificates", *certificates, block("text", lines=hint + missing))
