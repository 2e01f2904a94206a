"""Score images with a trained model, and write each score as soon as it is known.

  python predict.py checkpoints/NAME photo.jpg        # the best model of a run
  python predict.py koniq photos                      # a public model by name
  python predict.py model.pkl photos --output scores.csv
  python predict.py model.pkl 'photos/**/*.jpg' --sheet sheet.html
  find /data -name '*.png' | python predict.py model.pkl - --format jsonl

On a terminal every image gets a line to read. A file or a pipe gets CSV rows of
image, score, error (why there is no score) and made_with. The same command with
an --output that exists scores only the images that have no score there yet.
The exit code is 1 if some images could not be scored. docs/using_models.md says
which files count as images, and which scores are never mixed in one file."""

import argparse
import hashlib
import itertools
import math
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from hyperiqa.base.command_line import Flags, Given, run_tool
from hyperiqa.base.errors import (
    Interrupted,
    UserError,
    counted,
    first_five,
    reading_file,
    reason_of,
)
from hyperiqa.base.public_models import models_table
from hyperiqa.base.signals import StopSignals
from hyperiqa.scoring import image_sources, score_files

if TYPE_CHECKING:
    from hyperiqa.scoring.quality_model import QualityModel, Scored

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")

# Kinds of files that a user may expect, but that no rows can be appended to.
NO_ROWS = set(".xlsx .xls .ods .parquet .feather .pdf .zip .gz .npy .mat .pkl .db".split())

# For the sheet, which lists them.
FAILURES_KEPT = 500


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked all together. Raises UserError."""
    flags = Flags(__doc__, "%(prog)s CHECKPOINT IMAGE|FOLDER|GLOB|- … [flags]")
    flags.checkpoint()
    # argparse's action for a version prints any text, whatever else is missing on the command line.
    flags.parser.add_argument(
        "--models",
        action="version",
        version=models_table(),
        help="list the public models that have a name and exit",
    )
    flags.words(
        "sources",
        "images, folders of images, patterns, or - for a list on standard input",
        nargs="+",
        metavar="IMAGE|FOLDER|GLOB|-",
    )
    _add_scoring_flags(flags)
    flags.group("hardware")
    flags.batch_size(64, "crops that are scored at a time")
    flags.device()
    flags.workers("threads that decode images (default: one per core)", least=1)
    _add_output_flags(flags)
    # Not False, which a switch is without its flag: the model's own setting holds then.
    flags.parser.set_defaults(exif_rotate=None)
    options = flags.parse(argv, _problems)
    # A program without a console has no standard output.
    options.terminal = not options.output and sys.stdout is not None and sys.stdout.isatty()
    if options.format is None:
        suffix = options.output.suffix.lower() if options.output else ""
        rows = "lines" if options.terminal else "csv"
        options.format = "jsonl" if suffix in JSONL_SUFFIXES else rows
    return options


def _add_scoring_flags(flags: Flags) -> None:
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


def _add_output_flags(flags: Flags) -> None:
    flags.group("output")
    flags.output("--output", "file to which rows are written or appended, instead of the terminal")
    flags.value(
        "--format",
        None,
        "format of the rows (default: by the suffix of --output, else csv, or lines on a terminal)",
        choices=["csv", "jsonl"],
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


def _problems(options: argparse.Namespace, given: Given) -> Iterator[str]:
    if options.output and options.output == options.sheet:
        yield f"--output and --sheet: the same file {options.sheet}"
    if options.output and options.output.suffix.lower() in NO_ROWS:
        yield (
            f"--output {options.output}: rows are CSV or JSON lines; expected a name that ends in "
            ".csv or .jsonl"
        )
    if "-" in options.sources and sys.stdin is None:
        yield "-: standard input is closed"


@dataclass
class Tally:
    """How many images were scored, for the lines at the end and for the sheet.

    failures: the first FAILURES_KEPT of the failed images, with the reason.
    unmapped: the images that have a score but, in spite of --map, no map, with the reason.
    mapped: how many maps were drawn.
    scores: (image, score); kept for the sheet alone, since millions of them take much memory.
    """

    scored: int = 0
    mapped: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)
    scores: list[tuple[str, float]] = field(default_factory=list)


def made_with(model: "QualityModel", precision: str) -> str:
    """What a score depends on: a digest of the weights, and the settings.

    The digest is the same whichever file the weights lie in.
    """
    # Over the tensors: the bytes of a file would differ with its format and its description.
    digest = hashlib.sha256()
    for name, tensor in sorted(model.net.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    description = model.description
    return (
        f"weights={digest.hexdigest()[:12]} resize={description['resize']} "
        f"patch_size={description['patch_size']} crops={model.crops} "
        f"exif_rotate={'yes' if description.get('exif_rotate') else 'no'} precision={precision}"
    )


def assumptions(checkpoint: Path, model: "QualityModel") -> str:
    """What is assumed of a model whose file has no description, as a line for the user."""
    description = model.description
    return (
        f"{checkpoint} has no description; assumed: {description['backbone']}, fusion "
        f"{description['fusion']}, patch {description['patch_size']}, resize "
        f"{description['resize']}, crops {model.crops}, scores of "
        f"{score_files.scale_text(description)}"
    )


def score_images(
    scores: Iterable["Scored"],
    total: int | None,
    signals: StopSignals,
    write_row: Callable[["Scored"], None],
    with_bar: bool,
) -> None:
    """Write a row for each of the scores as soon as it is there, and show the progress.

    A signal stops it between two rows, never within one. total: the number of images; None if it
    is not known. Raises Interrupted.
    """
    with tqdm(
        total=total,
        desc="Scoring",
        unit="image",
        leave=False,
        dynamic_ncols=True,
        # Without a terminal no bar either: it would be lines of a file.
        disable=None if with_bar else True,
    ) as bar:
        for scored in scores:
            signals.deferred = True
            write_row(scored)
            bar.update()
            signals.deferred = False
            if signals.received:
                raise Interrupted(signals.received)


def add_row(
    options: argparse.Namespace,
    model: "QualityModel",
    made: str,
    tally: Tally,
    output: score_files.ScoreFile,
    earlier: Container[str],
    scored: "Scored",
) -> None:
    """Draw an image's map if there is a --map, write its row, and count it in the tally.

    earlier: the canonical paths of images that have a row and a score of an earlier run.
    """
    image = str(scored.image)
    score = scored.score
    problem = scored.problem
    # Broken weights may give nan, which is no score.
    if score is not None and not math.isfinite(score):
        problem = f"the model gives {score}"
        score = None
    if options.map and score is not None:
        problem = draw_map(options.map, model, made, image)
        tally.mapped += problem is None
    is_earlier = image_sources.canonical_path(image) in earlier
    if problem is not None and (score is not None or is_earlier):
        tally.unmapped.append(f"{image} ({problem})")
    # All that an image with an earlier row lacked is its map.
    if is_earlier:
        return
    output.add(image, score, problem, made)
    if score is None:
        tally.failed += 1
        if len(tally.failures) < FAILURES_KEPT:
            tally.failures.append(f"{image} ({problem})")
        return
    tally.scored += 1
    if options.sheet:
        tally.scores.append((image, score))


def draw_map(folder: Path, model: "QualityModel", made: str, image: str) -> str | None:
    """Draw the map of an image; returns the reason where it cannot be made, else None."""
    from hyperiqa.scoring import maps

    # This decodes the image once more: the scores come without their pixels.
    try:
        image_maps = maps.map_image(model, image)
        maps.write(image_sources.map_path(folder, image), image_maps, model, made)
    # One image, or one name, must not end the run.
    except (ValueError, MemoryError, UserError) as problem:
        return f"no map: {reason_of(problem).removeprefix(f'{image}: ')}"
    return None


def take_up_output(
    options: argparse.Namespace, made: str, images: Sequence[str], tally: Tally
) -> set[str]:
    """Prepare an --output that an earlier run has begun, and say so to the user.

    images: those that the user names, but for standard input. Returns the canonical paths of the
    images that have a score already; their scores go on the sheet too. Raises UserError.
    """
    if not (options.output and options.output.is_file() and options.output.stat().st_size):
        return set()
    paths = {image_sources.canonical_path(image) for image in images}
    earlier_scores, note = score_files.take_up(
        options.output,
        options.format,
        made,
        # Standard input may yet name any image.
        lambda image: "-" in options.sources or image_sources.canonical_path(image) in paths,
    )
    print(note, file=sys.stderr)
    if options.sheet:
        tally.scores += earlier_scores.items()
    return {image_sources.canonical_path(image) for image in earlier_scores}


def load_model(options: argparse.Namespace) -> "QualityModel":
    """Load the model as the flags say. Raises UserError."""
    # torch is imported only once the flags and the sources are known to be right.
    from hyperiqa.base.device import keep_freed_memory
    from hyperiqa.scoring.quality_model import load

    keep_freed_memory()
    model = load(
        options.checkpoint,
        options.device,
        options.precision,
        options.resize,
        options.crops,
        options.exif_rotate,
    )
    if options.scale is not None:
        model.use_scale(options.scale)
    if not model.description["described"]:
        print(assumptions(options.checkpoint, model), file=sys.stderr)
    return model


def run(
    options: argparse.Namespace,
    sources: Sequence[str],
    outputs: Container[Path],
    signals: StopSignals,
    tally: Tally,
) -> None:
    """Score the images that have no score or map yet, and draw the sheet.

    sources: the images that the user names, but for standard input. outputs: see `is_result`.
    """
    model = load_model(options)
    made = made_with(model, options.precision)
    # An earlier run's rows are kept only where they were made with the same.
    earlier = take_up_output(options, made, sources, tally)
    done = set(earlier)
    if options.map:
        with reading_file(options.map, "cannot be made"):
            options.map.mkdir(parents=True, exist_ok=True)
        done = {
            image
            for image in earlier
            if image_sources.mark_of(image_sources.map_path(options.map, image)) == made
        }
    remaining = list(image_sources.without_repeats(sources, done))
    from_stdin = "-" in options.sources
    paths = image_sources.paths_from(sys.stdin.fileno()) if from_stdin else ()
    streamed = (path for path in paths if not (path and image_sources.is_result(path, outputs)))
    images = itertools.chain(remaining, image_sources.without_repeats(streamed, done))
    if options.format == "lines":
        description = {
            **model.description,
            "dataset": options.scale or model.description["dataset"],
        }
        alone = len(remaining) == 1 and not from_stdin
        output: score_files.ScoreFile = score_files.ScoreLines(description, alone)
    else:
        output = score_files.ScoreFile(options.output, options.format)
    write_row = partial(add_row, options, model, made, tally, output, earlier)
    scores = model.score_all(images, options.batch_size, options.workers)
    # On a terminal the rows themselves show the progress.
    total = None if from_stdin else len(remaining)
    score_images(scores, total, signals, write_row, with_bar=not options.terminal)
    if options.sheet:
        from hyperiqa.pages import page

        name = options.checkpoint.resolve().name
        page.draw_scores(
            options.sheet, name, model.description, tally.scores, tally.failures, tally.failed
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Score the images that the arguments name; returns the exit code."""
    options = parse(argv)
    tally = Tally()
    passed: list[str] = []
    outputs = {path.resolve() for path in (options.output, options.sheet) if path}
    images = image_sources.find_images(options.sources, outputs, passed)
    # A file may be named twice, as itself and by its folder.
    sources = list(image_sources.without_repeats(images, set()))
    try:
        with StopSignals() as signals:
            run(options, sources, outputs, signals, tally)
    except Interrupted:
        hint = "; the same command goes on from there" if options.output else ""
        number = tally.scored + tally.failed
        print(f"interrupted after {counted(number, 'image')}{hint}", file=sys.stderr)
        raise
    # `| head` has seen enough.
    except BrokenPipeError:
        return 0
    written = {
        options.output: f"{counted(tally.scored, 'image')} scored",
        options.sheet: f"page of {counted(len(tally.scores), 'image')}",
        options.map: f"{counted(tally.mapped, 'map')} drawn",
    }
    for path, text in written.items():
        if path:
            print(f"{path}: {text}", file=sys.stderr)
    if passed:
        print(image_sources.skipped_note(passed), file=sys.stderr)
    if tally.failed:
        print(
            f"{tally.failed} of {counted(tally.scored + tally.failed, 'image')} "
            f"could not be scored: {first_five(tally.failures)}",
            file=sys.stderr,
        )
    if tally.unmapped:
        unmapped = counted(len(tally.unmapped), "image has", "images have")
        print(f"{unmapped} no map: {first_five(tally.unmapped)}", file=sys.stderr)
    return 1 if tally.failed or tally.unmapped else 0


def command() -> NoReturn:
    """The installed command `hyperiqa`."""
    run_tool(main)


if __name__ == "__main__":
    command()
