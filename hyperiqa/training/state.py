"""The state from which a run goes on exactly, and the search for the run to go on with."""

import math
import os
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from hyperiqa.base import errors, plain_values
from hyperiqa.model.checkpoints import load, load_model, save
from hyperiqa.training import (
    engine,
    log as logs,
    options as run_options,
    processes,
    run_files,
    schedules,
)

# Seconds; the workers of a killed run hold its lock until they notice.
LOCK_PATIENCE = 8


@dataclass
class RunState:
    """All that a run must remember: its place, the state of its epoch, and its best epoch.

    settings: what the figures depend on, see `settings_of`.
    round, epoch: counted from 1; an `epoch` of 0 means that the round has not begun to train.
    progress: the state of the current epoch; None between epochs.
    without_gain: epochs since the best one.
    best: number, result, model files and predictions of the best epoch.
    rounds: the figures of finished rounds.
    history: the SRCC of each epoch of this round, by which the best is chosen.
    scores: part -> the scores (N,) of each epoch of this round.
    precision: bf16 or fp32, in which the run trains from its first step to its last.
    seconds: what training and testing have taken in all finished epochs.
    Weights and optimizer are saved with it.
    """

    settings: Mapping[str, Any]
    round: int = 1
    epoch: int = 0
    progress: engine.EpochProgress | None = None
    without_gain: int = 0
    best: dict | None = None
    rounds: list[dict] = field(default_factory=list)
    history: list[float] = field(default_factory=list)
    scores: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    precision: str = ""
    seconds: float = 0.0

    def next_round(self, number: int) -> None:
        """Begin round `number`, unless it is the one that is under way."""
        if number != self.round:
            begun = RunState(
                self.settings,
                number,
                rounds=self.rounds,
                precision=self.precision,
                seconds=self.seconds,
            )
            vars(self).update(vars(begun))

    def is_better(self, part: str, srcc: float) -> bool | None:
        """Whether an epoch's SRCC is the best so far.

        None as long as no SRCC was defined: the newest epoch is kept then.
        """
        best = self.best["result"][part]["srcc"] if self.best else math.nan
        if math.isnan(srcc):
            return None if math.isnan(best) else False
        return math.isnan(best) or srcc > best

    def keep(self, result: dict, file: str, predictions: Sequence[run_files.Prediction]) -> None:
        """Record the epoch as the best. Its model's file becomes the first of the files."""
        older = self.best["files"] if self.best else []
        self.best = {
            "epoch": self.epoch,
            "result": result,
            "files": [file, *(name for name in older if name != file)],
            "predictions": predictions,
        }

    def epochs_left(self, epochs: int) -> range:
        """The epochs that are still to run, the one that was interrupted included."""
        return range(self.epoch + (self.progress is None), epochs + 1)

    def save(self, folder: Path, parts: Mapping[str, Any], log: logs.RunLog) -> None:
        """Write everything that the rest of the run depends on, as of now.

        parts: the state dicts of model, optimizer and average. Raises NonFiniteLoss.
        """
        # A state after a loss of nan is worthless, and would replace a good one.
        if self.progress is not None:
            self.progress.check_finite()
        saved = {**vars(self), "progress": self.progress.state() if self.progress else None}
        save_last(folder, {**saved, **parts, "lengths": log.lengths()})
        # previous.pt may still name the best model before this one.
        self.clear_models(folder, keep=2)

    def clear_models(self, folder: Path, keep: int) -> None:
        """Remove the run's older best models, except the `keep` newest."""
        if self.best:
            self.best["files"] = self.best["files"][:keep]
            for path in folder.glob("best_model_srcc_*.pkl"):
                if path.name not in self.best["files"] and _is_model_of_run(path):
                    # The adapter first: a model that is left over is found again.
                    path.with_name(path.stem + run_files.ADAPTER).unlink(missing_ok=True)
                    path.unlink()

    @classmethod
    def restored(
        cls, saved: Mapping, settings: Mapping[str, Any], device: torch.device
    ) -> "RunState":
        """The state that `save` wrote, by this version or an older one."""
        names = ["round", "epoch", "without_gain", "best", "rounds", "precision"]
        # States of versions before 0.9 lack these three.
        names += [name for name in ("history", "scores", "seconds") if name in saved]
        state = cls(settings, **{name: saved[name] for name in names})
        if saved["progress"]:
            state.progress = engine.EpochProgress.from_state(saved["progress"], device)
        if state.best:
            state.best["predictions"] = [tuple(row) for row in state.best["predictions"]]
        return state


def _is_model_of_run(path: Path) -> bool:
    """Whether a best model is of the run that the folder belongs to, as its metadata say."""
    if not re.fullmatch(run_files.BEST_MODEL, path.name):
        return False
    try:
        _, description = load_model(path)
    except errors.UserError:
        return False
    return description.get("run") == _run_folder(path).name


def open_run(
    options: Namespace, default_name: str, settings: Mapping[str, Any]
) -> tuple[logs.RunLog, dict | None]:
    """`find_run` for all processes: the first one gets the log, the others get silent ones."""
    opened: list[logs.RunLog] = []

    def find() -> tuple[Path, dict | None]:
        log, saved = find_run(options, default_name, settings)
        opened.append(log)
        return log.checkpoints, saved

    # A log holds open files, so only its folder can be sent to the other processes.
    folder, saved = processes.from_rank_zero(find)
    return opened[0] if opened else logs.SilentLog(options.log_dir, folder), saved


def find_run(
    options: Namespace, default_name: str, settings: Mapping[str, Any]
) -> tuple[logs.RunLog, dict | None]:
    """The log of a new run, or the log of an unfinished run and the state to go on from.

    The state is None if the run starts from its beginning. Without `--resume` the run is new. With
    `auto` it is the newest unfinished run of these settings, or a new one if there is none. Any
    other value is the path of a last.pt or of its folder.
    settings: the settings that figures depend on, with the fingerprint of the records.
    Raises UserError, or NothingToDo if the run that the user named is done.
    """
    if options.resume not in (None, "auto"):
        folder = _run_folder(Path(options.resume))
        return _resume_named(options, folder, settings, f"--resume {folder}")
    if options.resume and options.run_name:
        path = options.log_dir / f"{options.run_name}.jsonl"
        flag = f"--run_name {options.run_name}"
        recorded = _recorded_settings(path)
        if recorded and _end_status(path):
            return _resume_named(options, options.checkpoint_dir / options.run_name, settings, flag)
        if recorded:
            _check_same(recorded, settings, flag)
    resumed = _resume_newest(options, settings) if options.resume else None
    if resumed:
        return resumed
    log = logs.RunLog(
        options.log_dir,
        options.checkpoint_dir,
        options.run_name or default_name,
        explicit=options.run_name is not None,
    )
    if options.resume:
        log.show(f"Nothing to resume: starting a new run{_nearest_run(options, settings)}")
    return log, None


def _run_folder(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    # The states of later rounds are in subfolders of the run's folder.
    return folder.parent if folder.name.startswith("round") else folder


def _resume_named(
    options: Namespace, folder: Path, settings: Mapping[str, Any], flag: str
) -> tuple[logs.RunLog, dict]:
    """The run that the user named, to be finished, or to be made longer if it has ended.

    flag: how the user named it. Raises UserError if it has other settings or another process has
    it, and NothingToDo if it is done.
    """
    state, note = load_last(newest_round(folder))
    if not isinstance(state, dict) or "settings" not in state:
        raise errors.UserError(
            f"{flag}: expected the last.pt of a run of these scripts, found another checkpoint"
        )
    recorded = settings_of(state["settings"])
    _check_own_log(options.log_dir, folder.name, recorded, flag)
    status = _end_status(options.log_dir / f"{folder.name}.jsonl")
    if status:
        # A run that has ended may be given more epochs.
        _check_same({**recorded, "epochs": settings["epochs"]}, settings, flag)
        _check_longer(options, folder.name, recorded["epochs"], status, flag)
    else:
        _check_same(recorded, settings, flag)
    log = logs.RunLog.take_up(options.log_dir, folder, LOCK_PATIENCE)
    if log is None:
        raise errors.UserError(f"{flag}: another process is going on with this run")
    return log, _go_back_to(log, state, note)


def _check_own_log(log_dir: Path, name: str, recorded: Mapping[str, Any], flag: str) -> None:
    """Check that the log belongs to the run, before it is cut back to the state.

    recorded: the settings of the state. Raises UserError.
    """
    log_settings = _recorded_settings(log_dir / f"{name}.jsonl")
    # A run that was made longer has more epochs than its first record says.
    if log_settings and {**log_settings, "epochs": recorded["epochs"]} == recorded:
        return
    for ending in (".jsonl", ".log"):
        path = log_dir / f"{name}{ending}"
        if path.exists() and path.stat().st_size:
            raise errors.UserError(
                f"{flag}: {path} is not of this run; give --log_dir or move it away"
            )


def _check_same(recorded: Mapping[str, Any], settings: Mapping[str, Any], flag: str) -> None:
    differences = _differences(recorded, settings)
    if differences:
        raise errors.UserError(
            f"{flag}: other settings (the run's -> yours): {'; '.join(differences)}"
        )


def _check_longer(options: Namespace, name: str, epochs: int, status: str, flag: str) -> None:
    """Check that a run that has ended after `epochs` can go on to the epochs that are asked for.

    Raises NothingToDo if no more epochs are asked for or they would change nothing, and UserError
    if the run cannot go on.
    """
    if options.epochs <= epochs:
        length = f", of {errors.counted(epochs, 'epoch')}" if options.epochs < epochs else ""
        raise errors.NothingToDo(f"{name} has finished already{length}")
    if status == "early_stopped":
        raise errors.NothingToDo(f"{name} stopped early: more epochs would change nothing")
    longer = (
        f"{flag}: it has finished its {errors.counted(epochs, 'epoch')} and cannot go on to "
        f"{options.epochs}"
    )
    if not schedules.make_schedule(options).extendable:
        raise errors.UserError(
            f"{longer}: the rates of --lr_scheduler {options.lr_scheduler} depend on --epochs"
        )
    if options.train_test_num > 1:
        raise errors.UserError(f"{longer}: its earlier rounds have ended")


def _resume_newest(
    options: Namespace, settings: Mapping[str, Any]
) -> tuple[logs.RunLog, dict | None] | None:
    for name, _ in _unfinished_runs(options, settings):
        folder = options.checkpoint_dir / name
        log = (
            logs.RunLog.take_up(options.log_dir, folder, LOCK_PATIENCE) if folder.is_dir() else None
        )
        if log is None:
            continue
        # Look again under the lock: the run's own process may have ended it meanwhile.
        path = log.path(".jsonl")
        if not _end_status(path) and _recorded_settings(path) == settings:
            return log, _newest_state(log, settings)
        log.close()
    return None


def _newest_state(log: logs.RunLog, settings: Mapping[str, Any]) -> dict | None:
    """The run's newest readable state; if there is none, None, and the log is emptied."""
    folder = newest_round(log.checkpoints)
    try:
        if (folder / "last.pt").exists():
            state, note = load_last(folder)
            if settings_of(state["settings"]) == settings:
                return _go_back_to(log, state, note)
        log.show(f"Starting {log.name} again: it was stopped before its first checkpoint")
    except errors.UserError as damage:
        log.show(f"{damage}; starting {log.name} again")
    log.cut_back([0, 0])
    return None


def _go_back_to(log: logs.RunLog, state: dict, note: str) -> dict:
    """Cut the log back to where the state was saved, and say so in it; returns the state.

    note: a further line for the log, see `load_last`.
    """
    log.cut_back(state["lengths"])
    # States of versions before 0.9 leave it to the run's first record.
    state.setdefault("precision", _records(log.path(".jsonl"))[0].get("precision"))
    step = f", step {state['progress']['step']}" if state["progress"] else " done"
    note += "\n" if note else ""
    log.line(
        f"{note}Resuming {log.name}: round {state['round']}, epoch {state['epoch']}{step} "
        f"({datetime.now():%Y-%m-%d %H:%M:%S})"
    )
    return state


def _unfinished_runs(
    options: Namespace, settings: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, dict]]:
    """Yield the unfinished runs of the log folder, newest first: (name, settings).

    settings: yield only the runs of these settings. `--run_name` limits the runs to its own.
    """
    paths = filter(Path.is_file, options.log_dir.glob(f"{options.run_name or '*'}.jsonl"))
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        recorded = None if _end_status(path) else _recorded_settings(path)
        if recorded and settings in (None, recorded):
            yield path.stem, recorded


def _nearest_run(options: Namespace, settings: Mapping[str, Any]) -> str:
    """A note on the unfinished run with the most similar settings; "" if there is none.

    The differences are likely flags that the user forgot.
    """
    runs = {name: _differences(recorded, settings) for name, recorded in _unfinished_runs(options)}
    # A run without differences belongs to another process.
    name = min(filter(runs.get, runs), key=lambda name: len(runs[name]), default=None)
    if name is None:
        return ""
    return f" (the nearest unfinished one, {name}, has other settings: {'; '.join(runs[name])})"


def settings_of(run: Mapping) -> dict[str, Any]:
    """The settings that a run's figures depend on, in the form of this version.

    run: the run's flags, of this version or an older one, and the `fingerprint` of its records.
    """
    return {
        **run_options.figure_settings(run),
        "fingerprint": plain_values.to_json_value(run.get("fingerprint")),
    }


def _records(path: Path) -> list[dict]:
    """The records of a run; a single empty one if none can be read."""
    try:
        return run_files.read_records(path) or [{}]
    except errors.UserError:
        return [{}]


def _recorded_settings(path: Path) -> dict[str, Any] | None:
    first = _records(path)[0]
    if first.get("type") != "run" or not isinstance(first.get("flags"), dict):
        return None
    return settings_of({**first["flags"], "fingerprint": first.get("fingerprint")})


def _end_status(path: Path) -> str | None:
    """How the run in a jsonl ended; None if it can go on, as after an interruption."""
    status = _records(path)[-1].get("status")
    return status if status in ("finished", "early_stopped") else None


def _differences(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {recorded.get(name)} -> {settings.get(name)}"
        for name in sorted(recorded.keys() | settings.keys())
        if recorded.get(name) != settings.get(name)
    ]


def save_last(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `last.pt`, keeping the one before as `previous.pt`: one of them is always whole."""
    last = folder / "last.pt"
    spare = folder / ".previous.pt.tmp"
    if last.exists():
        spare.unlink(missing_ok=True)
        try:
            os.link(last, spare)
        # Some file systems have no hard links.
        except OSError:
            shutil.copyfile(last, spare)
        spare.replace(folder / "previous.pt")
    save(last, state)


def load_last(folder: Path) -> tuple[dict[str, Any], str]:
    """The state that `save_last` wrote, and a note for the user.

    The note is empty unless `last.pt` was damaged. Raises UserError if neither file can be read.
    """
    try:
        return load(folder / "last.pt"), ""
    except errors.UserError as damage:
        previous = folder / "previous.pt"
        if not previous.exists():
            raise
        state = load(previous)
        # Otherwise the next save would replace the good file by the damaged one.
        previous.replace(folder / "last.pt")
        return state, f"{damage}; falling back to previous.pt"


def newest_round(folder: Path) -> Path:
    """The folder of a run's newest `last.pt`: the run's own, or `round2`, `round3`, … in it."""
    rounds = [
        (int(path.parent.name[len("round") :]), path.parent)
        for path in folder.glob("round*/last.pt")
        if path.parent.name[len("round") :].isdecimal()
    ]
    return max(rounds)[1] if rounds else folder
