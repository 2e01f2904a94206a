"""The sections of a page on a set of images that one or several runs or models scored.

They show plots of scores and errors, the images with the largest and the smallest errors, figures
by kind of distortion and by content, and how errors go with simple measures of the images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperiqa.pages.image_measures import measure_images
from hyperiqa.pages.page import Page, block, picture_from_cache
from hyperiqa.pages.scored_sets import ScoredSet
from hyperiqa.runs.tables import estimate_text
from hyperiqa.stats import intervals, metrics, resampling
from hyperiqa.stats.intervals import Estimate
from hyperiqa.training.patches import test_patches

MOST_GROUPS = 300  # rows of a table by kind or by content
EXAMPLES = 12  # images with the largest errors, and as many with the smallest
LARGEST_ERROR = "largest error"
LEAST_IMAGES = 5  # images of a kind or a content that have a correlation
# What a data set may know of an image -> the title that readers see.
GROUPINGS = {"kind": "kind of distortion", "group": "content"}


def add_set(page: Page, scored_set: ScoredSet, opinion: str = "MOS") -> None:
    """Add the sections on a set to the page. opinion: the name that the set's opinions have."""
    errors = {run: scored_set.errors(run) for run in scored_set.scores}
    field_names = _field_names(list(scored_set.scores))
    fields: dict[str, Any] = {opinion: scored_set.mos.tolist()}
    for run, (score_field, error_field) in field_names.items():
        fields[score_field] = scored_set.scores[run].tolist()
        fields[error_field] = errors[run].tolist()
    fields[LARGEST_ERROR] = np.max(
        [abs(errors_of_run) for errors_of_run in errors.values()], 0
    ).tolist()
    groupings = _groupings(scored_set)
    fields |= groupings
    measures = _add_images(page, scored_set, fields)

    plots = _error_plots(scored_set, field_names, opinion)
    blocks = [plots, *_galleries(scored_set)]
    for name in groupings:
        blocks.append(block("heading", title=f"By {GROUPINGS[name]}"))
        blocks.append(_figures_by(scored_set, name, errors))
    if measures:
        first_run = next(iter(errors))
        # With several runs, correlations of all would be a table that nobody reads.
        title = "Errors" if len(errors) == 1 else f"Errors by {first_run}"
        lines = [
            f"{title}, rank correlated with what is simple to measure; "
            "95 % intervals, bootstrap over images.",
            f"Of these {2 * len(measures)} intervals one in twenty leaves out zero by chance.",
        ]
        blocks.append(block("heading", title="Errors and simple measures"))
        blocks.append(block("text", lines=lines))
        blocks.append(_correlations(errors[first_run], measures))
        blocks.append({**plots, "measures": list(measures)})
    page.section(scored_set.title, *blocks)


def _field_names(runs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Run -> the names of the fields with its scores and with its errors."""
    if len(runs) == 1:
        return {runs[0]: ("score", "error")}
    return {run: (f"score {run}", f"error {run}") for run in runs}


def _groupings(scored_set: ScoredSet) -> dict[str, list[str]]:
    """Those of GROUPINGS that the set knows -> each image's value."""
    groupings = {}
    for name in GROUPINGS:
        values = [getattr(record, name) for record in scored_set.records]
        # Where every image is a content of its own, the content says no more than its name.
        if any(values) and set(values) != set(scored_set.names):
            groupings[name] = values
    return groupings


def _add_images(
    page: Page, scored_set: ScoredSet, fields: Mapping[str, Sequence]
) -> dict[str, list[float]]:
    """Give the page the set's images and return their simple measures, {} without pixels."""
    if not scored_set.images:
        page.images(scored_set.title, scored_set.names, fields, [], None)
        return {}
    cache = scored_set.images.cache
    numbers = [cache.index[record.path] for record in scored_set.records]
    sources = [picture_from_cache(cache, number) for number in numbers]
    measures = measure_images(cache, tuple(scored_set.records))
    crops = crop_boxes(scored_set)
    page.images(scored_set.title, scored_set.names, {**fields, **measures}, sources, crops)
    return measures


def crop_boxes(scored_set: ScoredSet) -> list[list[list[float]]]:
    """For each image the boxes of its crops: left, top, width and height in percent of it."""
    patch_size, crop, crop_count = scored_set.crop
    cache = scored_set.images.cache
    sizes = cache.sizes[[cache.index[record.path] for record in scored_set.records]]
    patches = test_patches(sizes, patch_size, crop, crop_count)
    boxes: list[list[list[float]]] = [[] for _ in sizes]
    for i, top, left in zip(patches.image, patches.top, patches.left):
        height, width = sizes[i]
        shares = (left / width, top / height, patch_size / width, patch_size / height)
        boxes[i].append([round(float(100 * share), 2) for share in shares])
    return boxes


def _error_plots(
    scored_set: ScoredSet, field_names: Mapping[str, tuple[str, str]], opinion: str
) -> dict[str, Any]:
    """Plots of all runs' scores and errors, with the logistic that is fitted to the first run's."""
    mos = scored_set.mos
    notes = []
    for run, scores in scored_set.scores.items():
        srcc = metrics.srcc(scores, mos)
        plcc = metrics.plcc(scores, mos)
        notes.append(f"{run}: SRCC {srcc:.4f}, PLCC {plcc:.4f}")
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
        opinion=opinion,
        fit=fit,
        note=f"{len(mos):,} images; {'; '.join(notes)}",
    )


def _galleries(scored_set: ScoredSet) -> list[dict[str, Any]]:
    examples = {"set": scored_set.title, "by": LARGEST_ERROR, "most": 4}
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
        head += [f"SRCC\n{run}", f"mean error\n{run}", f"RMSE\n{run}"]
    values = np.array([getattr(record, grouping) for record in scored_set.records], object)
    known_values = sorted({value for value in values if value})
    rows = []
    for value in known_values[:MOST_GROUPS]:
        members = values == value
        mos = scored_set.mos[members]
        row: list[Any] = [value, len(mos), float(mos.mean())]
        for run, scores in scored_set.scores.items():
            # A correlation of fewer images would say next to nothing.
            enough = len(mos) >= LEAST_IMAGES
            srcc = metrics.srcc(scores[members], mos) if enough else math.nan
            group_errors = errors[run][members]
            row += [srcc, float(group_errors.mean()), float(np.sqrt((group_errors**2).mean()))]
        rows.append(row)
    return block("table", head=head, rows=rows, label=f"Figures by {GROUPINGS[grouping]}")


def _correlations(errors: np.ndarray, measures: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """A table of the rank correlations of errors, and of their sizes, with each measure."""
    rows = []
    for name, measure in measures.items():
        values = np.array(measure)
        rows.append([name, _srcc_text(errors, values), _srcc_text(abs(errors), values)])
    head = ["measure", "SRCC with the error", "SRCC with its size"]
    return block("table", head=head, rows=rows, label="Errors and simple measures")


def _srcc_text(errors: np.ndarray, values: np.ndarray) -> str:
    srcc = metrics.srcc(errors, values)
    draws = resampling.bootstrap("srcc", errors, values, 1000)[:, 0]
    return estimate_text(Estimate(srcc, *intervals.percentile_interval(draws)))
