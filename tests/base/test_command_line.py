import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ({"OMP_WAIT_POLICY": ""}, "None"),
    ],
)
def test_threads_spin_shortly_unless_the_user_has_said_otherwise(own, expected):
    script = "import os, sys; from hyperiqa.base.command_line import run_tool; run_tool(lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules))"
    usual = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**usual, **own},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [expected, "False"]


@pytest.mark.parametrize(
    "script",
    [
        "train_swin",
        "train_resnet",
        "train_timm",
        "predict",
        "evaluate",
        "export",
        "search",
        "benchmark",
    ],
)
def test_no_program_imports_torch_before_its_main(script):
    """Else what run_tool sets for its threads would come too late."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {script}; print('torch' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
