"""The records a run leaves.

NAME.log holds what the user saw, NAME.jsonl the same for programs. NAME_predictions.csv holds the
best epoch's scores, NAME_epochs.npz those of every epoch.
"""

import itertools
import json
import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock, Timeout

from hyperiqa.base import cluster, errors, files, parser, plain_values, terminal, version
from hyperiqa.datasets.names import demo_folder
from hyperiqa.stats.metrics import RECORDED, medians
from hyperiqa.training import options as run_options, processes, run_files

# Settings that the log shows on another line, or that do not concern the run.
UNSAID = ("demo_defaults", "recipes", "trained", *(flag.lstrip("-") for flag in cluster.OWN))

# How the log says which images choose the best epoch, by `--select_on`.
CHOSEN_ON = {
    "test": "The best epoch is chosen on the test set, as in published results; "
    "--select_on val avoids that",
    "val": "The best epoch is chosen on validation images; "
    "the test figures are those of that epoch",
}


class RunLog:
    """The log and jsonl of a run, open for appending, and its checkpoint folder.

    The folder stays locked as long as the process lives, so that no other process goes on with the
    run. Raises UserError if something cannot be written.
    """

    writes = True

    def __init__(self, log_dir: Path, checkpoint_dir: Path, name: str, explicit: bool):
        """Claim a new name.

        explicit: the user chose the name, so a taken one is an error. Other taken names get a
        number.
        """
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        try:
            while not self._claim(log_dir, checkpoint_dir, next(names)):
                if explicit:
                    raise errors.UserError(
                        f"--run_name {name}: taken in {log_dir} or {checkpoint_dir}; "
                        "choose another or --resume"
                    )
        except OSError as problem:
            raise _cannot_write(problem) from None

    def _claim(self, log_dir: Path, checkpoint_dir: Path, name: str) -> bool:
        """Create the run's log and folder; returns False if the name is taken."""
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

        None if another process still has the run after `wait` seconds.
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
        """The sizes of log and jsonl in bytes, once both are safely on the disk."""
        for file in (self._log, self._records):
            os.fsync(file.fileno())
        return [os.fstat(file.fileno()).st_size for file in (self._log, self._records)]

    def cut_back(self, lengths: Iterable[int]) -> None:
        """Remove what was written after `lengths` was called. lengths: what it returned."""
        for file, length in zip((self._log, self._records), lengths, strict=True):
            # A file that lost its end in a crash must not grow: it would be padded with zeros.
            os.ftruncate(file.fileno(), min(length, os.fstat(file.fileno()).st_size))

    def path(self, ending: str) -> Path:
        """The run's file in the log folder with this ending, such as `.jsonl`."""
        return self.log_dir / f"{self.name}{ending}"

    def show(self, text: str) -> None:
        """Print a line without writing it to the log."""
        print(text, flush=True)

    def line(self, text: str = "") -> None:
        """Print a line and write it to the log."""
        self.show(text)
        self.keep(text)

    def keep(self, text: str) -> None:
        """Write a line to the log without printing it."""
        self._write(self._log, terminal.printable(text, kept="\n\t"))

    def record(self, **fields: object) -> None:
        """Append a record to the jsonl; nan becomes null."""
        self._write(self._records, json.dumps(plain_values.to_json_value(fields)))
        if self._board is not None and fields.get("type") == "epoch":
            self._draw(fields)

    def _draw(self, record: Mapping[str, Any]) -> None:
        # The other fields are single values, such as the number of the epoch.
        parts = {part: field for part, field in record.items() if isinstance(field, Mapping)}
        for part, figures in parts.items():
            for name, value in figures.items():
                if value is not None:
                    self._board.add_scalar(
                        f"round{record['round']}/{part}/{name}", value, record["epoch"]
                    )
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
            raise errors.UserError(f"{file.name}: cannot be written: {problem.strerror}") from None

    def predictions(self, round_number: int, rows: Iterable[run_files.Prediction]) -> None:
        """Replace the predictions file of a round. rows: data set, image, MOS, score."""
        run_files.write_predictions(self._of_round(round_number, "_predictions.csv"), rows)

    def epochs(self, round_number: int, tested: Mapping[str, Any]) -> None:
        """Replace the file with the scores of a round's epochs; remove it if there are none.

        tested: the arrays of `TestedParts.epoch_arrays`.
        """
        path = self._of_round(round_number, "_epochs.npz")
        if tested:
            files.write_whole(path, lambda file: np.savez_compressed(file, **tested))
        else:
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete the unfinished files of the run's killed processes."""
        for folder in (self.checkpoints, *self.checkpoints.glob("round*")):
            files.remove_unfinished(folder, rf"last\.pt|{run_files.BEST_MODEL}")
        # Later rounds' files stay: another run, which may be writing, can be called NAME_round2.
        first_round = rf"{re.escape(self.name)}_(?:predictions\.csv|epochs\.npz)"
        files.remove_unfinished(self.log_dir, first_round)

    def _of_round(self, number: int, ending: str) -> Path:
        return self.path(ending if number == 1 else f"_round{number}{ending}")

    def folder_of(self, round_number: int) -> Path:
        """The folder of the round's models."""
        if round_number == 1:
            return self.checkpoints
        return self.checkpoints / f"round{round_number}"

    def close(self) -> None:
        """Close the files, and release the run for other processes."""
        if self._board is not None:
            self._board.close()
        self._log.close()
        self._records.close()
        self._sweep()
        self._lock.release()


class SilentLog(RunLog):
    """The log of a process that writes nothing, as another process of the run writes it all."""

    writes = False

    def __init__(self, log_dir: Path, checkpoints: Path):
        self.name = checkpoints.name
        self.log_dir = log_dir
        self.checkpoints = checkpoints

    def _dropped(self, *text: object, **fields: object) -> None:
        pass

    show = line = keep = record = open_board = predictions = epochs = close = _dropped


def _cannot_write(problem: OSError) -> errors.UserError:
    return errors.UserError(
        f"{problem.filename}: cannot write logs or checkpoints: {problem.strerror}"
    )


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


def closing_lines(log: RunLog, options: Namespace, state: Any, folder: Path) -> Iterator[str]:
    """What the log ends with: the medians over the rounds, where all is, and what to do next.

    state: the `RunState` at the end. folder: of the last round's models.
    """
    number = errors.counted(len(state.rounds), "round")
    for part, figures in medians(state.rounds).items():
        yield f"Median {part} of {number}: {figures_text(figures, ' ')}"
    last_round = " of the last round" if len(state.rounds) > 1 else ""
    # The other programs lie beside the script that was started.
    scripts = Path(sys.argv[0]).parent
    photos = "photos"
    if "demo" in options.trained:
        photos = os.path.relpath(demo_folder(options.trained) / "koniq-10k" / "test")
    yield (
        f"Training and testing took {state.seconds // 60:.0f} min {int(state.seconds % 60)} s\n"
        f"Best model{last_round}: {folder / state.best['files'][0]}\n"
        f"Log: {log.path('.log')}\n"
        "Next, you can score photos, look at the run, or compare all runs of its folder:\n"
        f"    python {shlex.join([str(scripts / 'predict.py'), str(log.checkpoints), photos])}\n"
        f"    python {shlex.join([str(scripts / 'report.py'), str(log.path('.jsonl'))])}\n"
        f"    python {shlex.join([str(scripts / 'compare_logs.py'), str(log.log_dir), '--pairs'])}"
    )


def log_start(
    log: RunLog,
    options: Namespace,
    device: str,
    precision: str,
    reason: str,
    data: Any,
    facts: Sequence[str],
) -> None:
    """Write the beginning of a run: its record with all flags, and the lines before any epoch.

    reason: why training has this precision. data: a `RunData`. facts: more lines for the log.
    """
    flags = {name: value for name, value in sorted(vars(options).items()) if name not in UNSAID}
    started = datetime.now().isoformat(timespec="seconds")
    versions = version.versions()
    log.record(
        type="run",
        name=log.name,
        started=started,
        flags=flags,
        device=device,
        precision=precision,
        precision_reason=reason,
        versions=versions,
        data=data.counts,
        fingerprint=data.fingerprint,
    )
    patience = f"enabled with patience={options.patience}"
    unrepeatable = {"--no_deterministic": not options.deterministic, "--compile": options.compile}
    causes = [flag for flag, is_given in unrepeatable.items() if is_given]
    lines = [
        f"Run: {log.name}",
        f"Started: {started}",
        f"Command: {processes.launch_command()} {shlex.join(sys.argv)}",
        f"Versions: {', '.join(f'{package} {text}' for package, text in versions.items())}",
        *_settings_lines(log, options, flags),
        f"Device: {device}",
        f"Precision: training {precision} ({reason}), scoring fp32",
        f"Not exactly repeatable, because of {' and '.join(causes)}" if causes else "",
        *data.notes,
        *facts,
        f"Encoder: frozen until the end of epoch {options.frozen_until}"
        if options.frozen_until
        else "",
        f"Early stopping {patience if options.early_stopping else 'disabled'}",
        CHOSEN_ON[options.select_on],
    ]
    # A choice at its default has an empty line, which the log leaves out.
    log.line("\n".join(filter(None, lines)))


# The settings that differ from the defaults, after the three that are always there, and where those
# came from that nobody typed.
def _settings_lines(log: RunLog, options: Namespace, flags: Mapping[str, Any]) -> Iterator[str]:
    settings = [
        f"{name}={plain_values.to_text(value)}"
        for name, value in flags.items()
        if name in ("backbone", "dataset", "seed")
        or value != run_options.default_settings().get(name)
    ]
    yield (
        f"Settings: {' '.join(settings)}\n"
        f"All other settings have their defaults, which {log.path('.jsonl').name} lists"
    )
    if options.recipes:
        yield f"Flags from {', '.join(options.recipes)}"
    if options.demo_defaults:
        brought = [_as_flag(name, value) for name, value in options.demo_defaults.items()]
        yield f"The demo brings its own defaults: {' '.join(brought)}"


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name} {parser.typed(value)}"
