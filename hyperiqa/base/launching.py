"""Programs and worker processes that a program starts, and ends when it ends."""

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import IO


@functools.cache
def _lifeline() -> int:
    # The reading end of a pipe whose other end closes when this process ends.
    return os.pipe()[0]


def start_program(
    words: Sequence[str],
    environment: Mapping[str, str],
    output: int | IO | None,
    errors: int | IO | None = None,
) -> subprocess.Popen:
    """Start a Python program that ends once this process is gone, even if it was killed.

    words: the script, or -m and the module, and then its arguments.
    output, errors: its stdout and stderr, as `subprocess` takes them. None means this process's.

    It runs in a session of its own: Ctrl-C reaches only the program that started it, which then
    ends it once.
    """
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("follower.py")), *words],
        stdin=_lifeline(),
        stdout=output,
        stderr=errors,
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
        # The signal goes to the whole group, so that the program's data loaders end too.
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
    # A worker process leaves Ctrl-C to the main process, and ends after it. If the main process was
    # killed, the worker would otherwise wait for work for ever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def exit_after_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=exit_after_parent, daemon=True).start()


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    # Keeps the main module and Ctrl-C from the processes that are started meanwhile. A fresh
    # process imports the main module: a user's script that is not guarded by __name__ would run
    # again in each. Until `_follow_parent` is called there, Ctrl-C would end it with a traceback.
    main_module = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    # The block is inherited; a signal that comes meanwhile reaches this process when it ends.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def parallel_map(work: Callable, items: Iterable, processes: int, apart: bool = False) -> Iterator:
    """Yield `work(item)` of each item, in order, computed by worker processes.

    If `processes` is 1, this process does the work. With `apart`, a worker does it all the same:
    it is for work that may crash, and BrokenProcessPool is raised if a worker dies. The workers end
    with this process. They cannot use functions of the main module, so `work` must be a function of
    another module.
    """
    if processes == 1 and not apart:
        yield from map(work, items)
        return
    # A forked worker would copy the locks that the threads of a caller hold.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_follow_parent) as pool:
        with _apart():
            results = pool.map(work, items, chunksize=4)
        try:
            yield from results
        finally:
            # A caller that stops early does not wait for the items that remain.
            pool.shutdown(cancel_futures=True)
