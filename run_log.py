"""The records a run leaves: NAME.log as the user saw it, NAME.jsonl for programs, NAME_predictions.csv."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from checkpoints import write_whole
from options import UserError


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
    """Claims a run name and writes its log and jsonl. Raises UserError where that is not possible.

    name: the wished name; explicit: it is the user's own, so that a taken one is an error instead of
    getting a suffix. Two runs that start in the same second get different names.
    """

    def __init__(self, log_dir: Path, checkpoint_dir: Path, name: str, explicit: bool):
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            checkpoint_dir.mkdir(parents=True, exist_ok=True)
            number = 1
            while not self._claim(log_dir, checkpoint_dir, name if number == 1 else f"{name}_{number}"):
                if explicit:
                    raise UserError(
                        f"--run_name {name}: taken; expected a name without files in {log_dir} or {checkpoint_dir}"
                    )
                number += 1
            self._records = self.path(".jsonl").open("a", encoding="utf-8")
        except OSError as problem:
            raise UserError(f"{problem.filename}: cannot write logs or checkpoints: {problem.strerror}") from None

    def _claim(self, log_dir: Path, checkpoint_dir: Path, name: str) -> bool:
        """Take the name by making its files, which only one of two runs can do."""
        log, jsonl, folder = log_dir / f"{name}.log", log_dir / f"{name}.jsonl", checkpoint_dir / name
        if jsonl.exists() or folder.exists():
            return False
        try:
            self._log = log.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            folder.mkdir()
        except FileExistsError:
            self._log.close()
            log.unlink()
            return False
        self.name, self.log_dir, self.checkpoints = name, log_dir, folder
        return True

    def path(self, ending: str) -> Path:
        return self.log_dir / f"{self.name}{ending}"

    def line(self, text: str = "") -> None:
        """Show a line and keep it."""
        print(text, flush=True)
        self._write(self._log, text)

    def record(self, **fields: object) -> None:
        """Append a record to the jsonl; nan becomes null."""
        self._write(self._records, json.dumps(plain(fields)))

    def _write(self, file: io.TextIOBase, text: str) -> None:
        try:
            file.write(text + "\n")
            file.flush()
        except OSError as problem:
            raise UserError(f"{file.name}: cannot be written: {problem.strerror}") from None

    def predictions(self, round_number: int, rows: Iterable[tuple[str, str, float, float]]) -> None:
        """Replace the round's predictions file: rows of dataset, image, MOS, score."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["dataset", "image", "mos", "score"])
        writer.writerows(rows)
        ending = "_predictions.csv" if round_number == 1 else f"_round{round_number}_predictions.csv"
        write_whole(self.path(ending), lambda file: file.write(text.getvalue().encode()))

    def close(self) -> None:
        self._log.close()
        self._records.close()
