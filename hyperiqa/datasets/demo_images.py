"""The images, scores and files of `demo`, the small synthetic data set for trying out training.

`make_demo_dataset.py` is the command that makes it; the reader of `demo` makes it on first use.
`demo_scenes.py` draws the scenes.
"""

import csv
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
from PIL import Image, features
from scipy import fft, ndimage
from tqdm import tqdm

from hyperiqa.base.errors import UserError
from hyperiqa.base.launching import parallel_map
from hyperiqa.base.signals import StopSignals
from hyperiqa.datasets.demo_scenes import KONIQ, SPAQ, Domain, luma, make_scene, to_uint8

CSV_HEADER = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"]
# Of each distortion: its strengths at level 1..5, and its mean scores, 0..100, at levels 1 and 5.
KINDS: dict[str, tuple[tuple[float, ...], float, float]] = {
    # Standard deviation in pixels.
    "gaussian_blur": ((0.7, 1.2, 2.0, 3.2, 5.0), 87, 10),
    # Length in pixels.
    "motion_blur": ((3, 6, 10, 17, 28), 86, 14),
    # Standard deviation in grey levels.
    "white_noise": ((6, 12, 21, 35, 58), 86, 14),
    # Pillow's quality.
    "jpeg": ((45, 24, 13, 7, 3), 88, 10),
    # Compression ratio.
    "jpeg2000": ((12, 28, 60, 120, 240), 88, 10),
    # Share of the contrast that is left.
    "contrast": ((0.75, 0.56, 0.40, 0.26, 0.14), 85, 18),
    # Side of the blocks in pixels.
    "pixelation": ((1.4, 2.2, 3.6, 6, 11), 85, 8),
    # Factor on the chroma.
    "oversaturation": ((1.5, 2.1, 3.0, 4.4, 7.0), 86, 22),
}
PRISTINE = "pristine"
PRISTINE_SCORE = 94.0


class Task(NamedTuple):
    """One image to make: the address of its random numbers, its scene's distortion, its file."""

    address: tuple[int, int, int]
    domain: Domain
    kind: str
    level: int
    path: Path


def plan(count: int) -> list[tuple[str, int]]:
    """(kind, level) of each of `count` images: every 24th is pristine (level 0), the rest balanced.

    Eight kinds and five levels have no common divisor, so counting both round and round visits all
    40 pairs; any count leaves kinds, levels and pairs each within one of each other.
    """
    distortions = zip(itertools.cycle(KINDS), itertools.cycle(range(1, 6)))
    planned = []
    for i in range(count):
        planned.append((PRISTINE, 0) if i % 24 == 23 else next(distortions))
    return planned


def expected_score(kind: str, level: int) -> float:
    """Mean score, 0..100, of a pristine image or of a kind at a level 1..5, linear in between."""
    if kind == PRISTINE:
        return PRISTINE_SCORE
    _, best, worst = KINDS[kind]
    return best + (worst - best) * (level - 1) / 4


def rate(expected: float, rng: np.random.Generator) -> np.ndarray:
    """How many of about 105 raters chose 1..5: (5,) counts with a mean grade of 1 + expected/25.

    Binomial, so the mean opinion score scatters by 1 to 2.5 points of 100, as it does with
    KonIQ-10k's panel.
    """
    grades = rng.binomial(4, expected / 100, size=rng.integers(95, 116))
    return np.bincount(grades, minlength=5)


def distort(image: np.ndarray, kind: str, level: int, rng: np.random.Generator) -> np.ndarray:
    """The (H, W, 3) uint8 image with one distortion, level 1 (barely visible) to 5 (awful).

    Level 0 leaves the image as it is. Kinds and levels follow KADID-10k (Lin, Hosu and Saupe,
    QoMEX 2019), with strengths set for 512x384.
    """
    if level == 0:
        return image
    strengths, _, _ = KINDS[kind]
    strength = strengths[level - 1]
    match kind:
        case "gaussian_blur":
            sigma = (strength, strength, 0)
            return to_uint8(ndimage.gaussian_filter(image.astype(np.float32), sigma))
        case "motion_blur":
            return to_uint8(_motion_blur(image, strength, rng.uniform(0, np.pi)))
        case "white_noise":
            return to_uint8(image + strength * rng.standard_normal(image.shape, dtype=np.float32))
        case "jpeg":
            return _recode(image, format="JPEG", quality=int(strength))
        case "jpeg2000":
            rates = dict(quality_mode="rates", quality_layers=[strength], irreversible=True)
            return _recode(image, format="JPEG2000", **rates)
        case "pixelation":
            height, width = image.shape[:2]
            size = round(width / strength), round(height / strength)
            blocks = Image.fromarray(image).resize(size, Image.Resampling.BOX)
            return np.asarray(blocks.resize((width, height), Image.Resampling.NEAREST))
    # Contrast and oversaturation move pixels towards or away from a grey: the image's or their own.
    brightness = luma(*np.moveaxis(image, 2, 0))
    grey = float(brightness.mean()) if kind == "contrast" else brightness[..., None]
    return to_uint8(grey + strength * (image - grey))


def _recode(image: np.ndarray, **options: Any) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _motion_blur(image: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Average along a straight line of `length` pixels."""
    half = int(np.ceil(length / 2))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    # The ramps of one pixel smooth the ends and sides of the line.
    kernel = np.clip((length + 1) / 2 - abs(along), 0, 1) * np.clip(1 - abs(across), 0, 1)
    padded = np.pad(image.astype(np.float32), ((half, half), (half, half), (0, 0)), mode="reflect")
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    transfer = fft.rfft2(np.float32(kernel / kernel.sum()), shape)[..., None]
    # The wrap of this convolution stays within the border that is cut off.
    blurred = fft.irfft2(fft.rfft2(padded, shape, (0, 1)) * transfer, shape, (0, 1))
    return blurred[2 * half :, 2 * half :][: image.shape[0], : image.shape[1]]


def make_image(task: Task) -> list[float]:
    """Make and write one image; return its row of the score table without the name (CSV_HEADER)."""
    rng = np.random.default_rng(np.random.SeedSequence(task.address))
    image = distort(make_scene(rng, task.domain), task.kind, task.level, rng)
    Image.fromarray(image).save(task.path, quality=95)
    offset, slope = task.domain.scale
    counts = rate(offset + slope * expected_score(task.kind, task.level), rng)
    total = int(counts.sum())
    grades = np.arange(1, 6)
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
    koniq_root = root / "koniq-10k"
    spaq_root = root / "spaq-test"
    # Each split's name, folder of images, list of their scores, domain, and number of images.
    splits = [
        ("train", koniq_root / "train", koniq_root / "koniq_train.json", KONIQ, train),
        ("test", koniq_root / "test", koniq_root / "koniq_test.json", KONIQ, test),
        ("spaq", spaq_root, spaq_root / "spaq_test.json", SPAQ, spaq),
    ]
    tasks = []
    for number, (name, folder, _, domain, size) in enumerate(splits):
        folder.mkdir(parents=True)
        for i, (kind, level) in enumerate(plan(size)):
            path = folder / f"{name}_{i:04d}_{kind}_{level}.jpg"
            tasks.append(Task((seed, number, i), domain, kind, level, path))
    # All splits in one go: the processes are started once and there is one progress bar.
    rows = [
        (task.path.name, *row) for task, row in zip(tasks, _make_all(tasks, processes), strict=True)
    ]
    remaining = iter(rows)
    for _, _, score_list, _, size in splits:
        entries = [
            {"image": f"{score_list.stem}/{name}", "score": score}
            for name, *_, score in itertools.islice(remaining, size)
        ]
        score_list.write_text(json.dumps(entries, indent=1) + "\n")
    with (koniq_root / "koniq10k_scores_and_distributions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([CSV_HEADER, *rows[: train + test]])


def build(
    out: Path, seed: int = 7, train: int = 200, test: int = 60, spaq: int = 48, processes: int = 0
) -> None:
    """Make the data set in the folder `out`, new or empty.

    `processes` 0 takes as many as there are cores. The folder appears under its name only when it
    is complete. Of several builds at once the first one's stays. Raises UserError if Pillow lacks a
    codec or `out` is taken, OSError if it cannot be written.
    """
    missing = [name for name in ("jpg_2000", "freetype2") if not features.check(name)]
    if missing:
        raise UserError(
            f"expected Pillow built with jpg_2000 and freetype2, found no {', '.join(missing)}"
        )
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        occupant = "a folder that is not empty" if out.is_dir() else "a file"
        raise UserError(f"{out}: expected a new or empty folder, found {occupant}")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}-unfinished-{uuid.uuid4().hex[:8]}")
    try:
        _write(unfinished, seed, train, test, spaq, processes or os.cpu_count() or 1)
        try:
            # On POSIX a folder replaces an empty one, and replacing any other fails.
            unfinished.rename(out)
        except OSError:
            if not (out / "spaq-test" / "spaq_test.json").is_file():
                raise
            print(f"{out}: another process finished it first; its files stay", file=sys.stderr)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def build_and_report(
    out: Path, seed: int = 7, train: int = 200, test: int = 60, spaq: int = 48
) -> None:
    """Build as a program does: SIGINT and SIGTERM leave no files, a last line says what was made.

    Raises UserError, also where `out` cannot be written, and Interrupted.
    """
    try:
        with StopSignals():
            build(out, seed, train, test, spaq)
    except OSError as problem:
        raise UserError(f"{out}: expected a folder to write in, found: {problem}") from None
    print(f"{out}: {train} training, {test} test and {spaq} SPAQ-like images")
