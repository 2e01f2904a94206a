"""Where the time of a training step goes, and how much of the device's speed at matrix products it uses."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from hyperiqa.base.device import Hardware, keep_freed_memory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.scoring import costs
from hyperiqa.training import engine, processes, whole_batch

WARM_UP = 3
PARTS = ("data", "forward", "loss", "backward", "optimizer", "records")


def measure(
    model: HyperNet,
    criterion: engine.Criterion,
    optimizer: torch.optim.Optimizer,
    batches: Any,
    hardware: Hardware,
    steps: int,
) -> dict[str, Any]:
    """Seconds a step: `whole` as training makes them, and each of `PARTS` when the host waits for the device after it.
    `backward` has the sum of the processes' gradients with it, `forward` the augmentation. `patches` per second, over
    all processes; `used`: the share of `matrix`, the device's operations per second in large products of matrices, that
    these patches' products forward and backward are, by torch's count of one patch."""
    whole_batch.prepare(model)

    def some(number: int) -> Iterator[dict]:
        return (batches[k % max(1, len(batches) - 1)] for k in range(number))

    def train(loader: Iterable[dict], criterion: engine.Criterion) -> None:
        engine.train_one_epoch(
            model, criterion, optimizer, loader, hardware, engine.EpochProgress()
        )

    train(some(WARM_UP), criterion)
    keep_freed_memory()  # as training does, from its first step on
    costs.wait_for(hardware.device)
    whole = costs.timed(lambda: train(some(steps), criterion), hardware.device)[0] / steps
    found = {"whole": whole, **_parts(some, train, model, criterion, optimizer, hardware, steps)}
    macs = sum(costs.operations(model.eval(), batches.cache.min_side)["macs"].values())
    speed, patches = matrix_speed(hardware), min(batches.batch_size, len(batches.patches)) / whole
    used = 6 * macs * patches / (speed * processes.world_size())
    return {
        **found,
        "patches": patches,
        "matrix": speed,
        "used": used,
        "processes": processes.world_size(),
    }


def _parts(
    some, train, model, criterion, optimizer, hardware: Hardware, steps: int
) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    last = time.perf_counter()

    def mark(part: str) -> None:
        nonlocal last
        costs.wait_for(hardware.device)
        spent[part] += time.perf_counter() - last
        last = time.perf_counter()

    def loader() -> Iterator[dict]:
        for batch in some(steps):
            mark("data")
            yield batch
            mark("records")

    def criterion_marked(outputs, batch):
        losses = criterion(outputs, batch)
        mark("loss")
        return losses

    hooks = [
        model.register_forward_hook(lambda *_: mark("forward")),
        optimizer.register_step_pre_hook(lambda *_: mark("backward")),
        optimizer.register_step_post_hook(lambda *_: mark("optimizer")),
    ]
    train(loader(), criterion_marked)
    for hook in hooks:
        hook.remove()
    return {part: spent[part] / steps for part in PARTS}


def matrix_speed(hardware: Hardware, repeats: int = 8) -> float:
    """Operations per second of a product of two large matrices in the precision that is trained in; the fastest."""
    side = 8192 if hardware.device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=hardware.device) for _ in range(2))
    costs.wait_for(hardware.device)
    with hardware.autocast(), torch.no_grad():
        return (
            2
            * side**3
            / min(costs.timed(lambda: a @ b, hardware.device)[0] for _ in range(repeats))
        )
