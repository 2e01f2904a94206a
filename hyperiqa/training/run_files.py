"""The files that a run leaves for programs: its records and its predictions."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from hyperiqa.base.errors import UserError, reading_file
from hyperiqa.base.files import write_whole

# Flags that change where and how fast a run goes, but none of its figures: a resumed run may differ
# in them. The last three are flags of an older version: what they came to stands in `cross_resize`
# and in the fingerprint of the records.
NOT_FIGURES = frozenset(
    "launcher nodes gpus_per_node time slurm device workers cache cache_dir cache_device "
    "dataset_path cross_test log_dir checkpoint_dir checkpoint_minutes run_name resume init "
    "teacher trained allow_overlap image_root demo_defaults tensorboard "
    "spaq spaq_path spaq_resize".split()
)
PREDICTIONS = ["dataset", "image", "mos", "score"]
Prediction = tuple[str, str, float, float]


def read_records(path: Path) -> list[dict]:
    """The records of a NAME.jsonl, one JSON object a line.

    A last line that a crash cut off is dropped. Raises UserError.
    """
    with reading_file(path, "cannot be read", UnicodeDecodeError):
        lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            # Every record says its type; a line that is JSON but no record fails here.
            record["type"]
            records.append(record)
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise UserError(
                    f"{path}: line {number} is no record of a run: {line[:40]!r}"
                ) from None
    return records


def write_predictions(path: Path, rows: Iterable[Prediction]) -> None:
    """Write a predictions file, whole or not at all.

    rows: data set, image, MOS and score as the model gave it.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([PREDICTIONS, *rows])
    write_whole(path, text.getvalue())


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Yield the rows that `write_predictions` wrote.

    Raises UserError, which names the line that is no prediction.
    """
    columns = ",".join(PREDICTIONS)
    with (
        reading_file(path, "not a predictions file"),
        path.open(newline="", encoding="utf-8") as file,
    ):
        lines = csv.reader(file)
        try:
            if next(lines, None) != PREDICTIONS:
                raise UserError(f"{path}: expected the columns {columns}")
            for dataset, image, mos, score in lines:
                yield dataset, image, float(mos), float(score)
        except (ValueError, csv.Error):
            raise UserError(f"{path}: line {lines.line_num} is no {columns}") from None
