"""From decoded images to batches of patches, and the loaders that give them.

Everything random is addressed: an epoch's order, crops and augmentations are a pure function of
(seed, epoch), so workers, caches and devices change nothing. Patches travel as uint8 (N, P, P, 3)
and are augmented where the model is. A loader cuts them in the run's own process, or in as many
worker processes as have room.
"""

import contextlib
import re
import shutil
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.base import device, errors
from hyperiqa.datasets.records import DataSet, Record
from hyperiqa.images.cache import ImageCache
from hyperiqa.images.features import Features
from hyperiqa.training.augmentations import trained_mos
from hyperiqa.training.patches import Patches, addressed_seed

# Patches per batch wherever a model only scores.
SCORE_BATCH = 64
# Where Linux keeps what processes hand over to each other.
SHARED_MEMORY = Path("/dev/shm")
# Seconds without a batch, after which the workers that cut patches are taken to hang.
WORKER_SECONDS = 300
# Pattern of torch's message about a worker -> what happened to the worker.
WORKER_FAILURES = {
    "^DataLoader timed out": "gave nothing",
    "^DataLoader worker": "died",
    # Workers hand batches over as open files, in the "ancillary data" of a socket.
    "ancdata|Too many open files": "opened too many files",
}


class JoinedCache:
    """Several image caches as one: their images are numbered one set after the other.

    first: number of each cache's first image, and the number of all images.
    name, folder: as of `ImageCache`, for the features of all sets' patches. They are stored beside
    the first cache; no folder has the name of `folder`, which names the folders of all caches.
    """

    def __init__(self, caches: Sequence[ImageCache]):
        self.caches = list(caches)
        self.name = caches[0].name
        # Either all caches have a folder, or none.
        self.folder = caches[0].folder
        if self.folder is not None:
            self.folder = self.folder.with_name("+".join(cache.folder.name for cache in caches))
        self.min_side = caches[0].min_side
        # Either all caches are on the GPU, or none.
        self.on_gpu = caches[0].on_gpu
        self.first = np.cumsum([0, *map(len, caches)])
        self.sizes = np.concatenate([cache.sizes for cache in caches])

    def crops(
        self, images: np.ndarray, top: np.ndarray, left: np.ndarray, side: int
    ) -> torch.Tensor:
        """As `ImageCache.crops`: uint8 (n, side, side, 3)."""
        rows_by_cache = []
        pieces = []
        for cache, first, end in zip(self.caches, self.first, self.first[1:]):
            rows = np.flatnonzero((images >= first) & (images < end))
            rows_by_cache.append(rows)
            if len(rows):
                pieces.append(cache.crops(images[rows] - first, top[rows], left[rows], side))
        crops = torch.cat(pieces)
        # The pieces come cache by cache; the sort puts the crops back into the order of `images`.
        order = torch.from_numpy(np.argsort(np.concatenate(rows_by_cache), kind="stable"))
        return crops[order.to(crops.device)]


def rows_of_process(number: int, first: int, stride: int) -> np.ndarray:
    """The rows that process `first` of `stride` takes of a batch of `number`: (⌈number / stride⌉,).

    Every process takes equally many: where none is left for it, it repeats the batch's last row.
    """
    return np.minimum(np.arange(-(-number // stride)) * stride + first, number - 1)


class PatchBatches(torch.utils.data.Dataset):
    """The batches of a list of patches; the last, smaller batch is kept.

    A batch of B patches holds `patches` uint8 (B, P, P, 3), `mos` (B,), `image` (B,), and what
    augmentations drew, by their names; `sigma` (B,) where the loss needs the standard deviations of
    the images' votes, and `set` (B,), the number of each image's set, where there are several. With
    `features` of the patches it holds `features` (B, F) in place of the patches. Patches with an
    address also bring `seed`, that of the torch generators for the step on this batch.

    images: cache numbers of the images that `patches.image` counts.
    mos: the scores of these images.
    share: (number of this process, number of processes). The model sees only this process's rows,
    followed by the rows that they are mixed with; losses see all rows.
    on_device: whether batches come from the device, by this process.
    """

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
        self.cache = cache
        self.images = np.asarray(images)
        self.mos = np.asarray(mos, np.float32)
        self.patches = patches
        self.batch_size = batch_size
        self.features = features
        self.share = share
        self.on_device = features is None and cache.on_gpu is not None

    def __len__(self) -> int:
        return -(-len(self.patches) // self.batch_size)

    @property
    def bytes(self) -> int:
        """The size of a batch's patches, or of their features."""
        if self.features is None:
            # RGB as uint8.
            patch_bytes = self.cache.min_side**2 * 3
        else:
            patch_bytes = self.features.bytes // self.features.shape[0]
        return min(self.batch_size, len(self.patches)) * patch_bytes

    def rows(self, b: int) -> np.ndarray:
        """The rows of `patches` that batch b has: (B,)."""
        start = b * self.batch_size
        return np.arange(start, min(start + self.batch_size, len(self.patches)))

    def __getitem__(self, b: int) -> dict[str, Any]:
        rows = self.rows(b)
        patches = self.patches
        image = patches.image[rows]
        drawn = {name: values[rows] for name, values in patches.drawn.items()}
        # Losses see the whole batch, whichever rows this process has.
        mos = trained_mos(self.mos[image], drawn)
        batch: dict[str, Any] = {"mos": torch.from_numpy(mos), "image": torch.from_numpy(image)}
        process_rows = rows_of_process(len(rows), *self.share)
        if self.features is None:
            batch |= self._model_input(rows, process_rows)
        else:
            # Features are stored in the order of epoch 0.
            stored = rows if patches.row is None else patches.row[rows]
            batch["features"] = self.features[stored[process_rows]]
        # Losses ask for these of every row.
        for name in {"set", "sigma"} & drawn.keys():
            batch[name] = torch.from_numpy(drawn[name])
        if patches.address:
            batch["seed"] = int(addressed_seed(*patches.address, b).generate_state(1)[0])
        return batch

    def _model_input(self, rows: np.ndarray, process_rows: np.ndarray) -> dict[str, torch.Tensor]:
        # The patches that this process's model sees, and what was drawn for the batch. The batch
        # has these rows of all patches, and this process has `process_rows` of the batch.
        patches = self.patches
        seen = rows[process_rows]
        if self.share[1] > 1 and "blend" in patches.drawn:
            # Each patch is mixed with the one before it in the batch, another process's row.
            seen = rows[np.concatenate([process_rows, process_rows - 1])]
        crops = self.cache.crops(
            self.images[patches.image[seen]],
            patches.top[seen],
            patches.left[seen],
            self.cache.min_side,
        )
        # Mixing is drawn once for a row and its partner.
        rows_of = {"blend": rows[process_rows], "box": rows[process_rows]}
        drawn = {
            name: torch.from_numpy(values[rows_of.get(name, seen)])
            for name, values in patches.drawn.items()
        }
        return {"patches": crops, **drawn}


class DecodedSet:
    """A data set with its images decoded, from which batches are cut.

    bad: path -> why the file cannot be read.
    features: split -> the stored features of its patches, where `add_features` has made them.

    patch_size: side of the patches in pixels, to which smaller images are scaled up.
    cache_dir: the folder of image caches; None: in memory.
    """

    def __init__(
        self,
        data: DataSet,
        resize: str,
        patch_size: int,
        exif_rotate: bool = False,
        cache_dir: Path | None = None,
    ):
        self.data = data
        self.cache = ImageCache(
            data.name,
            [record.path for record in data.records],
            resize,
            patch_size,
            cache_dir,
            exif_rotate,
        )
        self.bad = self.cache.bad
        self.features: dict[str, Features] = {}

    @property
    def facts(self) -> list[str]:
        """The lines that a log has of the images."""
        cache = self.cache
        action = "found" if cache.was_there else "decoded"
        place = f"cache {cache.folder}" if cache.folder else "memory"
        # The order of the lines counts: `facts[1:]` are those that evaluations repeat.
        lines = [
            f"{errors.counted(len(cache), 'image')} {action} in {place}, resize {cache.resize}, "
            f"{cache.bytes / 2**20:.0f} MiB, {cache.seconds:.1f} s"
        ]
        if cache.upscaled:
            smaller = errors.counted(
                cache.upscaled,
                "image smaller than the patch was",
                "images smaller than the patch were",
            )
            lines.append(f"{smaller} scaled up to it")
        return [f"{self.data.name}: {line}" for line in lines]

    def digest(self, record: Record) -> str:
        """A digest of the decoded pixels of a record's image; "" if the file is unreadable."""
        return self.cache.digests[self.cache.index[record.path]]

    def perceptual_hash(self, record: Record) -> str:
        """A hash that images which look alike share; "" if the record's file is unreadable."""
        return self.cache.hashes[self.cache.index[record.path]]

    def records(self, split: str) -> list[Record]:
        """The split's images that can be read. Raises UserError where there are none."""
        records = [record for record in self.data.split(split) if record.path not in self.bad]
        if not records:
            raise errors.UserError(
                f"{self.data.name}: no readable image is left in the {split} split"
            )
        return records

    def batches(
        self,
        records: Sequence[Record],
        batch_size: int,
        patches_of: Callable[[np.ndarray], Patches],
        share: tuple[int, int] = (0, 1),
    ) -> PatchBatches:
        """Batches of the patches that `patches_of(sizes)` chooses in these images, of one split.

        They hold the patches' features where `add_features` has made them. share: as of
        `PatchBatches`.
        """
        images = [self.cache.index[record.path] for record in records]
        mos = [record.score for record in records]
        patches = patches_of(self.cache.sizes[images])
        features = self.features.get(records[0].split)
        return PatchBatches(self.cache, images, mos, patches, batch_size, features, share)

    def add_features(
        self, split: str, batches: PatchBatches, width: int, dtype: str, encoder: Mapping
    ) -> Features:
        """Features of the split's patches, `width` values each, still to be filled.

        The first of several sets has those of the training patches of all sets.
        encoder: everything else that the features depend on.
        """
        depends_on = {
            "images": batches.images.tolist(),
            "patches": batches.patches.digest(),
            **encoder,
        }
        shape = (len(batches.patches), width)
        self.features[split] = Features(batches.cache, split, shape, dtype, depends_on)
        return self.features[split]


def bad_images(sets: Collection[DecodedSet]) -> dict[Path, str]:
    """Path -> why the file cannot be read, set by set."""
    return {path: reason for images in sets for path, reason in sorted(images.bad.items())}


def drop_bad_images(sets: Collection[DecodedSet], skip: bool) -> str:
    """A line for the log about the files that cannot be read, "" without any.

    Raises UserError unless they may be skipped.
    """
    reasons = bad_images(sets)
    if not reasons:
        return ""
    # Sorted: the message does not depend on the order of the sets.
    listed = "; ".join(f"{path}: {reasons[path]}" for path in sorted(reasons))
    number = sum(len(images.cache) for images in sets)
    message = f"{len(reasons)} of {errors.counted(number, 'image')} cannot be read: {listed}"
    if not skip:
        raise errors.UserError(f"{message} (--skip_bad_images drops them)")
    return message


def fitting_workers(workers: int, batch_bytes: int) -> tuple[int, str]:
    """How many of these workers have room for their batches, and why not all ("" if all have).

    Each worker holds two batches of `batch_bytes` in shared memory (Docker gives 64 MB) and about
    twenty open files; one more batch is in use.
    """
    limits = [(workers, "")]
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        # A tenth stays free for other programs; one batch more is with the model.
        fitting = max(0, int(0.9 * free / max(batch_bytes, 1) - 1) // 2)
        limits.append((fitting, f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free"))
    # Systems without `resource`, or that forbid the change, have no such limit to respect.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # Without a limit it is negative.
        if hard >= 0:
            limits.append((max(0, hard - 100) // 20, f"{errors.counted(hard, 'file')} may be open"))
    number, reason = min(limits)
    if reason:
        reason = f"--workers {workers}: there is room for {number}, as {reason}"
    return number, reason


def fewer_workers(hardware: device.Hardware, batch_size: int, patch_size: int) -> str:
    """A line for the log where fewer workers have room than asked for, and why; else ""."""
    return fitting_workers(hardware.workers, 3 * batch_size * patch_size**2)[1]


@contextlib.contextmanager
def workers_watched() -> Iterator[None]:
    """Turn the death or the silence of a worker that cuts patches into a UserError."""
    try:
        yield
    except (RuntimeError, OSError) as problem:
        message = str(problem)
        for pattern, failure in WORKER_FAILURES.items():
            if re.search(pattern, message):
                raise errors.UserError(
                    f"a process that cuts patches {failure} ({message.splitlines()[0]}); with "
                    "--workers 0 the run cuts them itself, and --resume auto goes on"
                ) from None
        raise


def make_loader(
    batches: PatchBatches, hardware: device.Hardware, start: int = 0, stride: int = 1
) -> Iterable[dict]:
    """The batches from number `start` on, every `stride`-th of them, in order.

    As many of `hardware.workers` processes as have room cut them; with 0, this process does. It
    also cuts the crops of images that lie on the GPU, however many workers there are.
    """
    numbers = range(start, len(batches), stride)
    if batches.on_device:
        return (batches[b] for b in numbers)
    workers = fitting_workers(min(hardware.workers, len(numbers)), batches.bytes)[0]
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=hardware.device.type == "cuda",
        # torch accepts a limit only where there are workers.
        timeout=WORKER_SECONDS if workers else 0,
        worker_init_fn=_leave_signals_to_the_run,
    )


def _leave_signals_to_the_run(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the run decides when its workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
