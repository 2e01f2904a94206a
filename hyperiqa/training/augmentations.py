"""What is done to training patches and their MOS, and to no others: a stage of the training step. An augmentation draws
what it does to each patch on the CPU, from the epoch's own generator, and is applied to the batch on the device.
`AUGMENTATIONS` names them, in the order of drawing and applying; a batch holds what was drawn by that name."""

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
        """Patches (N, P, P, 3) of any type, flip (N,) -> patches."""
        return torch.where(flip[:, None, None, None], patches.flip(self.axis), patches)


class Turns:
    """Turns each patch by 0, 90, 180 or 270 degrees."""

    def draw(self, rng: np.random.Generator, number: int, strength: float) -> np.ndarray:
        return rng.integers(0, 4, number)

    def __call__(self, patches: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        for k in (1, 2, 3):
            patches = torch.where(
                (turns == k)[:, None, None, None], patches.rot90(k, (1, 2)), patches
            )
        return patches


class Color:
    """Changes brightness, contrast and saturation by up to the share `strength`, as torchvision does."""

    def draw(self, rng: np.random.Generator, number: int, strength: float) -> np.ndarray:
        """A factor of each: (number, 3)."""
        return (1 + strength * rng.uniform(-1, 1, (number, 3))).astype(np.float32)

    def __call__(self, patches: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Patches uint8, factors (N, 3) -> patches."""
        changed = list(patches.permute(0, 3, 1, 2))
        for change, each in zip(
            (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation), factors.T.tolist()
        ):
            changed = [change(patch, factor) for patch, factor in zip(changed, each)]
        return torch.stack(changed).permute(0, 2, 3, 1)


class Blur:
    """Blurs half of the patches by a Gaussian of up to ten times `strength` pixels."""

    def draw(self, rng: np.random.Generator, number: int, strength: float) -> np.ndarray:
        """The Gaussian's sigma in pixels, 0: no blur: (number,)."""
        return (10 * strength * rng.random(number) * (rng.random(number) < 0.5)).astype(np.float32)

    def __call__(self, patches: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        """Patches uint8, sigmas (N,) -> patches."""
        each = zip(patches.permute(0, 3, 1, 2), sigmas.tolist())
        blurred = [
            tv.gaussian_blur(p, 2 * int(np.ceil(3 * s)) + 1, s) if s > 0 else p for p, s in each
        ]
        return torch.stack(blurred).permute(0, 2, 3, 1)


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
    """What each of the named augmentations, but `none`, does to `number` patches: arrays (number, …)."""
    return {
        name: a.draw(rng, number, strengths[name])
        for name, a in AUGMENTATIONS.items()
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
    """Standard deviations of the noise on MOS: `strength` standard errors where known, else % of the score range."""
    low, high = score_range
    return strength * np.array(
        [(high - low) / 100 if r.error is None else r.error for r in records]
    )


def draw_mixing(
    rng: np.random.Generator, number: int, mixup: float, cutmix: float, side: int
) -> dict[str, np.ndarray]:
    """How each patch is mixed with the one before it in its batch, the first with the last; {} where not at all. mixup,
    cutmix: parameters of the Beta distributions of what is kept; 0: never; with both, half of the patches each. `blend`
    (number,): what is kept of each pixel (Zhang et al., "mixup", ICLR 2018); `box` (number, 4): top, bottom, left and
    right of what the other patch covers (Yun et al., "CutMix", ICCV 2019); `share` (number,): that of the MOS."""
    if not (mixup or cutmix):
        return {}
    cut = rng.random(number) < (0.5 if mixup else 1) if cutmix else np.zeros(number, bool)
    beta = np.where(cut, cutmix or 1, mixup or 1)
    keep = rng.beta(beta, beta)
    half = np.where(cut, side * np.sqrt(1 - keep) / 2, 0)
    y, x = rng.uniform(0, side, (2, number))
    box = (
        np.stack([y - half, y + half, x - half, x + half], 1).round().astype(np.int64).clip(0, side)
    )
    covered = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / side**2
    blend, share = np.where(cut, 1, keep), np.where(cut, 1 - covered, keep)
    return {"blend": blend.astype(np.float32), "box": box, "share": share.astype(np.float32)}


def mixed(images: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Images (N, 3, P, P) after the mixing that was drawn for the batch; of 2N, the last are mixed into the first."""
    if "blend" not in batch:
        return images
    number, place = len(batch["blend"]), torch.arange(images.shape[-1], device=images.device)
    images, other = (images, images.roll(1, 0)) if len(images) == number else images.split(number)
    top, bottom, left, right = batch["box"].T[:, :, None]
    rows, columns = (place >= top) & (place < bottom), (place >= left) & (place < right)
    blended = torch.lerp(other, images, batch["blend"][:, None, None, None])
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], other, blended)


def trained_mos(mos: np.ndarray, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    """The MOS (N,) that a batch is trained on: with the noise and mixed as was drawn for it."""
    if "label_noise" in drawn:
        mos = mos + drawn["label_noise"]
    share = drawn.get("share")
    return mos if share is None else share * mos + (1 - share) * np.roll(mos, 1)
