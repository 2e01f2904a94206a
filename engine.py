"""The two loops that touch a model, `train_one_epoch` and `score`, and the device and precision they run in."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data_loader import to_model_input
from losses import QualityLoss
from options import UserError

READ_EVERY = 10  # steps between two looks at the losses on a GPU, where each makes the host wait for the device


def choose_device(name: str) -> torch.device:
    """`--device` -> device. Raises UserError where there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
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
    # fp32 means fp32: cuDNN's default rounds the inputs of convolutions to 10 bits.
    torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let malloc keep what a step frees for the next one, where this system has such a setting (glibc's mallopt).

    By default every large tensor is new memory from the kernel, which zeroes it page by page: on two CPU cores
    up to a fifth of a training step. The process grows no larger than its largest step. For programs, not
    for libraries: it holds for the whole process.
    """
    keep_mapped_below, keep_at_top = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system's C library
        return
    mallopt(keep_mapped_below, 2**30)
    mallopt(keep_at_top, -1)


class NonFiniteLoss(Exception):
    """The loss of `step` (from 0) is nan or infinite."""

    def __init__(self, step: int, loss: float):
        super().__init__(f"the loss of step {step + 1} is {loss}")
        self.step, self.loss = step, loss


@dataclass
class EpochProgress:
    """What an epoch has brought so far: all that is needed to go on with its next step, beside the weights.

    `parts` holds the loss parts of each step, `scores` and `mos` those of its patches.
    """

    step: int = 0
    seconds: float = 0.0
    parts: list[torch.Tensor] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    mos: list[torch.Tensor] = field(default_factory=list)
    checked: int = 0

    def add(self, parts: torch.Tensor, scores: torch.Tensor, mos: torch.Tensor) -> None:
        self.parts.append(parts)
        self.scores.append(scores)
        self.mos.append(mos)
        self.step += 1

    def check_finite(self) -> float:
        """The newest loss; raises NonFiniteLoss for the first one since the last check that is not finite."""
        losses = torch.stack([parts[0] for parts in self.parts[self.checked :]]).tolist()
        for step, loss in enumerate(losses, self.checked):
            if not np.isfinite(loss):
                raise NonFiniteLoss(step, loss)
        self.checked = self.step - 1  # the newest may be asked for again
        return losses[-1]

    def state(self) -> dict[str, object]:
        """As plain values and tensors on the CPU, for a checkpoint."""
        lists = {name: [t.cpu() for t in getattr(self, name)] for name in ("parts", "scores", "mos")}
        return {"step": self.step, "seconds": self.seconds, **lists}

    @classmethod
    def from_state(cls, state: dict[str, object], device: torch.device) -> EpochProgress:
        lists = {name: [t.to(device) for t in state[name]] for name in ("parts", "scores", "mos")}
        return cls(state["step"], state["seconds"], **lists)


def _to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def train_one_epoch(
    model: torch.nn.Module,
    criterion: QualityLoss,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[dict[str, torch.Tensor]],
    device: torch.device,
    reseed: Callable[[int], None],
    bf16: bool,
    bar: tqdm,
    progress: EpochProgress,
    after_step: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Train on the loader's batches, which begin at step `progress.step` of the epoch.

    reseed(step) sets the torch generators before each step; bf16: autocast of the forward pass; `bar` counts
    patches; after_step() may save and may stop the epoch by raising. Returns the means over the batches of
    the loss's parts, and the scores and MOS of all patches, in order, as (n,) arrays. Raises NonFiniteLoss.
    """
    model.train()
    read_every = 1 if device.type == "cpu" else READ_EVERY
    for batch in loader:
        reseed(progress.step)
        batch = _to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            scores = model(to_model_input(batch))
        losses = criterion(scores, batch)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()

        parts = torch.stack([losses[part].detach() for part in criterion.parts])
        progress.add(parts, scores.detach(), batch["mos"])
        bar.update(len(scores))
        if progress.step % read_every == 0:
            bar.set_postfix(loss=f"{progress.check_finite():.3f}", refresh=False)
        after_step()
    progress.check_finite()
    means = torch.stack(progress.parts).double().mean(0).tolist()
    scores, mos = (torch.cat(v).cpu().numpy() for v in (progress.scores, progress.mos))
    return dict(zip(criterion.parts, means, strict=True)), scores, mos


@torch.no_grad()
def score(
    model: torch.nn.Module,
    loader: Iterable[dict[str, torch.Tensor]],
    images: int,
    device: torch.device,
    bar: tqdm | None = None,
    after_batch: Callable[[], None] = lambda: None,
    bf16: bool = False,
) -> np.ndarray:
    """Scores (images,) in fp32: the mean over each image's patches, which the batches' `image` assigns.

    `bar` counts patches; after_batch() may stop by raising. bf16: autocast, for scores that need not be exact.
    """
    model.eval()
    scores, image = [], []
    for batch in loader:
        batch = _to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            scores.append(model(to_model_input(batch)).float())
        image.append(batch["image"])
        if bar is not None:
            bar.update(len(batch["image"]))
        after_batch()
    scores, image = (torch.cat(v).cpu().numpy() for v in (scores, image))
    return np.bincount(image, scores, images) / np.bincount(image, minlength=images)
