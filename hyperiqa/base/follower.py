"""Run a Python program that ends once the program that started it is gone, for whatever reason.

python follower.py SCRIPT [WORDS], or python follower.py -m MODULE [WORDS]

Standard input is a pipe, and the starting program holds its other end. The system closes that end
when the starting program ends, even by SIGKILL, on Linux and on macOS. The program itself reads
from an empty standard input. This file is run by its path, so it imports nothing from the package.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path


def _end_after(pipe: int) -> None:
    # Nobody writes to the pipe: a read returns when the other end is closed.
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGINT)
    # An interrupted program has so many seconds to save its state.
    time.sleep(10)
    # The workers of the program are in its group.
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A shell lets what it starts in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_after, args=[pipe], daemon=True).start()
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        # As Python itself does, `sys.path` begins with the working folder.
        sys.path[0] = str(Path.cwd())
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
