"""From records to batches of patches: a data set's decoded images, crop positions, loaders.
Everything random is addressed: an epoch's order, crops and augmentations are a pure function of (seed, epoch), so
workers, caches and devices change nothing. Patches travel as uint8 (N, P, P, 3), augmented where the model is."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.base.errors import UserError
from hyperiqa.datasets.records import DataSet, Record
from hyperiqa.images.cache import ImageCache
from hyperiqa.images.features import Features
from hyperiqa.training.augmentations import trained_mos
from hyperiqa.training.patches import Patches, addressed_seed

SCORE_BATCH = 64


class JoinedCache:
    """Several image caches as one: their images are numbered one set after the other."""

    def __init__(self, caches: Sequence[ImageCache]):
        self.caches, self.min_side = list(caches), caches[0].min_side
        self.first = np.cumsum([0, *map(len, caches)])
        self.sizes = np.concatenate([cache.sizes for cache in caches])

    @property
    def on_gpu(self) -> torch.Tensor | None:
        return self.caches[0].on_gpu  # all are, or none

    def crops(
        self, images: np.ndarray, top: np.ndarray, left: np.ndarray, side: int
    ) -> torch.Tensor:
        """As `ImageCache.crops`."""
        rows = [
            np.flatnonzero((images >= first) & (images < end))
            for first, end in itertools.pairwise(self.first)
        ]
        parts = zip(self.caches, self.first, rows)
        cut = torch.cat(
            [c.crops(images[r] - first, top[r], left[r], side) for c, first, r in parts if len(r)]
        )
        order = torch.from_numpy(np.argsort(np.concatenate(rows), kind="stable"))
        return cut[order.to(cut.device)]


def rows_of_process(number: int, first: int, stride: int) -> np.ndarray:
    """Which of a batch's rows process `first` of `stride` takes: as many as the others, its last one again where there
    are none left; (⌈number / stride⌉,)."""
    return np.minimum(np.arange(-(-number // stride)) * stride + first, number - 1)


class PatchBatches(torch.utils.data.Dataset):
    """Batch b of a list of patches: `patches` uint8 (B, P, P, 3), `mos` (B,), `image` (B,), what augmentations drew.
    Patches with an address also bring `seed`, the torch generators' for the step on this batch. images: cache numbers
    of the images that `patches.image` counts; mos: their scores. The last, smaller batch is kept. With `features` of
    the patches, batches hold those, (B, F), in place of the patches. share: which of several processes takes them: of
    what the model sees it gets its own rows alone, and after them those that they are mixed with."""

    def __init__(
        self,
        cache: ImageCache | JoinedCache,
        images: Sequence[int],
        mos: Sequence[float] | np.ndarray,
        patches: Patches,
        batch_size: int,
        features: Features | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self.cache, self.images, self.patches, self.features = (
            cache,
            np.asarray(images),
            patches,
            features,
        )
        self.mos, self.batch_size, self.share = np.asarray(mos, np.float32), batch_size, share

    def __len__(self) -> int:
        return -(-len(self.patches) // self.batch_size)

    @property
    def bytes(self) -> int:
        """Of a batch's patches, or their features."""
        each = (
            self.cache.min_side**2 * 3
            if self.features is None
            else self.features.bytes // self.features.shape[0]
        )
        return min(self.batch_size, len(self.patches)) * each

    @property
    def on_device(self) -> bool:
        """Whether batches come from the device, by this process."""
        return self.cache.on_gpu is not None and self.features is None

    def __getitem__(self, b: int) -> dict[str, Any]:
        p, side = self.patches, self.cache.min_side
        rows = np.arange(len(p))[b * self.batch_size : (b + 1) * self.batch_size]
        image, drawn = p.image[rows], {name: each[rows] for name, each in p.drawn.items()}
        mos = trained_mos(self.mos[image], drawn)
        batch: dict[str, Any] = {"mos": torch.from_numpy(mos), "image": torch.from_numpy(image)}
        own, several = rows_of_process(len(rows), *self.share), self.share[1] > 1
        if self.features is not None:
            seen = rows[own]
            batch["features"] = self.features[seen if p.row is None else p.row[seen]]
        else:
            seen = rows[np.concatenate([own, own - 1]) if several and "blend" in drawn else own]
            batch["patches"] = self.cache.crops(
                self.images[p.image[seen]], p.top[seen], p.left[seen], side
            )
            of = {
                "set": rows,
                **dict.fromkeys(("blend", "box"), rows[own]),
            }  # the others with the patches
            batch |= {
                name: torch.from_numpy(each[of.get(name, seen)]) for name, each in p.drawn.items()
            }
        if p.address:
            batch["seed"] = int(addressed_seed(*p.address, b).generate_state(1)[0])
        return batch


class DecodedSet:
    """A data set with its images decoded: what batches are cut from, and `bad`, which files cannot be read and why.
    patch_size: side of the patches in pixels, to which smaller images are scaled up. cache_dir None: in memory."""

    def __init__(
        self,
        data: DataSet,
        resize: str,
        patch_size: int,
        exif_rotate: bool = False,
        cache_dir: Path | None = None,
    ):
        self.data, paths = data, [record.path for record in data.records]
        self.cache = ImageCache(data.name, paths, resize, patch_size, cache_dir, exif_rotate)
        self.bad = self.cache.bad
        self.features: dict[str, Features] = {}

    @property
    def facts(self) -> list[str]:
        """What a log says of the images."""
        cache, name = self.cache, self.data.name
        how, where = (
            "found" if cache.was_there else "decoded",
            f"cache {cache.folder}" if cache.folder else "memory",
        )
        cost = f"{cache.bytes / 2**20:.0f} MiB, {cache.seconds:.1f} s"
        fact = f"{name}: {len(cache)} images {how} in {where}, resize {cache.resize}, {cost}"
        upscaled = f"{name}: {cache.upscaled} images smaller than the patch were scaled up to it"
        return [fact, upscaled] if cache.upscaled else [fact]

    def of(self, what: str, record: Record) -> str:
        """What the cache knows of a record's image: one of its `digests` or `looks`."""
        return getattr(self.cache, what)[self.cache.index[record.path]]

    def records(self, split: str) -> list[Record]:
        """The split's images that can be read. Raises UserError where there are none."""
        records = [record for record in self.data.split(split) if record.path not in self.bad]
        if not records:
            raise UserError(f"{self.data.name}: no readable image is left in the {split} split")
        return records

    def batches(
        self,
        records: Sequence[Record],
        batch_size: int,
        patches_of: Callable[[np.ndarray], Patches],
        share: tuple[int, int] = (0, 1),
    ) -> PatchBatches:
        """Batches of the patches that `patches_of(sizes)` chooses in these images, of one split; of their features,
        where `add_features` has made them. share: as of PatchBatches."""
        images, mos = (
            [self.cache.index[record.path] for record in records],
            [record.score for record in records],
        )
        patches, features = (
            patches_of(self.cache.sizes[images]),
            self.features.get(records[0].split),
        )
        return PatchBatches(self.cache, images, mos, patches, batch_size, features, share)

    def add_features(
        self, split: str, batches: PatchBatches, width: int, dtype: str, encoder: Mapping
    ) -> Features:
        """Features of the split's patches, `width` values each, still to be filled. encoder: all that they depend on
        beside these patches."""
        depends_on = {
            "images": batches.images.tolist(),
            "patches": batches.patches.digest(),
            **encoder,
        }
        self.features[split] = Features(
            self.cache, split, (len(batches.patches), width), dtype, depends_on
        )
        return self.features[split]


def drop_bad_images(sets: Collection[DecodedSet], skip: bool) -> str:
    """What a log says of the files that cannot be read, "" without any. Raises UserError unless they may be skipped."""
    bad = {path: f"{path}: {reason}" for each in sets for path, reason in each.bad.items()}
    listed = "; ".join(bad[path] for path in sorted(bad))
    text = f"{len(bad)} of {sum(len(each.cache) for each in sets)} images cannot be read: {listed}"
    if bad and not skip:
        raise UserError(f"{text} (--skip_bad_images drops them)")
    return text if bad else ""
