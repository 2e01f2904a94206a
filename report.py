"""One page on a run, or on several side by side: curves, figures with intervals and tests, and every image's error.

python report.py logs/NAME.jsonl                           # writes report.html, which needs nothing beside it
python report.py logs/a.jsonl logs/b.jsonl --output ab.html --maps 200
python report.py logs --group --against fusion=none
python report.py logs/NAME.jsonl --follow                  # renews it after every epoch; the open page follows

RUN is what compare_logs.py takes. Pictures come from the sets where they were in training (--datasets says where else),
certificates and maps from the runs' checkpoints. docs/seeing.md"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hyperiqa.base.command_line import Flags, Given, run_tool
from hyperiqa.base.errors import UserError, first_five, not_installed
from hyperiqa.base.signals import StopSignals
from hyperiqa.runs.measures import FIGURE, Entry, Measure, group, ranked
from hyperiqa.runs.reading import UNDER_WAY, Run, find
from hyperiqa.runs.tables import short_names


def parse() -> argparse.Namespace:
    flags = Flags(__doc__, "%(prog)s RUN … [flags]")
    flags.words("paths", "logs or folders of logs", nargs="+", type=Path, metavar="RUN")
    flags.output("--output", "the page (default: report.html)", [".html"])
    flags.switch(
        "--follow", "follow", True, "renew the page after every epoch until the runs are done"
    )
    flags.group("comparison")
    flags.value("--metric", "srcc", "the figure with the interval, which is compared", FIGURE)
    flags.switch("--group", "group", True, "all seeds of a setting together")
    flags.value(
        "--against", None, "test every run against this one (default: the best)", metavar="RUN"
    )
    flags.group("images")
    flags.switch(
        "--no_images", "images", False, "leave the data sets alone: no pictures, no simple measures"
    )
    flags.value(
        "--datasets",
        (),
        "where sets lie now (default: as in training)",
        nargs="+",
        metavar="NAME=PATH",
    )
    flags.count(
        "--maps", 0, "look where the best run's model looks, in so many test images", least=0
    )
    flags.path(
        "--checkpoint_dir", None, "where the runs' checkpoints are (default: as in training)"
    )
    flags.device()
    flags.cache()
    flags.parser.set_defaults(output=Path("report.html"))
    return flags.parse(None, _problems)


def _problems(options: argparse.Namespace, given: Given) -> Iterator[str]:
    if missing := not_installed("report.py", "plotly"):
        yield missing
    if gone := [path for path in options.paths if not path.exists()]:
        yield f"{first_five(gone)}: no such file or folder"
    yield from (
        f"--datasets {word}: expected NAME=PATH" for word in options.datasets if "=" not in word
    )
    if options.maps and not options.images:
        yield "contradictory flags: --maps and --no_images"


def chosen(options: argparse.Namespace, measure: Measure) -> tuple[list[Entry], list[str]]:
    """The entries, best first, and what could not be read. Raises UserError where nothing could."""
    found, problems = find(options.paths)
    if not found:
        raise UserError(
            f"{first_five(problems or options.paths)}: expected logs of a run, found none"
        )
    entries, notes = (
        group(found) if options.group else ([Entry(run.name, (run,)) for run in found], [])
    )
    if not entries:
        raise UserError(f"--group: expected finished runs; {'; '.join(notes)}")
    measure.draw_together(entries)
    return ranked(entries, measure), [*problems, *notes]


def write(options: argparse.Namespace) -> list[Run]:
    """Write the page as the runs are now; those that are under way are returned."""
    from hyperiqa.pages import run_sections, set_sections
    from hyperiqa.pages.page import Page
    from hyperiqa.runs import differences
    from hyperiqa.scoring import quality_model

    measure = Measure(options.metric)
    entries, notes = chosen(options, measure)
    pairs = differences.chosen_pairs(entries, options.against or entries[0].name, False)
    own = [run for entry in entries for run in entry.runs]
    under_way = [run for run in own if run.status == UNDER_WAY]
    seconds = [60 * run.minutes for run in under_way if run.minutes == run.minutes]
    page = Page(
        entries[0].name
        if len(entries) == 1
        else f"{len(entries)} {'settings' if options.group else 'runs'}",
        [
            f"made {time.strftime('%Y-%m-%d %H:%M')}"
            + ("; renewed after every epoch" if options.follow else "")
        ],
        min(60, max(3, min(seconds, default=10) / 4)) if options.follow and under_way else 0,
    )
    wide = lambda names: short_names(names, 40)  # noqa: E731
    run_sections.add_runs(
        page,
        entries,
        measure,
        options.group,
        differences.compare_all(measure, pairs),
        wide([entry.name for entry in entries]),
    )
    shown = dict(zip(own, wide([run.name for run in own]).values()))
    where = {
        name: Path(path).expanduser()
        for name, _, path in (word.partition("=") for word in options.datasets)
    }
    cache = {"cache": options.cache, "cache_dir": options.cache_dir} if options.images else None
    # First of all: a model that is not there is said before the work.
    path = run_sections.checkpoint_of(own[0], options.checkpoint_dir) if options.maps else None
    model = quality_model.load(path, options.device) if path else None
    tested, missing = run_sections.all_tested(shown, where, cache)
    for each in tested:
        set_sections.add_set(page, each)
    if model and tested and tested[0].images:
        run_sections.add_maps(page, tested[0], model, options.maps)
    run_sections.add_certificates(page, shown, options.checkpoint_dir)
    page.content["facts"] += [*notes, *missing]
    page.write(options.output)
    print(
        f"{options.output} ({options.output.stat().st_size / 1e6:.1f} MB)"
        + "".join(f"\n{m}" for m in missing)
    )
    return under_way


def main() -> None:
    options = parse()
    with StopSignals():
        while True:
            before = written(options.paths)
            if not write(options) or not options.follow:
                return
            while written(options.paths) == before:
                time.sleep(1)


def written(paths: Sequence[Path]) -> list[int]:
    """When the runs' records were last written."""
    files = [
        file
        for path in paths
        for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])
    ]
    return [file.stat().st_mtime_ns for file in files]


if __name__ == "__main__":
    run_tool(main)
