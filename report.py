"""Write one page on a run, or on several runs side by side.

  python report.py logs/NAME.jsonl                    # writes report.html
  python report.py logs/a.jsonl logs/b.jsonl --output ab.html --maps 200
  python report.py logs --group --against fusion=none
  python report.py logs/NAME.jsonl --follow           # while the run trains

The page has curves, figures with intervals and tests, and the error of every
image. It needs no other file. Pictures are taken from the data sets where they
were in training, certificates and maps from the checkpoints of the runs.
docs/seeing.md shows what is on the page."""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hyperiqa.base import command_line, errors, signals
from hyperiqa.datasets.names import EPOCH_KEYS, record_name
from hyperiqa.runs import measures, reading, tables

# Of names of runs, on the page.
NAME_WIDTH = 40


def parse() -> argparse.Namespace:
    flags = command_line.Flags(__doc__, "%(prog)s RUN … [flags]")
    flags.words(
        "paths",
        "logs, or folders with logs, as for compare_logs.py",
        nargs="+",
        type=Path,
        metavar="RUN",
    )
    flags.output("--output", "file for the page (default: report.html)", [".html"])
    flags.switch("--follow", "follow", True, "update the page after every epoch until the runs end")
    flags.group("comparison")
    flags.value(
        "--metric",
        "srcc",
        "figure that is compared and has an interval, such as srcc",
        measures.FIGURE,
    )
    flags.switch("--group", "group", True, "show all seeds of a setting together")
    flags.value(
        "--against",
        None,
        "run that every other one is tested against (default: the best)",
        metavar="RUN",
    )
    flags.group("images")
    flags.switch("--no_images", "images", False, "do not read the data sets, and show no pictures")
    flags.value(
        "--datasets",
        (),
        "folders of the data sets (default: as in training)",
        nargs="+",
        metavar="NAME=PATH",
    )
    flags.count(
        "--maps",
        0,
        "number of test images for which maps of the best run's model are drawn",
        least=0,
    )
    flags.path(
        "--checkpoint_dir",
        None,
        "folder with the checkpoints of the runs (default: as in training)",
    )
    flags.device()
    flags.cache()
    flags.parser.set_defaults(output=Path("report.html"))
    return flags.parse(None, _problems)


def _problems(options: argparse.Namespace, given: command_line.Given) -> Iterator[str]:
    missing_packages = errors.not_installed("report.py", "plotly")
    if missing_packages:
        yield missing_packages
    missing_files = [path for path in options.paths if not path.exists()]
    if missing_files:
        yield f"{errors.first_five(missing_files)}: no such file or folder"
    for word in options.datasets:
        if "=" not in word:
            yield f"--datasets {word}: expected NAME=PATH"
    if options.maps and not options.images:
        yield "contradictory flags: --maps and --no_images"


def write(options: argparse.Namespace) -> list[reading.Run]:
    """Write the page as the runs are now; return the runs that are under way.

    Raises UserError where no run can be read.
    """
    from hyperiqa.pages import map_section, page as pages, run_sections, scored_sets
    from hyperiqa.runs import differences
    from hyperiqa.scoring import quality_model

    measure = measures.Measure(options.metric)
    found_runs, problems = reading.find(options.paths)
    if not found_runs:
        raise errors.UserError(
            f"{errors.first_five(problems or options.paths)}: expected logs of a run, found none"
        )
    # The best entry comes first.
    entries, notes = measures.choose_entries(found_runs, measure, options.group)
    runs = [run for entry in entries for run in entry.runs]
    under_way = [run for run in runs if run.status == reading.UNDER_WAY]
    page = pages.Page(*_page_head(options, entries, under_way))
    pairs = differences.chosen_pairs(entries, options.against or entries[0].name, False)
    comparisons = differences.compare_all(measure, pairs)
    entry_names = tables.short_names([entry.name for entry in entries], NAME_WIDTH)
    run_names = tables.short_names([run.name for run in runs], NAME_WIDTH)
    name_of_run = {run: run_names[run.name] for run in runs}
    run_sections.add_runs(
        page, entries, measure, options.group, comparisons, entry_names, name_of_run
    )
    model = None
    if options.maps:
        # Before the long work on images: a model that is not there is said at once.
        path = run_sections.checkpoint_of(runs[0], options.checkpoint_dir)
        model = quality_model.load(path, options.device)
    cache = {"cache": options.cache, "cache_dir": options.cache_dir} if options.images else None
    sets, missing = scored_sets.sets_of_runs(name_of_run, _places(options.datasets, runs), cache)
    for scored_set in sets:
        scored_sets.add_set(page, scored_set)
    if model and sets and sets[0].images:
        map_section.add_maps(page, sets[0], model, options.maps)
    run_sections.add_certificates(page, name_of_run, options.checkpoint_dir)
    page.content["facts"] += [*problems, *notes, *missing]
    page.write(options.output)
    print(f"{options.output} ({options.output.stat().st_size / 1e6:.1f} MB)", *missing, sep="\n")
    return under_way


def _places(words: Sequence[str], runs: Sequence[reading.Run]) -> dict[str, Path]:
    """The words NAME=PATH of --datasets, by name. Raises UserError for a set that no run has."""
    trained = {name for run in runs for name in run.settings.get("dataset", "").split("+")}
    # The counts of images name the cross tests before the first epoch does.
    counted_sets = {name for run in runs for name in run.images}
    sets = sorted({*map(record_name, trained), *counted_sets} - {"", *EPOCH_KEYS})
    pairs = [word.split("=", 1) for word in words]
    for name, _ in pairs:
        if record_name(name) not in sets:
            raise errors.UserError(
                f"--datasets {name}: no set of these runs; expected one of "
                f"{errors.first_five(sets)}"
            )
    return {name: Path(place).expanduser() for name, place in pairs}


def _page_head(
    options: argparse.Namespace, entries: Sequence[measures.Entry], under_way: Sequence[reading.Run]
) -> tuple[str, list[str], float]:
    """The page's title, when it was made, and seconds until a newer one may be there (0: never)."""
    title = errors.counted(len(entries), "setting" if options.group else "run")
    if len(entries) == 1:
        title = entries[0].name
    fact = f"made {time.strftime('%Y-%m-%d %H:%M')}"
    if options.follow:
        fact += "; renewed after every epoch"
    if not options.follow or not under_way:
        return title, [fact], 0
    # An open page looks for a newer one four times in the shortest epoch. Some logs have no times.
    seconds = [60 * run.minutes for run in under_way if not math.isnan(run.minutes)]
    return title, [fact], min(60, max(3, min(seconds, default=10) / 4))


def main() -> None:
    """Write the page; with --follow again after every epoch, until no run is under way."""
    options = parse()
    with signals.StopSignals():
        while True:
            # Before the page is written: what the runs write meanwhile belongs to the next page.
            before = written(options.paths)
            if not write(options) or not options.follow:
                return
            while written(options.paths) == before:
                time.sleep(1)


def written(paths: Sequence[Path]) -> list[int]:
    """When the runs' records were last written, in ns."""
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return [file.stat().st_mtime_ns for file in files]


if __name__ == "__main__":
    command_line.run_tool(main)
