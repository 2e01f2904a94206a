"""Compare runs: a table, the settings that differ, and whether a difference is more than noise.

python compare_logs.py                                   # every run in logs/
python compare_logs.py logs ../old/resnet50_2025.log --against swin_multiscale
python compare_logs.py --group --pairs                   # seeds of one setting together

Reads this project's NAME.jsonl (with NAME_predictions.csv beside it), its NAME.log alone, and the logs of
the public HyperIQA code. docs/comparing_runs.md explains the statistics."""

import argparse
import csv
import io
import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hyperiqa.base.command_line import Flags, Given, run_tool
from hyperiqa.base.errors import UserError, first_five
from hyperiqa.base.files import write_whole
from hyperiqa.base.plain_values import to_json_value
from hyperiqa.runs import (
    differences,
    footnotes,
    measures,
    power,
    reading,
    runs_table,
    standards_table,
    tables,
)
from hyperiqa.runs.differences import Comparison
from hyperiqa.runs.entries import Entry, differing_settings, group
from hyperiqa.runs.measures import FIGURE, Measure
from hyperiqa.stats import intervals, resampling
from hyperiqa.stats.metrics import RECORDED


def parse() -> argparse.Namespace:
    flags = Flags(__doc__)
    flags.words(
        "paths",
        "logs or folders of logs (default: logs)",
        nargs="*",
        type=Path,
        default=[Path("logs")],
        metavar="PATH",
    )
    flags.group("table")
    compared = "the figure with the interval, which is compared; spaq_srcc: of a cross test"
    flags.value("--metric", "srcc", compared, FIGURE)
    flags.value(
        "--sort", None, "figure by which rows are ordered, best first (default: the metric)", FIGURE
    )
    epochs = (
        "best, last or a number from 1",
        lambda text: re.fullmatch("best|last|[1-9][0-9]*", text),
    )
    flags.value("--epoch", "best", "which epoch of each run", epochs, metavar="best|last|N")
    flags.switch(
        "--logistic", "logistic", True, "PLCC and RMSE after the usual four-parameter logistic fit"
    )
    flags.switch("--group", "group", True, "one row for all seeds of a setting")
    flags.group("differences")
    flags.value(
        "--against",
        None,
        "test every run against this one (its name or a part of it)",
        metavar="RUN",
    )
    flags.switch(
        "--pairs", "pairs", True, "test every pair of runs; two runs alone are tested anyway"
    )
    flags.switch(
        "--standards",
        "standards",
        True,
        "the figures of ITU-T P.1401, J.149 and Krasula, and their tests",
    )
    flags.value(
        "--power",
        None,
        "the smallest difference that runs like this one (default: the best) could show, for "
        "1 to 10 seeds",
        nargs="?",
        const="",
        metavar="RUN",
    )
    flags.count("--resamples", resampling.RESAMPLES, "of the bootstrap", least=100)
    flags.group("output")
    flags.switch("--markdown", "markdown", True, "tables as markdown")
    flags.switch("--json", "json", True, "everything as JSON")
    flags.output("--csv", "write the table to a CSV file, figures in full")
    return flags.parse(None, _problems)


def _problems(options: argparse.Namespace, given: Given) -> Iterator[str]:
    if options.markdown and options.json:
        yield "contradictory flags: --markdown and --json"
    if missing := [path for path in options.paths if not path.exists()]:
        yield f"{first_five(missing)}: no such file or folder"


def print_report(options, entries, measure, comparisons, notes) -> None:
    wide = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    header, rows = runs_table.table(entries, measure, options.group)
    names, room = [entry.name for entry in entries], tables.room_for_names(header, rows, wide)
    short = dict(zip(names, names)) if options.markdown else tables.short_names(names, room)

    def show(header: list[str], rows: list[list[str]]) -> None:
        rows = [[short[name], *cells] for name, *cells in rows]
        text = (
            tables.markdown_table(header, rows)
            if options.markdown
            else tables.text_table(header, rows, wide)
        )
        print(text + "\n")

    show(header, rows)
    if legend := [f"  {brief} = {name}\n" for name, brief in short.items() if brief != name]:
        print("".join(legend))
    for note in [*footnotes.footnotes(entries, measure), *notes]:
        print(("- " if options.markdown else "") + note)
    header, rows = runs_table.settings_table(entries)
    if len(header) > 1:
        print(
            "\nSettings that differ"
            + (" (? = not in the log)" if any("?" in row for row in rows) else "")
            + ":\n"
        )
        show(header, rows)
    elif len(entries) > 1:
        print("\nThe settings known of these runs are the same.")
    if comparisons:
        print_differences(comparisons, short, measure, wide)
    elif len(entries) > 2:
        print("Is a difference real? --against RUN or --pairs tests it.")
    if options.standards:
        print_standards(entries, [(c.a, c.b) for c in comparisons], short, show)
    if options.power is not None:
        chosen = (
            differences.find_entry(options.power, entries, "--power") if options.power else entries[0]
        )
        settings = (
            entries
            if options.group
            else group([run for entry in entries for run in entry.runs])[0]
        )
        seeds = next((each for each in settings if chosen.runs[0] in each.runs), chosen)
        print("\n" + "\n".join(power.power(seeds, settings, measure)))


def print_standards(entries, pairs, short: dict[str, str], show: Callable) -> None:
    """The standards' figures of each entry and set, and their differences, all p-values corrected together."""
    sets = {entry: standards_table.entry_standards(entry) for entry in entries}
    rows = [(entry.name, of, found) for entry in entries for of, found in sets[entry].items()]
    print(
        "\nStandards: errors after a monotonic cubic, in units of the MOS; what needs votes is – without\n"
    )
    show(*standards_table.table(rows, "run")) if rows else print(
        "None: they need the predictions of a run's best epoch"
    )
    tested = [(a, b, *found) for a, b in pairs for found in standards_table.differences(a, b, sets)]
    if len(tested) > 1:
        print("Their differences, p-values corrected (Holm):\n")
    for (a, b, of, name, d, pitman_morgan), p in zip(
        tested, intervals.holm([t[4].p for t in tested])
    ):
        what = standards_table.STANDARDS[name].title.replace("\n", " ")
        more = (
            ""
            if math.isnan(pitman_morgan)
            else f"; Pitman–Morgan p {differences.p_text(pitman_morgan)}"
        )
        print(
            f"- {of} {what}: {short[a.name]} − {short[b.name]}: {differences.difference_text(d, p)}{more}"
        )


def print_differences(
    comparisons: Sequence[Comparison], short: dict[str, str], measure: Measure, wide: int
) -> None:
    tests = sum(not c.refused for c in comparisons)
    print(f"Differences in {measure.metric}{', p-values corrected (Holm)' if tests > 1 else ''}:\n")
    for comparison in comparisons:
        said = differences.sentence(comparison, short, tests, measure.higher_is_better)
        text = re.sub(
            "(p|p [=<]|corrected|\\[.*?,) ", "\\1\xa0", said
        )  # what belongs together stays on one line
        wrapped = textwrap.fill(
            text, wide, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
        print(wrapped.replace("\xa0", " "))
        if unseen := differences.cannot_be_seen(comparison):
            print(f"  {unseen}")
    if any(c.difference and c.method == "number of images" for c in comparisons):
        print(
            "\napproximate: as if on different images. Runs on the same images differ less by chance than this\n"
            "assumes; predictions files of both would show smaller differences."
        )


def record_of(entry: Entry, measure: Measure) -> dict[str, object]:
    """A row with its figures in full, for --json and --csv."""
    first, single = entry.runs[0], len(entry.runs) == 1
    figures = {
        f"{part}_{name}": float(
            np.mean([run.figure(part, name, run.epoch(measure.epoch)) for run in entry.runs])
        )
        for part in ("train", "test", *first.cross_tests)
        for name in RECORDED
    }
    return {
        "run": entry.name,
        "files": [str(run.path) for run in entry.runs],
        "backbone": first.backbone,
        "status": "/".join(dict.fromkeys(run.status for run in entry.runs)),
        "epoch": first.epoch(measure.epoch)
        if single
        else [run.epoch(measure.epoch) for run in entry.runs],
        "epochs_run": len(first.epochs) if single else [len(run.epochs) for run in entry.runs],
        **figures,
        "metric": measure.metric,
        **asdict(measure.estimate(entry)),
        "minutes_per_epoch": entry.mean(lambda run: run.minutes),
    }


def print_json(entries, measure, comparisons, notes) -> None:
    rows = [
        {**record_of(e, measure), "settings": [run.settings for run in e.runs]} for e in entries
    ]
    pairs = []
    for c in comparisons:
        pair = {
            "a": c.a.name,
            "b": c.b.name,
            "method": c.method,
            "images": c.images,
            "refused": c.refused,
        }
        pairs.append(
            pair | (asdict(c.difference) if c.difference else {}) | {"p_corrected": c.corrected}
        )
    print(json.dumps(to_json_value({"runs": rows, "comparisons": pairs, "notes": notes}), indent=1))


def write_csv(path: Path, entries: Sequence[Entry], measure: Measure) -> None:
    names = differing_settings([run for entry in entries for run in entry.runs])
    rows = [
        to_json_value(record_of(e, measure))
        | {f"setting_{name}": e.setting(name) for name in names}
        for e in entries
    ]
    columns = dict.fromkeys(name for row in rows for name in row if name != "files")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [columns, *([row.get(c) for c in columns] for row in rows)]
    )
    write_whole(path, text.getvalue())


def main() -> None:
    options = parse()
    runs, problems = reading.find(options.paths)
    print("".join(f"skipped: {problem}\n" for problem in problems), end="", file=sys.stderr)
    if not runs:
        raise UserError(
            f"{first_five(options.paths)}: expected logs (NAME.jsonl or NAME.log) of a run, found none"
        )
    measure = Measure(options.metric, options.epoch, options.logistic, options.resamples)
    entries, notes = measures.choose_entries(runs, measure, options.group, options.sort)
    comparisons = differences.compare_all(
        measure, differences.chosen_pairs(entries, options.against, options.pairs)
    )
    if options.json:
        print_json(entries, measure, comparisons, notes + problems)
    else:
        print_report(options, entries, measure, comparisons, notes)
    if options.csv:
        write_csv(options.csv, entries, measure)


if __name__ == "__main__":
    run_tool(main)
