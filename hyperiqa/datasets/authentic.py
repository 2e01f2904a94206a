"""Readers of the sets whose images were not distorted in known ways: photographs, and generated images."""

import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

from hyperiqa.base.errors import UserError, first_five
from hyperiqa.datasets.collections import Listed
from hyperiqa.datasets.formats import (
    aligned,
    cell_text,
    number,
    read_json_scores,
    read_mat,
    read_sheet,
    read_table,
    under_header,
)
from hyperiqa.datasets.reader import Reader
from hyperiqa.datasets.records import Row

SCORES, SETS = "koniq10k_scores_and_distributions.csv", "koniq10k_distributions_sets.csv"


# What unpacking the authors' archives also leaves: folders of the archives' names around those of the images.
UNPACKED = tuple(
    (form.format(size),)
    for size in ("1024x768", "512x384")
    for form in ("koniq10k_{0}/{0}", "koniq10k_{0}", "{0}/{0}")
)


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "test": "test",
}


def _read_sets(path: Path, *more: str) -> list[dict[str, str]]:
    """Rows of a table with image_name, `more` and set, of which each must be known. Raises UserError."""
    rows = list(read_table(path, ("image_name", *more, "set")))
    if strange := sorted({row["set"] for row in rows} - SPLIT_NAMES.keys()):
        raise UserError(
            f"{path}: column set: expected training, validation or test, found {first_five(strange)}"
        )
    return rows


class KonIQ10k(Reader):
    """KonIQ-10k (Hosu et al., IEEE TIP 2020): 10,073 images 1024x768, MOS 0..100."""

    name, table, word = "koniq-10k", "KonIQ10k", "koniq"
    lists = f"koniq_train.json+koniq_test.json or {SETS}"
    expects = f"{SCORES}, images in train/+test/, 1024x768/ or 512x384/, and for the official split {lists}"
    image_folders = (("train", "test"), ("1024x768",), ("512x384",), *UNPACKED)

    def rows(self) -> list[Row]:
        scores, errors = self._scores(), self._errors()
        split = self._split(scores)
        if split is None:
            return [Row(name, score, error=errors.get(name)) for name, score in scores.items()]
        if unlisted := len(scores.keys() - split.keys()):
            self.notes.append(
                f"{self.name}: {unlisted} images of the CSV are in no split and left out"
            )
        if unscored := [name for name in split if name not in scores]:
            found = f"{len(unscored)} images of the split have no score in {SCORES}: {first_five(unscored)}"
            raise UserError(f"{self.name}: {found}")
        return [
            Row(name, scores[name], part, error=errors.get(name)) for name, part in split.items()
        ]

    def _collected(self) -> list[Row] | None:
        rows = super()._collected()
        if (
            rows and max(row.score for row in rows) <= 5
        ):  # a list of the mean opinions, not of MOS_zscore
            self.nominal_range = (1.0, 5.0)
        return rows

    def _scores(self) -> dict[str, float]:
        """Image -> MOS of 0..100: from the score file, else from the sets file, which has them to 12 digits."""
        path, column, more = self._file(SCORES, SETS), "MOS_zscore", ""
        if path.name.lower() == SETS:
            column, more = "MOS", f"; {SCORES} is missing"
            self.notes.append(f"{self.name}: {SCORES} is missing; scores are the MOS of {SETS}")
        return {
            row["image_name"]: number(row[column])
            for row in read_table(path, ("image_name", column), (), more)
        }

    def _errors(self) -> dict[str, float]:
        """Image -> standard error of its MOS of 0..100: the SD / sqrt(votes) of the score file, of its MOS of 1..5,
        times the slope of MOS_zscore on that; {} where the file lacks these columns."""
        path, columns = self._there(SCORES), ("image_name", "MOS_zscore", "MOS", "SD", "c_total")
        try:
            rows = list(read_table(path, columns[:1], columns[1:])) if path.exists() else []
            scores, mos, sd, votes = (
                [float(row[column]) for row in rows] for column in columns[1:]
            )
            slope = statistics.linear_regression(mos, scores).slope
            return {
                row["image_name"]: slope * s / math.sqrt(n) for row, s, n in zip(rows, sd, votes)
            }
        except (
            KeyError,
            ValueError,
            ZeroDivisionError,
        ):  # a column is missing, or is none of numbers
            return {}

    def _split(self, scores: dict[str, float]) -> dict[str, str] | None:
        """Image -> split: from the JSON lists, else from the official sets file, else None."""
        lists = {part: self._there(f"koniq_{part}.json") for part in ("train", "test")}
        there = [path for path in lists.values() if path.exists()]
        if len(there) == 1:
            raise UserError(
                f"{self.name}: {there[0]} needs its twin; expected koniq_train.json and koniq_test.json"
            )
        path = self._there(SETS)
        sets = (
            {row["image_name"]: SPLIT_NAMES[row["set"]] for row in _read_sets(path)}
            if path.exists()
            else None
        )
        if not there:
            return sets
        train, test = (read_json_scores(path) for path in lists.values())
        if both := train.keys() & test.keys():
            raise UserError(
                f"{self.name}: {len(both)} images are in both JSON lists: {first_five(sorted(both))}"
            )
        # The lists leave the official validation images out; those are the ones to select on.
        validation = (
            {name for name, part in (sets or {}).items() if part == "val"}
            - train.keys()
            - test.keys()
        )
        return (
            dict.fromkeys(train, "train")
            | dict.fromkeys(test, "test")
            | dict.fromkeys(sorted(validation), "val")
        )


class SPAQ(Reader):
    """SPAQ (Fang et al., CVPR 2020): photographs by smartphones, MOS 0..100.
    Either the 2,224 test images that the public code lists in spaq_test.json, or the whole release of 11,125. The
    two must not pass for one another in any record, so the release's records go by a name of their own."""

    name, table, word = "spaq", "SPAQ", "spaq"
    release = "TestImage/ and Annotations/MOS and Image attribute scores.xlsx"
    expects = f"spaq_test.json with its images beside it or in TestImage/, or the official release: {release}"
    image_folders = (("TestImage",), ("",))

    def _collected(self) -> list[Row] | None:
        if rows := super()._collected():
            self.name = (
                self.name if self.placed else "spaq-official"
            )  # pyiqa's table is of the whole release
        return rows

    def rows(self) -> list[Row]:
        path = self._file("spaq_test.json", "Annotations/MOS and Image attribute scores.xlsx")
        if path.suffix.lower() == ".json":
            return [Row(name, score) for name, score in read_json_scores(path).items()]
        self.name = "spaq-official"
        self.notes.append(
            "spaq-official: the official release of SPAQ, not the test images of spaq_test.json"
        )
        cells = under_header(path, read_sheet(path, self.name), ("Image name", "MOS"))
        return [Row(cell_text(name), number(score)) for name, score in cells]


class AGIQA3k(Reader):
    """AGIQA-3K (Li et al., IEEE TCSVT 2024): 2,982 generated images, MOS 0..5 of their quality.
    Images of one prompt show the same content. The JSON form doesn't say the prompts."""

    name, word, votes, nominal_range = "agiqa-3k", "agi", 21, (0.0, 5.0)
    expects = "agiqa_test.json or data.csv, and images in images/ or beside it"
    image_folders = (("images",), ("",))

    def rows(self) -> list[Row]:
        path = self._file("agiqa_test.json", "data.csv")
        if path.suffix.lower() == ".json":
            return [Row(name, score) for name, score in read_json_scores(path).items()]
        return [
            Row(
                x["name"],
                number(x["mos_quality"]),
                None,
                x["prompt"] or None,
                error=self.error(x.get("std_quality")),
            )
            for x in read_table(path, ("name", "prompt", "mos_quality"), ("std_quality",))
        ]


class LIVEC(Reader):
    """LIVE In the Wild Image Quality Challenge (Ghadiyaram and Bovik, IEEE TIP 2016): 1,162 photographs, MOS 0..100."""

    name, resize = "livec", "none"
    expects = "Data/AllImages_release.mat, Data/AllMOS_release.mat and Images/"
    image_folders = (("Images",),)
    table, word, votes = "LIVEChallenge", "livec", 175  # votes: on average

    def rows(self) -> list[Row]:
        files = {
            f"All{v}_release": self._file(f"Data/All{v}_release.mat") for v in ("Images", "MOS")
        }
        deviations = self._there("Data/AllStdDev_release.mat")
        files |= {"AllStdDev_release": deviations} if deviations.exists() else {}
        columns = {v: [x for (x,) in read_mat(path, v)] for v, path in files.items()}
        found = aligned(self.root / "Data", columns)
        rows = [Row(str(n), number(score), error=self.error(*d)) for n, score, *d in found]
        return [row for row in rows if self._is_tested(row.image)]

    def row_of(self, listed: Listed) -> Row | None:
        return super().row_of(listed) if self._is_tested(listed.name) else None

    @staticmethod
    def _is_tested(name: str) -> bool:
        """t1 to t7 are what the observers were trained on."""
        return not re.fullmatch(r"t[1-7]\.bmp", name, re.IGNORECASE)


class BID(Reader):
    """BID (Ciancio et al., IEEE TIP 2011): 586 blurred photographs, MOS 0..5."""

    name, nominal_range, resize = "bid", (0.0, 5.0), "512x512"
    expects = "DatabaseGrades.xlsx and DatabaseImage0001.JPG … beside it or in ImageDatabase/"
    image_folders = (("ImageDatabase",), ("",))

    def rows(self) -> list[Row]:
        path = self._file("DatabaseGrades.xlsx")
        # Below the header: the image's number, its mean grade, and more that is of no use here.
        cells = [(row + (None, None))[:2] for row in read_sheet(path, self.name)[1:]]
        if strange := [image for image, _ in cells if not number(image).is_integer()]:
            raise UserError(
                f"{path}: column 1: expected image numbers, found {first_five(strange)}"
            )
        return [
            Row(f"DatabaseImage{int(number(image)):04d}.JPG", number(grade))
            for image, grade in cells
        ]


class FLIVE(Reader):
    """FLIVE, PaQ-2-PiQ's data set (Ying et al., CVPR 2020): 39,810 photographs of many sizes, MOS 0..100.
    The official test images are those of labels640.csv, those for validation the valid ones of labels=640_padded.csv;
    the patches are not read."""

    name, names_have_folders = "flive", True
    expects = "labels_image.csv, for the official split labels640.csv and labels=640_padded.csv, and their images"
    image_folders = (("voc_emotic_ava", "blur_dataset", "EE371R"),)

    def rows(self) -> list[Row]:
        inside = self._there("database")
        self.root = inside if inside.is_dir() else self.root
        test, padded = self._there("labels640.csv"), self._there("labels=640_padded.csv")
        part = (
            {row["name_image"]: "test" for row in read_table(test, ("name_image",))}
            if test.exists()
            else {}
        )
        if part and padded.exists():
            for row in read_table(padded, ("name_image", "is_valid")):
                part[row["name_image"]] = (
                    "val" if row["is_valid"].lower() in ("true", "1") else "train"
                )
        rest, listed = (
            "train" if part else None,
            read_table(self._file("labels_image.csv"), ("name", "mos")),
        )
        return [Row(row["name"], number(row["mos"]), part.get(row["name"], rest)) for row in listed]


class UHDIQA(Reader):
    """UHD-IQA (Hosu et al., ECCV 2024 workshops): 6,073 photographs of 4K size, MOS 0..1, with a split."""

    name, nominal_range, names_have_folders = "uhd-iqa", (0.0, 1.0), True
    expects = "uhd-iqa-metadata.csv or the challenge's uhd-iqa-training-metadata.csv; training/, validation/, test/"
    image_folders = (("training", "validation", "test"), ("training", "validation"), ("training",))

    def rows(self) -> list[Row]:
        rows = _read_sets(
            self._file("uhd-iqa-metadata.csv", "uhd-iqa-training-metadata.csv"), "quality_mos"
        )
        alone = len({row["set"] for row in rows}) == 1  # the challenge's table: to be split
        split = {} if alone else SPLIT_NAMES
        return [
            Row(f"{x['set']}/{x['image_name']}", number(x["quality_mos"]), split.get(x["set"]))
            for x in rows
        ]


class AGIQA20k(Reader):
    """AIGIQA-20K (Li et al., CVPR 2024 workshops, NTIRE's challenge): 20,000 generated images, MOS 0..5.
    Tables without scores, as the challenge's for validation, are passed over; images of one prompt stay together."""

    name, nominal_range = "agiqa-20k", (0.0, 5.0)
    lists = "info_train.xlsx or .csv (and _val, _test) with name, prompt, mos"
    expects = f"{lists}, and images in train/, val/, test/ or images/"
    image_folders = (("train", "val", "test"), ("train", "val"), ("train",), ("images",))

    def rows(self) -> list[Row]:
        rows, first = [], self._file("info_train.csv", "info_train.xlsx")
        for part in ("train", "val", "test"):
            if (path := self._there(f"info_{part}{first.suffix}")).exists():
                rows += [
                    Row(name, number(mos), part, prompt or None)
                    for name, prompt, mos in self._scored(path)
                ]
        parts = {row.split for row in rows}
        return rows if {"train", "test"} <= parts else [replace(row, split=None) for row in rows]

    def _scored(self, path: Path) -> list[tuple[str, str, object]]:
        if path.suffix.lower() == ".csv":
            lines = read_table(path, ("name", "prompt"), ("mos",))
            return [(line["name"], line["prompt"], line["mos"]) for line in lines if "mos" in line]
        sheet = read_sheet(path, self.name)
        if not any(str(cell).strip().lower() == "mos" for cell in sheet[0]):
            return []
        return [
            (cell_text(n), cell_text(p), m)
            for n, p, m in under_header(path, sheet, ("name", "prompt", "mos"))
        ]
