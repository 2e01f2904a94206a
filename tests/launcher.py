"""Runs the real scripts in processes of their own, forked from one that has imported torch already (5 s saved each).

Reads one JSON request a line: {"argv", "output", "kill": [target, count, signal] or null, "fsize": bytes or null};
answers the exit code, negative for a signal. `kill` sends the signal to the process itself when the function
`module:Class.name` is about to be called for the count-th time: a fault at an exact moment, in the real program.
"""

import importlib
import json
import os
import resource
import runpy
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


def child(request):
    output = os.open(request["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    errors = os.open(request["output"] + ".err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    if request["fsize"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"], resource.RLIM_INFINITY))
    code = 1
    try:
        import torch
        from tqdm import tqdm

        torch.set_num_threads(1)
        tqdm.set_lock(
            threading.RLock()
        )  # its own lock is shared with the forked ones that are killed while they hold it
        if request["kill"]:
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
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(request)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
