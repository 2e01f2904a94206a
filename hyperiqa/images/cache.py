"""The image cache: the images of a data set, decoded and resized once for all later runs."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hyperiqa.base import device as devices, errors, files, schema
from hyperiqa.images import build_once, decode, perceptual_hash

# Raise it when decoding, resizing or the index changes: older caches are then built anew.
CACHE_FORMAT = 4


def _rows(words: str, *kinds: type) -> schema.Kind:
    # A set may have a million images, so all rows are checked in one go.
    return schema.Kind(
        words,
        lambda rows: (
            isinstance(rows, list)
            and all(isinstance(row, list) and (*map(type, row),) == kinds for row in rows)
        ),
    )


TEXTS = schema.Kind(
    "a list of texts",
    lambda values: isinstance(values, list) and set(map(type, values)) <= {str},
)
# Formats before 4 have no `looks`. Formats before 3 have no `format` either and do not fit.
INDEX_SCHEMA = schema.Fields(
    {
        "format": schema.whole_number(3),
        "sizes": _rows("a list of heights and widths", int, int),
        "upscaled": schema.whole_number(0),
        "bad": schema.table(schema.text()),
        "files": _rows("a list of paths, bytes and times", str, int, int),
        "digests": TEXTS,
    },
    {"looks": TEXTS},
    schema.PLAIN,
)
# Bytes that are copied to the GPU at a time.
COPY_BYTES = 2**28


class ImageCache:
    """The resized images of a data set as uint8, one after the other in one buffer.

    `cache[i]` is image i as (H, W, 3). With `cache_dir` the buffer is a mapped file in a folder
    there. The folder's name has a key of everything that the pixels depend on, and the next run
    with the same key maps the file instead of decoding. Without `cache_dir` the buffer is in
    memory. Raises UserError if the folder cannot be written.

    sizes: heights and widths, (n, 2). bytes: the size of all images together.
    upscaled: how many images were smaller than `min_side`.
    index: the number of each path.
    digests: the digest of each decoded image, which is equal for equal pixels.
    hashes: the perceptual hash of each image.
    bad: path -> the reason why the file could not be read. Its image is empty or unfinished, and
        its digest and hash are "".
    was_there: whether another run built the cache.
    seconds: the time that opening or building it took.
    on_gpu: the buffer on the GPU, after `to_gpu`.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        resize: str,
        min_side: int,
        cache_dir: Path | None = None,
        exif_rotate: bool = False,
    ):
        self.name = name
        self.paths = list(paths)
        self.resize = resize
        self.min_side = min_side
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

    # Cutting crops.

    def crops(
        self, images: np.ndarray, top: np.ndarray, left: np.ndarray, side: int
    ) -> torch.Tensor:
        """Cut a square crop from each of n images, given by their numbers.

        images, top, left: (n,). Returns uint8 (n, side, side, 3) on the device of the cache.
        """
        if self.on_gpu is not None:
            return self._crops_on_gpu(images, top, left, side)
        crops = np.empty((len(images), side, side, 3), np.uint8)
        # Plain integers: indexing with numpy's is slower.
        for k, (i, y, x) in enumerate(
            zip(images.tolist(), top.tolist(), left.tolist(), strict=True)
        ):
            crops[k] = self[i][y : y + side, x : x + side]
        return torch.from_numpy(crops)

    def _crops_on_gpu(
        self, images: np.ndarray, top: np.ndarray, left: np.ndarray, side: int
    ) -> torch.Tensor:
        row_bytes = 3 * self.sizes[images, 1]
        device = self.on_gpu.device
        start = torch.from_numpy(self.offsets[images] + top * row_bytes + 3 * left)
        stride = devices.sent(torch.from_numpy(row_bytes), device)[:, None]
        row_starts = devices.sent(start, device)[:, None] + stride * torch.arange(
            side, device=device
        )
        # A row of a crop is 3 * side bytes without a gap, so one indexed read gets all rows of all
        # crops.
        return self.on_gpu.unfold(0, 3 * side, 1)[row_starts].view(-1, side, side, 3)

    def to_gpu(self, device: torch.device) -> None:
        """Copy all images to the device; crops are cut there from now on."""
        self.on_gpu = torch.empty(self.bytes, dtype=torch.uint8, device=device)
        # Piecewise, because the mapped file need not fit into the memory of the host.
        for start in range(0, self.bytes, COPY_BYTES):
            piece = torch.from_numpy(np.array(self.buffer[start : start + COPY_BYTES]))
            self.on_gpu[start : start + len(piece)] = piece.to(device)

    # Decoding. The headers of the files give the sizes of all images, the sizes give the place of
    # each image in the buffer, and all cores fill these places.

    def _build(self, begin: Callable[[], object], keep: Callable[[int, np.ndarray], None]) -> None:
        """Decode all images.

        begin(): called once the sizes of all images are known.
        keep(i, image): called with each decoded image, from any thread.
        """
        self.was_there = False
        self.bad: dict[Path, str] = {}
        self.digests = [""] * len(self)
        self.hashes = [""] * len(self)
        threads = torch.get_num_threads()
        # The cores that this process may use: in a container, these can be fewer than there are.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        # Each thread works on an image of its own, with one thread of torch: with more of them to
        # an image, the threads would wait for each other.
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            self._read_sizes(pool)
            begin()
            jobs = pool.map(lambda i: self._decode(i, keep), range(len(self)))
            try:
                for _ in tqdm(
                    jobs,
                    f"Decoding {self.name}",
                    len(self),
                    unit="image",
                    leave=False,
                    disable=None,
                ):
                    pass
            finally:
                # If an image raised an error, the others need not be decoded.
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(threads)

    def _read_sizes(self, pool: Executor) -> None:
        fitted = pool.map(
            lambda i: self._unless_bad(i, decode.fitted_size, self.resize, self.min_side),
            range(len(self)),
        )
        # A file without a readable header gets no place in the buffer.
        results = [result or ((0, 0), False) for result in fitted]
        self._set_sizes([size for size, _ in results])
        self.upscaled = sum(is_upscaled for _, is_upscaled in results)

    def _decode(self, i: int, keep: Callable[[int, np.ndarray], None]) -> None:
        # A file with a bad header has a reason already.
        if self.paths[i] in self.bad:
            return
        decoded = self._unless_bad(i, decode.decode_and_resize, self.sizes[i].tolist())
        if decoded is not None:
            image, resized = decoded
            digest = hashlib.sha256(repr(image.shape).encode())
            digest.update(np.ascontiguousarray(image).data)
            self.digests[i] = digest.hexdigest()[:16]
            self.hashes[i] = perceptual_hash.perceptual_hash(resized)
            keep(i, resized)

    def _unless_bad(self, i: int, work: Callable, *settings: object) -> Any:
        # The reasons are collected in `bad`, so that the user learns of all bad files at once.
        try:
            return work(self.paths[i], *settings, exif_rotate=self.exif_rotate)
        except ValueError as problem:
            self.bad[self.paths[i]] = str(problem)
            return None

    def _set_sizes(self, sizes: Sequence[Sequence[int]]) -> None:
        self.sizes = np.array(sizes, np.int64).reshape(-1, 2)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])
        self.bytes = int(self.offsets[-1])

    def _build_in_memory(self) -> None:
        def begin() -> None:
            self.buffer = np.empty(self.bytes, np.uint8)

        self._build(begin, lambda i, image: np.copyto(self[i], image))

    # The folder of a cache: images.u8 with the pixels, index.json with everything else.

    def _open(self) -> bool:
        # Map the finished cache; return False if there is none, or a damaged one.
        try:
            index = _read_whole_cache(self.folder)
            if index["format"] != CACHE_FORMAT or len(index["files"]) != len(self):
                return False
            self._set_sizes(index["sizes"])
            if self.bytes:
                # With mode c, a stray write would change this process's view, never the file.
                self.buffer = np.memmap(
                    self.folder / "images.u8", np.uint8, "c", shape=(self.bytes,)
                )
            else:
                # An empty file cannot be mapped.
                self.buffer = np.empty(0, np.uint8)
        except build_once.DAMAGED:
            return False
        self.digests = index["digests"]
        self.hashes = index["looks"]
        self.upscaled = index["upscaled"]
        self.bad = {Path(path): reason for path, reason in index["bad"].items()}
        return True

    def _build_in_folder(self) -> bool:
        # Returns whether another run, which this one waited for, built the cache.
        built = build_once.build_once(
            self.folder,
            self._open,
            self._build_files,
            f"{self.name}: waiting for another run that is decoding the same images",
            "image cache",
        )
        if built:
            # Caches of this set with an older format, or with source files that have changed.
            build_once.remove_stale(
                self.folder.parent,
                re.escape(f"{self.name}_{self.resize}"),
                _read_whole_cache,
                _is_current,
            )
        return not built

    def _build_files(self, folder: Path) -> None:
        # The file is written, not mapped: on a full disk a write fails, while a mapped page would
        # kill the process.
        with (folder / "images.u8").open("wb") as file:
            lock = threading.Lock()

            def keep(i: int, image: np.ndarray) -> None:
                with lock:
                    file.seek(self.offsets[i])
                    file.write(image)  # type: ignore[arg-type]

            self._build(lambda: file.truncate(self.bytes), keep)
            file.flush()
            os.fsync(file.fileno())
        index = {
            "sizes": self.sizes.tolist(),
            "upscaled": self.upscaled,
            "bad": {str(path): reason for path, reason in self.bad.items()},
            "files": self.files,
            "format": CACHE_FORMAT,
            "digests": self.digests,
            "looks": self.hashes,
        }
        files.write_whole(folder / build_once.INDEX, json.dumps(index))


def _read_whole_cache(folder: Path) -> dict[str, Any]:
    # The index of a complete cache, of this or an older format. Raises one of DAMAGED where the
    # folder's files are not those of a complete cache.
    index = build_once.read_index(folder, INDEX_SCHEMA)
    # From this format on, each image has a perceptual hash.
    lists = ("sizes", "files", "digests") + ("looks",) * (index["format"] >= 4)
    counts = {len(index.get(name, [])) for name in lists}
    size = sum(3 * height * width for height, width in index["sizes"])
    least = min(map(min, index["sizes"]), default=0)
    if len(counts) > 1 or least < 0 or (folder / "images.u8").stat().st_size != size:
        raise ValueError(f"{folder}: the lengths differ")
    return index


def _is_current(folder: Path, index: dict[str, Any]) -> bool:
    return index["format"] >= CACHE_FORMAT and all(
        _size_and_time(Path(path)) == (size, modified) for path, size, modified in index["files"]
    )


def _size_and_time(path: Path) -> tuple[int, int]:
    # The time is in nanoseconds.
    try:
        status = path.stat()
    # The file is missing, which decoding reports later.
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def put_on_gpu(caches: Sequence[ImageCache], choice: str, device: torch.device) -> str:
    """Copy the caches to the GPU where `--cache_device` says so.

    choice: cpu, cuda or auto; auto means a CUDA device of which they take at most half of the free
    memory. Returns the place of the caches, with the reason where auto chose the CPU. Raises
    UserError where they do not fit.
    """
    if device.type != "cuda" or choice == "cpu":
        return "cpu"
    needed = sum(cache.bytes for cache in caches)
    free = torch.cuda.mem_get_info(device)[0]
    if choice == "auto" and needed > free / 2:
        return (
            f"cpu ({needed / 2**30:.1f} GiB would take over half of the "
            f"{free / 2**30:.1f} GiB free on the GPU)"
        )
    try:
        for cache in caches:
            cache.to_gpu(device)
    except torch.cuda.OutOfMemoryError:
        raise errors.UserError(
            f"--cache_device cuda: {needed / 2**30:.1f} GiB of images do not fit on {device}"
        ) from None
    return str(device)
