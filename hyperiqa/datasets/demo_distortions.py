"""The distortions of the demo: what cameras, codecs and editing do to a picture, at five levels."""

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from hyperiqa.datasets.demo_scenes import to_uint8

# It takes most of its brightness from noise.
CHROMATIC = (np.eye(3) - 0.25).astype(np.float32)


def distort(image: np.ndarray, kind: str, level: int, rng: np.random.Generator) -> np.ndarray:
    """The (H, W, 3) uint8 image with a distortion or a pair, level 1 (barely visible) to 5 (awful).

    Level 0 leaves the image as it is. Within a level the strength varies by half a step up and
    down. The kinds follow KADID-10k (Lin, Hosu and Saupe, QoMEX 2019).
    """
    if level == 0:
        return image
    parts = kind.split("-")
    graded = level + rng.uniform(-0.5, 0.5)
    if len(parts) > 1:
        # Each part of a pair has this share of the level.
        graded *= 0.75
    for part in parts:
        weakest, strongest, change = DISTORTIONS[part]
        strength = weakest * (strongest / weakest) ** ((graded - 1) / 4)
        height, width = image.shape[:2]
        # Photographs are mostly seen smaller than they are, so half of these are made larger.
        if part in ("jpeg", "webp", "pixelation") and rng.random() < 0.5:
            large = _resized(image, 2 * width, 2 * height)
            image = _resized(change(large, strength, rng), width, height)
        else:
            image = change(image, strength, rng)
    return image


def _resized(
    image: np.ndarray, width: int, height: int, method: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def _convolved(image: np.ndarray, radius: float, kernel_of: Callable) -> np.ndarray:
    # The image under a kernel, which `kernel_of` makes of the offsets: across + 1j · down.
    half = math.ceil(radius)
    down, across = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = kernel_of(across + 1j * down)
    padded = np.pad(image.astype(np.float32), ((half, half), (half, half), (0, 0)), mode="reflect")
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    transfer = fft.rfft2(np.float32(kernel / kernel.sum()), shape)[..., None]
    # The wrap of this convolution stays within the border that is cut off.
    blurred = fft.irfft2(fft.rfft2(padded, shape, (0, 1)) * transfer, shape, (0, 1))
    return to_uint8(blurred[2 * half :, 2 * half :][: image.shape[0], : image.shape[1]])


def _motion_blur(image: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    direction = np.exp(1j * rng.uniform(0, math.pi))
    return _convolved(
        image,
        length / 2,
        # The ramps of one pixel smooth the ends and the sides of the line.
        lambda z: (
            np.clip((length + 1) / 2 - abs((z * direction).real), 0, 1)
            * np.clip(1 - abs((z * direction).imag), 0, 1)
        ),
    )


def _recoded(image: np.ndarray, **options) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _enlarged(image: np.ndarray, factor: float, *method: Image.Resampling) -> np.ndarray:
    height, width = image.shape[:2]
    small = _resized(image, round(width / factor), round(height / factor))
    return _resized(small, width, height, *method)


# Of each kind: its strength at level 1 and at level 5, and what makes it of an image, a strength
# and a generator of random numbers. From level to level the strength changes by the same factor.
DISTORTIONS: dict[str, tuple[float, float, Callable[..., np.ndarray]]] = {
    # Radius of the disc, the border of which is a ramp of one pixel.
    "defocus": (
        0.8,
        7.0,
        lambda image, radius, _: _convolved(
            image, radius + 1, lambda z: np.clip(radius + 0.5 - abs(z), 0, 1)
        ),
    ),
    # Standard deviation in pixels.
    "gaussian_blur": (
        0.5,
        4.5,
        lambda image, sigma, _: to_uint8(
            ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0))
        ),
    ),
    # Length in pixels.
    "motion_blur": (2.5, 26, _motion_blur),
    # Standard deviation in grey levels.
    "white_noise": (
        3,
        45,
        lambda image, sigma, rng: to_uint8(
            image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
        ),
    ),
    # The same in each channel, where the channels differ more in colour than in brightness.
    "colour_noise": (
        4,
        60,
        lambda image, sigma, rng: to_uint8(
            image + sigma * rng.standard_normal(image.shape, dtype=np.float32) @ CHROMATIC
        ),
    ),
    # Pillow's quality; of JPEG 2000 the compression ratio.
    "jpeg": (50, 3, lambda image, q, _: _recoded(image, format="JPEG", quality=round(q))),
    "webp": (40, 1, lambda image, q, _: _recoded(image, format="WEBP", quality=round(q), method=0)),
    "jpeg2000": (
        15,
        250,
        lambda image, ratio, _: _recoded(
            image,
            format="JPEG2000",
            quality_mode="rates",
            quality_layers=[ratio],
            irreversible=True,
        ),
    ),
    # Factor on the light.
    "low_light": (0.8, 0.12, lambda image, factor, _: to_uint8(image * factor)),
    "over_exposure": (1.1, 3.0, lambda image, factor, _: to_uint8(image * factor)),
    # Factor between the strongest channel and the middle one, and between that and the weakest.
    "colour_cast": (
        1.05,
        2.0,
        lambda image, factor, rng: to_uint8(image * factor ** rng.permutation([-1.0, 0.0, 1.0])),
    ),
    # Share of the contrast that is left.
    "contrast": (
        0.85,
        0.13,
        lambda image, share, _: to_uint8(image.mean() + share * (image - image.mean())),
    ),
    # Factor by which the picture was smaller.
    "enlarging": (1.3, 7, lambda image, factor, _: _enlarged(image, factor)),
    "pixelation": (
        1.3,
        7,
        lambda image, factor, _: _enlarged(image, factor, Image.Resampling.NEAREST),
    ),
    # Number of grey levels.
    "banding": (
        32,
        3.5,
        lambda image, count, _: to_uint8(
            np.rint(image * ((count - 1) / 255)) * (255 / (count - 1))
        ),
    ),
}
PAIRS = (
    "defocus-jpeg",
    "gaussian_blur-white_noise",
    "low_light-white_noise",
    "white_noise-jpeg",
    "contrast-gaussian_blur",
    "enlarging-jpeg",
)
KINDS = (*DISTORTIONS, *PAIRS)
