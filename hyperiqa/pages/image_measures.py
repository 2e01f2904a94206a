"""Simple measures of images, to compare a model's errors with."""

import functools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.ndimage

from hyperiqa.datasets.records import Record
from hyperiqa.images.cache import ImageCache
from hyperiqa.images.decode import read_header


def brightness(rgb: np.ndarray, luma: np.ndarray) -> float:
    """Mean luma (Rec. 601), 0 to 255."""
    return float(luma.mean())


def contrast(rgb: np.ndarray, luma: np.ndarray) -> float:
    """Standard deviation of the luma."""
    return float(luma.std())


def sharpness(rgb: np.ndarray, luma: np.ndarray) -> float:
    """log10 of the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000)."""
    # An image of one colour has a variance of 0, and its logarithm must stay finite.
    return math.log10(scipy.ndimage.laplace(luma).var() + 1e-3)


def colourfulness(rgb: np.ndarray, luma: np.ndarray) -> float:
    """Hasler & Süsstrunk, "Measuring colourfulness in natural images", 2003."""
    r, g, b = np.moveaxis(rgb, 2, 0)
    red_green = r - g
    yellow_blue = (r + g) / 2 - b
    deviation = math.hypot(red_green.std(), yellow_blue.std())
    mean = math.hypot(red_green.mean(), yellow_blue.mean())
    return deviation + 0.3 * mean


# Name -> function of an image's pixels (H, W, 3) and luma (H, W), both float32 in 0 to 255.
MEASURES = {
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
    "colourfulness": colourfulness,
}


# A page of runs that are under way is written again and again.
@functools.cache
def measure_images(cache: ImageCache, records: tuple[Record, ...]) -> dict[str, list[float]]:
    """Each of MEASURES for every image as it was scored, and the size of its file in megapixels."""

    def measure_image(record: Record) -> list[float]:
        rgb = cache[cache.index[record.path]].astype(np.float32)
        luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
        values = [measure(rgb, luma) for measure in MEASURES.values()]
        megapixels = math.prod(read_header(record.path)) / 1e6
        return [*values, megapixels]

    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(measure_image, records))
    names = [*MEASURES, "megapixels"]
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True))}
