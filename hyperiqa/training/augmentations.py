"""What is done to training patches and their MOS only: a stage of the training step.

An augmentation draws what it does to each patch on the CPU, from the epoch's own generator, and is
applied to the batch on the device: called with the patches uint8 (N, P, P, 3) and with what was
drawn (N, …), it returns the patches. Flips and turns take patches of any type. `AUGMENTATIONS`
names them in the order of drawing and applying. A batch holds what was drawn for an augmentation
under its name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from hyperiqa.datasets.records import Record


class Flip:
    """Mirrors half of the patches along an axis: 2, left to right; 1, upside down."""

    def __init__(self, axis: int):
        self.axis = axis

    def draw(self, rng: np.random.Generator, number: int, strength: float) -> np.ndarray:
        """Whether each of `number` patches is mirrored: bool (number,)."""
        return rng.random(number) < 0.5

    def __call__(self, patches: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        return torch.where(flip[:, None, None, None], patches.flip(self.axis), patches)


class Turns:
    """Turns each patch by 0, 90, 180 or 270 degrees."""

    def draw(self, rng: np.random.Generator, number: int, strength: float) -> np.ndarray:
        """How many quarter turns each of `number` patches makes: (number,)."""
        return rng.integers(0, 4, number)

    def __call__(self, patches: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        # All patches are turned, and `where` picks: indexing by `turns` would make the host wait
        # for the device. A patch that was picked matches no later k.
        for k in (1, 2, 3):
            patches = torch.where(
                (turns == k)[:, None, None, None], patches.rot90(k, (1, 2)), patches
            )
        return patches


class Color:
    """Changes brightness, contrast and saturation by up to the share `strength`.

    The three are torchvision's.
    """

    def draw(self, rng: np.random.Generator, number: int, strength: float) -> np.ndarray:
        """A factor for each of the three: (number, 3)."""
        return (1 + strength * rng.uniform(-1, 1, (number, 3))).astype(np.float32)

    def __call__(self, patches: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        changed = []
        for patch, (brightness, contrast, saturation) in zip(
            patches.permute(0, 3, 1, 2), factors.tolist()
        ):
            patch = tv.adjust_brightness(patch, brightness)
            patch = tv.adjust_contrast(patch, contrast)
            changed.append(tv.adjust_saturation(patch, saturation))
        return torch.stack(changed).permute(0, 2, 3, 1)


class Blur:
    """Blurs half of the patches by a Gaussian of up to ten times `strength` pixels."""

    def draw(self, rng: np.random.Generator, number: int, strength: float) -> np.ndarray:
        """The Gaussian's sigma in pixels, 0: no blur: (number,)."""
        return (10 * strength * rng.random(number) * (rng.random(number) < 0.5)).astype(np.float32)

    def __call__(self, patches: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        blurred = []
        for patch, sigma in zip(patches.permute(0, 3, 1, 2), sigmas.tolist()):
            if sigma > 0:
                # Three sigma to each side hold all but 0.3 % of the Gaussian.
                patch = tv.gaussian_blur(patch, 2 * int(np.ceil(3 * sigma)) + 1, sigma)
            blurred.append(patch)
        return torch.stack(blurred).permute(0, 2, 3, 1)


# A new one goes to the end, so that those before it draw what they always drew.
AUGMENTATIONS: dict[str, Any] = {
    "hflip": Flip(2),
    "vflip": Flip(1),
    "rot90": Turns(),
    "color": Color(),
    "blur": Blur(),
}
DEFAULT = {"hflip": 1.0}


def draw(
    strengths: Mapping[str, float], rng: np.random.Generator, number: int
) -> dict[str, np.ndarray]:
    """What each of the named augmentations, except `none`, does to `number` patches.

    Returns arrays (number, …) by the names of the augmentations.
    """
    return {
        name: augmentation.draw(rng, number, strengths[name])
        for name, augmentation in AUGMENTATIONS.items()
        if name in strengths
    }


def augmented(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The batch's patches uint8 (N, P, P, 3) after all augmentations that were drawn for it."""
    patches = batch["patches"]
    for name, augmentation in AUGMENTATIONS.items():
        if name in batch:
            patches = augmentation(patches, batch[name])
    return patches


def label_noise(
    records: Sequence[Record], score_range: tuple[float, float], strength: float
) -> np.ndarray:
    """Standard deviations of the noise on the records' MOS.

    They are `strength` standard errors where those are known, else % of the score range.
    """
    low, high = score_range
    # None, where the error is not known, becomes nan.
    errors = np.array([record.error for record in records], float)
    return strength * np.where(np.isnan(errors), (high - low) / 100, errors)


def vote_deviations(records: Sequence[Record]) -> np.ndarray:
    """The standard deviations of the records' votes (N,), in units of their scores.

    An image without one, or with votes that are all the same, has the root mean square of the
    others. At least one must have some.
    """
    deviations = np.array([record.deviation for record in records], float)
    known = deviations > 0
    return np.where(known, deviations, np.sqrt(np.mean(deviations[known] ** 2)))


def draw_mixing(
    rng: np.random.Generator, number: int, mixup: float, cutmix: float, side: int
) -> dict[str, np.ndarray]:
    """How each patch is mixed with the one before it in its batch, and the first with the last.

    mixup, cutmix: parameters of the Beta distributions of the share that is kept; 0: never. With
    both, each mixes half of the patches; with neither, the result is {}. Else it holds:

    - `blend` (number,): what is kept of each pixel (Zhang et al., "mixup", ICLR 2018);
    - `box` (number, 4): top, bottom, left and right of what the other patch covers (Yun et al.,
      "CutMix", ICCV 2019);
    - `share` (number,): what is kept of the MOS.
    """
    if not (mixup or cutmix):
        return {}
    is_cut = np.zeros(number, bool)
    if cutmix:
        is_cut = rng.random(number) < (0.5 if mixup else 1)
    # Where a parameter is 0, no patch uses it, but NumPy refuses it: 1 stands in.
    beta = np.where(is_cut, cutmix or 1, mixup or 1)
    keep = rng.beta(beta, beta)
    # The box's centre is anywhere in the patch, and its sides are cut at the patch's.
    half = np.where(is_cut, side * np.sqrt(1 - keep) / 2, 0)
    y, x = rng.uniform(0, side, (2, number))
    edges = np.stack([y - half, y + half, x - half, x + half], 1)
    box = edges.round().astype(np.int64).clip(0, side)
    covered = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / side**2
    return {
        "blend": np.where(is_cut, 1, keep).astype(np.float32),
        "box": box,
        "share": np.where(is_cut, 1 - covered, keep).astype(np.float32),
    }


def mixed(images: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Images (N, 3, P, P) after the mixing that was drawn for the batch.

    Of 2N images, the last N are mixed into the first N: a process has only a part of the batch, so
    its images are followed by the partners that other processes have.
    """
    if "blend" not in batch:
        return images
    number = len(batch["blend"])
    if len(images) == number:
        partners = images.roll(1, 0)
    else:
        images, partners = images.split(number)
    place = torch.arange(images.shape[-1], device=images.device)
    top, bottom, left, right = batch["box"].T[:, :, None]
    rows = (place >= top) & (place < bottom)
    columns = (place >= left) & (place < right)
    blended = torch.lerp(partners, images, batch["blend"][:, None, None, None])
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], partners, blended)


def trained_mos(mos: np.ndarray, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    """The MOS (N,) that a batch is trained on, with the noise and the mixing drawn for it."""
    if "label_noise" in drawn:
        mos = mos + drawn["label_noise"]
    if "share" in drawn:
        mos = drawn["share"] * mos + (1 - drawn["share"]) * np.roll(mos, 1)
    return mos
