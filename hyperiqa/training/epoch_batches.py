"""The batches of an epoch, over all sets that a run trains on, and the stored features of a round.

They are a function of (seed, epoch): what they draw, they draw from generators of that address.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
import torchvision

from hyperiqa.base import device, plain_values
from hyperiqa.datasets.records import Record
from hyperiqa.images.cache import ImageCache
from hyperiqa.images.features import check_room
from hyperiqa.model import checkpoints, hypernet
from hyperiqa.training import augmentations, contradictions, engine, sets
from hyperiqa.training.batches import SCORE_BATCH, JoinedCache, PatchBatches
from hyperiqa.training.patches import Patches, addressed_seed, test_patches, train_patches

# Name of a trained set -> its training images, in the order in which patches count them.
Records = Mapping[str, Sequence[Record]]


def train_batches(
    data: sets.RunData, seed: int, epoch: int, batch_size: int, share: tuple[int, int] = (0, 1)
) -> PatchBatches:
    """The training batches of an epoch.

    seed: the round's own.
    epoch: from 1; 0 gives the patches of `--fixed_crops` in the order in which they are stored.
    share: as of `PatchBatches`.
    """
    options = data.options
    records = training_records(data)
    cache, numbers = _joined_images(data, records)
    # The sets' scores meet on one scale.
    mos = [
        data.scales[name].common(np.array([record.score for record in rows]))
        for name, rows in records.items()
    ]
    images_per_set = [len(rows) for rows in records.values()]
    patches = train_patches(
        cache.sizes[numbers],
        options.patch_size,
        # Crops that stay the same are as many in every epoch, too.
        _patches_per_image(options, images_per_set, seed, 0 if options.fixed_crops else epoch),
        seed,
        epoch,
        dict.fromkeys(options.augment, options.augment_strength),
        options.fixed_crops,
    )
    # Each patch takes what it needs along, so that loaders need to know nothing of sets.
    patches = replace(patches, drawn=_drawn_per_patch(data, records, patches, seed, epoch))
    features = data.images[data.main.name].features.get("train")
    return PatchBatches(cache, numbers, np.concatenate(mos), patches, batch_size, features, share)


def training_records(data: sets.RunData) -> dict[str, list[Record]]:
    """The training images that can be read, by set."""
    return {name: images.records("train") for name, images in data.images.items()}


def _joined_images(
    data: sets.RunData, records: Records
) -> tuple[ImageCache | JoinedCache, list[int]]:
    # The images of all trained sets as one cache, and each record's image number in it.
    caches = [images.cache for images in data.images.values()]
    cache = JoinedCache(caches) if data.several else caches[0]
    first = 0
    numbers: list[int] = []
    for set_cache, rows in zip(caches, records.values()):
        numbers += [first + set_cache.index[record.path] for record in rows]
        first += len(set_cache)
    return cache, numbers


def _patches_per_image(
    options: Namespace, images: Sequence[int], seed: int, epoch: int
) -> int | np.ndarray:
    """How many patches each training image gives, as `--mix_patches` says.

    images: the number of each set's training images.
    Returns one number for all images, or an array with a number for each, set after set.
    """
    if not options.mix_patches:
        return options.train_patch_num
    if options.mix_patches != ["balanced"]:
        return np.repeat([int(count) for count in options.mix_patches], images)
    rng = np.random.Generator(np.random.PCG64(addressed_seed(seed, epoch, 0, 2)))
    # The epoch has as many patches as without the flag, an equal part of them from each set.
    per_set = round(options.train_patch_num * sum(images) / len(images))
    per_image = []
    for number in images:
        counts = np.full(number, per_set // number)
        # Which images give one patch more is redrawn in every epoch.
        counts[rng.permutation(number)[: per_set % number]] += 1
        per_image.append(counts)
    return np.concatenate(per_image)


def _drawn_per_patch(
    data: sets.RunData, records: Records, patches: Patches, seed: int, epoch: int
) -> dict[str, np.ndarray]:
    """What each patch brings: augmentations, number of its set, spread of votes, noise, mixing."""
    options = data.options
    # The generator is not that of the crops, which are the same with and without this.
    rng = np.random.Generator(np.random.PCG64(addressed_seed(seed, epoch, 0, 1)))
    drawn = dict(patches.drawn)
    if data.several:
        set_of_image = np.repeat(np.arange(len(records)), [len(rows) for rows in records.values()])
        drawn["set"] = set_of_image[patches.image]
    if options.fidelity_sigma == "votes":
        spreads = [
            abs(data.scales[name].factor) * augmentations.vote_deviations(rows)
            for name, rows in records.items()
        ]
        drawn["sigma"] = np.concatenate(spreads)[patches.image].astype(np.float32)
    if options.label_noise:
        # Standard deviations on the scale that is trained on, image by image.
        deviations = [
            abs(data.scales[name].factor)
            * augmentations.label_noise(rows, data.trained[name].range, options.label_noise)
            for name, rows in records.items()
        ]
        noise = np.concatenate(deviations)[patches.image] * rng.standard_normal(len(patches))
        drawn["label_noise"] = noise.astype(np.float32)
    mixing = augmentations.draw_mixing(
        rng, len(patches), options.mixup, options.cutmix, options.patch_size
    )
    return drawn | mixing


def image_names(data: sets.RunData, batches: PatchBatches, b: int) -> str:
    """The images that training batch b has patches of, as a list for the user."""
    records = [record for rows in training_records(data).values() for record in rows]
    numbers = np.unique(batches.patches.image[batches.rows(b)])
    return ", ".join(sorted(records[i].name for i in numbers))


def prepare_features(
    data: sets.RunData,
    model: hypernet.QualityNet,
    seed: int,
    hardware: device.Hardware,
    say: Callable[[str], None],
) -> None:
    """Compute and store the stage maps of the round's patches, where no epoch changes them.

    They stay the same when the encoder is frozen and the crops are fixed. Raises UserError.

    say: is told what is found and what is computed.
    """
    options = data.options
    if not contradictions.stored_features(options):
        return
    parts = {"train": (data.images[data.main.name], "train"), **data.tests}
    # The batches below would take the features of the round before in place of pixels.
    for images, _ in parts.values():
        images.features = {}
    jobs = {"train": train_batches(data, seed, 0, SCORE_BATCH)}
    crops = (options.patch_size, options.test_crop, options.test_patch_num)
    for part, (images, split) in data.tests.items():
        jobs[part] = images.batches(
            images.records(split), SCORE_BATCH, lambda sizes: test_patches(sizes, *crops)
        )
    encoder = _encoder_key(options, model)
    features = {
        part: images.add_features(
            split, jobs[part], sum(model.pools.values()), options.feature_dtype, encoder
        )
        for part, (images, split) in parts.items()
    }
    say("\n".join(check_room(features)))
    for part, batches in jobs.items():
        start = time.perf_counter()
        was_there = features[part].was_there
        features[part].fill(partial(engine.stage_maps, model, hardware, batches), SCORE_BATCH)
        if not was_there:
            say(f"Features of {part} computed in {time.perf_counter() - start:.1f} s")


def _encoder_key(options: Namespace, model: hypernet.QualityNet) -> dict[str, Any]:
    # Everything but the pixels that a patch's stage maps depend on, as plain values.
    return {
        "encoder": checkpoints.digest(model.backbone.encoder_state()),
        "described": [
            options.backbone,
            options.patch_size,
            plain_values.to_json_value(model.backbone.described),
            [*model.pools],
        ],
        # Another version may compute other digits.
        "versions": [torch.__version__, torchvision.__version__, timm.__version__],
    }
