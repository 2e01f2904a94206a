"""The reader of any CSV file with a column of images and a column of scores."""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from hyperiqa.base.errors import UserError, first_five
from hyperiqa.datasets.authentic import SPLIT_NAMES
from hyperiqa.datasets.formats import number, read_table
from hyperiqa.datasets.reader import Reader
from hyperiqa.datasets.records import USUAL, Row


class CSVTable(Reader):
    """Any CSV with columns image,mos and optional split (train, val, test) and group, or as `columns` says.
    Images are relative to its folder or to `columns.image_root`; absolute paths below that will do as well."""

    name, nominal_range = "csv", None
    expects = "a CSV file with columns image,mos and optional split,group"
    form, elsewhere = "file", "; --image_root FOLDER names another folder"

    @property
    def folder(self) -> Path:
        """What image paths start from."""
        return self.columns.image_root or self.root.parent

    def rows(self) -> list[Row]:
        if self.root.is_dir():
            raise UserError(f"--dataset_path {self.root}: expected a CSV file, found a folder")
        if not self.folder.is_dir():
            raise UserError(f"{self.place}: no such folder")
        c = self.columns
        image, mos, *more = c.image_column, c.score_column, c.split_column, c.group_column
        named = [
            column for column in more if column not in (USUAL.split_column, USUAL.group_column)
        ]
        hint = "; --image_column, --score_column, --split_column and --group_column name others"
        lines = list(read_table(self.root, (image, mos, *named), more, hint))
        if not all(line[image] for line in lines):
            raise UserError(
                f"{self.root}: column {image} is empty in {sum(not line[image] for line in lines)} rows"
            )
        if commas := [line[mos] for line in lines if re.fullmatch(r"[-+\d.]*,\d+", line[mos])]:
            found = (
                f"{len(commas)} scores have a decimal comma, such as {commas[0]}; expected a point"
            )
            raise UserError(f"{self.root}: column {mos}: {found}")
        return [
            Row(self._name(x[image]), number(x[mos]), self._part(x), x.get(c.group_column) or None)
            for x in lines
        ]

    def _part(self, line: Mapping[str, str]) -> str | None:
        column = self.columns.split_column
        if (text := line.get(column)) is not None and text.lower() not in SPLIT_NAMES:
            raise UserError(
                f"{self.root}: column {column}: expected train, val or test, found {text!r}"
            )
        return None if text is None else SPLIT_NAMES[text.lower()]

    def _name(self, text: str) -> str:
        """The normalised path below `folder`; one that is not below it as it is."""
        path, folder = (
            PurePath(os.path.normpath(text.replace("\\", "/"))),
            os.path.normpath(self.folder.absolute()),
        )
        return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()

    def _spelt(self, image: str) -> Path | None:
        """Where an image is, its suffix in another case where only that is there; None: nowhere."""
        path = self.folder / image
        names = (path.name, path.stem + path.suffix.lower(), path.stem + path.suffix.upper())
        return next(filter(os.path.isfile, (path.parent / name for name in names)), None)

    def _files(self, rows: list[Row]) -> list[tuple[str, Path]]:
        found = {row.image: self._spelt(row.image) for row in rows}
        if missing := [image for image, path in found.items() if path is None]:
            of = f"{len(missing)} of {len(rows)} images are not in {self.place}"
            raise UserError(f"{self.root}: {of}: {first_five(missing)}{self.elsewhere}")
        same: dict[tuple[int, int], list[str]] = {}
        for image, path in found.items():
            same.setdefault((path.stat().st_dev, path.stat().st_ino), []).append(image)
        if twice := [" = ".join(names) for names in same.values() if len(names) > 1]:
            raise UserError(
                f"{self.root}: {len(twice)} images are listed by several names: {first_five(twice)}"
            )
        return [
            (found[row.image].relative_to(self.folder).as_posix(), found[row.image]) for row in rows
        ]
