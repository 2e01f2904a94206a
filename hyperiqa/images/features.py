"""The stage maps of a frozen encoder, computed once: for patches that stay the same in all epochs they are all that
training and testing look at. Averaged to the sides at which the LDA and the fusion look at them, they are a row of F
values per patch, in a mapped file beside the image cache, or in memory."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import write_whole
from hyperiqa.images.build_once import build_once, half_built
from hyperiqa.images.cache import ImageCache

FEATURE_FORMAT = 1  # raise it when what a row holds changes
DTYPES: dict[str, type[np.floating]] = {"fp16": np.float16, "fp32": np.float32}
Compute = Callable[
    [int], Iterator[np.ndarray]
]  # rows (n, F) in fp32 from a number of patch on, batch by batch


class Features:
    """Rows of F values for a list of patches; `features[rows]` is a tensor (n, F).
    depends_on: all that the rows depend on beside the images: patches, encoder, layout; it becomes the key."""

    def __init__(
        self, cache: ImageCache, split: str, shape: tuple[int, int], dtype: str, depends_on: Mapping
    ):
        self.cache, self.split, self.shape, self.dtype = cache, split, shape, dtype
        self.bytes = int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
        self.folder: Path | None = None
        self.data: Any = None
        if cache.folder is not None:
            about = [FEATURE_FORMAT, cache.folder.name, split, shape, dtype, dict(depends_on)]
            key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
            self.folder = cache.folder.with_name(f"{cache.name}_features_{split}_{key[:16]}")
        self.was_there = self.folder is not None and self._open()

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.data[rows])

    def fill(self, compute: Compute, batch: int) -> None:
        """Compute the rows, unless they are there or another run computes them. What a stopped run had computed stays.
        batch: rows that `compute` makes at a time. Raises UserError."""
        if self.was_there:
            return
        if self.folder is None:
            self.data, done = np.empty(self.shape, DTYPES[self.dtype]), 0
            for rows in compute(0):
                self.data[done : (done := done + len(rows))] = self._narrowed(rows)
            return
        waiting = f"{self.cache.name}: waiting for another run that is computing the same features"
        build = partial(self._build, compute, batch)
        self.was_there = not build_once(
            self.folder, self._open, build, waiting, "feature cache", goes_on=True
        )
        if not self.was_there:
            self._remove_stale()

    @property
    def missing(self) -> int:
        """Bytes that the disk has still to take."""
        if self.was_there or self.folder is None:
            return 0
        started = half_built(self.folder) / "features.bin"
        return self.bytes - (started.stat().st_size if started.exists() else 0)

    def _narrowed(self, rows: np.ndarray) -> np.ndarray:
        limit = np.finfo(DTYPES[self.dtype]).max
        if not (largest := np.abs(rows).max()) <= limit:
            found = f"values reach {largest:g}, expected at most {limit:g}"
            raise UserError(
                f"--feature_dtype {self.dtype}: {found}; give fp32, or none to go through the pixels"
            )
        return rows.astype(DTYPES[self.dtype])

    def _build(self, compute: Compute, batch: int, folder: Path) -> None:
        with (folder / "features.bin").open("ab") as file:
            row = self.bytes // self.shape[0]
            done = file.tell() // (row * batch) * batch
            file.truncate(done * row)
            try:
                for rows in compute(done):
                    file.write(self._narrowed(rows).tobytes())
            except UserError:
                shutil.rmtree(folder)  # which would fail again
                raise
            file.flush()
            os.fsync(file.fileno())
        write_whole(folder / "index.json", json.dumps({"images": self.cache.folder.name}))

    def _open(self) -> bool:
        try:
            json.loads((self.folder / "index.json").read_text())
            self.data = np.memmap(
                self.folder / "features.bin", DTYPES[self.dtype], "c", shape=self.shape
            )
        except (OSError, ValueError):
            return False
        return True

    def _remove_stale(self) -> None:
        """Delete this data set's features of images whose cache is gone, because they changed."""
        for folder in self.folder.parent.glob(f"{self.cache.name}_features_*"):
            try:
                fresh = (
                    folder.parent / json.loads((folder / "index.json").read_text())["images"]
                ).is_dir()
            except (OSError, ValueError, KeyError):
                fresh = False
            if not fresh:
                shutil.rmtree(folder, ignore_errors=True)


def check_room(parts: Mapping[str, Features]) -> list[str]:
    """What a log says of features before they are computed. Raises UserError where the disk has no room for them."""
    need, folder = sum(each.missing for each in parts.values()), next(iter(parts.values())).folder
    if need and need > (free := shutil.disk_usage(folder.parent).free):
        raise UserError(
            f"the features need {need / 1e9:.1f} GB in {folder.parent}, which has {free / 1e9:.1f} GB free; "
            "give --cache_dir PATH, fewer --train_patch_num, or --feature_dtype none to go through the pixels"
        )
    facts = []
    for name, each in parts.items():
        how = "found" if each.was_there else "to compute"
        size = f"{each.shape[0]} patches of {each.shape[1]} values in {each.dtype}, {each.bytes / 1e9:.2f} GB"
        facts.append(f"Features of {name}: {size}, {how} in {each.folder or 'memory'}")
    return facts
