"""One run of `predict.py`: an earlier output taken up, images scored, rows and maps written."""

import argparse
import itertools
import math
import sys
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
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


def load_model(options: argparse.Namespace) -> "QualityModel":
    """Load the model as the flags say. Raises UserError."""
    # torch is imported only once the flags and the sources are known to be right.
    from hyperiqa.base.device import keep_freed_memory
    from hyperiqa.scoring import ensemble

    keep_freed_memory()
    settings = ("device", "precision", "resize", "crops", "exif_rotate")
    members = [model for _, model in ensemble.load_members(options, *settings)]
    return ensemble.Ensemble(members) if options.also else members[0]


class Scorer:
    """A model that scores images as the flags of `predict.py` say.

    made: what a map depends on: a digest of the weights, and the settings. row_made: what a row
    depends on. meaning: explains the scores; None where no flag asks for it. Raises UserError.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.model = load_model(options)
        self.made = self.model.made_with
        self.row_made = self.made
        self.meaning: Meaning | None = None
        if options.meaning or options.above is not None or options.compare:
            self.meaning = self.model.meaning(
                options.reference, options.level, options.above, options.sure
            )
            self.row_made += f" {self.meaning.made_with}"
            caution = self.meaning.caution(self.model.trained, self.made.partition(" ")[2])
            print(*filter(None, (self.meaning.about, caution)), sep="\n", file=sys.stderr)

    def score_images(
        self,
        images: Iterable[Any],
        output: score_files.ScoreFile,
        signals: StopSignals,
        tally: Tally,
        number: int | None = None,
        earlier: Container[str] = (),
    ) -> None:
        """Write a row for each of the images as soon as it is scored, and show the progress.

        A signal stops it between two rows, never within one. number: of the images; None if it is
        not known. earlier: see `add_row`. Raises Interrupted.
        """
        options = self.options
        scores = self.model.score_all(images, options.batch_size, options.workers, self.meaning)
        with tqdm(
            scores,
            "Scoring",
            number,
            unit="image",
            leave=False,
            dynamic_ncols=True,
            # On a terminal the rows themselves show the progress. With None, tqdm draws no bar
            # into a file.
            disable=options.terminal or None,
        ) as bar:
            for scored in bar:
                signals.deferred = True
                self.add_row(scored, output, tally, earlier)
                signals.deferred = False
                if signals.received:
                    raise Interrupted(signals.received)

    def add_row(
        self,
        scored: "Scored",
        output: score_files.ScoreFile,
        tally: Tally,
        earlier: Container[str],
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
        if self.options.map and score is not None:
            problem = self.draw_map(image)
            tally.mapped += problem is None
        is_earlier = image_sources.canonical_path(image) in earlier
        if problem is not None and (score is not None or is_earlier):
            tally.unmapped.append(f"{image} ({problem})")
        # All that an image with an earlier row lacked is its map.
        if is_earlier:
            return
        output.add(image, score, problem, self.row_made, scored.meaning)
        if score is None:
            tally.add(Tally(failed=1, failures=[f"{image} ({problem})"]))
        else:
            tally.scored += 1
            if self.options.sheet:
                tally.scores.append((image, score))

    def draw_map(self, image: str) -> str | None:
        """Draw the map of an image; returns the reason where it cannot be made, else None."""
        from hyperiqa.scoring import maps

        # This decodes the image once more: the scores come without their pixels.
        try:
            image_maps = maps.map_image(self.model, image)
            maps.write(
                image_sources.map_path(self.options.map, image), image_maps, self.model, self.made
            )
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


def run(
    options: argparse.Namespace,
    sources: Sequence[str],
    outputs: Container[Path],
    signals: StopSignals,
    tally: Tally,
) -> Scorer:
    """Score the images that have no score or map yet; returns what scored them.

    sources: the images that the user names, but for standard input. outputs: see `is_result`.
    """
    scorer = Scorer(options)
    # An earlier run's rows are kept only where they were made with the same.
    earlier = take_up_output(options, scorer.row_made, sources, tally)
    done = set(earlier)
    if options.map:
        with reading_file(options.map, "cannot be made"):
            options.map.mkdir(parents=True, exist_ok=True)
        done = {
            image
            for image in earlier
            if image_sources.mark_of(image_sources.map_path(options.map, image)) == scorer.made
        }
    stores = list(filter(image_sources.is_store, sources))
    remaining = list(
        image_sources.without_repeats(itertools.filterfalse(image_sources.is_store, sources), done)
    )
    stored = (
        image
        for store in stores
        for image in image_sources.images_in(store, options.image_column, tally.passed)
    )
    from_stdin = "-" in options.sources
    paths = image_sources.paths_from(sys.stdin.fileno()) if from_stdin else ()
    streamed = (path for path in paths if not (path and image_sources.is_result(path, outputs)))
    more = image_sources.without_repeats(itertools.chain(stored, streamed), done)
    number = None if stores or from_stdin else len(remaining)
    output = _output(scorer, number == 1)
    scorer.score_images(itertools.chain(remaining, more), output, signals, tally, number, earlier)
    if isinstance(output, score_files.PairFile):
        output.write_pairs()
    return scorer


def _output(scorer: Scorer, alone: bool) -> score_files.ScoreFile:
    """What takes the scores; alone: whether there is a single image. Raises UserError."""
    options = scorer.options
    if options.compare and scorer.meaning:
        return score_files.PairFile(options.output, options.format, scorer.meaning.better)
    if options.format == "lines":
        description = scorer.model.description
        return score_files.ScoreLines(
            {**description, "dataset": options.scale or description["dataset"]},
            alone,
            options.columns,
        )
    return score_files.ScoreFile(options.output, options.format, options.columns)
