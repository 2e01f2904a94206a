"""The public code's name for what makes batches of patches.

Each name is imported from the module where it is written.
"""

from hyperiqa.training.batches import DecodedSet, PatchBatches, make_loader
from hyperiqa.training.patches import Patches, test_patches, train_patches

__all__ = ["DecodedSet", "PatchBatches", "Patches", "make_loader", "test_patches", "train_patches"]
