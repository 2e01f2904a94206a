"""A checkpoint -> a ready model -> the score of an image: a path, a PIL image, an array or a tensor.

    from inference import load
    print(load("checkpoints/NAME").score("photo.jpg"))

Scores are on the scale of the MOS that the model was trained on (`model.description["score_range"]`, KonIQ-10k:
0..100), and mean what they meant there: higher is better unless `description["higher_is_better"]` is False."""

import itertools
import os
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hyperiqa.model import factory
from hyperiqa.model import checkpoints
from hyperiqa.training import engine
from hyperiqa.base.command_line import parse_resize
from hyperiqa.base.device import Hardware, choose_hardware
from hyperiqa.base.errors import UserError
from hyperiqa.training.batches import SCORE_BATCH, test_patches
from hyperiqa.datasets.readers import READERS
from hyperiqa.training.losses import SCALELESS
from hyperiqa.model.hypernet import HyperNet, hypernet
from hyperiqa.training.options import needs_pixels
from hyperiqa.images.decode import MAX_PIXELS, from_pillow, load_image, resize_image, resized_size
from hyperiqa.datasets.records import DataSet

ImageLike = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Scored:
    """An image as it was handed in, and its score; or None and the reason why it has none."""

    image: ImageLike
    score: float | None
    problem: str | None = None


def load(
    checkpoint: str | os.PathLike, device: str = "auto", precision: str = "fp32", resize: str | None = None,
    crops: int | None = None, exif_rotate: bool | None = None, workers: int | None = None
) -> "QualityModel":  # fmt: skip
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
    asked = {"resize": resize, "exif_rotate": exif_rotate, "test_patch_num": crops, "test_crop": crop}
    description |= {name: value for name, value in asked.items() if value is not None}
    with torch.random.fork_rng(devices=[]):  # the initial weights, which are replaced, are drawn at random
        net = build(description)
    checkpoints.fill(net, state, path)
    return QualityModel(net, description, choose_hardware(device, precision, workers)[0])


def new_model(options: Namespace) -> HyperNet:
    """The untrained model that a run's flags ask for, with pretrained or given weights for the backbone."""
    o = options
    return hypernet(factory.build(o.backbone, o.pretrained, o.patch_size, o.backbone_weights, o.drop_path), vars(o))


class Initial:
    """What `--init` starts from, or `--teacher` learns from: a whole trained model, anything that `load` reads."""

    def __init__(self, path: Path):
        self.path = checkpoints.find_model(path)
        self.state, self.description = checkpoints.load_model(self.path)
        self.digest = checkpoints.digest(self.state)

    @classmethod
    def of(cls, options: Namespace) -> "Initial":
        """As the flags say; what they leave to the checkpoint is set in them. Raises UserError."""
        initial = cls(options.init)
        known = {"hyper": "conv", **initial.description}  # before there was another, models did not say it
        for name in ("backbone", "patch_size", *HyperNet.choices):
            own, asked = known.get(name), getattr(options, name)
            if asked not in (None, own) and name != "patch_size":
                raise UserError(f"--{name} {asked}: the model of --init {options.init} has {own}")
            setattr(options, name, own if asked is None else asked)
        for problem in needs_pixels(options):
            raise UserError(problem)
        options.init_digest = initial.digest
        return initial

    @classmethod
    def teacher_of(cls, options: Namespace) -> "Initial":
        """The model of `--teacher`. Raises UserError where its scores are on no scale that could be learnt."""
        teacher = cls(options.teacher)
        if (loss := teacher.description.get("loss")) in SCALELESS:
            raise UserError(f"--teacher {options.teacher}: trained with --loss {loss}, so its scores are on no scale")
        options.teacher_digest = teacher.digest
        return teacher

    def model(self, data: DataSet, options: Namespace) -> HyperNet:
        """The model, its scores brought to the scale of the data set that it is trained on next, as the flags say."""
        net = build({**self.description, **{n: getattr(options, n) for n in ("patch_size", "dropout", "drop_path")}})
        checkpoints.fill(net, self.state, self.path)
        net.rescale(*self.scale(data))
        return net

    def scale(self, data: DataSet) -> tuple[float, float]:
        """(a, b): a·score + b of a score is the same on the data set's nominal range, and points its way."""
        d = self.description
        known = d["dataset"] in READERS and READERS[d["dataset"]].nominal_range
        low, high = d.get("nominal_range") or known or d["score_range"]
        to_low, to_high = data.range
        if low == high or to_low == to_high:
            return 1.0, 0.0
        if d["higher_is_better"] != data.higher_is_better:
            to_low, to_high = to_high, to_low
        factor = (to_high - to_low) / (high - low)
        return factor, to_low - factor * low

    def explained(self, data: DataSet, how: str) -> str:
        """What a log says of it; how: what the run does with the model."""
        (a, b), d = self.scale(data), self.description
        where = f"{d['dataset']} to {data.name}"
        scale = "scores stay as they are" if (a, b) == (1, 0) else f"scores become {a:g} * score {b:+g}, from {where}"
        return f"{how} {self.path} (weights {self.digest}): {scale}"


def build(description: Mapping[str, Any]) -> HyperNet:
    """The untrained model that a checkpoint's description names. Raises UserError where there is none such."""
    d = description
    try:
        more = {"patch_size": d.get("patch_size", 224), "drop_path": d.get("drop_path")}
        backbone = factory.build(str(d["backbone"]), **more, architecture=d.get("architecture"))
        net = hypernet(backbone, d)
    except (KeyError, ValueError):
        choices = ", ".join(f"{name} {d[name]}" for name in HyperNet.choices if name in d)
        raise UserError(f"the checkpoint's backbone {d['backbone']} with {choices} is unknown here") from None
    if "mean" in d and "std" in d:
        backbone.set_normalisation(d["mean"], d["std"])
    return net


class QualityModel:
    """A trained `HyperNet` (`net`) with what is needed to use it (`description`); make one with `load`."""

    def __init__(self, net: HyperNet, description: dict[str, Any], hardware: Hardware):
        self.net = net.to(hardware.device).to(memory_format=torch.channels_last).eval()
        self.description, self.hardware = description, hardware

    @property
    def crops(self) -> int:
        """How many patches an image is scored on."""
        return 1 if self.description["test_crop"] == "center" else self.description["test_patch_num"]

    def use_scale(self, name: str) -> None:
        """Score on the own scale of one of the sets that the model was trained on. Raises UserError."""
        d = self.description
        scales = d.get("scales") or {d["dataset"]: {"factor": 1.0, "offset": 0.0, "nominal_range": d["score_range"]}}
        if name not in scales:
            raise UserError(f"--scale {name}: the model was trained on {', '.join(scales)}")
        factor, offset = scales[name]["factor"], scales[name]["offset"]
        self.net.rescale(1 / factor, -offset / factor)
        better = d["higher_is_better"] == (factor > 0)
        self.description = {**d, "score_range": scales[name]["nominal_range"], "higher_is_better": better}

    def score(self, image: ImageLike) -> float:
        """The score of one image: a path; a PIL image; uint8 (H, W, 3) or (H, W); a tensor (3, H, W) or (1, H, W),
        uint8 0..255 or floating 0..1, RGB. Any size. Raises ValueError with the reason where it cannot be read, and
        TypeError for what is none of these."""
        return float(self.score_patches([self.patches(image)])[0])

    def score_all(
        self, images: Iterable[ImageLike | None], batch_size: int = SCORE_BATCH, workers: int | None = None
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
                        if max(len(ready), sum(len(p) for _, p in ready if not isinstance(p, str))) >= batch_size:
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
        return np.stack([pixels[y : y + side, x : x + side] for y, x in zip(places.top, places.left, strict=True)])

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

    def _flush(self, ready: list[tuple[ImageLike, np.ndarray | str]], batch_size: int) -> Iterator[Scored]:
        scores = iter(self.score_patches([p for _, p in ready if not isinstance(p, str)], batch_size))
        for image, found in ready:
            yield Scored(image, None, found) if isinstance(found, str) else Scored(image, float(next(scores)))
        ready.clear()

    def score_patches(self, patches: list[np.ndarray], batch_size: int = SCORE_BATCH) -> np.ndarray:
        """Patches of each image -> scores (images,), by the same function that tests a run."""
        if not patches:
            return np.empty(0)
        flat = torch.from_numpy(np.concatenate(patches)).split(batch_size)
        image = torch.from_numpy(np.repeat(np.arange(len(patches)), list(map(len, patches)))).split(batch_size)
        batches = ({"patches": cut, "image": of} for cut, of in zip(flat, image))
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return engine.score(self.net, batches, len(patches), self.hardware)


def _as_pixels(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """An array or tensor as RGB uint8 (H, W, 3). Raises ValueError for other shapes, kinds and ranges."""
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or len(image) not in (1, 3) or 0 in image.shape:
            raise ValueError(f"expected a tensor (3, H, W) or (1, H, W), found {tuple(image.shape)}")
        pixels = image.detach().cpu().expand(3, -1, -1).permute(1, 2, 0)
        if pixels.is_floating_point():
            if not (pixels.isfinite().all() and pixels.min() >= 0 and pixels.max() <= 1):
                raise ValueError("expected floating values from 0 to 1 (or uint8 from 0 to 255)")
            pixels = (pixels.float() * 255).round().to(torch.uint8)
        if pixels.dtype != torch.uint8:
            raise ValueError(f"expected a tensor of uint8 or floating values, found {pixels.dtype}")
        return pixels.contiguous().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"expected a path, a PIL image, an array or a tensor, found {type(image).__name__}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected uint8 (H, W, 3) or (H, W), found {image.dtype} {image.shape}")
    return np.require(image, requirements=["C", "W"])  # torch takes no negative strides, as of image[..., ::-1]
