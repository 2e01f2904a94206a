"""The images, scores and files of `demo`, the synthetic data set that training can be tried on without a download.

`make_demo_dataset.py` is the command that makes it, and the reader of `demo` makes it on first use, by
`python -m hyperiqa.datasets.demo_images OUT`."""

import csv
import functools
import io
import itertools
import json
import math
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from scipy import fft, ndimage
from tqdm import tqdm

from hyperiqa.base.command_line import run_tool
from hyperiqa.base.errors import UserError
from hyperiqa.base.launching import parallel_map
from hyperiqa.base.signals import StopSignals

WIDTH, HEIGHT = 512, 384
CSV_HEADER = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"]
WORDS = "QUALITY image Street OPEN market 1987 North Hotel BREAD river Cafe No.42 SALE garden music".split()
THEMES = (
    np.array(
        [  # RGB, %: leaves, grass, earth, brick; sand, stone, sky, water; snow, skin, paint
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


class Kind(NamedTuple):
    """A distortion: its strengths at level 1..5 and the mean scores, 0..100, of level 1 and of level 5."""

    strengths: tuple[float, ...]
    best: float
    worst: float


KINDS = {
    "gaussian_blur": Kind((0.7, 1.2, 2.0, 3.2, 5.0), 87, 10),  # sigma, pixels
    "motion_blur": Kind((3, 6, 10, 17, 28), 86, 14),  # length, pixels
    "white_noise": Kind((6, 12, 21, 35, 58), 86, 14),  # sd, grey levels
    "jpeg": Kind((45, 24, 13, 7, 3), 88, 10),  # Pillow's quality
    "jpeg2000": Kind((12, 28, 60, 120, 240), 88, 10),  # compression ratio
    "contrast": Kind((0.75, 0.56, 0.40, 0.26, 0.14), 85, 18),  # share of the contrast that is left
    "pixelation": Kind((1.4, 2.2, 3.6, 6, 11), 85, 8),  # block side, pixels
    "oversaturation": Kind((1.5, 2.1, 3.0, 4.4, 7.0), 86, 22),  # factor on the chroma
}
PRISTINE, PRISTINE_SCORE = "pristine", 94.0
_font = functools.cache(ImageFont.load_default)


class Domain(NamedTuple):
    """Where a split's scenes come from.
    radii: smallest and largest leaf in pixels; leaves: how many; mean: grey level; tint: factors on RGB;
    scale: offset and slope of its raters' scores."""

    radii: tuple[float, float]
    leaves: int
    mean: float
    tint: tuple[float, float, float]
    scale: tuple[float, float]


KONIQ = Domain((7, 90), 800, 118, (1.0, 1.0, 1.0), (0.0, 1.0))
SPAQ = Domain((10, 130), 420, 100, (1.08, 1.0, 0.88), (8.0, 0.85))


class Task(NamedTuple):
    """One image to make: the address of its random numbers, what happens to its scene, where it goes."""

    address: tuple[int, int, int]
    domain: Domain
    kind: str
    level: int
    path: Path


def plan(count: int) -> list[tuple[str, int]]:
    """(kind, level) of each of `count` images: every 24th is pristine (level 0), the others are balanced.
    Eight kinds and five levels have no common divisor, so counting both round and round visits all 40 pairs;
    any count leaves kinds, levels and pairs each within one of each other."""
    pairs = zip(itertools.cycle(KINDS), itertools.cycle(range(1, 6)))
    return [(PRISTINE, 0) if i % 24 == 23 else next(pairs) for i in range(count)]


def expected_score(kind: str, level: int) -> float:
    """Mean score, 0..100, of a kind at a level 1..5 (linear between its two ends) or of a pristine image."""
    if kind == PRISTINE:
        return PRISTINE_SCORE
    _, best, worst = KINDS[kind]
    return best + (worst - best) * (level - 1) / 4


def rate(expected: float, rng: np.random.Generator) -> np.ndarray:
    """How many of about 105 raters chose 1..5: (5,) counts whose mean is 1 + expected/25 on average.
    Binomial, so the mean opinion score scatters by 1 to 2.5 points of 100, as it does with KonIQ-10k's panel."""
    return np.bincount(rng.binomial(4, expected / 100, size=rng.integers(95, 116)), minlength=5)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def noise_field(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """(HEIGHT, WIDTH) float32 noise with the amplitude spectrum 1/f^exponent, mean 0, sd 1."""
    frequency = np.hypot(fft.fftfreq(HEIGHT)[:, None], fft.rfftfreq(WIDTH)[None]).astype(np.float32)
    frequency[0, 0] = np.inf  # no mean
    spectrum = (
        fft.rfft2(rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32)) * frequency**-exponent
    )
    field = fft.irfft2(spectrum, s=(HEIGHT, WIDTH))
    return field / field.std()


def textures(rng: np.random.Generator, smooth: np.ndarray) -> list[np.ndarray]:
    """Four (HEIGHT, WIDTH) textures of sd about 1, bent by `smooth`: grain, wood, stripes and checker."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    angles, periods = rng.uniform(0, np.pi, 3).tolist(), rng.uniform(4, 9, 3).tolist()

    def wave(i: int, bend: float, turn: float = 0.0) -> np.ndarray:
        # Python floats, since NumPy's would make the arrays float64
        across, down = (
            2 * np.pi / periods[i] * float(f(angles[i] + turn)) for f in (np.cos, np.sin)
        )
        return np.sin(across * x + down * y + bend * smooth)

    grain = noise_field(rng, 0.7)
    checker = wave(2, 0.5) * wave(2, 0.5, np.pi / 2)
    return [
        grain,
        wave(0, 8.0) + 0.6 * grain,
        1.2 * np.tanh(2 * wave(1, 0.5)),
        1.3 * np.tanh(4 * checker),
    ]


def _leaf(
    draw: ImageDraw.ImageDraw, at: list[float], radius: float, shape: list[float], label: int
) -> None:
    """Draws an ellipse or a polygon of 3 to 6 corners, of double size; `shape` is four numbers 0..1."""
    (x, y), (polygon, corners, flat, turn) = at, shape
    a, b = 2 * radius, 2 * radius * (0.45 + 0.55 * flat)
    if not polygon:
        a, b = (a, b) if turn < 0.5 else (b, a)
        draw.ellipse((x - a, y - b, x + a, y + b), fill=label)
        return
    cos, sin, count = math.cos(math.pi * turn), math.sin(math.pi * turn), 3 + int(4 * corners)
    unit = [
        (a * math.cos(math.tau * k / count), b * math.sin(math.tau * k / count))
        for k in range(count)
    ]
    draw.polygon([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in unit], fill=label)


def _labels(rng: np.random.Generator, domain: Domain, sky: bool, words: int) -> np.ndarray:
    """Which object each pixel shows, (2*HEIGHT, 2*WIDTH): 0 ground or sky, then the leaves, then words."""
    canvas = Image.new("I", (2 * WIDTH, 2 * HEIGHT))
    draw = ImageDraw.Draw(canvas)
    # density r^-3: a scene looks alike at every scale (dead leaves: Lee, Mumford & Huang, IJCV 2001)
    low, high = (r**-2.0 for r in domain.radii)
    radii = (low + rng.random(domain.leaves) * (high - low)) ** -0.5
    places = rng.random((domain.leaves, 2)) ** [1, 0.6 if sky else 1] * [2 * WIDTH, 2 * HEIGHT]
    shapes = rng.random((domain.leaves, 4))
    shapes[:, 0] = shapes[:, 0] < rng.choice([0.15, 0.5, 0.9])  # round, mixed or angular scenes
    for label, leaf in enumerate(
        zip(places.tolist(), radii.tolist(), shapes.tolist(), strict=True), start=1
    ):
        _leaf(draw, *leaf, label)
    for label in range(domain.leaves + 1, domain.leaves + 1 + words):
        at = rng.uniform(-40, 2 * WIDTH - 60), rng.uniform(-10, 2 * HEIGHT - 30)
        size = int(rng.integers(3, 9) * domain.radii[0])
        draw.text(at, WORDS[rng.integers(len(WORDS))], fill=label, font=_font(size))
    return np.asarray(canvas)


def _looks(rng: np.random.Generator, leaves: int, sky: bool, words: int) -> np.ndarray:
    """(1 + leaves + words, 8) uint8 per object: RGB, how much each of the four textures shows, a spare."""
    count = 1 + leaves + words
    looks = np.zeros((count, 8), np.float32)
    theme = THEMES[
        rng.choice(len(THEMES), 5, replace=False)
    ]  # colours recur within a scene, as in a photo
    looks[:, :3] = theme[rng.integers(5, size=count)] * rng.uniform(0.35, 1.35, (count, 1))
    looks[:, :3] += rng.normal(0, 0.05, (count, 3))
    kinds = rng.choice(4, size=count, p=[0.4, 0.3, 0.15, 0.15])
    looks[np.arange(count), 3 + kinds] = rng.uniform(0.12, 0.32, count)
    looks[1 + leaves :, :3] = rng.choice([0.03, 0.97], (words, 1)) + rng.normal(0, 0.05, (words, 3))
    looks[1 + leaves :, 3:] *= 0.3
    if sky:
        looks[0] = [0.55, 0.68, 0.85, 0.08, 0, 0, 0, 0]
    return _to_uint8(255 * looks)


def make_scene(rng: np.random.Generator, domain: Domain) -> np.ndarray:
    """A pristine scene, (HEIGHT, WIDTH, 3) uint8: textured, lit dead leaves and lettering, some under a sky.
    Exposure, contrast and colourfulness are brought to the domain's: a distortion shows against any content."""
    sky, words = rng.random() < 0.3, int(rng.choice([3, 8, 30]))
    labels, looks = _labels(rng, domain, sky, words), _looks(rng, domain.leaves, sky, words)
    # Drawn at double size and averaged: edges without stairs, as sharp as a good lens draws them.
    # An object's eight bytes are looked up as one number, five times as fast.
    quarters = [looks.view(np.uint64)[labels[dy::2, dx::2], 0] for dy in (0, 1) for dx in (0, 1)]
    total = sum(q.view(np.uint8).reshape(HEIGHT, WIDTH, 8).astype(np.uint16) for q in quarters)
    shown = np.moveaxis(total, 2, 0).astype(np.float32, order="C") / 1020  # 4 * 255
    smooth = noise_field(rng, 1.8)  # the clouds of the sky and the light on the ground
    light = 1 + 0.1 * smooth + np.linspace(0.15, -0.15, HEIGHT, dtype=np.float32)[:, None]
    for amount, texture in zip(shown[3:7], textures(rng, smooth), strict=True):
        light += amount * texture
    image = np.maximum(shown[:3], 0.02) * light
    luma = _luma(*image)
    chroma = image - luma
    chroma -= 0.7 * chroma.mean((1, 2), keepdims=True)  # a camera's white balance
    luma = domain.mean + 52 * (luma - luma.mean()) / luma.std()
    image = (luma + 17 * chroma / chroma.std()) * np.array(domain.tint, np.float32)[:, None, None]
    return np.ascontiguousarray(np.moveaxis(_to_uint8(image), 0, 2))


def _luma(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Brightness, ITU-R BT.601, float32."""
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


def _recode(image: np.ndarray, **options: Any) -> np.ndarray:
    """The image after a lossy codec, in memory."""
    Image.fromarray(image).save(buffer := io.BytesIO(), **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _motion_blur(image: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Averages along a straight line of `length` pixels."""
    half = int(np.ceil(length / 2))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kernel = np.clip((length + 1) / 2 - abs(along), 0, 1) * np.clip(1 - abs(across), 0, 1)
    padded = np.pad(image.astype(np.float32), ((half, half), (half, half), (0, 0)), mode="reflect")
    shape, axes = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]], (0, 1)
    blur = fft.rfft2(np.float32(kernel / kernel.sum()), shape)[..., None]
    # the wrap of this convolution stays within the border that is cut off
    blurred = fft.irfft2(fft.rfft2(padded, shape, axes) * blur, shape, axes)
    return blurred[2 * half :, 2 * half :][: image.shape[0], : image.shape[1]]


def distort(image: np.ndarray, kind: str, level: int, rng: np.random.Generator) -> np.ndarray:
    """The (H, W, 3) uint8 image with one distortion, level 1 (barely visible) to 5 (awful); 0 leaves it.
    Kinds and levels after KADID-10k (Lin, Hosu & Saupe, QoMEX 2019), the strengths set for 512x384."""
    if level == 0:
        return image
    strength = KINDS[kind].strengths[level - 1]
    match kind:
        case "gaussian_blur":
            return _to_uint8(
                ndimage.gaussian_filter(image.astype(np.float32), (strength, strength, 0))
            )
        case "motion_blur":
            return _to_uint8(_motion_blur(image, strength, rng.uniform(0, np.pi)))
        case "white_noise":
            return _to_uint8(image + strength * rng.standard_normal(image.shape, dtype=np.float32))
        case "jpeg":
            return _recode(image, format="JPEG", quality=int(strength))
        case "jpeg2000":
            return _recode(
                image,
                format="JPEG2000",
                quality_mode="rates",
                quality_layers=[strength],
                irreversible=True,
            )
        case "pixelation":
            height, width = image.shape[:2]
            size = round(width / strength), round(height / strength)
            blocks = Image.fromarray(image).resize(size, Image.Resampling.BOX)
            return np.asarray(blocks.resize((width, height), Image.Resampling.NEAREST))
    luma = _luma(*np.moveaxis(image, 2, 0))  # contrast and oversaturation: away from a grey
    grey = float(luma.mean()) if kind == "contrast" else luma[..., None]
    return _to_uint8(grey + strength * (image - grey))


def make_image(task: Task) -> list[float]:
    """Makes and writes one image; returns its row of the score table without the name (see CSV_HEADER)."""
    rng = np.random.default_rng(np.random.SeedSequence(task.address))
    image = distort(make_scene(rng, task.domain), task.kind, task.level, rng)
    Image.fromarray(image).save(task.path, quality=95)
    offset, slope = task.domain.scale
    counts = rate(offset + slope * expected_score(task.kind, task.level), rng)
    total, grades = int(counts.sum()), np.arange(1, 6)
    mos = float(counts @ grades / total)
    sd = math.sqrt(float(counts @ (grades - mos) ** 2) / (total - 1))
    return [*counts.tolist(), total, round(mos, 6), round(sd, 6), round(25 * (mos - 1), 4)]


def _make_all(tasks: list[Task], processes: int) -> list[list[float]]:
    return list(
        tqdm(
            parallel_map(make_image, tasks, processes),
            "making images",
            len(tasks),
            unit="",
            file=sys.stderr,
        )
    )


def _write(root: Path, seed: int, train: int, test: int, spaq: int, processes: int) -> None:
    """Writes the whole data set into the new folder `root`."""
    koniq, spaq_root = root / "koniq-10k", root / "spaq-test"
    splits = [
        ("train", koniq / "train", train),
        ("test", koniq / "test", test),
        ("spaq", spaq_root, spaq),
    ]
    tasks = []
    for number, (split, folder, count) in enumerate(splits):
        folder.mkdir(parents=True)
        for i, (kind, level) in enumerate(plan(count)):
            path = folder / f"{split}_{i:04d}_{kind}_{level}.jpg"
            tasks.append(
                Task((seed, number, i), SPAQ if split == "spaq" else KONIQ, kind, level, path)
            )
    made = [
        (task.path.name, *row) for task, row in zip(tasks, _make_all(tasks, processes), strict=True)
    ]
    lists = {
        koniq / "koniq_train.json": train,
        koniq / "koniq_test.json": test,
        spaq_root / "spaq_test.json": spaq,
    }
    done = iter(made)
    for path, count in lists.items():
        entries = [
            {"image": f"{path.stem}/{row[0]}", "score": row[-1]}
            for row in itertools.islice(done, count)
        ]
        path.write_text(json.dumps(entries, indent=1) + "\n")
    with (koniq / "koniq10k_scores_and_distributions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([CSV_HEADER, *made[: train + test]])


def build(
    out: Path, seed: int = 7, train: int = 200, test: int = 60, spaq: int = 48, processes: int = 0
) -> None:
    """Makes the data set in the folder `out`, new or empty; `processes` 0: as many as there are cores.
    It appears under its name only when it is complete. Of several builds at once the first one's stays.
    Raises UserError if Pillow lacks a codec or `out` is taken, OSError if it cannot be written."""
    if missing := [name for name in ("jpg_2000", "freetype2") if not features.check(name)]:
        raise UserError(
            f"expected Pillow built with jpg_2000 and freetype2, found no {', '.join(missing)}"
        )
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "a folder that is not empty" if out.is_dir() else "a file"
        raise UserError(f"{out}: expected a new or empty folder, found {found}")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}-unfinished-{uuid.uuid4().hex[:8]}")
    try:
        _write(unfinished, seed, train, test, spaq, processes or os.cpu_count() or 1)
        try:
            unfinished.rename(out)  # on POSIX it replaces an empty folder and fails on any other
        except OSError:
            if not (out / "spaq-test" / "spaq_test.json").is_file():
                raise
            print(f"{out}: another process finished it first; its files stay", file=sys.stderr)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def build_and_report(
    out: Path, seed: int = 7, train: int = 200, test: int = 60, spaq: int = 48
) -> None:
    """`build` as a program: SIGINT and SIGTERM leave nothing behind, and the last line says what was made.

    Raises UserError, also where `out` cannot be written, and Interrupted."""
    try:
        with StopSignals():
            build(out, seed, train, test, spaq)
    except OSError as problem:
        raise UserError(f"{out}: expected a folder to write in, found: {problem}") from None
    print(f"{out}: {train} training, {test} test and {spaq} SPAQ-like images")


if __name__ == "__main__":
    run_tool(lambda: build_and_report(Path(sys.argv[1])))
