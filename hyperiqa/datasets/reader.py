"""The base of the readers: from a data set's folder to its records.

A reader gives rows (image name, score, split, content group, kind of distortion). The base class
finds the images, draws a split for sets that come without one, and reports whatever is wrong with a
data set in one line.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from hyperiqa.base import errors, files
from hyperiqa.datasets import collections, formats, records


class MissingFile(errors.UserError):
    """None of a set's own files exists."""


class Reader:
    """Base of the readers.

    A subclass implements `rows`. It may also say where the images are, whether high scores mean
    good quality, and how the rows of a collection become those of the set (`row_of`).
    """

    name: str
    resize = "384"
    higher_is_better = True
    # The range of the scores. None stands for the range of the images' own scores.
    nominal_range: tuple[float, float] | None = (0.0, 100.0)
    # The files of the set, in words.
    expects: str
    # The layouts in which images are found, best first. Each is a tuple of folders; "" is the root.
    image_folders: tuple[tuple[str, ...], ...] = (("",),)
    # Whether rows name an image with its folder, because base names repeat across the folders.
    names_have_folders = False
    # What `root` is, and a hint for images that are elsewhere.
    form = "folder"
    elsewhere = ""
    # The set's name in pyiqa's tables and in the file names of Q-Align's lists (`collections.py`),
    # "" if it is not in these.
    in_collections = ("", "")
    # The opinions per image of a set that gives their standard deviation. A set that gives the
    # standard error of its scores has 1.
    votes: float | None = None
    # For a set in which images share contents that its rows may not name: what names them.
    contents_from: str | None = None
    # Whether a split may be drawn image by image if the contents are not known.
    allow_shared_content = False
    # Where to get the set, and how to name the test set of a random split, for messages.
    source = ""
    advice = ""
    # Why a split is empty, in addition to the message that it is.
    why_empty = ""
    # The folder of the SPAQ set that comes with this set.
    spaq_root: Path | None = None

    def __init__(
        self,
        root: Path | None = None,
        seed: int | None = 42,
        lower_is_better: bool = False,
        columns: records.Columns = records.USUAL,
    ):
        """Take the set in the folder `root`, None for its default place.

        seed: the seed of a split that must be drawn. None means unknown, which is then an error.
        columns: the columns of a CSV file.
        """
        self.root = Path(root) if root is not None else files.HERE / self.name
        self.seed = seed
        self.lower_is_better = lower_is_better
        self.columns = columns
        self.place = f"--image_root {columns.image_root}" if columns.image_root else "its folder"

        self.notes: list[str] = []
        # The paths of the images that the lists of a collection give, by the rows' names.
        self.placed: dict[str, Path] = {}

    def rows(self) -> Iterable[records.Row]:
        """All rows of the set's own files. Raises UserError, or MissingFile if there are none."""
        raise NotImplementedError

    def row_of(self, listed: records.Row) -> records.Row | None:
        """The set's row for a row of a collection; None for an image that is not in the set.

        It keeps the split, the opinions and the place of the listed row.
        """
        return listed

    def _collected(self) -> list[records.Row] | None:
        # The rows of the set in a collection; None if no collection is found.
        table, word = self.in_collections
        collection = collections.pyiqa(self.root, table) if table else None
        if collection is None and word:
            collection = collections.json_lists(self.root, word)
        if collection is None:
            return None
        source, entries = collection
        self.notes.append(f"{self.name}: read from {source}")
        rows = [row for row in map(self.row_of, entries) if row is not None]
        self.placed = {row.image: row.path for row in rows if row.path is not None}
        return rows

    def _record(self, row: records.Row, name: str, path: Path) -> records.Record:
        # The row's record, with what is known of the opinions behind its score.
        deviation = formats.number(row.deviation)
        votes = row.votes or self.votes or math.nan
        # Anything but a number counts as unknown, and so do less than one opinion.
        is_known = 0 <= deviation < math.inf
        error = deviation / math.sqrt(votes) if is_known and 1 <= votes < math.inf else None
        # A standard error, of one vote, does not say how far the opinions lie apart.
        spread = deviation if is_known and votes != 1 else None
        return records.Record(
            name, path, row.score, row.split or "test", row.group, row.kind, error, spread
        )

    def read(
        self, splits: tuple[str, ...] = ("train", "test"), held_out: bool = False
    ) -> records.DataSet:
        """The records of these splits. Images of other splits need not exist. Raises UserError.

        held_out: whether some of the training images will be drawn for validation.
        """
        rows = self.listed
        is_split = None not in _splits(rows)
        is_random = held_out or not is_split
        named = self._with_contents(rows, is_random)
        # If nothing is drawn, the records keep the fingerprints that they have always had.
        if is_random:
            rows = named
        if not is_split:
            rows = self._draw_split(rows)
        elif "train" in splits:
            self._note_shared_contents(named)
        return self._data_set([row for row in rows if row.split in splits], splits)

    def read_all_as_test(self) -> records.DataSet:
        """All records as test images, whatever their split. Raises UserError."""
        data = self._data_set(self.listed, ())
        return replace(data, records=[replace(record, split="test") for record in data.records])

    def read_for_test(
        self, split: str = "auto", trained_on: bool = False
    ) -> tuple[records.DataSet, str]:
        """The set's images to test on, and a text that says which ones they are.

        split: auto, test or all. If the set comes with a split, auto means its test images, so that
        all models are tested on the same images. If not, auto means the test images of the run's
        random split for a set that the model was trained on, and all images for any other set.
        trained_on: whether the model was trained on the set. Raises UserError.
        """
        has_test_split = "test" in _splits(self.listed)
        if split == "all" or (split == "auto" and not has_test_split and not trained_on):
            data = self.read_all_as_test()
            selection = "all, its training images among them" if trained_on else "all"
        else:
            data = self.read(("test",))
            selection = (
                "its test split" if has_test_split else f"random test split, seed {self.seed}"
            )
        data.note_undefined()
        return data, selection

    @cached_property
    def listed(self) -> list[records.Row]:
        """All rows that the set's files list, of all splits. Raises UserError."""
        if not self.root.exists():
            raise errors.UserError(
                f"{self.name}: no {self.form} {self.root}; expected {self.expects}{self.source}"
            )
        try:
            rows = list(self.rows())
        except MissingFile:
            rows = self._collected()
            if rows is None:
                raise
        if not rows:
            raise errors.UserError(
                f"{self.name}: {self.root} lists no images; expected {self.expects}"
            )
        formats.refuse(
            [row.image for row in rows if formats.leaves_its_folder(row.image)],
            self.root,
            f"image name leaves {self.place}",
            f"image names leave {self.place}",
            self.elsewhere,
        )
        return rows

    def _data_set(self, rows: list[records.Row], splits: tuple[str, ...]) -> records.DataSet:
        formats.refuse(
            [row.image for row in rows if not math.isfinite(row.score)],
            self.name,
            "score is not a number",
            "scores are not numbers",
        )
        present = _splits(rows)
        for split in splits:
            if split == "val" and split not in present:
                raise errors.UserError(
                    f"{self.name}: {self.root} names no validation images; give --val_fraction F"
                )
            if split not in present:
                raise errors.UserError(
                    f"{self.name}: the {split} split of {self.root} is empty{self.why_empty}"
                )
        named_paths = self._files(rows)
        counts = Counter(name for name, _ in named_paths)
        formats.refuse(
            [name for name, count in counts.items() if count > 1],
            self.name,
            "image is listed twice",
            "images are listed twice",
        )
        found_records = [
            self._record(row, name, path)
            for row, (name, path) in zip(rows, named_paths, strict=True)
        ]
        return records.DataSet(
            self.name,
            found_records,
            self.higher_is_better and not self.lower_is_better,
            self.notes,
            self.nominal_range,
        )

    def contents(self, rows: list[records.Row]) -> dict[str, str]:
        """Image -> content, from other sources than the rows, for a set that needs them."""
        return {}

    def _with_contents(self, rows: list[records.Row], is_random: bool) -> list[records.Row]:
        """The rows with the contents that a random split must keep together.

        With `allow_shared_content` it need not, and the rows stay as they are. Raises UserError if
        a split is drawn and the contents are not known.
        """
        is_image_by_image = is_random and self.allow_shared_content
        if self.contents_from is None or is_image_by_image or all(row.group for row in rows):
            return rows
        contents = self.contents(rows)
        rows = [replace(row, group=row.group or contents.get(row.image)) for row in rows]
        unknown = sum(not row.group for row in rows)
        if unknown and is_random:
            raise errors.UserError(
                f"{self.name}: which of {errors.counted(unknown, 'image')} share content is not "
                "known, and a random split would have the same content on both sides; expected "
                f"{self.contents_from}; --allow_shared_content splits image by image all the same "
                "(evaluate.py: --split all)"
            )
        return rows

    def _note_shared_contents(self, rows: list[records.Row]) -> None:
        # Note if the set's own split has the same content in training and elsewhere.
        training = {row.group for row in rows if row.split == "train"} - {None}
        shared = training & {row.group for row in rows if row.split != "train"}
        if shared:
            self.notes.append(
                f"{self.name}: its own split has {len(shared)} of "
                f"{errors.counted(len(training), 'training content')} on the other side too"
            )

    def _draw_split(self, rows: list[records.Row]) -> list[records.Row]:
        # The rows with a random 80 % of the contents in train, and the others in test.
        if self.seed is None:
            raise errors.UserError(
                f"{self.name}: comes without a split, and the seed of the run's split is not "
                "known; give --seed N or --split all"
            )
        contents = records.shuffled((row.group or row.image for row in rows), self.seed)
        if len(contents) == 1:
            self.why_empty = (
                f": drawing a split takes two contents, and all images have the same, {contents[0]}"
            )
        # Each of the two splits gets at least one content.
        share = min(max(round(0.8 * len(contents)), 1), len(contents) - 1)
        split_of = dict.fromkeys(contents, "test") | dict.fromkeys(contents[:share], "train")
        unit = "images, not of contents" if self.contents_from else "images"
        if any(row.group for row in rows):
            unit = "reference contents"
        self.notes.append(
            f"{self.name}: no split given; "
            f"random 80/20 split of {len(contents)} {unit}, seed {self.seed}{self.advice}"
        )
        return [replace(row, split=split_of[row.group or row.image]) for row in rows]

    def _files(self, rows: list[records.Row]) -> list[tuple[str, Path]]:
        """The name and path of each row's image.

        It is where a collection says, else in the first layout of `image_folders` that holds
        images.
        """
        if self.placed:
            missing = [row.image for row in rows if not self.placed[row.image].is_file()]
            if missing:
                raise errors.UserError(
                    f"{self.name}: {len(missing)} of {errors.counted(len(rows), 'image')}, "
                    f"not in {self.placed[missing[0]].parent}: {errors.first_five(missing)}"
                )
            return [(row.image, self.placed[row.image]) for row in rows]
        layouts = self._layouts()
        layout = next(filter(self._images_in, layouts), layouts[0])
        images = self._images_in(layout)
        validation = [row for row in rows if row.split == "val"]
        if _missing(validation, images):
            # The public lists leave them out, so they are often in the folder of another layout.
            for other_layout in layouts:
                images = self._images_in(other_layout) | images
        formats.refuse(
            _missing(validation, images),
            self.name,
            f"validation image is not in {self.root}",
            f"validation images are not in {self.root}",
            "; give --val_fraction F to take some of the training images instead",
        )
        folders = " and ".join(map(str, layout.values()))
        total = f"of {errors.counted(len(rows), 'image')}"
        missing = _missing(rows, images)
        formats.refuse(
            missing, self.name, f"{total} is not in {folders}", f"{total} are not in {folders}"
        )
        return [images.get(row.image) or images[row.image.lower()] for row in rows]

    def _layouts(self) -> list[dict[str, Path]]:
        # The layouts of `image_folders` with all their folders, each as name -> path.
        layouts = []
        for folders in self.image_folders:
            layout = {folder: self._locate(folder) for folder in folders}
            if all(map(Path.is_dir, layout.values())):
                layouts.append(layout)
        if not layouts:
            choices = "/ or ".join(map("/+".join, self.image_folders)) + "/"
            raise errors.UserError(f"{self.name}: no images in {self.root}; expected {choices}")
        return layouts

    def _images_in(self, layout: Mapping[str, Path]) -> dict[str, tuple[str, Path]]:
        # The name and path of each image in these folders, by name and by name in lower case.
        images = {}
        in_lower_case = {}
        for folder, place in layout.items():
            for path in place.iterdir():
                if path.suffix.lower() in records.IMAGE_SUFFIXES:
                    name = f"{folder}/{path.name}" if self.names_have_folders else path.name
                    images[name] = in_lower_case[name.lower()] = (name, path)
        # An exact name has priority over another image's name in lower case.
        return in_lower_case | images

    def _locate(self, name: str) -> Path:
        """The file or folder of this name below the root, in upper or lower case."""
        path = self.root
        for part in PurePosixPath(name).parts:
            path = _in_any_case(path / part)
        return path

    def _first_file(self, *names: str) -> Path:
        """The first of these files that exists. Raises MissingFile."""
        for path in map(self._locate, names):
            if path.is_file():
                return path
        raise MissingFile(
            f"{self.name}: no {' or '.join(names)} in {self.root}; expected {self.expects}"
        )


def _splits(rows: list[records.Row]) -> set[str | None]:
    return {row.split for row in rows}


def _missing(rows: list[records.Row], images: Mapping[str, object]) -> list[str]:
    return [
        row.image for row in rows if row.image not in images and row.image.lower() not in images
    ]


def _in_any_case(path: Path) -> Path:
    # The path itself if it exists, else one beside it that differs in case, if there is one.
    # Some systems that sets are packed on do not tell upper and lower case apart.
    if path.exists() or not path.parent.is_dir():
        return path
    name = path.name.lower()
    return next(filter(lambda other: other.name.lower() == name, path.parent.iterdir()), path)
