"""What a data set is once it has been read: records of images, and what follows from them alone.

A reader (`reader.py`) turns the rows of a set's own files into the records of a `DataSet`.
"""

import hashlib
import json
from argparse import Namespace
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from hyperiqa.base.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".jp2", ".webp"}


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
            if len(set(scores)) > 1:
                continue
            if len(scores) > 1:
                reason = f"all {len(scores)} {part} images have the MOS {scores[0]:g}"
            else:
                reason = f"there is only 1 {part} image"
            self.notes.append(f"{self.name}: SRCC and PLCC will be nan: {reason}")

    def fingerprint(self) -> str:
        """A digest of names, scores, splits and groups; it stays when the folder moves."""
        # Runs that are resumed or compared hold older digests: what goes in here must not change.
        rows = [(r.split, r.name, repr(r.score), r.group or "") for r in self.records]
        return _digest(sorted(rows))

    def votes(self) -> str:
        """A digest of the standard errors."""
        return _digest(sorted((r.name, repr(r.error)) for r in self.records))


def _digest(rows: list[tuple]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


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


def take_validation(data: DataSet, fraction: float, seed: int) -> None:
    """Move about this fraction of the training images into `val`, whole content groups, by seed.

    Raises UserError where that leaves no content for validation or none for training.
    """
    contents = sorted({record.group or record.name for record in data.split("train")})
    share = round(fraction * len(contents))
    if not 0 < share < len(contents):
        raise UserError(
            f"--val_fraction {fraction}: takes {share} of {len(contents)} training contents"
        )
    # The 1 keeps these draws apart from those of the 80/20 split by the same seed.
    order = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(contents))
    chosen = {contents[i] for i in order[:share]}
    records = []
    for record in data.records:
        if record.split == "train" and (record.group or record.name) in chosen:
            record = replace(record, split="val")
        records.append(record)
    data.records = records
    data.notes.append(
        f"{data.name}: {share} of {len(contents)} training contents held out for validation, "
        f"seed {seed}"
    )
