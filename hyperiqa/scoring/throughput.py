"""How many photographs a second are scored, from their files to rows, and what takes the time.

Decoding and the forward pass share the cores of a CPU. Decoding alone may score D photographs a
second, and the forward pass F: then all of scoring can reach 1 / (1 / D + 1 / F), the bound.
"""

import argparse
import os
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from hyperiqa.base import device as devices, errors, files
from hyperiqa.images.decode import decode
from hyperiqa.scoring import costs, image_sources, quality_model, score_files

UNTRAINED = {"pretrained": False}


def measure(flags: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """`measure_scoring` of the photographs in flags.folder, or what the peer scores there."""
    devices.keep_freed_memory()
    images = image_sources.find_images([flags.folder])
    if flags.child == "peer":
        # pyiqa takes seconds for each.
        return {"rates": measure_peer(flags.model, images[:10])}
    model = load_scorer(flags.model, device)
    # Photographs that cannot be read are left out of all parts alike.
    readable = [str(scored.image) for scored in model.score_all(images) if not scored.problem]
    if not readable:
        raise errors.UserError(
            f"{flags.folder}: none of {errors.counted(len(images), 'image')} can be read"
        )
    return measure_scoring(model, readable, flags.repeats)


def load_scorer(name: str, device: torch.device, **settings: Any) -> quality_model.QualityModel:
    """The model of a file, or one of a backbone's name with random weights; settings: of `load`."""
    if files.exists_or_on_hub(Path(name)):
        return quality_model.load(name, str(device), **settings)
    net, side = costs.load_net(name, 224, device)
    # How a training without further flags has images prepared.
    description = {"resize": "384", "test_crop": "center", "test_patch_num": 25, "patch_size": side}
    if settings:
        description |= {"resize": "none", "test_crop": "grid"}
    return quality_model.QualityModel(net, description, devices.Hardware(device))


def measure_scoring(
    model: quality_model.QualityModel, images: Sequence[str], repeats: int
) -> dict[str, float]:
    """Seconds per photograph, medians of the repeats.

    whole: from files to rows. decode, prepare, forward, write: each alone, on all cores; prepare is
    decoding with resizing and cutting crops.
    """
    seconds = defaultdict(list)
    rows = score_files.ScoreFile(Path(os.devnull), "csv")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        patches = list(pool.map(model.patches, images))

        def write(scored: object) -> None:
            rows.add("photographs/photo.jpg", 50.123456, None, "weights=0123456789ab")

        parts: dict[str, Callable[[], object]] = {
            # Their pixels would fill the memory.
            "decode": lambda: deque(pool.map(decode, map(Path, images)), maxlen=0),
            "prepare": lambda: deque(pool.map(model.patches, images), maxlen=0),
            "forward": lambda: model.score_patches(patches),
            "write": lambda: deque(map(write, images), maxlen=0),
            "whole": lambda: deque(map(write, model.score_all(images)), maxlen=0),
        }
        # The first one warms up. What disturbs one repeat disturbs all parts of it.
        for _ in range(1 + repeats):
            for part, work in parts.items():
                seconds[part].append(costs.timed(work, model.hardware.device)[0] / len(images))
    return {part: statistics.median(values[1:]) for part, values in seconds.items()}


def measure_peer(names: Sequence[str], images: Sequence[str]) -> dict[str, float]:
    """Photographs per second of pyiqa's HyperIQA with random weights, and of models of ours.

    Each of ours is measured with 25 crops at the size of the image, as pyiqa scores, and as it is.
    """
    # Both are imported only where they are compared.
    import pyiqa
    import timm

    create = timm.create_model
    # pyiqa would download the weights that it starts from.
    with mock.patch("timm.create_model", lambda name, **more: create(name, **more | UNTRAINED)):
        metric = pyiqa.create_metric("hyperiqa", device="cpu", **UNTRAINED)
    cpu = torch.device("cpu")
    scorers: dict[str, Callable] = {"pyiqa, 25 crops": partial(map, metric)}
    for name in names:
        scorers[f"{name}, 25 crops"] = load_scorer(name, cpu, resize="none", crops=25).score_all
        scorers[f"{name}, default"] = load_scorer(name, cpu).score_all
    rates = {}
    for name, score in scorers.items():
        # The first one warms up. Both kinds of scorers work only while their scores are taken.
        list(score(images[:1]))
        rates[name] = len(images) / costs.timed(partial(list, score(images)), cpu)[0]
    return rates
