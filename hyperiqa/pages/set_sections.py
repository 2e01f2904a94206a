"""A set's images beside what models scored them: clouds, residuals, examples, kinds, contents, simple measures."""

import functools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.ndimage

from hyperiqa.datasets.records import Record
from hyperiqa.images.cache import ImageCache
from hyperiqa.images.decode import read_header
from hyperiqa.pages.page import Page, Source, block, picture_from_cache
from hyperiqa.runs.measures import estimate_text
from hyperiqa.stats import intervals, metrics, resampling
from hyperiqa.stats.intervals import Estimate
from hyperiqa.training.batches import DecodedSet
from hyperiqa.training.patches import test_patches

MOST_GROUPS, EXAMPLES = 300, 12
WORST = "largest error"
LEAST = 5  # images of a kind or a content that have a correlation


@dataclass
class Tested:
    """A set's test images beside what runs scored them: MOS (N,) and run -> scores (N,), which rise where the opinions
    do. images: decoded, with the (patch size, crop, number) that they were scored on; None: they are not at hand."""

    title: str
    names: Sequence[str]
    mos: np.ndarray
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    records: Sequence[Record] = ()
    images: DecodedSet | None = None
    crop: tuple[int, str, int] = (224, "center", 1)

    def errors(self, run: str) -> np.ndarray:
        """Scores on the scale of the MOS (by the four-parameter logistic, where it can be fitted) minus MOS."""
        mapped = metrics.fitted(self.scores[run], self.mos)
        return (self.scores[run] if mapped is None else mapped) - self.mos


def brightness(rgb: np.ndarray, luma: np.ndarray) -> float:
    """Mean luma (Rec. 601), 0 to 255."""
    return float(luma.mean())


def contrast(rgb: np.ndarray, luma: np.ndarray) -> float:
    """Standard deviation of the luma."""
    return float(luma.std())


def sharpness(rgb: np.ndarray, luma: np.ndarray) -> float:
    """log10 of the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000)."""
    return math.log10(scipy.ndimage.laplace(luma).var() + 1e-3)


def colourfulness(rgb: np.ndarray, luma: np.ndarray) -> float:
    """Hasler & Süsstrunk, "Measuring colourfulness in natural images", 2003."""
    r, g, b = np.moveaxis(rgb, 2, 0)
    red_green, yellow_blue = r - g, (r + g) / 2 - b
    return math.hypot(red_green.std(), yellow_blue.std()) + 0.3 * math.hypot(
        red_green.mean(), yellow_blue.mean()
    )


MEASURES = {each.__name__: each for each in (brightness, contrast, sharpness, colourfulness)}


@functools.cache  # for pages that are written again and again
def simple_measures(cache: ImageCache, records: tuple[Record, ...]) -> dict[str, list[float]]:
    """Each of MEASURES of the images as they were scored, and the file's size in megapixels."""

    def measured(record: Record) -> list[float]:
        rgb = cache[cache.index[record.path]].astype(np.float32)
        luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
        return [
            *(of(rgb, luma) for of in MEASURES.values()),
            math.prod(read_header(record.path)) / 1e6,
        ]

    with ThreadPoolExecutor() as pool:
        columns = zip(*pool.map(measured, records), strict=True)
        return dict(zip([*MEASURES, "megapixels"], map(list, columns)))


def crops_of(tested: Tested) -> list[list[list[float]]]:
    """Of each image the boxes of its crops: left, top, width and height in percent of it."""
    side, how, number = tested.crop
    sizes = tested.images.cache.sizes[
        [tested.images.cache.index[record.path] for record in tested.records]
    ]
    places, boxes = test_patches(sizes, side, how, number), [list[list[float]]() for _ in sizes]
    for i, top, left in zip(places.image, places.top, places.left):
        height, width = sizes[i]
        boxes[i].append(
            [
                round(float(100 * v), 2)
                for v in (left / width, top / height, side / width, side / height)
            ]
        )
    return boxes


def add_set(page: Page, tested: Tested, opinion: str = "MOS") -> None:
    """The sections on a set: clouds and residuals, worst and best images, kinds, contents, and simple measures."""
    one = len(tested.scores) == 1
    titles = {
        run: ("score", "error") if one else (f"score {run}", f"error {run}")
        for run in tested.scores
    }
    errors = {run: tested.errors(run) for run in tested.scores}
    fields: dict[str, Any] = {opinion: tested.mos.tolist()}
    for run, (score, error) in titles.items():
        fields |= {score: tested.scores[run].tolist(), error: errors[run].tolist()}
    first = next(iter(tested.scores))
    fields[WORST] = np.max([abs(each) for each in errors.values()], 0).tolist()
    for name in ("kind", "group"):
        values = [getattr(record, name) for record in tested.records]
        fields |= {name: values} if any(values) and set(values) != set(tested.names) else {}
    measures, sources, crops = dict[str, list[float]](), list[Source](), None
    if tested.images:
        cache, crops = tested.images.cache, crops_of(tested)
        measures = simple_measures(cache, tuple(tested.records))
        sources = [picture_from_cache(cache, cache.index[record.path]) for record in tested.records]
    page.images(tested.title, tested.names, fields | measures, sources, crops)
    blocks = [clouds := _clouds(tested, titles, opinion)]
    for title, more in (
        ("Largest errors", {"down": True}),
        ("Smallest errors", {"down": False}),
        ("All images", {}),
    ):
        limit = {"limit": EXAMPLES} if more else {}
        blocks += [
            block("heading", title=title),
            block("gallery", set=tested.title, by=WORST, most=4, **more, **limit),
        ]
    for name in ("kind", "group"):
        if name in fields:
            blocks += [block("heading", title=f"By {_CALLED[name]}"), _by(tested, name, errors)]
    if measures:
        whose = "Errors" if one else f"Errors by {first}"
        said = [
            f"{whose}, rank correlated with what is simple to measure; 95 % intervals, bootstrap over images.",
            f"Of these {2 * len(measures)} intervals one in twenty leaves out zero by chance.",
        ]
        blocks += [block("heading", title="Errors and simple measures"), block("text", lines=said)]
        blocks += [
            _against_measures(errors[first], measures),
            {**clouds, "measures": list(measures)},
        ]
    page.section(tested.title, *blocks)


_CALLED = {"kind": "kind of distortion", "group": "content"}


def _clouds(tested: Tested, titles: Mapping[str, tuple[str, str]], opinion: str) -> dict[str, Any]:
    """The clouds of all runs, with the logistic that is fitted to the first."""
    notes, fit = [], None
    for i, (run, scores) in enumerate(tested.scores.items()):
        srcc, plcc = metrics.srcc(scores, tested.mos), metrics.plcc(scores, tested.mos)
        notes.append(f"{run}: SRCC {srcc:.4f}, PLCC {plcc:.4f}")
        if i == 0 and (found := metrics.fit_logistic(scores, tested.mos)) is not None:
            grid = np.linspace(scores.min(), scores.max(), 100)
            fit = [grid.tolist(), metrics.logistic(found, grid).tolist()]
    note = f"{len(tested.mos):,} images; {'; '.join(notes)}"
    runs = [[run, *fields] for run, fields in titles.items()]
    return block("errors", set=tested.title, runs=runs, opinion=opinion, fit=fit, note=note)


def _by(tested: Tested, what: str, errors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Figures of the images that share a kind or a content; a correlation takes LEAST images."""
    of = [getattr(record, what) for record in tested.records]
    head, rows = [_CALLED[what], "images", "mean\nopinion"], []
    for run in tested.scores:
        head += [f"{title}\n{run}" for title in ("SRCC", "mean error", "RMSE")]
    for value in sorted({each for each in of if each})[:MOST_GROUPS]:
        own = np.array([each == value for each in of])
        row: list[Any] = [value, int(own.sum()), float(tested.mos[own].mean())]
        for run, scores in tested.scores.items():
            srcc = metrics.srcc(scores[own], tested.mos[own]) if own.sum() >= LEAST else math.nan
            row += [
                srcc,
                float(errors[run][own].mean()),
                float(np.sqrt((errors[run][own] ** 2).mean())),
            ]
        rows.append(row)
    return block("table", head=head, rows=rows, label=f"Figures by {_CALLED[what]}")


def _against_measures(
    errors: np.ndarray, measures: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    rows = []
    for name, values in measures.items():
        found = []
        for each in (errors, abs(errors)):
            value = metrics.srcc(each, np.array(values))
            draws = resampling.bootstrap("srcc", each, np.array(values), 1000)[:, 0]
            found.append(estimate_text(Estimate(value, *intervals.percentile_interval(draws))))
        rows.append([name, *found])
    head = ["measure", "SRCC with the error", "SRCC with its size"]
    return block("table", head=head, rows=rows, label="Errors and simple measures")
