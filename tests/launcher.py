"""Runs the real scripts in processes of their own, forked from one that has imported torch already (5 s saved each).

Reads one JSON request a line: {"argv", "output", "kill": [target, count, signal] or null, "fsize": bytes or null,
"world": processes, "rank": the one to kill, "threads": of each}; answers the exit codes, negative for a signal. `kill` sends the signal to
the process itself when the function `module:Class.name` is about to be called for the count-th time: a fault at an
exact moment, in the real program. Several processes get what torchrun would tell them.
"""

import importlib
import json
import os
import resource
import runpy
import socket
import sys
import threading
import traceback
from pathlib import Path


def send_signal_at(target, count, signum):
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(None)
        if len(calls) == count:
            os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def child(request, rank, port):
    for ending, stream in (("", 1), (".err", 2)):
        os.dup2(os.open(request["output"] + ending, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    if request["world"] > 1:
        told = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": request["world"],
            "LOCAL_WORLD_SIZE": request["world"],
        }
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in told.items()})
    if request["fsize"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"], resource.RLIM_INFINITY))
    code = 1
    try:
        import torch
        from tqdm import tqdm

        torch.set_num_threads(request["threads"])
        tqdm.set_lock(
            threading.RLock()
        )  # its own lock is shared with the forked ones that are killed while they hold it
        if request["kill"] and rank == request["rank"]:
            send_signal_at(*request["kill"])
        sys.argv = request["argv"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    sys.path.insert(0, str(Path.cwd()))
    for name in ("torch", "torchvision", "timm", "HyperIQASolver_swin", "torch._dynamo"):
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        request, pids = json.loads(line), []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(request["world"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                child(request, rank, port)
        print(
            json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]),
            flush=True,
        )


if __name__ == "__main__":
    main()
