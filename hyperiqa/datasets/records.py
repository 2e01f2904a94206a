"""What a data set is once it has been read: records of images, and what follows from them alone.

A reader (`reader.py`) turns the rows of a set's own files into the records of a `DataSet`. Where
several sets are trained on, a `Scale` leads from the scores of each to those of all.
"""

import hashlib
import json
from argparse import Namespace
from collections.abc import Iterable
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
    """One image: where it lies, its opinion score on the set's own scale, its split, what it shows.

    `name` identifies the image in every record: its path below the folder of the images,
    normalised, with / between the parts. It is unique in its set, and the same wherever the set
    lies. Images of the same content share a `group`, which a split must not tear apart; None: the
    image has a content of its own. `kind` is the kind of distortion in words, where the set names
    it. `error` is the standard error of the score, in its units, where the set gives votes.
    """

    name: str
    path: Path
    score: float
    split: str
    group: str | None = None
    kind: str | None = None
    error: float | None = None


@dataclass
class DataSet:
    """The records of a data set; `notes` are the lines about them that the log shows the user."""

    name: str
    records: list[Record]
    higher_is_better: bool = True
    notes: list[str] = field(default_factory=list)
    nominal_range: tuple[float, float] | None = None

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest score of the set's scale, else of its training images."""
        if self.nominal_range:
            return self.nominal_range
        scores = [record.score for record in self.split("train") or self.records]
        return min(scores), max(scores)

    def split(self, name: str) -> list[Record]:
        """The records of one split: train, val or test."""
        return [record for record in self.records if record.split == name]

    def note_undefined(self) -> None:
        """Note each split whose images leave correlations with their MOS undefined, and say why."""
        for part in dict.fromkeys(record.split for record in self.records):
            scores = [record.score for record in self.split(part)]
            if len(set(scores)) == 1:
                reason = f"all {len(scores)} {part} images have the MOS {scores[0]:g}"
                if len(scores) == 1:
                    reason = f"there is only 1 {part} image"
                self.notes.append(f"{self.name}: SRCC and PLCC will be nan: {reason}")

    def fingerprint(self) -> str:
        """A digest of names, scores, splits and groups; it stays when the folder moves."""
        # Runs that are resumed or compared hold older digests: what goes in here must not change.
        return _digest((r.split, r.name, repr(r.score), r.group or "") for r in self.records)

    def votes(self) -> str:
        """A digest of the standard errors."""
        return _digest((r.name, repr(r.error)) for r in self.records)


def _digest(rows: Iterable[tuple]) -> str:
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """What a data set's own files say of an image; split None: one is to be drawn."""

    image: str
    score: float
    split: str | None = None
    group: str | None = None
    kind: str | None = None
    error: float | None = None


@dataclass(frozen=True)
class Columns:
    """The names of a CSV set's columns, and the folder that its image paths start from.

    image_root None: the folder of the CSV. The columns of split and group may be missing as long as
    they have their usual names.
    """

    image_column: str = "image"
    score_column: str = "mos"
    split_column: str = "split"
    group_column: str = "group"
    image_root: Path | None = None

    @classmethod
    def of(cls, options: Namespace) -> "Columns":
        """The columns that the flags of the same names give."""
        return cls(**{column.name: getattr(options, column.name) for column in fields(cls)})


USUAL = Columns()


def shuffled(contents: Iterable[str], seed: int | list[int]) -> list[str]:
    """Each of these contents once, in a random order by seed."""
    # Sorted, so that the order of the rows in a file changes nothing.
    ordered = sorted(set(contents))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ordered))
    return [ordered[i] for i in order]


def take_validation(data: DataSet, fraction: float, seed: int) -> None:
    """Move about this fraction of the training images into `val`, whole content groups, by seed.

    Raises UserError where that leaves no content for validation or none for training.
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
    """From a data set's own scores to those that are trained on: factor * score + offset."""

    factor: float = 1.0
    offset: float = 0.0

    def common(self, scores: np.ndarray) -> np.ndarray:
        """The set's own scores on the common scale."""
        return self.factor * scores + self.offset

    def own(self, scores: np.ndarray) -> np.ndarray:
        """Scores of the common scale on the set's own."""
        return (scores - self.offset) / self.factor


def scale_of(data: DataSet, main: DataSet, method: str | None) -> Scale:
    """The scale of a set among several, by the method of `--mix_scale`; `main` is the first set.

    range: the set's range becomes 0 to 100, the best score 100. none: the scores stay; an error
    where the sets' directions differ. Else the training scores take the first set's mean, standard
    deviation and direction. Raises UserError.
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
