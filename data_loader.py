"""From image files to batches of patches: decoding, the image cache, crop positions, loaders.

Everything random is addressed: an epoch's order, crops and flips are a pure function of (seed, epoch),
so workers, caches and devices change nothing. Patches travel as uint8 (N, P, P, 3), and are flipped and
normalised where the model is.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_image
from tqdm import tqdm

from options import UserError, parse_resize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# More pixels than any camera's: a file that claims them is broken, or meant to fill the memory.
MAX_PIXELS = 400_000_000
Image.MAX_IMAGE_PIXELS = None  # our own limit, above, is checked before any pixel is decoded
# The public code draws its random test crops anew in every run; ours come from this seed.
TEST_CROP_SEED = 20
SCORE_BATCH = 64


# ---------------------------------------------------------------------------------------------- decoding
def read_header(path: Path) -> tuple[int, int]:
    """(height, width) of an image file without decoding it. Raises ValueError with the reason."""
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        with Image.open(path) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise ValueError("not an image that Pillow can read") from None
    except (OSError, SyntaxError) as problem:
        raise ValueError(str(problem)) from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"absurdly large: {width}x{height} pixels")
    if width * height == 0:
        raise ValueError(f"no pixels: {width}x{height}")
    return height, width


def _decode_pillow(path: Path) -> np.ndarray:
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")
        if image.mode.startswith(("I", "F")):  # 16-bit grey, which convert("RGB") would clip
            grey = np.asarray(image, np.float64)
            grey = np.clip(np.rint(grey / 257 if image.mode.startswith("I") else grey), 0, 255)
            return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
        return np.array(image.convert("RGB"))


def decode(path: Path) -> np.ndarray:
    """An image file as RGB uint8 (H, W, 3). 16-bit values are divided by 257. Raises ValueError with the reason.

    JPEG and PNG go through torchvision, bit-identical to Pillow and faster; what it has no plain RGB for
    (CMYK, palettes, transparency) and other formats go through Pillow.
    """
    try:
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
        if (kind, mode) in {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L"), ("PNG", "I;16")}:
            data = torch.from_numpy(np.fromfile(path, np.uint8))
            pixels = decode_image(data, ImageReadMode.UNCHANGED)
            if pixels.dtype == torch.uint16:
                pixels = ((pixels.int() + 128) // 257).to(torch.uint8)
            if pixels.shape[0] in (1, 3):
                return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        return _decode_pillow(path)
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
    """The resized images of a data set as uint8, one after the other in one buffer.

    `cache[i]` is image i as (H, W, 3); `sizes` (n, 2) holds the heights and widths, `upscaled` how many
    images were smaller than `min_side`. Raises UserError naming every file that is no image, and why.
    """

    def __init__(self, name: str, paths: Sequence[Path], resize: str, min_side: int):
        self.index = {path: i for i, path in enumerate(paths)}
        problems: dict[Path, str] = {}
        with ThreadPoolExecutor(_cores()) as pool:
            headers = list(pool.map(partial(_tried, read_header, problems), paths))
            _raise_for_bad_files(name, problems, len(paths))
            self.sizes = np.array([resized_size(*size, resize, min_side) for size in headers], np.int64).reshape(-1, 2)
            self.upscaled = sum(resized_size(*size, resize, 1) != tuple(new) for size, new in zip(headers, self.sizes))
            self.offsets = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])
            self.buffer = np.empty(self.offsets[-1], np.uint8)
            jobs = pool.map(partial(_tried, self._fill, problems), range(len(paths)), paths)
            for _ in tqdm(jobs, f"Decoding {name}", len(paths), unit="image", leave=False):
                pass
        _raise_for_bad_files(name, problems, len(paths))

    def _fill(self, i: int, path: Path) -> None:
        self[i][:] = resize_image(decode(path), *self.sizes[i])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> np.ndarray:
        height, width = self.sizes[i]
        return self.buffer[self.offsets[i] : self.offsets[i + 1]].reshape(height, width, 3)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tried(work, problems: dict[Path, str], *job):
    """Run `work(*job)`; a ValueError is noted under the job's path, so that all bad files are found at once."""
    try:
        return work(*job)
    except ValueError as problem:
        problems[job[-1]] = str(problem)


def _raise_for_bad_files(name: str, problems: dict[Path, str], total: int) -> None:
    if problems:
        listed = "; ".join(f"{path}: {problems[path]}" for path in sorted(problems))
        raise UserError(f"{name}: {len(problems)} of {total} images cannot be read: {listed}")


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
        image, p = self.patches.image[rows], self.patch_size
        out = np.empty((len(image), p, p, 3), np.uint8)
        places = zip(self.images[image], self.patches.top[rows], self.patches.left[rows], strict=True)
        for k, (i, top, left) in enumerate(places):
            out[k] = self.cache[i][top : top + p, left : left + p]
        return {
            "patches": torch.from_numpy(out),
            "flip": torch.from_numpy(self.patches.flip[rows]),
            "mos": torch.from_numpy(self.mos[image]),
            "image": torch.from_numpy(image),
        }


def make_loader(batches: PatchBatches, workers: int, pin_memory: bool, start: int = 0) -> Iterable[dict]:
    """The batches from number `start` on, in order, cut by `workers` processes (0: in this one)."""
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=min(workers, max(len(batches) - start, 0)),
        pin_memory=pin_memory,
    )


def to_model_input(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Patches uint8 (N, P, P, 3) on any device -> flipped, ImageNet-normalised fp32 (N, 3, P, P), channels last."""
    patches = batch["patches"].permute(0, 3, 1, 2)
    patches = torch.where(batch["flip"][:, None, None, None], patches.flip(3), patches)
    mean, std = (torch.tensor(v, device=patches.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (patches.float() / 255 - mean) / std
