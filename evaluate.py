"""Test a model on data sets: SRCC, PLCC, KRCC and RMSE with 95 % intervals, predictions, pictures.

python evaluate.py checkpoints/NAME --datasets koniq-10k spaq kadid-10k agiqa-3k livec
python evaluate.py model.pkl --datasets live=/data/live csiq=/data/csiq --csv figures.csv --report page.html
python evaluate.py model.pkl --datasets csv=mine.csv --lower_is_better --predictions predictions.csv

CHECKPOINT is a best model or the folder of its run, its .safetensors, or a state dict of the public HyperIQA code.
NAME=PATH says where a set lies; without, it is the folder of that name beside this script. Which images are tested, at
which size, and what `fitted` means: docs/using_models.md"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperiqa.base.command_line import Flags, Given, run_tool
from hyperiqa.base.errors import Interrupted, UserError, not_installed
from hyperiqa.base.files import HERE, write_whole
from hyperiqa.base.plain_values import to_json_value
from hyperiqa.base.signals import StopSignals
from hyperiqa.datasets.names import lower_is_better_sets, parse_set_names
from hyperiqa.datasets.readers import READERS
from hyperiqa.datasets.records import Columns
from hyperiqa.runs import standards_table, tables
from hyperiqa.runs.tables import estimate_text
from hyperiqa.stats import standards
from hyperiqa.stats.intervals import Estimate
from hyperiqa.stats.resampling import RESAMPLES
from hyperiqa.training.flags import csv_flags, for_csv_alone
from hyperiqa.training.run_files import write_predictions

TITLES = {
    "srcc": "SRCC",
    "plcc": "PLCC",
    "fitted_plcc": "fitted\nPLCC",
    "krcc": "KRCC",
    "fitted_rmse": "fitted\nRMSE",
}
BOUNDS = ("value", "low", "high")


def parse() -> argparse.Namespace:
    """The flags, checked all together; `datasets` becomes name -> path or None. Raises UserError."""
    flags = Flags(__doc__, "%(prog)s CHECKPOINT --datasets NAME[=PATH] … [flags]")
    flags.checkpoint()
    flags.group("data")
    flags.value(
        "--datasets",
        None,
        f"out of {', '.join(READERS)} (csv=FILE.csv: columns image,mos and optional split,group)",
        nargs="+",
        required=True,
        metavar="NAME[=PATH]",
    )
    flags.value("--split", "auto", "which images; auto: see above", choices=["auto", "test", "all"])
    flags.count("--seed", None, "of a random split (default: the run's own)", least=0)
    flags.images(resize="for every set; default: see above")
    flags.skip_bad_images()
    csv_flags(flags)
    flags.group("scoring")
    flags.count(
        "--crops", None, "1: the centre crop; N on a grid (default: as in the run's own tests)"
    )
    flags.device()
    flags.value(
        "--precision",
        "fp32",
        "bf16: faster, scores differ by some hundredths",
        choices=["fp32", "bf16"],
    )
    flags.batch_size(64)
    flags.workers()
    flags.cache()
    flags.count("--resamples", RESAMPLES, "of the bootstrap over images", least=100)
    flags.group("output")
    flags.switch(
        "--standards",
        "standards",
        True,
        "also the figures of ITU-T P.1401 and J.149, and of Krasula",
    )
    flags.switch("--markdown", "markdown", True, "tables as markdown")
    flags.switch("--json", "json", True, "everything as JSON instead of tables")
    flags.output("--csv", "write the figures, also those of each kind of distortion")
    flags.output("--predictions", "write dataset,image,mos,score as a run does")
    flags.output("--report", "write a page of scores and errors, image by image", [".html"])
    return flags.parse(None, _problems)


def _problems(options: argparse.Namespace, given: Given) -> Iterator[str]:
    try:
        options.datasets = parse_set_names("--datasets", options.datasets, READERS)
        if not any(name.startswith("csv") for name in options.datasets):
            yield from for_csv_alone(given, "csv")
        lower_is_better_sets(options.lower_is_better, options.datasets)
    except UserError as mistake:
        yield str(mistake)
    if options.markdown and options.json:
        yield "contradictory flags: --markdown and --json"
    if options.report and (missing := not_installed("--report", "plotly")):
        yield missing


def evaluate(options: argparse.Namespace) -> tuple[dict[str, Any], list]:
    """(what the figures come from, the tests done); the predictions are written after each set."""
    from hyperiqa.base.device import keep_freed_memory, set_backends
    from hyperiqa.base.version import versions
    from hyperiqa.model import checkpoints  # torch: only once the flags are known to be right
    from hyperiqa.scoring import evaluation, quality_model
    from hyperiqa.training.loaders import fewer_workers

    set_backends(deterministic=True)
    keep_freed_memory()
    o, path = options, checkpoints.find_model(options.checkpoint)
    model = quality_model.load(path, o.device, o.precision, crops=o.crops, workers=o.workers)
    d = model.description
    if not d["described"]:
        said = f"trained on {d['dataset']}, resize {d['resize']}, patches of {d['patch_size']}"
        print(
            f"{path} does not say how it is to be used; as in the public code: {said}",
            file=sys.stderr,
        )
    tests = evaluation.read_sets(
        o.datasets, d, o.split, o.resize, o.seed, o.lower_is_better, Columns.of(o)
    )
    evaluation.load_images(
        tests, model, (o.cache_dir or HERE / "cache") if o.cache else None, o.skip_bad_images
    )
    if fewer := fewer_workers(model.hardware, o.batch_size, d["patch_size"]):
        print(fewer, file=sys.stderr)
    rows: list[tuple[str, str, float, float]] = []
    for test in tests:
        evaluation.score(test, model, o.batch_size)
        rows += [
            (test.data.name, r.name, r.score, s)
            for r, s in zip(test.records, test.scores.tolist(), strict=True)
        ]
        if o.predictions:
            write_predictions(o.predictions, rows)
    for test in tests:
        evaluation.measure(test, o.resamples, o.standards)
    described = {name: value for name, value in d.items() if name != "certificate"}
    return {
        "checkpoint": str(path),
        "model": described,
        "device": str(model.hardware.device),
        "precision": o.precision,
        "resamples": o.resamples,
        "versions": versions(),
    }, tests


def about(origin: Mapping[str, Any], tests: Sequence) -> tuple[list[str], list[str]]:
    """In words: what was tested how, and what the figures mean."""
    d, versions = origin["model"], origin["versions"]
    crops = (
        "centre crop"
        if d["test_crop"] == "center"
        else f"{d['test_patch_num']} crops ({d['test_crop']})"
    )
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision", "timm"))
    said = [
        f"Model: {origin['checkpoint']}",
        f"{d['backbone']}, fusion {d['fusion']}, trained on {d['dataset']}, run {d.get('run', 'not known')}",
        f"Scored in {origin['precision']} on {origin['device']}: patches of {d['patch_size']}, {crops}",
        f"{packages}, commit {versions['commit'][:10]}",
    ]
    for test in tests:
        said += [
            f"{test.data.name}: {len(test.records)} images ({test.which}), resize {test.resize}",
            *test.data.notes,
        ]
    notes = [
        f"in brackets: 95 % intervals, bootstrap over images, {origin['resamples']} resamples",
        "fitted: after a four-parameter logistic, fitted once to the set; RMSE in units of its MOS",
    ]
    if turned := [test.data.name for test in tests if test.sign < 0]:
        notes.append(
            f"signs turned, because scores and opinions point in opposite directions: {', '.join(turned)}"
        )
    for test in (test for test in tests if test.ceiling):
        best = ", ".join(f"{name.upper()} {value:.4f}" for name, value in test.ceiling.items())
        notes.append(
            f"{test.data.name}: a perfect model would reach {best}, as sure as its votes are"
        )
    return said, notes


def figures(tests: Sequence) -> tuple[list[str], list[list[str]]]:
    rows = [
        [t.data.name, str(len(t.records)), *(estimate_text(t.figures[n]) for n in TITLES)]
        for t in tests
    ]
    return ["data set", "images", *TITLES.values()], rows


def as_text(origin: Mapping[str, Any], tests: Sequence, markdown: bool) -> str:
    (said, notes), (head, rows) = about(origin, tests), figures(tests)
    if not markdown:  # the intervals stand below their figures, so that a row keeps to 100 columns
        rows = [
            list(line) for row in rows for line in zip(*(cell.partition(" ")[::2] for cell in row))
        ]
    table, point = (tables.markdown_table, "- ") if markdown else (tables.text_table, "")
    lines = [
        *(point + line for line in said),
        "",
        table(head, rows),
        "",
        *(point + line for line in notes),
    ]
    if any(test.by_standards for test in tests):
        sets = standards_table.with_overall({test.data.name: test.by_standards for test in tests})
        lines += [
            "",
            table(*standards_table.table([("", of, found) for of, found in sets.items()], "")),
        ]
    for test in (test for test in tests if test.kinds):
        rows = [
            [kind, str(n), *(estimate_text(Estimate(x)) for x in found)]
            for kind, n, *found in test.kinds
        ]
        lines += ["", table([f"{test.data.name} by distortion", "images", "SRCC", "PLCC"], rows)]
    return "\n".join(lines)


def as_records(tests: Sequence) -> list[dict[str, Any]]:
    return [
        {
            "dataset": test.data.name,
            "images": len(test.records),
            "which": test.which,
            "resize": test.resize,
            "higher_is_better": test.data.higher_is_better,
            "figures": {
                name: {b: getattr(found, b) for b in BOUNDS} for name, found in test.figures.items()
            },
            "ceiling": test.ceiling,
            "standards": {
                n: vars(standards.estimate(n, found)) for n, found in test.by_standards.items()
            },
            "kinds": [dict(zip(("kind", "images", "srcc", "plcc"), row)) for row in test.kinds],
            "notes": test.data.notes,
        }
        for test in tests
    ]


def write_figures(path: Path, records: Sequence[Mapping]) -> None:
    """A row per set, with an empty `kind`, and one per kind of distortion, which have SRCC and PLCC alone."""
    columns = {
        name if b == "value" else f"{name}_{b}": (name, b) for name in TITLES for b in BOUNDS
    }
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["dataset", "kind", "images", "which", "resize", *columns], lineterminator="\n"
    )
    writer.writeheader()
    for record in records:
        same = {name: record[name] for name in ("dataset", "which", "resize")}
        values = {column: record["figures"][name][b] for column, (name, b) in columns.items()}
        writer.writerow({**same, "images": record["images"], **values})
        writer.writerows({**same, **kind} for kind in record["kinds"])
    write_whole(path, text.getvalue())


def draw(path: Path, origin: Mapping[str, Any], tests: Sequence) -> None:
    from hyperiqa.pages.page import Page, block
    from hyperiqa.pages.scored_sets import ScoredSet
    from hyperiqa.pages.set_sections import add_set

    d = origin["model"]
    page = Page(
        f"{d.get('run') or Path(origin['checkpoint']).name} on {', '.join(test.data.name for test in tests)}"
    )
    (said, notes), (head, rows) = about(origin, tests), figures(tests)
    page.section(
        "Figures", block("table", head=head, rows=rows), block("text", lines=[*notes, *said])
    )
    crop = (d["patch_size"], d["test_crop"], d["test_patch_num"])
    for test in tests:
        names, scores = [record.name for record in test.records], {"score": test.sign * test.scores}
        shown = ScoredSet(test.data.name, names, test.mos, scores, test.records, test.images, crop)
        add_set(page, shown, "MOS" if test.data.higher_is_better else "DMOS (higher is worse)")
    page.write(path)


def main() -> None:
    options = parse()
    with StopSignals():
        try:
            origin, tests = evaluate(options)
            records = to_json_value(as_records(tests))
            if options.csv:
                write_figures(options.csv, records)
            if options.report:
                draw(options.report, origin, tests)
        except Interrupted:
            print("Interrupted", file=sys.stderr)
            raise
    found = {**to_json_value(origin), "datasets": records}
    print(json.dumps(found, indent=1) if options.json else as_text(origin, tests, options.markdown))


if __name__ == "__main__":
    run_tool(main)
