"""Where the time of a training step goes, and how much of the device's speed it uses."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from hyperiqa.base.device import Hardware, keep_freed_memory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.scoring import costs
from hyperiqa.scoring.cost_tables import STEP_PARTS
from hyperiqa.training import engine, processes, whole_batch

WARM_UP = 3  # steps


def measure(
    model: HyperNet,
    criterion: engine.Criterion,
    optimizer: torch.optim.Optimizer,
    batches: Any,
    hardware: Hardware,
    steps: int,
) -> dict[str, Any]:
    """Measure training steps.

    Returns seconds a step: `whole` as training makes them, and each of STEP_PARTS when the host
    waits for the device after it. `backward` includes the sum of the processes' gradients,
    `forward` the augmentation. Besides:
    patches: per second, over all processes.
    matrix: the device's operations per second in large products of matrices.
    used: the share of `matrix` that these patches' products are, by torch's count of one patch.
    """
    whole_batch.prepare(model)

    def first_batches(number: int) -> Iterator[dict]:
        # The last batch may have fewer rows, so it is left out where there are others.
        return (batches[k % max(1, len(batches) - 1)] for k in range(number))

    def train(loader: Iterable[dict], criterion: engine.Criterion) -> None:
        progress = engine.EpochProgress()
        engine.train_one_epoch(model, criterion, optimizer, loader, hardware, progress)

    train(first_batches(WARM_UP), criterion)
    # As training does, from its first step on.
    keep_freed_memory()
    costs.wait_for(hardware.device)
    seconds, _ = costs.timed(lambda: train(first_batches(steps), criterion), hardware.device)
    parts = _seconds_of_parts(
        train, model, criterion, optimizer, first_batches(steps), hardware.device
    )
    whole = seconds / steps
    macs = sum(costs.operations(model.eval(), batches.cache.min_side)["macs"].values())
    speed = matrix_speed(hardware)
    patches = min(batches.batch_size, len(batches.patches)) / whole
    # A multiply-accumulate is two operations, and the backward pass makes two for each forward.
    used = 6 * macs * patches / (speed * processes.world_size())
    return {
        "whole": whole,
        **{part: parts[part] / steps for part in STEP_PARTS},
        "patches": patches,
        "matrix": speed,
        "used": used,
        "processes": processes.world_size(),
    }


def _seconds_of_parts(
    train: Callable[[Iterable[dict], engine.Criterion], None],
    model: HyperNet,
    criterion: engine.Criterion,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[dict],
    device: torch.device,
) -> dict[str, float]:
    """Part of a step -> seconds of all steps, with the device waited for after each part."""
    clock = _Clock(device)
    hooks = [
        model.register_forward_hook(lambda *_: clock.mark("forward")),
        optimizer.register_step_pre_hook(lambda *_: clock.mark("backward")),
        optimizer.register_step_post_hook(lambda *_: clock.mark("optimizer")),
    ]
    train(clock.marked_batches(batches), clock.marked_criterion(criterion))
    for hook in hooks:
        hook.remove()
    return clock.spent


class _Clock:
    """Adds up the seconds of each part of a step: `mark` ends a part and begins the next."""

    def __init__(self, device: torch.device):
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        costs.wait_for(self.device)
        now = time.perf_counter()
        self.spent[part] += now - self.last
        self.last = now

    def marked_batches(self, batches: Iterable[dict]) -> Iterator[dict]:
        for batch in batches:
            self.mark("data")
            yield batch
            # The step asks for the next batch when it has made its records.
            self.mark("records")

    def marked_criterion(self, criterion: Callable) -> Callable:
        def criterion_with_mark(outputs, batch):
            losses = criterion(outputs, batch)
            self.mark("loss")
            return losses

        return criterion_with_mark


def matrix_speed(hardware: Hardware, repeats: int = 8) -> float:
    """The device's operations per second in a product of two large matrices.

    It is the fastest of the repeats, in the precision in which the model is trained.
    """
    side = 8192 if hardware.device.type == "cuda" else 2048
    a = torch.randn(side, side, device=hardware.device)
    b = torch.randn(side, side, device=hardware.device)
    costs.wait_for(hardware.device)
    with hardware.autocast(), torch.no_grad():
        times = [costs.timed(lambda: a @ b, hardware.device)[0] for _ in range(repeats)]
    return 2 * side**3 / min(times)
