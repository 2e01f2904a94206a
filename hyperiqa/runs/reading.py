"""Runs as the comparison tools see them: read from jsonl or plain log, measured with intervals, put into a table.

A `Run` is one round of one file; an `Entry` is a row of the table: a run, or several seeds of one setting."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hyperiqa.base.errors import UserError, reading_file
from hyperiqa.runs.old_logs import read_log
from hyperiqa.stats import metrics
from hyperiqa.stats.intervals import NAN
from hyperiqa.training import run_files

UNDER_WAY = "running or killed"
DONE = ("finished", "early_stopped")
_NOT_SETTINGS = run_files.NOT_FIGURES | {"precision"}  # which is shown as what it came to

Key = tuple[str, int]


@dataclass(frozen=True)
class Scores:
    """A run's predictions on one set, sorted by image: keys (name, how often it came before), MOS and score (N,)."""

    keys: tuple[Key, ...]
    mos: np.ndarray
    score: np.ndarray

    def on(self, keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
        """(scores, MOS) of these images."""
        place = {key: i for i, key in enumerate(self.keys)}
        chosen = [place[key] for key in keys]
        return self.score[chosen], self.mos[chosen]


@dataclass(frozen=True, eq=False)
class Run:
    """One round of a run. epochs: number -> its jsonl record; best: the epoch the run chose, 0 if it has none."""

    name: str
    path: Path
    settings: dict[str, str]
    images: dict[str, int]
    epochs: dict[int, dict]
    best: int
    status: str
    predictions: Path | None
    price: float = NAN  # by how much choosing the epoch on the test set flatters the SRCC

    @property
    def backbone(self) -> str:
        return self.settings.get("backbone", "?").removesuffix("_patch4_window7_224")

    def epoch(self, which: str) -> int:
        """`best`, `last` or a number -> epoch; 0 where the run has none such."""
        named = {"best": self.best, "last": max(self.epochs, default=0)}
        return (named | {str(number): number for number in self.epochs}).get(which, 0)

    @property
    def cross_tests(self) -> list[str]:
        """The sets that the epochs were tested on besides, in the order of the records."""
        parts = {
            part: None
            for e in self.epochs.values()
            for part, found in e.items()
            if isinstance(found, dict)
        }
        return [part for part in parts if part not in ("train", "val", "test", "lr", "seconds")]

    def figure(self, part: str, name: str, epoch: int) -> float:
        value = self.epochs.get(epoch, {}).get(part, {}).get(name)
        return NAN if value is None else float(value)

    @property
    def minutes(self) -> float:
        """Mean minutes per epoch, nan where the log has no times."""
        seconds = [sum(e["seconds"].values()) for e in self.epochs.values() if e.get("seconds")]
        return sum(seconds) / len(seconds) / 60 if seconds else NAN

    @cached_property
    def _predicted(self) -> tuple[dict[str, Scores], str]:
        """The predictions by data set, and what keeps them from being read."""
        try:
            return read_predictions(self.predictions) if self.predictions else {}, ""
        except UserError as mistake:
            return {}, str(mistake)

    @property
    def trained_on_several(self) -> bool:
        """Whether its test figures are means over several sets, which no one list of scores has."""
        return "+" in (self.settings.get("dataset") or "")

    def predictions_problem(self) -> str:
        """Why the predictions beside the run are of no use; empty where they are, or where there are none."""
        if (
            self.predictions is None
            or self.scores("test")
            or math.isnan(self.figure("test", "srcc", self.best))
        ):
            return ""
        if self.trained_on_several or self._predicted[1]:
            return self._predicted[1]
        return f"{self.predictions}: left out, the SRCC of its scores is not that of epoch {self.best} in {self.path.name}"

    def scores(self, part: str) -> Scores | None:
        """Predictions on `test` or a cross test whose SRCC is the recorded one of the best epoch; None without such.
        A model of badness has its scores on a cross test negated, which is what the recorded figures are of."""
        sets, own = self._predicted[0], self.settings.get("dataset")
        test = own if own in sets or self.trained_on_several else next(iter(sets), None)
        # SPAQ's whole release goes by a name of its own, spaq-official.
        cross = next(
            (name for name in sets if name != test and name in (part, f"{part}-official")), None
        )
        found = sets.get(test if part == "test" else cross)
        recorded = self.figure(part, "srcc", self.best)
        tolerance = 1e-6 if self.path.suffix == ".jsonl" else 6e-5
        turned = (
            replace(found, score=sign * found.score)
            for sign in ((1,) if part == "test" else (1, -1))
            if found
        )
        return next(
            (s for s in turned if abs(metrics.srcc(s.score, s.mos) - recorded) <= tolerance), None
        )

    def errors(self, part: str, keys: Sequence[Key]) -> np.ndarray | None:
        """Standard errors of the images' MOS, from what the epochs left; None where the set has no votes."""
        name = (
            self.predictions.name.replace("_predictions.csv", "_epochs.npz")
            if self.predictions
            else ""
        )
        file = name and self.predictions.with_name(name)
        if not file or not file.is_file():
            return None
        with reading_file(file, "not a run's epochs", Exception), np.load(file) as arrays:
            if f"{part}_error" not in arrays:
                return None
            names, errors = (arrays[f"{part}_{what}"].tolist() for what in ("images", "error"))
            known = {(name, 0): error for name, error in zip(names, errors)}
        found = np.array([known.get(key, NAN) for key in keys])
        return found if np.isfinite(found).all() else None


def find(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Runs of files and folders, each run once, and what could not be read, in words.
    A NAME.log beside its NAME.jsonl is the same run; the jsonl, which holds more, is read."""
    files: dict[Path, None] = {}
    runs, problems = [], []
    for path in paths:
        logs = (
            sorted(f for f in path.iterdir() if f.suffix in (".log", ".jsonl"))
            if path.is_dir()
            else [path]
        )
        problems += [] if logs else [f"{path}: no *.log or *.jsonl in it"]
        for file in logs:
            records = file.with_suffix(".jsonl")
            files[records if file.suffix == ".log" and records.is_file() else file] = None
    for file in files:
        plain = file.with_suffix(".log")
        for source in (file, plain) if file.suffix == ".jsonl" and plain.is_file() else (file,):
            try:
                found = read_runs(source)
            except UserError as mistake:
                problems.append(str(mistake))
                continue
            runs += found
            if source is file:
                problems += [problem for run in found if (problem := run.predictions_problem())]
            else:
                problems[-1] += f"; read {plain.name} instead"
            break
    return runs, problems


def read_runs(path: Path) -> list[Run]:
    """The rounds of a NAME.jsonl or a plain log. Raises UserError for a file that is neither."""
    records = _read_jsonl(path) if path.suffix == ".jsonl" else read_log(path)
    begun, epochs, ends = (
        [r for r in records if r["type"] == kind] for kind in ("run", "epoch", "end")
    )
    run = begun[-1]
    status = records[-1]["status"] if records[-1]["type"] == "end" else UNDER_WAY
    chosen = {r["round"]: r for record in ends for r in record.get("rounds", ())}
    numbers = sorted({record["round"] for record in epochs}) or [1]
    several = len(numbers) > 1 or int(run["flags"].get("train_test_num") or 1) > 1
    images = {part: count for part, count in run.get("data", {}).items() if isinstance(count, int)}
    runs = []
    for number in numbers:
        name = path.stem + (f"_round{number}" if several else "")
        own = {record["epoch"]: record for record in epochs if record["round"] == number}
        best, seed, price = map(
            chosen.get(number, {}).get, ("best_epoch", "seed", "selection_price")
        )
        if seed is None and "seed" in run["flags"]:
            seed = int(run["flags"]["seed"]) + number - 1
        settings = _settings(run) | ({"seed": str(seed)} if seed is not None else {})
        file = path.with_name(
            path.stem + (f"_round{number}" if number > 1 else "") + "_predictions.csv"
        )
        ended = status if number == numbers[-1] else "finished"
        predictions, price = file if file.is_file() else None, NAN if price is None else price
        runs.append(
            Run(
                name,
                path,
                settings,
                images,
                own,
                best or _best_epoch(own),
                ended,
                predictions,
                price,
            )
        )
    return runs


def _read_jsonl(path: Path) -> list[dict]:
    """The records of a run that are known here, each with what is read of it."""
    known = {"run": ("flags",), "epoch": ("round", "epoch", "test"), "end": ("status",)}
    records = run_files.read_records(path)
    for number, record in enumerate(records, 1):
        if any(name not in record for name in known.get(record["type"], ())):
            raise UserError(f"{path}: record {number} is no record of a run: {str(record)[:40]!r}")
    if not any(record["type"] == "run" for record in records):
        raise UserError(
            f"{path}: not a run's records: expected one of type `run`, found {len(records)} others"
        )
    return [record for record in records if record["type"] in known]


def _best_epoch(epochs: dict[int, dict]) -> int:
    """The epoch of the highest SRCC, of the validation set where there is one; while none is defined the newest."""
    part = "val" if any("val" in e for e in epochs.values()) else "test"
    defined = {
        n: e[part]["srcc"] for n, e in epochs.items() if e.get(part, {}).get("srcc") is not None
    }
    return max(sorted(defined), key=defined.get) if defined else max(epochs, default=0)


def _settings(run: dict) -> dict[str, str]:
    """Everything of the `run` record that can change figures, as text."""
    flags = run["flags"]
    unused = () if flags.get("ranking_loss_alpha") else ("ranking_loss_margin", "ranking_loss_form")
    settings = {
        name: _shown(value)
        for name, value in flags.items()
        if name not in (*_NOT_SETTINGS, *unused)
    }
    commit = run.get("versions", {}).get("commit", "unknown")
    code = run.get("code") or (commit[:7] if commit != "unknown" else None)
    prints = "+".join(
        str(value)[:6] for name, value in run.get("fingerprint", {}).items() if name != "votes"
    )
    more = {
        "device": run.get("device"),
        "precision": run.get("precision"),
        "code": code,
        "images": prints,
    }
    return settings | {name: value for name, value in more.items() if value}


def _shown(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{name}={item}" for name, item in value.items()]
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_predictions(path: Path) -> dict[str, Scores]:
    """A predictions file -> data set -> scores, in the file's order of sets. Raises UserError."""
    rows: dict[str, list[tuple[Key, float, float]]] = {}
    seen: dict[tuple[str, str], int] = {}
    for dataset, image, mos, score in run_files.read_predictions(path):
        # Two folders of a set may hold images of one name: they keep the order of the file.
        again = seen[dataset, image] = seen.get((dataset, image), -1) + 1
        rows.setdefault(dataset, []).append(((image, again), mos, score))
    columns = {dataset: zip(*sorted(found)) for dataset, found in rows.items()}
    return {
        name: Scores(keys, np.array(mos), np.array(score))
        for name, (keys, mos, score) in columns.items()
    }
