"""The data sets of a run: what it trains and tests on, from their records to the batches of an epoch."""

import itertools
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision

from hyperiqa.base.errors import UserError, first_five
from hyperiqa.base.files import HERE
from hyperiqa.base.plain_values import to_json_value
from hyperiqa.datasets.names import lower_is_better_sets
from hyperiqa.datasets.readers import read_cross_tests, reader_of
from hyperiqa.datasets.records import Columns, DataSet, take_validation
from hyperiqa.datasets.scales import scale_of
from hyperiqa.images.cache import put_on_gpu
from hyperiqa.images.features import check_room
from hyperiqa.images.perceptual_hash import near_duplicates
from hyperiqa.model import checkpoints
from hyperiqa.stats import intervals
from hyperiqa.training.augmentations import draw_mixing, label_noise
from hyperiqa.training.batches import (
    SCORE_BATCH,
    DecodedSet,
    JoinedCache,
    PatchBatches,
    drop_bad_images,
)
from hyperiqa.training.contradictions import stored_features
from hyperiqa.training.log import RunLog
from hyperiqa.training.patches import addressed_seed, test_patches, train_patches


class RunData:
    """The sets of a run: those that it trains and tests on, and its cross tests, by name.
    Reading takes the records alone; `decode` then takes the images at hand. `tests` are what each epoch is tested on,
    part -> (images, split); with several trained sets `means` are the parts that are the mean of others. `parts` are
    all of them, in the order of records; by `chosen` the best epoch is chosen. Raises UserError."""

    def __init__(self, options: Namespace, seed: int):
        self.options = o = options
        official_validation = o.select_on == "val" and o.val_fraction is None
        splits = ("train", "val", "test") if official_validation else ("train", "test")
        lower, beside = (
            lower_is_better_sets(o.lower_is_better, [*o.trained, *(o.cross_test or ())]),
            None,
        )
        self.trained: dict[str, DataSet] = {}
        for name, path in o.trained.items():
            reader = reader_of(name, path, seed, name in lower, Columns.of(o))
            data, beside = reader.read(splits), reader.spaq_root
            if o.val_fraction is not None:
                take_validation(data, o.val_fraction, seed)
            data.note_undefined()
            self.trained[data.name] = data
        self.main = next(iter(self.trained.values()))
        self.scales = {
            name: scale_of(data, self.main, o.mix_scale) for name, data in self.trained.items()
        }
        self.cross, self.said = read_cross_tests(o.cross_test, seed, beside, lower, Columns.of(o))
        self.sets = [*self.trained.values(), *self.cross.values()]
        self.fingerprint = {data.name: data.fingerprint() for data in self.sets}
        if o.label_noise:
            self.fingerprint["votes"] = "+".join(data.votes() for data in self.trained.values())
        counts = {
            p: sum(len(d.split(p)) for d in self.trained.values()) for p in ("train", "val", "test")
        }
        several = (
            {name: len(data.split("test")) for name, data in self.trained.items()}
            if self.several
            else {}
        )
        self.counts = {part: n for part, n in counts.items() if n} | several
        self.counts |= {name: len(data.records) for name, data in self.cross.items()}

    @property
    def several(self) -> bool:
        return len(self.trained) > 1

    @property
    def common(self) -> DataSet:
        """The first set, on the scale that is trained on."""
        whole = self.options.mix_scale == "range"
        return (
            replace(self.main, higher_is_better=True, nominal_range=(0.0, 100.0))
            if whole
            else self.main
        )

    @property
    def notes(self) -> list[str]:
        """What a log says of the sets."""
        notes = [note for data in self.sets for note in data.notes]
        for name, data in self.trained.items():
            counts = {part: len(data.split(part)) for part in ("train", "val", "test")}
            notes.append(
                f"{name}: " + ", ".join(f"{n} {part} images" for part, n in counts.items() if n)
            )
            if self.several:
                scale = self.scales[name]
                notes.append(f"{name}: trained on {scale.factor:g} * score {scale.offset:+g}")
        if strength := self.options.label_noise:
            for name, data in self.trained.items():
                known = sum(r.error is not None for r in data.split("train"))
                low, high = data.range
                rest = f"{strength:g} % of {low:g}..{high:g}"
                of = (
                    f"{strength:g} standard errors of {known} images' MOS, else {rest}"
                    if known
                    else rest
                )
                whose = f" of {name}" if self.several else ""
                notes.append(
                    f"Label noise{whose}: {of}; training figures are against the noisy MOS"
                )
        return (
            notes
            + self.said
            + [f"{name.upper()} cross test: {self.counts[name]} images" for name in self.cross]
        )

    @property
    def description(self) -> dict[str, Any]:
        """What a model's description says of the sets that it was trained on; `scales` leads to each one's own."""
        mos = [record.score for record in self.main.records]
        nominal, direction = list(self.common.range), self.common.higher_is_better
        score_range = nominal if self.options.mix_scale == "range" else [min(mos), max(mos)]
        about = {
            "score_range": score_range,
            "higher_is_better": direction,
            "nominal_range": nominal,
        }
        if not self.several:
            return {"dataset": self.main.name, **about}
        scales = {
            name: {
                "factor": scale.factor,
                "offset": scale.offset,
                "nominal_range": list(self.trained[name].range),
            }
            for name, scale in self.scales.items()
        }
        return {"dataset": "+".join(self.trained), **about, "scales": scales}

    def decode(self, device: torch.device, log: RunLog, new: bool) -> None:
        """Take the images at hand, for all rounds; a run that goes on says what it finds on the screen alone."""
        o, say = self.options, log.line if new else log.show
        cache_dir = (o.cache_dir or HERE / "cache") if o.cache else None
        jobs = [
            (*each, resize)
            for each, resize in zip(self.trained.items(), o.mix_resize.values() or [o.resize])
        ]
        jobs += [(name, data, o.cross_resize[name]) for name, data in self.cross.items()]
        decoded = {}
        for name, data, resize in jobs:
            decoded[name] = DecodedSet(data, resize, o.patch_size, o.exif_rotate, cache_dir)
            say("\n".join(decoded[name].facts))
        bad = {
            str(path): reason
            for each in decoded.values()
            for path, reason in sorted(each.bad.items())
        }
        if bad:
            say(f"Skipped: {drop_bad_images(decoded.values(), o.skip_bad_images)}")
            if new:
                log.record(type="skipped", images=bad)
        if overlap := overlapping(decoded.values(), self.trained.values(), o.allow_overlap):
            say(overlap)
        if alike := near_duplicate_pairs(decoded.values(), self.trained.values()):
            named = [f"{test} ~ {train}" for (test, _), (train, _) in alike]
            twins = ", ".join(named[:5]) + (
                f" and {len(named) - 5} more" if len(named) > 5 else ""
            )  # in ASCII
            say(
                f"Near duplicates: {len(alike)} pairs of test and training images look alike: {twins}"
            )
        say(
            f"Patches are cut on: {put_on_gpu([each.cache for each in decoded.values()], o.cache_device, device)}"
        )
        self.images = {name: decoded.pop(name) for name in self.trained}
        self._name_tests(decoded)

    def _name_tests(self, cross: Mapping[str, DecodedSet]) -> None:
        """Which parts an epoch is tested on: `test` (and `val`) of a single set; of several each by its name."""
        o, splits = self.options, ("val", "test") if self.options.select_on == "val" else ("test",)
        self.tests: dict[str, tuple[DecodedSet, str]] = {}
        self.means: dict[str, list[str]] = {}
        for split in splits:
            of_each = {
                f"{name}_val" if split == "val" else name: images
                for name, images in self.images.items()
            }
            of_each = of_each if self.several else {split: self.images[self.main.name]}
            self.tests |= {part: (images, split) for part, images in of_each.items()}
            if self.several:
                self.means[split] = list(of_each)
        self.tests |= {name: (images, "test") for name, images in cross.items()}
        self.parts = [*self.means, *self.tests]
        names = dict(zip(o.trained, self.means.get(splits[0], [])))
        self.chosen = names[o.select_set] if o.select_set else self.parts[0]

    def with_means(self, result: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """An epoch's figures by part, with those of `means`, in the order of `parts`."""
        means = {
            part: {
                figure: float(np.mean([result[each][figure] for each in of]))
                for figure in result[of[0]]
            }
            for part, of in self.means.items()
        }
        found = {**means, **result}
        return {"train": found["train"], **{part: found[part] for part in self.parts}}

    def oriented_scores(self, data: DataSet, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A model's scores of a set's images: (on the set's own scale where the model was trained on it, and so that
        they rise where its opinions do)."""
        if self.trained.get(data.name) is data:
            own = self.scales[data.name].own(scores)
            return own, own
        return scores, scores if data.higher_is_better == self.common.higher_is_better else -scores

    def tested(self, scores: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
        """What a run's epochs scored the images of each part, as arrays by name: PART_images, PART_mos, PART_error of
        it (nan where there are no votes), (N,), and PART_scores (E, N), which rise where the opinions do."""
        arrays: dict[str, np.ndarray] = {}
        for part, of_epochs in scores.items():
            images, split = self.tests[part]
            rows = [
                (r.name, r.score, math.nan if r.error is None else r.error)
                for r in images.records(split)
            ]
            arrays |= {
                f"{part}_{what}": np.array(each)
                for what, each in zip(("images", "mos", "error"), zip(*rows))
            }
            arrays[f"{part}_scores"] = np.stack([np.asarray(each) for each in of_epochs])
        return arrays

    def selection_bias(self, scores: Mapping[str, Sequence]) -> float:
        """By how much the best epoch's SRCC flatters; nan where it was not chosen on test images."""
        if self.options.select_on != "test" or not scores:
            return math.nan
        arrays = self.tested(scores)
        chosen = self.means.get(self.chosen, [self.chosen])
        return intervals.selection_bias(
            [(arrays[f"{part}_scores"], arrays[f"{part}_mos"]) for part in chosen]
        )

    def train_batches(
        self, seed: int, epoch: int, batch_size: int, share: tuple[int, int] = (0, 1)
    ) -> PatchBatches:
        """The batches of an epoch, a function of (seed, epoch); of several processes, their shares of each."""
        o, sets = self.options, list(self.images.items())
        records = {name: images.records("train") for name, images in sets}
        caches = [images.cache for _, images in sets]
        cache = JoinedCache(caches) if self.several else caches[0]
        first = cache.first if isinstance(cache, JoinedCache) else [0]
        numbers = [
            start + images.cache.index[r.path]
            for start, (n, images) in zip(first, sets)
            for r in records[n]
        ]
        mos = np.concatenate(
            [self.scales[n].common(np.array([r.score for r in records[n]])) for n, _ in sets]
        )
        # Drawn apart from the crops, which are the same with and without it.
        rng = np.random.Generator(np.random.PCG64(addressed_seed(seed, epoch, 0, 1)))
        augment = dict.fromkeys(o.augment, o.augment_strength)
        per_image = self._patches_per_image(
            {name: len(own) for name, own in records.items()}, seed, epoch
        )
        patches = train_patches(
            cache.sizes[numbers], o.patch_size, per_image, seed, epoch, augment, o.fixed_crops
        )
        drawn = dict(patches.drawn)
        if self.several:
            drawn["set"] = np.repeat(np.arange(len(sets)), [len(own) for own in records.values()])[
                patches.image
            ]
        if o.label_noise:
            noise = [
                label_noise(own, self.trained[n].range, o.label_noise) for n, own in records.items()
            ]
            sd = np.concatenate(
                [abs(self.scales[n].factor) * each for n, each in zip(records, noise)]
            )[patches.image]
            drawn["label_noise"] = (sd * rng.standard_normal(len(patches))).astype(np.float32)
        drawn |= draw_mixing(rng, len(patches), o.mixup, o.cutmix, o.patch_size)
        features = None if self.several else sets[0][1].features.get("train")
        return PatchBatches(
            cache, numbers, mos, replace(patches, drawn=drawn), batch_size, features, share
        )

    def _patches_per_image(
        self, images: Mapping[str, int], seed: int, epoch: int
    ) -> int | np.ndarray:
        """How many patches of each training image, the sets one after the other, as `--mix_patches` says."""
        o = self.options
        if not o.mix_patches:
            return o.train_patch_num
        if o.mix_patches != ["balanced"]:
            return np.repeat([int(count) for count in o.mix_patches], list(images.values()))
        rng = np.random.Generator(np.random.PCG64(addressed_seed(seed, epoch, 0, 2)))
        of_each = round(o.train_patch_num * sum(images.values()) / len(images))
        counts = []
        for n in images.values():
            more = np.zeros(n, np.int64)
            more[rng.permutation(n)[: of_each % n]] = 1
            counts.append(of_each // n + more)
        return np.concatenate(counts)

    def names_of(self, batches: PatchBatches, b: int) -> str:
        """The images that training batch b has patches of."""
        records = [record for images in self.images.values() for record in images.records("train")]
        of = np.unique(batches.patches.image[b * batches.batch_size : (b + 1) * batches.batch_size])
        return ", ".join(sorted(records[i].name for i in of))

    def prepare_features(
        self, model: Any, seed: int, compute: Callable, say: Callable[[str], None]
    ) -> None:
        """Where a frozen encoder meets fixed crops, take its stage maps of the round's patches at hand, all of them.
        compute(batches, start): rows (n, F) for each of these batches from number `start` on. Raises UserError."""
        o, backbone = self.options, model.backbone
        if not stored_features(o):
            return
        encoder = {
            "encoder": checkpoints.digest(backbone.encoder_state()),
            "described": [
                o.backbone,
                o.patch_size,
                to_json_value(backbone.described),
                [*model.pools],
            ],
            "versions": [torch.__version__, torchvision.__version__, timm.__version__],
        }
        parts = {"train": (self.images[self.main.name], "train"), **self.tests}
        for images, _ in parts.values():
            images.features = {}
        crops = (o.patch_size, o.test_crop, o.test_patch_num)
        jobs = {"train": self.train_batches(seed, 0, SCORE_BATCH)}
        for part, (images, split) in self.tests.items():
            jobs[part] = images.batches(
                images.records(split), SCORE_BATCH, lambda sizes: test_patches(sizes, *crops)
            )
        stored = sum(model.pools.values()), o.feature_dtype, encoder
        features = {
            part: images.add_features(split, jobs[part], *stored)
            for part, (images, split) in parts.items()
        }
        say("\n".join(check_room(features)))
        for part, batches in jobs.items():
            start, there = time.perf_counter(), features[part].was_there
            features[part].fill(partial(compute, batches), SCORE_BATCH)
            if not there:
                say(f"Features of {part} computed in {time.perf_counter() - start:.1f} s")

    def draw_again(self, seed: int) -> None:
        """Another round: the same images, but random splits are drawn anew."""
        again = RunData(self.options, seed)
        self.main, self.trained, self.scales = again.main, again.trained, again.scales
        for name, images in self.images.items():
            images.data = again.trained[name]


def overlapping(sets: Iterable[DecodedSet], trained: Iterable[DataSet], allowed: bool) -> str:
    """What a log says of images that one set trains on and another tests, by their decoded pixels; "" without any.
    Raises UserError unless that is allowed."""
    sets, found = list(sets), []
    for one, other in itertools.permutations(sets, 2):
        if not any(one.data is data for data in trained):
            continue
        training = {one.of("digests", r): r.name for r in one.data.split("train")}
        for record in other.data.records:
            twin = training.get(other.of("digests", record) or None)
            if record.split != "train" and twin is not None:
                found.append(f"{other.data.name} {record.name} = {one.data.name} {twin}")
    text = f"{len(found)} images of a test split are another set's training images: {first_five(found)}"
    if found and not allowed:
        raise UserError(f"{text} (--allow_overlap trains all the same)")
    return text if found else ""


def near_duplicate_pairs(
    sets: Iterable[DecodedSet], trained: Iterable[DataSet]
) -> list[tuple[tuple[str, Path], ...]]:
    """Pairs of images that look alike, one that is tested and one that is trained on, each (set and name, path)."""
    sides: tuple[list, list] = [], []
    for images in sets:
        of_training = any(images.data is data for data in trained)
        for r in images.data.records:
            found = f"{images.data.name} {r.name}", r.path, images.of("hashes", r)
            sides[of_training and r.split == "train"].append(found)
    tested, training = ([look for _, _, look in side] for side in sides)
    return [(sides[0][i][:2], sides[1][j][:2]) for i, j in near_duplicates(tested, training)]
