"""Where patches lie in images, and in which order they are used."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hyperiqa.training.augmentations import DEFAULT, draw

TEST_CROP_SEED = (
    20  # the public code draws its random test crops anew in every run; ours come from this seed
)


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
        arrays = [
            self.image,
            self.top,
            self.left,
            *(self.drawn[name] for name in sorted(self.drawn)),
        ]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def addressed_seed(*address: int) -> np.random.SeedSequence:
    """The seed of an address such as (seed, epoch, step); different addresses are independent."""
    return np.random.SeedSequence(address)


def train_patches(
    sizes: np.ndarray,
    patch_size: int,
    per_image: int | np.ndarray,
    seed: int,
    epoch: int,
    augment: Mapping[str, float] = DEFAULT,
    fixed: bool = False,
) -> Patches:
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
    tops, lefts = (
        sorted({round(x) for x in (np.linspace(0, room, n) if n > 1 else [room / 2])})
        for room, n in rooms
    )
    return list(itertools.product(tops, lefts))


def test_patches(
    sizes: np.ndarray, patch_size: int, crop: str = "center", number: int = 25
) -> Patches:
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
