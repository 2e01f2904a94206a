"""From image files to batches of patches: decoding, the image cache, crop positions, loaders.

Everything random is addressed: an epoch's order, crops and flips are a pure function of (seed, epoch),
so workers, caches and devices change nothing. Patches travel as uint8 (N, P, P, 3), and are flipped and
normalised where the model is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from filelock import FileLock, Timeout
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from checkpoints import write_whole
from options import UserError, parse_resize

try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:  # deprecated in torchvision 0.29: without it Pillow decodes, to the same pixels but slower
    decode_image = None

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TORCHVISION_READS = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L"), ("PNG", "I;16")}
# More pixels than any camera's: a file that claims them is broken, or meant to fill the memory.
MAX_PIXELS = 400_000_000
Image.MAX_IMAGE_PIXELS = None  # our own limit, above, is checked before any pixel is decoded
# The public code draws its random test crops anew in every run; ours come from this seed.
TEST_CROP_SEED = 20
SCORE_BATCH = 64
CACHE_FORMAT = 1  # raise it when decoding or resizing changes
COPY_BYTES = 2**28


# ---------------------------------------------------------------------------------------------- decoding
def read_header(path: Path, exif_rotate: bool = False) -> tuple[int, int]:
    """(height, width) of an image file without decoding it. Raises ValueError with the reason."""
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        with Image.open(path) as image:
            width, height = image.size
            if exif_rotate and _orientation(image) >= 5:
                width, height = height, width
    except UnidentifiedImageError:
        raise ValueError("not an image that Pillow can read") from None
    except OSError as problem:
        raise ValueError(problem.strerror or str(problem)) from None
    except SyntaxError as problem:
        raise ValueError(str(problem)) from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"absurdly large: {width}x{height} pixels")
    if width * height == 0:
        raise ValueError(f"no pixels: {width}x{height}")
    return height, width


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; from 5 on, height and width change places."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _decode_pillow(path: Path, exif_rotate: bool) -> np.ndarray:
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")
        turned = ImageOps.exif_transpose(image) if exif_rotate else image
        if turned.mode.startswith(("I", "F")):  # 16-bit grey, which convert("RGB") would clip
            grey = np.asarray(turned, np.float64)
            grey = np.clip(np.rint(grey / 257 if turned.mode.startswith("I") else grey), 0, 255)
            return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
        if turned.has_transparency_data:  # on white, as viewers show it: what hides below is arbitrary
            rgba = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.array(turned.convert("RGB"))


def decode(path: Path, exif_rotate: bool = False) -> np.ndarray:
    """An image file as RGB uint8 (H, W, 3), as a viewer shows it. Raises ValueError with the reason.

    16-bit values are divided by 257, transparency lies on white. JPEG and PNG go through torchvision,
    bit-identical to Pillow and faster; other formats, and what it has no plain RGB for (CMYK, palettes,
    transparency), go through Pillow. exif_rotate: turn as the file's EXIF orientation says.
    """
    try:
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
            upright = not exif_rotate or _orientation(image) == 1
        if decode_image and upright and (kind, mode) in TORCHVISION_READS:
            data = torch.from_numpy(np.fromfile(path, np.uint8))
            pixels = decode_image(data, ImageReadMode.UNCHANGED)
            if pixels.dtype == torch.uint16:
                pixels = ((pixels.int() + 128) // 257).to(torch.uint8)
            if pixels.shape[0] in (1, 3):
                return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        return _decode_pillow(path, exif_rotate)
    except (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        # torchvision says where in its sources it stopped; its last words are the reason.
        raise ValueError(str(problem).splitlines()[0].rpartition(", ")[2] or type(problem).__name__) from None


def resized_size(height: int, width: int, resize: str, min_side: int) -> tuple[int, int]:
    """(height, width) that an image has in the cache: `resize` as in `--resize`, then at least `min_side`."""
    target = parse_resize(resize)
    if isinstance(target, tuple):
        height, width = target
    elif target is not None:
        short = min(height, width)
        height, width = (max(1, int(target * side / short)) for side in (height, width))
    if min(height, width) < min_side:
        short = min(height, width)
        height, width = (max(min_side, int(min_side * side / short)) for side in (height, width))
    return height, width


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (height, width, 3), bilinear with antialiasing, as Pillow's BILINEAR."""
    if image.shape[:2] == (height, width):
        return image
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return TF.resize(pixels, [height, width], antialias=True).permute(1, 2, 0).contiguous().numpy()


# ----------------------------------------------------------------------------------------------- cache
class ImageCache:
    """The resized images of a data set as uint8, one after the other in one buffer: a mapped file, or memory.

    `cache[i]` is image i as (H, W, 3); `sizes` (n, 2) holds heights and widths, `upscaled` how many images
    were smaller than `min_side`, `index` the number of each path, `bad` why a file could not be read (its
    image is empty or unfinished). With `cache_dir` the images lie in a file there, keyed by everything that
    they depend on, which the next run maps into memory instead of decoding; without, they are decoded into
    memory. Raises UserError where the cache cannot be written.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        resize: str,
        min_side: int,
        cache_dir: Path | None = None,
        exif_rotate: bool = False,
    ):
        self.name, self.paths, self.resize, self.min_side = name, list(paths), resize, min_side
        self.exif_rotate = exif_rotate
        self.index = {path: i for i, path in enumerate(self.paths)}
        self.on_gpu: torch.Tensor | None = None
        if cache_dir is None:
            self.folder = None
            self._build(lambda size: np.empty(size, np.uint8))
        else:
            self.files = self._source_files()
            settings = [CACHE_FORMAT, resize, min_side, exif_rotate, self.files]
            key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
            self.folder = cache_dir / f"{name}_{resize}_{key[:16]}"
            self.was_there = self._open() or self._build_in_folder()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        height, width = self.sizes[i]
        return self.buffer[self.offsets[i] : self.offsets[i + 1]].reshape(height, width, 3)

    @property
    def bytes(self) -> int:
        return int(self.offsets[-1])

    def crops(self, images: np.ndarray, top: np.ndarray, left: np.ndarray, side: int) -> torch.Tensor:
        """Crops side x side at (top, left) of the images: uint8 (n, side, side, 3), where the cache lies."""
        places = zip(images.tolist(), top.tolist(), left.tolist(), strict=True)
        if self.on_gpu is not None:
            return torch.stack([self._gpu_image(i)[y : y + side, x : x + side] for i, y, x in places])
        out = np.empty((len(images), side, side, 3), np.uint8)
        for k, (i, y, x) in enumerate(places):
            out[k] = self[i][y : y + side, x : x + side]
        return torch.from_numpy(out)

    def to_gpu(self, device: torch.device) -> None:
        """Copy all images to the device, from where crops are taken from now on."""
        self.on_gpu = torch.empty(self.bytes, dtype=torch.uint8, device=device)
        for start in range(0, self.bytes, COPY_BYTES):  # piecewise: the mapped file need not fit into memory
            piece = torch.from_numpy(np.array(self.buffer[start : start + COPY_BYTES]))
            self.on_gpu[start : start + len(piece)] = piece.to(device)

    def _gpu_image(self, i: int) -> torch.Tensor:
        height, width = self.sizes[i].tolist()
        return self.on_gpu[self.offsets[i] : self.offsets[i + 1]].view(height, width, 3)

    # Building: the headers give all sizes, the sizes the place of every image, and all cores fill the places.
    def _build(self, allocate: Callable[[int], np.ndarray]) -> None:
        self.was_there = False
        self.bad: dict[Path, str] = {}
        with ThreadPoolExecutor(_cores()) as pool:
            headers = list(pool.map(partial(self._tried, read_header), self.paths))
            sizes = [resized_size(*size, self.resize, self.min_side) if size else (0, 0) for size in headers]
            self._set_sizes(sizes)
            plain = [resized_size(*size, self.resize, 1) if size else (0, 0) for size in headers]
            self.upscaled = int((np.array(plain) != self.sizes).any(1).sum())
            self.buffer = allocate(self.bytes)
            jobs = pool.map(self._fill, range(len(self)), self.paths)
            try:
                for _ in tqdm(jobs, f"Decoding {self.name}", len(self), unit="image", leave=False):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _tried(self, work: Callable, path: Path):
        """`work(path)`; a ValueError is noted as the path's, so that all bad files are found at once."""
        try:
            return work(path, self.exif_rotate)
        except ValueError as problem:
            self.bad[path] = str(problem)

    def _fill(self, i: int, path: Path) -> None:
        if path not in self.bad and (image := self._tried(decode, path)) is not None:
            self[i][:] = resize_image(image, *self.sizes[i])

    def _set_sizes(self, sizes: Sequence[Sequence[int]]) -> None:
        self.sizes = np.array(sizes, np.int64).reshape(-1, 2)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])

    # The file: a folder with the images and their index, which appears under its name only when it is complete.
    def _source_files(self) -> list[tuple[str, int, int]]:
        return [(str(path.resolve()), *_size_and_time(path)) for path in self.paths]

    def _open(self) -> bool:
        """Map the finished cache; False if there is none."""
        try:
            index = json.loads((self.folder / "index.json").read_text())
            self._set_sizes(index["sizes"])
            self.upscaled, self.bad = index["upscaled"], {Path(p): reason for p, reason in index["bad"].items()}
            # Mode c: a stray write would change this process's view, never the file.
            self.buffer = np.memmap(self.folder / "images.u8", np.uint8, "c", shape=(self.bytes,))
        except (OSError, ValueError, KeyError):
            return False
        return True

    def _build_in_folder(self) -> bool:
        """Build the cache, or wait for the run that is building it; returns whether another run built it."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder.with_name(f".{self.folder.name}.lock"))
            try:
                lock.acquire(blocking=False)
            except Timeout:
                print(f"{self.name}: waiting for another run that is decoding the same images", file=sys.stderr)
                lock.acquire()
            try:
                if self._open():
                    return True
                self._build_under_lock()
            finally:
                lock.release()
        except OSError as problem:
            raise UserError(
                f"{problem.filename or self.folder}: the image cache cannot be written: {problem.strerror}; "
                "give --cache_dir PATH or --no_cache"
            ) from None
        if not self._open():
            raise RuntimeError(f"{self.folder} cannot be opened though it was just built")
        return False

    def _build_under_lock(self) -> None:
        """As no one else is building, half-built folders are those of killed runs."""
        temporary = self.folder.with_name(f".{self.folder.name}.tmp")
        for leftover in (temporary, self.folder):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        try:
            self._build_file(temporary)
            temporary.rename(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove_stale()

    def _build_file(self, folder: Path) -> None:
        def allocate(size: int) -> np.ndarray:
            with (folder / "images.u8").open("wb") as file:
                # Real blocks, now: writing to a mapped file on a full disk would kill the process.
                if hasattr(os, "posix_fallocate") and size:
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            return np.memmap(folder / "images.u8", np.uint8, "r+", shape=(size,))

        self._build(allocate)
        self.buffer.flush()
        bad = {str(path): reason for path, reason in self.bad.items()}
        index = {"sizes": self.sizes.tolist(), "upscaled": self.upscaled, "bad": bad, "files": self.files}
        write_whole(folder / "index.json", lambda file: file.write(json.dumps(index).encode()))
        del self.buffer

    def _remove_stale(self) -> None:
        """Delete this data set's caches whose source files have changed or gone since they were built."""
        for folder in self.folder.parent.glob(f"{self.name}_{self.resize}_*"):
            try:
                files = json.loads((folder / "index.json").read_text())["files"]
                fresh = all(_size_and_time(Path(path)) == (size, time) for path, size, time in files)
            except (OSError, ValueError, KeyError):
                fresh = False
            if not fresh:
                shutil.rmtree(folder, ignore_errors=True)


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and nanoseconds; (-1, -1) for what is gone, which decoding will then report."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def put_on_gpu(caches: Iterable[ImageCache], choice: str, device: torch.device) -> str:
    """Move the caches to the GPU where `--cache_device` (auto, cpu, cuda) says so; returns where they are and why.

    auto: on a CUDA device on which they take at most half of the free memory.
    """
    caches = list(caches)
    if device.type != "cuda" or choice == "cpu":
        return "cpu"
    need, free = sum(cache.bytes for cache in caches), torch.cuda.mem_get_info(device)[0]
    if choice == "auto" and need > free / 2:
        return f"cpu ({need / 2**30:.1f} GiB would take over half of the {free / 2**30:.1f} GiB free on the GPU)"
    try:
        for cache in caches:
            cache.to_gpu(device)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"--cache_device cuda: {need / 2**30:.1f} GiB of images do not fit on {device}") from None
    return str(device)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------- patches
@dataclass(frozen=True)
class Patches:
    """Where patches lie: image number, top, left and whether flipped, each (n,), in the order of their use."""

    image: np.ndarray
    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


def addressed_seed(*address: int) -> np.random.SeedSequence:
    """The seed of an address such as (seed, epoch, step); different addresses are independent."""
    return np.random.SeedSequence(address)


def train_patches(sizes: np.ndarray, patch_size: int, per_image: int, seed: int, epoch: int) -> Patches:
    """`per_image` random crops with random flips of each image, all shuffled together: a function of (seed, epoch).

    sizes: (n, 2) heights and widths. `seed` is the round's own, so round 2 of seed 7 is round 1 of seed 8.
    """
    rng = np.random.Generator(np.random.PCG64(addressed_seed(seed, epoch)))
    image = rng.permutation(np.repeat(np.arange(len(sizes)), per_image))
    room = sizes[image] - patch_size + 1
    top, left = (rng.random((len(image), 2)) * room).astype(np.int64).T
    return Patches(image, top, left, rng.random(len(image)) < 0.5)


def _grid(height: int, width: int, patch_size: int, number: int) -> list[tuple[int, int]]:
    """(top, left) of `number` crops in the rows x columns that suit the image's shape best; coinciding ones once."""
    shapes = [(rows, number // rows) for rows in range(1, number + 1) if number % rows == 0]
    rows, columns = min(shapes, key=lambda s: abs(np.log(s[0] / s[1]) - np.log(height / width)))

    def positions(room: int, n: int) -> list[int]:
        return sorted({round(x) for x in (np.linspace(0, room, n) if n > 1 else [room / 2])})

    return [(t, lft) for t in positions(height - patch_size, rows) for lft in positions(width - patch_size, columns)]


def test_patches(sizes: np.ndarray, patch_size: int, crop: str = "center", number: int = 25) -> Patches:
    """The distinct crops that an image is scored on, image by image.

    center: one (all `number` would be the same); grid: `number` on a regular grid; random: `number` from a
    fixed seed, the same in every run.
    """
    rows = []
    for i, (height, width) in enumerate(sizes):
        room = np.array([height, width]) - patch_size
        if crop == "center":
            places = [tuple(round(r / 2) for r in room)]
        elif crop == "grid":
            places = _grid(height, width, patch_size, number)
        else:
            rng = np.random.Generator(np.random.PCG64(addressed_seed(TEST_CROP_SEED, i)))
            places = [tuple(p) for p in (rng.random((number, 2)) * (room + 1)).astype(np.int64)]
        rows += [(i, top, left) for top, left in places]
    image, top, left = np.array(rows, np.int64).reshape(-1, 3).T
    return Patches(image, top, left, np.zeros(len(image), bool))


class PatchBatches(torch.utils.data.Dataset):
    """Batch b of a list of patches: `patches` uint8 (B, P, P, 3), `flip` (B,), `mos` (B,), `image` (B,).

    images: cache numbers of the images that `patches.image` counts; mos: their scores. The last, smaller
    batch is kept.
    """

    def __init__(
        self,
        cache: ImageCache,
        images: Sequence[int],
        mos: Sequence[float],
        patches: Patches,
        patch_size: int,
        batch_size: int,
    ):
        self.cache, self.images, self.patches = cache, np.asarray(images), patches
        self.mos = np.asarray(mos, np.float32)
        self.patch_size, self.batch_size = patch_size, batch_size

    def __len__(self) -> int:
        return -(-len(self.patches) // self.batch_size)

    def __getitem__(self, b: int) -> dict[str, torch.Tensor]:
        rows = slice(b * self.batch_size, (b + 1) * self.batch_size)
        image = self.patches.image[rows]
        return {
            "patches": self.cache.crops(
                self.images[image], self.patches.top[rows], self.patches.left[rows], self.patch_size
            ),
            "flip": torch.from_numpy(self.patches.flip[rows]),
            "mos": torch.from_numpy(self.mos[image]),
            "image": torch.from_numpy(image),
        }


def make_loader(batches: PatchBatches, workers: int, pin_memory: bool, start: int = 0) -> Iterable[dict]:
    """The batches from number `start` on, in order, cut by `workers` processes (0: in this one).

    Crops of images that lie on the GPU are cut there, by this process, whatever `workers` says.
    """
    if batches.cache.on_gpu is not None:
        return (batches[b] for b in range(start, len(batches)))
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=min(workers, max(len(batches) - start, 0)),
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_run,
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the run decides when its workers stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def to_model_input(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Patches uint8 (N, P, P, 3) on any device -> flipped, ImageNet-normalised fp32 (N, 3, P, P), channels last."""
    patches = batch["patches"].permute(0, 3, 1, 2)
    patches = torch.where(batch["flip"][:, None, None, None], patches.flip(3), patches)
    mean, std = (torch.tensor(v, device=patches.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (patches.float() / 255 - mean) / std
