"""What scoring an image costs: a model's parameters, operations and latency, part by part."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import exists_or_on_hub
from hyperiqa.model import factory
from hyperiqa.model.fusion import FUSIONS
from hyperiqa.model.hyper import HYPERS
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.scoring import quality_model

BATCHES = (1, 32)  # patches at a time
WARM_UP = 3  # passes before measuring
PASSES = 30  # passes measured


def measure(name: str, patch_size: int, device: torch.device) -> dict[str, Any]:
    """Measure what a model costs.

    name: of a backbone, also as NAME+FUSION+HYPER, or a checkpoint's path.
    patch_size: side of a patch in pixels; a checkpoint has its own.
    Returns the parameters and the multiply-accumulates by part, the side of the patches, and the
    seconds per patch of every pass at each of BATCHES. Raises UserError for an unknown choice.
    """
    net, side = _load_net(name, patch_size, device)
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    seconds: dict[str, list[float]] = {}
    measured = {**operations(net, side), "patch_size": side, "seconds": seconds}
    patches = torch.zeros(BATCHES[-1], 3, side, side, device=device)
    with torch.no_grad():
        for batch in BATCHES:
            score_batch = partial(net, patches[:batch])
            times = [timed(score_batch, device)[0] for _ in range(WARM_UP + PASSES)]
            seconds[str(batch)] = [time_of_pass / batch for time_of_pass in times[WARM_UP:]]
    return measured


def _load_net(name: str, patch_size: int, device: torch.device) -> tuple[HyperNet, int]:
    """The network that `name` stands for, and the side of its patches."""
    if exists_or_on_hub(Path(name)):
        model = quality_model.load(name, str(device))
        return model.net, model.description["patch_size"]
    backbone, *choices = name.split("+")
    axes = {**dict.fromkeys(HYPERS, "hyper"), **dict.fromkeys(FUSIONS, "fusion")}
    description: dict[str, Any] = {"backbone": backbone, "patch_size": patch_size}
    for choice in choices:
        if choice not in axes:
            raise UserError(
                f"--model {name}: expected {', '.join(FUSIONS)} or {', '.join(HYPERS)} after a +"
            )
        description[axes[choice]] = choice
    return factory.build(description), patch_size


def operations(net: HyperNet, side: int) -> dict[str, dict[str, int]]:
    """Parameters and multiply-accumulates of one patch of that side, by part."""
    patch = torch.zeros(1, 3, side, side, device=next(net.parameters()).device)
    modules = {"backbone": net.backbone, "fusion": net.fuse, "target": net.target_net}
    parameters = {name: _parameter_count(module) for name, module in modules.items()}
    # What is in no other part belongs to the hyper network.
    parameters["hyper"] = _parameter_count(net) - sum(parameters.values())
    with torch.no_grad():
        maps = net.backbone.stage_maps(patch)
        weights = net.target_weights(patch)

        def run_backbone() -> None:
            net.backbone.target_in_vec(net.backbone.stage_maps(patch))

        macs = {
            "backbone": _multiplications(run_backbone),
            "fusion": _multiplications(lambda: net.fuse(maps)),
            "target": _multiplications(lambda: net.target_net(weights)),
        }
        macs["hyper"] = _multiplications(lambda: net(patch)) - sum(macs.values())
    return {"parameters": parameters, "macs": macs}


def _parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _multiplications(work: Callable[[], object]) -> int:
    """Multiply-accumulates of `work`."""
    # torch's counter knows attention as products of matrices alone, and none of its fused forms.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops() // 2


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, Any]:
    """(seconds until the device has finished the work, what it returned)."""
    start = time.perf_counter()
    result = work()
    wait_for(device)
    return time.perf_counter() - start, result


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work: a GPU computes while the host goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
