"""Readers of the sets of synthetic distortions: references distorted in known ways, split by reference."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath

from hyperiqa.base.errors import UserError, first_five
from hyperiqa.datasets.collections import Listed
from hyperiqa.datasets.formats import (
    aligned,
    cell_text,
    number,
    read_json_scores,
    read_lines,
    read_mat,
    read_sheet,
    read_table,
    under_header,
)
from hyperiqa.datasets.reader import Reader
from hyperiqa.datasets.records import Row


class NamedByContent(Reader):
    """Base of the sets whose image names are CONTENT_KIND_LEVEL, such as I01_02_3.bmp; `kinds` from number 1 on."""

    kinds: tuple[str, ...]

    def row_of(self, listed: Listed) -> Row | None:
        return self._rows_by_name(self.root, [(listed.name, listed.score)])[0]

    def _rows_by_name(self, path: Path, scores: Iterable[tuple[str, object]]) -> list[Row]:
        rows, strange = [], []
        for name, score in scores:
            parts = re.fullmatch(r"(I\d+)_(\d+)_\d+\.\w+", name, re.IGNORECASE)
            if parts and 1 <= int(parts[2]) <= len(self.kinds):
                rows.append(
                    Row(name, number(score), None, parts[1].upper(), self.kinds[int(parts[2]) - 1])
                )
            else:
                strange.append(name)
        if strange:
            wanted = f"CONTENT_KIND_LEVEL with a kind of 1 to {len(self.kinds)}, such as I01_02_3"
            raise UserError(
                f"{path}: {len(strange)} image names are not {wanted}: {first_five(strange)}"
            )
        return rows


class KADID10k(NamedByContent):
    """KADID-10k (Lin, Hosu and Saupe, QoMEX 2019): 81 contents x 25 distortions x 5 levels.
    What its authors call dmos is the mean of opinions from 1, bad, to 5, excellent."""

    name, nominal_range = "kadid-10k", (1.0, 5.0)
    table, word, votes = "KADID10k", "kadid", 30
    expects = "kadid_test.json or dmos.csv, and images in images/ or beside it"
    image_folders = (("images",), ("",))
    kinds = (
        "gaussian blur",
        "lens blur",
        "motion blur",
        "color diffusion",
        "color shift",
        "color quantization",
        "color saturation in HSV",
        "color saturation in Lab",
        "JPEG2000 compression",
        "JPEG compression",
        "white noise",
        "white noise in color components",
        "impulse noise",
        "multiplicative noise",
        "denoising",
        "brightening",
        "darkening",
        "mean shift",
        "jitter",
        "non-eccentricity patches",
        "pixelation",
        "quantization",
        "color blocks",
        "oversharpening",
        "contrast change",
    )

    def rows(self) -> list[Row]:
        path = self._file("kadid_test.json", "dmos.csv")
        if path.suffix.lower() == ".json":
            return self._rows_by_name(path, read_json_scores(path).items())
        # What the file calls var is a standard deviation: only so do the scores be means of 30 whole votes.
        table = list(read_table(path, ("dist_img", "dmos"), ("var",)))
        rows = self._rows_by_name(path, [(line["dist_img"], line["dmos"]) for line in table])
        return [
            replace(row, error=self.error(line.get("var")))
            for row, line in zip(rows, table, strict=True)
        ]


class LIVE(Reader):
    """LIVE release 2 (Sheikh, Sabir and Bovik, IEEE TIP 2006): 779 distorted images of 29 references, DMOS.
    The score file lists all folders' images one after the other, undistorted copies (orgs = 1) among them. DMOS:
    0 and below is undistorted, 100 about the worst; the realigned scores are the authors' own correction."""

    name, table, word, resize = "live", "LIVEIQA", "live", "none"
    higher_is_better, names_have_folders = False, True
    folders = "jp2k/, jpeg/, wn/, gblur/ and fastfading/ with img1.bmp …"
    expects = f"{folders}, refnames_all.mat, and dmos_realigned.mat or dmos.mat"
    images = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    image_folders = (tuple(images),)
    kinds = {
        "jp2k": "JPEG2000 compression",
        "jpeg": "JPEG compression",
        "wn": "white noise",
        "gblur": "gaussian blur",
        "fastfading": "fast fading",
    }

    def rows(self) -> list[Row]:
        path = self._file("dmos_realigned.mat", "dmos.mat")
        scored = read_mat(
            path, "dmos_new" if path.name.lower() == "dmos_realigned.mat" else "dmos", "orgs"
        )
        columns = {
            path.name: scored,
            "refnames_all.mat": read_mat(self._file("refnames_all.mat"), "refnames_all"),
            "images of the release": [
                (folder, i) for folder, n in self.images.items() for i in range(1, n + 1)
            ],
        }
        return [
            Row(f"{folder}/img{i}.bmp", number(dmos), None, str(reference), self.kinds[folder])
            for (dmos, undistorted), (reference,), (folder, i) in aligned(self.root, columns)
            if undistorted != 1
        ]

    def row_of(self, listed: Listed) -> Row | None:
        folder, name = (listed.path or PurePath(listed.name)).parts[-2:]
        if listed.score == 0:  # an undistorted copy
            return None
        group = PurePath(listed.reference).name if listed.reference else None
        return Row(f"{folder}/{name}", listed.score, None, group, self.kinds.get(folder))


class CSIQ(Reader):
    """CSIQ (Larson and Chandler, Journal of Electronic Imaging 2010): 866 distorted images of 30 references.
    DMOS from 0, like the reference, to 1, worst. The workbook calls the distortions otherwise than the images."""

    name, table, word, resize = "csiq", "CSIQ", "csiq", "none"
    nominal_range, higher_is_better = (0.0, 1.0), False
    expects = (
        "csiq.DMOS.xlsx and dst_imgs/ with awgn/, jpeg/, jpeg2000/, fnoise/, blur/ and contrast/"
    )
    folders = tuple(
        f"dst_imgs/{kind}" for kind in ("awgn", "jpeg", "jpeg2000", "fnoise", "blur", "contrast")
    )
    image_folders = (folders, ("dst_imgs_all",), ("dst_imgs",))
    # The workbook's dst_type, letters and digits alone -> the word in image names, the distortion.
    kinds = {
        "noise": ("awgn", "white noise"),
        "awgn": ("awgn", "white noise"),
        "jpeg": ("jpeg", "JPEG compression"),
        "jpeg2000": ("jpeg2000", "JPEG2000 compression"),
        "fnoise": ("fnoise", "pink noise"),
        "blur": ("blur", "gaussian blur"),
        "contrast": ("contrast", "contrast decrease"),
    }

    def rows(self) -> list[Row]:
        path = self._file("csiq.DMOS.xlsx")
        sheet = read_sheet(path, self.name, "all_by_image")
        rows = []
        for image, kind, level, dmos in under_header(
            path, sheet, ("image", "dst_type", "dst_lev", "dmos")
        ):
            reference, known = (
                cell_text(image),
                self.kinds.get(re.sub(r"[\W_]", "", cell_text(kind).lower())),
            )
            if known is None:
                raise UserError(
                    f"{path}: column dst_type: expected {', '.join(self.kinds)}, found {kind!r}"
                )
            name = f"{reference}.{known[0]}.{cell_text(level)}.png"
            rows.append(Row(name, number(dmos), None, reference.lower(), known[1]))
        return rows

    def row_of(self, listed: Listed) -> Row | None:
        reference, kind, level = (*listed.name.split("."), "", "")[:3]
        if (known := self.kinds.get(kind.lower())) is None:
            raise UserError(
                f"{self.root}: expected names such as 1600.AWGN.1.png, found {listed.name}"
            )
        return Row(
            f"{reference}.{known[0]}.{level}.png", listed.score, None, reference.lower(), known[1]
        )


class TID2013(NamedByContent):
    """TID2013 (Ponomarenko et al., Signal Processing: Image Communication 2015): 3,000 images, MOS 0..9.
    25 contents x 24 distortions x 5 levels."""

    name, nominal_range, resize = "tid2013", (0.0, 9.0), "none"
    table, word, votes = "TID2013", "tid2013", 1
    expects = "mos_with_names.txt and distorted_images/"
    image_folders = (("distorted_images",),)
    kinds = (
        "additive gaussian noise",
        "noise in color components",
        "spatially correlated noise",
        "masked noise",
        "high frequency noise",
        "impulse noise",
        "quantization noise",
        "gaussian blur",
        "denoising",
        "JPEG compression",
        "JPEG2000 compression",
        "JPEG transmission errors",
        "JPEG2000 transmission errors",
        "non-eccentricity pattern noise",
        "local block-wise distortions",
        "mean shift",
        "contrast change",
        "change of color saturation",
        "multiplicative gaussian noise",
        "comfort noise",
        "lossy compression of noisy images",
        "color quantization with dither",
        "chromatic aberrations",
        "sparse sampling and reconstruction",
    )

    def rows(self) -> list[Row]:
        path = self._file("mos_with_names.txt")
        lines = [line.split() for line in read_lines(path)]
        if strange := [" ".join(words) for words in lines if len(words) != 2]:
            raise UserError(
                f"{path}: expected lines of MOS and image name, found {first_five(strange)}"
            )
        rows = self._rows_by_name(path, [(name, mos) for mos, name in lines])
        # In the same order, one number a line, standard errors already.
        errors = self._there("mos_std.txt")
        if not errors.exists():
            return rows
        found = aligned(self.root, {path.name: rows, errors.name: read_lines(errors)})
        return [replace(row, error=self.error(error)) for row, error in found]
