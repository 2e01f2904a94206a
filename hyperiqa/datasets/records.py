"""Records, data sets, and the base of the readers in `folders.py`.

A reader gives rows (image name, score, split, content group, kind of distortion); the base class finds the images,
splits what comes without a split, and turns everything that is wrong with a data set into one line for its owner."""

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
    """One image: where it lies, its opinion score on the set's own scale, its split, and what it depicts.
    `name` is what it is called in every record: its path below the folder of the images, normalised, with / between
    the parts; unique in its set, and the same wherever the set lies. `group` is shared by images of the same content,
    which must not be torn apart by a split; None: own content. `kind` is the kind of distortion in words, where the
    set says it; `error` the standard error of the score, in its units, where the set gives votes."""

    name: str
    path: Path
    score: float
    split: str
    group: str | None = None
    kind: str | None = None
    error: float | None = None


@dataclass
class DataSet:
    """The records of a data set; `notes` are the lines that the log owes to the user about them."""

    name: str
    records: list[Record]
    higher_is_better: bool = True
    notes: list[str] = field(default_factory=list)
    nominal_range: tuple[float, float] | None = None

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest score that the set's scale has, else that its training images have."""
        scores = [record.score for record in self.split("train") or self.records]
        return self.nominal_range or (min(scores), max(scores))

    def split(self, name: str) -> list[Record]:
        return [record for record in self.records if record.split == name]

    def note_undefined(self) -> None:
        """Add a note for each split whose images leave correlations with their MOS undefined, saying why."""
        for part in dict.fromkeys(record.split for record in self.records):
            scores = [record.score for record in self.split(part)]
            if len(set(scores)) == 1:
                all_same = f"all {len(scores)} {part} images have the MOS {scores[0]:g}"
                why = all_same if len(scores) > 1 else f"there is only 1 {part} image"
                self.notes.append(f"{self.name}: SRCC and PLCC will be nan: {why}")

    def fingerprint(self) -> str:
        """Changes when an image name, a score, a split or a group changes; not when the folder moves."""
        return _digest(
            sorted((r.split, r.name, repr(r.score), r.group or "") for r in self.records)
        )

    def votes(self) -> str:
        """Changes when a standard error does."""
        return _digest(sorted((r.name, repr(r.error)) for r in self.records))


def _digest(rows: list[tuple]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """What a data set's own files say of an image; split None: to be drawn."""

    image: str
    score: float
    split: str | None = None
    group: str | None = None
    kind: str | None = None
    error: float | None = None


@dataclass(frozen=True)
class Columns:
    """What the columns of a CSV set are called, and the folder that its image paths start from (None: the CSV's).
    Those of split and group may be missing as long as they have their usual names."""

    image_column: str = "image"
    score_column: str = "mos"
    split_column: str = "split"
    group_column: str = "group"
    image_root: Path | None = None

    @classmethod
    def of(cls, options: Namespace) -> "Columns":
        """As the flags say, which have the same names."""
        return cls(**{each.name: getattr(options, each.name) for each in fields(cls)})


USUAL = Columns()


def take_validation(data: DataSet, fraction: float, seed: int) -> None:
    """Move about this fraction of the training images into `val`, whole content groups, by seed. Raises UserError."""
    contents = sorted({r.group or r.name for r in data.split("train")})
    share = round(fraction * len(contents))
    if not 0 < share < len(contents):
        raise UserError(
            f"--val_fraction {fraction}: takes {share} of {len(contents)} training contents"
        )
    order = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(contents))
    chosen = {contents[i] for i in order[:share]}
    data.records = [
        replace(r, split="val") if r.split == "train" and (r.group or r.name) in chosen else r
        for r in data.records
    ]
    data.notes.append(
        f"{data.name}: {share} of {len(contents)} training contents held out for validation, seed {seed}"
    )
