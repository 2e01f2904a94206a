"""Test a model on data sets: SRCC, PLCC, KRCC and RMSE with 95 % intervals, predictions, pictures.

python evaluate.py checkpoints/NAME --datasets koniq-10k spaq kadid-10k agiqa-3k livec
python evaluate.py model.pkl --datasets live=/data/live csiq=/data/csiq --csv figures.csv --scatter clouds.png
python evaluate.py model.pkl --datasets csv=mine.csv --lower_is_better --predictions predictions.csv

CHECKPOINT is a best model or the folder of its run, its .safetensors, or a state dict of the public HyperIQA code.
NAME=PATH says where a set lies; without, it is the folder of that name beside this script.

Which images: the test images of a set that comes with a split (koniq-10k: the 2,010 that the field reports), whatever
the model was trained on. Of the other sets all images; but of the set that the model was trained on the test images of
its random split, redrawn with the run's seed. --split test or all changes that; the output says what was done.

Which size: the set that the model was trained on as then; the others as --resize says, or as the training's --resize
did where that was not its set's default, else by their own default. So a run's figures come out again.

fitted: after the four-parameter logistic, fitted once to the set's images. It maps to the set's own scale, so that RMSE
is in units of its MOS; between two scales it would mean nothing. The curve may fall: SRCC, PLCC and KRCC (tau-b) tell
the sign, which is positive where the model agrees with the opinions, on sets of DMOS too.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from comparing import plots
from comparing.runs import Estimate, shown_estimate
from folders import READERS
from intervals import RESAMPLES
from options import Interrupted, Parser, StopSignals, UserError, device_problems, first_five, parse_resize, run_tool
from reading.records import HERE

TITLES = {"srcc": "SRCC", "plcc": "PLCC", "fitted_plcc": "fitted\nPLCC", "krcc": "KRCC", "fitted_rmse": "fitted\nRMSE"}
BOUNDS = ("value", "low", "high")


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="model file, or the folder of its run")
    add = parser.add_argument_group("data").add_argument
    add("--datasets", nargs="+", required=True, metavar="NAME[=PATH]",
        help=f"out of {', '.join(READERS)} (csv=FILE.csv: columns image,mos and optional split,group)")  # fmt: skip
    add("--split", choices=["auto", "test", "all"], default="auto", help="which images; auto: see above")
    add("--seed", type=int, metavar="N", help="of a random split (default: the run's own)")
    add("--resize", metavar="SIZE", help="S, HxW or none for every set (default: see above)")
    add("--lower_is_better", action="store_true", help="the scores of csv mean badness (DMOS)")
    add("--skip_bad_images", action="store_true", help="drop images that cannot be read, instead of stopping")
    add = parser.add_argument_group("scoring").add_argument
    add("--crops", type=int, metavar="N", help="1: the centre crop; N on a grid (default: as in the run's own tests)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: faster, scores differ by some hundredths")
    add("--batch_size", type=int, default=64, metavar="N", help="patches per forward pass")
    add("--workers", type=int, metavar="N", help="processes that cut patches (default: 0 on a CPU, else 4)")
    add("--cache_dir", type=Path, metavar="PATH", help="decoded images (default: cache/ beside the scripts)")
    add("--no_cache", action="store_true", help="decode into memory, and leave nothing on the disk")
    add("--resamples", type=int, default=RESAMPLES, metavar="B", help="of the bootstrap over images")
    add = parser.add_argument_group("output").add_argument
    add("--markdown", action="store_true", help="tables as markdown")
    add("--json", action="store_true", help="everything as JSON instead of tables")
    add("--csv", type=Path, metavar="FILE", help="write the figures, also those of each kind of distortion")
    add("--predictions", type=Path, metavar="FILE", help="write dataset,image,mos,score as a run does")
    add("--scatter", type=Path, metavar="FILE", help="scores against MOS as .png, .svg or .pdf (needs matplotlib)")
    options = parser.parse_args()
    check(options)
    return options


def check(options: argparse.Namespace) -> None:
    """All flags together; `datasets` becomes name -> path or None. Raises UserError naming every mistake."""
    named = [(name, path) for name, _, path in (text.partition("=") for text in options.datasets)]
    names = [name for name, _ in named]
    unknown = [name for name in names if name not in READERS]
    twice = dict.fromkeys(name for name in names if names.count(name) > 1)
    checks = {
        f"--datasets {first_five(unknown)}: expected NAME or NAME=PATH, NAME one of {', '.join(READERS)}": unknown,
        f"--datasets: listed twice: {first_five(twice)}": twice,
        "--datasets csv: expected csv=FILE.csv": ("csv", "") in named,
        "--lower_is_better is for csv: the direction of the other sets is known":
            options.lower_is_better and "csv" not in names,
        f"--seed {options.seed}: expected a whole number of at least 0": (options.seed or 0) < 0,
        f"--crops {options.crops}: expected at least 1": options.crops is not None and options.crops < 1,
        f"--batch_size {options.batch_size}: expected at least 1": options.batch_size < 1,
        f"--workers {options.workers}: expected 0 to 256": not 0 <= (options.workers or 0) <= 256,
        f"--resamples {options.resamples}: expected at least 100": options.resamples < 100,
        "contradictory flags: --markdown and --json": options.markdown and options.json,
        "contradictory flags: --no_cache and --cache_dir": options.no_cache and options.cache_dir,
        f"{options.checkpoint}: no such file or folder": not options.checkpoint.exists(),
    }  # fmt: skip
    problems = [text for text, wrong in checks.items() if wrong] + device_problems(options.device)
    for flag in ("csv", "predictions"):
        path = getattr(options, flag)
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            problems.append(f"--{flag} {path}: {'is a folder' if path.is_dir() else f'no folder {path.parent}'}")
    for test in (
        lambda: options.resize is None or parse_resize(options.resize),
        lambda: options.scatter is None or plots.check_picture(options.scatter, "--scatter"),
    ):
        try:
            test()
        except UserError as mistake:
            problems.append(str(mistake))
    if problems:
        raise UserError("; ".join(problems))
    options.datasets = {name: Path(path).expanduser() if path else None for name, path in named}


def evaluate(options: argparse.Namespace) -> tuple[dict[str, object], list]:
    """(what the figures come from, the tests done); the predictions are written after each set."""
    import checkpoints  # torch: only once the flags are known to be right
    import engine
    import inference
    from run_log import versions, write_predictions
    from scoring import evaluation

    engine.set_backends(deterministic=True)
    engine.keep_freed_memory()
    path = checkpoints.find_model(options.checkpoint)
    model = inference.load(path, options.device, options.precision, crops=options.crops)
    description = model.description
    if not description["described"]:
        print(
            f"{path} does not say how it is to be used; as in the public code: trained on {description['dataset']}, "
            f"resize {description['resize']}, patches of {description['patch_size']}",
            file=sys.stderr,
        )
    tests = evaluation.read_sets(
        options.datasets, description, options.split, options.resize, options.seed, options.lower_is_better
    )
    cache_dir = None if options.no_cache else options.cache_dir or HERE / "cache"
    caches = evaluation.load_images(tests, model, cache_dir, options.skip_bad_images)
    rows: list[tuple[str, str, float, float]] = []
    for test, cache in zip(tests, caches, strict=True):
        evaluation.score(test, cache, model, options.batch_size, options.workers)
        scored = zip(test.records, test.scores.tolist(), strict=True)
        rows += [(test.data.name, record.name, record.score, score) for record, score in scored]
        if options.predictions:
            write_predictions(options.predictions, rows)
    for test in tests:
        evaluation.measure(test, options.resamples)
    return {
        "checkpoint": str(path),
        "model": model.description,
        "device": str(model.device),
        "precision": options.precision,
        "resamples": options.resamples,
        "versions": versions(),
    }, tests


# ---------------------------------------------------------------------------------------------- output
def as_text(origin: Mapping[str, object], tests: Sequence, markdown: bool) -> str:
    d, versions = origin["model"], origin["versions"]
    crops = "centre crop" if d["test_crop"] == "center" else f"{d['test_patch_num']} crops ({d['test_crop']})"
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision", "timm"))
    said = [
        f"Model: {origin['checkpoint']}",
        f"{d['backbone']}, fusion {d['fusion']}, trained on {d['dataset']}, run {d.get('run', 'not known')}",
        f"Scored in {origin['precision']} on {origin['device']}: patches of {d['patch_size']}, {crops}",
        f"{packages}, commit {versions['commit'][:10]}",
    ]
    for test in tests:
        said += [f"{test.data.name}: {len(test.records)} images ({test.which}), resize {test.resize}", *test.data.notes]
    notes = [
        f"in brackets: 95 % intervals, bootstrap over images, {origin['resamples']} resamples",
        "fitted: after a four-parameter logistic, fitted once to the set; RMSE in units of its MOS",
    ]
    if turned := [test.data.name for test in tests if test.sign < 0]:
        notes.append(f"signs turned, because scores and opinions point in opposite directions: {', '.join(turned)}")
    table = plots.markdown_table if markdown else plots.text_table
    point = "- " if markdown else ""
    lines = [*(point + line for line in said), "", table(*figures_table(tests, two_lines=not markdown)), ""]
    lines += [point + line for line in notes]
    for test in tests:
        if test.kinds:
            rows = [[kind, str(n), *(shown_estimate(Estimate(x)) for x in figures)] for kind, n, *figures in test.kinds]
            lines += ["", table([f"{test.data.name} by distortion", "images", "SRCC", "PLCC"], rows)]
    return "\n".join(lines)


def figures_table(tests: Sequence, two_lines: bool) -> tuple[list[str], list[list[str]]]:
    """Header and rows; two_lines: intervals below their figures, so that a row keeps to 100 columns."""
    rows = []
    for test in tests:
        first = [test.data.name, str(len(test.records))]
        cells = [shown_estimate(test.figures[name]) for name in TITLES]
        if two_lines:
            figures, bounds = zip(*(cell.partition(" ")[::2] for cell in cells))
            rows += [[*first, *figures], ["", "", *bounds]]
        else:
            rows.append([*first, *cells])
    return ["data set", "images", *TITLES.values()], rows


def as_records(tests: Sequence) -> list[dict[str, object]]:
    """The tests with their figures in full."""
    return [
        {
            "dataset": test.data.name,
            "images": len(test.records),
            "which": test.which,
            "resize": test.resize,
            "higher_is_better": test.data.higher_is_better,
            "figures": {name: {b: getattr(found, b) for b in BOUNDS} for name, found in test.figures.items()},
            "kinds": [dict(zip(("kind", "images", "srcc", "plcc"), row)) for row in test.kinds],
            "notes": test.data.notes,
        }
        for test in tests
    ]


def write_figures(path: Path, records: Sequence[Mapping]) -> None:
    """A row per set, with an empty `kind`, and one per kind of distortion, which have SRCC and PLCC alone."""
    from checkpoints import write_whole

    columns = [name if b == "value" else f"{name}_{b}" for name in TITLES for b in BOUNDS]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["dataset", "kind", "images", "which", "resize", *columns], lineterminator="\n")
    writer.writeheader()
    for record in records:
        same = {name: record[name] for name in ("dataset", "which", "resize")}
        values = [record["figures"][name][b] for name in TITLES for b in BOUNDS]
        writer.writerow({**same, "images": record["images"], **dict(zip(columns, values))})
        writer.writerows({**same, **kind} for kind in record["kinds"])
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def draw(path: Path, title: str, tests: Sequence) -> None:
    drawn = []
    for test in tests:
        names = [record.name for record in test.records]
        opinion = "MOS" if test.data.higher_is_better else "DMOS (higher is worse)"
        drawn.append(plots.fitted_cloud(test.data.name, test.scores, test.mos, names, test.sign, opinion))
    plots.draw_scatter(path, title, *zip(*drawn))


def main() -> None:
    sys.stdout.reconfigure(errors="replace")
    options = parse()
    with StopSignals():
        try:
            origin, tests = evaluate(options)
            from run_log import plain  # torch again

            records = plain(as_records(tests))
            if options.csv:
                write_figures(options.csv, records)
            if options.scatter:
                draw(options.scatter, str(origin["model"].get("run") or options.checkpoint.name), tests)
        except Interrupted:
            print("Interrupted", file=sys.stderr)
            raise
    try:
        if options.json:
            print(json.dumps({**plain(origin), "datasets": records}, indent=1))
        else:
            print(as_text(origin, tests, options.markdown))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_tool(main)
