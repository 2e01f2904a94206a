"""Sets of test images and their scores by runs or models, and the sections of a page on them.

The decoded images are with them where the data sets are at hand. The sections show plots of scores
and errors, the images with the largest and the smallest errors, figures by kind of distortion and
by content, and how errors go with simple measures of the images.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import torch

from hyperiqa.base.errors import UserError, counted
from hyperiqa.datasets import names as set_names, records as set_records
from hyperiqa.images import cache as caches, decode
from hyperiqa.pages.page import Page, block, picture_from_cache
from hyperiqa.runs import reading, tables
from hyperiqa.stats import intervals, metrics, resampling
from hyperiqa.training import batches, log, options, patches, run_files, sets

MOST_GROUPS = 300  # rows of a table by kind or by content
EXAMPLES = 12  # images with the largest errors, and as many with the smallest
LEAST_IMAGES = 5  # images of a kind or a content that have a correlation
# What a data set may know of an image -> the title that readers see.
GROUPINGS = {"kind": "kind of distortion", "group": "content"}
# Simple measures of images, to compare a model's errors with.
MEASURES = ("brightness", "contrast", "sharpness", "colourfulness", "megapixels")


@dataclass
class ScoredSet:
    """A set's test images, their opinions, and their scores by each run or model.

    mos: (N,). scores: run -> (N,), which rise where the opinions do.
    images: the decoded images; None: they are not at hand.
    crop: (patch size, crop, number of crops) with which they were scored.
    """

    title: str
    names: Sequence[str]
    mos: np.ndarray
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    records: Sequence[set_records.Record] = ()
    images: batches.DecodedSet | None = None
    crop: tuple[int, str, int] = (224, "center", 1)

    @property
    def opinion(self) -> str:
        """What the set's opinion scores are called."""
        if self.images is None or self.images.data.higher_is_better:
            return "MOS"
        return "DMOS (higher is worse)"

    def mapped(self, run: str) -> np.ndarray | None:
        """Scores on the scale of the MOS, by the four-parameter logistic; None without a fit."""
        return metrics.fitted(self.scores[run], self.mos)

    def errors(self, run: str) -> np.ndarray:
        """Scores on the scale of the MOS, where they can be mapped to it, minus the MOS."""
        mapped = self.mapped(run)
        return (self.scores[run] if mapped is None else mapped) - self.mos


def sets_of_runs(
    short_names: Mapping[reading.Run, str],
    places: Mapping[str, Path | None],
    cache_flags: Mapping[str, Any] | None,
) -> tuple[list[ScoredSet], list[str]]:
    """Each set that runs were tested on and left predictions of, once, and what is missing.

    short_names: run -> the name of its scores. places: set's name in records -> where it lies now,
    where that is not where it was. cache_flags: name -> value of the cache's flags; None: no
    images are read.
    """
    scored_sets: dict[tuple, ScoredSet] = {}
    # A dictionary holds each note once, in the order in which they came.
    notes: dict[str, None] = {}
    for run, short_name in short_names.items():
        for part in ("test", *run.cross_tests):
            scores = run.scores(part)
            if scores is None:
                continue
            title = run.title(part)
            key = (title, scores.keys, scores.mos.tobytes())
            if key not in scored_sets:
                # Runs on different splits of a set have different images under its name.
                same_titles = sum(earlier_key[0] == title for earlier_key in scored_sets)
                unique_title = f"{title} ({same_titles + 1})" if same_titles else title
                scored_sets[key] = ScoredSet(
                    unique_title, [name for name, _ in scores.keys], scores.mos
                )
                if cache_flags:
                    problem = _add_images(scored_sets[key], run, part, places, cache_flags)
                    if problem:
                        notes[f"without pictures: {problem}"] = None
            scored_sets[key].scores[short_name] = scores.score
    return list(scored_sets.values()), list(notes)


def _add_images(
    scored_set: ScoredSet,
    run: reading.Run,
    part: str,
    places: Mapping[str, Path | None],
    cache_flags: Mapping[str, Any],
) -> str:
    """Give the set its records and images, where they can be read; return what could not be."""
    decoded_sets, problem = decode_sets(
        run.path, tuple(run.cross_tests), tuple(places.items()), tuple(cache_flags.items())
    )
    images, records, crop = decoded_sets.get(part, (None, [], scored_set.crop))
    by_name = {record.name: record for record in records}
    # Predictions say names alone: each must stand for one image, and every image must be there.
    if len(by_name) == len(records) and by_name.keys() >= {*scored_set.names}:
        scored_set.records = [by_name[name] for name in scored_set.names]
        scored_set.images = images
        scored_set.crop = crop
    return problem


# A page of runs that are under way is written again and again.
@functools.cache
def decode_sets(
    path: Path, cross_tests: tuple[str, ...], places: tuple, cache_flags: tuple
) -> tuple[dict[str, Any], str]:
    """Read the images that a run was tested on, as the run itself read them.

    path: of the run's records. cross_tests: the sets that its epochs were tested on besides.
    places, cache_flags: as of `sets_of_runs`, in pairs.
    Returns part -> (decoded images, records, crop), and what keeps sets from being read.
    """
    try:
        flags = next(
            record["flags"] for record in run_files.read_records(path) if record["type"] == "run"
        )
        trained = _trained_at(flags, dict(places))
        seed = int(flags["seed"])
    except (UserError, StopIteration, KeyError):
        return {}, f"{path}: a log that does not say which sets it is of"
    demo = set_names.demo_folder(trained)
    # Its reader would make it anew, which is for a training to do.
    if "demo" in trained and not demo.exists():
        return {}, f"{demo}: the files of the demo are gone"
    cross_test = _places_now(_cross_tests_of(flags, cross_tests), dict(places))
    problems: list[str] = []
    # A cross test that has gone must not cost the run's own test set.
    for readable_cross_test in (cross_test, {}):
        try:
            settings = options.settings_again(
                flags,
                trained=trained,
                cross_test=readable_cross_test,
                image_root=flags.get("image_root"),
                allow_overlap=True,
                allow_shared_content=True,
                cache_device="cpu",
                **dict(cache_flags),
            )
            data = sets.RunData(settings, seed)
            data.decode(torch.device("cpu"), log.SilentLog(Path(), Path()), new=True)
        except UserError as problem:
            problems.append(str(problem))
            continue
        crop = (settings.patch_size, settings.test_crop, settings.test_patch_num)
        return {
            part: (images, images.records(split), crop)
            for part, (images, split) in data.tests.items()
        }, "; ".join(problems)
    return {}, problems[-1]


def _trained_at(
    flags: Mapping[str, Any], places: Mapping[str, Path | None]
) -> dict[str, Path | None]:
    """Where the training sets of a run's flags lie now; None: in their usual places."""
    dataset_path = flags["dataset_path"]
    if not isinstance(dataset_path, dict):
        dataset_path = {flags["dataset"]: dataset_path}
    return _places_now(dataset_path, places)


def _cross_tests_of(flags: Mapping[str, Any], cross_tests: Sequence[str]) -> dict[str, str | None]:
    """Where the cross tests of a run's flags lay; None: in their usual places."""
    if flags.get("cross_test") is not None:
        return flags["cross_test"]
    # No flag named a cross test: SPAQ was found in its usual place, which for the demo is beside
    # the demo's images. Before 0.8 a flag of its own held another place.
    return {"spaq": flags.get("spaq_path")} if "spaq" in cross_tests else {}


def _places_now(
    places_then: Mapping[str, str | None], moved: Mapping[str, Path | None]
) -> dict[str, Path | None]:
    # Without a place, the set lies where sets usually do.
    places = {name: None if place is None else Path(place) for name, place in places_then.items()}
    for word, place_now in moved.items():
        set_name = set_names.set_named(word, places)
        if set_name is not None:
            places[set_name] = place_now
    return places


def add_set(page: Page, scored_set: ScoredSet) -> None:
    """Add the section on a set to the page."""
    errors = {run: scored_set.errors(run) for run in scored_set.scores}
    field_names = _field_names(list(scored_set.scores))
    fields: dict[str, Any] = {scored_set.opinion: scored_set.mos.tolist()}
    for run, (score_field, mapped_field, error_field) in field_names.items():
        fields[score_field] = scored_set.scores[run].tolist()
        mapped = scored_set.mapped(run)
        if mapped is not None:
            fields[mapped_field] = mapped.tolist()
        fields[error_field] = errors[run].tolist()
    error_size = "absolute error" if len(errors) == 1 else "absolute error of the worst run"
    fields[error_size] = np.max(np.abs(list(errors.values())), 0).tolist()
    groupings = _groupings(scored_set)
    fields |= groupings
    measures = _add_images_and_measures(page, scored_set, fields)

    plots = _error_plots(scored_set, field_names)
    blocks = [plots, *_galleries(scored_set.title, error_size)]
    for name in groupings:
        blocks += [
            block("heading", title=f"By {GROUPINGS[name]}"),
            _figures_by(scored_set, name, errors),
        ]
    if measures:
        first_run = next(iter(errors))
        # With several runs, correlations of all would be a table that nobody reads.
        title = "Errors" if len(errors) == 1 else f"Errors by {first_run}"
        lines = [
            f"{title}, rank correlated with what is simple to measure; "
            "95 % intervals, bootstrap over images.",
            f"Of these {2 * len(measures)} intervals one in twenty leaves out zero by chance.",
        ]
        blocks += [
            block("heading", title="Errors and simple measures"),
            block("text", lines=lines),
            _correlations(errors[first_run], measures),
            {**plots, "measures": [name for name in measures if len(set(measures[name])) > 1]},
        ]
    page.section(scored_set.title, *blocks)


def _field_names(runs: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Run -> the names of the fields with its scores, its mapped scores and its errors."""
    if len(runs) == 1:
        return {runs[0]: ("score", "mapped score", "error")}
    return {run: (f"score {run}", f"mapped score {run}", f"error {run}") for run in runs}


def _groupings(scored_set: ScoredSet) -> dict[str, list[str]]:
    """Those of GROUPINGS that the set knows -> each image's value."""
    groupings = {}
    for name in GROUPINGS:
        values = [getattr(record, name) for record in scored_set.records]
        # Where every image is a content of its own, the content says no more than its name.
        if any(values) and set(values) != set(scored_set.names):
            groupings[name] = values
    return groupings


def _add_images_and_measures(
    page: Page, scored_set: ScoredSet, fields: Mapping[str, Sequence]
) -> dict[str, list[float]]:
    """Give the page the set's images and return their simple measures, {} without pixels."""
    if not scored_set.images:
        page.images(scored_set.title, scored_set.names, fields, [], None)
        return {}
    cache = scored_set.images.cache
    records = tuple(scored_set.records)
    sources = [picture_from_cache(cache, cache.index[record.path]) for record in records]
    measures = measure_images(cache, records)
    page.images(
        scored_set.title,
        scored_set.names,
        {**fields, **measures},
        sources,
        crop_boxes(scored_set),
    )
    return measures


# A page of runs that are under way is written again and again.
@functools.cache
def measure_images(
    cache: caches.ImageCache, records: tuple[set_records.Record, ...]
) -> dict[str, list[float]]:
    """Each of MEASURES for every image."""
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(functools.partial(_measure_image, cache), records))
    return dict(zip(MEASURES, map(list, zip(*rows)), strict=True))


def _measure_image(cache: caches.ImageCache, record: set_records.Record) -> list[float]:
    """MEASURES of an image as it was scored, and of its file.

    brightness, contrast: mean and standard deviation of the luma (Rec. 601), 0 to 255.
    sharpness: log10 of the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000).
    colourfulness: Hasler & Süsstrunk, "Measuring colourfulness in natural images", 2003.
    megapixels: the size of the file's image.
    """
    rgb = cache[cache.index[record.path]].astype(np.float32)
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    # An image of one colour has a variance of 0, and its logarithm must stay finite.
    sharpness = math.log10(scipy.ndimage.laplace(luma).var() + 1e-3)
    r, g, b = np.moveaxis(rgb, 2, 0)
    red_green = r - g
    yellow_blue = (r + g) / 2 - b
    deviation = math.hypot(red_green.std(), yellow_blue.std())
    mean = math.hypot(red_green.mean(), yellow_blue.mean())
    megapixels = math.prod(decode.read_header(record.path)) / 1e6
    return [float(luma.mean()), float(luma.std()), sharpness, deviation + 0.3 * mean, megapixels]


def crop_boxes(scored_set: ScoredSet) -> list[list[list[float]]]:
    """For each image the boxes of its crops: left, top, width and height in percent of it."""
    patch_size, crop, crop_count = scored_set.crop
    cache = scored_set.images.cache
    sizes = cache.sizes[[cache.index[record.path] for record in scored_set.records]]
    test_patches = patches.test_patches(sizes, patch_size, crop, crop_count)
    boxes: list[list[list[float]]] = [[] for _ in sizes]
    for i, top, left in zip(test_patches.image, test_patches.top, test_patches.left):
        height, width = sizes[i]
        shares = (left / width, top / height, patch_size / width, patch_size / height)
        boxes[i].append([round(float(100 * share), 2) for share in shares])
    return boxes


def _error_plots(
    scored_set: ScoredSet, field_names: Mapping[str, tuple[str, str, str]]
) -> dict[str, Any]:
    """Plots of all runs' scores and errors, with the logistic that is fitted to the first run's."""
    mos = scored_set.mos
    notes = [
        f"{run}: SRCC {tables.estimate_text(intervals.Estimate(metrics.srcc(scores, mos)))}, "
        f"PLCC {tables.estimate_text(intervals.Estimate(metrics.plcc(scores, mos)))}"
        for run, scores in scored_set.scores.items()
    ]
    first_scores = next(iter(scored_set.scores.values()))
    parameters = metrics.fit_logistic(first_scores, mos)
    fit = None
    if parameters is not None:
        grid = np.linspace(first_scores.min(), first_scores.max(), 100)
        fit = [grid.tolist(), metrics.logistic(parameters, grid).tolist()]
    return block(
        "errors",
        set=scored_set.title,
        runs=[[run, *fields] for run, fields in field_names.items()],
        opinion=scored_set.opinion,
        fit=fit,
        note=f"{counted(len(mos), 'image')}; {'; '.join(notes)}",
    )


def _galleries(title: str, error_size: str) -> list[dict[str, Any]]:
    # Below its name a card has the opinion and the first run's score, mapped score and error.
    examples = {"set": title, "by": error_size, "most": 4}
    return [
        block("heading", title="Largest errors"),
        block("gallery", **examples, down=True, limit=EXAMPLES),
        block("heading", title="Smallest errors"),
        block("gallery", **examples, down=False, limit=EXAMPLES),
        block("heading", title="All images"),
        block("gallery", **examples),
    ]


def _figures_by(
    scored_set: ScoredSet, grouping: str, errors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """A table of figures on the images that share a kind or a content."""
    head = [GROUPINGS[grouping], "images", "mean\nopinion"]
    for run in scored_set.scores:
        # Of a single run the page's title says whose figures they are.
        below = f"\n{run}" if len(scored_set.scores) > 1 else ""
        head += [f"SRCC{below}", f"mean error{below}", f"RMSE{below}"]
    values = np.array([getattr(record, grouping) for record in scored_set.records], object)
    rows = []
    for value in sorted(set(filter(None, values)))[:MOST_GROUPS]:
        members = values == value
        mos = scored_set.mos[members]
        row: list[Any] = [value, len(mos), float(mos.mean())]
        for run, scores in scored_set.scores.items():
            # A correlation of fewer images would say next to nothing.
            srcc = metrics.srcc(scores[members], mos) if len(mos) >= LEAST_IMAGES else math.nan
            group_errors = errors[run][members]
            row += [srcc, float(group_errors.mean()), float(np.sqrt((group_errors**2).mean()))]
        rows.append(row)
    return block("table", head=head, rows=rows, label=f"Figures by {GROUPINGS[grouping]}")


def _correlations(errors: np.ndarray, measures: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """A table of the rank correlations of errors, and of their sizes, with each measure."""
    return block(
        "table",
        head=["measure", "SRCC with the error", "SRCC with its size"],
        rows=[
            [name, _srcc_text(errors, measure), _srcc_text(abs(errors), measure)]
            for name, measure in measures.items()
        ],
        label="Errors and simple measures",
    )


def _srcc_text(errors: np.ndarray, measure: Sequence[float]) -> str:
    values = np.array(measure)
    interval = intervals.percentile_interval(
        resampling.bootstrap("srcc", errors, values, 1000)[:, 0]
    )
    return tables.estimate_text(intervals.Estimate(metrics.srcc(errors, values), *interval))
