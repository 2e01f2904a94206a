"""The records a run leaves: NAME.log as the user saw it, NAME.jsonl for programs, NAME_predictions.csv."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from checkpoints import load_last, newest_round, write_whole
from options import UserError, figure_settings

LOCK_PATIENCE = 8  # seconds; the workers of a killed run hold its lock until they notice


def versions() -> dict[str, str]:
    """Versions of what figures depend on, and the git commit of this code (`unknown` outside a checkout)."""
    found = {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "scipy", "pillow")}
    here = Path(__file__).resolve().parent
    try:
        git = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        commit = git.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"python": platform.python_version(), **found, "commit": commit}


def plain(value: object) -> object:
    """A value as JSON knows it: nan becomes null, paths strings, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


class RunLog:
    """The log and jsonl of a run, open for appending, and its checkpoint folder. Raises UserError.

    A run's folder is locked as long as its process lives, so that no other process takes the run up.
    """

    def __init__(self, log_dir: Path, checkpoint_dir: Path, name: str, explicit: bool):
        """Claim a new name. explicit: it is the user's own, so that a taken one is an error, not a suffix."""
        number = 1
        try:
            while not self._claim(log_dir, checkpoint_dir, name if number == 1 else f"{name}_{number}"):
                if explicit:
                    raise UserError(
                        f"--run_name {name}: taken in {log_dir} or {checkpoint_dir}; choose another or --resume"
                    )
                number += 1
        except OSError as problem:
            raise UserError(f"{problem.filename}: cannot write logs or checkpoints: {problem.strerror}") from None

    def _claim(self, log_dir: Path, checkpoint_dir: Path, name: str) -> bool:
        """Take the name by making its log and folder, which only one of two runs can do."""
        log_dir.mkdir(parents=True, exist_ok=True)
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        log, jsonl, folder = log_dir / f"{name}.log", log_dir / f"{name}.jsonl", checkpoint_dir / name
        if jsonl.exists() or folder.exists():
            return False
        try:
            log.open("x").close()
        except FileExistsError:
            return False
        try:
            folder.mkdir()
        except FileExistsError:
            log.unlink()
            return False
        except OSError:
            log.unlink()
            raise
        self._open(log_dir, folder)
        return True

    @classmethod
    def take_up(cls, log_dir: Path, folder: Path, wait: float = 0) -> RunLog | None:
        """The run of a checkpoint folder, to go on with; None while another process has it, after `wait` seconds."""
        log = cls.__new__(cls)
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            log._open(log_dir, folder, wait)
        except Timeout:
            return None
        except OSError as problem:
            raise UserError(f"{problem.filename}: cannot write logs or checkpoints: {problem.strerror}") from None
        return log

    def _open(self, log_dir: Path, folder: Path, wait: float = 0) -> None:
        self.name, self.log_dir, self.checkpoints = folder.name, log_dir, folder
        self._board = None
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
        self._write(self._log, text)

    def record(self, **fields: object) -> None:
        """Append a record to the jsonl; nan becomes null."""
        self._write(self._records, json.dumps(plain(fields)))
        if self._board is not None and fields.get("type") == "epoch":
            for part, figures in fields.items():
                for name, value in figures.items() if isinstance(figures, Mapping) else ():
                    if value is not None:
                        self._board.add_scalar(f"round{fields['round']}/{part}/{name}", value, fields["epoch"])
            self._board.flush()

    def open_board(self, first_epoch: int) -> None:
        """Write TensorBoard events too, to NAME.tensorboard/; what is there from `first_epoch` on is superseded."""
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

        self._board = SummaryWriter(str(self.path(".tensorboard")), purge_step=first_epoch)

    def _write(self, file: io.TextIOBase, text: str) -> None:
        try:
            file.write(text + "\n")
            file.flush()
        except OSError as problem:
            raise UserError(f"{file.name}: cannot be written: {problem.strerror}") from None

    def predictions(self, round_number: int, rows: Iterable[tuple[str, str, float, float]]) -> None:
        """Replace the round's predictions file: rows of dataset, image, MOS, score."""
        ending = "_predictions.csv" if round_number == 1 else f"_round{round_number}_predictions.csv"
        write_predictions(self.path(ending), rows)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        self._log.close()
        self._records.close()
        self._lock.release()


def write_predictions(path: Path, rows: Iterable[tuple[str, str, float, float]]) -> None:
    """A predictions file, whole or not at all: rows of dataset, image, MOS and score as the model gave it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "image", "mos", "score"])
    writer.writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def read_records(path: Path) -> list[dict[str, object]]:
    """The records of a jsonl; a line that a crash cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def differing(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """`name one -> other` for every setting in which two runs differ."""
    names = sorted(one.keys() | other.keys())
    return [f"{n} {one.get(n)} -> {other.get(n)}" for n in names if one.get(n) != other.get(n)]


def open_run(
    log_dir: Path,
    checkpoint_dir: Path,
    own_name: str | None,
    default_name: str,
    resume: str | None,
    settings: Mapping[str, object],
) -> tuple[RunLog, dict[str, object] | None]:
    """A new run's log, or an unfinished run's with the state to go on from (None: from its beginning).

    own_name: the user's `--run_name`; resume: None, `auto` (the newest unfinished run of these settings, a new
    one if there is none) or the path of a `last.pt` or its folder. settings: those that figures depend on, as
    `plain` gives them, the records' fingerprint included. Raises UserError.
    """
    if resume not in (None, "auto"):
        folder = Path(resume) if Path(resume).is_dir() else Path(resume).parent
        return _open_named_run(log_dir, folder.parent if folder.name.startswith("round") else folder, settings)
    for name in _unfinished_runs(log_dir, settings) if resume else ():
        folder = checkpoint_dir / name
        if own_name in (None, name) and folder.is_dir() and (log := RunLog.take_up(log_dir, folder, LOCK_PATIENCE)):
            if _is_unfinished(log.path(".jsonl"), settings):  # still: its process may have ended it meanwhile
                return log, _state_to_go_on_from(log, settings)
            log.close()
    log = RunLog(log_dir, checkpoint_dir, own_name or default_name, own_name is not None)
    if resume:
        log.show("Nothing to resume: starting a new run")
    return log, None


def _open_named_run(
    log_dir: Path, folder: Path, settings: Mapping[str, object]
) -> tuple[RunLog, dict[str, object] | None]:
    """The run that the user named; an error where it is another's, in use, or not readable."""
    state, note = load_last(newest_round(folder))
    if not isinstance(state, dict) or "settings" not in state:
        raise UserError(f"--resume {folder}: expected the last.pt of a run of these scripts, found another checkpoint")
    if differences := differing(state["settings"], settings):
        raise UserError(f"--resume {folder}: other settings (the run's -> yours): {'; '.join(differences)}")
    log = RunLog.take_up(log_dir, folder, LOCK_PATIENCE)
    if log is None:
        raise UserError(f"--resume {folder}: another process is going on with this run")
    return log, _at(log, state, note)


def _unfinished_runs(log_dir: Path, settings: Mapping[str, object]) -> Iterator[str]:
    """Names of the runs in `log_dir` with these settings that did not finish, newest first."""
    for path in sorted(log_dir.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if _is_unfinished(path, settings):
            yield path.stem


def _is_unfinished(path: Path, settings: Mapping[str, object]) -> bool:
    records = read_records(path)
    if not records or records[0].get("type") != "run" or "flags" not in records[0]:
        return False
    ended = records[-1].get("status") if records[-1].get("type") == "end" else None
    theirs = {**figure_settings(records[0]["flags"]), "fingerprint": records[0].get("fingerprint")}
    return ended not in ("finished", "early_stopped") and theirs == settings


def _state_to_go_on_from(log: RunLog, settings: Mapping[str, object]) -> dict[str, object] | None:
    """The run's newest readable state; None, and an empty log, where it has none."""
    folder = newest_round(log.checkpoints)
    try:
        if (folder / "last.pt").exists():
            state, note = load_last(folder)
            if not differing(state["settings"], settings):
                return _at(log, state, note)
        log.show(f"Starting {log.name} again: it was stopped before its first checkpoint")
    except UserError as damage:
        log.show(f"{damage}; starting {log.name} again")
    log.cut_back([0, 0])
    return None


def _at(log: RunLog, state: dict[str, object], note: str) -> dict[str, object]:
    """Cut the log back to where the state was saved, and say what happens."""
    log.cut_back(state["lengths"])
    step = f", step {state['progress']['step']}" if state["progress"] else " done"
    log.show(
        (note + "\n" if note else "") + f"Resuming {log.name}: round {state['round']}, epoch {state['epoch']}{step}"
    )
    return state


def epoch_columns(parts: Iterable[str]) -> str:
    """The header of the epoch rows; parts: of train, val, test, spaq those that are measured."""
    titles = {"train": "Train", "val": "Val", "test": "Test", "spaq": "SPAQ"}
    return "\t".join(["Epoch", "Train_Loss", *(f"{titles[p]}_{figure}" for p in parts for figure in ("SRCC", "PLCC"))])


def epoch_row(epoch: int, result: Mapping[str, Mapping[str, float]], parts: Iterable[str]) -> str:
    """An epoch's row under `epoch_columns(parts)`."""
    train = result["train"]
    loss = f"{train['loss']:.3f}"
    if "rank" in train:
        loss += f" (L1:{train['l1']:.3f},Rank:{train['rank']:.3f})"
    return "\t".join([str(epoch), loss, *(f"{result[p][figure]:.4f}" for p in parts for figure in ("srcc", "plcc"))])
