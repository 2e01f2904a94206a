"""The records a run leaves.

NAME.log holds what the user saw, NAME.jsonl the same for programs. NAME_predictions.csv holds the
best epoch's scores, NAME_epochs.npz those of every epoch.
"""

import io
import itertools
import json
import os
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock, Timeout

from hyperiqa.base import cluster, device, files, version
from hyperiqa.base.errors import UserError, counted
from hyperiqa.base.plain_values import to_json_value, to_text
from hyperiqa.base.terminal import printable
from hyperiqa.stats.metrics import RECORDED, medians
from hyperiqa.training.run_files import BEST_MODEL, Prediction, write_predictions

# Settings that the log tells in another line, or that do not concern the run.
UNSAID = ("demo_defaults", "trained", *(flag.lstrip("-") for flag in cluster.OWN))


# How the log says which images choose the best epoch, by `--select_on`.
CHOSEN_ON = {
    "test": "The best epoch is chosen on the test set, as in published results; "
    "--select_on val avoids that",
    "val": "The best epoch is chosen on validation images; "
    "the test figures are those of that epoch",
}


class RunLog:
    """The log and jsonl of a run, open for appending, and its checkpoint folder.

    The folder stays locked as long as the process lives, so that no other process takes the run up.
    Raises UserError where something cannot be written.
    """

    writes = True

    def __init__(self, log_dir: Path, checkpoint_dir: Path, name: str, explicit: bool):
        """Claim a new name.

        explicit: the user chose the name, so it is an error if it is taken. Any other name gets a
        number then.
        """
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        try:
            while not self._claim(log_dir, checkpoint_dir, next(names)):
                if explicit:
                    raise UserError(
                        f"--run_name {name}: taken in {log_dir} or {checkpoint_dir}; "
                        "choose another or --resume"
                    )
        except OSError as problem:
            raise _cannot_write(problem) from None

    def _claim(self, log_dir: Path, checkpoint_dir: Path, name: str) -> bool:
        """Take the name by making its log and folder, which only one of two runs can do."""
        log_dir.mkdir(parents=True, exist_ok=True)
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        log = log_dir / f"{name}.log"
        folder = checkpoint_dir / name
        endings = (".jsonl", "_predictions.csv", "_epochs.npz", "_round2_predictions.csv")
        if folder.exists() or any((log_dir / f"{name}{ending}").exists() for ending in endings):
            return False
        try:
            # Mode x fails where the file exists: of two runs that try at once, one gets the name.
            log.open("x").close()
            try:
                folder.mkdir()
            except OSError:
                log.unlink()
                raise
        except FileExistsError:
            return False
        self._open(log_dir, folder)
        return True

    @classmethod
    def take_up(cls, log_dir: Path, folder: Path, wait: float = 0) -> "RunLog | None":
        """The log of the run with this checkpoint folder, to go on with.

        None where another process still holds the run after `wait` seconds.
        """
        log = cls.__new__(cls)
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            log._open(log_dir, folder, wait)
            log._sweep()
        # Timeout is an OSError too, so it must come first.
        except Timeout:
            return None
        except OSError as problem:
            raise _cannot_write(problem) from None
        return log

    def _open(self, log_dir: Path, folder: Path, wait: float = 0) -> None:
        self.name = folder.name
        self.log_dir = log_dir
        self.checkpoints = folder
        self._board: Any = None
        self._lock = FileLock(folder / ".lock")
        self._lock.acquire(timeout=wait)
        self._log = self.path(".log").open("a", encoding="utf-8")
        self._records = self.path(".jsonl").open("a", encoding="utf-8")

    def lengths(self) -> list[int]:
        """The bytes of log and jsonl, which are safely on the disk when this returns."""
        for file in (self._log, self._records):
            os.fsync(file.fileno())
        return [os.fstat(file.fileno()).st_size for file in (self._log, self._records)]

    def cut_back(self, lengths: Iterable[int]) -> None:
        """Forget what was written after `lengths` was called. lengths: what it returned."""
        for file, length in zip((self._log, self._records), lengths, strict=True):
            # A file that lost its end in a crash must not grow: it would be padded with zeros.
            os.ftruncate(file.fileno(), min(length, os.fstat(file.fileno()).st_size))

    def path(self, ending: str) -> Path:
        """The run's file in the log folder with this ending, such as `.jsonl`."""
        return self.log_dir / f"{self.name}{ending}"

    def show(self, text: str) -> None:
        """Show a line without keeping it."""
        print(text, flush=True)

    def line(self, text: str = "") -> None:
        """Show a line and keep it."""
        self.show(text)
        self.keep(text)

    def keep(self, text: str) -> None:
        """Keep a line that is shown elsewhere."""
        self._write(self._log, printable(text, kept="\n\t"))

    def record(self, **fields: object) -> None:
        """Append a record to the jsonl; nan becomes null."""
        self._write(self._records, json.dumps(to_json_value(fields)))
        if self._board is not None and fields.get("type") == "epoch":
            self._draw(fields)

    def _draw(self, record: Mapping[str, Any]) -> None:
        # The other fields are single values, such as the number of the epoch.
        parts = {part: field for part, field in record.items() if isinstance(field, Mapping)}
        for part, figures in parts.items():
            for name, value in figures.items():
                if value is not None:
                    tag = f"round{record['round']}/{part}/{name}"
                    self._board.add_scalar(tag, value, record["epoch"])
        self._board.flush()

    def open_board(self, first_epoch: int) -> None:
        """Write TensorBoard events too, to NAME.tensorboard/.

        Events of `first_epoch` and later that are there already are superseded.
        """
        # An optional package, and slow to import.
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self.path(".tensorboard")), purge_step=first_epoch)

    def _write(self, file: TextIO, text: str) -> None:
        try:
            file.write(text + "\n")
            # At once, so that a crash loses nothing and `tail -f` shows the newest line.
            file.flush()
        except OSError as problem:
            raise UserError(f"{file.name}: cannot be written: {problem.strerror}") from None

    def predictions(self, round_number: int, rows: Iterable[Prediction]) -> None:
        """Replace the predictions file of a round. rows: data set, image, MOS, score."""
        write_predictions(self._of_round(round_number, "_predictions.csv"), rows)

    def epochs(self, round_number: int, tested: Mapping[str, Any]) -> None:
        """Replace the file of what every epoch of a round scored, or remove it without an epoch.

        tested: the arrays of `TestedParts.epoch_arrays`.
        """
        path = self._of_round(round_number, "_epochs.npz")
        if not tested:
            path.unlink(missing_ok=True)
            return
        content = io.BytesIO()
        np.savez_compressed(content, **tested)
        files.write_whole(path, content.getvalue())

    def _sweep(self) -> None:
        """Delete what the run's killed processes left of files that they were writing."""
        for folder in (self.checkpoints, *self.checkpoints.glob("round*")):
            files.remove_unfinished(folder, rf"last\.pt|{BEST_MODEL}")
        # Another run, which may be writing, can be called NAME_round2: only the first round's.
        first_round = rf"{re.escape(self.name)}_(?:predictions\.csv|epochs\.npz)"
        files.remove_unfinished(self.log_dir, first_round)

    def _of_round(self, number: int, ending: str) -> Path:
        return self.path(ending if number == 1 else f"_round{number}{ending}")

    def close(self) -> None:
        """Close the files, and release the run for other processes."""
        if self._board is not None:
            self._board.close()
        self._log.close()
        self._records.close()
        self._sweep()
        self._lock.release()


class SilentLog(RunLog):
    """The log of a run that another process writes: everything written to it is dropped."""

    writes = False

    def __init__(self, log_dir: Path, checkpoints: Path):
        self.name = checkpoints.name
        self.log_dir = log_dir
        self.checkpoints = checkpoints

    def _dropped(self, *text: object, **fields: object) -> None:
        pass

    show = line = keep = record = open_board = predictions = epochs = close = _dropped


def _cannot_write(problem: OSError) -> UserError:
    return UserError(f"{problem.filename}: cannot write logs or checkpoints: {problem.strerror}")


def title(part: str) -> str:
    """The name of a part in the log: `Test`; `SPAQ` or `KADID-10K` for a cross test."""
    return part.capitalize() if part in ("train", "val", "test") else part.upper()


def epoch_columns(parts: Iterable[str]) -> str:
    """The header of the epoch rows.

    parts: train, val, test and the names of the cross tests, as far as they are measured.
    """
    figures = [f"{title(part)}_{name.upper()}" for part in parts for name in RECORDED]
    return "\t".join(["Epoch", "Train_Loss", *figures])


def epoch_row(epoch: int, result: Mapping[str, Mapping[str, float]], parts: Iterable[str]) -> str:
    """An epoch's row under `epoch_columns(parts)`; a loss of several parts shows all of them."""
    train = result["train"]
    loss = f"{train['loss']:.3f}"
    loss_parts = [name for name in train if name not in ("loss", *RECORDED)]
    if len(loss_parts) > 1:
        values = ",".join(f"{name.capitalize()}:{train[name]:.3f}" for name in loss_parts)
        loss += f" ({values})"
    figures = [f"{result[part][name]:.4f}" for part in parts for name in RECORDED]
    return "\t".join([str(epoch), loss, *figures])


def figures_text(figures: Mapping[str, float], between: str = ": ", before: str = "") -> str:
    """`SRCC: 0.9123, PLCC: 0.9234`; `before` precedes each name, `between` follows it."""
    return ", ".join(
        f"{before}{name.upper()}{between}{value:.4f}" for name, value in figures.items()
    )


def median_lines(rounds: Sequence[Mapping]) -> Iterator[str]:
    """The medians over the rounds, with which the log ends."""
    number = counted(len(rounds), "round")
    for part, figures in medians(rounds).items():
        yield f"Median {part} of {number}: {figures_text(figures, ' ')}"


def log_start(
    log: RunLog,
    options: Namespace,
    hardware: device.Hardware,
    reason: str,
    data: Any,
    criterion,
    schedule,
) -> None:
    """Write the beginning of a run: its record with all flags, and the lines before any epoch.

    reason: why training has this precision. data: a `RunData`. criterion, schedule: the text of
    each says in the log what it is.
    """
    flags = {name: value for name, value in sorted(vars(options).items()) if name not in UNSAID}
    log.record(
        type="run",
        name=log.name,
        started=datetime.now().isoformat(timespec="seconds"),
        flags=flags,
        device=hardware.name,
        precision="bf16" if hardware.bf16 else "fp32",
        versions=version.versions(),
        data=data.counts,
        fingerprint=data.fingerprint,
    )
    settings = " ".join(f"{name}={to_text(value)}" for name, value in flags.items())
    stopping = f"enabled with patience={options.patience}" if options.early_stopping else "disabled"
    lines = [
        f"Run: {log.name}",
        f"Settings: {settings}",
        _demo_line(options),
        f"Device: {hardware.name}",
        f"Precision: training {'bf16 autocast' if hardware.bf16 else 'fp32'} "
        f"({reason}), scoring fp32",
        _repeatability_line(options),
        *data.notes,
        f"Learning rate scheduler: {schedule}",
        f"Early stopping {stopping}",
        str(criterion),
        CHOSEN_ON[options.select_on],
    ]
    # A choice at its default has an empty line, which the log leaves out.
    log.line("\n".join(filter(None, lines)))


def _demo_line(options: Namespace) -> str:
    if not options.demo_defaults:
        return ""
    flags = [f"--{name} {to_text(value)}" for name, value in options.demo_defaults.items()]
    return f"The demo brings its own defaults: {' '.join(flags)}"


def _repeatability_line(options: Namespace) -> str:
    reasons = []
    if not options.deterministic:
        reasons.append("--no_deterministic")
    if options.compile:
        reasons.append("--compile")
    return f"Not exactly repeatable, because of {' and '.join(reasons)}" if reasons else ""
