"""Score images with a trained model: a row per image, written as soon as it is scored.

python predict.py checkpoints/NAME photo.jpg                        # a run's folder (its best model), or a model file
python predict.py model.pkl photos --output scores.csv              # a folder and all below it
python predict.py model.pkl 'photos/**/*.jpg' --sheet sheet.html    # and a page of the images, sorted by score
find /data -name '*.png' | python predict.py model.pkl - --format jsonl

Rows: image, score, error (why there is no score), made_with. The same command goes on with an --output that exists.
Exit code 1: some images could not be scored. What is an image, and what is never mixed: docs/using_models.md"""

import argparse
import hashlib
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from hyperiqa.base.command_line import Flags, Given, run_tool
from hyperiqa.base.errors import Interrupted, first_five, reading_file
from hyperiqa.base.signals import StopSignals
from hyperiqa.scoring.image_sources import (
    canonical_path,
    find_images,
    paths_from,
    skipped_note,
    without_repeats,
)
from hyperiqa.scoring.score_files import ScoreFile, take_up

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
NO_ROWS = set(".xlsx .xls .ods .parquet .feather .pdf .zip .gz .npy .mat .pkl .db".split())
FAILURES_KEPT = 500  # for the sheet, which lists them


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = Flags(__doc__, "%(prog)s CHECKPOINT IMAGE|FOLDER|GLOB|- … [flags]")
    flags.checkpoint()
    flags.words("sources", "what to score", nargs="+", metavar="IMAGE|FOLDER|GLOB|-")
    flags.group("scoring")
    flags.count(
        "--crops",
        None,
        "1: the centre crop; N: a regular grid, averaged (default: as trained)",
        1,
        10_000,
    )
    flags.images(resize="default: as trained")
    flags.switch(
        "--exif_rotate", "exif_rotate", True, "turn images as EXIF says (default: as trained)"
    )
    flags.value(
        "--precision", "fp32", "bf16: faster on some hardware, less exact", choices=["fp32", "bf16"]
    )
    flags.value(
        "--scale",
        None,
        "of a model of several sets: on whose scale (default: where they met)",
        metavar="NAME",
    )
    flags.group("hardware")
    flags.batch_size(64, "crops per forward pass")
    flags.device()
    flags.workers("threads that decode (default: one per core)", least=1)
    flags.group("output")
    flags.output("--output", "instead of standard output; appended to")
    flags.value(
        "--format",
        None,
        "of the rows (default: by --output's suffix, else csv)",
        choices=["csv", "jsonl"],
    )
    flags.output("--sheet", "page of the images, to be sorted and filtered by score", [".html"])
    flags.path(
        "--map",
        None,
        "folder for a picture of each image: its score all over it, the stages that `attention` "
        "weighs, the generated weights; takes dozens of times as long",
        "FOLDER",
    )
    flags.parser.set_defaults(exif_rotate=None)
    options = flags.parse(argv, _problems)
    suffix = options.output.suffix.lower() if options.output else ""
    options.format = options.format or ("jsonl" if suffix in JSONL_SUFFIXES else "csv")
    return options


def _problems(options: argparse.Namespace, given: Given) -> Iterator[str]:
    if options.output and options.output == options.sheet:
        yield f"--output and --sheet: the same file {options.sheet}"
    if options.output and options.output.suffix.lower() in NO_ROWS:
        yield f"--output {options.output}: rows are CSV or JSON lines; expected a name that ends in .csv or .jsonl"
    if "-" in options.sources and sys.stdin is None:
        yield "-: standard input is closed"


@dataclass
class Tally:
    """What is said at the end. `scores` is filled for a contact sheet alone; of the failures the first are kept."""

    scored: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    scores: list[tuple[str, float]] = field(default_factory=list)


def made_with(model, precision: str) -> str:
    """What a score depends on: a digest of the weights, whichever file they lie in, and the settings."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.net.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    d, turned = model.description, "yes" if model.description.get("exif_rotate") else "no"
    weights = f"weights={digest.hexdigest()[:12]} resize={d['resize']} patch_size={d['patch_size']}"
    return f"{weights} crops={model.crops} exif_rotate={turned} precision={precision}"


def assumptions(checkpoint: Path, model) -> str:
    d = model.description
    low, high = d["score_range"]
    net = f"{d['backbone']}, fusion {d['fusion']}, patch {d['patch_size']}, resize {d['resize']}, crops {model.crops}"
    scores = f"{d['dataset']} ({low:g} to {high:g}, {'higher' if d['higher_is_better'] else 'lower'} is better)"
    return f"{checkpoint} has no description; assumed: {net}, scores of {scores}"


def score_images(
    model, images, total: int | None, options, made: str, signals: StopSignals, tally: Tally
) -> None:
    """Score the images into the output. A signal stops it between two rows, never within one."""
    if options.map:
        from hyperiqa.scoring import maps

        with reading_file(options.map, "cannot be made"):
            options.map.mkdir(parents=True, exist_ok=True)
    output = ScoreFile(options.output, options.format)
    to_terminal = (
        options.output is None and sys.stdout.isatty()
    )  # the rows themselves show how far it is
    with tqdm(
        total=total,
        desc="Scoring",
        unit="image",
        leave=False,
        dynamic_ncols=True,
        disable=to_terminal,
    ) as bar:
        for scored in model.score_all(images, options.batch_size, options.workers):
            signals.deferred = True
            score, error = scored.score, scored.problem
            if score is not None and not math.isfinite(score):
                score, error = None, f"the model gives {score}"
            output.add(scored.image, score, error, made)
            if error is None:
                tally.scored += 1
                if options.map:
                    maps.write(
                        options.map, scored.image, maps.map_image(model, scored.image), model
                    )
                tally.scores += [(scored.image, score)] if options.sheet else []
            else:
                tally.failed += 1
                tally.failures += (
                    [f"{scored.image} ({error})"] if len(tally.failures) < FAILURES_KEPT else []
                )
            bar.update()
            signals.deferred = False
            if signals.received:
                raise Interrupted(signals.received)


def take_up_output(options, made: str, named: Sequence[str], tally: Tally) -> set[str]:
    """The places of the images that an earlier run scored into --output; their scores go on the sheet too."""
    if not (options.output and options.output.is_file() and options.output.stat().st_size):
        return set()
    places = {canonical_path(image) for image in named}
    streamed = "-" in options.sources  # any image may yet be named
    earlier, note = take_up(
        options.output,
        options.format,
        made,
        lambda image: streamed or canonical_path(image) in places,
    )
    print(note, file=sys.stderr)
    tally.scores += earlier.items() if options.sheet else []
    return {canonical_path(image) for image in earlier}


def run(options, named: Sequence[str], signals: StopSignals, tally: Tally) -> None:
    """Load the model, score what has no score yet, draw the sheet."""
    from hyperiqa.base.device import (
        keep_freed_memory,  # torch: only once the flags and sources are known to be right
    )
    from hyperiqa.scoring.quality_model import load

    keep_freed_memory()
    o = options
    model = load(o.checkpoint, o.device, o.precision, o.resize, o.crops, o.exif_rotate)
    if options.scale is not None:
        model.use_scale(options.scale)
    if not model.description["described"]:
        print(assumptions(options.checkpoint, model), file=sys.stderr)
    made = made_with(model, options.precision)
    done = take_up_output(options, made, named, tally)
    images: Any = list(without_repeats(named, done))
    total: int | None = len(images)
    if "-" in options.sources:
        images, total = (
            itertools.chain(images, without_repeats(paths_from(sys.stdin.fileno()), done)),
            None,
        )
    score_images(model, images, total, options, made, signals, tally)
    if options.sheet:
        from hyperiqa.pages import page

        name = options.checkpoint.resolve().name
        page.draw_scores(
            options.sheet, name, model.description, tally.scores, tally.failures, tally.failed
        )


def main(argv: Sequence[str] | None = None) -> int:
    options, tally = parse(argv), Tally()
    passed: list[str] = []
    named = list(without_repeats(find_images(options.sources, options.sheet, passed), set()))
    try:
        with StopSignals() as signals:
            run(options, named, signals, tally)
    except Interrupted:
        how = "; the same command goes on from there" if options.output else ""
        print(f"interrupted after {tally.scored + tally.failed} images{how}", file=sys.stderr)
        raise
    except BrokenPipeError:  # `| head` has seen enough
        return 0
    if options.output:
        print(f"{options.output}: {tally.scored} images scored", file=sys.stderr)
    if passed:
        print(skipped_note(passed), file=sys.stderr)
    if tally.failed:
        total = tally.scored + tally.failed
        print(
            f"{tally.failed} of {total} images could not be scored: {first_five(tally.failures)}",
            file=sys.stderr,
        )
    return 1 if tally.failed else 0


def command() -> NoReturn:
    """What the installed command `hyperiqa` runs."""
    run_tool(main)


if __name__ == "__main__":
    command()
