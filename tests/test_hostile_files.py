"""Damaged descriptions, certificates and records through the tools that read them; see hostile.py."""

import subprocess
import sys
from pathlib import Path

import pytest

HOSTILE = Path(__file__).with_name("hostile.py")


@pytest.mark.parametrize(
    ("first", "count", "tools"),
    [(0, 24, []), pytest.param(0, 2000, ["all"], marks=pytest.mark.slow)],
)
def test_damaged_files_give_one_line(tmp_path, first, count, tools):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", HOSTILE, tmp_path, str(first), str(count), *tools],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} cases, 0 faults" in done.stdout
