"""Test a model on data sets: SRCC, PLCC, KRCC and RMSE with 95 % intervals.

  python evaluate.py checkpoints/NAME --datasets koniq-10k spaq kadid-10k
  python evaluate.py model.pkl --datasets live=/data/live csiq=/data/csiq \\
      --csv figures.csv --report page.html
  python evaluate.py model.pkl --datasets csv=mine.csv --lower_is_better
  python evaluate.py a.pkl --also b.pkl c.pkl --datasets koniq-10k
  python evaluate.py model.pkl --datasets csv:mine=mine.csv \\
      --calibrate calibrated.safetensors

NAME=PATH says where a set lies. Without a path it is the folder NAME beside
this script; for spaq it may also be spaq-test. docs/using_models.md says which
images are tested, at which size, and what `fitted` means."""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperiqa.base import command_line, files, plain_values, signals
from hyperiqa.base.errors import Interrupted, UserError, counted, not_installed
from hyperiqa.datasets import names, readers
from hyperiqa.runs import differences, runs_table, standards_table, tables
from hyperiqa.scoring import score_files
from hyperiqa.stats import intervals, resampling, standards
from hyperiqa.training.flags import csv_flags, for_csv_alone
from hyperiqa.training.run_files import write_predictions

if TYPE_CHECKING:
    from hyperiqa.scoring.evaluation import SetTest
    from hyperiqa.scoring.quality_model import QualityModel

# Figure -> its title in tables.
TITLES = {
    "srcc": "SRCC",
    "plcc": "PLCC",
    "fitted_plcc": "fitted\nPLCC",
    "krcc": "KRCC",
    "fitted_rmse": "fitted\nRMSE",
}

# The parts of an `Estimate` that --json and --csv have.
BOUNDS = ("value", "low", "high")
# Parts of a description that are left out here; `certify.py` shows them.
LONG = ("certificate", "calibration")


def parse() -> argparse.Namespace:
    """The flags, checked all together. Raises UserError.

    `datasets` becomes name -> path, None where no path is given.
    """
    flags = command_line.Flags(__doc__, "%(prog)s CHECKPOINT --datasets NAME[=PATH] … [flags]")
    flags.checkpoint(also=True)
    _add_data_flags(flags)
    flags.group("scoring")
    flags.count(
        "--crops",
        None,
        "crops per image: 1 is the centre, more are a regular grid (default: as in training)",
    )
    flags.device()
    flags.value(
        "--precision",
        "fp32",
        "number format of the computation; bf16 is faster, and scores differ by some hundredths",
        choices=["fp32", "bf16"],
    )
    flags.batch_size(64)
    flags.workers()
    flags.cache()
    flags.count(
        "--resamples",
        resampling.RESAMPLES,
        "resamples of the images from which the intervals are computed",
        least=100,
    )
    flags.group("output")
    flags.switch(
        "--standards",
        "standards",
        True,
        "also show the figures of ITU-T P.1401 and J.149, and of Krasula",
    )
    flags.switch("--markdown", "markdown", True, "write the tables as markdown")
    flags.switch("--json", "json", True, "write everything as JSON instead of tables")
    flags.output("--csv", "write the figures to a CSV file, also for each kind of distortion")
    flags.output("--predictions", "write the score and the MOS of every image to a CSV file")
    flags.output("--report", "write a page that shows scores and errors image by image", [".html"])
    flags.output(
        "--calibrate",
        "write the model with calibrations from these sets, by which predict.py --meaning explains "
        "scores",
        [".safetensors", ".pkl"],
    )
    return flags.parse(None, _problems)


def _add_data_flags(flags: command_line.Flags) -> None:
    flags.group("data")
    flags.value(
        "--datasets",
        None,
        f"data sets to test on, of {', '.join(readers.READERS)}; csv=FILE.csv is a table of own "
        "images",
        nargs="+",
        required=True,
        metavar="NAME[=PATH]",
    )
    flags.value(
        "--split",
        "auto",
        "images to test on: auto is the split that comes with the set, else the images that the "
        "training tested on, or all of them if the model was not trained on the set",
        choices=["auto", "test", "all"],
    )
    flags.count(
        "--seed", None, "seed with which a random split is drawn (default: as in training)", least=0
    )
    flags.images(resize="default: as in the model's training; docs/using_models.md has exceptions")
    flags.skip_bad_images()
    csv_flags(flags)


def _problems(options: argparse.Namespace, given: command_line.Given) -> Iterator[str]:
    try:
        options.datasets = names.parse_set_names("--datasets", options.datasets, readers.READERS)
        if "csv" not in map(names.reader_name, options.datasets):
            yield from for_csv_alone(given, "csv")
        names.check_lower_is_better(options.lower_is_better, options.datasets)
    except UserError as mistake:
        yield str(mistake)
    if options.markdown and options.json:
        yield "contradictory flags: --markdown and --json"
    if options.calibrate and (options.also or options.precision != "fp32"):
        yield (
            "contradictory flags: --calibrate and "
            f"{'--also' if options.also else '--precision bf16'}: "
            "a calibration holds for the scores of one model in fp32"
        )
    if options.report:
        yield not_installed("--report", "plotly")


def evaluate(options: argparse.Namespace) -> tuple[dict[str, Any], list["SetTest"]]:
    """Test the models on all sets; returns (where the figures come from, the tests).

    The predictions are written after each set. Raises UserError.
    """
    # torch is imported only once the flags are known to be right.
    from hyperiqa.base.device import keep_freed_memory, set_backends
    from hyperiqa.base.version import versions
    from hyperiqa.scoring import calibrating, ensemble, evaluation

    set_backends(deterministic=True)
    keep_freed_memory()
    models = dict(ensemble.load_members(options, "device", "precision", "crops", "workers"))
    path, model = next(iter(models.items()))
    tests_of_models = evaluation.read_sets_of_models(options.datasets, models.values(), options)
    if options.calibrate:
        calibrating.check_suitable(tests_of_models[0])
    cache_dir = (options.cache_dir or files.HERE / "cache") if options.cache else None
    for tests, one in zip(tests_of_models, models.values()):
        evaluation.load_images(tests, one, cache_dir, options.skip_bad_images)
    tests = list(_scored_sets(options, models, tests_of_models))
    if options.calibrate:
        calibrating.write(options, Path(path), model, tests)
    for test in tests:
        evaluation.measure(test, options.resamples, options.standards)
    descriptions = {
        place: {name: value for name, value in one.description.items() if name not in LONG}
        for place, one in models.items()
    }
    origin = {
        "checkpoint": path,
        "model": descriptions.pop(path),
        "also": descriptions,
        "device": str(model.hardware.device),
        "precision": options.precision,
        "resamples": options.resamples,
        "versions": versions(),
    }
    return origin, tests


def _scored_sets(
    options: argparse.Namespace,
    models: Mapping[str, "QualityModel"],
    tests_of_models: Sequence[Sequence["SetTest"]],
) -> Iterator["SetTest"]:
    # The predictions are written after each set: they stay if the user stops the rest.
    from hyperiqa.scoring import evaluation
    from hyperiqa.training.batches import fewer_workers

    short_names = tables.short_names(list(models), 20)
    named = dict(zip(short_names.values(), models.values(), strict=True))
    for model in models.values():
        note = fewer_workers(model.hardware, options.batch_size, model.description["patch_size"])
        if note:
            print(note, file=sys.stderr)
    rows: list[tuple[str, str, float, float]] = []
    for tests in zip(*tests_of_models):
        test = evaluation.score_together(tests, named, options.batch_size)
        rows += [
            (test.data.name, record.name, record.score, score)
            for record, score in zip(test.records, test.scores.tolist(), strict=True)
        ]
        if options.predictions:
            write_predictions(options.predictions, rows)
        yield test


def model_lines(origin: Mapping[str, Any], tests: Sequence["SetTest"]) -> list[str]:
    """In words: the model, how it scored, and which images of each set."""
    versions = origin["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision", "timm"))
    lines = []
    for path, description in {origin["checkpoint"]: origin["model"], **origin["also"]}.items():
        crops = f"{counted(description['test_patch_num'], 'crop')} ({description['test_crop']})"
        lines += [
            f"Model: {path}",
            f"{description['backbone']}, {score_files.head_text(description)}, trained on "
            f"{description['dataset']}, run {description.get('run', 'not known')}",
            f"Scored in {origin['precision']} on {origin['device']}: patches of "
            f"{description['patch_size']}, "
            f"{'centre crop' if description['test_crop'] == 'center' else crops}",
        ]
    lines.append(f"{packages}, commit {versions['commit'][:10]}")
    for test in tests:
        lines += [
            f"{test.title}: {counted(len(test.records), 'image')} ({test.which}) of "
            f"{test.place}, resize {test.resize}",
            *test.data.notes,
        ]
    return lines


def figure_notes(origin: Mapping[str, Any], tests: Sequence["SetTest"]) -> list[str]:
    """In words: what the figures mean."""
    notes = [
        f"in brackets: 95 % intervals, bootstrap over images, {origin['resamples']} resamples",
        "fitted: after a four-parameter logistic, fitted once to the set; RMSE in units of its MOS",
    ]
    if any(len(test.records) < tables.FEW_IMAGES for test in tests):
        notes.append(tables.FEW_IMAGES_NOTE)
    # A set of DMOS and a model of MOS, for example.
    turned = [test.title for test in tests if test.sign < 0]
    if turned:
        notes.append(
            "signs turned, because scores and opinions point in opposite directions: "
            f"{', '.join(turned)}"
        )
    for test in tests:
        # Votes that explain all of the spread leave nothing that a model could reach.
        if test.ceiling and not math.isnan(test.ceiling["srcc"]):
            best = ", ".join(f"{name.upper()} {value:.4f}" for name, value in test.ceiling.items())
            notes.append(
                f"{test.title}: a perfect model would reach {best}, given how sure its votes are"
            )
        notes += [
            f"{test.title}: {name.upper()} of the ensemble minus the best model's: "
            f"{differences.difference_text(difference, None)}; conservative, since the best model "
            "was chosen on these images"
            for name, difference in test.over_best.items()
        ]
    return notes


def figures_table(tests: Sequence["SetTest"]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the figures: of each set, then of each model of an ensemble."""
    rows = [
        [
            tested.title,
            str(len(tested.records)),
            *(tables.estimate_text(tested.figures[name]) for name in TITLES),
        ]
        for test in tests
        for tested in (test, *test.members)
    ]
    return ["data set", "images", *TITLES.values()], rows


def as_text(origin: Mapping[str, Any], tests: Sequence["SetTest"], markdown: bool) -> str:
    """The report on the tests: lines about the model, tables, and notes."""
    table = tables.markdown_table if markdown else tables.text_table
    bullet = "- " if markdown else ""
    header, rows = figures_table(tests)
    # A markdown table may be as wide as it likes.
    if not markdown:
        rows = _with_intervals_below(rows)
    lines = [bullet + line for line in model_lines(origin, tests)]
    lines += ["", table(header, rows), ""]
    lines += [bullet + line for line in figure_notes(origin, tests)]
    # Only with --standards.
    if any(test.by_standards for test in tests):
        sets = standards_table.with_overall({test.title: test.by_standards for test in tests})
        named_rows = [("", data_set, measured) for data_set, measured in sets.items()]
        lines += [
            "",
            bullet + runs_table.STANDARDS_NOTE,
            "",
            table(*standards_table.table(named_rows, "")),
        ]
    for test in tests:
        if test.kinds:
            rows = [
                [
                    kind,
                    str(images),
                    tables.estimate_text(intervals.Estimate(srcc)),
                    tables.estimate_text(intervals.Estimate(plcc)),
                ]
                for kind, images, srcc, plcc in test.kinds
            ]
            header = [f"{test.title} by distortion", "images", "SRCC", "PLCC"]
            lines += ["", table(header, rows)]
    return "\n".join(lines)


def _with_intervals_below(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each row as two, the values and below them their intervals: it then keeps to 100 columns."""
    split_rows = []
    for name, *cells in rows:
        # Such as "0.9205", " " and "[.912 .928]".
        parts = [cell.partition(" ") for cell in cells]
        split_rows += [
            [name, *(value for value, _, _ in parts)],
            ["", *(interval for _, _, interval in parts)],
        ]
    return split_rows


def as_record(test: "SetTest") -> dict[str, Any]:
    """A test as plain values, which --json prints."""
    return {
        "dataset": test.data.name,
        "title": test.title.strip(),
        "place": str(test.place),
        "images": len(test.records),
        "which": test.which,
        "resize": test.resize,
        "higher_is_better": test.data.higher_is_better,
        "figures": {
            name: {bound: getattr(estimate, bound) for bound in BOUNDS}
            for name, estimate in test.figures.items()
        },
        "ceiling": test.ceiling,
        "standards": {
            name: vars(standards.estimate(name, measured))
            for name, measured in test.by_standards.items()
        },
        "kinds": [dict(zip(("kind", "images", "srcc", "plcc"), row)) for row in test.kinds],
        "notes": test.data.notes,
        "members": list(map(as_record, test.members)),
        "over_best": {name: vars(difference) for name, difference in test.over_best.items()},
    }


def write_figures(path: Path, records: Sequence[Mapping]) -> None:
    """Write the records of sets as CSV. Raises UserError if the file cannot be written.

    A set has a row with an empty `kind`, and a row for each kind of distortion with SRCC and PLCC
    alone.
    """
    # Column -> (figure, which of BOUNDS). The column of a value is called like its figure.
    columns = {
        f"{name}_{bound}".removesuffix("_value"): (name, bound)
        for name, bound in itertools.product(TITLES, BOUNDS)
    }
    header = ["dataset", "kind", "images", "which", "resize", *columns, "place"]
    rows: list[dict[str, object]] = []
    for record in records:
        shared = {name: record[name] for name in ("dataset", "which", "resize", "place")}
        values = {
            column: record["figures"][name][bound] for column, (name, bound) in columns.items()
        }
        rows.append({**shared, "images": record["images"], **values})
        # The columns stay empty that a kind has no value for.
        rows += [{**shared, **kind} for kind in record["kinds"]]
    files.write_csv(path, header, rows)


def draw(path: Path, origin: Mapping[str, Any], tests: Sequence["SetTest"]) -> None:
    """Write the page of --report: the figures, then a section for each set."""
    from hyperiqa.pages.page import Page, block
    from hyperiqa.pages.scored_sets import ScoredSet, add_set

    description = origin["model"]
    model_name = description.get("run") or Path(origin["checkpoint"]).name
    page = Page(f"{model_name} on {', '.join(test.title for test in tests)}")
    header, rows = figures_table(tests)
    page.section(
        "Figures",
        block("table", head=header, rows=rows),
        block("text", lines=[*figure_notes(origin, tests), *model_lines(origin, tests)]),
    )
    for test in tests:
        add_set(
            page,
            ScoredSet(
                title=test.title,
                names=[record.name for record in test.records],
                mos=test.mos,
                scores={
                    model_name: test.sign * test.scores,
                    **{one.title.strip(): one.sign * one.scores for one in test.members},
                },
                records=test.records,
                images=test.images,
                crop=(
                    description["patch_size"],
                    description["test_crop"],
                    description["test_patch_num"],
                ),
            ),
        )
    page.write(path)


def main() -> None:
    """Evaluate, write the files that the flags ask for, and print the figures."""
    options = parse()
    with signals.StopSignals():
        # A signal ends the program here: what was written until then stays.
        try:
            origin, tests = evaluate(options)
            records = plain_values.to_json_value([as_record(test) for test in tests])
            if options.csv:
                write_figures(options.csv, records)
            if options.report:
                draw(options.report, origin, tests)
        except Interrupted:
            print("Interrupted", file=sys.stderr)
            raise
    for path in filter(None, (options.csv, options.predictions, options.report, options.calibrate)):
        print(f"{path}: written", file=sys.stderr)
    if options.json:
        print(json.dumps({**plain_values.to_json_value(origin), "datasets": records}, indent=1))
    else:
        print(as_text(origin, tests, options.markdown))


if __name__ == "__main__":
    command_line.run_tool(main)
