"""A checkpoint -> a ready model -> the score of an image: a path, a PIL image, an array or a tensor.

    from inference import load
    print(load("checkpoints/NAME").score("photo.jpg"))

Scores are on the scale of the MOS that the model was trained on (`model.description["score_range"]`, KonIQ-10k:
0..100), and mean what they meant there: higher is better unless `description["higher_is_better"]` is False."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hyperiqa.base.command_line import parse_resize
from hyperiqa.base.device import Hardware, choose_hardware
from hyperiqa.base.errors import UserError
from hyperiqa.images.decode import MAX_PIXELS, from_pillow, load_image, resize_image, resized_size
from hyperiqa.model import checkpoints
from hyperiqa.model.factory import build
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.training import engine
from hyperiqa.training.batches import SCORE_BATCH
from hyperiqa.training.patches import test_patches

ImageLike = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Scored:
    """An image as it was handed in, and its score; or None and the reason why it has none."""

    image: ImageLike
    score: float | None
    problem: str | None = None


def load(
    checkpoint: str | os.PathLike,
    device: str = "auto",
    precision: str = "fp32",
    resize: str | None = None,
    crops: int | None = None,
    exif_rotate: bool | None = None,
    workers: int | None = None,
) -> "QualityModel":
    """A model ready to score, used as it was trained unless told otherwise.
    checkpoint: a best model (or the folder of its run), its .safetensors, or a state dict of the public HyperIQA code
    or of SMART-IQA's. precision: fp32, or bf16 (autocast: faster where the hardware has it, scores differ by some
    hundredths). resize: as `--resize`. crops: 1 is the centre crop, N a regular grid whose scores are averaged.
    workers: processes that cut the patches of a data set. Raises UserError."""
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision {precision}: expected fp32 or bf16")
    if crops is not None and crops < 1:
        raise UserError(f"crops {crops}: expected at least 1")
    if resize is not None:
        parse_resize(resize)
    path = checkpoints.find_model(Path(checkpoint))
    state, description = checkpoints.load_model(path)
    crop = None if crops is None else "center" if crops == 1 else "grid"
    asked = {
        "resize": resize,
        "exif_rotate": exif_rotate,
        "test_patch_num": crops,
        "test_crop": crop,
    }
    description |= {name: value for name, value in asked.items() if value is not None}
    with torch.random.fork_rng(
        devices=[]
    ):  # the initial weights, which are replaced, are drawn at random
        net = build(description)
    checkpoints.fill(net, state, path)
    return QualityModel(net, description, choose_hardware(device, precision, workers)[0])


class QualityModel:
    """A trained `HyperNet` (`net`) with what is needed to use it (`description`); make one with `load`."""

    def __init__(self, net: HyperNet, description: dict[str, Any], hardware: Hardware):
        self.net = net.to(hardware.device).to(memory_format=torch.channels_last).eval()
        self.description, self.hardware = description, hardware

    @property
    def crops(self) -> int:
        """How many patches an image is scored on."""
        return (
            1 if self.description["test_crop"] == "center" else self.description["test_patch_num"]
        )

    def use_scale(self, name: str) -> None:
        """Score on the own scale of one of the sets that the model was trained on. Raises UserError."""
        d = self.description
        scales = d.get("scales") or {
            d["dataset"]: {"factor": 1.0, "offset": 0.0, "nominal_range": d["score_range"]}
        }
        if name not in scales:
            raise UserError(f"--scale {name}: the model was trained on {', '.join(scales)}")
        factor, offset = scales[name]["factor"], scales[name]["offset"]
        self.net.rescale(1 / factor, -offset / factor)
        better = d["higher_is_better"] == (factor > 0)
        self.description = {
            **d,
            "score_range": scales[name]["nominal_range"],
            "higher_is_better": better,
        }

    def score(self, image: ImageLike) -> float:
        """The score of one image: a path; a PIL image; uint8 (H, W, 3) or (H, W); a tensor (3, H, W) or (1, H, W),
        uint8 0..255 or floating 0..1, RGB. Any size. Raises ValueError with the reason where it cannot be read, and
        TypeError for what is none of these."""
        return float(self.score_patches([self.patches(image)])[0])

    def score_all(
        self,
        images: Iterable[ImageLike | None],
        batch_size: int = SCORE_BATCH,
        workers: int | None = None,
    ) -> Iterator[Scored]:
        """Score a stream of images, in order and in constant memory; what cannot be read does not stop it.
        batch_size: patches per forward pass; workers: threads that decode (default: one per core). A stream that
        pauses may hold None where it does: what came before is then scored without waiting for a full batch."""
        workers = workers or os.cpu_count() or 1
        ahead = -(-batch_size // self.crops) + workers  # images decoded while a batch is scored
        waiting: deque = deque()
        ready: list[tuple[ImageLike, np.ndarray | str]] = []
        with ThreadPoolExecutor(workers) as pool:
            try:
                for image in itertools.chain(images, [None]):
                    if image is not None:
                        waiting.append((image, pool.submit(self._patches_or_problem, image)))
                    while len(waiting) > (0 if image is None else ahead):
                        earlier, future = waiting.popleft()
                        ready.append((earlier, future.result()))
                        if (
                            max(len(ready), sum(len(p) for _, p in ready if not isinstance(p, str)))
                            >= batch_size
                        ):
                            yield from self._flush(ready, batch_size)
                    if image is None:
                        yield from self._flush(ready, batch_size)
            finally:
                pool.shutdown(cancel_futures=True)

    def patches(self, image: ImageLike) -> np.ndarray:
        """The patches that an image is scored on: uint8 (n, P, P, 3), cut as in the run's own tests."""
        d = self.description
        side, pixels = d["patch_size"], self.pixels(image)
        # Random crops belong to a test set, whose images are counted; a single image gets as many on a grid.
        crop = "grid" if d["test_crop"] == "random" else d["test_crop"]
        places = test_patches(np.array([pixels.shape[:2]]), side, crop, d["test_patch_num"])
        return np.stack(
            [
                pixels[y : y + side, x : x + side]
                for y, x in zip(places.top, places.left, strict=True)
            ]
        )

    def pixels(self, image: ImageLike) -> np.ndarray:
        """An image as RGB uint8 (H, W, 3), resized as in training."""
        d = self.description
        side, resize, rotate = d["patch_size"], d["resize"], d.get("exif_rotate", False)
        if isinstance(image, str | os.PathLike):
            return load_image(Path(image), resize, side, rotate)
        pixels = from_pillow(image, rotate) if isinstance(image, Image.Image) else _as_pixels(image)
        height, width = resized_size(pixels.shape[0], pixels.shape[1], resize, side)
        if height * width > MAX_PIXELS:
            raise ValueError(f"absurdly large once resized to {width}x{height} pixels")
        return resize_image(pixels, height, width)

    def _patches_or_problem(self, image: ImageLike) -> np.ndarray | str:
        try:
            return self.patches(image)
        except ValueError as problem:
            return " ".join(str(problem).split())

    def _flush(
        self, ready: list[tuple[ImageLike, np.ndarray | str]], batch_size: int
    ) -> Iterator[Scored]:
        scores = iter(
            self.score_patches([p for _, p in ready if not isinstance(p, str)], batch_size)
        )
        for image, found in ready:
            yield (
                Scored(image, None, found)
                if isinstance(found, str)
                else Scored(image, float(next(scores)))
            )
        ready.clear()

    def score_patches(self, patches: list[np.ndarray], batch_size: int = SCORE_BATCH) -> np.ndarray:
        """Patches of each image -> scores (images,), by the same function that tests a run."""
        if not patches:
            return np.empty(0)
        flat = torch.from_numpy(np.concatenate(patches)).split(batch_size)
        image = torch.from_numpy(np.repeat(np.arange(len(patches)), list(map(len, patches)))).split(
            batch_size
        )
        batches = ({"patches": cut, "image": of} for cut, of in zip(flat, image))
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            return engine.score(self.net, batches, len(patches), self.hardware)


def _as_pixels(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """An array or tensor as RGB uint8 (H, W, 3). Raises ValueError for other shapes, kinds and ranges."""
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or len(image) not in (1, 3) or 0 in image.shape:
            raise ValueError(
                f"expected a tensor (3, H, W) or (1, H, W), found {tuple(image.shape)}"
            )
        pixels = image.detach().cpu().expand(3, -1, -1).permute(1, 2, 0)
        if pixels.is_floating_point():
            if not (pixels.isfinite().all() and pixels.min() >= 0 and pixels.max() <= 1):
                raise ValueError("expected floating values from 0 to 1 (or uint8 from 0 to 255)")
            pixels = (pixels.float() * 255).round().to(torch.uint8)
        if pixels.dtype != torch.uint8:
            raise ValueError(f"expected a tensor of uint8 or floating values, found {pixels.dtype}")
        return pixels.contiguous().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"expected a path, a PIL image, an array or a tensor, found {type(image).__name__}"
        )
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected uint8 (H, W, 3) or (H, W), found {image.dtype} {image.shape}")
    return np.require(
        image, requirements=["C", "W"]
    )  # torch takes no negative strides, as of image[..., ::-1]
