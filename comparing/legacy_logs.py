"""Plain logs as records: what the jsonl of the same run would have held, as far as the log tells.

Two kinds are read: NAME.log of this project, and what the public HyperIQA and Swin code printed, progress bars
and all: tabs single or double, losses `5.042 (L1:4.848,Rank:0.646)`, with and without SPAQ or validation columns,
several rounds in a file, and files that end anywhere, in a traceback or in the middle of a row."""

import math
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from common.errors import UserError, reading
from metrics import FIGURES

_ELAPSED = re.compile(rb"\[(?:(\d+):)?(\d+):(\d\d)<")
_ROW = re.compile(r"(?:^|\])\s*(\d+)\t+(\S.*)$")
_LOSS = re.compile(r"([-\w.+]+)(?:\s*\((\w+:[-\w.+]+(?:,\s*\w+:[-\w.+]+)*)\))?$")
_BAR = re.compile(r"Epoch \d+/(\d+):")
_ERROR = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b.*|Killed|Segmentation fault.*)$")
_PUBLIC_NAME = re.compile(r"(?:swin|resnet\d*)(_multiscale)?(?:_ranking(?:_alpha[\d.]+)?)?_\d{8}_\d{6}$")
_COUNTS = {
    "train": r"(\d+) train images|Train: (\d+) images",
    "test": r"(\d+) test images|Test: (\d+) images",
    "spaq": r"SPAQ dataset initialized: (\d+) images|Testing on SPAQ dataset \((\d+) images",
}
_SETTING = re.compile(r"(\w+)=(.*?)(?= \w+=|$)")
# Lines are told apart by how they begin; one longer than this is no line of a log's own.
_LONGEST = 20_000


def read_log(path: Path) -> list[dict]:
    """The records of a plain log: one `run`, an `epoch` for every row, one `end`, with the jsonl's fields.
    Seconds per epoch are the progress bars' sum, {"bars": s}. What a log doesn't say is absent. Raises UserError."""
    reader = _Reader(path.stem)
    with reading(path, "cannot be read"), path.open("rb") as file:
        for line in file:
            reader.take(line)
    if not reader.recognised:
        raise UserError(f"{path}: not a training log: expected a line `Epoch  Train_Loss  …`, found none")
    return reader.records()


class _Reader:
    """Takes a log line by line and keeps what the records need."""

    def __init__(self, stem: str):
        self.stem, self.recognised, self.own = stem, False, False
        self.flags: dict[str, object] = {}
        self.data: dict[str, int] = {}
        self.run: dict[str, object] = {}
        self.columns: list[str] = []
        self.rows: dict[tuple[int, int], dict] = {}
        self.rounds: dict[int, dict] = {}
        self.round = 1
        self.announced: int | None = None
        self.seed: int | None = None
        self.seconds = self.bar = 0
        self.status, self.problem = "cut off", ""
        self.starts = {
            "Epoch": self._epoch_line,
            "Round": self._round_line,
            "Training and testing on": self._public_start,
            "Run: ": lambda text: vars(self).update(own=True, recognised=True),
            "Settings: ": lambda text: self._given(_SETTING.findall(text[10:])),
            "Backbone: ": self._backbone,
            "Using Swin": lambda text: self.flags.setdefault("backbone", "swin_tiny_patch4_window7_224"),
            "Device: ": lambda text: self.run.update(device=text[8:]),
            "Precision: training ": lambda text: self.run.update(precision=text.split()[2]),
            "Ranking loss enabled": lambda text: self._given(
                (f"ranking_loss_{name}", value) for name, value in re.findall(r"(alpha|margin|form)=([\w.]+)", text)
            ),
            "Best SRCC: ": self._best,
            "Early stopping triggered": lambda text: self._ended("early_stopped"),
            "Testing median SRCC": lambda text: self._ended("finished"),
            "Median test of": lambda text: self._ended("finished"),
            "Traceback (most recent call last)": lambda text: self._failed("crashed", ""),
            "Interrupted": lambda text: self._failed("interrupted", ""),
            "error: ": lambda text: self._failed("failed", text),
        }

    def take(self, line: bytes) -> None:
        if b"<" in line:
            self._bars(line)
        # A terminal shows what follows the last carriage return; bars end where the next text begins.
        shown = line.rstrip().rpartition(b"\r")[2]
        if not shown or len(shown) > _LONGEST:
            return
        text = shown.decode("utf-8", "replace")
        if "\t" in text and self.columns and (row := _ROW.search(text)):
            self._row(int(row[1]), row[2], complete=line.endswith((b"\n", b"\r")))
            return
        text = text.strip()
        action = next((action for start, action in self.starts.items() if text.startswith(start)), None)
        if action is not None:
            action(text)
        elif (self.status == "crashed" or text == "Killed") and (problem := _ERROR.match(text)):
            self._failed("interrupted" if problem[1].startswith("KeyboardInterrupt") else "crashed", text)
        elif "images" in text:
            self._counts(text)

    def _bars(self, line: bytes) -> None:
        """Add up the times of the bars: one that shows less than before is a new one."""
        for hours, minutes, seconds in _ELAPSED.findall(line):
            elapsed = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
            self.seconds += self.bar if elapsed < self.bar else 0
            self.bar = elapsed

    def _epoch_line(self, text: str) -> None:
        if "Train_Loss" in text:
            self.columns, self.recognised, self.seconds, self.bar = text.split(), True, 0, 0
        elif bar := _BAR.match(text):
            self.flags.setdefault("epochs", int(bar[1]))

    def _row(self, epoch: int, text: str, complete: bool) -> None:
        fields = [str(epoch), *(field.strip() for field in re.split(r"\t+", text))]
        needed = self.columns.index("Test_PLCC") + 1 if "Test_PLCC" in self.columns else len(self.columns)
        loss = _LOSS.match(fields[1])
        cut = not complete and (len(fields) < len(self.columns) or not re.search(r"\.\d{4}$|nan$", fields[-1]))
        if not needed <= len(fields) <= len(self.columns) or loss is None or cut:
            return
        self._begin_round(epoch)
        losses = re.findall(r"(\w+):([-\w.+]+)", loss[2] or "")
        figures = {"train": {"loss": _number(loss[1])} | {name.lower(): _number(value) for name, value in losses}}
        for column, field in zip(self.columns[2:], fields[2:]):
            part, _, name = column.lower().rpartition("_")
            if part and name in FIGURES:
                figures.setdefault(part, {})[name] = _number(field)
        seconds, self.seconds, self.bar = self.seconds + self.bar, 0, 0
        timing = {"seconds": {"bars": seconds}} if seconds else {}
        self.rows[self.round, epoch] = {"type": "epoch", "round": self.round, "epoch": epoch, **figures, **timing}
        self.status, self.problem = "cut off", ""

    def _begin_round(self, epoch: int) -> None:
        """A round begins where the log says so, or, since not every code does, where epoch 1 comes again."""
        if (self.announced or epoch == 1) and any(number == self.round for number, _ in self.rows):
            self.round += 1
        self.announced = None
        self.rounds.setdefault(self.round, {"round": self.round, "seed": self.seed})

    def _round_line(self, text: str) -> None:
        if found := re.match(r"Round (\d+)(?: of \d+, seed (\d+))?", text):
            self.announced, self.seed = int(found[1]), int(found[2]) if found[2] else None

    def _public_start(self, text: str) -> None:
        self.recognised = True
        self.flags["dataset"] = text.split()[4]
        if name := _PUBLIC_NAME.match(self.stem):
            self.flags["fusion"] = "concat" if name[1] else "none"

    def _given(self, settings: Iterable[tuple[str, str]]) -> None:
        self.flags.update((name, _value(value)) for name, value in settings)

    def _backbone(self, text: str) -> None:
        if size := re.search(r"Swin Transformer (\w+)", text):
            self.flags["backbone"] = f"swin_{size[1].lower()}_patch4_window7_224"

    def _counts(self, text: str) -> None:
        for part, pattern in _COUNTS.items():
            if found := re.search(pattern, text):
                self.data[part] = int(found[1] or found[2])
        if found := re.match(r"(\S+) cross test: (\d+) images", text):
            self.data[found[1].lower()] = int(found[2])

    def _best(self, text: str) -> None:
        if (found := re.search(r"\(epoch (\d+)\)", text)) and self.round in self.rounds:
            self.rounds[self.round]["best_epoch"] = int(found[1])

    def _ended(self, status: str) -> None:
        if self.status != "early_stopped":
            self.status = status

    def _failed(self, status: str, problem: str) -> None:
        self.status, self.problem = status, problem

    def records(self) -> list[dict]:
        epochs = [self.rows[key] for key in sorted(self.rows)]
        if not self.own:
            self.flags.setdefault("backbone", "resnet50")
            if self.columns:
                self.flags.setdefault("ranking_loss_alpha", 0)
            if form := _loss_form(epochs, self.flags):
                self.flags.setdefault("ranking_loss_form", form)
        last = max((epoch for number, epoch in self.rows if number == self.round), default=0)
        if self.status == "cut off" and last and last == self.flags.get("epochs"):
            self.status = "finished"
        run = {"type": "run", "name": self.stem, "flags": self.flags, "data": self.data, **self.run}
        if not self.own:
            run["code"] = "public"
        end = {"type": "end", "status": self.status, "problem": self.problem, "rounds": list(self.rounds.values())}
        return [run, *epochs, end]


def _loss_form(epochs: list[dict], flags: dict) -> str | None:
    """Which sum of L1 and ranking loss the rows show; the public code changed it without saying so."""
    alpha = flags.get("ranking_loss_alpha")
    for train in (epoch["train"] for epoch in epochs):
        if alpha and train.get("rank"):
            additive, convex = (abs(w * train["l1"] + alpha * train["rank"] - train["loss"]) for w in (1, 1 - alpha))
            return "additive" if additive < convex else "convex"
    return None


def _number(text: str) -> float | None:
    """A figure of a row; None, as in the jsonl, where it is undefined or no number."""
    with suppress(ValueError):
        return value if math.isfinite(value := float(text)) else None
    return None


def _value(text: str) -> object:
    """A setting as it was before it was written into the log."""
    words = {"None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
