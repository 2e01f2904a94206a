"""Pristine scenes for the demo data set: dead leaves with textures, light and lettering.

The dead-leaves model (Lee, Mumford and Huang, IJCV 2001) covers a plane with objects of all sizes
until every point is hidden. Its pictures have the statistics of natural images. All random numbers
come from the generator that the caller passes, so the same generator gives the same pixels.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import fft

# The size of every image, in pixels.
WIDTH = 512
HEIGHT = 384
WORDS = (
    "QUALITY image Street OPEN market 1987 North Hotel BREAD river Cafe No.42 SALE garden music"
).split()
# Colours in RGB, percent: leaves, grass, earth, brick; sand, stone, sky, water; snow, skin, paint.
THEMES = (
    np.array(
        [
            (36, 52, 22),
            (52, 64, 30),
            (42, 30, 20),
            (62, 34, 26),
            (80, 70, 50),
            (55, 55, 54),
            (50, 64, 84),
            (24, 38, 50),
            (88, 88, 86),
            (80, 60, 50),
            (78, 24, 22),
        ]
    )
    / 100
)
# Loading Pillow's font takes longer than drawing a word, and a scene repeats its sizes.
_font = functools.cache(ImageFont.load_default)


class Domain(NamedTuple):
    """Where a split's scenes come from.

    radii: smallest and largest leaf in pixels; leaves: how many; mean: grey level; tint: factors on
    RGB; scale: offset and slope of its raters' scores.
    """

    radii: tuple[float, float]
    leaves: int
    mean: float
    tint: tuple[float, float, float]
    scale: tuple[float, float]


KONIQ = Domain((7, 90), 800, 118, (1.0, 1.0, 1.0), (0.0, 1.0))
# Darker, warmer, coarser and rated on another scale, so that testing on it is a cross test.
SPAQ = Domain((10, 130), 420, 100, (1.08, 1.0, 0.88), (8.0, 0.85))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round an image of grey levels to whole ones and clip them to 0..255."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def luma(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Brightness, ITU-R BT.601, float32."""
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


def noise_field(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """(HEIGHT, WIDTH) float32 noise with the amplitude spectrum 1/f^exponent, mean 0, sd 1."""
    rows = fft.fftfreq(HEIGHT)[:, None]
    frequency = np.hypot(rows, fft.rfftfreq(WIDTH)).astype(np.float32)
    # An infinite frequency gets the amplitude 0: the noise has no mean.
    frequency[0, 0] = np.inf
    white = rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32)
    field = fft.irfft2(fft.rfft2(white) * frequency**-exponent, s=(HEIGHT, WIDTH))
    return field / field.std()


def textures(rng: np.random.Generator, smooth: np.ndarray) -> list[np.ndarray]:
    """Grain, wood, stripes and checker, each (HEIGHT, WIDTH) of sd about 1 and bent by `smooth`."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    angles = rng.uniform(0, np.pi, 3).tolist()
    periods = rng.uniform(4, 9, 3).tolist()

    def wave(index: int, bend: float, turn: float = 0.0) -> np.ndarray:
        frequency = 2 * np.pi / periods[index]
        angle = angles[index] + turn
        # Python floats, since NumPy's would make the arrays float64.
        across = frequency * float(np.cos(angle))
        down = frequency * float(np.sin(angle))
        return np.sin(across * x + down * y + bend * smooth)

    grain = noise_field(rng, 0.7)
    return [
        grain,
        wave(0, 8.0) + 0.6 * grain,
        1.2 * np.tanh(2 * wave(1, 0.5)),
        1.3 * np.tanh(4 * (wave(2, 0.5) * wave(2, 0.5, np.pi / 2))),
    ]


def make_scene(rng: np.random.Generator, domain: Domain) -> np.ndarray:
    """Draw a pristine scene, (HEIGHT, WIDTH, 3) uint8: lit leaves and words, some under a sky.

    Exposure, contrast and colourfulness are brought to the domain's, so that a distortion shows
    against any content.
    """
    sky = rng.random() < 0.3
    words = int(rng.choice([3, 8, 30]))
    shown = _downsampled(_labels(rng, domain, sky, words), _looks(rng, domain.leaves, sky, words))
    # The clouds of the sky and the light on the ground.
    smooth = noise_field(rng, 1.8)
    light = 1 + 0.1 * smooth + np.linspace(0.15, -0.15, HEIGHT, dtype=np.float32)[:, None]
    for amount, texture in zip(shown[3:7], textures(rng, smooth), strict=True):
        light += amount * texture
    return _developed(np.maximum(shown[:3], 0.02) * light, domain)


def _labels(rng: np.random.Generator, domain: Domain, sky: bool, words: int) -> np.ndarray:
    """The object in each pixel, (2*HEIGHT, 2*WIDTH): 0 ground or sky, then leaves, then words."""
    canvas = Image.new("I", (2 * WIDTH, 2 * HEIGHT))
    draw = ImageDraw.Draw(canvas)
    # Radii of density r^-3, by inverting their distribution: a scene looks alike at every scale.
    smallest, largest = domain.radii
    low = smallest**-2.0
    high = largest**-2.0
    radii = (low + rng.random(domain.leaves) * (high - low)) ** -0.5
    # Below a sky the leaves crowd towards the bottom.
    places = rng.random((domain.leaves, 2)) ** [1, 0.6 if sky else 1] * [2 * WIDTH, 2 * HEIGHT]
    shapes = rng.random((domain.leaves, 4))
    # The share of polygons makes round, mixed or angular scenes.
    shapes[:, 0] = shapes[:, 0] < rng.choice([0.15, 0.5, 0.9])
    for label, (place, radius, shape) in enumerate(
        zip(places.tolist(), radii.tolist(), shapes.tolist(), strict=True), start=1
    ):
        _draw_leaf(draw, place, radius, shape, label)
    for label in range(domain.leaves + 1, domain.leaves + 1 + words):
        corner = rng.uniform(-40, 2 * WIDTH - 60), rng.uniform(-10, 2 * HEIGHT - 30)
        size = int(rng.integers(3, 9) * domain.radii[0])
        draw.text(corner, WORDS[rng.integers(len(WORDS))], fill=label, font=_font(size))
    return np.asarray(canvas)


def _draw_leaf(
    draw: ImageDraw.ImageDraw, place: list[float], radius: float, shape: list[float], label: int
) -> None:
    """Draw an ellipse or a polygon of 3 to 6 corners at double size.

    shape: four numbers 0..1: whether it is a polygon, how many corners, how round, how turned.
    """
    x, y = place
    polygon, corners, roundness, turn = shape
    long = 2 * radius
    short = long * (0.45 + 0.55 * roundness)
    if not polygon:
        # Pillow's ellipses lie along the axes: they are turned by a right angle or not at all.
        across, down = (long, short) if turn < 0.5 else (short, long)
        draw.ellipse((x - across, y - down, x + across, y + down), fill=label)
        return
    cos = math.cos(math.pi * turn)
    sin = math.sin(math.pi * turn)
    count = 3 + int(4 * corners)
    points = []
    for k in range(count):
        u = long * math.cos(math.tau * k / count)
        v = short * math.sin(math.tau * k / count)
        points.append((x + u * cos - v * sin, y + u * sin + v * cos))
    draw.polygon(points, fill=label)


def _looks(rng: np.random.Generator, leaves: int, sky: bool, words: int) -> np.ndarray:
    """The objects' looks, (1 + leaves + words, 8) uint8: RGB, amounts of four textures, a spare.

    The spare makes a look eight bytes long, which `_downsampled` reads as one number.
    """
    count = 1 + leaves + words
    looks = np.zeros((count, 8), np.float32)
    # Five colours recur within a scene, as in a photo.
    theme = THEMES[rng.choice(len(THEMES), 5, replace=False)]
    looks[:, :3] = theme[rng.integers(5, size=count)] * rng.uniform(0.35, 1.35, (count, 1))
    looks[:, :3] += rng.normal(0, 0.05, (count, 3))
    texture = rng.choice(4, size=count, p=[0.4, 0.3, 0.15, 0.15])
    looks[np.arange(count), 3 + texture] = rng.uniform(0.12, 0.32, count)
    # Words are nearly black or nearly white, and smoother than leaves.
    looks[1 + leaves :, :3] = rng.choice([0.03, 0.97], (words, 1)) + rng.normal(0, 0.05, (words, 3))
    looks[1 + leaves :, 3:] *= 0.3
    if sky:
        looks[0] = [0.55, 0.68, 0.85, 0.08, 0, 0, 0, 0]
    return to_uint8(255 * looks)


def _downsampled(labels: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """The objects' looks in each pixel of the scene, (8, HEIGHT, WIDTH) float32 of 0..1.

    The labels are drawn at double size and averaged: edges without stairs, as sharp as a good lens
    draws them.
    """
    # An object's eight bytes are looked up as one number, five times as fast.
    packed = looks.view(np.uint64)
    total = np.zeros((HEIGHT, WIDTH, 8), np.uint16)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        total += packed[labels[dy::2, dx::2], 0].view(np.uint8).reshape(HEIGHT, WIDTH, 8)
    return np.moveaxis(total, 2, 0).astype(np.float32, order="C") / (4 * 255)


def _developed(image: np.ndarray, domain: Domain) -> np.ndarray:
    """The (3, HEIGHT, WIDTH) image as a camera of the domain gives it, (HEIGHT, WIDTH, 3) uint8."""
    grey = luma(*image)
    chroma = image - grey
    # A camera's white balance.
    chroma -= 0.7 * chroma.mean((1, 2), keepdims=True)
    grey = domain.mean + 52 * (grey - grey.mean()) / grey.std()
    tint = np.array(domain.tint, np.float32)[:, None, None]
    image = (grey + 17 * chroma / chroma.std()) * tint
    return np.ascontiguousarray(np.moveaxis(to_uint8(image), 0, 2))
