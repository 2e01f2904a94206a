"""From records to batches of patches: a data set's decoded images, crop positions, loaders.
Everything random is addressed: an epoch's order, crops and augmentations are a pure function of (seed, epoch), so
workers, caches and devices change nothing. Patches travel as uint8 (N, P, P, 3), augmented where the model is."""

import contextlib
import hashlib
import itertools
import shutil
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.training.augmentations import DEFAULT, draw, trained_mos
from hyperiqa.base.device import Hardware
from hyperiqa.base.errors import UserError
from hyperiqa.images.features import Features
from hyperiqa.images.cache import ImageCache
from hyperiqa.datasets.records import DataSet, Record

TEST_CROP_SEED = 20  # the public code draws its random test crops anew in every run; ours come from this seed
SCORE_BATCH = 64
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps what processes hand over
WORKER_SECONDS = 300  # without a batch, after which the processes that cut them are taken to hang


@dataclass(frozen=True)
class Patches:
    """Where patches lie: image number, top and left, each (n,), in the order of their use.
    drawn: augmentation -> what it does to each patch, (n, …). address: (seed, epoch) of training patches. row: of
    patches that stay the same in all epochs, the number of each among them."""

    image: np.ndarray
    top: np.ndarray
    left: np.ndarray
    drawn: Mapping[str, np.ndarray] = field(default_factory=dict)
    address: tuple[int, ...] = ()
    row: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image)

    def digest(self) -> str:
        """Changes when a patch or its place in the order changes."""
        arrays = [self.image, self.top, self.left, *(self.drawn[name] for name in sorted(self.drawn))]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def addressed_seed(*address: int) -> np.random.SeedSequence:
    """The seed of an address such as (seed, epoch, step); different addresses are independent."""
    return np.random.SeedSequence(address)


def train_patches(
    sizes: np.ndarray, patch_size: int, per_image: int | np.ndarray, seed: int, epoch: int,
    augment: Mapping[str, float] = DEFAULT, fixed: bool = False
) -> Patches:  # fmt: skip
    """`per_image` random, augmented crops of each image, all shuffled together: a function of (seed, epoch).
    sizes: (n, 2) heights and widths. per_image: of all, or of each (n,). `seed` is the round's own, so round 2 of seed
    7 is round 1 of seed 8. augment: name -> strength. fixed: the crops of epoch 0, which is no epoch, in the order of
    this one."""
    rng = np.random.Generator(np.random.PCG64(addressed_seed(seed, epoch)))
    if fixed and epoch:
        same = train_patches(sizes, patch_size, per_image, seed, 0, augment)
        row = rng.permutation(len(same))
        drawn = {name: each[row] for name, each in same.drawn.items()}
        return Patches(same.image[row], same.top[row], same.left[row], drawn, (seed, epoch), row)
    image = rng.permutation(np.repeat(np.arange(len(sizes)), per_image))
    room = sizes[image] - patch_size + 1
    top, left = (rng.random((len(image), 2)) * room).astype(np.int64).T
    return Patches(image, top, left, draw(augment, rng, len(image)), (seed, epoch))


def _grid(height: int, width: int, patch_size: int, number: int) -> list[tuple[int, int]]:
    """(top, left) of `number` crops in the rows x columns that suit the image's shape best; coinciding ones once."""
    shapes = [(rows, number // rows) for rows in range(1, number + 1) if number % rows == 0]
    rows, columns = min(shapes, key=lambda s: abs(np.log(s[0] / s[1]) - np.log(height / width)))
    rooms = (height - patch_size, rows), (width - patch_size, columns)
    tops, lefts = (sorted({round(x) for x in (np.linspace(0, room, n) if n > 1 else [room / 2])}) for room, n in rooms)
    return list(itertools.product(tops, lefts))


def test_patches(sizes: np.ndarray, patch_size: int, crop: str = "center", number: int = 25) -> Patches:
    """The distinct crops that an image is scored on, image by image.
    center: one (all `number` would be the same); grid: `number` on a regular grid; random: `number` by a fixed seed."""
    rows = []
    for i, (height, width) in enumerate(sizes):
        if crop == "center":
            places = [(round((height - patch_size) / 2), round((width - patch_size) / 2))]
        elif crop == "grid":
            places = _grid(height, width, patch_size, number)
        else:
            rng = np.random.Generator(np.random.PCG64(addressed_seed(TEST_CROP_SEED, i)))
            room = np.array([height, width]) - patch_size + 1
            places = [tuple(p) for p in (rng.random((number, 2)) * room).astype(np.int64)]
        rows += [(i, top, left) for top, left in places]
    image, top, left = np.array(rows, np.int64).reshape(-1, 3).T
    return Patches(image, top, left)


class JoinedCache:
    """Several image caches as one: their images are numbered one set after the other."""

    def __init__(self, caches: Sequence[ImageCache]):
        self.caches, self.min_side = list(caches), caches[0].min_side
        self.first = np.cumsum([0, *map(len, caches)])
        self.sizes = np.concatenate([cache.sizes for cache in caches])

    @property
    def on_gpu(self) -> torch.Tensor | None:
        return self.caches[0].on_gpu  # all are, or none

    def crops(self, images: np.ndarray, top: np.ndarray, left: np.ndarray, side: int) -> torch.Tensor:
        """As `ImageCache.crops`."""
        rows = [np.flatnonzero((images >= first) & (images < end)) for first, end in itertools.pairwise(self.first)]
        parts = zip(self.caches, self.first, rows)
        cut = torch.cat([c.crops(images[r] - first, top[r], left[r], side) for c, first, r in parts if len(r)])
        order = torch.from_numpy(np.argsort(np.concatenate(rows), kind="stable"))
        return cut[order.to(cut.device)]


def own_rows(number: int, first: int, stride: int) -> np.ndarray:
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
        self, cache: ImageCache | JoinedCache, images: Sequence[int], mos: Sequence[float] | np.ndarray,
        patches: Patches, batch_size: int, features: Features | None = None, share: tuple[int, int] = (0, 1)
    ):  # fmt: skip
        self.cache, self.images, self.patches, self.features = cache, np.asarray(images), patches, features
        self.mos, self.batch_size, self.share = np.asarray(mos, np.float32), batch_size, share

    def __len__(self) -> int:
        return -(-len(self.patches) // self.batch_size)

    @property
    def bytes(self) -> int:
        """Of a batch's patches, or their features."""
        each = self.cache.min_side**2 * 3 if self.features is None else self.features.bytes // self.features.shape[0]
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
        own, several = own_rows(len(rows), *self.share), self.share[1] > 1
        if self.features is not None:
            seen = rows[own]
            batch["features"] = self.features[seen if p.row is None else p.row[seen]]
        else:
            seen = rows[np.concatenate([own, own - 1]) if several and "blend" in drawn else own]
            batch["patches"] = self.cache.crops(self.images[p.image[seen]], p.top[seen], p.left[seen], side)
            of = {"set": rows, **dict.fromkeys(("blend", "box"), rows[own])}  # the others with the patches
            batch |= {name: torch.from_numpy(each[of.get(name, seen)]) for name, each in p.drawn.items()}
        if p.address:
            batch["seed"] = int(addressed_seed(*p.address, b).generate_state(1)[0])
        return batch


class DecodedSet:
    """A data set with its images decoded: what batches are cut from, and `bad`, which files cannot be read and why.
    patch_size: side of the patches in pixels, to which smaller images are scaled up. cache_dir None: in memory."""

    def __init__(
        self, data: DataSet, resize: str, patch_size: int, exif_rotate: bool = False, cache_dir: Path | None = None
    ):
        self.data, paths = data, [record.path for record in data.records]
        self.cache = ImageCache(data.name, paths, resize, patch_size, cache_dir, exif_rotate)
        self.bad = self.cache.bad
        self.features: dict[str, Features] = {}

    @property
    def facts(self) -> list[str]:
        """What a log says of the images."""
        cache, name = self.cache, self.data.name
        how, where = "found" if cache.was_there else "decoded", f"cache {cache.folder}" if cache.folder else "memory"
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
        self, records: Sequence[Record], batch_size: int, patches_of: Callable[[np.ndarray], Patches],
        share: tuple[int, int] = (0, 1)
    ) -> PatchBatches:  # fmt: skip
        """Batches of the patches that `patches_of(sizes)` chooses in these images, of one split; of their features,
        where `add_features` has made them. share: as of PatchBatches."""
        images, mos = [self.cache.index[record.path] for record in records], [record.score for record in records]
        patches, features = patches_of(self.cache.sizes[images]), self.features.get(records[0].split)
        return PatchBatches(self.cache, images, mos, patches, batch_size, features, share)

    def add_features(self, split: str, batches: PatchBatches, width: int, dtype: str, encoder: Mapping) -> Features:
        """Features of the split's patches, `width` values each, still to be filled. encoder: all that they depend on
        beside these patches."""
        depends_on = {"images": batches.images.tolist(), "patches": batches.patches.digest(), **encoder}
        self.features[split] = Features(self.cache, split, (len(batches.patches), width), dtype, depends_on)
        return self.features[split]


def drop_bad_images(sets: Collection[DecodedSet], skip: bool) -> str:
    """What a log says of the files that cannot be read, "" without any. Raises UserError unless they may be skipped."""
    bad = {path: f"{path}: {reason}" for each in sets for path, reason in each.bad.items()}
    listed = "; ".join(bad[path] for path in sorted(bad))
    text = f"{len(bad)} of {sum(len(each.cache) for each in sets)} images cannot be read: {listed}"
    if bad and not skip:
        raise UserError(f"{text} (--skip_bad_images drops them)")
    return text if bad else ""


def fitting_workers(wanted: int, batch_bytes: int) -> tuple[int, str]:
    """(how many of the wanted processes have room for their batches, "" or why not all): each holds two batches of
    `batch_bytes` in shared memory (Docker gives 64 MB), and some twenty open files; one batch more is in use."""
    limits = [(wanted, "")]
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        fitting = int(0.9 * free / max(batch_bytes, 1) - 1) // 2
        limits.append((fitting, f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free"))
    with contextlib.suppress(ImportError, ValueError, OSError):  # another system
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limits += [((hard - 100) // 20, f"{hard} files may be open")] if hard >= 0 else []
    number, why = min(limits)
    return max(0, number), f"--workers {wanted}: room for {max(0, number)}, as {why}" if why else ""


def fewer_workers(hardware: Hardware, batch_size: int, patch_size: int) -> str:
    """Where fewer processes than wanted have room for batches of patches: how many, and why; else ""."""
    return fitting_workers(hardware.workers, 3 * batch_size * patch_size**2)[1]


@contextlib.contextmanager
def workers_watched() -> Iterator[None]:
    """A process that cuts patches and dies or hangs becomes a UserError."""
    try:
        yield
    except (RuntimeError, OSError) as problem:
        said = str(problem)
        ends = {
            "gave nothing": said.startswith("DataLoader timed out"), "died": said.startswith("DataLoader worker"),
            "opened too many files": "ancdata" in said or "Too many open files" in said,
        }  # fmt: skip
        if (how := next((how for how, so in ends.items() if so), None)) is None:
            raise
        hint = "--workers 0 cuts them in the run's own, --resume auto goes on"
        raise UserError(f"a process that cuts patches {how} ({said.splitlines()[0]}); {hint}") from None


def make_loader(batches: PatchBatches, hardware: Hardware, start: int = 0, stride: int = 1) -> Iterable[dict]:
    """The batches from number `start` on, each or every `stride`-th, in order, cut by `hardware.workers` processes (0:
    in this one), or as many of them as have room. Crops of images that lie on the GPU are cut there, by this process,
    whatever `workers` says."""
    numbers = range(start, len(batches), stride)
    if batches.on_device:
        return (batches[b] for b in numbers)
    workers = fitting_workers(min(hardware.workers, len(numbers)), batches.bytes)[0]
    processes: Any = dict(num_workers=workers, pin_memory=hardware.device.type == "cuda")
    if workers:
        processes |= dict(worker_init_fn=_leave_signals_to_the_run, timeout=WORKER_SECONDS)
    return torch.utils.data.DataLoader(batches, batch_size=None, sampler=numbers, **processes)


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the run decides when its workers stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
