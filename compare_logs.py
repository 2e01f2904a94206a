"""Compare runs: a table, the settings that differ, and whether a difference is more than noise.

python compare_logs.py                                   # every run in logs/
python compare_logs.py logs ../old/resnet50_2025.log --against swin_multiscale
python compare_logs.py --group --pairs                   # seeds of one setting together
python compare_logs.py --plot curves.png --scatter best_run.png

Reads this project's NAME.jsonl (with NAME_predictions.csv beside it), its NAME.log alone, and the logs of
the public HyperIQA code. docs/comparing_runs.md explains the statistics.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import intervals
from comparing import plots, runs
from comparing.runs import Entry, Measure, Run
from options import Parser, UserError, first_five, run_tool

SORTS = (*runs.METRICS, "train_srcc", "run", "epoch", "minutes", "status")
FEWEST = 10


@dataclass(frozen=True)
class Comparison:
    """A pair of entries; `refused` says why they cannot be compared, else `difference` is A − B."""

    a: Entry
    b: Entry
    method: str = ""
    images: int = 0
    difference: intervals.Difference | None = None
    corrected: float = float("nan")
    refused: str = ""


def parse() -> object:
    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("logs")], metavar="PATH",
                        help="logs or folders of logs (default: logs)")  # fmt: skip
    add = parser.add_argument_group("table").add_argument
    add("--metric", default="srcc", choices=runs.METRICS, help="the figure that gets the interval and is compared")
    add("--sort", choices=SORTS, help="order of the rows (default: the metric, best first)")
    add("--epoch", default="best", metavar="best|last|N", help="which epoch of each run")
    add("--logistic", action="store_true", help="PLCC and RMSE after the usual four-parameter logistic fit")
    add("--group", action="store_true", help="one row for all seeds of a setting")
    add = parser.add_argument_group("differences").add_argument
    add("--against", metavar="RUN", help="test every run against this one (its name or a part of it)")
    add("--pairs", action="store_true", help="test every pair of runs; two runs alone are tested anyway")
    add("--resamples", type=int, default=intervals.RESAMPLES, metavar="B", help="of the bootstrap")
    add = parser.add_argument_group("output").add_argument
    add("--markdown", action="store_true", help="tables as markdown")
    add("--json", action="store_true", help="everything as JSON")
    add("--csv", type=Path, metavar="FILE", help="write the table to a CSV file, figures in full")
    add("--plot", type=Path, metavar="FILE", help="curves over epochs as .png, .svg or .pdf (needs matplotlib)")
    add("--scatter", type=Path, metavar="FILE", help="scores against MOS of the first run of the table that has them")
    options = parser.parse_args()
    if options.epoch not in ("best", "last") and not (options.epoch.isdecimal() and int(options.epoch) > 0):
        raise UserError(f"--epoch {options.epoch}: expected best, last or a number from 1")
    if options.resamples < 100:
        raise UserError(f"--resamples {options.resamples}: expected at least 100")
    if options.markdown and options.json:
        raise UserError("contradictory flags: --markdown and --json")
    for flag, path in (("--plot", options.plot), ("--scatter", options.scatter)):
        if path is not None:
            plots.check_picture(path, flag)
    missing = [path for path in options.paths if not path.exists()]
    if missing:
        raise UserError(f"{first_five(missing)}: no such file or folder")
    return options


# ------------------------------------------------------------------------------------------ differences
def compare(measure: Measure, a: Entry, b: Entry) -> Comparison:
    """A against B by the best method that their files allow."""
    values = [[measure.value(run) for run in entry.runs] for entry in (a, b)]
    if any(math.isnan(value) for value in sum(values, [])):
        source = "the predictions files" if measure.formula is None else "the logs"
        return Comparison(a, b, refused=f"no {measure.metric} of epoch {measure.epoch} in {source} of both")
    sets = {run.settings.get("dataset") for run in a.runs + b.runs} - {None}
    if measure.part == "test" and len(sets) > 1:
        return Comparison(a, b, refused=f"tested on different data sets: {', '.join(sorted(sets))}")
    if len(a.runs) == len(b.runs) == 1:
        return _compare_runs(measure, a, b)
    keys = measure.common_images(a.runs + b.runs)
    if keys is None:
        found = intervals.welch_difference(*values)
        refused = "seeds without common predictions need at least two on both sides" if math.isnan(found.p) else ""
        return Comparison(a, b, "seeds alone", 0, found, refused=refused)
    draws = [np.stack([measure.draws(run, keys) for run in entry.runs], 1) for entry in (a, b)]
    return Comparison(a, b, "seeds and images", len(keys), intervals.group_difference(*values, *draws))


def _compare_runs(measure: Measure, a: Entry, b: Entry) -> Comparison:
    run_a, run_b = a.runs[0], b.runs[0]
    scores_a, scores_b = measure.scores(run_a), measure.scores(run_b)
    if scores_a is None or scores_b is None:
        counts = [run.images.get(measure.part) for run in (run_a, run_b)]
        if measure.formula is None or None in counts:
            return Comparison(a, b, refused="needs predictions of both")
        found = intervals.unpaired_difference(measure.value(run_a), measure.value(run_b), measure.formula, *counts)
        return Comparison(a, b, "number of images", min(counts), found)
    keys = scores_a.keys if scores_a.keys == scores_b.keys else tuple(sorted({*scores_a.keys} & {*scores_b.keys}))
    fewer = min(len(scores_a.keys), len(scores_b.keys))
    if len(keys) < max(FEWEST, fewer / 2):
        return Comparison(a, b, refused=f"only {len(keys)} of {fewer} images are in both predictions files")
    unequal = int((np.abs(scores_a.on(keys)[1] - scores_b.on(keys)[1]) > 1e-6).sum())
    if unequal:
        return Comparison(a, b, refused=f"{unequal} of {len(keys)} common images have different MOS")
    subset = None if len(keys) == len(scores_a.keys) == len(scores_b.keys) else keys
    value = measure.value(run_a, subset) - measure.value(run_b, subset)
    found = intervals.paired_difference(value, measure.draws(run_a, keys), measure.draws(run_b, keys))
    return Comparison(a, b, "images, paired", len(keys), found)


def compare_all(measure: Measure, pairs: Sequence[tuple[Entry, Entry]]) -> list[Comparison]:
    """All pairs, their p-values corrected together (Holm)."""
    found = [compare(measure, a, b) for a, b in pairs]
    p_values = [c.difference.p if c.difference and not c.refused else float("nan") for c in found]
    return [replace(c, corrected=p) for c, p in zip(found, intervals.holm(p_values))]


def sentence(comparison: Comparison, names: dict[str, str], tests: int, higher_is_better: bool) -> str:
    a, b, found = names[comparison.a.name], names[comparison.b.name], comparison.difference
    if comparison.refused:
        return f"{a} and {b}: cannot be compared: {comparison.refused}"
    figures = f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}], p {_p(found.p)}"
    if tests > 1:
        figures += f", corrected {_p(comparison.corrected).removeprefix('= ')}"
    basis = f"{comparison.images} images" if comparison.images else "seeds alone"
    sizes = sorted((len(comparison.a.runs), len(comparison.b.runs)))
    if sizes[0] == 1 < sizes[1]:
        basis += ", a single seed: less sure than it looks"
    figures = f"{figures} ({'approximate, ' if found.approximate else ''}{basis})".replace("-", "−")
    if comparison.corrected >= 1 - intervals.LEVEL:
        return f"{a} − {b}: no evidence of a difference: {figures}"
    if (found.value > 0) == higher_is_better:
        return f"{a} is better than {b}: {figures}"
    return f"{a} is worse than {b}: {figures}"


def _p(p: float) -> str:
    if p < 0.0001:
        return "< 0.0001"
    return f"= {p:.2f}" if p >= 0.1 else f"= {p:.2g}"


def chosen_pairs(options, entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    if options.against is not None:
        base = _named(options.against, entries)
        return [(entry, base) for entry in entries if entry is not base]
    if options.pairs or len(entries) == 2:
        return list(itertools.combinations(entries, 2))
    return []


def _named(wanted: str, entries: Sequence[Entry]) -> Entry:
    """The entry of this name, or the only one that has it in its name or its runs' names."""
    wanted = Path(wanted).name.removesuffix(".jsonl").removesuffix(".log")
    names = {entry: (entry.name, *(run.name for run in entry.runs)) for entry in entries}
    found = [e for e in entries if wanted in names[e]] or [e for e in entries if any(wanted in n for n in names[e])]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} runs match: {first_five(e.name for e in found)}" if found else "no such run"
    raise UserError(f"--against {wanted}: {what}; expected one of {first_five(entry.name for entry in entries)}")


# --------------------------------------------------------------------------------------------- output
def in_order(entries: Sequence[Entry], measure: Measure, sort: str | None) -> list[Entry]:
    """Best first by a figure; by name, epoch, time or status in ascending order."""
    if sort in (None, *runs.METRICS):
        return runs.ranked(entries, replace(measure, metric=sort or measure.metric))
    keys = {
        "train_srcc": lambda e: -_number(np.mean([r.figure("train", "srcc", r.epoch(measure.epoch)) for r in e.runs])),
        "run": lambda e: e.name,
        "epoch": lambda e: e.runs[0].epoch(measure.epoch),
        "minutes": lambda e: -_number(-np.mean([run.minutes for run in e.runs])),
        "status": lambda e: e.runs[0].status,
    }
    return sorted(entries, key=keys[sort])


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else float(value)


def footnotes(entries: Sequence[Entry], measure: Measure) -> list[str]:
    found = [measure.estimate(entry) for entry in entries]
    notes = []
    if any(not e.approximate and not math.isnan(e.low) for e in found):
        notes.append(f"[…] 95 % interval: bootstrap over test images, {measure.resamples} resamples")
    if any(e.approximate for e in found):
        paper = {"srcc": "Bonett & Wright 2000", "plcc": "Fisher"}.get(measure.name, "")
        single = f"from the number of test images alone ({paper}), for want of predictions"
        notes.append(f"~ approximate: {'from the seeds alone' if any(len(e.runs) > 1 for e in entries) else single}")
    if any(not math.isnan(e.deviation) for e in found):
        notes.append("± standard deviation over seeds; intervals over seeds and images")
    if any(run.status == runs.UNDER_WAY for entry in entries for run in entry.runs):
        notes.append("running?: its records have no end; it goes on, or it was killed")
    if measure.epoch == "best":
        notes.append("best: the epoch that the run chose; where its log names none, that of the highest test SRCC")
    return notes


def print_report(options, entries, measure, comparisons, notes) -> None:
    wide = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    colours = None
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        bad = {"failed": "31", "crashed": "31", "interrupted": "33", "cut off": "33", runs.UNDER_WAY: "33"}
        colours = {i: bad.get(e.runs[0].status, "32" if i == 0 else "") for i, e in enumerate(entries)}

    header, rows = runs.table(entries, measure, options.group)
    names = [entry.name for entry in entries]
    short = plots.short_names(names, plots.room_for_names(header, rows, wide))
    if options.markdown:
        short = {name: name for name in names}

    def show(header: list[str], rows: list[list[str]]) -> None:
        named = [[short[row[0]], *row[1:]] for row in rows]
        text = (
            plots.markdown_table(header, named) if options.markdown else plots.text_table(header, named, wide, colours)
        )
        print(text + "\n")

    show(header, rows)
    legend = [f"  {brief} = {name}" for name, brief in short.items() if brief != name]
    if legend:
        print("\n".join(legend) + "\n")
    for note in footnotes(entries, measure) + notes:
        print(("- " if options.markdown else "") + note)
    header, rows = runs.settings_table(entries)
    if len(header) > 1:
        print("\nSettings that differ" + (" (? = not in the log)" if any("?" in row for row in rows) else "") + ":\n")
        show(header, rows)
    elif len(entries) > 1:
        print("\nThe settings known of these runs are the same.")
    tests = sum(not c.refused for c in comparisons)
    if comparisons:
        print(f"Differences in {measure.metric}{', p-values corrected (Holm)' if tests > 1 else ''}:\n")
    for comparison in comparisons:
        # What belongs together is kept on one line.
        text = re.sub(
            "(p|p [=<]|corrected|\\[.*?,) ", "\\1\xa0", sentence(comparison, short, tests, measure.higher_is_better)
        )
        wrapped = textwrap.fill(text, wide, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        print(wrapped.replace("\xa0", " "))
    if any(c.difference and c.method == "number of images" for c in comparisons):
        print("\napproximate: as if on different images. Runs on the same images differ less by chance than this\n"
              "assumes; predictions files of both would show smaller differences.")  # fmt: skip
    if not comparisons and len(entries) > 2:
        print("Is a difference real? --against RUN or --pairs tests it.")


def record_of(entry: Entry, measure: Measure) -> dict[str, object]:
    """A row with its figures in full, for --json and --csv."""
    first, estimate = entry.runs[0], measure.estimate(entry)
    epoch = first.epoch(measure.epoch)
    figures = {
        f"{part}_{name}": float(np.mean([run.figure(part, name, run.epoch(measure.epoch)) for run in entry.runs]))
        for part in ("train", "test", "spaq")
        for name in ("srcc", "plcc")
    }
    return {
        "run": entry.name,
        "files": [str(run.path) for run in entry.runs],
        "backbone": first.backbone,
        "status": "/".join(dict.fromkeys(run.status for run in entry.runs)),
        "epoch": epoch if len(entry.runs) == 1 else [run.epoch(measure.epoch) for run in entry.runs],
        "epochs_run": len(first.epochs) if len(entry.runs) == 1 else [len(run.epochs) for run in entry.runs],
        **figures,
        "metric": measure.metric,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "approximate": estimate.approximate,
        "deviation": estimate.deviation,
        "minutes_per_epoch": float(np.mean([run.minutes for run in entry.runs])),
    }


def print_json(entries, measure, comparisons, notes) -> None:
    rows = [{**record_of(e, measure), "settings": [run.settings for run in e.runs]} for e in entries]
    pairs = [
        {
            "a": c.a.name,
            "b": c.b.name,
            "method": c.method,
            "images": c.images,
            "refused": c.refused,
            **(
                {k: getattr(c.difference, k) for k in ("value", "low", "high", "p", "approximate")}
                if c.difference
                else {}
            ),
            "p_corrected": c.corrected,
        }
        for c in comparisons
    ]
    whole = {"runs": rows, "comparisons": pairs, "notes": notes}
    print(json.dumps(_defined(whole), indent=1))


def _defined(value: object) -> object:
    """nan, which JSON doesn't know, becomes null."""
    if isinstance(value, dict):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_defined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, entries: Sequence[Entry], measure: Measure) -> None:
    names = runs.differences([run for entry in entries for run in entry.runs])
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = None
            for entry in entries:
                row = {k: v for k, v in _defined(record_of(entry, measure)).items() if k != "files"}
                own = [{n: run.settings.get(n, "?") for n in names} for run in entry.runs]
                row |= {f"setting_{n}": ",".join(dict.fromkeys(settings[n] for settings in own)) for n in names}
                if writer is None:
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    writer.writeheader()
                writer.writerow(row)
    except OSError as problem:
        raise UserError(f"--csv {path}: cannot be written: {problem.strerror}") from None


def plot_curves(path: Path, entries: Sequence[Entry]) -> None:
    panels = {"test SRCC": ("test", "srcc"), "SPAQ SRCC": ("spaq", "srcc"), "train SRCC": ("train", "srcc"),
              "train loss": ("train", "loss")}  # fmt: skip
    shown: list[Run] = [run for entry in entries for run in entry.runs]
    curves = [
        plots.Curve(run.name, sorted(run.epochs), {
            title: [run.figure(*what, epoch) for epoch in sorted(run.epochs)] for title, what in panels.items()
        }, run.best)
        for run in shown
    ]  # fmt: skip
    plots.draw_curves(path, curves, list(panels))


def plot_scatter(path: Path, entries: Sequence[Entry]) -> None:
    run = next((run for entry in entries for run in entry.runs if run.scores("test")), None)
    if run is None:
        raise UserError("--scatter: none of these runs has a predictions file that belongs to its best epoch")
    clouds, captions = [], []
    for part in ("test", "spaq"):
        if (scores := run.scores(part)) is not None:
            title = "SPAQ" if part == "spaq" else run.settings.get("dataset", "test")
            cloud, caption = plots.fitted_cloud(title, scores.score, scores.mos, [name for name, _ in scores.keys])
            clouds.append(cloud)
            captions.append(caption)
    plots.draw_scatter(path, f"{run.name}, epoch {run.best}", clouds, captions)


def main() -> None:
    sys.stdout.reconfigure(errors="replace")
    options = parse()
    found, problems = runs.find(options.paths)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    if not found:
        raise UserError(f"{first_five(options.paths)}: expected logs (NAME.jsonl or NAME.log) of a run, found none")
    measure = Measure(options.metric, options.epoch, options.logistic, options.resamples)
    entries, notes = runs.group(found) if options.group else ([Entry(run.name, (run,)) for run in found], [])
    if not entries:
        raise UserError(f"--group: expected finished runs; {'; '.join(notes)}")
    measure.draw_together(entries)
    entries = in_order(entries, measure, options.sort)
    comparisons = compare_all(measure, chosen_pairs(options, entries))
    try:
        if options.json:
            print_json(entries, measure, comparisons, notes + problems)
        else:
            print_report(options, entries, measure, comparisons, notes)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; the files are still written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if options.csv:
        write_csv(options.csv, entries, measure)
    if options.plot:
        plot_curves(options.plot, entries)
    if options.scatter:
        plot_scatter(options.scatter, entries)


if __name__ == "__main__":
    run_tool(main)
