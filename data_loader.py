"""What makes batches of patches, under the public code's file name; each is written in the module that it is imported from."""

from hyperiqa.training.batches import DecodedSet, PatchBatches
from hyperiqa.training.loaders import make_loader
from hyperiqa.training.patches import Patches, test_patches, train_patches

__all__ = ["DecodedSet", "PatchBatches", "Patches", "make_loader", "test_patches", "train_patches"]
