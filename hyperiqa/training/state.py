"""What a run must remember to go on exactly where it was, and finding the run to go on with."""

import math
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hyperiqa.base.errors import NothingToDo, UserError
from hyperiqa.base.plain_values import to_json_value
from hyperiqa.model.checkpoints import load, save
from hyperiqa.training import processes
from hyperiqa.training.engine import EpochProgress
from hyperiqa.training.log import RunLog, SilentLog
from hyperiqa.training.options import figure_settings
from hyperiqa.training.run_files import Prediction, read_records
from hyperiqa.training.schedules import make_schedule

LOCK_PATIENCE = 8  # seconds; the workers of a killed run hold its lock until they notice


@dataclass
class RunState:
    """All that a run must remember: where it is, what its epoch has brought so far, and what was best.
    `round` and `epoch` count from 1; `progress` is None between epochs. `best` has the best epoch's number, result,
    model files and predictions; `rounds` the figures of finished rounds; `history` the SRCC of each epoch of this one,
    by which the best is chosen; `scores` part -> what each epoch of it scored (N,). Weights and optimizer are saved
    with it."""

    settings: Mapping[str, Any]
    round: int = 1
    epoch: int = 0
    progress: EpochProgress | None = None
    without_gain: int = 0
    best: dict | None = None
    rounds: list[dict] = field(default_factory=list)
    history: list[float] = field(default_factory=list)
    scores: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def next_round(self, number: int) -> None:
        """Begin round `number`, unless it is the one that is under way."""
        if number != self.round:
            self.round, self.epoch, self.progress, self.without_gain, self.best = (
                number,
                0,
                None,
                0,
                None,
            )
            self.history, self.scores = [], {}

    def is_better(self, part: str, srcc: float) -> bool | None:
        """Whether an epoch's SRCC is the best so far; None as long as none was defined: the newest is kept then."""
        best = self.best["result"][part]["srcc"] if self.best else math.nan
        if math.isnan(srcc):
            return None if math.isnan(best) else False
        return math.isnan(best) or srcc > best

    def keep(self, result: dict, file: str, predictions: Sequence[Prediction]) -> None:
        """Make the epoch the best; its model's file goes before those of the ones before."""
        older = [name for name in self.best["files"] if name != file] if self.best else []
        self.best = {
            "epoch": self.epoch,
            "result": result,
            "files": [file, *older],
            "predictions": predictions,
        }

    def epochs_left(self, epochs: int) -> range:
        """The epochs to run: the counter starts elsewhere in a run that goes on."""
        return range(self.epoch + (self.progress is None), epochs + 1)

    def save(self, folder: Path, parts: Mapping[str, Any], log: RunLog) -> None:
        """Write everything that the rest of the run depends on, as of now. parts: the state dicts of model, optimizer
        and average. Raises NonFiniteLoss."""
        if self.progress is not None:
            self.progress.check_finite()
        saved = {**vars(self), "progress": self.progress.state() if self.progress else None}
        save_last(folder, {**saved, **parts, "lengths": log.lengths()})
        self.clear_models(
            folder, keep=2
        )  # previous.pt may still name the best model before this one

    def clear_models(self, folder: Path, keep: int) -> None:
        """Remove older best models, but for those that a state which could be resumed from still names."""
        if self.best:
            self.best["files"] = self.best["files"][:keep]
            for path in folder.glob("best_model_srcc_*.pkl"):
                if path.name not in self.best["files"]:
                    path.unlink()

    @classmethod
    def restored(
        cls, saved: Mapping, settings: Mapping[str, Any], device: torch.device
    ) -> "RunState":
        """The state that `save` wrote, by this version or an older one."""
        state = cls(
            settings,
            **{name: saved[name] for name in ("round", "epoch", "without_gain", "best", "rounds")},
        )
        state.history, state.scores = (
            saved.get("history", []),
            saved.get("scores", {}),
        )  # absent before 0.9
        if saved["progress"]:
            state.progress = EpochProgress.from_state(saved["progress"], device)
        if state.best:
            state.best["predictions"] = [tuple(row) for row in state.best["predictions"]]
        return state


def open_run(
    options: Namespace, default_name: str, settings: Mapping[str, Any]
) -> tuple[RunLog, dict | None]:
    """`find_run` for all processes: the first one has the log, the others one that is silent."""
    own: list[RunLog] = []

    def find() -> tuple[Path, dict | None]:
        log, saved = find_run(options, default_name, settings)
        own.append(log)
        return log.checkpoints, saved

    folder, saved = processes.from_rank_zero(find)
    return (own or [SilentLog(options.log_dir, folder)])[0], saved


def find_run(
    options: Namespace, default_name: str, settings: Mapping[str, Any]
) -> tuple[RunLog, dict | None]:
    """A new run's log, or an unfinished run's with the state to go on from (None: from its beginning).
    By `--resume`: absent, `auto` (the newest unfinished run of these settings, a new one if there is none) or the path
    of a last.pt or its folder. settings: those that figures depend on, the records' fingerprint included. Raises
    UserError, and NothingToDo where the run that was named is done."""
    o = options
    if o.resume not in (None, "auto"):
        folder = Path(o.resume) if Path(o.resume).is_dir() else Path(o.resume).parent
        folder = folder.parent if folder.name.startswith("round") else folder
        return _go_on(o, folder, settings, f"--resume {folder}")
    if o.resume and o.run_name and (theirs := _settings(path := o.log_dir / f"{o.run_name}.jsonl")):
        if _ended(path):
            return _go_on(o, o.checkpoint_dir / o.run_name, settings, f"--run_name {o.run_name}")
        _check_same(theirs, settings, f"--run_name {o.run_name}")
    for name, _ in _unfinished(o, settings) if o.resume else ():
        folder = o.checkpoint_dir / name
        if folder.is_dir() and (log := RunLog.take_up(o.log_dir, folder, LOCK_PATIENCE)):
            path = log.path(".jsonl")  # still: its process may have ended it meanwhile
            if not _ended(path) and _settings(path) == settings:
                return log, _state_to_go_on_from(log, settings)
            log.close()
    log = RunLog(o.log_dir, o.checkpoint_dir, o.run_name or default_name, o.run_name is not None)
    if o.resume:
        log.show(f"Nothing to resume: starting a new run{_nearest(o, settings, log.name)}")
    return log, None


def _go_on(
    o: Namespace, folder: Path, settings: Mapping[str, Any], asked: str
) -> tuple[RunLog, dict]:
    """The run that the user named, unfinished or to be made longer; an error where it is another's or in use."""
    state, note = load_last(newest_round(folder))
    if not isinstance(state, dict) or "settings" not in state:
        raise UserError(
            f"{asked}: expected the last.pt of a run of these scripts, found another checkpoint"
        )
    theirs, status = settings_of(state["settings"]), _ended(o.log_dir / f"{folder.name}.jsonl")
    _check_same({**theirs, "epochs": settings["epochs"]} if status else theirs, settings, asked)
    if status:
        _check_longer(o, folder.name, theirs["epochs"], status, asked)
    if log := RunLog.take_up(o.log_dir, folder, LOCK_PATIENCE):
        return log, _at(log, state, note)
    raise UserError(f"{asked}: another process is going on with this run")


def _check_same(theirs: Mapping[str, Any], settings: Mapping[str, Any], asked: str) -> None:
    if differences := differing(theirs, settings):
        raise UserError(f"{asked}: other settings (the run's -> yours): {'; '.join(differences)}")


def _check_longer(o: Namespace, name: str, epochs: int, status: str, asked: str) -> None:
    """NothingToDo unless more epochs are asked of a run that has ended; UserError where it cannot be given them."""
    if o.epochs <= epochs:
        raise NothingToDo(
            f"{name} has finished already{f', of {epochs} epochs' if o.epochs < epochs else ''}"
        )
    if status == "early_stopped":
        raise NothingToDo(
            f"{name} stopped early, before its {epochs} epochs were over: more would change nothing"
        )
    longer = f"{asked}: it has finished its {epochs} epochs and cannot go on to {o.epochs}"
    if not make_schedule(o).extendable:
        raise UserError(
            f"{longer}: the rates of --lr_scheduler {o.lr_scheduler} depend on --epochs"
        )
    if o.train_test_num > 1:
        raise UserError(f"{longer}: its rounds before the last have ended")


def settings_of(run: Mapping) -> dict[str, Any]:
    """What a run's figures depend on, of its flags and the `fingerprint` of its records: in the form of this version,
    also of what an older one saved."""
    return {**figure_settings(run), "fingerprint": to_json_value(run.get("fingerprint"))}


def _records(path: Path) -> list[dict]:
    try:
        return read_records(path) or [{}]
    except UserError:
        return [{}]


def _settings(path: Path) -> dict[str, Any] | None:
    """The settings of the run in a jsonl; None where it holds none."""
    first = _records(path)[0]
    if first.get("type") != "run" or not isinstance(first.get("flags"), dict):
        return None
    return settings_of({**first["flags"], "fingerprint": first.get("fingerprint")})


def _ended(path: Path) -> str | None:
    """How the run in a jsonl came to its end; None where it did not."""
    status = _records(path)[-1].get("status")
    return status if status in ("finished", "early_stopped") else None


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """`name one -> other` for every setting in which two runs differ."""
    names = sorted(one.keys() | other.keys())
    return [f"{n} {one.get(n)} -> {other.get(n)}" for n in names if one.get(n) != other.get(n)]


def _unfinished(
    o: Namespace, settings: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, dict]]:
    """Unfinished runs of the log folder, newest first, and their settings: those of these settings, or all."""
    paths = [o.log_dir / f"{o.run_name}.jsonl"] if o.run_name else o.log_dir.glob("*.jsonl")
    for path in sorted(
        filter(Path.is_file, paths), key=lambda path: path.stat().st_mtime_ns, reverse=True
    ):
        if not _ended(path) and (theirs := _settings(path)) and settings in (None, theirs):
            yield path.stem, theirs


def _nearest(o: Namespace, settings: Mapping[str, Any], own: str) -> str:
    """Which unfinished run comes nearest to what was asked for, and what differs: likely a flag that was forgotten."""
    others = [(name, differing(theirs, settings)) for name, theirs in _unfinished(o) if name != own]
    name, found = min(
        (other for other in others if other[1]), key=lambda other: len(other[1]), default=("", [])
    )
    return (
        f" (the nearest unfinished one, {name}, has other settings: {'; '.join(found)})"
        if found
        else ""
    )


def _state_to_go_on_from(log: RunLog, settings: Mapping[str, Any]) -> dict | None:
    """The run's newest readable state; None, and an empty log, where it has none."""
    folder = newest_round(log.checkpoints)
    try:
        if (folder / "last.pt").exists():
            state, note = load_last(folder)
            if settings_of(state["settings"]) == settings:
                return _at(log, state, note)
        log.show(f"Starting {log.name} again: it was stopped before its first checkpoint")
    except UserError as damage:
        log.show(f"{damage}; starting {log.name} again")
    log.cut_back([0, 0])
    return None


def _at(log: RunLog, state: dict, note: str) -> dict:
    """Cut the log back to where the state was saved, and say what happens."""
    log.cut_back(state["lengths"])
    step = f", step {state['progress']['step']}" if state["progress"] else " done"
    note += "\n" if note else ""
    log.show(f"{note}Resuming {log.name}: round {state['round']}, epoch {state['epoch']}{step}")
    return state


def save_last(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `last.pt`; the one before stays as `previous.pt`. At every moment one of them is whole."""
    last, spare = folder / "last.pt", folder / ".previous.pt.tmp"
    if last.exists():
        spare.unlink(missing_ok=True)
        try:
            os.link(last, spare)
        except OSError:  # a file system without hard links
            shutil.copyfile(last, spare)
        spare.replace(folder / "previous.pt")
    save(last, state)


def load_last(folder: Path) -> tuple[dict[str, Any], str]:
    """The state that `save_last` wrote, and what to tell the user where `last.pt` was damaged (else "").
    Raises UserError where neither file can be read."""
    try:
        return load(folder / "last.pt"), ""
    except UserError as damage:
        previous = folder / "previous.pt"
        if not previous.exists():
            raise
        state = load(previous)
        previous.replace(
            folder / "last.pt"
        )  # or the next save would put the damaged one where the good one lies
        return state, f"{damage}; falling back to previous.pt"


def newest_round(folder: Path) -> Path:
    """Where a run's newest `last.pt` lies: its folder, or that of its last round (`round2`, `round3`, …)."""
    rounds = sorted(
        folder.glob("round*/last.pt"), key=lambda path: int(path.parent.name.removeprefix("round"))
    )
    return rounds[-1].parent if rounds else folder
