"""A data set once it has been read: records of images, and what follows from them alone.

A reader (`reader.py`) turns the rows of a set's own files into the records of a `DataSet`. For a
training on several sets, a `Scale` brings the scores of each set to a common scale.
"""

import hashlib
import json
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from hyperiqa.base.errors import UserError, counted

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".jp2", ".webp"}
# How tables write a split, in lower case -> what a record says.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Record:
    """One image: its path, its opinion score on the set's own scale, its split and its content.

    `name` identifies the image in every record: it is its path below the folder of the images,
    normalised, with / between the parts. It is unique in its set, and stays the same when the set
    is moved. Images of the same content share a `group`, which a split must keep together; None
    stands for a content of its own. `kind` is the kind of distortion in words, if the set names it.
    `error` is the standard error of the score and `deviation` the standard deviation of its votes,
    both in the units of the score; None where the set does not give them.
    """

    name: str
    path: Path
    score: float
    split: str
    group: str | None = None
    kind: str | None = None
    error: float | None = None
    deviation: float | None = None


@dataclass
class DataSet:
    """The records of a data set. `notes` are lines about them, which the log shows the user."""

    name: str
    records: list[Record]
    higher_is_better: bool = True
    notes: list[str] = field(default_factory=list)
    nominal_range: tuple[float, float] | None = None

    @property
    def range(self) -> tuple[float, float]:
        """The ends of the set's scale or, if it has none, of its training images' scores."""
        if self.nominal_range:
            return self.nominal_range
        scores = [record.score for record in self.split("train") or self.records]
        return min(scores), max(scores)

    def split(self, name: str) -> list[Record]:
        """The records of one split: train, val or test."""
        return [record for record in self.records if record.split == name]

    def note_undefined(self) -> None:
        """Note each split on which correlations with the MOS are undefined, and say why."""
        for part in dict.fromkeys(record.split for record in self.records):
            scores = [record.score for record in self.split(part)]
            if len(set(scores)) == 1:
                reason = f"all {len(scores)} {part} images have the MOS {scores[0]:g}"
                if len(scores) == 1:
                    reason = f"there is only 1 {part} image"
                self.notes.append(f"{self.name}: SRCC and PLCC will be nan: {reason}")

    def fingerprint(self) -> str:
        """A digest of names, scores, splits and groups. It stays the same when the folder moves."""
        # Runs that are resumed or compared have older digests: its contents must never change.
        return _digest((r.split, r.name, repr(r.score), r.group or "") for r in self.records)

    def votes(self, kinds: Sequence[str]) -> str:
        """A digest of what the votes say of the scores: the fields `error` or `deviation`."""
        return _digest((r.name, *(repr(getattr(r, kind)) for kind in kinds)) for r in self.records)


def _digest(rows: Iterable[tuple]) -> str:
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """What a data set's own files, or a list of a collection, say about an image.

    split: None if it must be drawn. deviation: the standard deviation of the opinions, as the files
    give it. votes: the number of opinions, None for the usual number of the set. path: the image's
    place, where a list says it.
    """

    image: str
    score: float
    split: str | None = None
    group: str | None = None
    kind: str | None = None
    deviation: object = None
    votes: float | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Columns:
    """The names of a CSV set's columns, and the folder that its image paths start from.

    image_root: None for the folder of the CSV. The columns of split and group may be missing if
    they have their usual names here.
    """

    image_column: str = "image"
    score_column: str = "mos"
    split_column: str = "split"
    group_column: str = "group"
    image_root: Path | None = None

    @classmethod
    def of(cls, options: Namespace) -> "Columns":
        """The columns that the flags with the same names give."""
        return cls(**{column.name: getattr(options, column.name) for column in fields(cls)})


USUAL = Columns()


def shuffled(contents: Iterable[str], seed: int | list[int]) -> list[str]:
    """Each of these contents once, in a random order that the seed determines."""
    # They are sorted first, so that the order of the rows in a file does not matter.
    ordered = sorted(set(contents))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ordered))
    return [ordered[i] for i in order]


def take_validation(data: DataSet, fraction: float, seed: int) -> None:
    """Move about this fraction of the training images into `val`, as the seed determines.

    Images of the same content stay together. Raises UserError if no content is left for validation
    or for training.
    """
    # The 1 keeps these draws apart from those of the 80/20 split by the same seed.
    contents = shuffled((r.group or r.name for r in data.split("train")), [seed, 1])
    share = round(fraction * len(contents))
    if not 0 < share < len(contents):
        raise UserError(
            f"--val_fraction {fraction}: takes {share} of "
            f"{counted(len(contents), 'training content')}"
        )
    chosen = set(contents[:share])
    for i, record in enumerate(data.records):
        if record.split == "train" and (record.group or record.name) in chosen:
            data.records[i] = replace(record, split="val")
    data.notes.append(
        f"{data.name}: {share} of {counted(len(contents), 'training content')} held out for "
        f"validation, seed {seed}"
    )


@dataclass(frozen=True)
class Scale:
    """From a data set's own scores to the scores for training: factor * score + offset."""

    factor: float = 1.0
    offset: float = 0.0

    def common(self, scores: np.ndarray) -> np.ndarray:
        """The set's own scores on the common scale."""
        return self.factor * scores + self.offset

    def own(self, scores: np.ndarray) -> np.ndarray:
        """Scores of the common scale on the set's own scale."""
        return (scores - self.offset) / self.factor


def scale_of(data: DataSet, main: DataSet, method: str | None) -> Scale:
    """The scale of a set among several, by the method of `--mix_scale`. main: the first set.

    `range` maps the set's range to 0..100, with the best score at 100. `none` keeps the scores, and
    is an error if the directions of the sets differ. Any other method gives the training scores the
    mean, standard deviation and direction of the first set. Raises UserError.
    """
    if method == "range":
        low, high = data.range
        if not data.higher_is_better:
            low, high = high, low
        factor = 100 / ((high - low) or 1)
        return Scale(factor, -factor * low)
    same_direction = data.higher_is_better == main.higher_is_better
    if data is main or (method == "none" and same_direction):
        return Scale()
    if method == "none":
        raise UserError(
            f"--mix_scale none: the scores of {main.name} mean {_meaning(main)}, "
            f"those of {data.name} {_meaning(data)}; expected one direction, or first or range"
        )
    scores = _training_scores(data)
    main_scores = _training_scores(main)
    # Scores that are all the same have no spread to match.
    factor = (1 if same_direction else -1) * main_scores.std() / (scores.std() or 1)
    return Scale(float(factor), float(main_scores.mean() - factor * scores.mean()))


def _meaning(data: DataSet) -> str:
    return "quality" if data.higher_is_better else "badness"


def _training_scores(data: DataSet) -> np.ndarray:
    return np.array([record.score for record in data.split("train")])
