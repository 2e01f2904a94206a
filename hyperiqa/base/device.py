"""The device that a model computes on: which one, in which precision, with which of torch's switches."""

import contextlib
import ctypes
import functools
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hyperiqa.base.errors import UserError


@dataclass(frozen=True)
class Hardware:
    """Where and how a model computes: bf16 is autocast of the forward pass, `workers` processes cut patches."""

    device: torch.device
    bf16: bool = False
    workers: int = 0

    @property
    def fp32(self) -> "Hardware":
        return replace(self, bf16=False)

    @property
    def name(self) -> str:
        found = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else platform.machine()
        )
        return f"{self.device} ({found})"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def take(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """A batch with its tensors on the device; to a GPU from pinned memory, for which the host need not wait."""

        def taken(value: Any) -> Any:
            if not torch.is_tensor(value) or value.device == self.device:
                return value
            return (value.pin_memory() if self.device.type == "cuda" else value).to(
                self.device, non_blocking=True
            )

        return {name: taken(value) for name, value in batch.items()}


def choose_hardware(
    device: str, precision: str = "fp32", workers: int | None = None
) -> tuple[Hardware, str]:
    """`--device`, `--precision`, `--workers` -> (hardware, why that precision). Raises UserError."""
    found = choose_device(device)
    bf16, reason = choose_bf16(precision, found)
    workers = (4 if found.type == "cuda" else 0) if workers is None else workers
    return Hardware(found, bf16, workers), reason


def choose_device(name: str) -> torch.device:
    """`--device` -> device. Raises UserError where there is no such device."""
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


def choose_bf16(precision: str, device: torch.device) -> tuple[bool, str]:
    """`--precision` -> (whether to train under bf16 autocast, why)."""
    if precision != "auto":
        return precision == "bf16", "as asked for"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor}"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if platform.system() == "Linux" and cpuinfo.exists() else []
    native = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return bool(native), f"this CPU has {native[0]}" if native else "no native bf16 here"


def set_backends(deterministic: bool) -> None:
    """Reproducible kernels, unless the user prefers speed (`--no_deterministic`); call it before the GPU is used."""
    if deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = (
        False  # cuDNN's default rounds the inputs of convolutions to 10 bits
    )


def map_large_tensors_separately() -> None:
    """Until `keep_freed_memory`: give every large tensor memory of its own. Those that stay, weights and optimizer
    state, then do not lie in the midst of what steps allocate, which they would scatter, so that it grew by a fifth."""
    _mallopt(-3, 2**17)  # M_MMAP_THRESHOLD


@functools.cache
def keep_freed_memory() -> None:
    """Let malloc keep what a step frees for the next one, where this system has such a setting (glibc's mallopt).
    By default the kernel zeroes the new memory of every large tensor: on two CPU cores up to a fifth of a training
    step. The process grows no larger than its largest step. For programs, not libraries: it holds for all of it."""
    _mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    _mallopt(-1, -1)  # M_TRIM_THRESHOLD


def _mallopt(setting: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system's C library
        ctypes.CDLL(None).mallopt(setting, value)
