"""The base of the readers: from a data set's folder to its records."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from hyperiqa.base.errors import UserError, first_five
from hyperiqa.base.files import HERE
from hyperiqa.datasets.collections import Listed, json_lists, pyiqa
from hyperiqa.datasets.formats import leaves_its_folder, number
from hyperiqa.datasets.records import IMAGE_SUFFIXES, USUAL, Columns, DataSet, Record, Row


class MissingFile(UserError):
    """None of the files that a set comes with is there."""


class Reader:
    """Base of the readers. A subclass implements `rows` and may say where images lie and how scores point; `table` and
    `word` are what collections call the set (`reading/collected.py`), whose rows `row_of` turns into the reader's."""

    name: str
    resize = "384"
    higher_is_better = True
    nominal_range: tuple[float, float] | None = (
        0.0,
        100.0,
    )  # of the scores; None: what the images have
    expects: str
    image_folders: tuple[tuple[str, ...], ...] = (
        ("",),
    )  # where images may lie, best first; "" is the root itself
    names_have_folders = (
        False  # rows name an image with its folder, because base names repeat across the folders
    )
    form, elsewhere = "folder", ""  # what `root` is, and what helps where images lie elsewhere
    table: str | None = None
    word: str | None = None
    votes: float | None = (
        None  # per image, where the set gives their deviation alone; 1: it gives the standard error
    )
    spaq_root: Path | None = None  # where a set that brings a SPAQ of its own has it

    def __init__(
        self,
        root: Path | None = None,
        seed: int | None = 42,
        lower_is_better: bool = False,
        columns: Columns = USUAL,
    ):
        """seed: of the split, where it must be drawn; None: not known, which is an error then. columns: of a CSV."""
        self.root = Path(root) if root is not None else HERE / self.name
        self.seed, self.lower_is_better, self.columns = seed, lower_is_better, columns
        self.place = f"--image_root {columns.image_root}" if columns.image_root else "its folder"
        self.why_empty = ""
        self.notes: list[str] = []
        self.placed: dict[str, Path] = {}

    def rows(self) -> Iterable[Row]:
        raise NotImplementedError

    def row_of(self, listed: Listed) -> Row | None:
        """A collection's row as this set's; None: it is none of its images."""
        return Row(listed.name, listed.score, listed.split, listed.reference)

    def _collected(self) -> list[Row] | None:
        """The rows of the set as a collection has it; None where there is none."""
        found = (self.table and pyiqa(self.root, self.table)) or (
            self.word and json_lists(self.root, self.word)
        )
        if not found:
            return None
        self.notes.append(f"{self.name}: read from {found[0]}")
        rows = []
        for listed in found[1]:
            if (row := self.row_of(listed)) is not None:
                error = self.error(listed.deviation, listed.votes)
                rows.append(
                    replace(
                        row, split=listed.split, error=error if row.error is None else row.error
                    )
                )
                if listed.path is not None:
                    self.placed[row.image] = listed.path
        return rows

    def error(self, deviation: object = None, votes: float | None = None) -> float | None:
        """The standard error of a mean of opinions with this standard deviation; None where something is not known."""
        sd, n = number(deviation), votes or self.votes
        return sd / math.sqrt(n) if n and math.isfinite(sd) else None

    def read(self, splits: tuple[str, ...] = ("train", "test")) -> DataSet:
        """Records of these splits. Images of other splits need not exist. Raises UserError."""
        rows = (
            self._drawn(self.listed)
            if any(row.split is None for row in self.listed)
            else self.listed
        )
        rows = [row for row in rows if row.split in splits]
        self._check_rows(rows, splits)
        return self._data_set(rows)

    def read_all_as_test(self) -> DataSet:
        """Every record, whatever its split, as a test image: for tests across data sets. Raises UserError."""
        self._check_rows(self.listed, ())
        data = self._data_set(self.listed)
        return replace(data, records=[replace(record, split="test") for record in data.records])

    def read_for_test(self, split: str = "auto", own: bool = False) -> tuple[DataSet, str]:
        """The set's images to test on, and in words which they are; own: the model was trained on the set.
        split: auto, test or all. auto: the test images of a set that comes with a split, so that figures of all
        models are of the same images; those of the run's random split of its own set; else all. Raises UserError."""
        comes_with_one = any(row.split == "test" for row in self.listed)
        if split == "all" or (split == "auto" and not comes_with_one and not own):
            data, which = (
                self.read_all_as_test(),
                "all" + (", its training images among them" if own else ""),
            )
        else:
            data = self.read(("test",))
            which = "its test split" if comes_with_one else f"random test split, seed {self.seed}"
        data.note_undefined()
        return data, which

    @cached_property
    def listed(self) -> list[Row]:
        """All that the set's own files list, of whatever split. Raises UserError."""
        if not self.root.exists():
            raise UserError(f"{self.name}: no {self.form} {self.root}; expected {self.expects}")
        try:
            rows = list(self.rows())
        except MissingFile:
            if (rows := self._collected()) is None:
                raise
        if not rows:
            raise UserError(f"{self.name}: {self.root} lists no images; expected {self.expects}")
        if outside := [row.image for row in rows if leaves_its_folder(row.image)]:
            names = f"{first_five(outside)}{self.elsewhere}"
            raise UserError(f"{self.root}: {len(outside)} image names leave {self.place}: {names}")
        return rows

    def _data_set(self, rows: list[Row]) -> DataSet:
        files = self._files(rows)
        if repeated := [name for name, n in Counter(name for name, _ in files).items() if n > 1]:
            raise UserError(
                f"{self.name}: {len(repeated)} images are listed twice: {first_five(repeated)}"
            )
        pairs = zip(rows, files, strict=True)
        records = [
            Record(*file, r.score, r.split or "test", r.group, r.kind, r.error) for r, file in pairs
        ]
        better = self.higher_is_better and not self.lower_is_better
        return DataSet(self.name, records, better, self.notes, self.nominal_range)

    def _check_rows(self, rows: list[Row], splits: tuple[str, ...]) -> None:
        if bad := [row.image for row in rows if not math.isfinite(row.score)]:
            raise UserError(f"{self.name}: {len(bad)} scores are not numbers: {first_five(bad)}")
        for split in splits:
            if split == "val" and not any(row.split == "val" for row in rows):
                raise UserError(
                    f"{self.name}: {self.root} names no validation images; give --val_fraction F"
                )
            if not any(row.split == split for row in rows):
                raise UserError(
                    f"{self.name}: the {split} split of {self.root} is empty{self.why_empty}"
                )

    def _drawn(self, rows: list[Row]) -> list[Row]:
        """80 % of the contents into train, the rest into test, by seed."""
        if self.seed is None:
            said = "comes without a split, and the seed of the run's is not known"
            raise UserError(f"{self.name}: {said}; give --seed N or --split all")
        contents = sorted({row.group or row.image for row in rows})
        if len(contents) == 1:
            self.why_empty = (
                f": to draw a split takes two contents, and all images are of one, {contents[0]}"
            )
        order = np.random.Generator(np.random.PCG64(self.seed)).permutation(len(contents))
        share = min(max(round(0.8 * len(contents)), 1), len(contents) - 1)
        train = {contents[i] for i in order[:share]}
        unit = "reference contents" if any(row.group for row in rows) else "images"
        drawn = f"random 80/20 split of {len(contents)} {unit}, seed {self.seed}"
        self.notes.append(f"{self.name}: no split given; {drawn}")
        return [
            replace(row, split="train" if (row.group or row.image) in train else "test")
            for row in rows
        ]

    def _files(self, rows: list[Row]) -> list[tuple[str, Path]]:
        """Name and path of each row's image: where a collection says, or by its name in the first of `image_folders`
        that holds images."""
        if self.placed:
            if gone := [row.image for row in rows if not self.placed[row.image].is_file()]:
                place = self.placed[gone[0]].parent
                raise UserError(
                    f"{self.name}: {len(gone)} of {len(rows)} images, not in {place}: {first_five(gone)}"
                )
            return [(row.image, self.placed[row.image]) for row in rows]
        there = [
            {folder: self._there(folder) for folder in folders} for folders in self.image_folders
        ]
        layouts = [layout for layout in there if all(path.is_dir() for path in layout.values())]
        if not layouts:
            choices = " or ".join(
                "+".join(f"{f}/" for f in folders) for folders in self.image_folders
            )
            raise UserError(f"{self.name}: no images in {self.root}; expected {choices}")
        layout = next(filter(self._images_in, layouts), layouts[0])
        found = self._images_in(layout)

        def missing(rows: list[Row]) -> list[str]:
            return [
                row.image
                for row in rows
                if row.image not in found and row.image.lower() not in found
            ]

        validation = [row for row in rows if row.split == "val"]
        if missing(
            validation
        ):  # the public lists leave them out, so they often lie in another layout's folder
            for other in layouts:
                found = self._images_in(other) | found
            if gone := missing(validation):
                which = f"{len(gone)} validation images are not in {self.root}: {first_five(gone)}"
                more = "give --val_fraction F to take some of the training images instead"
                raise UserError(f"{self.name}: {which}; {more}")
        if gone := missing(rows):
            where = " and ".join(map(str, layout.values()))
            raise UserError(
                f"{self.name}: {len(gone)} of {len(rows)} images are not in {where}: {first_five(gone)}"
            )
        return [found.get(row.image) or found[row.image.lower()] for row in rows]

    def _images_in(self, layout: Mapping[str, Path]) -> dict[str, tuple[str, Path]]:
        """Name and path of the images in these folders, by their names as they are, else in lower case."""
        images = [
            (f"{folder}/{path.name}" if self.names_have_folders else path.name, path)
            for folder, place in layout.items()
            for path in place.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        return {image[0].lower(): image for image in images} | {image[0]: image for image in images}

    def _there(self, name: str) -> Path:
        """The file or folder of this name below the root; in another case, where only that is there."""
        path = self.root
        for part in PurePosixPath(name).parts:
            exact = path / part
            others = () if exact.exists() or not path.is_dir() else path.iterdir()
            path = next((other for other in others if other.name.lower() == part.lower()), exact)
        return path

    def _file(self, *names: str) -> Path:
        """The first of these files that is there: the forms that a data set comes in, best first."""
        if (there := next(filter(Path.is_file, map(self._there, names)), None)) is None:
            raise MissingFile(
                f"{self.name}: no {' or '.join(names)} in {self.root}; expected {self.expects}"
            )
        return there
