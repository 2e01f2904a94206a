"""A model tested on data sets: which images, at which size, what it scores them, and the figures of merit.

`evaluate.py` is the tool. What a run has tested comes out here again, figure by figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

import engine
import intervals
import metrics
from comparing.runs import SPAQ_SETS, Estimate
from data_loader import SCORE_BATCH, ImageCache, PatchBatches, make_loader, put_on_gpu, test_patches
from folders import DEFAULT_RESIZE, READERS, find_spaq
from inference import QualityModel
from options import UserError
from reading.records import HERE, DataSet, Reader, Record

# `fitted_` before a function of metrics.py: of the scores that the logistic has mapped to the set's scale.
FIGURES = ("srcc", "plcc", "fitted_plcc", "krcc", "fitted_rmse")


@dataclass
class SetTest:
    """A data set, how it is tested, and what came of it: scores (N,) as the model gave them, beside the records.

    which: its images, in words. sign -1: the model's scores and the set's opinions point in opposite directions.
    kinds: (kind of distortion, images, SRCC, PLCC), best first.
    """

    data: DataSet
    which: str
    resize: str
    sign: int
    records: list[Record] = field(default_factory=list)
    scores: np.ndarray | None = None
    figures: dict[str, Estimate] = field(default_factory=dict)
    kinds: list[tuple[str, int, float, float]] = field(default_factory=list)

    @property
    def mos(self) -> np.ndarray:
        return np.array([record.score for record in self.records])


# ------------------------------------------------------------------------------------------- what is tested
def read_sets(
    paths: Mapping[str, Path | None],
    description: Mapping[str, object],
    split: str = "auto",
    resize: str | None = None,
    seed: int | None = None,
    lower_is_better: bool = False,
) -> list[SetTest]:
    """The sets of `paths` (name -> folder, None: its default), read and checked, for a checkpoint's description.

    split: auto, test or all. resize: for all sets; None: each as `default_resize` says. seed: of a random split;
    None: the run's. lower_is_better: of csv. Raises UserError naming what is wrong with every one of the sets.
    """
    trained_on = description["dataset"]
    # The demo brings a SPAQ of its own, which its runs are tested on.
    beside = (paths.get("demo") or HERE / "demo") / "spaq-test" if trained_on == "demo" else None
    seed = description.get("seed") if seed is None else seed
    tests, problems = [], []
    for name, path in paths.items():
        try:
            path = find_spaq(path, beside) if name == "spaq" else path
            if name == "spaq" and path is None:
                places = beside or "spaq/ or spaq-test/ beside the scripts"
                raise UserError(f"spaq: no folder {places}; spaq=PATH gives it")
            reader = READERS[name](path, seed, lower_is_better and name == "csv")
            own = is_training_set(reader, description)
            data, which = choose_images(reader, split, own)
            if not own and {reader.name, trained_on} == {*SPAQ_SETS}:
                data.notes.append(f"{data.name}: shares images with {trained_on}, which the model was trained on")
            sign = 1 if data.higher_is_better == description["higher_is_better"] else -1
            tests.append(SetTest(data, which, resize or default_resize(name, own, description), sign))
        except UserError as mistake:
            problems.append(str(mistake))
    if problems:
        raise UserError("; ".join(problems))
    return tests


def is_training_set(reader: Reader, description: Mapping[str, object]) -> bool:
    """By name; a csv also by the range of its scores, because all csv files go by one name."""
    scores = [row.score for row in reader.listed]  # listed first: SPAQ knows its name only then
    if reader.name != description["dataset"]:
        return False
    return reader.name != "csv" or [min(scores), max(scores)] == list(description["score_range"])


def choose_images(reader: Reader, split: str, own: bool) -> tuple[DataSet, str]:
    """The set's images to test on, and in words which they are; own: the model was trained on the set.

    auto: the test images of a set that comes with a split, so that figures of all models are of the same images;
    those of the run's random split of its own set; else all. Raises UserError.
    """
    comes_with_one = any(row.split == "test" for row in reader.listed)
    if split == "all" or (split == "auto" and not comes_with_one and not own):
        return reader.read_all_as_test(), "all" + (", its training images among them" if own else "")
    return reader.read(("test",)), "its test split" if comes_with_one else f"random test split, seed {reader.seed}"


def default_resize(name: str, own: bool, description: Mapping[str, object]) -> str:
    """The training's size on its own set, and elsewhere too where its user had chosen it; else the set's default.

    That is how a run treats SPAQ.
    """
    trained = description["resize"]
    usual = DEFAULT_RESIZE.get(str(description["dataset"]).removesuffix("-official"), trained)
    return trained if own or trained != usual else DEFAULT_RESIZE[name]


# ------------------------------------------------------------------------------------------------- scoring
def load_images(
    tests: Sequence[SetTest], model: QualityModel, cache_dir: Path | None, skip_bad_images: bool = False
) -> list[ImageCache]:
    """A cache of each set's images, in memory without `cache_dir`, and the tests' records: those that can be read.

    Raises UserError for images that cannot be read, all of them, unless they are to be skipped.
    """
    d, caches, bad = model.description, [], {}
    for test in tests:
        name, paths = test.data.name, [record.path for record in test.data.records]
        cache = ImageCache(name, paths, test.resize, d["patch_size"], cache_dir, d.get("exif_rotate", False))
        caches.append(cache)
        bad |= cache.bad
        test.records = [record for record in test.data.records if record.path not in cache.bad]
        if cache.upscaled:
            test.data.notes.append(f"{name}: {cache.upscaled} images smaller than the patch were scaled up to it")
        if cache.bad:
            listed = "; ".join(f"{path}: {reason}" for path, reason in sorted(cache.bad.items()))
            test.data.notes.append(f"{name}: {len(cache.bad)} images cannot be read and are left out: {listed}")
    if bad and not skip_bad_images:
        listed = "; ".join(f"{path}: {reason}" for path, reason in sorted(bad.items()))
        raise UserError(f"{len(bad)} images cannot be read: {listed} (--skip_bad_images drops them)")
    if empty := [test.data.name for test in tests if not test.records]:
        raise UserError(f"{', '.join(empty)}: no readable image is left")
    put_on_gpu(caches, "auto", model.device)
    return caches


def score(
    test: SetTest, cache: ImageCache, model: QualityModel, batch_size: int = SCORE_BATCH, workers: int | None = None
) -> None:
    """The scores of the test's records, by the crops and the function that a run's own test goes by."""
    d, cuda = model.description, model.device.type == "cuda"
    images = [cache.index[record.path] for record in test.records]
    patches = test_patches(cache.sizes[images], d["patch_size"], d["test_crop"], d["test_patch_num"])
    batches = PatchBatches(cache, images, test.mos, patches, d["patch_size"], batch_size)
    loader = make_loader(batches, (4 if cuda else 0) if workers is None else workers, cuda)
    with tqdm(total=len(patches), desc=f"Testing {test.data.name}", unit="patch", leave=False) as bar:
        test.scores = engine.score(model.net, loader, len(images), model.device, bar, bf16=model.bf16)


# ------------------------------------------------------------------------------------------------- figures
def measure(test: SetTest, resamples: int = intervals.RESAMPLES) -> None:
    """The test's figures with their intervals over images, and those of each kind of distortion.

    The logistic is fitted once, to all images, and held fixed in the resamples.
    """
    signed, mos = test.sign * test.scores, test.mos
    mapped = metrics.fitted(signed, mos)
    with tqdm(FIGURES, f"Resampling {test.data.name}", unit="figure", leave=False) as bar:
        for name in bar:
            metric = name.removeprefix("fitted_")
            test.figures[name] = _estimate(metric, signed if metric == name else mapped, mos, resamples)
    of_kind: dict[str, list[int]] = {}
    for i, record in enumerate(test.records):
        if record.kind is not None:
            of_kind.setdefault(record.kind, []).append(i)
    rows = [
        (kind, len(own), metrics.srcc(signed[own], mos[own]), metrics.plcc(signed[own], mos[own]))
        for kind, own in of_kind.items()
    ]
    test.kinds = sorted(rows, key=lambda row: (math.isnan(row[2]), 0 if math.isnan(row[2]) else -row[2], row[0]))


def _estimate(metric: str, score: np.ndarray | None, mos: np.ndarray, resamples: int) -> Estimate:
    value = math.nan if score is None else getattr(metrics, metric)(score, mos)
    if math.isnan(value):
        return Estimate(value)
    return Estimate(value, *intervals.percentile_interval(intervals.bootstrap(metric, score, mos, resamples)[:, 0]))
