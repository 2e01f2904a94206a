"""The records a run leaves: NAME.log as the user saw it, NAME.jsonl for programs, NAME_predictions.csv."""

import io
import itertools
import json
import os
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock, Timeout

from hyperiqa.base import cluster
from hyperiqa.base.device import Hardware
from hyperiqa.base.errors import UserError
from hyperiqa.base.files import write_whole
from hyperiqa.base.plain_values import to_json_value, to_text
from hyperiqa.base.version import versions
from hyperiqa.stats.metrics import RECORDED, medians
from hyperiqa.training.run_files import Prediction, write_predictions

UNSAID = (
    "demo_defaults",
    "trained",
    *cluster.SETTINGS,
)  # said otherwise, or no matter of the run's


class RunLog:
    """The log and jsonl of a run, open for appending, and its checkpoint folder. Raises UserError.
    A run's folder is locked as long as its process lives, so that no other process takes the run up."""

    writes = True

    def __init__(self, log_dir: Path, checkpoint_dir: Path, name: str, explicit: bool):
        """Claim a new name. explicit: it is the user's own, so that a taken one is an error, not a suffix."""
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        try:
            while not self._claim(log_dir, checkpoint_dir, next(names)):
                if explicit:
                    taken = f"taken in {log_dir} or {checkpoint_dir}"
                    raise UserError(f"--run_name {name}: {taken}; choose another or --resume")
        except OSError as problem:
            raise UserError(
                f"{problem.filename}: cannot write logs or checkpoints: {problem.strerror}"
            ) from None

    def _claim(self, log_dir: Path, checkpoint_dir: Path, name: str) -> bool:
        """Take the name by making its log and folder, which only one of two runs can do."""
        log_dir.mkdir(parents=True, exist_ok=True)
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        log, jsonl, folder = (
            log_dir / f"{name}.log",
            log_dir / f"{name}.jsonl",
            checkpoint_dir / name,
        )
        if jsonl.exists() or folder.exists():
            return False
        try:
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
        """The run of a checkpoint folder, to go on with; None while another process has it, after `wait` seconds."""
        log = cls.__new__(cls)
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            log._open(log_dir, folder, wait)
        except Timeout:
            return None
        except OSError as problem:
            raise UserError(
                f"{problem.filename}: cannot write logs or checkpoints: {problem.strerror}"
            ) from None
        return log

    def _open(self, log_dir: Path, folder: Path, wait: float = 0) -> None:
        self.name, self.log_dir, self.checkpoints = folder.name, log_dir, folder
        self._board: Any = None
        self._lock = FileLock(folder / ".lock")
        self._lock.acquire(timeout=wait)
        self._log = self.path(".log").open("a", encoding="utf-8")
        self._records = self.path(".jsonl").open("a", encoding="utf-8")

    def lengths(self) -> list[int]:
        """Bytes of log and jsonl, which are safely on the disk when this returns."""
        for file in (self._log, self._records):
            os.fsync(file.fileno())
        return [os.fstat(file.fileno()).st_size for file in (self._log, self._records)]

    def cut_back(self, lengths: Iterable[int]) -> None:
        """Forget what was written after `lengths` were asked for."""
        for file, length in zip((self._log, self._records), lengths, strict=True):
            os.ftruncate(file.fileno(), min(length, os.fstat(file.fileno()).st_size))

    def path(self, ending: str) -> Path:
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
        self._write(self._log, text)

    def record(self, **fields: object) -> None:
        """Append a record to the jsonl; nan becomes null."""
        self._write(self._records, json.dumps(to_json_value(fields)))
        if self._board is not None and fields.get("type") == "epoch":
            for part, figures in fields.items():
                for name, value in figures.items() if isinstance(figures, Mapping) else ():
                    if value is not None:
                        self._board.add_scalar(
                            f"round{fields['round']}/{part}/{name}", value, fields["epoch"]
                        )
            self._board.flush()

    def open_board(self, first_epoch: int) -> None:
        """Write TensorBoard events too, to NAME.tensorboard/; what is there from `first_epoch` on is superseded."""
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

        self._board = SummaryWriter(str(self.path(".tensorboard")), purge_step=first_epoch)

    def _write(self, file: TextIO, text: str) -> None:
        try:
            file.write(text + "\n")
            file.flush()
        except OSError as problem:
            raise UserError(f"{file.name}: cannot be written: {problem.strerror}") from None

    def predictions(self, round_number: int, rows: Iterable[Prediction]) -> None:
        """Replace the round's predictions file: rows of dataset, image, MOS, score."""
        write_predictions(self._of_round(round_number, "_predictions.csv"), rows)

    def epochs(self, round_number: int, tested: Mapping[str, Any]) -> None:
        """Replace the round's file of what every epoch scored, see `RunData.tested`; none without an epoch."""
        path = self._of_round(round_number, "_epochs.npz")
        if tested:
            np.savez_compressed(file := io.BytesIO(), **tested)
            write_whole(path, file.getvalue())
        else:
            path.unlink(missing_ok=True)

    def _of_round(self, number: int, ending: str) -> Path:
        return self.path(ending if number == 1 else f"_round{number}{ending}")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        self._log.close()
        self._records.close()
        self._lock.release()


class SilentLog(RunLog):
    """The log of a run that another process writes: all that is said to it is dropped."""

    writes = False

    def __init__(self, log_dir: Path, checkpoints: Path):
        self.name, self.log_dir, self.checkpoints = checkpoints.name, log_dir, checkpoints

    def _dropped(self, *text: object, **fields: object) -> None:
        pass

    show = line = keep = record = open_board = predictions = epochs = close = _dropped


def title(part: str) -> str:
    """What the figures of a part are called in the log: `Test`, and `SPAQ` or `KADID-10K` of a cross test."""
    return part.capitalize() if part in ("train", "val", "test") else part.upper()


def epoch_columns(parts: Iterable[str]) -> str:
    """The header of the epoch rows; parts: train, val, test and the names of the cross tests that are measured."""
    return "\t".join(
        [
            "Epoch",
            "Train_Loss",
            *(f"{title(part)}_{name.upper()}" for part in parts for name in RECORDED),
        ]
    )


def epoch_row(epoch: int, result: Mapping[str, Mapping[str, float]], parts: Iterable[str]) -> str:
    """An epoch's row under `epoch_columns(parts)`; a loss of several parts with all of them."""
    train = result["train"]
    loss = f"{train['loss']:.3f}"
    losses = [name for name in train if name not in ("loss", *RECORDED)]
    if len(losses) > 1:
        loss += f" ({','.join(f'{name.capitalize()}:{train[name]:.3f}' for name in losses)})"
    return "\t".join(
        [str(epoch), loss, *(f"{result[part][name]:.4f}" for part in parts for name in RECORDED)]
    )


def figures_text(figures: Mapping[str, float], between: str = ": ", before: str = "") -> str:
    """`SRCC: 0.9123, PLCC: 0.9234`."""
    return ", ".join(
        f"{before}{name.upper()}{between}{value:.4f}" for name, value in figures.items()
    )


def median_lines(rounds: Sequence[Mapping]) -> Iterator[str]:
    """The medians over the rounds, as the log ends with them."""
    number = f"{len(rounds)} round{'s' if len(rounds) > 1 else ''}"
    yield from (
        f"Median {part} of {number}: {figures_text(each, ' ')}"
        for part, each in medians(rounds).items()
    )


def log_start(
    log: RunLog, o: Namespace, hardware: Hardware, reason: str, data: Any, criterion, schedule
) -> None:
    """The beginning of a run: its record with all flags `o`, and what the log says before any epoch.
    reason: of the precision; data: a `RunData`; criterion and schedule say of themselves what they are."""
    flags = {name: value for name, value in sorted(vars(o).items()) if name not in UNSAID}
    started = datetime.now().isoformat(timespec="seconds")
    precision, training = ("bf16", "bf16 autocast") if hardware.bf16 else ("fp32", "fp32")
    facts = dict(device=hardware.name, precision=precision, versions=versions(), data=data.counts)
    log.record(
        type="run",
        name=log.name,
        started=started,
        flags=flags,
        **facts,
        fingerprint=data.fingerprint,
    )
    brought = " ".join(f"--{name} {to_text(value)}" for name, value in o.demo_defaults.items())
    loose = [
        flag
        for flag, on in (("--no_deterministic", not o.deterministic), ("--compile", o.compile))
        if on
    ]
    on_test = "The best epoch is chosen on the test set, as in published results; --select_on val avoids that"
    on_val = (
        "The best epoch is chosen on validation images; the test figures are those of that epoch"
    )
    lines = [
        f"Run: {log.name}",
        "Settings: " + " ".join(f"{name}={to_text(value)}" for name, value in flags.items()),
        f"The demo brings its own defaults: {brought}" if brought else "",
        f"Device: {hardware.name}",
        f"Precision: training {training} ({reason}), scoring fp32",
        f"Not exactly repeatable, because of {' and '.join(loose)}" if loose else "",
        *data.notes,
        f"Learning rate scheduler: {schedule}",
        f"Early stopping enabled with patience={o.patience}"
        if o.early_stopping
        else "Early stopping disabled",
        str(criterion),
        on_test if o.select_on == "test" else on_val,
    ]
    log.line("\n".join(filter(None, lines)))
