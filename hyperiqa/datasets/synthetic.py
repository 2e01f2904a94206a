"""Readers of the sets of reference images that were distorted in known ways.

A split keeps all images of a reference together.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath

from hyperiqa.base.errors import UserError, first_five
from hyperiqa.datasets import formats, reader, records


class NamedByContent(reader.Reader):
    """Base of the sets in which image names are CONTENT_KIND_LEVEL, such as I01_02_3.bmp.

    `kinds` are the distortions, which the names number from 1.
    """

    kinds: tuple[str, ...]

    def row_of(self, listed: records.Row) -> records.Row | None:
        (named,) = self._rows_by_name(self.root, [(listed.image, listed.score)])
        return replace(listed, group=named.group, kind=named.kind)

    def _rows_by_name(self, path: Path, scores: Iterable[tuple[str, object]]) -> list[records.Row]:
        # Rows of the pairs (image name, score) of the file `path`. Raises UserError for names of
        # another form.
        rows = []
        unknown = []
        for name, score in scores:
            parts = re.fullmatch(r"(I\d+)_(\d+)_\d+\.\w+", name, re.IGNORECASE)
            if parts and 1 <= int(parts[2]) <= len(self.kinds):
                rows.append(
                    records.Row(
                        name,
                        formats.number(score),
                        # The letter of one content may come in either case.
                        group=parts[1].upper(),
                        kind=self.kinds[int(parts[2]) - 1],
                    )
                )
            else:
                unknown.append(name)
        expected = f"CONTENT_KIND_LEVEL with a kind of 1 to {len(self.kinds)}, such as I01_02_3"
        formats.refuse(
            unknown,
            path,
            f"image name is not {expected}",
            f"image names are not {expected}",
        )
        return rows


class KADID10k(NamedByContent):
    """KADID-10k (Lin, Hosu and Saupe, QoMEX 2019): 81 contents x 25 distortions x 5 levels.

    The column that its authors call dmos is the mean of opinions from 1 (bad) to 5 (excellent).
    """

    name = "kadid-10k"
    nominal_range = (1.0, 5.0)
    in_collections = ("KADID10k", "kadid")
    votes = 30
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

    def rows(self) -> list[records.Row]:
        path = self._first_file("kadid_test.json", "dmos.csv")
        if path.suffix.lower() == ".json":
            return self._rows_by_name(path, formats.read_json_scores(path).items())
        lines = list(formats.read_table(path, ("dist_img", "dmos"), ("var",)))
        rows = self._rows_by_name(path, [(line["dist_img"], line["dmos"]) for line in lines])
        # The column var must be the standard deviation: only then can the scores be means of 30
        # whole votes.
        return [
            replace(row, deviation=line.get("var")) for row, line in zip(rows, lines, strict=True)
        ]


class LIVE(reader.Reader):
    """LIVE release 2 (Sheikh, Sabir and Bovik, IEEE TIP 2006): 779 images of 29 references, DMOS.

    The score file lists the images folder by folder, with undistorted copies (orgs = 1) among them.
    A DMOS of 0 or less means undistorted, about 100 is the worst. The realigned scores are the
    authors' own correction.
    """

    name = "live"
    in_collections = ("LIVEIQA", "live")
    resize = "none"
    higher_is_better = False
    names_have_folders = True
    contents_from = "refnames_all.mat beside the folders of images"
    expects = (
        "jp2k/, jpeg/, wn/, gblur/ and fastfading/ with img1.bmp …, "
        "refnames_all.mat, and dmos_realigned.mat or dmos.mat"
    )
    # Number of images in each folder, in the order of the score file.
    images = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    image_folders = (tuple(images),)
    kinds = {
        "jp2k": "JPEG2000 compression",
        "jpeg": "JPEG compression",
        "wn": "white noise",
        "gblur": "gaussian blur",
        "fastfading": "fast fading",
    }

    def rows(self) -> list[records.Row]:
        path = self._first_file("dmos_realigned.mat", "dmos.mat")
        variable = "dmos_new" if path.name.lower() == "dmos_realigned.mat" else "dmos"
        # Neither file names the images: they are in the same order as the rows.
        columns = {
            path.name: formats.read_mat(path, variable, "orgs"),
            **self._references(self._first_file("refnames_all.mat")),
        }
        return [
            records.Row(
                image,
                formats.number(dmos),
                group=str(reference),
                kind=self.kinds[image.partition("/")[0]],
            )
            for (dmos, undistorted), (reference,), image in formats.aligned(self.root, columns)
            if undistorted != 1
        ]

    def _references(self, path: Path) -> dict[str, list]:
        # The names of the references in the file refnames_all.mat, and of the release's images.
        # Both are in the same order, an entry for each image.
        return {
            path.name: formats.read_mat(path, "refnames_all"),
            "images of the release": [
                f"{folder}/img{i}.bmp"
                for folder, count in self.images.items()
                for i in range(1, count + 1)
            ],
        }

    def contents(self, rows: list[records.Row]) -> dict[str, str]:
        path = self._locate("refnames_all.mat")
        # The release has the file beside the folders of images; a collection's list may lie apart.
        if self.placed:
            path = next(iter(self.placed.values())).parents[1] / path.name
        if not path.is_file():
            return {}
        pairs = formats.aligned(path, self._references(path))
        return {image: str(reference) for (reference,), image in pairs}

    def row_of(self, listed: records.Row) -> records.Row | None:
        folder, name = (listed.path or PurePath(listed.image)).parts[-2:]
        # Undistorted copies have the score 0.
        if listed.score == 0:
            return None
        group = PurePath(listed.group).name if listed.group else None
        return replace(listed, image=f"{folder}/{name}", group=group, kind=self.kinds.get(folder))


class CSIQ(reader.Reader):
    """CSIQ (Larson and Chandler, Journal of Electronic Imaging 2010): 866 images of 30 references.

    DMOS from 0 (like the reference) to 1 (worst). The workbook and the names of the images have
    different words for the distortions.
    """

    name = "csiq"
    in_collections = ("CSIQ", "csiq")
    resize = "none"
    nominal_range = (0.0, 1.0)
    higher_is_better = False
    expects = (
        "csiq.DMOS.xlsx and dst_imgs/ with awgn/, jpeg/, jpeg2000/, fnoise/, blur/ and contrast/"
    )
    image_folders = (
        (
            "dst_imgs/awgn",
            "dst_imgs/jpeg",
            "dst_imgs/jpeg2000",
            "dst_imgs/fnoise",
            "dst_imgs/blur",
            "dst_imgs/contrast",
        ),
        ("dst_imgs_all",),
        ("dst_imgs",),
    )
    # The workbook's dst_type, letters and digits alone -> (word in image names, distortion).
    kinds = {
        "noise": ("awgn", "white noise"),
        "awgn": ("awgn", "white noise"),
        "jpeg": ("jpeg", "JPEG compression"),
        "jpeg2000": ("jpeg2000", "JPEG2000 compression"),
        "fnoise": ("fnoise", "pink noise"),
        "blur": ("blur", "gaussian blur"),
        "contrast": ("contrast", "contrast decrease"),
    }

    def rows(self) -> list[records.Row]:
        path = self._first_file("csiq.DMOS.xlsx")
        sheet = formats.read_sheet(path, self.name, "all_by_image")
        rows = []
        for image, dst_type, level, dmos in formats.under_header(
            path, sheet, ("image", "dst_type", "dst_lev", "dmos")
        ):
            type_letters = re.sub(r"[\W_]", "", formats.cell_text(dst_type).lower())
            if type_letters not in self.kinds:
                raise UserError(
                    f"{path}: column dst_type: expected {', '.join(self.kinds)}, found {dst_type!r}"
                )
            rows.append(
                self._row(
                    formats.cell_text(image),
                    type_letters,
                    formats.cell_text(level),
                    formats.number(dmos),
                )
            )
        return rows

    def row_of(self, listed: records.Row) -> records.Row | None:
        # The form is REFERENCE.KIND.LEVEL.png. A name with fewer parts gets empty ones.
        reference, kind, level = (*listed.image.split("."), "", "")[:3]
        if kind.lower() not in self.kinds:
            raise UserError(
                f"{self.root}: expected names such as 1600.AWGN.1.png, found {listed.image}"
            )
        named = self._row(reference, kind.lower(), level, listed.score)
        return replace(listed, image=named.image, group=named.group, kind=named.kind)

    def _collected(self) -> list[records.Row] | None:
        rows = super()._collected()
        scores = {row.image: row.score for row in rows or ()}
        pairs = [
            (score, scores.get(image.replace(".contrast.", ".awgn.")))
            for image, score in scores.items()
            if ".contrast." in image
        ]
        # Q-Align's csiq.json is such a list. Some pairs are equal by chance, but never all.
        if len(pairs) >= 5 and all(score == noise for score, noise in pairs):
            raise UserError(
                f"{self.name}: the list in {self.root} gives all {len(pairs)} contrast images "
                "the scores of the noise images; expected csiq.DMOS.xlsx or pyiqa's table"
            )
        return rows

    def _row(self, reference: str, kind: str, level: str, score: float) -> records.Row:
        # The row of an image. kind: a key of `kinds`.
        word, distortion = self.kinds[kind]
        return records.Row(
            f"{reference}.{word}.{level}.png", score, group=reference.lower(), kind=distortion
        )


class TID2013(NamedByContent):
    """TID2013 (Ponomarenko et al., Signal Processing: Image Communication 2015).

    3,000 images, MOS 0..9: 25 contents x 24 distortions x 5 levels.
    """

    name = "tid2013"
    nominal_range = (0.0, 9.0)
    resize = "none"
    in_collections = ("TID2013", "tid2013")
    votes = 1
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

    def rows(self) -> list[records.Row]:
        path = self._first_file("mos_with_names.txt")
        lines = [line.split() for line in formats.read_lines(path)]
        malformed = [" ".join(words) for words in lines if len(words) != 2]
        if malformed:
            raise UserError(
                f"{path}: expected lines of MOS and image name, found {first_five(malformed)}"
            )
        rows = self._rows_by_name(path, [(name, mos) for mos, name in lines])
        # This file has a standard error per line, in the same order.
        errors = self._locate("mos_std.txt")
        if not errors.exists():
            return rows
        pairs = formats.aligned(
            self.root, {path.name: rows, errors.name: formats.read_lines(errors)}
        )
        return [replace(row, deviation=error) for row, error in pairs]
