"""The layouts of the collections that people download whole.

They are pyiqa's tables, and the JSON lists of DeQA-Score and Q-Align. A reader that finds none of
its set's own files looks for a collection.

pyiqa: `meta_info/meta_info_<SET>Dataset.csv` beside the sets' folders, images as the authors
release them; the split is `official_split`, `split`, or the first of the random ones
(`ratio802_seed123_split_01`), whose `val` part is held out.
DeQA-Score: `metas/train_*.json` and `metas/test_*.json` in the set's folder, image paths relative
to the folder above.
Q-Align: `training_sft/train_*.json` and `test_jsons/*.json`, image paths relative to the folder of
both.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from hyperiqa.base.errors import UserError
from hyperiqa.datasets import formats, records

RATIO = "ratio802_seed123_split_01"
SPLITS = {"0": "train", "1": "val", "2": "test", "train": "train", "val": "val", "test": "test"}
# Columns of pyiqa's tables, the best of each kind first.
IMAGES = ("img_name", "dist_name", "Image name")
SCORES = ("mos", "dmos")
SPLIT_COLUMNS = ("official_split", "split", RATIO)
# How many observers chose each grade.
OPINIONS = ("c1", "c2", "c3", "c4", "c5")
COLUMNS = (*IMAGES, "ref_name", *SCORES, *SPLIT_COLUMNS, "std", "c_total", *OPINIONS)


def pyiqa(root: Path, table: str) -> tuple[Path, list[records.Row]] | None:
    """The path of a set's table in pyiqa's collection, and its rows; None if there is no table.

    The group of a row is the name of the image's reference. Raises UserError.
    """
    file = f"meta_info_{table}Dataset.csv"
    places = [root / file, root / "meta_info" / file, root.parent / "meta_info" / file]
    path = next(filter(Path.is_file, places), None)
    if path is None:
        return None
    rows = list(formats.read_table(path, (), COLUMNS))
    columns = rows[0].keys() if rows else COLUMNS
    image = _first_of(IMAGES, columns)
    score = _first_of(SCORES, columns)
    split = _first_of(SPLIT_COLUMNS, columns)
    if image is None or score is None:
        raise UserError(f"{path}: expected a column {', '.join(IMAGES)} and {' or '.join(SCORES)}")
    slope = _slope(rows, score) if OPINIONS[0] in columns else 1.0
    return path, [
        records.Row(
            row[image],
            formats.number(row[score]),
            split=_split(path, row[split], split == RATIO) if split else None,
            group=row.get("ref_name"),
            deviation=slope * formats.number(row.get("std")),
            votes=formats.number(row["c_total"]) if "c_total" in columns else None,
        )
        for row in rows
    ]


def _first_of(names: Iterable[str], columns: Iterable[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _split(path: Path, text: str, random: bool) -> str:
    if text not in SPLITS:
        raise UserError(
            f"{path}: expected a split of train, val or test, or 0, 1 or 2, found {text!r}"
        )
    # The random splits have no part for testing: the part that they hold out is tested on.
    return "test" if random and text == "val" else SPLITS[text]


def _slope(rows: list[dict[str, str]], score: str) -> float:
    # The slope of the scores in this column on the mean opinions 1..5, of which the table has the
    # deviation.
    means = [
        sum(grade * formats.number(row[column]) for grade, column in enumerate(OPINIONS, 1))
        for row in rows
    ]
    return formats.slope_of([formats.number(row[score]) for row in rows], means)


def json_lists(root: Path, word: str) -> tuple[Path, list[records.Row]] | None:
    """The folder of a set's lists in DeQA-Score's or Q-Align's collection, and their rows.

    Returns None if there are no lists. word: the set's name in Q-Align's file names. Raises
    UserError.
    """
    lists = {split: sorted((root / "metas").glob(f"{split}_*.json")) for split in ("train", "test")}
    if any(lists.values()):
        return root / "metas", list(_read_lists(lists, root.parent))
    test_names = (f"test_jsons/test_{word}.json", f"test_jsons/{word}.json")
    lists = {
        "train": list(filter(Path.is_file, [root / f"training_sft/train_{word}.json"])),
        "test": list(filter(Path.is_file, map(root.joinpath, test_names))),
    }
    return (root, list(_read_lists(lists, root))) if any(lists.values()) else None


def _read_lists(lists: Mapping[str, list[Path]], base: Path) -> Iterator[records.Row]:
    # A list of test images alone is a set to test on, or to split.
    is_split = all(lists.values())
    for split, paths in lists.items():
        for path in paths:
            entries = formats.read_json_list(path)
            formats.refuse(
                [image for image, _, _ in entries if formats.leaves_its_folder(image)],
                path,
                f"image name leaves {base}",
                f"image names leave {base}",
            )
            for image, score, deviation in entries:
                place = PurePosixPath(image.replace("\\", "/"))
                yield records.Row(
                    place.name,
                    score,
                    split=split if is_split else None,
                    deviation=deviation,
                    path=base / place,
                )
