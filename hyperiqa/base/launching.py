"""Programs that a program starts: each in a session of its own, ended with it, its last words kept."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def start_program(
    command: Sequence[str], output: Path, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Start a program that writes all it says into the file `output`, in a session of its own.
    Ctrl-C then reaches the one that started it alone, which ends it once."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )


def end_programs(processes: Sequence[subprocess.Popen], patience: float = 10) -> None:
    """Interrupt the programs, so that they write their last records, and kill what is left after `patience` seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + patience
        for process in processes:
            process.wait(max(0.1, deadline - time.monotonic()))
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # its loaders' processes too
        process.wait()


def last_error(output: Path) -> str:
    """The last line that says why a program failed: its `error: …`, else whatever it said last."""
    text = output.read_bytes()[-20_000:].decode("utf-8", "replace")
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return next(
        (line for line in reversed(lines) if line.startswith("error: ")),
        lines[-1] if lines else "no output",
    )


def _follow_parent() -> None:
    """In a worker: leave Ctrl-C to the main process, and end when that is killed, not wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def parallel_map(work: Callable, items: Iterable, processes: int, apart: bool = False) -> Iterator:
    """`work` of each item, in order, by that many processes; they end with this one. A single one is this one, unless
    it is to be `apart`: where it dies, BrokenProcessPool is raised."""
    if processes == 1 and not apart:
        yield from map(work, items)
        return
    fresh = multiprocessing.get_context("spawn")  # fork would copy the locks of a caller's threads
    with ProcessPoolExecutor(processes, mp_context=fresh, initializer=_follow_parent) as pool:
        try:
            yield from pool.map(work, items, chunksize=4)
        finally:
            pool.shutdown(cancel_futures=True)
