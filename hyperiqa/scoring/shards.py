"""Shards and lists scored one by one, each into a file of rows of its own.

Such a file appears once all rows are there. So a command that was killed goes on where it was, and
several processes or machines can write into one folder. `image_sources` reads what is scored.
"""

import argparse
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from hyperiqa.base import errors, files, signals
from hyperiqa.scoring import image_sources, score_files, score_run


def rows_file(options: argparse.Namespace, store: str) -> Path:
    """The file for the rows of a store, such as `photos-0000.csv` for `photos-0000.tar`."""
    return options.output / re.sub(r"(\.tar)?\.\w+$", f".{options.format}", Path(store).name)


def check_names(options: argparse.Namespace, stores: Iterable[str]) -> None:
    """Raise UserError where several stores have one file for their rows."""
    numbers = Counter(rows_file(options, store) for store in stores)
    if repeated := [path for path, number in numbers.items() if number > 1]:
        raise errors.UserError(
            f"--output {options.output}: expected shards and lists of different names, found "
            f"several whose rows belong into {errors.first_five(repeated)}"
        )


class ShardScorer(score_run.Scorer):
    """Scores whole stores, each into its own file of rows."""

    def count(self, path: Path) -> score_run.Tally:
        """Count the rows of a finished store.

        Raises UserError if they were made with something else.
        """
        form = self.options.format
        with errors.reading_file(
            path, "cannot be read as rows of predict.py's", ValueError, KeyError
        ):
            if form == "parquet":
                from pyarrow import parquet

                rows = parquet.read_table(path, columns=[*score_files.COLUMNS]).to_pylist()
            else:
                records = score_files.read_rows(path, form, self.options.columns)
                rows = [row for _, row in records if row]
        for made in {row["made_with"] for row in rows}:
            score_files.check_made_with(path, made, self.row_made)
        failures = [f"{row['image']} ({row['error']})" for row in rows if row["score"] is None]
        scored = len(rows) - len(failures)
        return score_run.Tally(scored, failed=len(failures), failures=failures)

    def score(self, store: str, stop: signals.StopSignals) -> score_run.Tally:
        """Score the images of a store and write its file of rows, whole or not at all."""
        tally = score_run.Tally()
        files.write_whole(rows_file(self.options, store), partial(self._write, store, stop, tally))
        return tally

    def _write(
        self, store: str, stop: signals.StopSignals, tally: score_run.Tally, file: BinaryIO
    ) -> None:
        options = self.options
        is_parquet = options.format == "parquet"
        rows: Any = io.BytesIO() if is_parquet else file
        output = score_files.ScoreFile(
            rows_file(options, store),
            "csv" if is_parquet else options.format,
            options.columns,
            rows,
        )
        images = image_sources.images_in(store, options.image_column, tally.passed)
        self.score_images(image_sources.without_repeats(images, set()), output, stop, tally)
        if is_parquet:
            _write_parquet(rows.getvalue(), options.columns, file)


def _write_parquet(rows: bytes, columns: Sequence[str], file: BinaryIO) -> None:
    from pyarrow import csv, parquet

    # Parquet has no text but UTF-8.
    text = io.BytesIO(rows.decode("utf-8", "replace").encode())
    table = csv.read_csv(
        text,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types={
                name: "double" if name in ("score", "percentile", "low", "high") else "string"
                for name in columns
            },
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    parquet.write_table(table, file)


def run(
    options: argparse.Namespace,
    stores: Sequence[str],
    stop: signals.StopSignals,
    tally: score_run.Tally,
) -> None:
    """Score the stores that have no file of rows yet. Raises UserError."""
    # With an engine, this process only checks what is finished, and may be without a GPU.
    device = "cpu" if options.engine else options.device
    scorer = ShardScorer(argparse.Namespace(**{**vars(options), "device": device}))
    with errors.reading_file(options.output, "cannot be made"):
        options.output.mkdir(exist_ok=True)
    finished = {store for store in stores if rows_file(options, store).exists()}
    for store in sorted(finished):
        tally.add(scorer.count(rows_file(options, store)))
    if finished:
        print(
            f"{options.output}: {len(finished):,} of {errors.counted(len(stores), 'source')} "
            "finished before",
            file=sys.stderr,
        )
    remaining = [store for store in stores if store not in finished]
    if options.engine and remaining:
        from hyperiqa.scoring import ray_engine

        parts = ray_engine.score(options, remaining)
    else:
        parts = ((store, scorer.score(store, stop)) for store in remaining)
    for store, part in parts:
        tally.add(part)
        print(
            f"{rows_file(options, store)}: {part.scored:,} scored, {part.failed:,} failed",
            file=sys.stderr,
        )
