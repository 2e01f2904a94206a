"""Compare runs: a table, the settings that differ, and whether a difference is more than noise.

python compare_logs.py                                   # every run in logs/
python compare_logs.py logs ../old/resnet50_2025.log --against swin_multiscale
python compare_logs.py --group --pairs                   # seeds of one setting together
python compare_logs.py --plot curves.png --scatter best_run.png

Reads this project's NAME.jsonl (with NAME_predictions.csv beside it), its NAME.log alone, and the logs of
the public HyperIQA code. docs/comparing_runs.md explains the statistics."""

import argparse
import csv
import io
import itertools
import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import intervals
from common.cli import Flags, Given, run_tool
from common.errors import UserError, first_five
from common.files import write_whole
from common.run_files import plain
from comparing import plots, runs
from comparing.runs import FIGURE, Entry, Measure, Run
from metrics import RECORDED
from scoring import evidence


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


def parse() -> argparse.Namespace:
    flags = Flags(__doc__)
    flags.words("paths", "logs or folders of logs (default: logs)", nargs="*", type=Path, default=[Path("logs")],
                metavar="PATH")  # fmt: skip
    flags.group("table")
    compared = "the figure with the interval, which is compared; spaq_srcc: of a cross test"
    flags.value("--metric", "srcc", compared, FIGURE)
    flags.value("--sort", None, "figure by which rows are ordered, best first (default: the metric)", FIGURE)
    epochs = ("best, last or a number from 1", lambda text: re.fullmatch("best|last|[1-9][0-9]*", text))
    flags.value("--epoch", "best", "which epoch of each run", epochs, metavar="best|last|N")
    flags.switch("--logistic", "logistic", True, "PLCC and RMSE after the usual four-parameter logistic fit")
    flags.switch("--group", "group", True, "one row for all seeds of a setting")
    flags.group("differences")
    flags.value("--against", None, "test every run against this one (its name or a part of it)", metavar="RUN")
    flags.switch("--pairs", "pairs", True, "test every pair of runs; two runs alone are tested anyway")
    flags.switch("--standards", "standards", True, "the figures of ITU-T P.1401, J.149 and Krasula, and their tests")
    flags.value("--power", None, "the smallest difference that runs like this one (default: the best) could show, for "
                "1 to 10 seeds", nargs="?", const="", metavar="RUN")  # fmt: skip
    flags.count("--resamples", intervals.RESAMPLES, "of the bootstrap", least=100)
    flags.group("output")
    flags.switch("--markdown", "markdown", True, "tables as markdown")
    flags.switch("--json", "json", True, "everything as JSON")
    flags.output("--csv", "write the table to a CSV file, figures in full")
    flags.output("--plot", "curves over epochs (needs matplotlib)", plots.PICTURES)
    flags.output("--scatter", "scores against MOS of the first run of the table that has them", plots.PICTURES)
    return flags.parse(None, _problems)


def _problems(options: argparse.Namespace, given: Given) -> Iterator[str]:
    if options.markdown and options.json:
        yield "contradictory flags: --markdown and --json"
    drawn = [flag for flag, path in (("--plot", options.plot), ("--scatter", options.scatter)) if path is not None]
    yield from filter(None, map(plots.drawing_problem, drawn))
    if missing := [path for path in options.paths if not path.exists()]:
        yield f"{first_five(missing)}: no such file or folder"


def compare(measure: Measure, a: Entry, b: Entry) -> Comparison:
    """A against B by the best method that their files allow."""
    values: Any = [[measure.value(run) for run in entry.runs] for entry in (a, b)]
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
    if len(keys) < max(10, fewer / 2):
        return Comparison(a, b, refused=f"only {len(keys)} of {fewer} images are in both predictions files")
    if unequal := int((np.abs(scores_a.on(keys)[1] - scores_b.on(keys)[1]) > 1e-6).sum()):
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
    fewest, most = sorted((len(comparison.a.runs), len(comparison.b.runs)))
    basis += ", a single seed: less sure than it looks" if fewest == 1 < most else ""
    figures = f"{figures} ({'approximate, ' if found.approximate else ''}{basis})".replace("-", "−")
    if comparison.corrected >= 1 - intervals.LEVEL:
        return f"{a} − {b}: no evidence of a difference: {figures}"
    return f"{a} is {'better' if (found.value > 0) == higher_is_better else 'worse'} than {b}: {figures}"


def cannot_be_seen(comparison: Comparison) -> str:
    fewest = min(len(comparison.a.runs), len(comparison.b.runs))
    images = f"{comparison.images:,} images and " if comparison.images else ""
    seeds = "one seed" if fewest == 1 else f"{fewest} seeds"
    return f"differences under {comparison.difference.visible:.4f} cannot be seen with {images}{seeds}"


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2f}" if p >= 0.1 else f"= {p:.2g}"


def chosen_pairs(options, entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    if options.against is not None:
        base = _named(options.against, entries)
        return [(entry, base) for entry in entries if entry is not base]
    return list(itertools.combinations(entries, 2)) if options.pairs or len(entries) == 2 else []


def _named(wanted: str, entries: Sequence[Entry], flag: str = "--against") -> Entry:
    """The entry of this name, or the only one that has it in its name or its runs' names."""
    wanted = Path(wanted).name.removesuffix(".jsonl").removesuffix(".log")
    names = {entry: (entry.name, *(run.name for run in entry.runs)) for entry in entries}
    found = [e for e in entries if wanted in names[e]] or [e for e in entries if any(wanted in n for n in names[e])]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} runs match: {first_five(e.name for e in found)}" if found else "no such run"
    raise UserError(f"{flag} {wanted}: {what}; expected one of {first_five(entry.name for entry in entries)}")


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
    return [*notes, *evidence.notes(entries, measure)]


def print_report(options, entries, measure, comparisons, notes) -> None:
    wide = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    header, rows = runs.table(entries, measure, options.group)
    short = {entry.name: entry.name for entry in entries}
    if not options.markdown:
        short = plots.short_names([entry.name for entry in entries], plots.room_for_names(header, rows, wide))

    def show(header: list[str], rows: list[list[str]]) -> None:
        rows = [[short[name], *cells] for name, *cells in rows]
        text = plots.markdown_table(header, rows) if options.markdown else plots.text_table(header, rows, wide)
        print(text + "\n")

    show(header, rows)
    if legend := [f"  {brief} = {name}\n" for name, brief in short.items() if brief != name]:
        print("".join(legend))
    for note in footnotes(entries, measure) + notes:
        print(("- " if options.markdown else "") + note)
    header, rows = runs.settings_table(entries)
    if len(header) > 1:
        print("\nSettings that differ" + (" (? = not in the log)" if any("?" in row for row in rows) else "") + ":\n")
        show(header, rows)
    elif len(entries) > 1:
        print("\nThe settings known of these runs are the same.")
    if comparisons:
        print_differences(comparisons, short, measure, wide)
    elif len(entries) > 2:
        print("Is a difference real? --against RUN or --pairs tests it.")
    print_evidence(options, entries, measure, [(c.a, c.b) for c in comparisons], short, show)


def print_evidence(options, entries, measure: Measure, pairs, short: dict[str, str], show: Callable) -> None:
    if options.standards:
        print_standards(entries, pairs, short, show)
    if options.power is not None:
        chosen = _named(options.power, entries, "--power") if options.power else entries[0]
        settings = entries if options.group else runs.group([run for entry in entries for run in entry.runs])[0]
        seeds = next((each for each in settings if chosen.runs[0] in each.runs), chosen)
        print("\n" + "\n".join(evidence.power(seeds, settings, measure)))


def print_standards(entries, pairs, short: dict[str, str], show: Callable) -> None:
    """The standards' figures of each entry and set, and their differences, all p-values corrected together."""
    sets = {entry: evidence.of_entry(entry) for entry in entries}
    rows = [(entry.name, of, found) for entry in entries for of, found in sets[entry].items()]
    print("\nStandards: errors after a monotonic cubic, in units of the MOS; what needs votes is – without\n")
    show(*evidence.table(rows, "run")) if rows else print("None: they need the predictions of a run's best epoch")
    tested = [(a, b, *found) for a, b in pairs for found in evidence.differences(a, b, sets)]
    if len(tested) > 1:
        print("Their differences, p-values corrected (Holm):\n")
    for (a, b, of, name, d, pitman_morgan), p in zip(tested, intervals.holm([t[4].p for t in tested])):
        what = evidence.STANDARDS[name].title.replace("\n", " ")
        said = f"{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}], p {_p(d.p)}, corrected {_p(p).removeprefix('= ')}"
        said = said.replace("-", "−")
        more = "" if math.isnan(pitman_morgan) else f"; Pitman–Morgan p {_p(pitman_morgan)}"
        print(f"- {of} {what}: {short[a.name]} − {short[b.name]}: {said}{more}")


def print_differences(comparisons: Sequence[Comparison], short: dict[str, str], measure: Measure, wide: int) -> None:
    tests = sum(not c.refused for c in comparisons)
    print(f"Differences in {measure.metric}{', p-values corrected (Holm)' if tests > 1 else ''}:\n")
    for comparison in comparisons:
        said = sentence(comparison, short, tests, measure.higher_is_better)
        text = re.sub("(p|p [=<]|corrected|\\[.*?,) ", "\\1\xa0", said)  # what belongs together stays on one line
        wrapped = textwrap.fill(text, wide, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        print(wrapped.replace("\xa0", " "))
        if comparison.difference and not comparison.refused and not math.isnan(comparison.difference.visible):
            print(f"  {cannot_be_seen(comparison)}")
    if any(c.difference and c.method == "number of images" for c in comparisons):
        print("\napproximate: as if on different images. Runs on the same images differ less by chance than this\n"
              "assumes; predictions files of both would show smaller differences.")  # fmt: skip


def record_of(entry: Entry, measure: Measure) -> dict[str, object]:
    """A row with its figures in full, for --json and --csv."""
    first, single = entry.runs[0], len(entry.runs) == 1
    figures = {
        f"{part}_{name}": float(np.mean([run.figure(part, name, run.epoch(measure.epoch)) for run in entry.runs]))
        for part in ("train", "test", *first.cross_tests)
        for name in RECORDED
    }
    return {
        "run": entry.name, "files": [str(run.path) for run in entry.runs], "backbone": first.backbone,
        "status": "/".join(dict.fromkeys(run.status for run in entry.runs)),
        "epoch": first.epoch(measure.epoch) if single else [run.epoch(measure.epoch) for run in entry.runs],
        "epochs_run": len(first.epochs) if single else [len(run.epochs) for run in entry.runs], **figures,
        "metric": measure.metric, **asdict(measure.estimate(entry)),
        "minutes_per_epoch": entry.mean(lambda run: run.minutes),
    }  # fmt: skip


def print_json(entries, measure, comparisons, notes) -> None:
    rows = [{**record_of(e, measure), "settings": [run.settings for run in e.runs]} for e in entries]
    pairs = []
    for c in comparisons:
        pair = {"a": c.a.name, "b": c.b.name, "method": c.method, "images": c.images, "refused": c.refused}
        pairs.append(pair | (asdict(c.difference) if c.difference else {}) | {"p_corrected": c.corrected})
    print(json.dumps(plain({"runs": rows, "comparisons": pairs, "notes": notes}), indent=1))


def write_csv(path: Path, entries: Sequence[Entry], measure: Measure) -> None:
    names = runs.differences([run for entry in entries for run in entry.runs])
    rows = [plain(record_of(e, measure)) | {f"setting_{name}": e.setting(name) for name in names} for e in entries]
    columns = dict.fromkeys(name for row in rows for name in row if name != "files")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *([row.get(c) for c in columns] for row in rows)])
    write_whole(path, text.getvalue())


def plot_curves(path: Path, entries: Sequence[Entry]) -> None:
    """A panel for each figure of each set, and for the training loss and its parts."""
    shown: list[Run] = [run for entry in entries for run in entry.runs]
    cross = dict.fromkeys(part for run in shown for part in run.cross_tests)
    parts = {"test": "test", **{part: part.upper() for part in cross}, "train": "train"}
    panels = {f"{title} {name.upper()}": (part, name) for part, title in parts.items() for name in RECORDED}
    trained = [epoch.get("train", {}) for run in shown for epoch in run.epochs.values()]
    losses = dict.fromkeys(name for train in trained for name in train if name not in RECORDED)
    # Where the loss has one part, they are the same.
    panels |= {f"train {name}": ("train", name) for name in (losses if len(losses) != 2 else ["loss"])}
    curves = []
    for run in shown:
        epochs = sorted(run.epochs)
        figures = {title: [run.figure(*what, epoch) for epoch in epochs] for title, what in panels.items()}
        curves.append(plots.Curve(run.name, epochs, figures, run.best))
    plots.draw_curves(path, curves, list(panels))


def plot_scatter(path: Path, entries: Sequence[Entry]) -> None:
    drawn = []
    for run in (run for entry in entries for run in entry.runs):
        for part in ("test", *run.cross_tests):
            if (scores := run.scores(part)) is not None:
                title = run.settings.get("dataset", "test") if part == "test" else part.upper()
                drawn.append(plots.fitted_cloud(title, scores.score, scores.mos, [name for name, _ in scores.keys]))
        if drawn:
            break
    else:
        raise UserError("--scatter: none of these runs has a predictions file that belongs to its best epoch")
    plots.draw_scatter(path, f"{run.name}, epoch {run.best}", *zip(*drawn))


def main() -> None:
    options = parse()
    found, problems = runs.find(options.paths)
    print("".join(f"skipped: {problem}\n" for problem in problems), end="", file=sys.stderr)
    if not found:
        raise UserError(f"{first_five(options.paths)}: expected logs (NAME.jsonl or NAME.log) of a run, found none")
    measure = Measure(options.metric, options.epoch, options.logistic, options.resamples)
    entries, notes = runs.group(found) if options.group else ([Entry(run.name, (run,)) for run in found], [])
    if not entries:
        raise UserError(f"--group: expected finished runs; {'; '.join(notes)}")
    measure.draw_together(entries)
    entries = runs.ranked(entries, replace(measure, metric=options.sort or measure.metric))
    comparisons = compare_all(measure, chosen_pairs(options, entries))
    if options.json:
        print_json(entries, measure, comparisons, notes + problems)
    else:
        print_report(options, entries, measure, comparisons, notes)
    if options.csv:
        write_csv(options.csv, entries, measure)
    if options.plot:
        plot_curves(options.plot, entries)
    if options.scatter:
        plot_scatter(options.scatter, entries)


if __name__ == "__main__":
    run_tool(main)
