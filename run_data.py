"""The data sets of a run: what it trains and tests on, from their records to the batches of an epoch."""

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
import torchvision

import checkpoints
from augmentations import draw_mixing, label_noise
from common.files import HERE
from common.run_files import plain
from data_loader import (
    SCORE_BATCH,
    DecodedSet,
    PatchBatches,
    Patches,
    addressed_seed,
    drop_bad_images,
    test_patches,
    train_patches,
)
from feature_cache import check_room
from folders import READERS, read_cross_tests
from options import stored_features
from reading.cache import put_on_gpu
from reading.records import Columns, take_validation
from run_log import RunLog

if TYPE_CHECKING:
    from models import HyperNet


class RunData:
    """The sets of a run: the one that it trains and tests on, and its cross tests, by name.
    Reading takes the records alone; `decode` then takes the images at hand. `tests` are what each epoch is tested on,
    part -> (images, split); by the first of them the best epoch is chosen. Raises UserError."""

    def __init__(self, options: Namespace, seed: int):
        self.options = o = options
        reader = READERS[o.dataset](o.dataset_path, seed, o.lower_is_better, Columns.of(o))
        official_validation = o.select_on == "val" and o.val_fraction is None
        self.main = reader.read(("train", "val", "test") if official_validation else ("train", "test"))
        if o.val_fraction is not None:
            take_validation(self.main, o.val_fraction, seed)
        self.main.note_undefined()
        self.cross, self.said = read_cross_tests(o.cross_test, seed, reader.spaq_root)
        self.sets = [self.main, *self.cross.values()]
        self.fingerprint = {data.name: data.fingerprint() for data in self.sets}
        if o.label_noise:
            self.fingerprint["votes"] = self.main.votes()
        counts = {part: len(self.main.split(part)) for part in ("train", "val", "test")}
        self.counts = {part: n for part, n in counts.items() if n} | {n: len(d.records) for n, d in self.cross.items()}

    @property
    def notes(self) -> list[str]:
        """What a log says of the sets."""
        counted = ", ".join(f"{n} {part} images" for part, n in self.counts.items() if part not in self.cross)
        notes = [note for data in self.sets for note in data.notes] + [f"{self.main.name}: {counted}", *self.said]
        if strength := self.options.label_noise:
            known = sum(r.error is not None for r in self.main.split("train"))
            low, high = self.main.range
            rest = f"{strength:g} % of {low:g}..{high:g}"
            of = f"{strength:g} standard errors of {known} images' MOS, else {rest}" if known else rest
            notes.append(f"Label noise: {of}; training figures are against the noisy MOS")
        return notes + [f"{name.upper()} cross test: {self.counts[name]} images" for name in self.cross]

    @property
    def description(self) -> dict[str, Any]:
        """What a model's description says of the set that it was trained on."""
        mos = [record.score for record in self.main.records]
        score_range, direction = [min(mos), max(mos)], self.main.higher_is_better
        about = {"dataset": self.main.name, "score_range": score_range, "higher_is_better": direction}
        return {**about, "nominal_range": list(self.main.range)}

    def decode(self, device: torch.device, log: RunLog, new: bool) -> None:
        """Take the images at hand, for all rounds; a run that goes on says what it finds on the screen alone."""
        o, decoded, say = self.options, {}, log.line if new else log.show
        cache_dir = (o.cache_dir or HERE / "cache") if o.cache else None
        for name, data in {o.dataset: self.main, **self.cross}.items():
            resize = o.cross_resize[name] if name in self.cross else o.resize
            decoded[name] = DecodedSet(data, resize, o.patch_size, o.exif_rotate, cache_dir)
            say("\n".join(decoded[name].facts))
        bad = {str(path): reason for each in decoded.values() for path, reason in sorted(each.bad.items())}
        if bad:
            say(f"Skipped: {drop_bad_images(decoded.values(), o.skip_bad_images)}")
            if new:
                log.record(type="skipped", images=bad)
        say(f"Patches are cut on: {put_on_gpu([each.cache for each in decoded.values()], o.cache_device, device)}")
        self.images = decoded.pop(o.dataset)
        self.tests = {part: (self.images, part) for part in (("val", "test") if o.select_on == "val" else ("test",))}
        self.tests |= {name: (images, "test") for name, images in decoded.items()}

    def train_batches(self, seed: int, epoch: int, batch_size: int) -> PatchBatches:
        """The batches of an epoch, a function of (seed, epoch)."""
        o = self.options
        augment = dict.fromkeys(o.augment, o.augment_strength)
        address = (o.patch_size, o.train_patch_num, seed, epoch, augment, o.fixed_crops)
        records = self.images.records("train")
        # Drawn apart from the crops, which are the same with and without it.
        rng = np.random.Generator(np.random.PCG64(addressed_seed(seed, epoch, 0, 1)))

        def patches_of(sizes: np.ndarray) -> Patches:
            patches, drawn = train_patches(sizes, *address), {}
            if o.label_noise:
                sd = label_noise(records, self.main.range, o.label_noise)[patches.image]
                drawn["label_noise"] = (sd * rng.standard_normal(len(patches))).astype(np.float32)
            mixing = draw_mixing(rng, len(patches), o.mixup, o.cutmix, o.patch_size)
            return replace(patches, drawn={**patches.drawn, **drawn, **mixing})

        return self.images.batches(records, batch_size, patches_of)

    def names_of(self, batches: PatchBatches, b: int) -> str:
        """The images that training batch b has patches of."""
        records = self.images.records("train")
        return ", ".join(sorted(records[i].name for i in batches.images_of(b)))

    def prepare_features(self, model: "HyperNet", seed: int, compute: Callable, say: Callable[[str], None]) -> None:
        """Where a frozen encoder meets fixed crops, take its stage maps of the round's patches at hand, all of them.
        compute(batches, start): rows (n, F) for each of these batches from number `start` on. Raises UserError."""
        o, backbone = self.options, model.backbone
        if not stored_features(o):
            return
        encoder = {
            "encoder": checkpoints.digest(backbone.encoder_state()),
            "described": [o.backbone, o.patch_size, plain(backbone.described), [*model.pools]],
            "versions": [torch.__version__, torchvision.__version__, timm.__version__],
        }
        parts = {"train": (self.images, "train"), **self.tests}
        for images, _ in parts.values():
            images.features = {}
        crops = (o.patch_size, o.test_crop, o.test_patch_num)
        jobs = {"train": self.train_batches(seed, 0, SCORE_BATCH)}
        for part, (images, split) in self.tests.items():
            jobs[part] = images.batches(images.records(split), SCORE_BATCH, lambda sizes: test_patches(sizes, *crops))
        for part, (images, split) in parts.items():
            images.add_features(split, jobs[part], sum(model.pools.values()), o.feature_dtype, encoder)
        features = {part: images.features[split] for part, (images, split) in parts.items()}
        say("\n".join(check_room(features)))
        for part, batches in jobs.items():
            start, there = time.perf_counter(), features[part].was_there
            features[part].fill(partial(compute, batches), SCORE_BATCH)
            if not there:
                say(f"Features of {part} computed in {time.perf_counter() - start:.1f} s")

    def draw_again(self, seed: int) -> None:
        """Another round: the same images, but a random split is drawn anew."""
        self.main = self.images.data = RunData(self.options, seed).main
