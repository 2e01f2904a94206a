"""Programs and workers end with the process that started them, and run nothing of its main script."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyperiqa.base.files import CHECKOUT

# A program with a worker of its own. It notes both processes and how it ended, and waits.
PROGRAM = """
import os, signal, subprocess, sys, time
{handler}
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(sys.stdin.read() == "", sys.argv[1:], flush=True)
print(os.getpid(), worker.pid, flush=True)
try:
    time.sleep(100)
except KeyboardInterrupt:
    worker.kill()
    print("interrupted", flush=True)
"""
STARTER = """
import os, time
from pathlib import Path
from hyperiqa.base import launching
output = Path("output").open("wb")
launching.start_program({words}, os.environ, output, output)
time.sleep(100)
"""


def is_running(process):
    """Whether a process runs; one that has ended and that nobody has asked for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("words", [["program.py", "a", "b c"], ["-m", "program", "a", "b c"]])
def test_a_program_ends_with_the_process_that_started_it(tmp_path, kind, words):
    (tmp_path / "program.py").write_text(PROGRAM.format(handler=""))
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER.format(words=words)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    output = tmp_path / "output"
    wait_until(lambda: output.exists() and output.read_text().count("\n") == 2)
    state, numbers = output.read_text().splitlines()
    assert state == "True ['a', 'b c']"
    starter.send_signal(kind)
    starter.wait()
    wait_until(lambda: not any(map(is_running, numbers.split())))
    assert output.read_text().splitlines()[-1] == "interrupted"


@pytest.mark.slow
def test_a_program_that_ignores_the_interrupt_is_killed_with_its_workers(tmp_path):
    handler = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    (tmp_path / "program.py").write_text(PROGRAM.format(handler=handler))
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER.format(words=["program.py"])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    output = tmp_path / "output"
    wait_until(lambda: output.exists() and output.read_text().count("\n") == 2)
    numbers = output.read_text().splitlines()[1].split()
    starter.kill()
    starter.wait()
    wait_until(lambda: not any(map(is_running, numbers)))


def test_a_script_that_is_not_guarded_does_not_run_again_in_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import math\n"
        "from hyperiqa.base.launching import parallel_map\n"
        "print('runs', flush=True)\n"
        "print(*parallel_map(math.sqrt, [1, 4, 9], 2))\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("runs\n1.0 2.0 3.0\n", "")
