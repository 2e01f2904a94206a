"""The images, scores and files of `demo`, the small synthetic data set for trying out training.

`make_demo_dataset.py` is the command that makes it; the reader of `demo` makes it on first use.
`demo_scenes.py` draws the scenes, `demo_distortions.py` distorts and `demo_scores.py` scores them.
"""

import csv
import functools
import glob
import itertools
import json
import math
import os
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, features
from tqdm import tqdm

from hyperiqa.base import errors, launching, signals
from hyperiqa.datasets import demo, demo_distortions, demo_scenes, demo_scores

CSV_HEADER = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"]
PRISTINE = "pristine"


class Task(NamedTuple):
    """One image to make: the address of its random numbers, its scene's distortion, its file."""

    address: tuple[int, int, int]
    domain: demo_scenes.Domain
    kind: str
    level: int
    path: Path


def plan(count: int) -> list[tuple[str, int]]:
    """(kind, level) of each of `count` images: every 24th is pristine (level 0), the rest balanced.

    The numbers of kinds and of levels have no common divisor, so counting both round and round
    visits all combinations; any count leaves kinds, levels and combinations each within one of each
    other.
    """
    distortions = zip(itertools.cycle(demo_distortions.KINDS), itertools.cycle(range(1, 6)))
    return [(PRISTINE, 0) if i % 24 == 23 else next(distortions) for i in range(count)]


def rate(expected: float, rng: np.random.Generator) -> np.ndarray:
    """How many of about 105 raters chose 1..5: (5,) counts with a mean grade of 1 + expected/25.

    Binomial, so the mean opinion score scatters by 1 to 2.5 points of 100, as it does with
    KonIQ-10k's panel.
    """
    grades = rng.binomial(4, expected / 100, size=rng.integers(95, 116))
    return np.bincount(grades, minlength=5)


# The images of a scene follow one another in one worker.
@functools.lru_cache(1)
def _scene(address: tuple[int, int, int, int], domain: demo_scenes.Domain) -> np.ndarray:
    return demo_scenes.make_scene(np.random.default_rng(np.random.SeedSequence(address)), domain)


def make_image(task: Task) -> list[float]:
    """Make and write one image; return its row of the score table without the name (CSV_HEADER)."""
    seed, split, number = task.address
    scene = _scene((seed, split, number // demo.IMAGES_OF_A_SCENE, 1), task.domain)
    rng = np.random.default_rng(np.random.SeedSequence(task.address))
    image = demo_distortions.distort(scene, task.kind, task.level, rng)
    Image.fromarray(image).save(task.path, quality=95)
    offset, slope = task.domain.scale
    scene_luma, image_luma = (
        demo_scenes.luma(*np.moveaxis(pixels, 2, 0)) for pixels in (scene, image)
    )
    counts = rate(offset + slope * demo_scores.quality(scene_luma, image_luma), rng)
    total = int(counts.sum())
    grades = np.arange(1, 6)
    mos = float(counts @ grades / total)
    sd = math.sqrt(float(counts @ (grades - mos) ** 2) / (total - 1))
    return [*counts.tolist(), total, round(mos, 6), round(sd, 6), round(25 * (mos - 1), 4)]


def _make_all(tasks: list[Task], processes: int) -> list[list[float]]:
    return list(
        tqdm(
            launching.parallel_map(make_image, tasks, processes),
            "making images",
            len(tasks),
            unit="",
            file=sys.stderr,
            disable=None,
        )
    )


def _write(root: Path, seed: int, train: int, test: int, spaq: int, processes: int) -> None:
    koniq_root = root / "koniq-10k"
    spaq_root = root / "spaq-test"
    # Each split's name, folder of images, list of their scores, domain, and number of images.
    splits = [
        ("train", koniq_root / "train", koniq_root / "koniq_train.json", demo_scenes.KONIQ, train),
        ("test", koniq_root / "test", koniq_root / "koniq_test.json", demo_scenes.KONIQ, test),
        ("spaq", spaq_root, spaq_root / "spaq_test.json", demo_scenes.SPAQ, spaq),
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
    out: Path, seed: int = 7, train: int = 960, test: int = 48, spaq: int = 48, processes: int = 0
) -> None:
    """Make the data set in the folder `out`, new or empty.

    `processes` 0 takes as many as there are cores. The folder appears under its name only when it
    is complete. Of several builds at once the first one's stays. Raises UserError if Pillow lacks a
    codec or `out` is taken, OSError if it cannot be written.
    """
    missing = [name for name in ("jpg_2000", "freetype2") if not features.check(name)]
    if missing:
        raise errors.UserError(
            f"expected Pillow built with jpg_2000 and freetype2, found no {', '.join(missing)}"
        )
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        occupant = "a folder that is not empty" if out.is_dir() else "a file"
        raise errors.UserError(f"{out}: expected a new or empty folder, found {occupant}")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}-unfinished-{uuid.uuid4().hex[:8]}")
    _remove_unfinished(out)
    try:
        _write(unfinished, seed, train, test, spaq, processes or os.cpu_count() or 1)
        # On POSIX a folder replaces an empty one, and replacing any other fails.
        unfinished.rename(out)
    except OSError:
        if not (out / "spaq-test" / "spaq_test.json").is_file():
            raise
        print(f"{out}: another process finished it first; its files stay", file=sys.stderr)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove_unfinished(out: Path) -> None:
    # Remove what killed builds of `out` have left: folders in which nothing changes any more.
    for folder in out.parent.glob(f".{glob.escape(out.name)}-unfinished-{8 * '[0-9a-f]'}"):
        newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        # A build writes several images per second.
        if time.time() - newest > 600:
            shutil.rmtree(folder, ignore_errors=True)


def build_and_report(
    out: Path, seed: int = 7, train: int = 960, test: int = 48, spaq: int = 48
) -> None:
    """Build as a program does: SIGINT and SIGTERM leave no files, a last line says what was made.

    Raises UserError, also where `out` cannot be written, and Interrupted.
    """
    print(f"{out}: drawing {errors.counted(train + test + spaq, 'picture')}, once", flush=True)
    try:
        with signals.StopSignals():
            build(out, seed, train, test, spaq)
    except OSError as problem:
        raise errors.UserError(f"{out}: expected a folder to write in, found: {problem}") from None
    print(f"{out}: {train} training, {test} test and {spaq} SPAQ-like images")
