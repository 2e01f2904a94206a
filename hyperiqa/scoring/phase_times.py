"""How long the phases of a training take, by the functions that the train scripts use."""

import argparse
import functools
from collections.abc import Iterable
from typing import Any

import torch

from hyperiqa.base.device import (
    choose_hardware,
    keep_freed_memory,
    map_large_tensors_separately,
    set_backends,
)
from hyperiqa.datasets.records import DataSet
from hyperiqa.images.cache import put_on_gpu
from hyperiqa.model import factory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.scoring import costs, step_times
from hyperiqa.training import engine, processes
from hyperiqa.training.batches import DecodedSet
from hyperiqa.training.loaders import make_loader
from hyperiqa.training.losses import QualityLoss
from hyperiqa.training.optimizers import optimizer_for
from hyperiqa.training.patches import train_patches
from hyperiqa.training.schedules import Rates

# The published settings.
LR = 2e-5
WEIGHT_DECAY = 5e-4
RESIZE = "384"


def measure_phases(
    flags: argparse.Namespace, backbone: str, koniq: DataSet, spaq: DataSet, device: torch.device
) -> dict[str, float]:
    """Phase -> seconds of a start, else patches or images per second.

    flags: those of benchmark.py. backbone: by its timm name.
    """
    set_backends(deterministic=not flags.no_deterministic)
    map_large_tensors_separately()
    hardware, *_ = choose_hardware(flags.device, flags.precision)

    def start() -> list[DecodedSet]:
        sets = [_decoded(data, flags) for data in (koniq, spaq)]
        put_on_gpu([images.cache for images in sets], "auto", device)
        return sets

    phases = {"first start": costs.timed(start, device)[0]}
    # The second start finds the decoded images that the first one left.
    phases["second start"], sets = costs.timed(start, device)
    model, optimizer = build_trained_model(backbone, device)
    trained: Any = torch.compile(model) if flags.compile else model

    def train(loader: Iterable[dict]) -> None:
        progress = engine.EpochProgress()
        engine.train_one_epoch(trained, QualityLoss(), optimizer, loader, hardware, progress)

    batches = sets[0].batches(
        koniq.split("train"), flags.batch_size, _patches(flags, flags.train_patch_num)
    )
    batch = hardware.take(batches[0])
    # Compiling and cuDNN's choice of kernels take more than one step.
    train([batch] * (4 if flags.compile or flags.no_deterministic else 1))
    keep_freed_memory()
    seconds, _ = costs.timed(lambda: train(make_loader(batches, hardware)), device)
    phases["training"] = len(batches.patches) / seconds
    # The same batch over and over: what the device could do if it never waited for data.
    same_batches = [batch] * max(1, min(len(batches), 50))
    seconds, _ = costs.timed(lambda: train(same_batches), device)
    phases["compute only"] = len(same_batches) * len(batch["mos"]) / seconds
    for images, phase in zip(sets, ("testing koniq-10k", "testing spaq")):
        records = images.data.split("test")
        test = functools.partial(
            engine.score_set, model, images, records, ("center", 1), hardware.fp32
        )
        phases[phase] = len(records) / costs.timed(test, device)[0]
    return phases


def measure_step(flags: argparse.Namespace, backbone: str, koniq: DataSet) -> dict[str, Any]:
    """`step_times.measure` of flags.step steps on KonIQ-10k's training images."""
    set_backends(deterministic=not flags.no_deterministic)
    map_large_tensors_separately()
    device_name = processes.device_of_process(flags.device)
    hardware, *_ = choose_hardware(device_name, flags.precision)
    images = _decoded(koniq, flags)
    put_on_gpu([images.cache], "auto", hardware.device)
    model, optimizer = build_trained_model(backbone, hardware.device)
    records = koniq.split("train")
    # Enough patches for three batches, rounded up.
    per_image = -(-3 * flags.batch_size // len(records))
    patches = _patches(flags, per_image)
    batches = images.batches(records, flags.batch_size, patches, processes.share())
    return step_times.measure(model, QualityLoss(), optimizer, batches, hardware, flags.step)


def _decoded(data: DataSet, flags: argparse.Namespace) -> DecodedSet:
    return DecodedSet(data, RESIZE, flags.patch_size, cache_dir=flags.cache_dir)


def _patches(flags: argparse.Namespace, per_image: int) -> functools.partial:
    """What draws the patches of an epoch, as the train scripts do."""
    return functools.partial(
        train_patches, patch_size=flags.patch_size, per_image=per_image, seed=42, epoch=1
    )


def build_model(backbone: str, device: torch.device) -> HyperNet:
    """A model with random weights, the same ones each time."""
    torch.manual_seed(0)
    return HyperNet(factory.build_backbone(backbone)).to(device)


def build_trained_model(
    backbone: str, device: torch.device
) -> tuple[HyperNet, torch.optim.Optimizer]:
    """A model and its optimizer, as the train scripts have them."""
    model = build_model(backbone, device).to(memory_format=torch.channels_last)
    adam = argparse.Namespace(optimizer="adam", weight_decay=WEIGHT_DECAY, clip_grad=None)
    # The heads learn ten times as fast as the backbone.
    rates = Rates(10 * LR, LR)
    return model, optimizer_for(adam, rates, model.parameter_groups())
