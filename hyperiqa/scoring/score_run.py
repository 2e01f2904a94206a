"""One run of `predict.py`: an earlier output taken up, images scored, rows and maps written."""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hyperiqa.base.errors import Interrupted, UserError, reading_file, reason_of
from hyperiqa.base.signals import StopSignals
from hyperiqa.scoring import image_sources, score_files

if TYPE_CHECKING:
    from hyperiqa.scoring.meaning import Meaning
    from hyperiqa.scoring.quality_model import QualityModel, Scored

# For the sheet, which lists them.
FAILURES_KEPT = 500


@dataclass
class Tally:
    """How many images were scored, for the lines at the end and for the sheet.

    failures: the first FAILURES_KEPT of the failed images, with the reason.
    unmapped: the images that have a score but, in spite of --map, no map, with the reason.
    mapped: how many maps were drawn.
    scores: (image, score); kept for the sheet alone, since millions of them take much memory.
    passed: pictures that were passed over, since their format is not read here.
    """

    scored: int = 0
    mapped: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)
    scores: list[tuple[str, float]] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def add(self, part: "Tally") -> None:
        """Count the images of a part of the run."""
        self.scored += part.scored
        self.failed += part.failed
        self.failures += part.failures[: FAILURES_KEPT - len(self.failures)]
        self.passed += part.passed


def made_with(model: "QualityModel") -> str:
    """What a score depends on: a digest of the weights, and the settings."""
    settings = score_files.settings_text(model.description, model.precision)
    return f"weights={model.weights} {settings}"


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
    draw: Callable[[str], str | None],
    made: str,
    tally: Tally,
    output: score_files.ScoreFile,
    earlier: Container[str],
    scored: "Scored",
) -> None:
    """Draw an image's map if there is a --map, write its row, and count it in the tally.

    draw: draws the map of an image and returns the reason where it cannot be made. earlier: the
    canonical paths of images that have a row and a score of an earlier run.
    """
    image = str(scored.image)
    score = scored.score
    problem = scored.problem
    # Broken weights may give nan, which is no score.
    if score is not None and not math.isfinite(score):
        problem = f"the model gives {score}"
        score = None
    if options.map and score is not None:
        problem = draw(image)
        tally.mapped += problem is None
    is_earlier = image_sources.canonical_path(image) in earlier
    if problem is not None and (score is not None or is_earlier):
        tally.unmapped.append(f"{image} ({problem})")
    # All that an image with an earlier row lacked is its map.
    if is_earlier:
        return
    output.add(image, score, problem, made, scored.meaning)
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
    # These may yet name any image.
    is_open = "-" in options.sources or any(map(image_sources.is_store, images))
    paths = {image_sources.canonical_path(image) for image in images}
    earlier_scores, note = score_files.take_up(
        options.output,
        options.format,
        made,
        lambda image: is_open or image_sources.canonical_path(image) in paths,
        options.columns,
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
        description = model.description
        print(
            f"{options.checkpoint} has no description; assumed: {description['backbone']}, fusion "
            f"{description['fusion']}, patch {description['patch_size']}, resize "
            f"{description['resize']}, crops {model.crops}, scores of "
            f"{score_files.scale_text(description)}",
            file=sys.stderr,
        )
    return model


def prepare(
    options: argparse.Namespace,
) -> "tuple[QualityModel, str, str, Meaning | None]":
    """The model, what maps and rows are made with, and what explains scores if a flag asks for it.

    Raises UserError.
    """
    model = load_model(options)
    made = made_with(model)
    if not (options.meaning or options.above is not None or options.compare):
        return model, made, made, None
    meaning = model.meaning(options.reference, options.level, options.above, options.sure)
    caution = meaning.caution(model.trained, made.partition(" ")[2])
    print(*filter(None, (meaning.about, caution)), sep="\n", file=sys.stderr)
    return model, made, f"{made} {meaning.made_with}", meaning


def run(
    options: argparse.Namespace,
    sources: Sequence[str],
    outputs: Container[Path],
    signals: StopSignals,
    tally: Tally,
) -> "tuple[dict[str, Any], Meaning | None]":
    """Score the images that have no score or map yet.

    Returns the model's description, and what explains the scores where a flag asks for it.

    sources: the images that the user names, but for standard input. outputs: see `is_result`.
    """
    model, made, row_made, meaning = prepare(options)
    # An earlier run's rows are kept only where they were made with the same.
    earlier = take_up_output(options, row_made, sources, tally)
    done = set(earlier)
    if options.map:
        with reading_file(options.map, "cannot be made"):
            options.map.mkdir(parents=True, exist_ok=True)
        done = {
            image
            for image in earlier
            if image_sources.mark_of(image_sources.map_path(options.map, image)) == made
        }
    stores = [source for source in sources if image_sources.is_store(source)]
    files = (source for source in sources if not image_sources.is_store(source))
    remaining = list(image_sources.without_repeats(files, done))
    stored = (
        image
        for store in stores
        for image in image_sources.images_in(store, options.image_column, tally.passed)
    )
    from_stdin = "-" in options.sources
    paths = image_sources.paths_from(sys.stdin.fileno()) if from_stdin else ()
    streamed = (path for path in paths if not (path and image_sources.is_result(path, outputs)))
    more = itertools.chain(stored, streamed)
    images = itertools.chain(remaining, image_sources.without_repeats(more, done))
    number = None if stores or from_stdin else len(remaining)
    output: Any
    if options.compare and meaning:
        output = score_files.PairFile(options.output, options.format, meaning.better)
    elif options.format == "lines":
        dataset = options.scale or model.description["dataset"]
        description = {**model.description, "dataset": dataset}
        output = score_files.ScoreLines(description, number == 1, options.columns)
    else:
        output = score_files.ScoreFile(options.output, options.format, options.columns)
    draw = partial(draw_map, options.map, model, made)
    write_row = partial(add_row, options, draw, row_made, tally, output, earlier)
    scores = model.score_all(images, options.batch_size, options.workers, meaning)
    # On a terminal the rows themselves show the progress.
    score_images(scores, number, signals, write_row, with_bar=not options.terminal)
    if options.compare:
        output.write_pairs()
    return model.description, meaning
