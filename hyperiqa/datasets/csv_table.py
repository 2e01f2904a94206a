"""The reader of any CSV file with a column of images and a column of scores."""

import os
import re
from pathlib import Path, PurePath

from hyperiqa.base.errors import UserError, counted
from hyperiqa.datasets import formats, reader, records


class CSVTable(reader.Reader):
    """Any CSV with columns image, mos and optional split (train, val, test) and group.

    `columns` gives the columns other names. Image paths start from the CSV's folder or from
    `columns.image_root`; absolute paths below this folder are accepted too.
    """

    name = "csv"
    nominal_range = None
    expects = "a CSV file with columns image,mos and optional split,group"
    form = "file"
    elsewhere = "; --image_root FOLDER names another folder"
    advice = "; another seed draws another test set, so a column `split` makes figures comparable"

    @property
    def folder(self) -> Path:
        """The folder that image paths start from."""
        return self.columns.image_root or self.root.parent

    def rows(self) -> list[records.Row]:
        if self.root.is_dir():
            raise UserError(f"--dataset_path {self.root}: expected a CSV file, found a folder")
        if not self.folder.is_dir():
            raise UserError(f"{self.place}: no such folder")
        return [
            records.Row(
                self._name(line[self.columns.image_column]),
                formats.number(line[self.columns.score_column]),
                self._split(line),
                line.get(self.columns.group_column) or None,
            )
            for line in self._lines()
        ]

    def _lines(self) -> list[dict[str, str]]:
        # Each line has an image, and a score without a decimal comma.
        image = self.columns.image_column
        score = self.columns.score_column
        optional = (self.columns.split_column, self.columns.group_column)
        # A column that the user named must exist. A column with a usual name may be missing.
        named = [
            name
            for name in optional
            if name not in (records.USUAL.split_column, records.USUAL.group_column)
        ]
        hint = "; --image_column, --score_column, --split_column and --group_column name others"
        lines = list(formats.read_table(self.root, (image, score, *named), optional, hint))
        empty = sum(not line[image] for line in lines)
        if empty:
            raise UserError(f"{self.root}: column {image} is empty in {counted(empty, 'row')}")
        # Spreadsheets in many languages write 1,5. That deserves more than "is not a number".
        commas = [line[score] for line in lines if re.fullmatch(r"[-+\d.]*,\d+", line[score])]
        if commas:
            raise UserError(
                f"{self.root}: column {score}: "
                f"{counted(len(commas), 'score has', 'scores have')} a decimal comma, "
                f"such as {commas[0]}; expected a point"
            )
        return lines

    def _split(self, line: dict[str, str]) -> str | None:
        column = self.columns.split_column
        text = line.get(column)
        if text is None:
            return None
        if text.lower() not in records.SPLIT_NAMES:
            raise UserError(
                f"{self.root}: column {column}: expected train, val or test, found {text!r}"
            )
        return records.SPLIT_NAMES[text.lower()]

    def _name(self, text: str) -> str:
        # A path that is not below the folder stays as it is, and is refused later.
        path = PurePath(os.path.normpath(text.replace("\\", "/")))
        folder = os.path.normpath(self.folder.absolute())
        if path.is_relative_to(folder):
            path = path.relative_to(folder)
        return path.as_posix()

    def _find_image(self, image: str) -> Path | None:
        # The suffix may be in upper or lower case.
        path = self.folder / image
        names = (path.name, path.stem + path.suffix.lower(), path.stem + path.suffix.upper())
        return next(filter(Path.is_file, map(path.parent.joinpath, names)), None)

    def _files(self, rows: list[records.Row]) -> list[tuple[str, Path]]:
        paths = {row.image: self._find_image(row.image) for row in rows}
        total = f"of {counted(len(rows), 'image')}"
        formats.refuse(
            [image for image, path in paths.items() if path is None],
            self.root,
            f"{total} is not in {self.place}",
            f"{total} are not in {self.place}",
            self.elsewhere,
        )
        # An image with two names, by a link or by case, could be in training and test at once.
        names_of_file: dict[tuple[int, int], list[str]] = {}
        for image, path in paths.items():
            status = path.stat()
            names_of_file.setdefault((status.st_dev, status.st_ino), []).append(image)
        formats.refuse(
            [" = ".join(names) for names in names_of_file.values() if len(names) > 1],
            self.root,
            "image is listed by several names",
            "images are listed by several names",
        )
        files = [paths[row.image] for row in rows]
        return [(path.relative_to(self.folder).as_posix(), path) for path in files]
