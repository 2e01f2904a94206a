"""Score images with a trained model, and write each score as soon as it is known.

  python predict.py checkpoints/NAME photo.jpg        # the best model of a run
  python predict.py koniq photos                      # a public model by name
  python predict.py a.pkl photos --also b.pkl c.pkl   # the mean of three
  python predict.py model.pkl photos --output scores.csv
  python predict.py model.pkl 'photos/**/*.jpg' --sheet sheet.html
  find /data -name '*.png' | python predict.py model.pkl - --format jsonl
  python predict.py model.pkl 'photos-{0000..0999}.tar' --output rows

On a terminal every image gets a line to read. A file or a pipe gets CSV rows of
image, score, error (why there is no score) and made_with. The same command with
an --output that exists scores only the images that have no score there yet.
Shards (.tar) and lists (.csv, .parquet) are read too; docs/many_photographs.md.
The exit code is 1 if some images could not be scored. docs/using_models.md says
which files count as images, and which scores are never mixed in one file."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from hyperiqa.base import command_line, errors, public_models
from hyperiqa.base.signals import StopSignals
from hyperiqa.scoring import image_sources, runtimes, score_files, score_run, shards
from hyperiqa.training.contradictions import Rule, broken

# Kinds of files that a user may expect, but that no rows can be appended to.
NO_ROWS = set(".xlsx .xls .ods .parquet .feather .pdf .zip .gz .npy .mat .pkl .db".split())

# Flag -> those of which it needs at least one.
NEEDED = {
    "level": ("meaning",),
    "sure": ("above",),
    "reference": ("meaning", "above", "compare"),
    "engine_workers": ("engine",),
    "engine_gpus": ("engine",),
}
# Flags that write a folder of rows, one file for each shard, and the packages that they need.
FOR_SHARDS = {
    "--format parquet": ("pyarrow",),
    "--engine ray": ("ray[data]", "pyarrow", "pandas"),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked all together. Raises UserError."""
    flags = command_line.Flags(
        __doc__, "%(prog)s CHECKPOINT IMAGE|FOLDER|GLOB|SHARD|LIST|- … [flags]"
    )
    flags.checkpoint(also=True)
    # argparse's action for a version prints any text, whatever else is missing on the command line.
    flags.parser.add_argument(
        "--models",
        action="version",
        version=public_models.models_table(),
        help="list the public models that have a name and exit",
    )
    flags.words(
        "sources",
        "images, folders of images, patterns, shards (.tar), lists (.csv, .parquet), or - for "
        "paths on standard input",
        nargs="+",
        metavar="IMAGE|FOLDER|GLOB|SHARD|LIST|-",
    )
    flags.value(
        "--image_column",
        "image",
        "column of a list that has the paths of images or the bytes of their files",
        metavar="NAME",
    )
    _add_scoring_flags(flags)
    _add_meaning_flags(flags)
    flags.group("hardware")
    flags.batch_size(64, "crops that are scored at a time")
    flags.device()
    flags.workers("threads that decode images (default: one per core)", least=1)
    _add_output_flags(flags)
    _add_cluster_flags(flags)
    # Not False, which a switch is without its flag: the model's own setting holds then.
    flags.parser.set_defaults(exif_rotate=None)
    options = flags.parse(argv, _problems, _complete)
    # A program without a console has no standard output.
    options.terminal = not options.output and sys.stdout is not None and sys.stdout.isatty()
    meaning = ("percentile", "low", "high") if options.meaning else ()
    keep = ("keep",) if options.above is not None else ()
    note = ("note",) if meaning or keep else ()
    options.columns = (*score_files.COLUMNS, *meaning, *keep, *note)
    if options.format is None:
        suffix = options.output.suffix.lower() if options.output else ""
        rows = "lines" if options.terminal else "csv"
        options.format = "jsonl" if suffix in (".jsonl", ".ndjson", ".json") else rows
    return options


def _add_scoring_flags(flags: command_line.Flags) -> None:
    flags.group("scoring")
    flags.count(
        "--crops",
        None,
        "crops per image: 1 is the centre, more are a regular grid with averaged scores (default: "
        "as in the tests of the training)",
        1,
        10_000,
    )
    flags.images(resize="default: as in training")
    flags.switch(
        "--exif_rotate", "exif_rotate", True, "rotate images as EXIF says (default: as in training)"
    )
    flags.value(
        "--precision",
        "fp32",
        "number format of the computation; bf16 is less exact and faster on some hardware",
        choices=["fp32", "bf16"],
    )
    flags.value(
        "--scale",
        None,
        "for a model of several training sets: the set on whose scale it scores (default: their "
        "common scale)",
        metavar="NAME",
    )


def _add_meaning_flags(flags: command_line.Flags) -> None:
    flags.group("meaning of the scores, by a calibration that the model carries")
    flags.switch(
        "--meaning",
        "meaning",
        True,
        "add the columns percentile (how many images of the calibration score lower, in percent), "
        "low and high (the interval of the image's MOS) and note",
    )
    flags.real(
        "--level",
        0.9,
        "probability that an interval of --meaning holds the MOS",
        ("a number between 0 and 1", lambda x: 0 < x < 1),
    )
    flags.value(
        "--reference",
        None,
        "set whose calibration is used (default: the model's first one)",
        metavar="NAME",
    )
    flags.real(
        "--above",
        None,
        "add the column keep, which says yes, no or unsure: whether the image's MOS is at least X "
        "on the scale of the reference set, or at most X where a high MOS means bad quality",
        ("a number", lambda x: True),
    )
    flags.real(
        "--sure",
        0.9,
        "probability from which on --above says yes or no",
        ("a number from 0.5 to 1", lambda x: 0.5 <= x <= 1),
    )
    flags.switch(
        "--compare",
        "compare",
        True,
        "write first, second and the probability that the first one is better, for every pair of "
        "the images, in place of their scores",
    )


def _add_output_flags(flags: command_line.Flags) -> None:
    flags.group("output")
    flags.output(
        "--output",
        "file to which rows are written or appended, instead of the terminal; if all sources are "
        "shards or lists, a name without a suffix is a folder, with one file of rows for each",
        or_folder=True,
    )
    flags.value(
        "--format",
        None,
        "format of the rows (default: by the suffix of --output, else csv, or lines on a terminal)",
        choices=["csv", "jsonl", "parquet"],
    )
    flags.output(
        "--sheet",
        "also write a page of the images that can be sorted and filtered by score",
        [".html"],
    )
    flags.path(
        "--map",
        None,
        "folder for a map of each image, which shows where the model sees which quality; takes "
        "dozens of times as long",
        "FOLDER",
    )


def _add_cluster_flags(flags: command_line.Flags) -> None:
    flags.group("several processes or machines")
    flags.value(
        "--share",
        None,
        "score only share i of n, with i from 0 to n-1: every n-th image, and every n-th shard or "
        "list as a whole",
        ("i/n with i from 0 to n-1, such as 0/8", image_sources.is_share),
        metavar="I/N",
    )
    flags.value(
        "--engine",
        None,
        "score shards and lists on the Ray cluster of RAY_ADDRESS, or by several processes of this "
        "machine",
        choices=["ray"],
    )
    flags.count(
        "--engine_workers",
        None,
        "processes that --engine starts (default: one per machine)",
    )
    flags.real(
        "--engine_gpus",
        0,
        "GPUs per process of --engine, such as 1 or 0.5",
        command_line.NOT_NEGATIVE,
    )


def _complete(options: argparse.Namespace, given: command_line.Given) -> tuple[()]:
    """Set whether the output is a folder of rows, one file for each shard."""
    options.folder = (
        options.output is not None
        and not options.output.suffix
        and all(map(image_sources.is_store, options.sources))
    )
    return ()


def _rules_of_shards(options: argparse.Namespace, given: command_line.Given) -> list[Rule]:
    """The rules about flags that have to do with shards, shares and engines."""
    chosen = (f"--format {options.format}", f"--engine {options.engine}")
    store = next(filter(image_sources.is_store, options.sources), None)
    return [
        (
            options.output and options.output.is_dir() and not options.folder,
            f"--output {options.output}: a folder; expected a file, or only shards (.tar) and "
            "lists (.csv, .parquet) as sources",
        ),
        *(
            (flag in chosen, errors.not_installed(flag, *packages))
            for flag, packages in FOR_SHARDS.items()
        ),
        *(
            (
                flag in chosen and not options.folder,
                f"{flag}: expected shards (.tar) or lists (.csv, .parquet) as sources, and a "
                "folder, which has a name without a suffix, as --output",
            )
            for flag in FOR_SHARDS
        ),
        *(
            (
                store and name in given,
                f"--{name}: expected images, folders or patterns, found {store}",
            )
            for name in ("sheet", "map", "compare")
        ),
        (
            options.share and "-" in options.sources,
            "contradictory flags: --share and - for standard input",
        ),
        (
            options.share and options.compare,
            "contradictory flags: --share and --compare, which needs all images at once",
        ),
    ]


def _problems(options: argparse.Namespace, given: command_line.Given) -> Iterator[str]:
    yield from broken(
        [
            *_rules_of_shards(options, given),
            (
                options.output and options.output == options.sheet,
                f"--output and --sheet: the same file {options.sheet}",
            ),
            (
                options.output and options.output.suffix.lower() in NO_ROWS,
                f"--output {options.output}: rows are CSV or JSON lines; expected a name that ends "
                "in .csv or .jsonl; Parquet is written for shards and lists, with --format parquet "
                "and a folder as --output",
            ),
            ("-" in options.sources and sys.stdin is None, "-: standard input is closed"),
            (
                options.compare and options.output and options.output.is_file(),
                f"--output {options.output}: exists; --compare writes a new file",
            ),
            *(
                (options.compare and name in given, f"contradictory flags: --compare and --{name}")
                # They say nothing about pairs of images.
                for name in ("meaning", "above", "sheet", "map")
            ),
            *(
                (
                    options.also and name in given,
                    f"contradictory flags: --also and --{name}, which is for a single model",
                )
                for name in ("meaning", "above", "compare", "map")
            ),
            *(
                (
                    name in given and not any(flag in given for flag in needed),
                    f"--{name} needs {' or '.join(f'--{flag}' for flag in needed)}",
                )
                for name, needed in NEEDED.items()
            ),
        ]
    )
    for path in [options.checkpoint, *options.also]:
        if path.suffix in runtimes.RUNTIMES:
            yield from runtimes.refused(
                path,
                device=options.device,
                precision=options.precision,
                map=options.map,
                scale=options.scale,
            )


def report(options: argparse.Namespace, tally: score_run.Tally) -> None:
    """Say what was written, and which images have no score or no map."""
    pairs = errors.counted(math.comb(tally.scored, 2), "pair")
    written = {
        options.output: pairs
        if options.compare
        else f"{errors.counted(tally.scored, 'image')} scored",
        options.sheet: f"page of {errors.counted(len(tally.scores), 'image')}",
        options.map: f"{errors.counted(tally.mapped, 'map')} drawn",
    }
    for path, text in written.items():
        if path:
            print(f"{path}: {text}", file=sys.stderr)
    if tally.failed:
        print(
            f"{tally.failed} of {errors.counted(tally.scored + tally.failed, 'image')} "
            f"could not be scored: {errors.first_five(tally.failures)}",
            file=sys.stderr,
        )
    if tally.unmapped:
        print(
            f"{errors.counted(len(tally.unmapped), 'image has', 'images have')} no map: "
            f"{errors.first_five(tally.unmapped)}",
            file=sys.stderr,
        )


def _draw_sheet(scorer: score_run.Scorer, tally: score_run.Tally) -> None:
    # Pillow is imported only once flags and sources are known to be right.
    from hyperiqa.pages import page

    page.draw_scores(
        scorer.options.sheet,
        " + ".join(
            path.resolve().name for path in [scorer.options.checkpoint, *scorer.options.also]
        ),
        scorer.model.description,
        tally.scores,
        tally.failures,
        tally.failed,
        scorer.meaning if scorer.options.meaning else None,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Score the images that the arguments name; returns the exit code."""
    options = parse(argv)
    tally = score_run.Tally()
    outputs = {path.resolve() for path in (options.output, options.sheet) if path}
    sources = list(
        # A file may be named twice, as itself and by its folder.
        image_sources.without_repeats(
            image_sources.find_images(options.sources, outputs, tally.passed), set()
        )
    )
    if options.compare and "-" not in options.sources:
        score_files.check_compared(len(sources))
    if options.folder:
        shards.check_names(options, sources)
    if options.share:
        number = len(sources)
        sources = image_sources.shared_out(sources, options.share)
        print(
            f"--share {options.share}: {len(sources):,} of {errors.counted(number, 'source')}",
            file=sys.stderr,
        )
        if not sources:
            return 0
    image_sources.check_lists(sources, options.image_column)
    try:
        with StopSignals() as signals:
            if options.folder:
                shards.run(options, sources, signals, tally)
            else:
                scorer = score_run.run(options, sources, outputs, signals, tally)
                if options.sheet:
                    _draw_sheet(scorer, tally)
    except errors.Interrupted:
        goes_on = options.output and not options.compare
        print(
            f"interrupted after {errors.counted(tally.scored + tally.failed, 'image')}"
            f"{'; the same command goes on from there' if goes_on else ''}",
            file=sys.stderr,
        )
        raise
    # `| head` has seen enough.
    except BrokenPipeError:
        return 0
    if tally.passed:
        print(image_sources.skipped_note(tally.passed), file=sys.stderr)
    report(options, tally)
    return 1 if tally.failed or tally.unmapped else 0


def command() -> NoReturn:
    """The installed command `hyperiqa`."""
    command_line.run_tool(main)


if __name__ == "__main__":
    command()
