"""Loaders of batches: by the run's own process, or by as many others as have room."""

import contextlib
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from hyperiqa.base.device import Hardware
from hyperiqa.base.errors import UserError
from hyperiqa.training.batches import PatchBatches

SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps what processes hand over


WORKER_SECONDS = 300  # without a batch, after which the processes that cut them are taken to hang


def fitting_workers(wanted: int, batch_bytes: int) -> tuple[int, str]:
    """(how many of the wanted processes have room for their batches, "" or why not all): each holds two batches of
    `batch_bytes` in shared memory (Docker gives 64 MB), and some twenty open files; one batch more is in use."""
    limits = [(wanted, "")]
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        fitting = int(0.9 * free / max(batch_bytes, 1) - 1) // 2
        limits.append((fitting, f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free"))
    with contextlib.suppress(ImportError, ValueError, OSError):  # another system
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limits += [((hard - 100) // 20, f"{hard} files may be open")] if hard >= 0 else []
    number, why = min(limits)
    return max(0, number), f"--workers {wanted}: room for {max(0, number)}, as {why}" if why else ""


def fewer_workers(hardware: Hardware, batch_size: int, patch_size: int) -> str:
    """Where fewer processes than wanted have room for batches of patches: how many, and why; else ""."""
    return fitting_workers(hardware.workers, 3 * batch_size * patch_size**2)[1]


@contextlib.contextmanager
def workers_watched() -> Iterator[None]:
    """A process that cuts patches and dies or hangs becomes a UserError."""
    try:
        yield
    except (RuntimeError, OSError) as problem:
        said = str(problem)
        ends = {
            "gave nothing": said.startswith("DataLoader timed out"),
            "died": said.startswith("DataLoader worker"),
            "opened too many files": "ancdata" in said or "Too many open files" in said,
        }
        if (how := next((how for how, so in ends.items() if so), None)) is None:
            raise
        hint = "--workers 0 cuts them in the run's own, --resume auto goes on"
        raise UserError(
            f"a process that cuts patches {how} ({said.splitlines()[0]}); {hint}"
        ) from None


def make_loader(
    batches: PatchBatches, hardware: Hardware, start: int = 0, stride: int = 1
) -> Iterable[dict]:
    """The batches from number `start` on, each or every `stride`-th, in order, cut by `hardware.workers` processes (0:
    in this one), or as many of them as have room. Crops of images that lie on the GPU are cut there, by this process,
    whatever `workers` says."""
    numbers = range(start, len(batches), stride)
    if batches.on_device:
        return (batches[b] for b in numbers)
    workers = fitting_workers(min(hardware.workers, len(numbers)), batches.bytes)[0]
    processes: Any = dict(num_workers=workers, pin_memory=hardware.device.type == "cuda")
    if workers:
        processes |= dict(worker_init_fn=_leave_signals_to_the_run, timeout=WORKER_SECONDS)
    return torch.utils.data.DataLoader(batches, batch_size=None, sampler=numbers, **processes)


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the run decides when its workers stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
