"""Where patches lie in images, and in which order they are used."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hyperiqa.training.augmentations import DEFAULT, draw


@dataclass(frozen=True)
class Patches:
    """Where patches lie: image number, top and left, each (n,), in the order of their use.

    drawn: augmentation -> what it does to each patch, (n, …).
    address: (seed, epoch) of training patches.
    row: the number of each patch among those of epoch 0, for patches that stay the same in all
    epochs; None for patches that are drawn anew.
    """

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
        # By name: in which order the augmentations were drawn does not matter.
        arrays = [self.image, self.top, self.left, *map(self.drawn.get, sorted(self.drawn))]
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
    """Random, augmented crops of each image, all shuffled together: a function of (seed, epoch).

    sizes: (n, 2) heights and widths.
    per_image: the number of crops of every image, or an array with a number for each (n,).
    seed: the seed of the round, so round 2 of seed 7 is round 1 of seed 8.
    augment: name -> strength.
    fixed: take the crops of epoch 0, which is never trained, shuffled anew for this epoch.
    """
    rng = np.random.Generator(np.random.PCG64(addressed_seed(seed, epoch)))
    if fixed and epoch:
        base = train_patches(sizes, patch_size, per_image, seed, 0, augment)
        row = rng.permutation(len(base))
        drawn = {name: values[row] for name, values in base.drawn.items()}
        return Patches(base.image[row], base.top[row], base.left[row], drawn, (seed, epoch), row)
    image = rng.permutation(np.repeat(np.arange(len(sizes)), per_image))
    room = sizes[image] - patch_size + 1
    top, left = (rng.random((len(image), 2)) * room).astype(np.int64).T
    # The augmentations come last: with others, order and crops stay the same.
    return Patches(image, top, left, draw(augment, rng, len(image)), (seed, epoch))


def _spread(room: int, number: int) -> list[int]:
    """Evenly spaced offsets in 0..room without repetitions; a single one lies in the middle."""
    offsets = np.linspace(0, room, number) if number > 1 else [room / 2]
    return sorted({round(offset) for offset in offsets})


def _grid(height: int, width: int, patch_size: int, number: int) -> list[tuple[int, int]]:
    """(top, left) of `number` crops in the rows x columns that suit the image's shape best.

    Of crops that coincide, only one is returned.
    """
    shapes = [(rows, number // rows) for rows in range(1, number + 1) if number % rows == 0]
    aspect = np.log(height / width)
    rows, columns = min(shapes, key=lambda shape: abs(np.log(shape[0] / shape[1]) - aspect))
    return list(
        itertools.product(_spread(height - patch_size, rows), _spread(width - patch_size, columns))
    )


def test_patches(
    sizes: np.ndarray, patch_size: int, crop: str = "center", number: int = 25
) -> Patches:
    """The distinct crops that an image is scored on, image by image.

    sizes: (n, 2) heights and widths.
    crop: `center`: one, since all `number` would be the same; `grid`: `number` on a regular grid;
    `random`: `number` from a fixed seed.
    """
    rows = []
    for i, (height, width) in enumerate(sizes):
        if crop == "center":
            places = [(round((height - patch_size) / 2), round((width - patch_size) / 2))]
        elif crop == "grid":
            places = _grid(height, width, patch_size, number)
        else:
            # The public code draws these anew in every run; ours always come from the seed 20. Each
            # image has an address of its own: its crops do not depend on the images before it.
            rng = np.random.Generator(np.random.PCG64(addressed_seed(20, i)))
            room = np.array([height, width]) - patch_size + 1
            places = (rng.random((number, 2)) * room).astype(np.int64)
        rows += [(i, top, left) for top, left in places]
    image, top, left = np.array(rows, np.int64).reshape(-1, 3).T
    return Patches(image, top, left)
