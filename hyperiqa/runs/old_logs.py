"""Plain logs as records: what the jsonl of the same run would have held, as far as the log tells.

Two kinds are read: NAME.log of this project, and what the public HyperIQA and Swin code printed,
progress bars and all: tabs single or double, losses `5.042 (L1:4.848,Rank:0.646)`, with and without
SPAQ or validation columns, several rounds in a file, and files that end anywhere, in a traceback or
in the middle of a row.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from hyperiqa.base import errors, plain_values, schema
from hyperiqa.stats.metrics import FIGURES
from hyperiqa.training import options, run_files

# A row may stand on the line of an unfinished bar, behind the bar's closing bracket.
_ROW = re.compile(r"(?:^|\])\s*(\d+)\t+(\S.*)$")
_LOSS = re.compile(r"([-\w.+]+)(?:\s*\((\w+:[-\w.+]+(?:,\s*\w+:[-\w.+]+)*)\))?$")
_ERROR = re.compile(
    r"([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b.*|Killed|Segmentation fault.*)$"
)
_COUNTS = (
    r"(?P<count>\d+) (?P<part>train|test) images",
    r"(?P<part>Train|Test): (?P<count>\d+) images",
    r"(?P<part>SPAQ) dataset (?:initialized: |\()(?P<count>\d+) images",
    r"^(?P<part>\S+) cross test: (?P<count>\d+) images",
)
_SWIN = "swin_{}_patch4_window7_224"


def read_log(path: Path) -> list[dict]:
    """The records of a plain log: one `run`, an `epoch` for every row, one `end`.

    The records have the jsonl's fields; what a log doesn't say is absent. Seconds per epoch are the
    progress bars' sum, {"bars": s}. Raises UserError for a file that is no log.
    """
    reader = _Reader(path.stem)
    with errors.reading_file(path, "cannot be read"), path.open("rb") as file:
        for line in file:
            reader.take(line)
    if not reader.recognised:
        raise errors.UserError(
            f"{path}: not a training log: expected a line `Epoch  Train_Loss  …`, found none"
        )
    records = reader.records()
    # The settings are as the log has them; figures were read as numbers.
    if problem := schema.mismatch(records[0], run_files.RECORDS["run"]):
        raise errors.UserError(f"{path}: not the log of a run: {problem}")
    return records


class _Reader:
    def __init__(self, stem: str):
        self.stem = stem
        self.recognised = False
        self.flags: dict = {}
        self.data: dict[str, int] = {}
        # The log of the public code, unless a line says otherwise.
        self.run: dict[str, object] = {"code": "public"}
        self.columns: list[str] = []
        self.rows: dict[tuple[int, int], dict] = {}
        self.rounds: dict[int, dict] = {}
        self.round = 1
        # The number of a round of which the log has told, but no row yet.
        self.announced: int | None = None
        self.seed: int | None = None
        # The seconds that each progress bar since the last row has shown.
        self.bars: list[int] = []
        self.status = "cut off"
        self.problem = ""

    def take(self, line: bytes) -> None:
        """Read one line of the file, its end included."""
        if b"<" in line:
            self._take_bars(line)
        # A terminal shows what follows the last carriage return; bars end where the next text
        # begins.
        shown = line.rstrip().rpartition(b"\r")[2]
        # No log writes longer lines itself.
        if not shown or len(shown) > 20_000:
            return
        text = shown.decode("utf-8", "replace")
        row = _ROW.search(text) if "\t" in text and self.columns else None
        if row is not None:
            self._take_row(int(row[1]), row[2], complete=line.endswith((b"\n", b"\r")))
        else:
            self._take_text(text.strip())

    def _take_bars(self, line: bytes) -> None:
        for hours, minutes, seconds in re.findall(rb"\[(?:(\d+):)?(\d+):(\d\d)<", line):
            elapsed = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
            # A bar that shows less than before is a new one.
            if self.bars and elapsed >= self.bars[-1]:
                self.bars[-1] = elapsed
            else:
                self.bars.append(elapsed)

    def _take_text(self, text: str) -> None:
        for beginning, action in _ACTIONS.items():
            if match := re.match(beginning, text):
                action(self, match)
                return
        # An error's line ends a run behind a traceback alone; `Killed` is the system's word.
        if (self.status == "crashed" or text == "Killed") and _ERROR.match(text):
            interrupted = text.startswith("KeyboardInterrupt")
            self.end("interrupted" if interrupted else "crashed", text)
        elif "images" in text:
            for pattern in _COUNTS:
                for match in re.finditer(pattern, text):
                    self.data[match["part"].lower()] = int(match["count"])

    def end(self, status: str, problem: str = "") -> None:
        self.status = status
        self.problem = problem

    # What a line changes, where an expression cannot say it; `_ACTIONS` names the lines.
    def on_run_name(self, match: re.Match) -> None:
        self.run.pop("code", None)
        self.recognised = True

    def on_dataset(self, match: re.Match) -> None:
        self.recognised = True
        self.flags["dataset"] = match[1]
        # The public code tells its fusion in the file's name alone.
        name = re.match(
            r"(?:swin|resnet\d*)(_multiscale)?(?:_ranking(?:_alpha[\d.]+)?)?_\d{8}_\d{6}$",
            self.stem,
        )
        if name is not None:
            self.flags["fusion"] = "concat" if name[1] else "none"

    def on_round(self, match: re.Match) -> None:
        self.announced = int(match[1])
        self.seed = int(match[2]) if match[2] else None

    def on_header(self, match: re.Match) -> None:
        self.columns = match.string.split()
        self.recognised = True
        # Loading the images is no part of an epoch.
        self.bars.clear()

    def on_best_epoch(self, match: re.Match) -> None:
        if self.round in self.rounds:
            self.rounds[self.round]["best_epoch"] = int(match[1])

    def on_medians(self, match: re.Match) -> None:
        if self.status != "early_stopped":
            self.status = "finished"

    def set_flags(self, settings: Iterable[tuple[str, str]], prefix: str = "") -> None:
        self.flags.update((prefix + name, _value(text)) for name, text in settings)

    def _take_row(self, epoch: int, text: str, complete: bool) -> None:
        fields = [str(epoch), *(field.strip() for field in re.split(r"\t+", text))]
        loss = _LOSS.match(fields[1])
        if loss is None or not self._is_whole(fields, complete):
            return
        # A round begins where the log says so, or, since not every code does, where epoch 1 comes
        # again.
        if self.round in self.rounds and (self.announced or epoch == 1):
            self.round += 1
        self.announced = None
        self.rounds.setdefault(self.round, {"round": self.round, "seed": self.seed})
        record = {
            "type": "epoch",
            "round": self.round,
            "epoch": epoch,
            **self._figures(loss, fields),
        }
        if sum(self.bars):
            record["seconds"] = {"bars": sum(self.bars)}
        self.bars.clear()
        self.rows[self.round, epoch] = record
        # Whatever an earlier line said of an end, the run has gone on.
        self.end("cut off")

    def _is_whole(self, fields: list[str], complete: bool) -> bool:
        # A line without an end may stop in the middle of a figure, which has four digits.
        needed = len(self.columns)
        # Some codes leave the columns behind the test set's empty.
        if "Test_PLCC" in self.columns:
            needed = self.columns.index("Test_PLCC") + 1
        if not needed <= len(fields) <= len(self.columns):
            return False
        ends_whole = re.search(r"\.\d{4}$|nan$", fields[-1]) is not None
        return complete or (ends_whole and len(fields) == len(self.columns))

    def _figures(self, loss: re.Match, fields: list[str]) -> dict[str, dict]:
        parts = re.findall(r"(\w+):([-\w.+]+)", loss[2] or "")
        figures = {
            "train": {name.lower(): _number(text) for name, text in [("loss", loss[1]), *parts]}
        }
        for column, field in zip(self.columns[2:], fields[2:]):
            part, _, name = column.lower().rpartition("_")
            if part and name in FIGURES:
                figures.setdefault(part, {})[name] = _number(field)
        return figures

    def records(self) -> list[dict]:
        """All records, once the whole file has been taken."""
        epochs = [self.rows[key] for key in sorted(self.rows)]
        if "code" in self.run:
            self._set_public_defaults(epochs)
        # Some public logs have no closing line.
        last = max((epoch for number, epoch in self.rows if number == self.round), default=0)
        if self.status == "cut off" and last and last == self.flags.get("epochs"):
            self.status = "finished"
        return [
            {"type": "run", "name": self.stem, "flags": self.flags, "data": self.data, **self.run},
            *epochs,
            {
                "type": "end",
                "status": self.status,
                "problem": self.problem,
                "rounds": list(self.rounds.values()),
            },
        ]

    def _set_public_defaults(self, epochs: list[dict]) -> None:
        self.flags.setdefault("backbone", "resnet50")
        if self.columns:
            self.flags.setdefault("ranking_loss_alpha", 0)
        alpha = self.flags.get("ranking_loss_alpha")
        ranked = [
            epoch["train"]
            for epoch in epochs
            if all(epoch["train"].get(part) for part in ("loss", "l1", "rank"))
        ]
        if isinstance(alpha, (int, float)) and alpha and ranked:
            self.flags.setdefault("ranking_loss_form", _ranking_loss_form(ranked[0], alpha))


# Lines are told apart by how they begin; the first pattern that fits counts.
_ACTIONS: dict[str, Callable[[_Reader, re.Match], object]] = {
    "Epoch.*Train_Loss": _Reader.on_header,
    r"Epoch \d+/(\d+):": lambda log, match: log.flags.setdefault("epochs", int(match[1])),
    r"Round (\d+)(?: of \d+, seed (\d+))?": _Reader.on_round,
    r"Training and testing on (\S+)": _Reader.on_dataset,
    "Run: ": _Reader.on_run_name,
    "Settings: (.*)": lambda log, match: log.set_flags(
        re.findall(r"(\w+)=(.*?)(?= \w+=|$)", match[1])
    ),
    "All other settings have their defaults": lambda log, match: log.flags.update(
        {**options.figure_settings({}), **log.flags}
    ),
    r"Backbone: .*?Swin Transformer (\w+)": lambda log, match: log.flags.update(
        backbone=_SWIN.format(match[1].lower())
    ),
    "Using Swin": lambda log, match: log.flags.setdefault("backbone", _SWIN.format("tiny")),
    "Device: (?P<device>.*)": lambda log, match: log.run.update(match.groupdict()),
    r"Precision: training (?P<precision>\S+)": lambda log, match: log.run.update(match.groupdict()),
    "Ranking loss enabled": lambda log, match: log.set_flags(
        re.findall(r"(alpha|margin|form)=([\w.]+)", match.string), "ranking_loss_"
    ),
    r"Best SRCC: .*?\(epoch (\d+)\)": _Reader.on_best_epoch,
    "Early stopping triggered": lambda log, match: log.end("early_stopped"),
    "Testing median SRCC|Median test of": _Reader.on_medians,
    r"Traceback \(most recent call last\)": lambda log, match: log.end("crashed"),
    "Interrupted": lambda log, match: log.end("interrupted"),
    "error: ": lambda log, match: log.end("failed", match.string),
}


def _ranking_loss_form(train: dict, alpha: float) -> str:
    # The public code changed from one sum of L1 and ranking loss to the other unsaid.
    sums = {
        "convex": (1 - alpha) * train["l1"] + alpha * train["rank"],
        "additive": train["l1"] + alpha * train["rank"],
    }
    return min(sums, key=lambda form: abs(sums[form] - train["loss"]))


def _number(text: str) -> float | None:
    # None, as in the jsonl, where it is undefined or no number.
    try:
        return plain_values.to_json_value(float(text))
    except ValueError:
        return None


def _value(text: str) -> object:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"None": None, "True": True, "False": False}.get(text, text)
