"""From a checkpoint to a model that scores images: paths, PIL images, arrays or tensors.

    from hyperiqa import load

    model = load("checkpoints/NAME")
    print(model.score("photo.jpg"))

Scores are on the scale of the opinion scores (MOS) that the model was trained on. That range is
`model.description["score_range"]`, 0..100 for KonIQ-10k. Higher is better unless
`model.description["higher_is_better"]` is False.
"""

import hashlib
import itertools
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image

from hyperiqa.base import command_line, errors
from hyperiqa.base.device import Hardware, choose_hardware
from hyperiqa.datasets import names, readers
from hyperiqa.images.decode import MAX_PIXELS, from_pillow, load_image, resize_image, resized_size
from hyperiqa.model import checkpoints, factory, hypernet
from hyperiqa.model.description import problem_of_crops
from hyperiqa.scoring import image_sources, runtimes, score_files
from hyperiqa.scoring.meaning import Explained, Meaning, rescaled
from hyperiqa.training import engine
from hyperiqa.training.batches import SCORE_BATCH
from hyperiqa.training.patches import test_patches

ImageLike = (
    str | os.PathLike | bytes | image_sources.StoredImage | Image.Image | np.ndarray | torch.Tensor
)


@dataclass(frozen=True)
class Scored:
    """An image and its score, as `QualityModel.score_all` yields them.

    image: as it was handed in.
    score: on the scale of the model; None where the image cannot be read.
    problem: why there is no score, in one line; None where there is one.
    meaning: what the score means, where `score_all` was asked for it and there is a finite score.
    """

    image: ImageLike
    score: float | None
    problem: str | None = None
    meaning: Explained | None = None


# An image and its patches uint8 (n, P, P, 3), or None and the reason why it has none.
_Decoded = tuple[ImageLike, np.ndarray | None, str | None]


def load(
    checkpoint: str | os.PathLike,
    device: str = "auto",
    precision: str = "fp32",
    resize: str | None = None,
    crops: int | None = None,
    exif_rotate: bool | None = None,
    workers: int | None = None,
) -> "QualityModel":
    """Load a trained model, ready to score images.

    checkpoint: a best model or the folder of its run, its .safetensors, `hf://USER/NAME`, the name
        of a public model (`predict.py --models`), or a state dict of the public HyperIQA code, of
        SMART-IQA's or of pyiqa's; or an .onnx or .xml of `export.py`, which scores images but has
        no `net`.
    device: "auto" (a CUDA GPU if there is one, else the CPU), "cpu", "cuda", "cuda:N" or "mps".
    precision: "fp32" or "bf16" (autocast: faster where the hardware has it, and scores differ by
        some hundredths).
    workers: processes that cut the patches of a data set (default: 0 on a CPU, 4 on a GPU).

    The rest changes how images are prepared; the default is what the model was trained with:

    resize: "384" (shorter side), "max384" (at most that), "512x384" (height x width) or "none".
    crops: 1 is the centre crop; N is a regular grid of N crops, whose scores are averaged.
    exif_rotate: turn images as their EXIF orientation says.

    Raises UserError for a file that is no such model, for wrong arguments, and where the machine
    has no such device.
    """
    if precision not in ("fp32", "bf16"):
        raise errors.UserError(f"precision {precision}: expected fp32 or bf16")
    if crops is not None and crops < 1:
        raise errors.UserError(f"crops {crops}: expected at least 1")
    if resize is not None:
        command_line.parse_resize(resize)
    path = checkpoints.find_model(Path(checkpoint))
    if path.suffix in runtimes.RUNTIMES:
        for problem in filter(None, runtimes.refused(path, device=device, precision=precision)):
            raise errors.UserError(problem)
        exported = runtimes.open_exported(path)
        return ExportedModel(exported, _prepared(exported.description, resize, crops, exif_rotate))
    state, trained = checkpoints.load_model(path)
    description = _prepared(trained, resize, crops, exif_rotate)
    # Building draws initial weights, which are then replaced: leave the caller's generator alone.
    with torch.random.fork_rng(devices=[]):
        net = factory.build(description, state)
    checkpoints.fill(net, state, path)
    hardware = choose_hardware(device, workers).computing_in(precision)
    return QualityModel(net, description, hardware, trained)


def _prepared(
    trained: dict[str, Any], resize: str | None, crops: int | None, exif_rotate: bool | None
) -> dict[str, Any]:
    """A model's description for images that are prepared as the arguments of `load` say."""
    chosen = {"resize": resize, "exif_rotate": exif_rotate, "test_patch_num": crops}
    description = trained | {name: value for name, value in chosen.items() if value is not None}
    if crops is not None:
        if problem := problem_of_crops(description["patch_size"], crops):
            raise errors.UserError(f"crops {crops}: {problem}")
        description["test_crop"] = "center" if crops == 1 else "grid"
    return description


class QualityModel:
    """A trained model and what is needed to use it. Make one with `load`.

    net: the `QualityNet`, in eval mode on the device.
    description: plain values that say how images are prepared and what scores mean, such as
        `patch_size`, `resize`, `score_range` and `higher_is_better`.
    hardware: the device, the precision and the number of worker processes.
    trained: the description as the file has it, without what the arguments of `load` change.
    """

    def __init__(
        self,
        net: hypernet.QualityNet,
        description: dict[str, Any],
        hardware: Hardware,
        trained: Mapping[str, Any] | None = None,
    ):
        self.net = net.to(hardware.device).to(memory_format=torch.channels_last).eval()
        self.description = description
        self.hardware = hardware
        self.trained = trained or description

    @property
    def weights(self) -> str:
        """A digest of the weights: the same whichever file they lie in."""
        # Over the tensors: the bytes of a file would differ with its format and its description.
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    @property
    def made_with(self) -> str:
        """What a score depends on besides the image: the weights, and how images are prepared."""
        settings = score_files.settings_text(self.description, self.precision)
        return f"weights={self.weights} {settings}"

    @property
    def precision(self) -> str:
        """The number format of the computation."""
        return "bf16" if self.hardware.bf16 else "fp32"

    @property
    def crops(self) -> int:
        """The number of patches that an image is scored on."""
        centre_alone = self.description["test_crop"] == "center"
        return 1 if centre_alone else self.description["test_patch_num"]

    def use_scale(self, name: str) -> None:
        """Score on the scale of one of the data sets that the model was trained on.

        A model of several sets scores on the scale where the sets met. This changes the scores and
        `description`. Raises UserError if the model was not trained on a set of this name.
        """
        description = self.description
        scales = description.get("scales") or {
            description["dataset"]: {
                "factor": 1.0,
                "offset": 0.0,
                "nominal_range": list(readers.nominal_set(description).range),
            }
        }
        name = names.record_name(name)
        if name not in scales:
            raise errors.UserError(f"--scale {name}: the model was trained on {', '.join(scales)}")
        # The scale says: model's score = factor * set's score + offset.
        factor = scales[name]["factor"]
        offset = -scales[name]["offset"] / factor
        self.net.rescale(1 / factor, offset)
        self.description = {
            **description,
            "score_range": scales[name]["nominal_range"],
            "nominal_range": scales[name]["nominal_range"],
            "higher_is_better": description["higher_is_better"] == (factor > 0),
            "calibration": {
                name: rescaled(entry, 1 / factor, offset)
                for name, entry in description.get("calibration", {}).items()
            },
        }

    def score(self, image: ImageLike) -> float:
        """The score of one image of any size.

        image: a path; the bytes of an image file; a PIL image; an array uint8 (H, W, 3) or (H, W);
            or a tensor (3, H, W) or (1, H, W), uint8 0..255 or floating 0..1. Colours are RGB.

        Raises ValueError with the file's name and the reason if the image cannot be read, and
        TypeError for an object that is none of these.
        """
        return float(self.score_patches([self.patches(image)])[0])

    def meaning(
        self,
        reference: str | None = None,
        level: float = 0.9,
        above: float | None = None,
        sure: float = 0.9,
    ) -> Meaning:
        """What explains the model's scores by one of its calibrations: see `Meaning`."""
        return Meaning(self.description, reference, level, above, sure)

    def explain(
        self, image: ImageLike, reference: str | None = None, level: float = 0.9
    ) -> Explained:
        """The score of an image, its percentile and the interval in which its MOS lies.

        reference: the set of the calibration (default: the model's first one). level: the
        probability that the interval holds the MOS. Raises as `score` and as `meaning`.
        """
        return self.meaning(reference, level).of(self.score(image))

    def better(self, first: ImageLike, second: ImageLike, reference: str | None = None) -> float:
        """The probability that the first image is the better one. Raises as `explain`."""
        return self.meaning(reference).better(self.score(first), self.score(second))

    def score_all(
        self,
        images: Iterable[ImageLike | None],
        batch_size: int = SCORE_BATCH,
        workers: int | None = None,
        meaning: Meaning | None = None,
    ) -> Iterator[Scored]:
        """Score a stream of images, in order and in constant memory.

        images: what `score` takes. A stream that pauses may yield None where it does: the images
            before it are then scored without waiting for a full batch.
        batch_size: patches per forward pass.
        workers: threads that decode images (default: one per core).
        meaning: explains each score as well; from `meaning`.

        An image that cannot be read is yielded with its `problem` and does not stop the stream.
        Raises TypeError for an object that is no image at all.
        """
        workers = workers or os.cpu_count() or 1
        # While a batch is scored, the threads decode the images of the next one, rounded up.
        decoded_ahead = -(-batch_size // self.crops) + workers
        waiting: deque = deque()
        ready: list[_Decoded] = []
        with ThreadPoolExecutor(workers) as pool:
            try:
                # The end of the stream is one more pause.
                for image in itertools.chain(images, [None]):
                    pauses = image is None
                    if not pauses:
                        waiting.append(pool.submit(self._decode, image))
                    while len(waiting) > (0 if pauses else decoded_ahead):
                        ready.append(waiting.popleft().result())
                        patches = sum(len(item[1]) for item in ready if item[1] is not None)
                        # Images that cannot be read count too, or they would pile up.
                        if max(len(ready), patches) >= batch_size:
                            yield from self._score_decoded(ready, batch_size, meaning)
                            ready.clear()
                    if pauses:
                        yield from self._score_decoded(ready, batch_size, meaning)
                        ready.clear()
            finally:
                # The caller may have stopped early: don't decode what nobody will see.
                pool.shutdown(cancel_futures=True)

    def patches(self, image: ImageLike) -> np.ndarray:
        """The patches that an image is scored on, uint8 (n, P, P, 3).

        They are cut as in the tests of the model's own run. Raises as `score`.
        """
        side = self.description["patch_size"]
        pixels = self.pixels(image)
        # Random crops belong to a test set, where each image draws by its number. A single image
        # gets as many crops on a grid.
        crop = "center" if self.description["test_crop"] == "center" else "grid"
        places = test_patches(
            np.array([pixels.shape[:2]]), side, crop, self.description["test_patch_num"]
        )
        return np.stack(
            [
                pixels[top : top + side, left : left + side]
                for top, left in zip(places.top, places.left, strict=True)
            ]
        )

    def pixels(self, image: ImageLike) -> np.ndarray:
        """An image as RGB uint8 (H, W, 3), resized as in training. Raises as `score`."""
        side = self.description["patch_size"]
        resize = self.description["resize"]
        exif_rotate = self.description.get("exif_rotate", False)
        if isinstance(image, image_sources.StoredImage):
            if image.problem:
                raise ValueError(image.problem)
            image = image.data
        if isinstance(image, bytes):
            return load_image(image, resize, side, exif_rotate)
        if isinstance(image, str | os.PathLike):
            try:
                return load_image(Path(image), resize, side, exif_rotate)
            except ValueError as problem:
                raise ValueError(f"{image}: {problem}") from None
        if isinstance(image, Image.Image):
            pixels = from_pillow(image, exif_rotate)
        else:
            pixels = _as_pixels(image)
        height, width = resized_size(pixels.shape[0], pixels.shape[1], resize, side)
        if height * width > MAX_PIXELS:
            raise ValueError(f"absurdly large once resized to {width}x{height} pixels")
        return resize_image(pixels, height, width)

    def score_patches(self, patches: list[np.ndarray], batch_size: int = SCORE_BATCH) -> np.ndarray:
        """The scores (N,) of N images, each the mean over the image's patches uint8 (n, P, P, 3).

        They come from the same function that tests a run.
        """
        if not patches:
            return np.empty(0)
        flat = torch.from_numpy(np.concatenate(patches)).split(batch_size)
        image_numbers = torch.from_numpy(np.repeat(np.arange(len(patches)), [*map(len, patches)]))
        batches = (
            {"patches": batch, "image": numbers}
            for batch, numbers in zip(flat, image_numbers.split(batch_size))
        )
        # A program that imports this package has switches of its own. Scores must not depend on
        # them, nor they on us.
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            return engine.score(self.net, batches, len(patches), self.hardware)

    def _decode(self, image: ImageLike) -> _Decoded:
        try:
            return image, self.patches(image), None
        except ValueError as problem:
            # The name stands beside the reason anyway.
            name = "" if isinstance(image, bytes) else f"{image}: "
            return image, None, " ".join(str(problem).removeprefix(name).split())

    def _score_decoded(
        self, decoded: list[_Decoded], batch_size: int, meaning: Meaning | None
    ) -> Iterator[Scored]:
        readable = [patches for _, patches, _ in decoded if patches is not None]
        scores = iter(self.score_patches(readable, batch_size))
        for image, patches, problem in decoded:
            score = None if patches is None else float(next(scores))
            explained = None
            # Broken weights may give nan.
            if meaning is not None and score is not None and math.isfinite(score):
                explained = meaning.of(score)
            yield Scored(image, score, problem, explained)


class ExportedModel(QualityModel):
    """A model that ONNX Runtime or OpenVINO scores with, on the CPU. It has no network of torch.

    description: as of `QualityModel`; None: the file's own.
    """

    def __init__(self, exported: runtimes.Exported, description: dict[str, Any] | None = None):
        self.exported = exported
        self.description = description or exported.description
        self.trained = exported.description
        self.hardware = Hardware(torch.device("cpu"))

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what needs the network, in one line."""
        if name != "net":
            raise AttributeError(name)
        raise errors.UserError(
            f"{self.exported.path}: an exported model scores photographs alone; expected the "
            "checkpoint that it was exported from"
        )

    @property
    def weights(self) -> str:
        """The name of the runtime, and a digest of the file, or of both files."""
        return self.exported.weights

    @property
    def precision(self) -> str:
        return self.exported.precision

    def score_patches(self, patches: list[np.ndarray], batch_size: int = SCORE_BATCH) -> np.ndarray:
        if not patches:
            return np.empty(0)
        flat = np.concatenate(patches)
        scores = [
            self.exported.score(flat[start : start + batch_size])
            for start in range(0, len(flat), batch_size)
        ]
        counts = [*map(len, patches)]
        image_numbers = np.repeat(np.arange(len(patches)), counts)
        return np.bincount(image_numbers, np.concatenate(scores)) / counts


def _as_pixels(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """An array or a tensor as RGB uint8 (H, W, 3).

    Raises ValueError for other shapes, kinds and ranges of values, and TypeError for anything else.
    """
    if isinstance(image, torch.Tensor):
        return _tensor_as_pixels(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            "expected a path, bytes, a PIL image, an array or a tensor, found "
            f"{type(image).__name__}"
        )
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected uint8 (H, W, 3) or (H, W), found {image.dtype} {image.shape}")
    # torch takes no negative strides, such as those of image[..., ::-1].
    return np.require(image, requirements=["C", "W"])


def _tensor_as_pixels(image: torch.Tensor) -> np.ndarray:
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
