"""Readers of the sets of photographs and of generated images, without known distortions."""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, starmap
from pathlib import Path

from hyperiqa.base.errors import UserError, counted, first_five
from hyperiqa.datasets import formats, reader, records

SCORES = "koniq10k_scores_and_distributions.csv"
SETS = "koniq10k_distributions_sets.csv"
# SPAQ's files of standard deviations: lines, or rows below a header, of image, MOS and deviation.
SPAQ_DEVIATIONS = (
    "SPAQ_mos_std.txt",
    "Annotations/SPAQ_mos_std.txt",
    "Annotations/MOS Std and Image attribute scores.xlsx",
)


def _read_sets(path: Path, *columns: str) -> list[dict[str, str]]:
    # Rows of a table with the columns image_name and set (the split), and with these columns.
    # Raises UserError, also for an unknown name of a split.
    rows = list(formats.read_table(path, ("image_name", *columns, "set")))
    unknown = sorted({row["set"] for row in rows} - records.SPLIT_NAMES.keys())
    if unknown:
        raise UserError(
            f"{path}: column set: expected training, validation or test, "
            f"found {first_five(unknown)}"
        )
    return rows


class KonIQ10k(reader.Reader):
    """KonIQ-10k (Hosu et al., IEEE TIP 2020): 10,073 images 1024x768, MOS 0..100."""

    name = "koniq-10k"
    in_collections = ("KonIQ10k", "koniq")
    expects = (
        f"{SCORES}, images in train/+test/, 1024x768/ or 512x384/, "
        f"and for the official split koniq_train.json+koniq_test.json or {SETS}"
    )
    image_folders = (
        ("train", "test"),
        ("1024x768",),
        ("512x384",),
        # Unpacking the authors' archives may also leave the folder of images inside a folder that
        # is named after the archive.
        ("koniq10k_1024x768/1024x768",),
        ("koniq10k_1024x768",),
        ("1024x768/1024x768",),
        ("koniq10k_512x384/512x384",),
        ("koniq10k_512x384",),
        ("512x384/512x384",),
    )
    source = "; get it from https://database.mmsp-kn.de/koniq-10k-database.html"

    def rows(self) -> list[records.Row]:
        scored = self._scored()
        split = self._split(scored)
        unlisted = len(scored.keys() - split.keys())
        if unlisted:
            self.notes.append(
                f"{self.name}: {counted(unlisted, 'image of the CSV is', 'images of the CSV are')} "
                "in no split and left out"
            )
        formats.refuse(
            [name for name in split if name not in scored],
            self.name,
            f"image of the split has no score in {SCORES}",
            f"images of the split have no score in {SCORES}",
        )
        return [replace(scored[name], split=part) for name, part in split.items()]

    def _collected(self) -> list[records.Row] | None:
        rows = super()._collected()
        # Some lists give the mean opinions instead of MOS_zscore.
        if rows and max(row.score for row in rows) <= 5:
            self.nominal_range = (1.0, 5.0)
        return rows

    def _scored(self) -> dict[str, records.Row]:
        # Image -> its row, without a split. The MOS are those of the score file or, if it is
        # missing, of the sets file, which gives them with 12 digits.
        path = self._first_file(SCORES, SETS)
        column = "MOS_zscore"
        hint = ""
        if path.name.lower() == SETS:
            column = "MOS"
            hint = f"; {SCORES} is missing"
            self.notes.append(f"{self.name}: {SCORES} is missing; scores are the MOS of {SETS}")
        lines = list(
            formats.read_table(path, ("image_name", column), ("MOS", "SD", "c_total"), hint)
        )
        # From the opinions of 1..5 to the scores of 0..100.
        slope = formats.slope_of(
            [formats.number(line.get("MOS_zscore")) for line in lines],
            [formats.number(line.get("MOS")) for line in lines],
        )
        return {
            line["image_name"]: records.Row(
                line["image_name"],
                formats.number(line[column]),
                deviation=slope * formats.number(line.get("SD")),
                votes=formats.number(line.get("c_total")),
            )
            for line in lines
        }

    def _split(self, images: Iterable[str]) -> dict[str, str | None]:
        # Image -> split, from the JSON lists or, if they are missing, the official sets file. If
        # both are missing, the split of all `images` is None, which means that it must be drawn.
        names = ("koniq_train.json", "koniq_test.json")
        present = list(filter(Path.exists, map(self._locate, names)))
        if len(present) == 1:
            raise UserError(
                f"{self.name}: {present[0]} needs its twin; "
                "expected koniq_train.json and koniq_test.json"
            )
        path = self._locate(SETS)
        official = dict.fromkeys(images)
        if path.exists():
            official = {
                row["image_name"]: records.SPLIT_NAMES[row["set"]] for row in _read_sets(path)
            }
        if not present:
            return official
        train, test = map(formats.read_json_scores, present)
        formats.refuse(
            sorted(train.keys() & test.keys()),
            self.name,
            "image is in both JSON lists",
            "images are in both JSON lists",
        )
        split = dict.fromkeys(train, "train") | dict.fromkeys(test, "test")
        # The lists leave out the official validation images, which a run can select its epoch on.
        validation = {name for name, part in official.items() if part == "val"}
        return split | dict.fromkeys(sorted(validation - split.keys()), "val")


class SPAQ(reader.Reader):
    """SPAQ (Fang et al., CVPR 2020): photographs by smartphones, MOS 0..100.

    They are either the 2,224 test images that the public code lists in spaq_test.json, or the whole
    release of 11,125. Records must tell the two apart, so the release has a name of its own there.

    Standard deviations of the opinions are in a file or a workbook of their own, which the authors
    publish beside the release (their repository's issues 18 and 35).
    """

    name = "spaq"
    in_collections = ("SPAQ", "spaq")
    # How many opinions each image has is not published, only that there are at least 15.
    votes = 15
    expects = (
        "spaq_test.json with its images beside it or in TestImage/, or the official release: "
        "TestImage/ and Annotations/MOS and Image attribute scores.xlsx"
    )
    image_folders = (("TestImage",), ("",))

    def _collected(self) -> list[records.Row] | None:
        rows = super()._collected()
        # Of the collections, only pyiqa's table is of the whole release. It places no images.
        if rows and not self.placed:
            self.name = "spaq-official"
        return rows and self._with_deviations(rows)

    def rows(self) -> list[records.Row]:
        path = self._first_file("spaq_test.json", "Annotations/MOS and Image attribute scores.xlsx")
        if path.suffix.lower() == ".json":
            return self._with_deviations(
                starmap(records.Row, formats.read_json_scores(path).items())
            )
        self.name = "spaq-official"
        self.notes.append(
            "spaq-official: the official release of SPAQ, not the test images of spaq_test.json"
        )
        cells = formats.under_header(
            path, formats.read_sheet(path, self.name), ("Image name", "MOS")
        )
        return self._with_deviations(
            records.Row(formats.cell_text(name), formats.number(score)) for name, score in cells
        )

    def _with_deviations(self, rows: Iterable[records.Row]) -> list[records.Row]:
        # The rows with the standard deviations of their opinions, where a file lists them.
        rows = list(rows)
        path = next(filter(Path.is_file, map(self._locate, SPAQ_DEVIATIONS)), None)
        if path is not None:
            listed = self._read_deviations(path)
            rows = [self._with_deviation(row, *listed.get(row.image, (None, None))) for row in rows]
        known = sum(formats.number(row.deviation) > 0 for row in rows)
        if path is not None or known:
            self.notes.append(
                f"{self.name}: standard errors of {known} of {counted(len(rows), 'MOS', 'MOS')}, "
                f"for {self.votes} opinions an image: no image has fewer, so that the errors may "
                "be smaller"
            )
        return rows

    def _with_deviation(self, row: records.Row, mos: object, deviation: object) -> records.Row:
        # With another MOS, by more than the files' rounding, it is of other opinions or on another
        # scale. Opinions on a scale of 100 are never all the same: the authors call the few zeros
        # of their file errors.
        fits = abs(formats.number(mos) - row.score) <= 0.5 and formats.number(deviation) > 0
        return replace(row, deviation=deviation if fits else None)

    def _read_deviations(self, path: Path) -> dict[str, tuple]:
        # Image -> its MOS and the standard deviation of its opinions.
        if path.suffix.lower() == ".xlsx":
            lines = [row[:3] for row in formats.read_sheet(path, self.name)[1:]]
        else:
            lines = [tuple(line.split()) for line in formats.read_lines(path)]
        formats.refuse(
            [" ".join(map(str, words)) for words in lines if len(words) != 3],
            path,
            "line is not an image, its MOS and a standard deviation",
            "lines are not an image, its MOS and a standard deviation",
        )
        return {formats.cell_text(name): (mos, deviation) for name, mos, deviation in lines}


class AGIQA3k(reader.Reader):
    """AGIQA-3K (Li et al., IEEE TCSVT 2024): 2,982 generated images, MOS 0..5 of their quality.

    Images of one prompt show the same content. The JSON lists do not give the prompts, but the
    names of the images end in their numbers: the 2,982 rows of data.csv have 300 numbers for 300
    prompts.
    """

    name = "agiqa-3k"
    in_collections = ("", "agi")
    votes = 21
    contents_from = "data.csv with every prompt, or names such as AttnGAN_normal_000.jpg"
    nominal_range = (0.0, 5.0)
    expects = "agiqa_test.json or data.csv, and images in images/ or beside it"
    image_folders = (("images",), ("",))

    def rows(self) -> list[records.Row]:
        path = self._first_file("agiqa_test.json", "data.csv")
        if path.suffix.lower() == ".json":
            return list(starmap(records.Row, formats.read_json_scores(path).items()))
        return [
            records.Row(
                line["name"],
                formats.number(line["mos_quality"]),
                group=line["prompt"] or None,
                deviation=line.get("std_quality"),
            )
            for line in formats.read_table(
                path, ("name", "prompt", "mos_quality"), ("std_quality",)
            )
        ]

    def contents(self, rows: list[records.Row]) -> dict[str, str]:
        # If some rows have prompts, a number could stand for one of these.
        if any(row.group for row in rows):
            return {}
        matches = {row.image: re.fullmatch(r".+_(\d{3})\.\w+", row.image) for row in rows}
        return {image: match[1] for image, match in matches.items() if match}


class LIVEC(reader.Reader):
    """LIVE In the Wild Image Quality Challenge (Ghadiyaram and Bovik, IEEE TIP 2016).

    1,162 photographs, MOS 0..100.
    """

    name = "livec"
    resize = "none"
    expects = "Data/AllImages_release.mat, Data/AllMOS_release.mat and Images/"
    image_folders = (("Images",),)
    in_collections = ("LIVEChallenge", "livec")
    # The mean number of opinions per image.
    votes = 175

    def rows(self) -> list[records.Row]:
        files = {
            variable: self._first_file(f"Data/{variable}.mat")
            for variable in ("AllImages_release", "AllMOS_release")
        }
        deviations = self._locate("Data/AllStdDev_release.mat")
        if deviations.exists():
            files["AllStdDev_release"] = deviations
        # Each file holds one variable, so that its rows have one value.
        columns = {
            variable: list(chain.from_iterable(formats.read_mat(path, variable)))
            for variable, path in files.items()
        }
        return [
            records.Row(
                str(image), formats.number(score), deviation=opinions[0] if opinions else None
            )
            for image, score, *opinions in formats.aligned(self.root / "Data", columns)
            if self._is_tested(str(image))
        ]

    def row_of(self, listed: records.Row) -> records.Row | None:
        return listed if self._is_tested(listed.image) else None

    @staticmethod
    def _is_tested(name: str) -> bool:
        # Whether an image was rated in the test: the observers trained on t1 to t7.
        return not re.fullmatch(r"t[1-7]\.bmp", name, re.IGNORECASE)


class BID(reader.Reader):
    """BID (Ciancio et al., IEEE TIP 2011): 586 blurred photographs, MOS 0..5."""

    name = "bid"
    nominal_range = (0.0, 5.0)
    resize = "512x512"
    expects = "DatabaseGrades.xlsx and DatabaseImage0001.JPG … beside it or in ImageDatabase/"
    image_folders = (("ImageDatabase",), ("",))

    def rows(self) -> list[records.Row]:
        path = self._first_file("DatabaseGrades.xlsx")
        # The first two columns are the image's number and its mean grade.
        cells = [(row + (None, None))[:2] for row in formats.read_sheet(path, self.name)[1:]]
        unnumbered = [image for image, _ in cells if not formats.number(image).is_integer()]
        if unnumbered:
            raise UserError(
                f"{path}: column 1: expected image numbers, found {first_five(unnumbered)}"
            )
        return [
            records.Row(f"DatabaseImage{int(formats.number(image)):04d}.JPG", formats.number(grade))
            for image, grade in cells
        ]


class FLIVE(reader.Reader):
    """FLIVE, PaQ-2-PiQ's data set (Ying et al., CVPR 2020): 39,810 photographs, MOS 0..100.

    The photographs have many sizes. The official test images are listed in labels640.csv, and the
    official validation images are the valid ones of labels=640_padded.csv. The patches of FLIVE are
    not read.
    """

    name = "flive"
    names_have_folders = True
    expects = (
        "labels_image.csv, for the official split labels640.csv and labels=640_padded.csv, "
        "and their images"
    )
    image_folders = (("voc_emotic_ava", "blur_dataset", "EE371R"),)

    def rows(self) -> list[records.Row]:
        database = self._locate("database")
        if database.is_dir():
            self.root = database
        split = self._official_split()
        # With an official split, all other images are for training. Without one, it is drawn.
        default = "train" if split else None
        return [
            records.Row(line["name"], formats.number(line["mos"]), split.get(line["name"], default))
            for line in formats.read_table(self._first_file("labels_image.csv"), ("name", "mos"))
        ]

    def _official_split(self) -> dict[str, str]:
        # Image -> split of the images that the official split lists; {} if it is missing.
        test = self._locate("labels640.csv")
        if not test.exists():
            return {}
        split = {line["name_image"]: "test" for line in formats.read_table(test, ("name_image",))}
        padded = self._locate("labels=640_padded.csv")
        if split and padded.exists():
            for line in formats.read_table(padded, ("name_image", "is_valid")):
                is_valid = line["is_valid"].lower() in ("true", "1")
                split[line["name_image"]] = "val" if is_valid else "train"
        return split


class UHDIQA(reader.Reader):
    """UHD-IQA (Hosu et al., ECCV 2024 workshops): 6,073 4K photographs, MOS 0..1, with a split."""

    name = "uhd-iqa"
    nominal_range = (0.0, 1.0)
    names_have_folders = True
    expects = (
        "uhd-iqa-metadata.csv or the challenge's uhd-iqa-training-metadata.csv; "
        "training/, validation/, test/"
    )
    image_folders = (("training", "validation", "test"), ("training", "validation"), ("training",))

    def rows(self) -> list[records.Row]:
        path = self._first_file("uhd-iqa-metadata.csv", "uhd-iqa-training-metadata.csv")
        lines = _read_sets(path, "quality_mos")
        # The challenge's table has only training images, of which a split is then drawn.
        split_names = records.SPLIT_NAMES if len({line["set"] for line in lines}) > 1 else {}
        return [
            records.Row(
                f"{line['set']}/{line['image_name']}",
                formats.number(line["quality_mos"]),
                split_names.get(line["set"]),
            )
            for line in lines
        ]


class AGIQA20k(reader.Reader):
    """AIGIQA-20K (Li et al., CVPR 2024 workshops, NTIRE's challenge): 20,000 generated images.

    MOS 0..5. Tables without scores, such as the challenge's own for validation, are skipped. A
    drawn split keeps the images of one prompt together.
    """

    name = "agiqa-20k"
    nominal_range = (0.0, 5.0)
    contents_from = "a prompt in every row"
    expects = (
        "info_train.xlsx or .csv (and _val, _test) with name, prompt, mos, "
        "and images in train/, val/, test/ or images/"
    )
    image_folders = (("train", "val", "test"), ("train", "val"), ("train",), ("images",))

    def rows(self) -> list[records.Row]:
        suffix = self._first_file("info_train.csv", "info_train.xlsx").suffix
        rows = []
        for split in ("train", "val", "test"):
            path = self._locate(f"info_{split}{suffix}")
            if path.exists():
                rows += [
                    records.Row(name, formats.number(mos), split, prompt or None)
                    for name, prompt, mos in self._scored(path)
                ]
        # Without scored test images, a split of the others is drawn.
        if {"train", "test"} <= {row.split for row in rows}:
            return rows
        return [replace(row, split=None) for row in rows]

    def _scored(self, path: Path) -> list[tuple[str, str, object]]:
        # (name, prompt, score) of a table's rows; an empty list if it has no scores.
        if path.suffix.lower() == ".csv":
            return [
                (line["name"], line["prompt"], line["mos"])
                for line in formats.read_table(path, ("name", "prompt"), ("mos",))
                if "mos" in line
            ]
        sheet = formats.read_sheet(path, self.name)
        if not any(str(cell).strip().lower() == "mos" for cell in sheet[0]):
            return []
        return [
            (formats.cell_text(name), formats.cell_text(prompt), mos)
            for name, prompt, mos in formats.under_header(path, sheet, ("name", "prompt", "mos"))
        ]
