"""The image cache: every image of a data set decoded and resized once, by all cores, for all later runs."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import write_whole
from hyperiqa.images.build_once import build_once
from hyperiqa.images.decode import decode, fitted_size, resize_image
from hyperiqa.images.perceptual_hash import perceptual_hash

CACHE_FORMAT = 4  # raise it when decoding, resizing or the index changes
COPY_BYTES = 2**28


class ImageCache:
    """The resized images of a data set as uint8, one after the other in one buffer: a mapped file, or memory.
    `cache[i]` is image i as (H, W, 3); `sizes` (n, 2) holds heights and widths, `upscaled` how many images
    were smaller than `min_side`, `index` the number of each path, `digests` what tells the pixels of each from others',
    as they were decoded, `looks` what images that look alike share, `bad` why a file could not be read (its image is
    empty or unfinished). With `cache_dir` the images lie in a file there, keyed by everything that they depend on,
    which the next run maps instead of decoding; without, in memory. Raises UserError where it cannot be written."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        resize: str,
        min_side: int,
        cache_dir: Path | None = None,
        exif_rotate: bool = False,
    ):
        self.name, self.paths, self.resize, self.min_side = name, list(paths), resize, min_side
        self.exif_rotate = exif_rotate
        self.index = {path: i for i, path in enumerate(self.paths)}
        self.on_gpu: torch.Tensor | None = None
        start = time.perf_counter()
        if cache_dir is None:
            self.folder = None
            self._build_in_memory()
        else:
            self.files = [(str(path.resolve()), *_size_and_time(path)) for path in self.paths]
            settings = [CACHE_FORMAT, resize, min_side, exif_rotate, self.files]
            key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
            self.folder = cache_dir / f"{name}_{resize}_{key[:16]}"
            self.was_there = self._open() or self._build_in_folder()
        self.seconds = time.perf_counter() - start

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        height, width = self.sizes[i]
        return self.buffer[self.offsets[i] : self.offsets[i + 1]].reshape(height, width, 3)

    @property
    def bytes(self) -> int:
        return int(self.offsets[-1])

    def crops(
        self, images: np.ndarray, top: np.ndarray, left: np.ndarray, side: int
    ) -> torch.Tensor:
        """Crops side x side at (top, left) of the images: uint8 (n, side, side, 3), where the cache lies."""
        if self.on_gpu is not None:
            # A row of a crop is 3 * side bytes in a row: one indexed read gives all rows of all crops.
            row = 3 * self.sizes[images, 1]
            first, row = (
                self._beside(each) for each in (self.offsets[images] + top * row + 3 * left, row)
            )
            starts = first[:, None] + row[:, None] * torch.arange(side, device=row.device)
            return self.on_gpu.unfold(0, 3 * side, 1)[starts].view(-1, side, side, 3)
        out = np.empty((len(images), side, side, 3), np.uint8)
        for k, (i, y, x) in enumerate(
            zip(images.tolist(), top.tolist(), left.tolist(), strict=True)
        ):
            out[k] = self[i][y : y + side, x : x + side]
        return torch.from_numpy(out)

    def to_gpu(self, device: torch.device) -> None:
        """Copy all images to the device, from where crops are taken from now on."""
        self.on_gpu = torch.empty(self.bytes, dtype=torch.uint8, device=device)
        for start in range(
            0, self.bytes, COPY_BYTES
        ):  # piecewise: the mapped file need not fit into memory
            piece = torch.from_numpy(np.array(self.buffer[start : start + COPY_BYTES]))
            self.on_gpu[start : start + len(piece)] = piece.to(device)

    def _beside(self, numbers: np.ndarray) -> torch.Tensor:
        """Numbers where the images lie; from pinned memory, for which the host need not wait."""
        tensor = torch.from_numpy(numbers)
        pinned = tensor.pin_memory() if self.on_gpu.is_cuda else tensor
        return pinned.to(self.on_gpu.device, non_blocking=True)

    # Building: the headers give all sizes, the sizes the place of every image, and all cores fill the places.
    def _build(self, begin: Callable[[], object], keep: Callable[[int, np.ndarray], None]) -> None:
        """Decode all images: begin() once their sizes are known, then keep(i, image) for each, from any thread."""
        self.was_there = False
        self.bad: dict[Path, str] = {}
        self.digests, self.hashes = [""] * len(self), [""] * len(self)
        threads = torch.get_num_threads()
        # Images are the unit of work: with several threads to an image, too, they would wait for each other.
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            size_of = partial(fitted_size, resize=self.resize, min_side=self.min_side)
            found = list(pool.map(partial(self._tried, size_of), self.paths))
            self._set_sizes([each[0] if each else (0, 0) for each in found])
            self.upscaled = sum(each[1] for each in found if each)
            begin()
            jobs = pool.map(partial(self._fill, keep), range(len(self)), self.paths)
            try:
                for _ in tqdm(jobs, f"Decoding {self.name}", len(self), unit="image", leave=False):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                torch.set_num_threads(threads)

    def _tried(self, work: Callable, path: Path):
        """`work(path)`; a ValueError is noted as the path's, so that all bad files are found at once."""
        try:
            return work(path, exif_rotate=self.exif_rotate)
        except ValueError as problem:
            self.bad[path] = str(problem)

    def _fill(self, keep: Callable[[int, np.ndarray], None], i: int, path: Path) -> None:
        if path not in self.bad and (image := self._tried(decode, path)) is not None:
            self.digests[i], resized = _digest(image), resize_image(image, *self.sizes[i])
            self.hashes[i] = perceptual_hash(resized)
            keep(i, resized)

    def _build_in_memory(self) -> None:
        def begin() -> None:
            self.buffer = np.empty(self.bytes, np.uint8)

        self._build(begin, lambda i, image: np.copyto(self[i], image))

    def _set_sizes(self, sizes: Sequence[Sequence[int]]) -> None:
        self.sizes = np.array(sizes, np.int64).reshape(-1, 2)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])

    # The file: a folder with the images and their index, which appears under its name only when it is complete.
    def _open(self) -> bool:
        """Map the finished cache; False if there is none."""
        try:
            index = json.loads((self.folder / "index.json").read_text())
            self._set_sizes(index["sizes"])
            self.digests, self.hashes = index["digests"], index["looks"]
            self.upscaled, self.bad = (
                index["upscaled"],
                {Path(p): reason for p, reason in index["bad"].items()},
            )
            # Mode c: a stray write would change this process's view, never the file. An empty file cannot be mapped.
            file = self.folder / "images.u8"
            self.buffer = (
                np.memmap(file, np.uint8, "c", shape=(self.bytes,))
                if self.bytes
                else np.empty(0, np.uint8)
            )
        except (OSError, ValueError, KeyError):
            return False
        return True

    def _build_in_folder(self) -> bool:
        """Build the cache, or wait for the run that is building it; returns whether another run built it."""
        waiting = f"{self.name}: waiting for another run that is decoding the same images"
        built = build_once(self.folder, self._open, self._build_file, waiting, "image cache")
        if built:
            self._remove_stale()
        return not built

    def _build_file(self, folder: Path) -> None:
        # Written, not mapped: on a full disk a write fails, where a mapped page would kill the process.
        with (folder / "images.u8").open("wb") as file:
            turn = threading.Lock()

            def keep(i: int, image: np.ndarray) -> None:
                with turn:
                    file.seek(self.offsets[i])
                    file.write(image)  # type: ignore[arg-type]

            self._build(lambda: file.truncate(self.bytes), keep)
            file.flush()
            os.fsync(file.fileno())
        bad = {str(path): reason for path, reason in self.bad.items()}
        index = {
            "sizes": self.sizes.tolist(),
            "upscaled": self.upscaled,
            "bad": bad,
            "files": self.files,
        }
        index |= {"format": CACHE_FORMAT, "digests": self.digests, "looks": self.hashes}
        write_whole(folder / "index.json", json.dumps(index))

    def _remove_stale(self) -> None:
        """Delete this data set's caches of an older format, or whose source files have changed or gone since."""
        for folder in self.folder.parent.glob(f"{self.name}_{self.resize}_*"):
            try:
                index = json.loads((folder / "index.json").read_text())
                same = all(
                    _size_and_time(Path(path)) == (size, time)
                    for path, size, time in index["files"]
                )
                fresh = same and index["format"] >= CACHE_FORMAT
            except (OSError, ValueError, KeyError):
                fresh = False
            if not fresh:
                shutil.rmtree(folder, ignore_errors=True)


def _digest(image: np.ndarray) -> str:
    """Of an image's pixels and shape; collisions are a matter of 2^-64."""
    found = hashlib.sha256(repr(image.shape).encode())
    found.update(np.ascontiguousarray(image).data)
    return found.hexdigest()[:16]


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and nanoseconds; (-1, -1) for what is gone, which decoding will then report."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def put_on_gpu(caches: Sequence[ImageCache], choice: str, device: torch.device) -> str:
    """Move the caches to the GPU where `--cache_device` (auto, cpu, cuda) says so; returns where they are and why.
    auto: on a CUDA device on which they take at most half of the free memory."""
    if device.type != "cuda" or choice == "cpu":
        return "cpu"
    need, free = sum(cache.bytes for cache in caches), torch.cuda.mem_get_info(device)[0]
    if choice == "auto" and need > free / 2:
        return f"cpu ({need / 2**30:.1f} GiB would take over half of the {free / 2**30:.1f} GiB free on the GPU)"
    try:
        for cache in caches:
            cache.to_gpu(device)
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"--cache_device cuda: {need / 2**30:.1f} GiB of images do not fit on {device}"
        ) from None
    return str(device)
