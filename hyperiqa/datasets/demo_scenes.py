"""Pristine scenes for the demo data set: dead leaves, terrain, textures, light and lettering.

The dead-leaves model (Lee, Mumford and Huang, IJCV 2001) covers a plane with objects of all sizes.
The terrain, the clouds and the grain are 1/f noise. Both have the statistics of natural images, and
networks learn from such pictures (Baradad et al., "Learning to See by Looking at Noise", NeurIPS
2021). As in photographs, parts may be out of focus, and exposure, contrast and colourfulness vary.
All random numbers come from the generator that the caller passes, so the same generator gives the
same pixels.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import fft, ndimage

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
# Of each row of pixels: from 1 at the top to -1 at the bottom.
HEIGHTS = np.linspace(1, -1, HEIGHT, dtype=np.float32)[:, None]
FREQUENCY = np.hypot(fft.fftfreq(HEIGHT)[:, None], fft.rfftfreq(WIDTH))
# An infinite frequency gets the amplitude 0: noise has no mean.
FREQUENCY[0, 0] = np.inf
LOG_FREQUENCY = np.log(FREQUENCY).astype(np.float32)
# Loading Pillow's font takes longer than drawing a word, and a scene repeats its sizes.
_font = functools.cache(ImageFont.load_default)


class Domain(NamedTuple):
    """Where a split's scenes come from.

    size: factor on the objects' radii; mean: mean grey level, 30 more or less; tint: factors on
    RGB; scale: offset and slope of its raters' scores. They seldom agree on the best or the worst
    grade, so that a pristine scene has less than 100.
    """

    size: float
    mean: float
    tint: tuple[float, float, float]
    scale: tuple[float, float]


KONIQ = Domain(1.0, 112, (1.0, 1.0, 1.0), (3.0, 0.94))
# Darker, warmer, coarser and rated on another scale, so that testing on it is a cross test.
SPAQ = Domain(1.5, 94, (1.08, 1.0, 0.88), (10.0, 0.8))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round an image of grey levels to whole ones and clip them to 0..255."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def luma(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Brightness, ITU-R BT.601, float32."""
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


def noise_field(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """(HEIGHT, WIDTH) float32 noise with the amplitude spectrum 1/f^exponent, mean 0, sd 1."""
    white = rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32)
    amplitude = np.exp(np.float32(-exponent) * LOG_FREQUENCY)
    field = fft.irfft2(fft.rfft2(white) * amplitude, s=(HEIGHT, WIDTH))
    return field / field.std()


def textures(rng: np.random.Generator, smooth: np.ndarray) -> list[np.ndarray]:
    """Grain, wood, stripes and checker, each (HEIGHT, WIDTH) of sd about 1 and bent by `smooth`."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)

    def wave(bend: float) -> np.ndarray:
        angle = rng.uniform(0, math.pi)
        frequency = math.tau / rng.uniform(4, 9)
        along = x * math.cos(angle) + y * math.sin(angle)
        return np.sin(frequency * along + bend * smooth)

    grain = noise_field(rng, rng.uniform(0.9, 1.5))
    return [
        grain,
        wave(8.0) + 0.6 * grain,
        1.2 * np.tanh(2 * wave(0.5)),
        1.3 * np.tanh(4 * wave(0.5) * wave(0.5)),
    ]


def make_scene(rng: np.random.Generator, domain: Domain) -> np.ndarray:
    """Draw a pristine scene of the domain, (HEIGHT, WIDTH, 3) uint8."""
    leaves = int(rng.choice([30, 150, 400, 1000]))
    words = int(rng.choice([0, 0, 3, 8, 20]))
    shown = _downsampled(_labels(rng, domain, leaves, words), _looks(rng, leaves, words))
    clouds = noise_field(rng, 1.8)
    for _ in range(rng.integers(4)):
        _add_terrain(rng, shown)
    # The light: clouds' shadows, and more of it from above.
    light = 1 + rng.uniform(0.05, 0.25) * clouds + rng.uniform(0, 0.3) * HEIGHTS
    for amount, texture in zip(shown[3:7], textures(rng, clouds), strict=True):
        light += amount * texture
    image = np.maximum(shown[:3], 0.02) * np.float32(light)
    if rng.random() < 0.4:
        image = _out_of_focus_in_parts(rng, image)
    # Lens and sensor: no photograph is sharp to the pixel.
    softness = rng.uniform(0.3, 0.8)
    return _developed(rng, ndimage.gaussian_filter(image, (0, softness, softness)), domain)


def _add_terrain(rng: np.random.Generator, shown: np.ndarray) -> None:
    # Lay a region with the border of a coast, a wood or a cloud over the objects, in place.
    height = noise_field(rng, rng.uniform(1.3, 2.2)) + rng.uniform(-2, 2) * HEIGHTS
    # From a sharp border to a soft one.
    cover = np.clip((height - rng.uniform(-0.5, 1.2)) * rng.uniform(6, 40), 0, 1)
    look = np.zeros((8, 1, 1), np.float32)
    look[:3, 0, 0] = THEMES[rng.integers(len(THEMES))] * rng.uniform(0.4, 1.2)
    look[3] = rng.uniform(0.03, 0.3)
    shown += np.float32(cover) * (look - shown)


def _out_of_focus_in_parts(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    # Blur the upper or lower part of the image, or patches anywhere: the depth of field.
    radius = rng.uniform(1.5, 5)
    blurred = ndimage.gaussian_filter(image, (0, radius, radius))
    sharp = 4 * HEIGHTS if rng.random() < 0.5 else 2 * noise_field(rng, 2.0)
    cover = np.clip(sharp * rng.choice([-1, 1]) + rng.uniform(-1, 2), 0, 1)
    return blurred + np.float32(cover) * (image - blurred)


def _labels(rng: np.random.Generator, domain: Domain, leaves: int, words: int) -> np.ndarray:
    # The object in each pixel, (2*HEIGHT, 2*WIDTH): 0 the ground, then leaves, then words.
    canvas = Image.new("I", (2 * WIDTH, 2 * HEIGHT))
    draw = ImageDraw.Draw(canvas)
    # Radii of density r^-3, by inverting their distribution: a scene looks alike at every scale.
    low = rng.uniform(3, 14) ** -2.0
    high = rng.uniform(70, 300) ** -2.0
    radii = domain.size * (low + rng.random(leaves) * (high - low)) ** -0.5
    # In some scenes the leaves crowd towards the bottom.
    places = rng.random((leaves, 2)) ** [1, rng.uniform(0.5, 1)] * [2 * WIDTH, 2 * HEIGHT]
    # Round, mixed or angular scenes.
    round_share = rng.choice([0.1, 0.5, 0.85])
    for label, (x, y) in enumerate(places.tolist(), start=1):
        corners = 24 if rng.random() < round_share else int(rng.integers(3, 7))
        points = np.exp(2j * math.pi / corners * np.arange(corners))
        # Flattened to an ellipse or a long polygon, turned, and drawn at double size.
        points.imag *= rng.uniform(0.45, 1)
        points *= 2 * radii[label - 1] * np.exp(1j * rng.uniform(0, math.pi))
        points += x + 1j * y
        draw.polygon(points.view(float).tolist(), fill=label)
    for label in range(leaves + 1, leaves + 1 + words):
        corner = rng.uniform(-40, 2 * WIDTH - 60), rng.uniform(-10, 2 * HEIGHT - 30)
        size = int(rng.integers(20, 70) * domain.size)
        draw.text(corner, WORDS[rng.integers(len(WORDS))], fill=label, font=_font(size))
    return np.asarray(canvas)


def _looks(rng: np.random.Generator, leaves: int, words: int) -> np.ndarray:
    # The objects' looks, (1 + leaves + words, 8) uint8: RGB, amounts of four textures, a spare. The
    # spare makes a look eight bytes long, which `_downsampled` reads as one number.
    count = 1 + leaves + words
    looks = np.zeros((count, 8), np.float32)
    # Five colours recur within a scene, as in a photo.
    theme = THEMES[rng.choice(len(THEMES), 5, replace=False)]
    looks[:, :3] = theme[rng.integers(5, size=count)] * rng.uniform(0.35, 1.35, (count, 1))
    looks[:, :3] += rng.normal(0, 0.05, (count, 3))
    texture = rng.choice(4, size=count, p=[0.4, 0.3, 0.15, 0.15])
    # A scene is rougher or smoother as a whole.
    looks[np.arange(count), 3 + texture] = rng.uniform(0.3, 1) * rng.uniform(0.02, 0.35, count)
    # Words are nearly black or nearly white, and smoother than leaves.
    looks[1 + leaves :, :3] = rng.choice([0.03, 0.97], (words, 1)) + rng.normal(0, 0.05, (words, 3))
    looks[1 + leaves :, 3:] *= 0.3
    return to_uint8(255 * looks)


def _downsampled(labels: np.ndarray, looks: np.ndarray) -> np.ndarray:
    # The objects' looks in each pixel of the scene, (8, HEIGHT, WIDTH) float32 of 0..1. The labels
    # are drawn at double size and averaged: edges without stairs, as sharp as a good lens draws
    # them.
    # An object's eight bytes are looked up as one number, five times as fast.
    packed = looks.view(np.uint64)
    total = np.zeros((HEIGHT, WIDTH, 8), np.uint16)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        total += packed[labels[dy::2, dx::2], 0].view(np.uint8).reshape(HEIGHT, WIDTH, 8)
    return np.moveaxis(total, 2, 0).astype(np.float32, order="C") / (4 * 255)


def _developed(rng: np.random.Generator, image: np.ndarray, domain: Domain) -> np.ndarray:
    # The (3, HEIGHT, WIDTH) image as a camera of the domain gives it, (HEIGHT, WIDTH, 3) uint8.
    grey = luma(*image)
    chroma = image - grey
    # A camera's white balance.
    chroma -= 0.7 * chroma.mean((1, 2), keepdims=True)
    # Its response, which is flatter in the shadows and the lights.
    grey = np.tanh((grey - grey.mean()) / (rng.uniform(1.5, 3) * grey.std()))
    grey = domain.mean + rng.uniform(-30, 30) + rng.uniform(38, 66) * grey / grey.std()
    tint = np.array(domain.tint, np.float32)[:, None, None]
    image = (grey + rng.uniform(6, 26) * chroma / chroma.std()) * tint
    return np.ascontiguousarray(np.moveaxis(to_uint8(image), 0, 2))
