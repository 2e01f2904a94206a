"""Plain logs as records: what the jsonl of the same run would have held, as far as the log tells.

Two kinds are read: NAME.log of this project, and what the public HyperIQA and Swin code printed, progress bars
and all: tabs single or double, losses `5.042 (L1:4.848,Rank:0.646)`, with and without SPAQ or validation columns,
several rounds in a file, and files that end anywhere, in a traceback or in the middle of a row."""

import math
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from hyperiqa.base.errors import UserError, reading_file
from hyperiqa.stats.metrics import FIGURES

_ELAPSED = re.compile(rb"\[(?:(\d+):)?(\d+):(\d\d)<")
_ROW = re.compile(r"(?:^|\])\s*(\d+)\t+(\S.*)$")
_LOSS = re.compile(r"([-\w.+]+)(?:\s*\((\w+:[-\w.+]+(?:,\s*\w+:[-\w.+]+)*)\))?$")
_ERROR = re.compile(
    r"([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b.*|Killed|Segmentation fault.*)$"
)
_PUBLIC_NAME = re.compile(
    r"(?:swin|resnet\d*)(_multiscale)?(?:_ranking(?:_alpha[\d.]+)?)?_\d{8}_\d{6}$"
)
_COUNTS = (
    r"(?P<count>\d+) (?P<part>train|test) images",
    r"(?P<part>Train|Test): (?P<count>\d+) images",
    r"(?P<part>SPAQ) dataset (?:initialized: |\()(?P<count>\d+) images",
    r"^(?P<part>\S+) cross test: (?P<count>\d+) images",
)
_RANKING = re.compile(r"(alpha|margin|form)=([\w.]+)")
_SWIN = "swin_{}_patch4_window7_224"
_SETTING = re.compile(r"(\w+)=(.*?)(?= \w+=|$)")
_LONGEST = 20_000  # a longer line is none of a log's own


def read_log(path: Path) -> list[dict]:
    """The records of a plain log: one `run`, an `epoch` for every row, one `end`, with the jsonl's fields.
    Seconds per epoch are the progress bars' sum, {"bars": s}. What a log doesn't say is absent. Raises UserError."""
    reader = _Reader(path.stem)
    with reading_file(path, "cannot be read"), path.open("rb") as file:
        for line in file:
            reader.take(line)
    if not reader.recognised:
        raise UserError(
            f"{path}: not a training log: expected a line `Epoch  Train_Loss  …`, found none"
        )
    return reader.records()


class _Reader:
    """Takes a log line by line and keeps what the records need."""

    def __init__(self, stem: str):
        self.stem, self.recognised, self.own = stem, False, False
        self.flags: dict = {}
        self.data: dict[str, int] = {}
        self.run: dict[str, object] = {}
        self.columns: list[str] = []
        self.rows: dict[tuple[int, int], dict] = {}
        self.rounds: dict[int, dict] = {}
        self.round, self.seconds, self.bar = 1, 0, 0
        self.announced: int | None = None
        self.seed: int | None = None
        self.status, self.problem = "cut off", ""
        note, flags, name = vars(self).update, self.flags, _PUBLIC_NAME.match(stem)
        fusion = {"fusion": "concat" if name[1] else "none"} if name else {}
        # Lines are told apart by how they begin.
        self.starts: dict[str, Callable[[re.Match], object]] = {
            "Epoch.*Train_Loss": lambda m: note(
                columns=m.string.split(), recognised=True, seconds=0, bar=0
            ),
            r"Epoch \d+/(\d+):": lambda m: flags.setdefault("epochs", int(m[1])),
            r"Round (\d+)(?: of \d+, seed (\d+))?": lambda m: note(
                announced=int(m[1]), seed=m[2] and int(m[2])
            ),
            r"Training and testing on (\S+)": lambda m: (
                note(recognised=True) or flags.update(dataset=m[1], **fusion)
            ),
            "Run: ": lambda m: note(own=True, recognised=True),
            "Settings: ": lambda m: self._given(_SETTING.findall(m.string[10:])),
            r"Backbone: .*?Swin Transformer (\w+)": lambda m: flags.update(
                backbone=_SWIN.format(m[1].lower())
            ),
            "Using Swin": lambda m: flags.setdefault("backbone", _SWIN.format("tiny")),
            "Device: (.*)": lambda m: self.run.update(device=m[1]),
            r"Precision: training (\S+)": lambda m: self.run.update(precision=m[1]),
            "Ranking loss enabled": lambda m: self._given(
                _RANKING.findall(m.string), "ranking_loss_"
            ),
            r"Best SRCC: .*?\(epoch (\d+)\)": lambda m: self.rounds.get(self.round, {}).update(
                best_epoch=int(m[1])
            ),
            "Early stopping triggered": lambda m: note(status="early_stopped"),
            "Testing median SRCC|Median test of": lambda m: (
                self.status == "early_stopped" or note(status="finished")
            ),
            r"Traceback \(most recent call last\)": lambda m: note(status="crashed", problem=""),
            "Interrupted": lambda m: note(status="interrupted", problem=""),
            "error: ": lambda m: note(status="failed", problem=m.string),
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
        for start, action in self.starts.items():
            if begun := re.match(start, text):
                action(begun)
                return
        if (self.status == "crashed" or text == "Killed") and _ERROR.match(text):
            self.status, self.problem = (
                "interrupted" if text.startswith("KeyboardInterrupt") else "crashed",
                text,
            )
        elif "images" in text:
            counts = (found for pattern in _COUNTS for found in re.finditer(pattern, text))
            self.data.update((found["part"].lower(), int(found["count"])) for found in counts)

    def _bars(self, line: bytes) -> None:
        """Add up the times of the bars: one that shows less than before is a new one."""
        for hours, minutes, seconds in _ELAPSED.findall(line):
            elapsed = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
            self.seconds += self.bar if elapsed < self.bar else 0
            self.bar = elapsed

    def _row(self, epoch: int, text: str, complete: bool) -> None:
        fields = [str(epoch), *(field.strip() for field in re.split(r"\t+", text))]
        needed = (
            self.columns.index("Test_PLCC") + 1
            if "Test_PLCC" in self.columns
            else len(self.columns)
        )
        loss = _LOSS.match(fields[1])
        cut = not complete and (
            len(fields) < len(self.columns) or not re.search(r"\.\d{4}$|nan$", fields[-1])
        )
        if not needed <= len(fields) <= len(self.columns) or loss is None or cut:
            return
        # A round begins where the log says so, or, since not every code does, where epoch 1 comes again.
        self.round += bool(
            (self.announced or epoch == 1) and any(number == self.round for number, _ in self.rows)
        )
        self.announced = None
        self.rounds.setdefault(self.round, {"round": self.round, "seed": self.seed})
        losses = re.findall(r"(\w+):([-\w.+]+)", loss[2] or "")
        figures = {
            "train": {"loss": _number(loss[1])}
            | {name.lower(): _number(value) for name, value in losses}
        }
        for column, field in zip(self.columns[2:], fields[2:]):
            part, _, name = column.lower().rpartition("_")
            if part and name in FIGURES:
                figures.setdefault(part, {})[name] = _number(field)
        seconds, self.seconds, self.bar = self.seconds + self.bar, 0, 0
        timing = {"seconds": {"bars": seconds}} if seconds else {}
        self.rows[self.round, epoch] = {
            "type": "epoch",
            "round": self.round,
            "epoch": epoch,
            **figures,
            **timing,
        }
        self.status, self.problem = "cut off", ""

    def _given(self, settings: Iterable[tuple[str, str]], prefix: str = "") -> None:
        self.flags.update((prefix + name, _value(value)) for name, value in settings)

    def records(self) -> list[dict]:
        epochs = [self.rows[key] for key in sorted(self.rows)]
        if not self.own:
            self.flags.setdefault("backbone", "resnet50")
            if self.columns:
                self.flags.setdefault("ranking_loss_alpha", 0)
            # Which sum of L1 and ranking loss the rows show; the public code changed it without saying so.
            alpha = self.flags.get("ranking_loss_alpha")
            if train := next(
                (e["train"] for e in epochs if alpha and e["train"].get("rank")), None
            ):
                sums = (weight * train["l1"] + alpha * train["rank"] for weight in (1, 1 - alpha))
                additive, convex = (abs(total - train["loss"]) for total in sums)
                self.flags.setdefault(
                    "ranking_loss_form", "additive" if additive < convex else "convex"
                )
            self.run["code"] = "public"
        last = max((epoch for number, epoch in self.rows if number == self.round), default=0)
        if self.status == "cut off" and last and last == self.flags.get("epochs"):
            self.status = "finished"
        run = {"type": "run", "name": self.stem, "flags": self.flags, "data": self.data, **self.run}
        end = {
            "type": "end",
            "status": self.status,
            "problem": self.problem,
            "rounds": list(self.rounds.values()),
        }
        return [run, *epochs, end]


def _number(text: str) -> float | None:
    """A figure of a row; None, as in the jsonl, where it is undefined or no number."""
    with suppress(ValueError):
        return value if math.isfinite(value := float(text)) else None
    return None


def _value(text: str) -> object:
    """A setting as it was before it was written into the log."""
    for kind in ({"None": None, "True": True, "False": False}.__getitem__, int, float):
        with suppress(KeyError, ValueError):
            return kind(text)
    return text
