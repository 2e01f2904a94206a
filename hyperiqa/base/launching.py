"""Programs and worker processes that a program starts, and ends when it ends."""

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
    """Start a program that writes stdout and stderr into the file `output`.

    It runs in a session of its own: Ctrl-C reaches only the program that started it, which then
    ends it once.
    """
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
    """Interrupt the programs, and kill those that still run after `patience` seconds.

    The patience lets them write their last records. A second Ctrl-C ends it early.
    """
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + patience
        for process in processes:
            process.wait(max(0.1, deadline - time.monotonic()))
    for process in processes:
        # The whole group, so that the processes of its data loaders end too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_error(output: Path) -> str:
    """The line that says why a program failed: its last `error: …`, else its last line."""
    text = output.read_bytes()[-20_000:].decode("utf-8", "replace")
    # Progress bars end their lines with \r.
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1]


def _follow_parent() -> None:
    """In a worker process: leave Ctrl-C to the main process, and end when that process has ended.

    A worker whose main process was killed would otherwise wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def exit_after_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=exit_after_parent, daemon=True).start()


def parallel_map(work: Callable, items: Iterable, processes: int, apart: bool = False) -> Iterator:
    """Yield `work(item)` of each item, in order, computed by worker processes.

    One process means this process, without workers. With `apart` it is a worker all the same, for
    work that may crash: BrokenProcessPool is raised where a worker dies. The workers end with this
    process.
    """
    if processes == 1 and not apart:
        yield from map(work, items)
        return
    # A forked worker would copy the locks that the threads of a caller hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_parent) as pool:
        try:
            yield from pool.map(work, items, chunksize=4)
        finally:
            # A caller that stops early does not wait for the items that remain.
            pool.shutdown(cancel_futures=True)
