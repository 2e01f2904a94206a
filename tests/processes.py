"""Runs of the real scripts in processes of their own, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


class Launcher:
    """The process of tests/launcher.py; `run` starts a real script in a fork of it."""

    def __init__(self, scratch):
        command = [sys.executable, ROOT / "tests" / "launcher.py"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.output = scratch / "output"
        assert self.process.stdout.readline() == "ready\n"

    def run(self, script, flags, kill=None, fsize=None, world=1, rank=0, threads=1):
        """(exit code, stdout, the error lines of stderr); of several processes the exit codes."""
        for ending in ("", ".err"):
            Path(f"{self.output}{ending}").unlink(missing_ok=True)
        request = {
            "argv": [str(ROOT / script), *map(str, flags)],
            "output": str(self.output),
            "kill": kill,
            "fsize": fsize,
            "world": world,
            "rank": rank,
            "threads": threads,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        codes = json.loads(self.process.stdout.readline())
        errors = Path(f"{self.output}.err").read_text().replace("\r", "\n").splitlines()
        return (
            codes if world > 1 else codes[0],
            self.output.read_text(),
            [line for line in errors if line.strip() and "|" not in line],
        )


def results(folder):
    """All that a finished run leaves, without the times."""
    # Killed before its first record, a run leaves nothing to take up but its empty files.
    (jsonl,) = [path for path in (folder / "logs").glob("*.jsonl") if path.stat().st_size]
    records = [json.loads(line) for line in jsonl.read_text().splitlines()]
    for record in records:
        record.pop("seconds", None)
    rows = jsonl.with_suffix(".log").read_text()
    models = sorted((folder / "checkpoints").rglob("best*.pkl"))
    return {
        "records": [r for r in records if r["type"] != "run"],
        "runs": sum(r["type"] == "run" for r in records),
        "rows": rows[rows.index("Epoch\t") :],
        "heads": rows.count("Run: "),
        "predictions": [p.read_text() for p in sorted((folder / "logs").glob("*.csv"))],
        "epochs": [p.read_bytes() for p in sorted((folder / "logs").glob("*_epochs.npz"))],
        "models": [
            (p.relative_to(folder / "checkpoints" / jsonl.stem), torch.load(p, weights_only=True))
            for p in models
        ],
    }


def assert_same_results(found, expected):
    for name in ("records", "runs", "rows", "heads", "predictions", "epochs"):
        assert found[name] == expected[name], name
    assert [path for path, _ in found["models"]] == [path for path, _ in expected["models"]]
    for (_, one), (_, other) in zip(found["models"], expected["models"]):
        assert (
            all(torch.equal(one[name], other[name]) for name in other)
            and one.keys() == other.keys()
        )


def assert_same_but_for_stops(found, expected):
    """The same results of several processes, of which one run was stopped and taken up again: that it was, and what
    its processes took, is no result."""
    for each in (found, expected):
        each["records"] = [
            r
            for r in each["records"]
            if r["type"] != "processes" and r.get("status") != "interrupted"
        ]
        each["rows"] = [
            line for line in each["rows"].splitlines() if not line.startswith("Process ")
        ]
    assert_same_results(found, expected)
