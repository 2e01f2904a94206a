"""What a model costs, and what its training costs by the functions that the train scripts use.

A model: its parameters, operations and latency, part by part. Its training: how long its phases
take, where the time of a step goes, and how much of the device's speed the step uses.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hyperiqa.base import device as devices, errors, files
from hyperiqa.datasets.records import DataSet
from hyperiqa.images.cache import put_on_gpu
from hyperiqa.model import factory, fusion, hyper, hypernet
from hyperiqa.scoring import cost_tables, quality_model
from hyperiqa.training import (
    engine,
    losses,
    optimizers,
    precision,
    processes,
    schedules,
    whole_batch,
)
from hyperiqa.training.batches import DecodedSet, PatchBatches, make_loader
from hyperiqa.training.patches import train_patches

BATCHES = (1, 32)  # patches at a time
WARM_UP = 3  # passes, or steps of a training, before measuring
PASSES = 30  # passes measured


def measure_model(name: str, patch_size: int, device: torch.device) -> dict[str, Any]:
    """Measure what a model costs.

    name: of a backbone, also as NAME+FUSION+HYPER or NAME+HEAD, or a checkpoint's path.
    patch_size: side of a patch in pixels; a checkpoint has its own.
    Returns the parameters and the multiply-accumulates by part, the side of the patches, and the
    seconds per patch of every pass at each of BATCHES. Raises UserError for an unknown choice.
    """
    net, side = load_net(name, patch_size, device)
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    measured: dict[str, Any] = {**operations(net, side), "patch_size": side, "seconds": {}}
    patches = torch.zeros(BATCHES[-1], 3, side, side, device=device)
    with torch.no_grad():
        for batch in BATCHES:
            score_batch = partial(net, patches[:batch])
            times = [timed(score_batch, device)[0] for _ in range(WARM_UP + PASSES)]
            measured["seconds"][str(batch)] = [seconds / batch for seconds in times[WARM_UP:]]
    return measured


def load_net(name: str, patch_size: int, device: torch.device) -> tuple[hypernet.QualityNet, int]:
    """The network that `name` stands for, as of `measure_model`, and the side of its patches."""
    if files.exists_or_on_hub(Path(name)):
        model = quality_model.load(name, str(device))
        return model.net, model.description["patch_size"]
    backbone, *choices = name.split("+")
    axes = {
        **dict.fromkeys(hyper.HYPERS, "hyper"),
        **dict.fromkeys(fusion.FUSIONS, "fusion"),
        **dict.fromkeys(factory.HEADS, "head"),
    }
    description: dict[str, Any] = {"backbone": backbone, "patch_size": patch_size}
    for choice in choices:
        if choice not in axes:
            raise errors.UserError(
                f"--model {name}: expected {', '.join(fusion.FUSIONS)}, "
                f"{', '.join(hyper.HYPERS)} or {', '.join(factory.HEADS)} after a +"
            )
        description[axes[choice]] = choice
    return factory.build(description), patch_size


@torch.no_grad()
def operations(net: hypernet.QualityNet, side: int) -> dict[str, dict[str, int]]:
    """Parameters and multiply-accumulates of one patch of that side, by part."""
    patch = torch.zeros(1, 3, side, side, device=next(net.parameters()).device)
    modules: dict[str, Any] = {"backbone": net.backbone}
    passes: dict[str, Callable[[], object]] = {"backbone": lambda: net.stage_maps(patch)}
    # What is in no other part.
    rest = "head"
    if isinstance(net, hypernet.HyperNet):
        rest = "hyper"
        maps = net.stage_maps(patch)
        weights = net.target_weights(maps)
        modules |= {"fusion": net.fuse, "target": net.target_net}
        passes = {
            "backbone": lambda: net.backbone.target_in_vec(net.stage_maps(patch)),
            "fusion": lambda: modules["fusion"](maps),
            "target": lambda: modules["target"](weights),
        }
    parameters = {name: _parameter_count(module) for name, module in modules.items()}
    parameters[rest] = _parameter_count(net) - sum(parameters.values())
    macs = {name: _multiply_accumulates(work) for name, work in passes.items()}
    macs[rest] = _multiply_accumulates(lambda: net(patch)) - sum(macs.values())
    return {"parameters": parameters, "macs": macs}


def _parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _multiply_accumulates(work: Callable[[], object]) -> int:
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


def measure_phases(
    flags: argparse.Namespace, backbone: str, koniq: DataSet, spaq: DataSet, device: torch.device
) -> dict[str, float]:
    """Phase -> seconds of a start, else patches or images per second.

    flags: those of benchmark.py. backbone: by its timm name.
    """
    hardware = _prepared_hardware(flags)
    start = partial(_decoded, [koniq, spaq], flags, device)
    phases = {"first start": timed(start, device)[0]}
    # The second start finds the decoded images that the first one left.
    phases["second start"], sets = timed(start, device)
    model, optimizer, hardware = _trained_parts(flags, backbone, hardware)
    trained: Any = torch.compile(model) if flags.compile else model
    train = partial(_train, trained, optimizer, hardware, losses.QualityLoss())
    batches = _train_batches(sets[0], flags, flags.train_patch_num)
    batch = hardware.take(batches[0])
    # Compiling and cuDNN's choice of kernels take more than one step.
    train([batch] * (4 if flags.compile or flags.no_deterministic else 1))
    devices.keep_freed_memory()
    phases["training"] = (
        len(batches.patches) / timed(lambda: train(make_loader(batches, hardware)), device)[0]
    )
    # The same batch over and over: what the device could do if it never waited for data.
    same_batches = [batch] * max(1, min(len(batches), 50))
    phases["compute only"] = (
        len(same_batches) * len(batch["mos"]) / timed(lambda: train(same_batches), device)[0]
    )
    for images, phase in zip(sets, ("testing koniq-10k", "testing spaq")):
        records = images.data.split("test")
        test = partial(
            engine.score_set, model, images, records, ("center", 1), hardware.computing_in("fp32")
        )
        phases[phase] = len(records) / timed(test, device)[0]
    return phases


def measure_step(flags: argparse.Namespace, backbone: str, koniq: DataSet) -> dict[str, Any]:
    """`measure_parts` of flags.step steps on KonIQ-10k's training images."""
    flags.device = processes.device_of_process(flags.device)
    hardware = _prepared_hardware(flags)
    (images,) = _decoded([koniq], flags, hardware.device)
    model, optimizer, hardware = _trained_parts(flags, backbone, hardware)
    # Enough patches for three batches, rounded up.
    per_image = -(-3 * flags.batch_size // len(koniq.split("train")))
    batches = _train_batches(images, flags, per_image, processes.share())
    return measure_parts(model, losses.QualityLoss(), optimizer, batches, hardware, flags.step)


def _prepared_hardware(flags: argparse.Namespace) -> devices.Hardware:
    devices.set_backends(deterministic=not flags.no_deterministic)
    devices.map_large_tensors_separately()
    return devices.choose_hardware(flags.device)


def _decoded(
    sets: Iterable[DataSet], flags: argparse.Namespace, device: torch.device
) -> list[DecodedSet]:
    decoded = [
        DecodedSet(data, "384", flags.patch_size, cache_dir=Path(flags.cache_dir)) for data in sets
    ]
    put_on_gpu([images.cache for images in decoded], "auto", device)
    return decoded


def _train_batches(
    images: DecodedSet,
    flags: argparse.Namespace,
    per_image: int,
    share: tuple[int, int] = (0, 1),
) -> PatchBatches:
    patches = partial(
        train_patches, patch_size=flags.patch_size, per_image=per_image, seed=42, epoch=1
    )
    return images.batches(images.data.split("train"), flags.batch_size, patches, share)


def _train(
    model: hypernet.QualityNet,
    optimizer: torch.optim.Optimizer,
    hardware: devices.Hardware,
    criterion: engine.Criterion,
    batches: Iterable[dict],
) -> None:
    engine.train_one_epoch(model, criterion, optimizer, batches, hardware, engine.EpochProgress())


def build_model(backbone: str, device: torch.device) -> hypernet.QualityNet:
    """A model with random weights, the same ones each time."""
    torch.manual_seed(0)
    return hypernet.HyperNet(factory.build_backbone(backbone)).to(device)


def _trained_parts(
    flags: argparse.Namespace, backbone: str, hardware: devices.Hardware
) -> tuple[hypernet.QualityNet, torch.optim.Optimizer, devices.Hardware]:
    """A model, its optimizer by the published settings, and the hardware in `--precision`.

    The precision auto is measured, and the result is not kept.
    """
    model = build_model(backbone, hardware.device).to(memory_format=torch.channels_last)
    adam = argparse.Namespace(optimizer="adam", weight_decay=5e-4, clip_grad=None)
    # The heads learn ten times as fast as the backbone.
    rates = schedules.Rates(2e-4, 2e-5)
    optimizer = optimizers.optimizer_for(adam, rates, model.parameter_groups())
    options = argparse.Namespace(**vars(flags), freeze_backbone=False, cache=False)
    chosen = processes.from_rank_zero(
        lambda: precision.choose_precision(options, hardware.device, model)
    )
    return model, optimizer, hardware.computing_in(chosen[0])


def measure_parts(
    model: hypernet.QualityNet,
    criterion: engine.Criterion,
    optimizer: torch.optim.Optimizer,
    batches: Any,
    hardware: devices.Hardware,
    steps: int,
) -> dict[str, Any]:
    """Measure training steps.

    Returns the seconds of a step: `whole`, as training runs it, and each of STEP_PARTS, measured
    with the host waiting for the device after the part. `forward` includes the augmentation, and
    `backward` the sum of the processes' gradients. It also returns:
    patches: patches per second, over all processes.
    matrix: the device's operations per second in large matrix products.
    used: the share of `matrix` that the training uses, by torch's count of one patch's operations.
    """
    whole_batch.prepare(model)

    def first_batches(number: int) -> Iterator[dict]:
        # The last batch may have fewer rows, so it is left out where there are others.
        return (batches[k % max(1, len(batches) - 1)] for k in range(number))

    train = partial(_train, model, optimizer, hardware)
    train(criterion, first_batches(WARM_UP))
    # As training does, from its first step on.
    devices.keep_freed_memory()
    wait_for(hardware.device)
    whole = timed(lambda: train(criterion, first_batches(steps)), hardware.device)[0] / steps
    parts = _seconds_of_parts(
        train, model, criterion, optimizer, first_batches(steps), hardware.device
    )
    macs = sum(operations(model.eval(), batches.cache.min_side)["macs"].values())
    speed = matrix_speed(hardware)
    patches = min(batches.batch_size, len(batches.patches)) / whole
    return {
        "whole": whole,
        **{part: parts[part] / steps for part in cost_tables.STEP_PARTS},
        "patches": patches,
        "matrix": speed,
        # A multiply-accumulate is two operations, and the backward pass makes two for each forward.
        "used": 6 * macs * patches / (speed * processes.world_size()),
        "processes": processes.world_size(),
    }


def _seconds_of_parts(
    train: Callable[[engine.Criterion, Iterable[dict]], None],
    model: hypernet.QualityNet,
    criterion: engine.Criterion,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[dict],
    device: torch.device,
) -> dict[str, float]:
    """Part of a step -> seconds of all steps, with the device waited for after each part."""
    seconds: dict[str, float] = defaultdict(float)
    last = time.perf_counter()

    def end_part(part: str) -> None:
        nonlocal last
        wait_for(device)
        now = time.perf_counter()
        seconds[part] += now - last
        last = now

    def batches_with_ends() -> Iterator[dict]:
        for batch in batches:
            end_part("data")
            yield batch
            # The step asks for the next batch when it has made its records.
            end_part("records")

    def criterion_with_end(outputs, batch):
        loss_parts = criterion(outputs, batch)
        end_part("loss")
        return loss_parts

    hooks = [
        model.register_forward_hook(lambda *_: end_part("forward")),
        optimizer.register_step_pre_hook(lambda *_: end_part("backward")),
        optimizer.register_step_post_hook(lambda *_: end_part("optimizer")),
    ]
    train(criterion_with_end, batches_with_ends())
    for hook in hooks:
        hook.remove()
    return seconds


def matrix_speed(hardware: devices.Hardware, repeats: int = 8) -> float:
    """The device's operations per second in a product of two large matrices.

    It is that of the fastest repeat, in the precision in which the model is trained.
    """
    side = 8192 if hardware.device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=hardware.device)
    wait_for(hardware.device)
    with hardware.autocast(), torch.no_grad():
        times = [timed(lambda: a @ b, hardware.device)[0] for _ in range(repeats)]
    return 2 * side**3 / min(times)
