"""Data sets on disk -> records. One small reader per data set, saying only how its layout differs.

A reader gives rows (image name, score, split, content group); the base class finds the images, splits
what comes without a split, and turns everything that is wrong with a data set into one line for its owner.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from options import UserError, first_five

HERE = Path(__file__).resolve().parent
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".jp2", ".webp"}
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Record:
    """One image: where it lies, its opinion score on the set's own scale, its split, and what it depicts.

    `group` is shared by images of the same content, which must not be torn apart by a split; None: own content.
    """

    path: Path
    score: float
    split: str
    group: str | None = None


@dataclass
class DataSet:
    """The records of a data set; `notes` are the lines that the log owes to the user about them."""

    name: str
    records: list[Record]
    higher_is_better: bool = True
    notes: list[str] = field(default_factory=list)

    def split(self, name: str) -> list[Record]:
        return [record for record in self.records if record.split == name]

    def fingerprint(self) -> str:
        """Changes when an image name, a score or a split changes; not when the folder moves."""
        rows = sorted((r.split, r.path.name, repr(r.score), r.group or "") for r in self.records)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """What a data set's own files say of an image; split None: to be drawn."""

    image: str
    score: float
    split: str | None = None
    group: str | None = None


class Reader:
    """Base of the readers. A subclass implements `rows` and may say where images lie and how scores point."""

    name: str
    resize = "384"
    higher_is_better = True
    expects: str
    # Folders below the root that may hold the images, best first; "" is the root itself.
    image_folders: tuple[tuple[str, ...], ...] = (("",),)

    def __init__(self, root: Path | None = None, seed: int = 42, lower_is_better: bool = False):
        self.root = Path(root) if root is not None else HERE / self.name
        self.seed = seed
        self.lower_is_better = lower_is_better
        self.notes: list[str] = []

    def rows(self) -> Iterable[Row]:
        raise NotImplementedError

    def read(self, splits: tuple[str, ...] | None = ("train", "test")) -> DataSet:
        """Records of these splits (None: of all). Images of other splits need not exist. Raises UserError."""
        if not self.root.exists():
            raise UserError(f"{self.name}: no folder {self.root}; expected {self.expects}")
        rows = list(self.rows())
        if not rows:
            raise UserError(f"{self.name}: {self.root} lists no images; expected {self.expects}")
        rows = self._drawn(rows) if any(row.split is None for row in rows) else rows
        rows = [row for row in rows if splits is None or row.split in splits]
        self._check_rows(rows, splits or ())
        records = [
            Record(path, row.score, row.split, row.group) for row, path in zip(rows, self._paths(rows), strict=True)
        ]
        return DataSet(self.name, records, self.higher_is_better and not self.lower_is_better, self.notes)

    def read_all_as_test(self) -> DataSet:
        """Every record, whatever its split, as a test image: for tests across data sets."""
        data = self.read(splits=None)
        data.records = [Record(r.path, r.score, "test", r.group) for r in data.records]
        return data

    def _check_rows(self, rows: list[Row], splits: tuple[str, ...]) -> None:
        bad = [row.image for row in rows if not math.isfinite(row.score)]
        if bad:
            raise UserError(f"{self.name}: {len(bad)} scores are not numbers: {first_five(bad)}")
        repeated = [name for name, n in Counter(row.image for row in rows).items() if n > 1]
        if repeated:
            raise UserError(f"{self.name}: {len(repeated)} images are listed twice: {first_five(repeated)}")
        for split in splits:
            if split == "val" and not any(row.split == "val" for row in rows):
                raise UserError(f"{self.name}: {self.root} names no validation images; give --val_fraction F")
            if not any(row.split == split for row in rows):
                raise UserError(f"{self.name}: the {split} split of {self.root} is empty")

    def _drawn(self, rows: list[Row]) -> list[Row]:
        """80 % of the contents into train, the rest into test, by seed."""
        contents = sorted({row.group or row.image for row in rows})
        order = np.random.Generator(np.random.PCG64(self.seed)).permutation(len(contents))
        share = min(max(round(0.8 * len(contents)), 1), len(contents) - 1)
        train = {contents[i] for i in order[:share]}
        unit = "reference contents" if any(row.group for row in rows) else "images"
        self.notes.append(
            f"{self.name}: no split given; random 80/20 split of {len(contents)} {unit}, seed {self.seed}"
        )
        return [
            Row(row.image, row.score, "train" if (row.group or row.image) in train else "test", row.group)
            for row in rows
        ]

    def _paths(self, rows: list[Row]) -> list[Path]:
        """Where the images lie: by base name in the first set of `image_folders` that exists."""
        layouts = [f for f in self.image_folders if all((self.root / folder).is_dir() for folder in f)]
        if not layouts:
            choices = " or ".join("+".join(f"{f}/" for f in folders) for folders in self.image_folders)
            raise UserError(f"{self.name}: no images in {self.root}; expected {choices}")
        found = self._images_in(layouts[0])
        validation = [row.image for row in rows if row.split == "val" and row.image not in found]
        if validation:  # the public lists leave them out, so they often lie in another layout's folder, or nowhere
            for layout in layouts[1:]:
                found = self._images_in(layout) | found
            gone = [name for name in validation if name not in found]
            if gone:
                raise UserError(
                    f"{self.name}: {len(gone)} validation images are not in {self.root}: {first_five(gone)}; "
                    "give --val_fraction F to take some of the training images instead"
                )
        missing = [row.image for row in rows if row.image not in found]
        if missing:
            where = " and ".join(str(self.root / folder) for folder in layouts[0])
            raise UserError(
                f"{self.name}: {len(missing)} of {len(rows)} images are not in {where}: {first_five(missing)}"
            )
        return [found[row.image] for row in rows]

    def _images_in(self, layout: tuple[str, ...]) -> dict[str, Path]:
        return {
            path.name: path
            for folder in layout
            for path in (self.root / folder).iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES
        }

    def _inside(self, source: Path, names: Iterable[str]) -> list[str]:
        """The names, if none of them leaves the data folder: a data file may not point at the user's others."""
        names = list(names)
        outside = [n for n in names if PurePosixPath(n).is_absolute() or ".." in n.replace("\\", "/").split("/")]
        if outside:
            raise UserError(f"{source}: {len(outside)} image names leave its folder: {first_five(outside)}")
        return names

    def _table(self, path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
        """Rows of a CSV file as dicts; UserError where it is unreadable or lacks a column."""
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                missing = [column for column in columns if column not in (reader.fieldnames or [])]
                if missing:
                    have = ", ".join(reader.fieldnames or []) or "none"
                    raise UserError(
                        f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}, found {have}"
                    )
                yield from reader
        except (OSError, UnicodeDecodeError, csv.Error) as problem:
            raise UserError(f"{path}: not a readable CSV file: {problem}") from None

    def _json_scores(self, path: Path) -> dict[str, float]:
        """A JSON list of {"image", "score"} -> base name -> score."""
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            names = [str(e["image"]) for e in entries]
            scores = [number(e["score"]) for e in entries]
        except (OSError, ValueError, TypeError, KeyError) as problem:
            raise UserError(f'{path}: expected a JSON list of {{"image", "score"}}; found {problem!r}') from None
        listed = dict(zip((PurePosixPath(name).name for name in self._inside(path, names)), scores, strict=True))
        if len(listed) < len(entries):
            raise UserError(f"{path}: {len(entries) - len(listed)} images are listed twice")
        return listed


def take_validation(data: DataSet, fraction: float, seed: int) -> None:
    """Move about this fraction of the training images into `val`, whole content groups, by seed. Raises UserError."""
    contents = sorted({r.group or str(r.path.name) for r in data.split("train")})
    share = round(fraction * len(contents))
    if not 0 < share < len(contents):
        raise UserError(f"--val_fraction {fraction}: takes {share} of {len(contents)} training contents")
    order = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(contents))
    chosen = {contents[i] for i in order[:share]}
    data.records = [
        replace(r, split="val") if r.split == "train" and (r.group or r.path.name) in chosen else r
        for r in data.records
    ]
    data.notes.append(f"{data.name}: {share} of {len(contents)} training contents held out for validation, seed {seed}")


def number(text) -> float:
    """A score as a float; nan where it is no number, so that all bad scores can be reported together."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


class KonIQ10k(Reader):
    """KonIQ-10k (Hosu et al., IEEE TIP 2020): 10,073 images 1024x768, MOS 0..100."""

    name = "koniq-10k"
    expects = (
        "koniq10k_scores_and_distributions.csv, images in train/+test/, 1024x768/ or 512x384/, and for the official "
        "split koniq_train.json+koniq_test.json or koniq10k_distributions_sets.csv"
    )
    image_folders = (("train", "test"), ("1024x768",), ("512x384",))

    def rows(self) -> list[Row]:
        path = self.root / "koniq10k_scores_and_distributions.csv"
        scores = {
            row["image_name"]: number(row["MOS_zscore"]) for row in self._table(path, ("image_name", "MOS_zscore"))
        }
        self._inside(path, scores)
        split = self._split(scores)
        if split is None:
            return [Row(name, score) for name, score in scores.items()]
        unlisted = len(scores.keys() - split.keys())
        if unlisted:
            self.notes.append(f"{self.name}: {unlisted} images of the CSV are in no split and left out")
        unscored = [name for name in split if name not in scores]
        if unscored:
            raise UserError(
                f"{self.name}: {len(unscored)} images of the split have no score in "
                f"koniq10k_scores_and_distributions.csv: {first_five(unscored)}"
            )
        return [Row(name, scores[name], part) for name, part in split.items()]

    def _split(self, scores: dict[str, float]) -> dict[str, str] | None:
        """Image -> split: from the JSON lists, else from the official sets file, else None."""
        lists = {part: self.root / f"koniq_{part}.json" for part in ("train", "test")}
        there = [path for path in lists.values() if path.exists()]
        if len(there) == 1:
            raise UserError(f"{self.name}: {there[0]} needs its twin; expected koniq_train.json and koniq_test.json")
        sets = self._official_sets()
        if there:
            train, test = (self._json_scores(lists[part]) for part in ("train", "test"))
            both = train.keys() & test.keys()
            if both:
                raise UserError(f"{self.name}: {len(both)} images are in both JSON lists: {first_five(sorted(both))}")
            # The lists leave the official validation images out; those are the ones to select on.
            validation = {name for name, part in (sets or {}).items() if part == "val"} - train.keys() - test.keys()
            return (
                dict.fromkeys(train, "train") | dict.fromkeys(test, "test") | dict.fromkeys(sorted(validation), "val")
            )
        return sets

    def _official_sets(self) -> dict[str, str] | None:
        """Image -> split of koniq10k_distributions_sets.csv, None without it."""
        path = self.root / "koniq10k_distributions_sets.csv"
        if not path.exists():
            return None
        rows = [(row["image_name"], row["set"]) for row in self._table(path, ("image_name", "set"))]
        strange = sorted({part for _, part in rows} - SPLIT_NAMES.keys())
        if strange:
            raise UserError(f"{path}: column set: expected training, validation or test, found {first_five(strange)}")
        return {name: SPLIT_NAMES[part] for name, part in rows}


class SPAQ(Reader):
    """SPAQ (Fang et al., CVPR 2020), the 2,224 test images that the public code lists in spaq_test.json; MOS 0..100."""

    name = "spaq"
    expects = "spaq_test.json with its images beside it or in TestImage/"
    image_folders = (("TestImage",), ("",))

    def rows(self) -> list[Row]:
        return [Row(name, score) for name, score in self._json_scores(self.root / "spaq_test.json").items()]

    def read_all_as_test(self) -> DataSet:
        data = super().read_all_as_test()
        data.notes = []  # no split was needed, so none was drawn
        return data


class CSVTable(Reader):
    """Any CSV with columns image,mos and optional split (train, val, test) and group; images relative to it."""

    name = "csv"
    expects = "a CSV file with columns image,mos and optional split,group"

    def rows(self) -> list[Row]:
        if self.root.is_dir():
            raise UserError(f"--dataset_path {self.root}: expected a CSV file, found a folder")
        rows = []
        for line in self._table(self.root, ("image", "mos")):
            split = line.get("split")
            if split is not None and split.strip().lower() not in SPLIT_NAMES:
                raise UserError(f"{self.root}: column split: expected train, val or test, found {split!r}")
            split = SPLIT_NAMES[split.strip().lower()] if split is not None else None
            rows.append(Row(line["image"], number(line["mos"]), split, line.get("group") or None))
        return rows

    def _paths(self, rows: list[Row]) -> list[Path]:
        names = self._inside(self.root, [row.image for row in rows])
        paths = [self.root.parent / name for name in names]
        missing = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
        if missing:
            raise UserError(
                f"{self.root}: {len(missing)} of {len(names)} images are not in its folder: {first_five(missing)}"
            )
        return paths


class Demo(KonIQ10k):
    """The synthetic data set of make_demo_dataset.py, in KonIQ-10k's layout; made on first use."""

    name = "demo"
    expects = "what make_demo_dataset.py makes: koniq-10k/ and spaq-test/"

    def __init__(self, root: Path | None = None, seed: int = 42, lower_is_better: bool = False):
        super().__init__(root, seed, lower_is_better)
        if not self.root.exists():
            # A process of its own: the generator is an entry script, and those are never imported.
            made = subprocess.run([sys.executable, HERE / "make_demo_dataset.py", self.root], check=False)
            if made.returncode and not self.root.exists():  # another process may have made it first
                raise UserError(f"demo: make_demo_dataset.py could not make {self.root}")
        self.spaq_root = self.root / "spaq-test"
        self.root = self.root / "koniq-10k"


READERS: dict[str, type[Reader]] = {reader.name: reader for reader in (KonIQ10k, SPAQ, CSVTable, Demo)}
DEFAULT_RESIZE = {name: reader.resize for name, reader in READERS.items()}


def find_spaq(spaq_path: Path | None, beside: Path | None = None) -> Path | None:
    """SPAQ's folder for the cross test: the user's, else `beside`, else spaq/ or spaq-test/; None if in no place."""
    if spaq_path is not None:
        return spaq_path
    places = [beside] if beside else [HERE / "spaq", HERE / "spaq-test"]
    return next((place for place in places if place.exists()), None)
