"""Runs the real scripts in processes forked from one that has imported torch, which saves each of them five seconds.

Reads one JSON request a line:

- `argv`: the script and its flags; `cwd`: where it runs; `environment`: variables that it gets besides
- `output`: the file for its standard output; standard error goes to the same name with `.err`
- `threads`: how many threads torch takes; `fsize`: the largest file in bytes that it may write, or null
- `world`: how many processes there are, each with what torchrun would tell it; `ports`: where they may meet
- `kill`: null, or `[target, count, signal]`: a fault at an exact moment in the real program. The process of number
  `rank` sends itself the signal when the function `module:Class.name` is about to be called for the count-th time.

Answers each request with the exit codes, negative for a signal.
"""

import importlib
import itertools
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
    original = getattr(owner, name)
    calls = itertools.count(1)

    def counted(*args, **kwargs):
        if next(calls) == count:
            os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def redirect(path, descriptor):
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, descriptor)


def child(request, rank, port):
    redirect(request["output"], 1)
    redirect(request["output"] + ".err", 2)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    if request["world"] > 1:
        world = str(request["world"])
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world
        )
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if request["fsize"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"], resource.RLIM_INFINITY))
    code = 1
    try:
        import torch
        from tqdm import tqdm

        torch.set_num_threads(request["threads"])
        # tqdm's own lock is shared with the forked processes that are killed while they hold it.
        tqdm.set_lock(threading.RLock())
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


def is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def main():
    sys.path.insert(0, str(Path.cwd()))
    for name in ("torch", "torchvision", "timm", "HyperIQASolver_swin", "torch._dynamo"):
        importlib.import_module(name)
    print("ready", flush=True)
    ports = None
    for line in sys.stdin:
        request = json.loads(line)
        ports = ports or itertools.cycle(range(*request["ports"]))
        port = next(filter(is_free, ports)) if request["world"] > 1 else None
        children = []
        for rank in range(request["world"]):
            children.append(os.fork())
            if children[-1] == 0:
                child(request, rank, port)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
