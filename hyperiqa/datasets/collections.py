"""The layouts of two kinds of collection that people download whole: pyiqa's tables, and the JSON lists of DeQA-Score
and Q-Align. A reader that finds none of its set's own files looks for them in these places.

pyiqa: `meta_info/meta_info_<SET>Dataset.csv` beside the sets' folders, images as the authors release them; the split is
`official_split`, `split`, or the first of the random ones (`ratio802_seed123_split_01`), whose `val` part is held out.
DeQA-Score: `metas/train_*.json` and `metas/test_*.json` in the set's folder, image paths relative to the folder above.
Q-Align: `training_sft/train_*.json` and `test_jsons/*.json`, image paths relative to the folder of both."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hyperiqa.base.errors import UserError, first_five
from hyperiqa.datasets.formats import leaves_its_folder, number, read_json_list, read_table

RATIO = "ratio802_seed123_split_01"
SPLITS = {"0": "train", "1": "val", "2": "test", "train": "train", "val": "val", "test": "test"}
OPINIONS = ("c1", "c2", "c3", "c4", "c5")


@dataclass(frozen=True)
class Listed:
    """An image as a collection lists it: where (None: only its name is known), score, split, reference, standard
    deviation of the opinions and their number, where it says them."""

    name: str
    score: float
    split: str | None
    path: Path | None = None
    reference: str | None = None
    deviation: float | None = None
    votes: float | None = None


def pyiqa(root: Path, table: str) -> tuple[Path, list[Listed]] | None:
    """The rows of a set's table in pyiqa's collection, and the table; None where it is in none of its places."""
    file = f"meta_info_{table}Dataset.csv"
    places = [root / file, root / "meta_info" / file, root.parent / "meta_info" / file]
    if (path := next(filter(Path.is_file, places), None)) is None:
        return None
    images, references, scores = (
        ("img_name", "dist_name", "Image name"),
        ("ref_name",),
        ("mos", "dmos"),
    )
    splits, more = ("official_split", "split", RATIO), ("std", "c_total", *OPINIONS)
    rows = list(read_table(path, (), (*images, *references, *scores, *splits, *more)))
    if not rows:
        return path, []
    there = rows[0].keys()
    image, reference, score, split = (
        next((name for name in names if name in there), None)
        for names in (images, references, scores, splits)
    )
    if image is None or score is None:
        raise UserError(f"{path}: expected a column {', '.join(images)} and {' or '.join(scores)}")
    slope = _slope([number(row[score]) for row in rows], rows) if OPINIONS[0] in there else 1.0
    listed = []
    for row in rows:
        part, reference_of = (
            _split(path, row[split], split == RATIO) if split else None,
            reference and row[reference],
        )
        deviation = slope * number(row["std"]) if "std" in there else None
        votes = number(row["c_total"]) if "c_total" in there else None
        listed.append(
            Listed(row[image], number(row[score]), part, None, reference_of, deviation, votes)
        )
    return path, listed


def _split(path: Path, text: str, random: bool) -> str:
    if text not in SPLITS:
        raise UserError(
            f"{path}: expected a split of train, val or test, or 0, 1 or 2, found {text!r}"
        )
    return "test" if random and text == "val" else SPLITS[text]


def _slope(scores: list[float], rows: Iterable[Mapping[str, str]]) -> float:
    """Of the scores on the mean opinions 1..5, whose deviation it is that the table gives."""
    means = [sum(k * number(row[c]) for k, c in enumerate(OPINIONS, 1)) for row in rows]
    try:
        return statistics.linear_regression(means, scores).slope
    except ValueError:
        return math.nan


def json_lists(root: Path, word: str) -> tuple[Path, list[Listed]] | None:
    """The rows of a set in DeQA-Score's or Q-Align's collection, and the folder of the lists; None without such.
    word: what the set is called in Q-Align's file names."""
    deqa = {split: sorted((root / "metas").glob(f"{split}_*.json")) for split in ("train", "test")}
    if any(deqa.values()):
        return root / "metas", _of_lists(deqa, root.parent)
    tests = [root / "test_jsons" / name for name in (f"test_{word}.json", f"{word}.json")]
    align = {"train": [root / "training_sft" / f"train_{word}.json"], "test": tests}
    align = {split: list(filter(Path.is_file, paths)) for split, paths in align.items()}
    return (root, _of_lists(align, root)) if any(align.values()) else None


def _of_lists(lists: Mapping[str, list[Path]], base: Path) -> list[Listed]:
    both, rows = all(lists.values()), []
    for split, paths in lists.items():
        for path in paths:
            listed = read_json_list(path)
            if outside := [image for image, _, _ in listed if leaves_its_folder(image)]:
                raise UserError(
                    f"{path}: {len(outside)} image names leave {base}: {first_five(outside)}"
                )
            for image, score, deviation in listed:
                place = PurePosixPath(image.replace("\\", "/"))
                # A list of test images alone is a set to test on, or to split.
                rows.append(
                    Listed(
                        place.name, score, split if both else None, base / place, None, deviation
                    )
                )
    return rows
