"""Runs as the comparison tools see them: read from jsonl or plain log, measured with intervals, put into a table.

A `Run` is one round of one file; an `Entry` is a row of the table: a run, or several seeds of one setting.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

import intervals
import metrics
from comparing.legacy_logs import read_log
from options import NOT_FIGURES, UserError

NAN = float("nan")
SPAQ_SETS = ("spaq", "spaq-official")  # the test images of the public code's list, and the whole release
METRICS = ("srcc", "plcc", "krcc", "rmse", "spaq_srcc", "spaq_plcc")
UNDER_WAY = "running or killed"
DONE = ("finished", "early_stopped")
# `precision` is shown as what it came to.
_NOT_SETTINGS = NOT_FIGURES | {"precision", "tensorboard"}
_NOT_OF_A_GROUP = {"seed", "device", "code", "images"}

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
    exact: bool

    @property
    def backbone(self) -> str:
        return self.settings.get("backbone", "?").removesuffix("_patch4_window7_224")

    def epoch(self, which: str) -> int:
        """`best`, `last` or a number -> epoch; 0 where the run has none such."""
        if which == "best":
            return self.best
        if which == "last":
            return max(self.epochs, default=0)
        return int(which) if int(which) in self.epochs else 0

    def figure(self, part: str, name: str, epoch: int) -> float:
        value = self.epochs.get(epoch, {}).get(part, {}).get(name)
        return NAN if value is None else float(value)

    @property
    def minutes(self) -> float:
        """Mean minutes per epoch, nan where the log has no times."""
        seconds = [sum(e["seconds"].values()) for e in self.epochs.values() if e.get("seconds")]
        return sum(seconds) / len(seconds) / 60 if seconds else NAN

    @cached_property
    def _predicted(self) -> dict[str, Scores]:
        try:
            return read_predictions(self.predictions) if self.predictions else {}
        except UserError:
            return {}

    def predictions_problem(self) -> str:
        """Why the predictions beside the run are of no use; empty where they are, or where there are none."""
        if self.predictions is None or self.scores("test") or math.isnan(self.figure("test", "srcc", self.best)):
            return ""
        try:
            read_predictions(self.predictions)
        except UserError as mistake:
            return str(mistake)
        return (
            f"{self.predictions}: left out, the SRCC of its scores is not that of epoch {self.best} in {self.path.name}"
        )

    def scores(self, part: str) -> Scores | None:
        """Predictions on `test` or `spaq` whose SRCC is the recorded one of the best epoch; None without such.

        A model of badness has its scores on SPAQ negated, which is what the recorded figures are of.
        """
        names = list(self._predicted)
        test = self.settings.get("dataset") if self.settings.get("dataset") in names else next(iter(names), None)
        cross = next((name for name in names if name in SPAQ_SETS and name != test), None)
        found = self._predicted.get(test if part == "test" else cross)
        recorded = self.figure(part, "srcc", self.best)
        if found is None or math.isnan(recorded):
            return None
        tolerance = 1e-6 if self.exact else 6e-5
        for sign in (1, -1) if part == "spaq" else (1,):
            if abs(metrics.srcc(sign * found.score, found.mos) - recorded) <= tolerance:
                return Scores(found.keys, found.mos, sign * found.score)
        return None


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of the table: one run, or the runs of one setting with different seeds."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval (nan where unknown) and, over seeds, their standard deviation."""

    value: float
    low: float = NAN
    high: float = NAN
    approximate: bool = False
    deviation: float = NAN


# ---------------------------------------------------------------------------------------------- reading
def find(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Runs of files and folders, each run once, and what could not be read, in words.

    A NAME.log beside its NAME.jsonl is the same run; the jsonl, which holds more, is read.
    """
    files: dict[Path, None] = {}
    problems = []
    for path in paths:
        if path.is_dir():
            logs = sorted(file for file in path.iterdir() if file.suffix in (".log", ".jsonl"))
            if not logs:
                problems.append(f"{path}: no *.log or *.jsonl in it")
        else:
            logs = [path]
        for file in logs:
            records = file.with_suffix(".jsonl")
            files[records if file.suffix == ".log" and records.is_file() else file] = None
    runs: list[Run] = []
    for file in files:
        try:
            found = read_runs(file)
            problems += [problem for run in found if (problem := run.predictions_problem())]
            runs += found
        except UserError as mistake:
            problems.append(str(mistake))
            plain = file.with_suffix(".log")
            if file.suffix == ".jsonl" and plain.is_file():
                try:
                    runs += read_runs(plain)
                    problems[-1] += f"; read {plain.name} instead"
                except UserError as second:
                    problems.append(str(second))
    return runs, problems


def read_runs(path: Path) -> list[Run]:
    """The rounds of a NAME.jsonl or a plain log. Raises UserError for a file that is neither."""
    exact = path.suffix == ".jsonl"
    records = _read_jsonl(path) if exact else read_log(path)
    run = [record for record in records if record["type"] == "run"][-1]
    epochs = [record for record in records if record["type"] == "epoch"]
    end = records[-1] if records[-1]["type"] == "end" else {"status": UNDER_WAY}
    chosen = {r["round"]: r for record in records if record["type"] == "end" for r in record.get("rounds", ())}
    numbers = sorted({record["round"] for record in epochs}) or [1]
    several = len(numbers) > 1 or int(run["flags"].get("train_test_num") or 1) > 1
    settings = _settings(run)
    runs = []
    for number in numbers:
        own = {record["epoch"]: record for record in epochs if record["round"] == number}
        seed = chosen.get(number, {}).get("seed")
        if seed is None and "seed" in run["flags"]:
            seed = int(run["flags"]["seed"]) + number - 1
        predictions = path.with_name(path.stem + (f"_round{number}" if number > 1 else "") + "_predictions.csv")
        runs.append(
            Run(
                name=path.stem + (f"_round{number}" if several else ""),
                path=path,
                settings=settings | ({"seed": str(seed)} if seed is not None else {}),
                images={part: count for part, count in run.get("data", {}).items() if isinstance(count, int)},
                epochs=own,
                best=chosen.get(number, {}).get("best_epoch") or _best_epoch(own),
                status=end["status"] if number == numbers[-1] else "finished",
                predictions=predictions if predictions.is_file() else None,
                exact=exact,
            )
        )
    return runs


def _read_jsonl(path: Path) -> list[dict]:
    """The records; a last line that a crash left unfinished is dropped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or 'not UTF-8 text'}") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            known = {"run": ("flags",), "epoch": ("round", "epoch", "test"), "end": ("status",)}
            if any(name not in record for name in known.get(record["type"], ())):
                raise ValueError
            if record["type"] in known:
                records.append(record)
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise UserError(f"{path}: line {number} is no record of a run: {line[:40]!r}") from None
    if not any(record["type"] == "run" for record in records):
        raise UserError(f"{path}: not a run's records: expected one of type `run`, found {len(records)} others")
    return records


def _best_epoch(epochs: dict[int, dict]) -> int:
    """The epoch of the highest SRCC, of the validation set where there is one; while none is defined the newest."""
    part = "val" if any("val" in e for e in epochs.values()) else "test"
    defined = {n: e[part]["srcc"] for n, e in epochs.items() if e.get(part, {}).get("srcc") is not None}
    return max(sorted(defined), key=defined.get) if defined else max(epochs, default=0)


def _settings(run: dict) -> dict[str, str]:
    """Everything of the `run` record that can change figures, as text."""
    flags = {name: value for name, value in run["flags"].items() if name not in _NOT_SETTINGS}
    if not flags.get("ranking_loss_alpha"):
        flags = {
            name: value for name, value in flags.items() if name not in ("ranking_loss_margin", "ranking_loss_form")
        }
    settings = {name: _shown(value) for name, value in flags.items()}
    settings |= {name: run[name] for name in ("device", "precision") if run.get(name)}
    commit = run.get("versions", {}).get("commit", "unknown")
    code = run.get("code") or (commit[:7] if commit != "unknown" else None)
    prints = "+".join(str(value)[:6] for value in run.get("fingerprint", {}).values())
    return settings | ({"code": code} if code else {}) | ({"images": prints} if prints else {})


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_predictions(path: Path) -> dict[str, Scores]:
    """A predictions file (dataset,image,mos,score) -> data set -> scores, in the file's order of sets.

    Raises UserError naming the line that is none.
    """
    rows: dict[str, list[tuple[Key, float, float]]] = {}
    seen: dict[tuple[str, str], int] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            if next(lines, None) != ["dataset", "image", "mos", "score"]:
                raise UserError(f"{path}: expected the columns dataset,image,mos,score")
            for dataset, image, mos, score in lines:
                # Two folders of a set may hold images of one name: they keep the order of the file.
                again = seen[dataset, image] = seen.get((dataset, image), -1) + 1
                rows.setdefault(dataset, []).append(((image, again), float(mos), float(score)))
    except (OSError, ValueError, csv.Error) as problem:
        reason = getattr(problem, "strerror", None) or f"line {lines.line_num} is no dataset,image,mos,score"
        raise UserError(f"{path}: {reason}") from None
    result = {}
    for dataset, found in rows.items():
        keys, mos, score = zip(*sorted(found))
        result[dataset] = Scores(keys, np.array(mos), np.array(score))
    return result


def group(runs: Sequence[Run]) -> tuple[list[Entry], list[str]]:
    """Entries of the runs with equal settings but for the seed, and notes on what was left out of them.

    A run that is not done is no seed of a setting, nor is the older of two with the same seed. Logs that
    don't hold their settings (the public code's) are grouped with the other rounds of their file alone.
    """
    notes, groups = [], {}
    for run in sorted(runs, key=lambda run: run.path.stat().st_mtime):
        if run.status not in DONE:
            notes.append(f"{run.name}: {run.status}, left out of the groups")
            continue
        equal = {name: value for name, value in run.settings.items() if name not in _NOT_OF_A_GROUP}
        if "seed" not in run.settings:
            equal["file"] = str(run.path)
        members = groups.setdefault((*sorted(equal.items()), *sorted(run.images.items())), {})
        seed = run.settings.get("seed", run.name)
        if seed in members:
            notes.append(f"{members[seed].name}: seed {seed} once more in {run.name}, left out")
        members[seed] = run
    members = [tuple(group.values()) for group in groups.values()]
    differing = [name for name in differences([group[0] for group in members]) if name not in _NOT_OF_A_GROUP]
    entries = []
    for runs_of in members:
        named = " ".join(f"{name}={runs_of[0].settings.get(name, '?')}" for name in differing)
        entries.append(Entry(named or runs_of[0].name, runs_of))
    names = [entry.name for entry in entries]
    return [e if names.count(e.name) == 1 else Entry(e.runs[0].name, e.runs) for e in entries], notes


def differences(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that two of the runs are known to have differently."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({run.settings[name] for run in runs if name in run.settings}) > 1]


# -------------------------------------------------------------------------------------------- measuring
@dataclass
class Measure:
    """A figure of merit and how it is taken. epoch: `best`, `last` or a number; logistic: PLCC, RMSE after the fit."""

    metric: str = "srcc"
    epoch: str = "best"
    logistic: bool = False
    resamples: int = intervals.RESAMPLES
    _draws: dict = field(default_factory=dict, repr=False)

    @property
    def part(self) -> str:
        return "spaq" if self.metric.startswith("spaq_") else "test"

    @property
    def name(self) -> str:
        return self.metric.removeprefix("spaq_")

    @property
    def higher_is_better(self) -> bool:
        return self.name != "rmse"

    @property
    def formula(self):
        """The interval from the number of images alone; None where there is none."""
        if self.name == "plcc" and self.logistic:
            return None
        return {"srcc": intervals.bonett_wright, "plcc": intervals.fisher}.get(self.name)

    def scores(self, run: Run) -> Scores | None:
        """The predictions behind the figure, mapped by the logistic where asked for; None where there are none."""
        found = run.scores(self.part) if run.epoch(self.epoch) == run.best else None
        if found is not None and self.logistic and self.name in ("plcc", "rmse"):
            mapped = metrics.fitted(found.score, found.mos)
            return None if mapped is None else Scores(found.keys, found.mos, mapped)
        return found

    def value(self, run: Run, keys: Sequence[Key] | None = None) -> float:
        """The figure, on these images alone if any are given."""
        recorded = (
            NAN if self.logistic and self.name == "plcc" else run.figure(self.part, self.name, run.epoch(self.epoch))
        )
        if keys is None and not math.isnan(recorded):
            return recorded
        found = self.scores(run)
        if found is None:
            return NAN
        return getattr(metrics, self.name)(*found.on(keys or found.keys))

    def draws(self, run: Run, keys: tuple[Key, ...]) -> np.ndarray:
        """The figure on each resample (B,) of these images; the same resamples for every run that has them."""
        if (run, keys) not in self._draws:
            score, mos = self.scores(run).on(keys)
            self._draws[run, keys] = intervals.bootstrap(self.name, score, mos, self.resamples)[:, 0]
        return self._draws[run, keys]

    def draw_together(self, entries: Iterable[Entry]) -> None:
        """Resample all runs with the same images at once: half the time of one after the other."""
        alike: dict[tuple, list[tuple[Run, Scores]]] = {}
        for run in (run for entry in entries for run in entry.runs):
            if (found := self.scores(run)) is not None:
                alike.setdefault((found.keys, found.mos.tobytes()), []).append((run, found))
        for (keys, _), members in alike.items():
            scores = np.stack([found.score for _, found in members])
            draws = intervals.bootstrap(self.name, scores, members[0][1].mos, self.resamples)
            self._draws |= {(run, keys): draws[:, i] for i, (run, _) in enumerate(members)}

    def estimate(self, entry: Entry) -> Estimate:
        """The entry's figure with its interval: over images, and over seeds too where it has several."""
        values = [self.value(run) for run in entry.runs]
        if len(values) > 1:
            return self._over_seeds(entry, values)
        found = self.scores(entry.runs[0])
        if found is not None:
            return Estimate(values[0], *intervals.percentile_interval(self.draws(entry.runs[0], found.keys)))
        images = entry.runs[0].images.get(self.part)
        if self.formula is None or images is None or math.isnan(values[0]):
            return Estimate(values[0])
        return Estimate(values[0], *self.formula(values[0], images), approximate=True)

    def _over_seeds(self, entry: Entry, values: list[float]) -> Estimate:
        deviation = float(np.std(values, ddof=1))
        keys = self.common_images(entry.runs)
        if keys is None:
            mean = intervals.welch_difference(values, [0.0, 0.0])
        else:
            draws = np.stack([self.draws(run, keys) for run in entry.runs], 1)
            # Two seeds without any spread: a constant.
            mean = intervals.group_difference(values, [0.0, 0.0], draws, np.zeros((len(draws), 2)))
        return Estimate(mean.value, mean.low, mean.high, mean.approximate, deviation)

    def common_images(self, runs: Sequence[Run]) -> tuple[Key, ...] | None:
        """The images of all these runs where they have the same ones, else None."""
        found = [self.scores(run) for run in runs]
        if any(scores is None or scores.keys != found[0].keys for scores in found):
            return None
        return found[0].keys


# --------------------------------------------------------------------------------------------- the table
def ranked(entries: Iterable[Entry], measure: Measure) -> list[Entry]:
    """Best first; entries without the figure last, in the order of their names."""
    sign = -1 if measure.higher_is_better else 1
    values = {entry: measure.estimate(entry).value for entry in entries}
    return sorted(
        values, key=lambda e: (math.isnan(values[e]), 0 if math.isnan(values[e]) else sign * values[e], e.name)
    )


def table(entries: Sequence[Entry], measure: Measure, grouped: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header (its words may be on two lines) and rows of the comparison, in the order of the entries.

    grouped: the entries are settings, all done: they show how many seeds they have instead of best epoch and status.
    """
    figures = [("SRCC", "srcc"), ("PLCC", "plcc"), ("SPAQ\nSRCC", "spaq_srcc"), ("SPAQ\nPLCC", "spaq_plcc")]
    if measure.metric in ("krcc", "rmse"):
        figures.insert(2, (measure.metric.upper(), measure.metric))
    if measure.logistic:
        of_fit = {"plcc": "fitted\nPLCC", "rmse": "fitted\nRMSE", "spaq_plcc": "SPAQ fit\nPLCC"}
        figures = [(of_fit.get(name, title), name) for title, name in figures]
    header = ["setting" if grouped else "run", "backbone", "seeds" if grouped else "best/\nepochs", "train\nSRCC"]
    header += [f"{title} [95 %]" if name == measure.metric else title for title, name in figures]
    rows = []
    for entry in entries:
        run = entry.runs[0]
        count = str(len(entry.runs)) if grouped else f"{run.epoch(measure.epoch) or '–'}/{len(run.epochs)}"
        cells = [entry.name, run.backbone, count, _mean(entry, "train_srcc", measure)]
        for _, name in figures:
            own = name == measure.metric
            cells.append(shown_estimate(measure.estimate(entry)) if own else _mean(entry, name, measure))
        minutes = float(np.mean([run.minutes for run in entry.runs]))
        cells.append("–" if math.isnan(minutes) else f"{minutes:.{1 if minutes >= 1 else 2}f}")
        status = "running?" if run.status == UNDER_WAY else run.status.replace("_", " ")
        rows.append(cells if grouped else [*cells, status])
    return [*header, "min/\nepoch"] + ([] if grouped else ["status"]), rows


def _mean(entry: Entry, metric: str, measure: Measure) -> str:
    """A figure without its interval, the mean over seeds."""
    if metric == "train_srcc":
        values = [run.figure("train", "srcc", run.epoch(measure.epoch)) for run in entry.runs]
    else:
        values = [replace(measure, metric=metric).value(run) for run in entry.runs]
    value = float(np.mean(values))
    return "–" if math.isnan(value) else f"{value:.4f}"


def shown_estimate(estimate: Estimate) -> str:
    """`0.9205 [.912 .928]`, `~` before an approximate interval, `±` the deviation over seeds."""
    if math.isnan(estimate.value):
        return "–"
    text = f"{estimate.value:.4f}"
    if not math.isnan(estimate.deviation):
        text += f" ±{estimate.deviation:.4f}".replace("0.", ".", 1)
    if math.isnan(estimate.low):
        return text
    low, high = (
        f"{bound:.3f}".replace("0.", ".", 1) if abs(bound) < 1 else f"{bound:.3f}"
        for bound in (estimate.low, estimate.high)
    )
    return f"{text} {'~' if estimate.approximate else ''}[{low} {high}]"


def settings_table(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Only the settings in which the entries differ; `?` where a log doesn't hold one."""
    names = differences([run for entry in entries for run in entry.runs])
    rows = []
    for entry in entries:
        values = [",".join(dict.fromkeys(run.settings.get(name, "?") for run in entry.runs)) for name in names]
        rows.append([entry.name, *values])
    return ["run", *names], rows
