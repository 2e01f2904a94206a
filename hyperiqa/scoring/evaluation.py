"""A model tested on data sets: which images, at which size, their scores, and the figures of merit.

`evaluate.py` is the tool. For the sets that a run has tested, it gives the figures of the run's
records again.
"""

import math
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hyperiqa.base.errors import UserError, counted, first_five
from hyperiqa.datasets import names, readers
from hyperiqa.datasets.reader import Reader
from hyperiqa.datasets.records import Columns, DataSet, Record, Scale
from hyperiqa.images import cache, perceptual_hash
from hyperiqa.scoring.ensemble import averaged
from hyperiqa.scoring.quality_model import QualityModel
from hyperiqa.stats import intervals, metrics, resampling, standards
from hyperiqa.training import batches, certificate, engine

# The test images of the public code's list, and the whole release: they share images.
SPAQ_SETS = {"spaq", "spaq-official"}
# `fitted_` before a figure of metrics.py: of the scores once the logistic has mapped them to the
# scale of the set.
FIGURES = ("srcc", "plcc", "fitted_plcc", "krcc", "fitted_rmse")


@dataclass
class SetTest:
    """A data set, how it is tested, and the results.

    title: what people read for the set; its records go by `data.name`.
    place: its folder or file.
    which: its images, in words.
    resize: the size that they are scored at, as `--resize`.
    sign: -1 if the model's scores and the set's opinions point in opposite directions, else 1.
    scale: from the set's own scores to the model's, for a model of several sets.
    is_trained: whether the model was trained on the set.
    images, records: the decoded images, and the records that can be scored (`load_images`).
    like_training: how many of the records look like training images (`load_images`).
    scores: (N,), as the model gave them to the records (`score`).
    figures: FIGURES with their intervals (`measure`, as all below).
    kinds: (kind of distortion, images, SRCC, PLCC), best SRCC first.
    ceiling: the figures that a perfect model would reach, if the set says how sure its votes are.
    by_standards: the standards' figures, if they were asked for.
    members: of an ensemble, the tests of its models on the same images, titled by their models.
    over_best: of an ensemble, its SRCC and PLCC less those of its best model.
    """

    data: DataSet
    title: str
    place: Path
    which: str
    resize: str
    sign: int
    scale: Scale = Scale()
    is_trained: bool = False
    images: batches.DecodedSet | None = None
    records: list[Record] = field(default_factory=list)
    like_training: int = 0
    scores: np.ndarray | None = None
    figures: dict[str, intervals.Estimate] = field(default_factory=dict)
    kinds: list[tuple[str, int, float, float]] = field(default_factory=list)
    ceiling: dict[str, float] = field(default_factory=dict)
    by_standards: dict[str, standards.Measured] = field(default_factory=dict)
    members: Sequence["SetTest"] = ()
    over_best: dict[str, intervals.Difference] = field(default_factory=dict)

    @property
    def mos(self) -> np.ndarray:
        """The opinion scores (N,) of the records."""
        return np.array([record.score for record in self.records])


def read_sets(
    paths: Mapping[str, Path | None], description: Mapping[str, Any], settings: Namespace
) -> list[SetTest]:
    """Read the sets that a model is to be tested on.

    paths: name -> folder or file; None for the set's default place. description: the model's.
    settings: `split` is "auto", "test" or "all", as of `Reader.read_for_test`. `resize` is for all
    sets; None: each as `default_resize` says. `seed` draws a random split; None: the seed of the
    model's run. `lower_is_better` and the fields of `Columns` are for CSV files.

    Raises UserError that names what is wrong with each of the sets.
    """
    # The demo brings a SPAQ-like set, which its runs are tested on. It is meant beside the demo.
    demo_spaq = names.demo_folder(paths) / "spaq-test"
    spaq_of_demo = demo_spaq if "demo" in paths and description["dataset"] == "demo" else None
    seed = description.get("seed") if settings.seed is None else settings.seed
    lower_sets = names.lower_is_better_sets(settings.lower_is_better, paths)
    tests = []
    problems = []
    for name, path in paths.items():
        try:
            reader = readers.open_set(
                name, path, seed, name in lower_sets, Columns.of(settings), spaq_of_demo
            )
            # Runs of older versions had no such flag, and split like those that have it.
            reader.allow_shared_content = description.get("allow_shared_content", True)
            test = _read_set(reader, name, description, settings.split, settings.resize)
            test.title = names.set_title(
                test.title, name == "demo" or reader.root.resolve() == demo_spaq.resolve()
            )
            tests.append(test)
        except UserError as mistake:
            problems.append(str(mistake))
            if name == "spaq" and path is None and demo_spaq.exists():
                problems[-1] += f"; the demo's own, synthetic one is spaq={demo_spaq}"
    if problems:
        raise UserError("; ".join(problems))
    return tests


def read_sets_of_models(
    paths: Mapping[str, Path | None], models: Collection[QualityModel], settings: Namespace
) -> list[list[SetTest]]:
    """Read the sets that each model of an ensemble is to be tested on: as `read_sets`.

    Raises UserError, also if the models would be tested on different images.
    """
    tests_of_models = [read_sets(paths, model.description, settings) for model in models]
    for tests in zip(*tests_of_models, strict=True):
        if len({test.data.fingerprint() for test in tests}) > 1:
            raise UserError(
                f"{tests[0].title}: the models would be tested on different images "
                f"({', '.join(test.which for test in tests)}); expected the same ones, as with "
                "--split all, or with --split test and --seed N"
            )
    return tests_of_models


def _read_set(
    reader: Reader, name: str, description: Mapping[str, Any], split: str, resize: str | None
) -> SetTest:
    # Before the reader's name is used: SPAQ knows it only once its rows are listed.
    scores = [row.score for row in reader.listed]
    trained_on = description["dataset"]
    scales = description.get("scales") or {}
    # All CSV files go by one name: the model's own is recognised by the range of its scores.
    is_trained = reader.name in scales or (
        reader.name == trained_on
        and (trained_on != "csv" or [min(scores), max(scores)] == [*description["score_range"]])
    )
    data, which = reader.read_for_test(split, is_trained)
    if not is_trained and {reader.name, trained_on} == SPAQ_SETS:
        data.notes.append(
            f"{data.name}: shares images with {trained_on}, which the model was trained on"
        )
    facts = scales.get(reader.name, {"factor": 1.0, "offset": 0.0})
    scale = Scale(facts["factor"], facts["offset"])
    # A set of a negative factor was turned when the sets of the training were brought together.
    is_turned = (data.higher_is_better == description["higher_is_better"]) != (scale.factor > 0)
    return SetTest(
        data,
        data.name,
        reader.root,
        which,
        resize or default_resize(name, is_trained, description),
        -1 if is_turned else 1,
        scale,
        is_trained,
    )


def default_resize(name: str, is_trained: bool, description: Mapping[str, Any]) -> str:
    """The size that a model's images of a set are scored at, as `--resize`.

    It is the size of the training on the model's own sets and its cross tests, and on other sets
    too if the user of the training had chosen it; else the set's default. A run treats its cross
    tests in the same way. is_trained: whether the model was trained on the set.
    """
    cross_sizes = description.get("cross_resize") or {}
    if names.record_name(name) in cross_sizes and not is_trained:
        return cross_sizes[names.record_name(name)]
    # A run on several sets may have had a size for each.
    sizes = description.get("mix_resize") or {}
    trained_size = sizes.get(name, description["resize"])
    trained_on = str(description["dataset"]).partition("+")[0].removesuffix("-official")
    # A name that is no reader's is of a CSV file.
    usual_size = readers.DEFAULT_RESIZE.get(trained_on, readers.DEFAULT_RESIZE["csv"])
    if is_trained or trained_size != usual_size:
        return trained_size
    return readers.DEFAULT_RESIZE[names.reader_name(name)]


def load_images(
    tests: Sequence[SetTest], model: QualityModel, cache_dir: Path | None, skip_bad_images: bool
) -> None:
    """Decode each set's images, and choose the records that can be scored.

    Adds to the sets' notes what the user should know about their images. cache_dir: None decodes
    into memory. Raises UserError that names all images that cannot be read, unless they are to be
    skipped.
    """
    description = model.description
    for test in tests:
        test.images = batches.DecodedSet(
            test.data,
            test.resize,
            description["patch_size"],
            description.get("exif_rotate", False),
            cache_dir,
        )
        # Without the first, which is about the cache and differs from one evaluation to the next.
        test.data.notes += test.images.facts[1:]
    # All sets together, so that one message names all of their images.
    batches.drop_bad_images([test.images for test in tests], skip_bad_images)
    training_names, training_looks = certificate.training_hashes(description)
    for test in tests:
        test.records = test.images.records("test")
        if test.images.bad:
            test.data.notes.append(
                f"{test.data.name}: left out: {batches.drop_bad_images([test.images], skip=True)}"
            )
        # Tested on training images by the user's choice, which `which` says already.
        twins = {}
        if training_looks and "training images among them" not in test.which:
            # Of many training images that a test image looks like, one is an example.
            twins = dict(
                perceptual_hash.near_duplicates(
                    list(map(test.images.perceptual_hash, test.records)), training_looks
                )
            )
        test.like_training = len(twins)
        if twins:
            pairs = first_five(
                f"{test.records[i].name} ~ {training_names[j]}" for i, j in twins.items()
            )
            test.data.notes.append(
                f"{test.title}: {len(twins)} of {counted(len(test.records), 'image')} "
                f"{'looks' if len(twins) == 1 else 'look'} like training images: {pairs}"
            )
    cache.put_on_gpu([test.images.cache for test in tests], "auto", model.hardware.device)


def score(test: SetTest, model: QualityModel, batch_size: int) -> None:
    """Score the test's records, with the crops and the function of a run's own test.

    The scores are on the scale of the set if the model was trained on it.
    """
    scores = engine.score_set(
        model.net,
        test.images,
        test.records,
        (model.description["test_crop"], model.description["test_patch_num"]),
        model.hardware,
        batch_size=batch_size,
    )
    test.scores = test.scale.own(scores)


def score_together(
    tests: Sequence[SetTest], models: Mapping[str, QualityModel], batch_size: int
) -> SetTest:
    """Score a set with a model, or with those of an ensemble; returns the test with all scores.

    tests: of the set, one for each model. The scores of an ensemble are `averaged`.
    """
    for test, model in zip(tests, models.values(), strict=True):
        score(test, model, batch_size)
    if len(tests) == 1:
        return test
    scores = averaged(
        [model.description for model in models.values()],
        [test.scale.common(test.scores) for test in tests],
    )
    # Figures of its own, since all else of the first model's test is shared.
    return replace(
        tests[0],
        data=replace(
            tests[0].data,
            notes=list(dict.fromkeys(note for test in tests for note in test.data.notes)),
        ),
        resize="+".join(dict.fromkeys(test.resize for test in tests)),
        scores=tests[0].scale.own(scores),
        figures={},
        kinds=[],
        members=[replace(test, title=f"  {name}") for name, test in zip(models, tests)],
    )


def measure(test: SetTest, resamples: int, with_standards: bool = False) -> None:
    """Compute the test's figures with 95 % intervals, and those of each kind of distortion.

    Figures that are undefined are nan, such as those of the logistic where it cannot be fitted.

    The intervals are from `resamples` bootstrap resamples of the images. The logistic is fitted
    once, to all images, and held fixed in the resamples.
    """
    scores = test.sign * test.scores
    mos = test.mos
    fitted = metrics.fitted(scores, mos)
    with tqdm(FIGURES, f"Resampling {test.title}", unit="figure", leave=False, disable=None) as bar:
        for name in bar:
            metric = name.removeprefix("fitted_")
            predictions = fitted if name.startswith("fitted_") else scores
            value = math.nan
            if predictions is not None:
                value = metrics.FIGURES[metric].of(predictions, mos)
            draws = np.empty(0)
            if not math.isnan(value):
                draws = resampling.bootstrap(metric, predictions, mos, resamples)[:, 0]
            test.figures[name] = intervals.Estimate(value, *intervals.percentile_interval(draws))
    errors = [record.error for record in test.records]
    error = None if None in errors else np.array(errors)
    if error is not None:
        test.ceiling = intervals.ceiling(mos, error)
    if with_standards:
        test.by_standards = standards.measure(scores, mos, error)
    for kind in {record.kind for record in test.records} - {None}:
        images = [i for i, record in enumerate(test.records) if record.kind == kind]
        pair = (scores[images], mos[images])
        test.kinds.append((kind, len(images), metrics.srcc(*pair), metrics.plcc(*pair)))
    # What is undefined comes last.
    test.kinds.sort(key=lambda row: (math.inf if math.isnan(row[2]) else -row[2], row[0]))
    for member in test.members:
        measure(member, resamples)
    test.over_best = {
        name: _over_best(test, name, resamples)
        for name in metrics.RECORDED
        if test.members and not math.isnan(test.figures[name].value)
    }


def _over_best(test: SetTest, name: str, resamples: int) -> intervals.Difference:
    # A figure that is undefined is worse than any other.
    best = max(test.members, key=lambda member: np.nan_to_num(member.figures[name].value, nan=-1))
    scores = np.stack([test.sign * test.scores, best.sign * best.scores])
    # Both on the same resamples of the images.
    draws = resampling.bootstrap(name, scores, test.mos, resamples)
    return intervals.paired_difference(
        test.figures[name].value - best.figures[name].value, *draws.T
    )
