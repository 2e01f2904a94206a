"""Runs of the real scripts in processes of their own, and what they leave."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from helpers import Done

ROOT = Path(__file__).resolve().parent.parent


class Launcher:
    """The process of tests/launcher.py; `run` and `tool` start a real script in a fork of it.

    environment: variables for the launcher itself, for what is read when a library is imported.
    """

    def __init__(self, scratch, **environment):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "launcher.py"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.output = scratch / "output"
        # Below the ports that the system hands out, and apart from those of the other workers of pytest-xdist.
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        self.ports = (20_000 + 500 * worker, 20_500 + 500 * worker)
        assert self.process.stdout.readline() == "ready\n"

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def codes(
        self,
        script,
        flags,
        cwd=ROOT,
        environment=None,
        kill=None,
        fsize=None,
        world=1,
        rank=0,
        threads=1,
    ):
        """Run the script; the exit code of each process. What they say lies in the output files then."""
        for ending in ("", ".err"):
            Path(f"{self.output}{ending}").unlink(missing_ok=True)
        request = {
            "argv": [str(ROOT / script), *map(str, flags)],
            "cwd": str(cwd),
            "environment": environment or {},
            "output": str(self.output),
            "kill": kill,
            "fsize": fsize,
            "world": world,
            "rank": rank,
            "threads": threads,
            "ports": self.ports,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run(self, script, flags, **settings):
        """(exit code, stdout, the error lines of stderr); of several processes the exit codes."""
        codes = self.codes(script, flags, **settings)
        errors = Path(f"{self.output}.err").read_text().replace("\r", "\n").splitlines()
        code = codes if len(codes) > 1 else codes[0]
        return (
            code,
            self.output.read_text(),
            [line for line in errors if line.strip() and "|" not in line],
        )

    def tool(self, script, *words, **settings):
        """What a single process left: exit code, standard output and standard error as they are."""
        (code,) = self.codes(script, words, **settings)
        return Done(code, self.output.read_text(), Path(f"{self.output}.err").read_text())


def results(folder):
    """All that a finished run leaves, without the times."""
    # Killed before its first record, a run leaves nothing to take up but its empty files.
    (jsonl,) = [path for path in (folder / "logs").glob("*.jsonl") if path.stat().st_size]
    records = [json.loads(line) for line in jsonl.read_text().splitlines()]
    for record in records:
        record.pop("seconds", None)
    # When a run was taken up again, what it took and where its files are is no result.
    rows = re.sub(
        r"^Resuming .*\n|^.*; falling back to previous\.pt\n|^Training and testing took .*[\s\S]*\Z",
        "",
        jsonl.with_suffix(".log").read_text(),
        flags=re.M,
    )
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
