"""A model tested on data sets: which images, at which size, what it scores them, and the figures of merit.

`evaluate.py` is the tool. What a run has tested comes out here again, figure by figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hyperiqa.base.errors import UserError, first_five
from hyperiqa.base.files import HERE
from hyperiqa.datasets.names import lower_is_better_sets, reader_name, record_name
from hyperiqa.datasets.readers import DEFAULT_RESIZE, open_set
from hyperiqa.datasets.records import USUAL, Columns, DataSet, Record
from hyperiqa.images.cache import put_on_gpu
from hyperiqa.images.perceptual_hash import near_duplicates
from hyperiqa.scoring.quality_model import QualityModel
from hyperiqa.stats import intervals, metrics, resampling, standards
from hyperiqa.stats.intervals import Estimate
from hyperiqa.training import engine
from hyperiqa.training.batches import DecodedSet, drop_bad_images
from hyperiqa.training.certificate import training_hashes

SPAQ_SETS = {
    "spaq",
    "spaq-official",
}  # the test images of the public code's list, and the whole release
# `fitted_` before a function of metrics.py: of the scores that the logistic has mapped to the set's scale.
FIGURES = ("srcc", "plcc", "fitted_plcc", "krcc", "fitted_rmse")


@dataclass
class SetTest:
    """A data set, how it is tested, and what came of it: scores (N,) as the model gave them, beside the records.
    which: its images, in words. sign -1: the model's scores and the set's opinions point in opposite directions. scale:
    (factor, offset) from the set's own scores to the model's, where it was trained on several.
    kinds: (kind of distortion, images, SRCC, PLCC), best first. ceiling: what a perfect model would reach, where the
    set has votes; by_standards: the standards' figures, where they are asked for."""

    data: DataSet
    which: str
    resize: str
    sign: int
    scale: tuple[float, float] = (1.0, 0.0)
    images: DecodedSet | None = None
    records: list[Record] = field(default_factory=list)
    scores: np.ndarray | None = None
    figures: dict[str, Estimate] = field(default_factory=dict)
    kinds: list[tuple[str, int, float, float]] = field(default_factory=list)
    ceiling: dict[str, float] = field(default_factory=dict)
    by_standards: dict[str, standards.Measured] = field(default_factory=dict)

    @property
    def mos(self) -> np.ndarray:
        return np.array([record.score for record in self.records])


def read_sets(
    paths: Mapping[str, Path | None],
    description: Mapping[str, Any],
    split: str = "auto",
    resize: str | None = None,
    seed: int | None = None,
    lower_is_better: bool | list[str] = False,
    columns: Columns = USUAL,
) -> list[SetTest]:
    """The sets of `paths` (name -> folder, None: its default), read and checked, for a checkpoint's description.
    split: auto, test or all. resize: for all sets; None: each as `default_resize` says. seed: of a random split;
    None: the run's. lower_is_better, columns: of csv. Raises UserError naming what is wrong with each of the sets."""
    trained_on = description["dataset"]
    # The demo brings a SPAQ of its own, which its runs are tested on.
    beside = (paths.get("demo") or HERE / "demo") / "spaq-test" if trained_on == "demo" else None
    seed = description.get("seed") if seed is None else seed
    tests, problems, lower = [], [], lower_is_better_sets(lower_is_better, paths)
    for name, path in paths.items():
        try:
            reader = open_set(name, path, seed, name in lower, columns, beside)
            scores = [
                row.score for row in reader.listed
            ]  # listed first: SPAQ knows its name only then
            # A csv also by the range of its scores, because all csv files go by one name.
            same_range = reader.name != "csv" or [min(scores), max(scores)] == list(
                description["score_range"]
            )
            scales = description.get("scales") or {}
            own = reader.name in scales or (reader.name == trained_on and same_range)
            data, which = reader.read_for_test(split, own)
            if not own and {reader.name, trained_on} == SPAQ_SETS:
                data.notes.append(
                    f"{data.name}: shares images with {trained_on}, which the model was trained on"
                )
            scale = scales.get(reader.name, {"factor": 1.0, "offset": 0.0})
            agrees = (data.higher_is_better == description["higher_is_better"]) == (
                scale["factor"] > 0
            )
            size = resize or default_resize(name, own, description)
            tests.append(
                SetTest(data, which, size, 1 if agrees else -1, (scale["factor"], scale["offset"]))
            )
        except UserError as mistake:
            problems.append(str(mistake))
    if problems:
        raise UserError("; ".join(problems))
    return tests


def default_resize(name: str, own: bool, description: Mapping[str, Any]) -> str:
    """The training's size on its own set and its cross tests, and elsewhere too where its user had chosen it.
    Else the set's default. That is how a run treats its cross tests."""
    trained = (description.get("mix_resize") or {}).get(name, description["resize"])
    cross = description.get("cross_resize") or {}
    if record_name(name) in cross and not own:
        return cross[record_name(name)]
    usual = DEFAULT_RESIZE.get(str(description["dataset"]).removesuffix("-official"), trained)
    return trained if own or trained != usual else DEFAULT_RESIZE[reader_name(name)]


def load_images(
    tests: Sequence[SetTest], model: QualityModel, cache_dir: Path | None, skip_bad_images: bool
) -> None:
    """Decode each set's images, into memory without `cache_dir`, and choose the records that can be scored.
    Raises UserError for images that cannot be read, all of them, unless they are to be skipped."""
    d = model.description
    for test in tests:
        test.images = DecodedSet(
            test.data, test.resize, d["patch_size"], d.get("exif_rotate", False), cache_dir
        )
        test.data.notes += test.images.facts[1:]
    drop_bad_images([test.images for test in tests], skip_bad_images)
    for test in tests:
        test.records = test.images.records("test")
        if test.images.bad:
            test.data.notes.append(
                f"{test.data.name}: left out: {drop_bad_images([test.images], skip=True)}"
            )
    names, looks = training_hashes(d)
    for test in tests if looks else ():
        twins = near_duplicates([test.images.of("looks", record) for record in test.records], looks)
        if twins and "training images among them" not in test.which:
            said = first_five(f"{test.records[i].name} ~ {names[j]}" for i, j in twins)
            test.data.notes.append(
                f"{test.data.name}: {len(twins)} images look like training images: {said}"
            )
    put_on_gpu([test.images.cache for test in tests], "auto", model.hardware.device)


def score(test: SetTest, model: QualityModel, batch_size: int) -> None:
    """The scores of the test's records, by the crops and the function that a run's own test goes by."""
    crops = (model.description["test_crop"], model.description["test_patch_num"])
    found = engine.score_set(
        model.net, test.images, test.records, crops, model.hardware, batch_size=batch_size
    )
    test.scores = (found - test.scale[1]) / test.scale[0]


def measure(test: SetTest, resamples: int, with_standards: bool = False) -> None:
    """The test's figures with their intervals over images, and those of each kind of distortion.
    The logistic is fitted once, to all images, and held fixed in the resamples."""
    signed, mos = test.sign * test.scores, test.mos
    mapped = metrics.fitted(signed, mos)
    with tqdm(FIGURES, f"Resampling {test.data.name}", unit="figure", leave=False) as bar:
        for name in bar:
            metric = name.removeprefix("fitted_")
            scores = signed if metric == name else mapped
            value = math.nan if scores is None else metrics.FIGURES[metric].of(scores, mos)
            draws = (
                np.empty(0)
                if math.isnan(value)
                else resampling.bootstrap(metric, scores, mos, resamples)[:, 0]
            )
            test.figures[name] = Estimate(value, *intervals.percentile_interval(draws))
    errors = [record.error for record in test.records]
    error = None if None in errors else np.array(errors)
    if error is not None:
        test.ceiling = intervals.ceiling(mos, error)
    if with_standards:
        test.by_standards = standards.measure(signed, mos, error)
    rows = []
    for kind in {record.kind for record in test.records} - {None}:
        own = [i for i, record in enumerate(test.records) if record.kind == kind]
        rows.append(
            (
                kind,
                len(own),
                metrics.srcc(signed[own], mos[own]),
                metrics.plcc(signed[own], mos[own]),
            )
        )
    test.kinds = sorted(rows, key=lambda row: (math.inf if math.isnan(row[2]) else -row[2], row[0]))
