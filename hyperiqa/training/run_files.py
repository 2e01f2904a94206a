"""The files that a run leaves for programs: its records and its predictions."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hyperiqa.base import errors, files, schema
from hyperiqa.model.description import COUNT, FIGURES, NAME, PATH

# Flags that decide where and how fast a run goes but not its figures: they may change when it is
# resumed. The last three are flags of an older version: `cross_resize` and the fingerprint of the
# records now hold what they decided.
NOT_FIGURES = frozenset(
    "launcher nodes gpus_per_node time slurm device workers cache cache_dir cache_device "
    "dataset_path cross_test log_dir checkpoint_dir checkpoint_minutes run_name resume init "
    "teacher trained allow_overlap image_root demo_defaults recipes tensorboard "
    "spaq spaq_path spaq_resize".split()
)
# The names of a run's best models, as a regular expression.
BEST_MODEL = r"best_model_srcc_(?:nan|-?\d\.\d{4})_plcc_(?:nan|-?\d\.\d{4})\.pkl"
# What takes the place of `.pkl` in the name of the adapter that `--lora` keeps beside such a model.
ADAPTER = "_adapter.safetensors"
PREDICTIONS = ["dataset", "image", "mos", "score"]
Prediction = tuple[str, str, float, float]

# The path of a set, or the path of each of several sets.
_PLACE = schema.Kind(
    "a path, or a path of each set",
    lambda x: (
        schema.mismatch(x if isinstance(x, Mapping) else {"": x}, schema.table(schema.maybe(PATH)))
        is None
    ),
)
# Type of record -> the fields that are read. Records of other types are ignored.
RECORDS = {
    "run": schema.Fields(
        {
            "flags": schema.Fields(
                {},
                {
                    "dataset": NAME,
                    "dataset_path": _PLACE,
                    "cross_test": _PLACE,
                    "image_root": schema.maybe(PATH),
                    "spaq_path": schema.maybe(PATH),
                    "seed": COUNT,
                    "train_test_num": schema.maybe(COUNT),
                },
                schema.PLAIN,
            )
        },
        {
            "data": schema.table(schema.PLAIN),
            "versions": schema.table(schema.maybe(NAME)),
            "fingerprint": schema.table(schema.maybe(NAME)),
            "device": schema.maybe(NAME),
            "precision": schema.maybe(NAME),
            "code": schema.maybe(NAME),
        },
        schema.PLAIN,
    ),
    "epoch": schema.Fields(
        {
            "round": schema.whole_number(1, 1e9),
            "epoch": schema.whole_number(0, 1e9),
            "test": FIGURES,
        },
        {
            "train": FIGURES,
            "val": FIGURES,
            "lr": FIGURES,
            "seconds": schema.table(schema.number(0)),
        },
        # Cross tests, and other facts than figures.
        schema.Kind(
            "figures",
            lambda x: (
                schema.mismatch(x, FIGURES if isinstance(x, Mapping) else schema.PLAIN) is None
            ),
        ),
    ),
    "end": schema.Fields(
        {"status": NAME},
        {
            "rounds": schema.Every(
                schema.Fields(
                    {"round": schema.whole_number(1, 1e9)},
                    {
                        "seed": schema.maybe(COUNT),
                        "best_epoch": schema.maybe(schema.whole_number(0, 1e9)),
                        "selection_price": schema.FIGURE,
                    },
                    schema.PLAIN,
                )
            ),
            "medians": schema.table(FIGURES),
        },
        schema.PLAIN,
    ),
}


def read_records(path: Path) -> list[dict]:
    """The records of a NAME.jsonl, one JSON object a line, each checked by `RECORDS`.

    A last line that a crash cut off is dropped. Raises UserError that names the damaged line and
    field.
    """
    with errors.reading_file(path, "cannot be read", UnicodeDecodeError):
        lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for line_number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            # Every record says its type; a line that is JSON but no record fails here.
            form = RECORDS.get(record["type"])
        except (ValueError, TypeError, KeyError, RecursionError):
            if line_number < len(lines):
                raise errors.UserError(
                    f"{path}: line {line_number} is no record of a run: {line[:40]!r}"
                ) from None
            continue
        if form is not None and (problem := schema.mismatch(record, form)):
            raise errors.UserError(f"{path}: line {line_number} is no record of a run: {problem}")
        records.append(record)
    return records


def write_predictions(path: Path, rows: Iterable[Prediction]) -> None:
    """Write a predictions file, whole or not at all.

    rows: data set, image, MOS and the model's score.
    """
    files.write_csv(path, PREDICTIONS, (dict(zip(PREDICTIONS, row)) for row in rows))


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Yield the rows that `write_predictions` wrote.

    Raises UserError that names the first line that is not a prediction.
    """
    columns = ",".join(PREDICTIONS)
    if files.known_place(path) is None:
        raise errors.UserError(f"{path}: no such file; expected one with the columns {columns}")
    with (
        errors.reading_file(path, "not a predictions file"),
        path.open(newline="", encoding="utf-8") as file,
    ):
        lines = csv.reader(file)
        try:
            if next(lines, None) != PREDICTIONS:
                raise errors.UserError(f"{path}: expected the columns {columns}")
            for dataset, image, mos, score in lines:
                yield dataset, image, float(mos), float(score)
        except (ValueError, csv.Error):
            raise errors.UserError(f"{path}: line {lines.line_num} is no {columns}") from None
