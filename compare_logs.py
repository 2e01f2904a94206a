"""Compare runs: a table, the settings that differ, and the tests of differences.

  python compare_logs.py                              # every run in logs/
  python compare_logs.py logs ../old/resnet50_2025.log --against swin_multiscale
  python compare_logs.py --group --pairs              # seeds taken together

A run is read from its NAME.jsonl, with NAME_predictions.csv beside it, or from
its NAME.log; logs of the public HyperIQA code are read too.
docs/comparing_runs.md explains the statistics."""

import argparse
import itertools
import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hyperiqa.base import command_line, errors, files, plain_values, terminal
from hyperiqa.runs import differences, measures, reading, runs_table, standards_table, tables
from hyperiqa.stats import intervals, metrics, resampling, standards


def parse() -> argparse.Namespace:
    """The flags, checked all together. Raises UserError."""
    flags = command_line.Flags(__doc__)
    flags.words(
        "paths",
        "logs, or folders with logs (default: logs)",
        nargs="*",
        type=Path,
        default=[Path("logs")],
        metavar="PATH",
    )
    _add_table_flags(flags)
    _add_difference_flags(flags)
    flags.group("output")
    flags.switch("--markdown", "markdown", True, "write the tables as markdown")
    flags.switch("--json", "json", True, "write everything as JSON")
    flags.output("--csv", "write the table to a CSV file with all digits")
    return flags.parse(None, _problems)


def _add_table_flags(flags: command_line.Flags) -> None:
    flags.group("table")
    flags.value(
        "--metric",
        "srcc",
        "figure that is compared and has an interval, such as srcc, or spaq_srcc for a cross test",
        measures.FIGURE,
    )
    flags.value(
        "--sort",
        None,
        "figure by which rows are sorted, best first (default: --metric)",
        measures.FIGURE,
    )
    flags.value(
        "--epoch",
        "best",
        "epoch of each run that is compared",
        ("best, last or a number from 1", re.compile("best|last|[1-9][0-9]*").fullmatch),
        metavar="best|last|N",
    )
    flags.switch(
        "--logistic",
        "logistic",
        True,
        "compute PLCC and RMSE after a logistic fit with four parameters",
    )
    flags.switch("--group", "group", True, "show all seeds of a setting in one row")


def _add_difference_flags(flags: command_line.Flags) -> None:
    flags.group("differences")
    flags.value(
        "--against",
        None,
        "test every run against this one: its name, a part of it, or a setting such as alpha=0",
        metavar="RUN",
    )
    flags.switch(
        "--pairs", "pairs", True, "test every pair of runs, as is always done with two runs"
    )
    flags.switch(
        "--standards",
        "standards",
        True,
        "also show the figures and tests of ITU-T P.1401, J.149 and Krasula",
    )
    flags.value(
        "--power",
        None,
        "show which differences runs like this one (default: the best) could find with 1 to 10 "
        "seeds",
        nargs="?",
        const="",
        metavar="RUN",
    )
    flags.count(
        "--resamples", resampling.RESAMPLES, "resamples of the images in the bootstrap", least=100
    )


def _problems(options: argparse.Namespace, given: command_line.Given) -> Iterator[str]:
    if options.markdown and options.json:
        yield "contradictory flags: --markdown and --json"
    missing = [path for path in options.paths if not path.exists()]
    if missing:
        yield f"{errors.first_five(missing)}: no such file or folder"


class Layout:
    """How a report is laid out: its width, its kind of tables, and names that fit into them."""

    def __init__(self, main_table: tuple[list[str], list[list[str]]], markdown: bool):
        header, rows = main_table
        # A file has no width: its text is the same wherever it is written.
        self.width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
        self.markdown = markdown
        if markdown:
            self.short_names = {name: name for name, *_ in rows}
        else:
            self.short_names = tables.names_in_table(header, rows, self.width)

    def print_table(self, header: list[str], rows: list[list[str]]) -> None:
        """Print a table of which the first column holds the entries' names."""
        rows = [[self.short_names[name], *cells] for name, *cells in rows]
        if self.markdown:
            print(tables.markdown_table(header, rows) + "\n")
        else:
            print(tables.text_table(header, rows, self.width) + "\n")


def print_report(
    options: argparse.Namespace,
    entries: Sequence[measures.Entry],
    measure: measures.Measure,
    comparisons: Sequence[differences.Comparison],
    notes: Sequence[str],
) -> None:
    """Print the table of the entries, the settings that differ, and the tests."""
    main_table = runs_table.table(entries, measure, options.group)
    layout = Layout(main_table, options.markdown)
    layout.print_table(*main_table)
    legend = [
        f"  {terminal.printable(f'{short} = {name}')}\n"
        for name, short in layout.short_names.items()
        if short != name
    ]
    if legend:
        print("".join(legend))
    for note in [*runs_table.footnotes(entries, measure), *notes]:
        print(("- " if options.markdown else "") + note)
    print_settings(entries, layout)
    if comparisons:
        print_differences(comparisons, layout, measure)
    elif len(entries) > 2:
        print("Is a difference real? --against RUN or --pairs tests it.")
    if options.standards:
        print_standards(entries, comparisons, layout)
    # "" is the flag without a name: the best entry.
    if options.power is not None:
        print_power(options, entries, measure)


def print_settings(entries: Sequence[measures.Entry], layout: Layout) -> None:
    """Print the settings that differ."""
    header, rows = runs_table.settings_table(entries)
    if len(header) > 1:
        hint = " (? = not in the log)" if any("?" in row for row in rows) else ""
        print(f"\nSettings that differ{hint}:\n")
        layout.print_table(header, rows)
    elif len(entries) > 1:
        print("\nThe settings known of these runs are the same.")


def print_power(
    options: argparse.Namespace, entries: Sequence[measures.Entry], measure: measures.Measure
) -> None:
    """Print what more runs like one entry's would show; of a single run, with its other seeds."""
    chosen = entries[0]
    if options.power:
        chosen = differences.find_entry(options.power, entries, "--power")
    settings = entries
    if not options.group:
        settings, _ = measures.group([run for entry in entries for run in entry.runs])
    # A run that is not done is in no group, and stands for itself.
    seeds = next((setting for setting in settings if chosen.runs[0] in setting.runs), chosen)
    print("\n" + "\n".join(differences.power(seeds, settings, measure)))


def print_standards(
    entries: Sequence[measures.Entry], comparisons: Sequence[differences.Comparison], layout: Layout
) -> None:
    """Print the standards' figures of each entry and set, and their differences.

    The p-values of all differences are corrected together.
    """
    sets = {entry: standards_table.entry_standards(entry) for entry in entries}
    print(f"\n{runs_table.STANDARDS_NOTE}\n")
    rows = [
        (entry.name, dataset, figures)
        for entry in entries
        for dataset, figures in sets[entry].items()
    ]
    if rows:
        layout.print_table(*standards_table.table(rows, "run"))
    else:
        print("None: they need the predictions of a run's best epoch")
    tested = []
    # What is compared by the metric is tested here too, whatever became of that comparison.
    for pair in comparisons:
        names = f"{layout.short_names[pair.a.name]} − {layout.short_names[pair.b.name]}"
        tested += [(names, *test) for test in standards_table.differences(pair.a, pair.b, sets)]
    if len(tested) > 1:
        print("Their differences, p-values corrected (Holm):\n")
    corrected = intervals.holm([difference.p for _, _, _, difference, _ in tested])
    for (names, dataset, figure, difference, pitman_morgan), p in zip(tested, corrected):
        title = standards.STANDARDS[figure].title.replace("\n", " ")
        text = f"- {dataset} {title}: {names}: {differences.difference_text(difference, p)}"
        if not math.isnan(pitman_morgan):
            text += f"; Pitman–Morgan p {differences.p_text(pitman_morgan)}"
        print(text)


def print_differences(
    comparisons: Sequence[differences.Comparison], layout: Layout, measure: measures.Measure
) -> None:
    """Print the verdict on each pair, and what could not have been seen."""
    tests = sum(not comparison.refused for comparison in comparisons)
    corrected = ", p-values corrected (Holm)" if tests > 1 else ""
    print(f"Differences in {measure.metric}{corrected}:\n")
    for comparison in comparisons:
        sentence = differences.sentence(
            comparison, layout.short_names, tests, measure.figure.higher_is_better
        )
        # What belongs together stays on one line.
        text = re.sub(r"(p|p [=<]|corrected|\[.*?,) ", "\\1\xa0", sentence)
        wrapped = textwrap.fill(
            text, layout.width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
        print(wrapped.replace("\xa0", " "))
        limit = differences.detection_limit(comparison)
        if limit:
            print(f"  {limit}")
    if any(pair.difference and pair.method == "number of images" for pair in comparisons):
        print(
            "\napproximate: as if on different images. "
            "Runs on the same images differ less by chance than this\n"
            "assumes; predictions files of both would show smaller differences."
        )


def record_of(entry: measures.Entry, measure: measures.Measure) -> dict[str, object]:
    """A row with its figures in full, for --json and --csv."""
    first = entry.runs[0]
    chosen_epochs = [run.epoch(measure.epoch) for run in entry.runs]
    epochs_run = [len(run.epochs) for run in entry.runs]
    is_single = len(entry.runs) == 1
    # Of a setting the means over its seeds.
    figures = {
        f"{part}_{name}": float(
            np.mean([run.figure(part, name, run.epoch(measure.epoch)) for run in entry.runs])
        )
        for part, name in itertools.product(("train", "test", *first.cross_tests), metrics.RECORDED)
    }
    return {
        "run": entry.name,
        "files": [str(run.path) for run in entry.runs],
        "backbone": first.backbone,
        "status": "/".join(dict.fromkeys(run.status for run in entry.runs)),
        "epoch": chosen_epochs[0] if is_single else chosen_epochs,
        "epochs_run": epochs_run[0] if is_single else epochs_run,
        **figures,
        "metric": measure.metric,
        **asdict(measure.estimate(entry)),
        "minutes_per_epoch": entry.mean(lambda run: run.minutes),
    }


def print_json(
    entries: Sequence[measures.Entry],
    measure: measures.Measure,
    comparisons: Sequence[differences.Comparison],
    notes: Sequence[str],
) -> None:
    """Print everything as one JSON object."""
    rows = [
        record_of(entry, measure) | {"settings": [run.settings for run in entry.runs]}
        for entry in entries
    ]
    pairs = [
        {
            "a": comparison.a.name,
            "b": comparison.b.name,
            "method": comparison.method,
            "images": comparison.images,
            "refused": comparison.refused,
            **(asdict(comparison.difference) if comparison.difference else {}),
            "p_corrected": comparison.corrected,
        }
        for comparison in comparisons
    ]
    print(
        json.dumps(
            plain_values.to_json_value({"runs": rows, "comparisons": pairs, "notes": notes}),
            indent=1,
        )
    )


def write_csv(path: Path, entries: Sequence[measures.Entry], measure: measures.Measure) -> None:
    """Write the table to a CSV file: a row for each entry, the settings that differ as columns."""
    names = measures.differing_settings([run for entry in entries for run in entry.runs])
    rows = [
        plain_values.to_json_value(record_of(entry, measure))
        | {f"setting_{name}": entry.setting(name) for name in names}
        for entry in entries
    ]
    columns = dict.fromkeys(name for row in rows for name in row if name != "files")
    # Not every entry has every cross test: its cells stay empty.
    files.write_csv(path, list(columns), rows)


def main() -> None:
    options = parse()
    runs, problems = reading.find(options.paths)
    # Before the resampling, which takes a while.
    print(
        "".join(f"skipped: {terminal.printable(problem)}\n" for problem in problems),
        end="",
        file=sys.stderr,
    )
    if not runs:
        raise errors.UserError(
            f"{errors.first_five(options.paths)}: expected logs (NAME.jsonl or NAME.log) of a run, "
            "found none"
        )
    measure = measures.Measure(options.metric, options.epoch, options.logistic, options.resamples)
    entries, notes = measures.choose_entries(runs, measure, options.group, options.sort)
    pairs = differences.chosen_pairs(entries, options.against, options.pairs)
    comparisons = differences.compare_all(measure, pairs)
    if options.json:
        print_json(entries, measure, comparisons, notes + problems)
    else:
        print_report(options, entries, measure, comparisons, notes)
    if options.csv:
        write_csv(options.csv, entries, measure)
        print(f"{options.csv}: written", file=sys.stderr)


if __name__ == "__main__":
    command_line.run_tool(main)
