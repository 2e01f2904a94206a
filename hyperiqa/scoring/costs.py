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

BATCHES, WARM_UP, PASSES = (
    (1, 32),
    3,
    30,
)  # images at a time, passes before measuring, passes measured


def measure(name: str, patch_size: int, device: torch.device) -> dict[str, Any]:
    """Parameters and multiply-accumulates by part, seconds per image at each of `BATCHES`, and the patch's side. name:
    a backbone's, as in NAME+FUSION+HYPER, or a checkpoint's path, with a patch_size of its own. Raises UserError."""
    backbone, *choices = name.split("+")
    axes = {**dict.fromkeys(HYPERS, "hyper"), **dict.fromkeys(FUSIONS, "fusion")}
    if exists_or_on_hub(Path(name)):
        model = quality_model.load(name, str(device))
        net, side = model.net, model.description["patch_size"]
    elif not axes.keys() >= {*choices}:
        raise UserError(
            f"--model {name}: expected {', '.join(FUSIONS)} or {', '.join(HYPERS)} after a +"
        )
    else:
        head = {axes[choice]: choice for choice in choices}
        net, side = (
            factory.build({"backbone": backbone, "patch_size": patch_size, **head}),
            patch_size,
        )
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    found: dict[str, Any] = {**operations(net, side), "patch_size": side, "seconds": {}}
    images = torch.zeros(BATCHES[-1], 3, side, side, device=device)
    with torch.no_grad():
        for batch in BATCHES:
            times = [
                timed(partial(net, images[:batch]), device)[0] for _ in range(WARM_UP + PASSES)
            ]
            found["seconds"][str(batch)] = [each / batch for each in times[WARM_UP:]]
    return found


def operations(net: HyperNet, side: int) -> dict[str, dict[str, int]]:
    """Parameters and multiply-accumulates of one patch of that side, by part."""
    image = torch.zeros(1, 3, side, side, device=next(net.parameters()).device)
    inside = {"backbone": net.backbone, "fusion": net.fuse, "target": net.target_net}
    parameters = {
        part: sum(p.numel() for p in module.parameters()) for part, module in inside.items()
    }
    parameters["hyper"] = sum(p.numel() for p in net.parameters()) - sum(parameters.values())
    with torch.no_grad():
        maps, weights = net.backbone.stage_maps(image), net.target_weights(image)
        macs = {
            "backbone": _multiplications(
                lambda: net.backbone.target_in_vec(net.backbone.stage_maps(image))
            ),
            "fusion": _multiplications(lambda: net.fuse(maps)),
            "target": _multiplications(lambda: net.target_net(weights)),
        }
        macs["hyper"] = _multiplications(lambda: net(image)) - sum(macs.values())
    return {"parameters": parameters, "macs": macs}


def _multiplications(work: Callable[[], object]) -> int:
    """Multiply-accumulates of `work`; attention as matrix products, of which torch's counter knows no fused form."""
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
    if device.type == "cuda":
        torch.cuda.synchronize(device)
