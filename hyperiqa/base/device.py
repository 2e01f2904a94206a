"""The device that a model computes on: which one, in which precision, with which torch switches."""

import contextlib
import ctypes
import functools
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hyperiqa.base.errors import UserError

# Settings of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


@dataclass(frozen=True)
class Hardware:
    """Where and how a model computes.

    bf16: whether the forward pass runs under bf16 autocast.
    workers: the processes that cut patches; 0: the main process does.
    """

    device: torch.device
    bf16: bool = False
    workers: int = 0

    def computing_in(self, precision: str) -> "Hardware":
        """The same hardware in this precision, bf16 or fp32."""
        return replace(self, bf16=precision == "bf16")

    @property
    def name(self) -> str:
        on_gpu = self.device.type == "cuda"
        model = torch.cuda.get_device_name(self.device) if on_gpu else platform.machine()
        return f"{self.device} ({model})"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def take(self, batch: Mapping) -> dict[str, torch.Tensor]:
        """A batch with its tensors moved to the device; other values stay as they are."""
        return {
            name: sent(value, self.device) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.device == device:
        return tensor
    # From pinned memory the copy to a GPU runs while the host goes on.
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def choose_hardware(device: str, workers: int | None = None) -> Hardware:
    """Turn `--device` and `--workers` into the hardware, which computes in fp32 so far.

    workers: None means 4 for a GPU, else 0. Raises UserError.
    """
    chosen_device = choose_device(device)
    if workers is None:
        workers = 4 if chosen_device.type == "cuda" else 0
    return Hardware(chosen_device, workers=workers)


def choose_device(name: str) -> torch.device:
    """Turn `--device` into a device. Raises UserError where this machine has no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: this machine, or its torch, has no Metal")
    return device


def cpu_model() -> tuple[str, bool]:
    """The CPU's name, and whether it has instructions for bf16; only Linux tells."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*: (.+)", text, re.MULTILINE)
    # On a CPU without these instructions bf16 is emulated, slower than fp32.
    found = {"amx_bf16", "avx512_bf16"}.intersection(text.split())
    # Virtual machines on different CPUs may have the same name.
    return " ".join([name[1] if name else "", *sorted(found)]), bool(found)


def set_backends(deterministic: bool) -> None:
    """Choose reproducible kernels, or fast ones (`--no_deterministic`).

    Call it before the GPU is used: cuBLAS reads its setting when it starts.
    """
    if deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    # cuDNN's default rounds the inputs of convolutions to 10 bits.
    torch.backends.cudnn.allow_tf32 = False


def map_large_tensors_separately() -> None:
    """Give every large tensor memory of its own, until `keep_freed_memory` is called.

    Weights and optimizer state stay for the whole run. Allocated in this way they do not lie in the
    midst of the memory that the steps allocate and free, which they would fragment: the process
    would grow by a fifth.
    """
    _call_malloc("mallopt", M_MMAP_THRESHOLD, 2**17)


@functools.cache
def keep_freed_memory() -> None:
    """Let malloc keep the memory that a step frees for the next step, where the system is glibc's.

    By default the kernel zeroes the new memory of every large tensor, which takes up to a fifth of
    a training step on two CPU cores. The process grows no larger than its largest step. The setting
    holds for the whole process, so it is for programs, not for libraries.
    """
    _call_malloc("mallopt", M_MMAP_THRESHOLD, 2**30)
    _call_malloc("mallopt", M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Return what malloc keeps of freed memory to the system, where the system is glibc's."""
    _call_malloc("malloc_trim", 0)


def _call_malloc(function: str, *values: int) -> None:
    # The C library of another system has no such function.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), function)(*values)
