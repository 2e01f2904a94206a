"""What is done to training patches, and to no others: a stage of the training step.
An augmentation draws what it does to each patch on the CPU, from the epoch's own generator, and is applied to the
batch on the device. `AUGMENTATIONS` names them; a batch holds what was drawn under the augmentation's name."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from reading.records import Record


class HorizontalFlip:
    """Mirrors half of the patches."""

    def draw(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """Whether each of `number` patches is mirrored: bool (number,)."""
        return rng.random(number) < 0.5

    def __call__(self, patches: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """Patches (N, P, P, 3) of any type, flip (N,) -> patches."""
        return torch.where(flip[:, None, None, None], patches.flip(2), patches)


AUGMENTATIONS = {"hflip": HorizontalFlip()}
DEFAULT = ("hflip",)


def draw(names: Iterable[str], rng: np.random.Generator, number: int) -> dict[str, np.ndarray]:
    """What each of these augmentations, but `none`, does to `number` patches: arrays (number, …)."""
    return {name: AUGMENTATIONS[name].draw(rng, number) for name in names if name != "none"}


def augmented(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The batch's patches uint8 (N, P, P, 3) after all augmentations that were drawn for it."""
    patches = batch["patches"]
    for name, augmentation in AUGMENTATIONS.items():
        if name in batch:
            patches = augmentation(patches, batch[name])
    return patches


def label_noise(records: Sequence[Record], score_range: tuple[float, float], strength: float) -> np.ndarray:
    """The standard deviation of the noise on each record's MOS: `strength` standard errors where it is known, else
    per cent of the set's score range."""
    low, high = score_range
    return strength * np.array([(high - low) / 100 if r.error is None else r.error for r in records])
