"""The features of a frozen encoder, computed once and stored.

If the encoder is frozen and the patches stay the same in all epochs, training and testing need only
the encoder's stage maps. These are averaged to the sizes at which the LDA and the fusion use them,
which makes a row of F values per patch. The rows are in a mapped file beside the image cache, or in
memory.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.base import errors, files, schema
from hyperiqa.images.build_once import (
    DAMAGED,
    INDEX,
    build_once,
    half_built,
    read_index,
    remove_built,
    remove_stale,
)

# Raise it when the contents of a row change: older features are then computed anew.
FEATURE_FORMAT = 1
DTYPES: dict[str, type[np.floating]] = {"fp16": np.float16, "fp32": np.float32}
INDEX_SCHEMA = schema.Fields(
    {"images": schema.text()},
    {"format": schema.whole_number(1), "bytes": schema.whole_number(0)},
    schema.Kind("no such field", lambda value: False),
)
# compute(start) yields the rows from patch number `start` on, batch by batch: fp32 (n, F).
Compute = Callable[[int], Iterator[np.ndarray]]


class Features:
    """Rows of F values for a list of N patches; `features[rows]` is a tensor (n, F).

    cache: an ImageCache, or several that are joined as one.
    shape: (N, F).
    dtype: a key of DTYPES.
    depends_on: everything that the rows depend on in addition to the images, such as the patches,
        the encoder and the layout of a row. It becomes part of the folder's key.
    was_there: whether the rows need not be computed.
    """

    def __init__(
        self, cache: Any, split: str, shape: tuple[int, int], dtype: str, depends_on: Mapping
    ):
        self.cache = cache
        self.split = split
        self.shape = shape
        self.dtype = dtype
        self.bytes = int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
        self.folder: Path | None = None
        self.data: Any = None
        if cache.folder is not None:
            settings = [FEATURE_FORMAT, cache.folder.name, split, shape, dtype, dict(depends_on)]
            key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
            self.folder = cache.folder.with_name(f"{cache.name}_features_{split}_{key[:16]}")
        self.was_there = self.folder is not None and self._open()

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.data[rows])

    def fill(self, compute: Compute, batch: int) -> None:
        """Compute the rows, unless they exist or another run is computing them.

        Rows that a stopped run has computed are kept. Raises UserError.

        batch: the rows that `compute` yields at a time.
        """
        if self.was_there:
            return
        if self.folder is None:
            self.data = np.empty(self.shape, DTYPES[self.dtype])
            end = 0
            for rows in compute(0):
                self.data[end : end + len(rows)] = self._narrowed(rows)
                end += len(rows)
            return
        self.was_there = not build_once(
            self.folder,
            self._open,
            lambda folder: self._build(compute, batch, folder),
            f"{self.cache.name}: waiting for another run that is computing the same features",
            "feature cache",
            goes_on=True,
        )
        if not self.was_there:
            # Features of this set are stale once their images have changed and the cache of these
            # is gone. The index names the caches of several sets with a plus between them.
            remove_stale(
                self.folder.parent,
                rf"{re.escape(self.cache.name)}_features_\w+",
                _read_whole_features,
                lambda folder, index: all(
                    (folder.parent / name).is_dir() for name in index["images"].split("+")
                ),
            )

    @property
    def missing(self) -> int:
        """The bytes that are still to be written to the disk."""
        if self.was_there or self.folder is None:
            return 0
        started = half_built(self.folder) / "features.bin"
        return self.bytes - (started.stat().st_size if started.exists() else 0)

    def _narrowed(self, rows: np.ndarray) -> np.ndarray:
        # In the type that is stored.
        limit = np.finfo(DTYPES[self.dtype]).max
        largest = np.abs(rows).max()
        # The condition is negated so that a nan is refused too.
        if not largest <= limit:
            raise errors.UserError(
                f"--feature_dtype {self.dtype}: values reach {largest:g}, expected at most "
                f"{limit:g}; give fp32, or none to go through the pixels"
            )
        return rows.astype(DTYPES[self.dtype])

    def _build(self, compute: Compute, batch: int, folder: Path) -> None:
        with (folder / "features.bin").open("ab") as file:
            # A stopped run may leave a part of a row. The work continues at a whole batch, since
            # the last bits of a row can depend on the batch that it is computed in.
            row_bytes = self.bytes // self.shape[0]
            complete_rows = file.tell() // (row_bytes * batch) * batch
            file.truncate(complete_rows * row_bytes)
            try:
                for rows in compute(complete_rows):
                    file.write(self._narrowed(rows).tobytes())
            except errors.UserError:
                # The next run could not continue from these rows: it would fail in the same way.
                remove_built(folder)
                raise
            file.flush()
            os.fsync(file.fileno())
        index = {"format": FEATURE_FORMAT, "images": self.cache.folder.name, "bytes": self.bytes}
        files.write_whole(folder / INDEX, json.dumps(index))

    def _open(self) -> bool:
        try:
            # The index is written last: without it the rows are not complete.
            _read_whole_features(self.folder)
            self.data = np.memmap(
                self.folder / "features.bin", DTYPES[self.dtype], "c", shape=self.shape
            )
        except DAMAGED:
            return False
        return True


def _read_whole_features(folder: Path) -> dict[str, Any]:
    # The index of complete features, written by this version or an older one. Raises one of DAMAGED
    # if the folder's files are not those of complete features.
    index = read_index(folder, INDEX_SCHEMA)
    size = (folder / "features.bin").stat().st_size
    # Before 0.9 the index named the images alone.
    if index.get("bytes", size) != size:
        raise ValueError(f"{folder}: the lengths differ")
    return index


def check_room(parts: Mapping[str, Features]) -> list[str]:
    """Check that the disk has room for the features of each part, before they are computed.

    Returns a line for the log on each part. Raises UserError if the disk is too full.
    """
    needed = sum(features.missing for features in parts.values())
    if needed:
        folder = next(iter(parts.values())).folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise errors.UserError(
                f"the features need {needed / 1e9:.1f} GB in {folder}, which has "
                f"{free / 1e9:.1f} GB free; give --cache_dir PATH, fewer --train_patch_num, or "
                "--feature_dtype none to go through the pixels"
            )
    facts = []
    for name, features in parts.items():
        rows, width = features.shape
        state = "found" if features.was_there else "to compute"
        facts.append(
            f"Features of {name}: {errors.counted(rows, 'patch', 'patches')} of {width} values in "
            f"{features.dtype}, {features.bytes / 1e9:.2f} GB, {state} in "
            f"{features.folder or 'memory'}"
        )
    return facts
