"""Runs as the comparison tools see them, read from the files that they leave.

A run leaves its records, NAME.jsonl, or at least its plain NAME.log; beside them lie its
predictions and what its epochs left. A `Run` is one round of one file.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hyperiqa.base.errors import UserError, counted, reading_file
from hyperiqa.datasets.names import EPOCH_KEYS, record_name, set_title
from hyperiqa.runs.old_logs import read_log
from hyperiqa.stats import metrics
from hyperiqa.training import run_files

UNDER_WAY = "running or killed"
DONE = ("finished", "early_stopped")

# An image's name, and how many images of the set had the same name before it.
Key = tuple[str, int]


@dataclass(frozen=True)
class Scores:
    """A run's predictions on one set, sorted by image: keys, MOS (N,) and scores (N,)."""

    keys: tuple[Key, ...]
    mos: np.ndarray
    score: np.ndarray

    def on(self, keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
        """(scores, MOS) of these images."""
        place = dict(zip(self.keys, range(len(self.keys))))
        chosen = [place[key] for key in keys]
        return self.score[chosen], self.mos[chosen]


@dataclass(frozen=True, eq=False)
class Run:
    """One round of a run.

    images: how many each part has. epochs: number -> its jsonl record. best: the epoch that the run
    chose, 0 if it has none. selection_bias: by how much choosing the epoch on the test set inflates
    the SRCC. of_demo: the parts that are the demo's own sets.
    """

    name: str
    path: Path
    settings: dict[str, str]
    images: dict[str, int]
    epochs: dict[int, dict]
    best: int
    status: str
    predictions: Path | None
    selection_bias: float = math.nan
    of_demo: frozenset[str] = frozenset()

    @property
    def backbone(self) -> str:
        """The backbone's name, short; `?` where the log doesn't hold it."""
        return self.settings.get("backbone", "?").removesuffix("_patch4_window7_224")

    def epoch(self, which: str) -> int:
        """`best`, `last` or a number -> the epoch; 0 where the run has none such."""
        if which == "best":
            return self.best
        if which == "last":
            return max(self.epochs, default=0)
        return next((number for number in self.epochs if str(number) == which), 0)

    @property
    def cross_tests(self) -> list[str]:
        """The sets that the epochs were tested on besides, in the order of the records."""
        # A dictionary drops what comes twice and keeps the order.
        parts = dict.fromkeys(
            part
            for record in self.epochs.values()
            for part, value in record.items()
            if isinstance(value, dict) and part not in EPOCH_KEYS
        )
        return list(parts)

    def figure(self, part: str, name: str, epoch: int) -> float:
        """A recorded figure; nan where it is undefined or not recorded."""
        value = self.epochs.get(epoch, {}).get(part, {}).get(name)
        return math.nan if value is None else float(value)

    @property
    def minutes(self) -> float:
        """Mean minutes per epoch, nan where the log has no times."""
        seconds = [
            sum(record["seconds"].values())
            for record in self.epochs.values()
            if record.get("seconds")
        ]
        return sum(seconds) / len(seconds) / 60 if seconds else math.nan

    @cached_property
    def _predicted(self) -> tuple[dict[str, Scores], str]:
        """The predictions by data set, and what keeps them from being read."""
        if self.predictions is None:
            return {}, ""
        try:
            return read_predictions(self.predictions), ""
        except UserError as mistake:
            return {}, str(mistake)

    def title(self, part: str) -> str:
        """What tables and pages call the set of a part; `test` where a log does not say."""
        name = record_name(self.settings.get("dataset", part)) if part == "test" else part
        return set_title(name, part in self.of_demo)

    def title_and_number(self, part: str) -> str:
        """The title of a part's set with the number of its images, where the log says it."""
        number = self.images.get(part)
        return self.title(part) + (f", {counted(number, 'image')}" if number else "")

    @property
    def trained_on_several(self) -> bool:
        """Whether its test figures are means over several sets, of which no list of scores is."""
        return "+" in (self.settings.get("dataset") or "")

    def predictions_problem(self) -> str:
        """Why the predictions beside the run are of no use; "" where they are or there are none."""
        without_figure = math.isnan(self.figure("test", "srcc", self.best))
        if self.predictions is None or self.scores("test") or without_figure:
            return ""
        _, problem = self._predicted
        if self.trained_on_several or problem:
            return problem
        return (
            f"{self.predictions}: left out, the SRCC of its scores is not that of "
            f"epoch {self.best} in {self.path.name}"
        )

    def scores(self, part: str) -> Scores | None:
        """Predictions on `test` or a cross test with the recorded SRCC of the best epoch.

        None without such. A model of badness has its scores on a cross test negated, which is what
        the recorded figures are of.
        """
        predicted, _ = self._predicted
        test_set = self.settings.get("dataset")
        if test_set not in predicted and not self.trained_on_several:
            test_set = next(iter(predicted), None)
        if part == "test":
            scores = predicted.get(test_set)
            signs = [1]
        else:
            # SPAQ's whole release goes by a name of its own, spaq-official.
            names = [name for name in predicted if name in (part, f"{part}-official")]
            scores = next((predicted[name] for name in names if name != test_set), None)
            signs = [1, -1]
        if scores is None:
            return None
        recorded = self.figure(part, "srcc", self.best)
        # A plain log has four digits of a figure.
        tolerance = 1e-6 if self.path.suffix == ".jsonl" else 6e-5
        for sign in signs:
            turned = replace(scores, score=sign * scores.score)
            if abs(metrics.srcc(turned.score, turned.mos) - recorded) <= tolerance:
                return turned
        return None

    def errors(self, part: str, keys: Sequence[Key]) -> np.ndarray | None:
        """Standard errors (N,) of the images' MOS, from what the epochs left.

        None where the set has no votes.
        """
        if self.predictions is None:
            return None
        file = self.predictions.with_name(
            self.predictions.name.replace("_predictions.csv", "_epochs.npz")
        )
        if not file.is_file():
            return None
        with reading_file(file, "not a run's epochs", Exception), np.load(file) as arrays:
            # Packed zeros may be a thousand times as large as the file.
            if sum(member.file_size for member in arrays.zip.infolist()) > 2**30:
                raise UserError(f"{file}: absurdly large once unpacked")
            if f"{part}_error" not in arrays:
                return None
            images = zip(arrays[f"{part}_images"].tolist(), arrays[f"{part}_error"].tolist())
        # A second image of one name has no error: the file does not tell which is whose.
        error_of = {(image, 0): error for image, error in images}
        errors = np.array([error_of.get(key, math.nan) for key in keys])
        return errors if np.isfinite(errors).all() else None


def find(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Runs of files and folders, each run once, and what could not be read, in words.

    A NAME.log beside its NAME.jsonl is the same run; the jsonl, which holds more, is read.
    """
    # A dictionary rather than a set: the files stay in the order in which they were given.
    files: dict[Path, None] = {}
    runs: list[Run] = []
    problems: list[str] = []
    for path in paths:
        logs = [path]
        if path.is_dir():
            logs = sorted(file for file in path.iterdir() if file.suffix in (".log", ".jsonl"))
        if not logs:
            problems.append(f"{path}: no *.log or *.jsonl in it")
        for log in logs:
            records = log.with_suffix(".jsonl")
            files[records if log.suffix == ".log" and records.is_file() else log] = None
    for file in files:
        runs_of_file, problems_of_file = _read_file(file)
        runs += runs_of_file
        problems += problems_of_file
    counts = Counter(run.name for run in runs)
    # Of one name in two folders, the folders tell which is which.
    return [
        replace(run, name=str(run.path.with_name(run.name))) if counts[run.name] > 1 else run
        for run in runs
    ], problems


def _read_file(file: Path) -> tuple[list[Run], list[str]]:
    """The runs of a file and its problems; a damaged NAME.jsonl is replaced by its NAME.log."""
    try:
        runs = read_runs(file)
    except UserError as mistake:
        problem = str(mistake)
    else:
        return runs, list(filter(None, [run.predictions_problem() for run in runs]))
    plain = file.with_suffix(".log")
    if file.suffix != ".jsonl" or not plain.is_file():
        return [], [problem]
    try:
        return read_runs(plain), [f"{problem}; read {plain.name} instead"]
    except UserError as mistake:
        return [], [problem, str(mistake)]


def read_runs(path: Path) -> list[Run]:
    """The rounds of a NAME.jsonl or a plain log. Raises UserError for a file that is neither."""
    records = run_files.read_records(path) if path.suffix == ".jsonl" else read_log(path)
    if not any(record["type"] == "run" for record in records):
        raise UserError(
            f"{path}: not a run's records: expected one of type `run`, "
            f"found {counted(len(records), 'other')}"
        )
    records = [record for record in records if record["type"] in run_files.RECORDS]
    epochs: dict[int, dict[int, dict]] = {}
    choices: dict[int, dict] = {}
    for record in records:
        # A resumed run has several of each; what was written last counts.
        if record["type"] == "run":
            header = record
        elif record["type"] == "epoch":
            epochs.setdefault(record["round"], {})[record["epoch"]] = record
        else:
            choices |= {choice["round"]: choice for choice in record.get("rounds", ())}
    status = records[-1].get("status", UNDER_WAY)
    images = {part: n for part, n in header.get("data", {}).items() if isinstance(n, int)}
    numbers = sorted(epochs) or [1]
    several = len(numbers) > 1 or int(header["flags"].get("train_test_num") or 1) > 1
    runs = []
    for number in numbers:
        epochs_of_round = epochs.get(number, {})
        choice = choices.get(number, {})
        # The first round's predictions bear the run's name alone.
        suffix = f"_round{number}"
        predictions = path.with_name(f"{path.stem}{suffix if number > 1 else ''}_predictions.csv")
        selection_bias = choice.get("selection_price")
        runs.append(
            Run(
                path.stem + (suffix if several else ""),
                path,
                _settings(header) | _seed(header, number, choice),
                images,
                epochs_of_round,
                best=choice.get("best_epoch") or _best_epoch(epochs_of_round),
                # An earlier round has been left behind by the next.
                status=status if number == numbers[-1] else "finished",
                predictions=predictions if predictions.is_file() else None,
                selection_bias=math.nan if selection_bias is None else selection_bias,
                of_demo=_of_demo(header["flags"]),
            )
        )
    return runs


def _of_demo(flags: dict) -> frozenset[str]:
    """The parts of a run with these flags that are the demo's sets, which are synthetic."""
    if flags.get("dataset") != "demo":
        return frozenset()
    # Where no flag named a place, SPAQ was the set beside the demo.
    places = flags.get("cross_test") or flags.get("spaq_path")
    own_spaq = not places or (isinstance(places, dict) and not places.get("spaq"))
    return frozenset({"test", "val", "spaq"} if own_spaq else {"test", "val"})


def _seed(header: dict, number: int, choice: dict) -> dict[str, str]:
    seed = choice.get("seed")
    if seed is None and "seed" in header["flags"]:
        seed = int(header["flags"]["seed"]) + number - 1
    return {} if seed is None else {"seed": str(seed)}


def _best_epoch(epochs: dict[int, dict]) -> int:
    """The epoch of the highest SRCC; while none is defined the newest, 0 without epochs.

    Of the validation set where there is one, else of the test set.
    """
    part = "val" if any("val" in record for record in epochs.values()) else "test"
    srcc = {number: record.get(part, {}).get("srcc") for number, record in epochs.items()}
    defined = sorted(number for number in epochs if srcc[number] is not None)
    # Of equal epochs the first.
    return max(defined, key=srcc.get) if defined else max(epochs, default=0)


def _settings(header: dict) -> dict[str, str]:
    # Everything of the `run` record that can change figures, as text.
    flags = header["flags"]
    # The precision is shown as what it came to, which the flag `auto` does not say.
    left_out = {*run_files.NOT_FIGURES, "precision"}
    if not flags.get("ranking_loss_alpha"):
        left_out |= {"ranking_loss_margin", "ranking_loss_form"}
    settings = {name: setting_text(value) for name, value in flags.items() if name not in left_out}
    commit = header.get("versions", {}).get("commit", "unknown")
    # Votes are no part of what is learnt or tested.
    fingerprints = [
        str(value)[:6] for part, value in header.get("fingerprint", {}).items() if part != "votes"
    ]
    circumstances = {
        "device": header.get("device"),
        "precision": header.get("precision"),
        "code": header.get("code") or (commit[:7] if commit != "unknown" else None),
        "images": "+".join(fingerprints),
    }
    return settings | {name: value for name, value in circumstances.items() if value}


def setting_text(value: object) -> str:
    """A setting's value as tables show it."""
    if isinstance(value, dict):
        value = [f"{name}={item}" for name, item in value.items()]
    if isinstance(value, (list, tuple)):
        return ",".join(map(setting_text, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_predictions(path: Path) -> dict[str, Scores]:
    """A predictions file -> data set -> scores, in the file's order of sets. Raises UserError."""
    rows: dict[str, list[tuple[Key, float, float]]] = {}
    copies: Counter[tuple[str, str]] = Counter()
    for dataset, image, mos, score in run_files.read_predictions(path):
        # Two folders of a set may hold images of one name: they keep the order of the file.
        rows.setdefault(dataset, []).append(((image, copies[dataset, image]), mos, score))
        copies[dataset, image] += 1
    predictions = {}
    for dataset, rows_of_set in rows.items():
        keys, opinions, scores = zip(*sorted(rows_of_set))
        predictions[dataset] = Scores(keys, np.array(opinions), np.array(scores))
    return predictions
