"""Loaders of batches: by the run's own process, or by as many worker processes as have room."""

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

# Where Linux keeps what processes hand over to each other.
SHARED_MEMORY = Path("/dev/shm")
# Seconds without a batch, after which the workers that cut patches are taken to hang.
WORKER_SECONDS = 300


def fitting_workers(workers: int, batch_bytes: int) -> tuple[int, str]:
    """How many of these workers have room for their batches, and why not all ("" if all have).

    Each worker holds two batches of `batch_bytes` in shared memory (Docker gives 64 MB) and some
    twenty open files; one batch more is in use.
    """
    limits = [(workers, "")]
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        # A tenth stays free for other programs; one batch more is with the model.
        fitting = int(0.9 * free / max(batch_bytes, 1) - 1) // 2
        limits.append((fitting, f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free"))
    # Systems without `resource`, or that forbid the change, have no such limit to respect.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # Without a limit it is negative.
        if hard >= 0:
            limits.append(((hard - 100) // 20, f"{hard} files may be open"))
    number, reason = min(limits)
    number = max(0, number)
    if not reason:
        return number, ""
    return number, f"--workers {workers}: room for {number}, as {reason}"


def fewer_workers(hardware: Hardware, batch_size: int, patch_size: int) -> str:
    """A line for the log where fewer workers have room than asked for, and why; else ""."""
    return fitting_workers(hardware.workers, 3 * batch_size * patch_size**2)[1]


def _worker_failure(message: str) -> str | None:
    """What befell a worker, by torch's message; None where the message is not about a worker."""
    if message.startswith("DataLoader timed out"):
        return "gave nothing"
    if message.startswith("DataLoader worker"):
        return "died"
    # Workers hand batches over as open files, in the "ancillary data" of a socket.
    if "ancdata" in message or "Too many open files" in message:
        return "opened too many files"
    return None


@contextlib.contextmanager
def workers_watched() -> Iterator[None]:
    """A worker that cuts patches and dies or hangs becomes a UserError."""
    try:
        yield
    except (RuntimeError, OSError) as problem:
        message = str(problem)
        failure = _worker_failure(message)
        if failure is None:
            raise
        hint = "--workers 0 cuts them in the run's own, --resume auto goes on"
        raise UserError(
            f"a process that cuts patches {failure} ({message.splitlines()[0]}); {hint}"
        ) from None


def make_loader(
    batches: PatchBatches, hardware: Hardware, start: int = 0, stride: int = 1
) -> Iterable[dict]:
    """The batches from number `start` on, every `stride`-th of them, in order.

    As many of `hardware.workers` processes as have room cut them; with 0, this process does. It
    also cuts the crops of images that lie on the GPU, however many workers there are.
    """
    numbers = range(start, len(batches), stride)
    if batches.on_device:
        return (batches[b] for b in numbers)
    workers = fitting_workers(min(hardware.workers, len(numbers)), batches.bytes)[0]
    processes: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": hardware.device.type == "cuda",
    }
    # torch accepts these only where there are workers.
    if workers:
        processes["worker_init_fn"] = _leave_signals_to_the_run
        processes["timeout"] = WORKER_SECONDS
    return torch.utils.data.DataLoader(batches, batch_size=None, sampler=numbers, **processes)


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the run decides when its workers stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
