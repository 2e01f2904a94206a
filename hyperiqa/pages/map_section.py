"""The section of a page on where a model looks: maps, weighed stages, and generated weights."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.stats
from tqdm import tqdm

from hyperiqa.pages.page import Page, block
from hyperiqa.pages.scored_sets import ScoredSet
from hyperiqa.scoring import maps
from hyperiqa.scoring.quality_model import QualityModel

MAPS = 4  # in each level of quality
LAYERS = [f"layer {layer}" for layer in maps.LAYERS]
STAGES = [f"stage {stage}" for stage in range(1, 5)]


def add_maps(page: Page, scored_set: ScoredSet, model: QualityModel, number: int) -> None:
    """Add the section on where the model looks, by levels of quality, to the page.

    `number` images of the set show which stages `attention` weighs and how the generated weights
    spread; MAPS images of each level have a map.
    """
    images = _spread_over_opinions(scored_set.mos, number)
    # Level -> positions in `images` and in `image_maps`.
    levels = maps.levels(scored_set.mos[images])
    mapped: set[int] = set()
    for level in levels.values():
        # At even steps.
        mapped.update(level[:: max(1, len(level) // MAPS)][:MAPS])
    cache = scored_set.images.cache
    image_maps = []
    for position, image in enumerate(tqdm(images, "Where it looks", unit="image", leave=False)):
        number_in_cache = cache.index[scored_set.records[image].path]
        image_maps.append(maps.map_image(model, cache[number_in_cache], position in mapped))

    _add_map_images(page, scored_set, model, images, image_maps, levels)
    lines = [
        f"{len(image_maps)} images of {scored_set.title}, in {len(levels)} levels of their "
        "opinions; bars: 95 % of the mean.",
        "Maps: scores of a dense grid of patches; dark is worse, bright is better, scored as said "
        "below each.",
    ]
    page.section(
        "Where the model looks",
        block("text", lines=lines),
        block("levels", levels=list(levels), panels=_panels(image_maps, list(levels.values()))),
        block("gallery", set="maps", by="MOS", most=4, down=False),
    )


def _spread_over_opinions(mos: np.ndarray, number: int) -> list[int]:
    """At most `number` images, at even steps from the worst opinion to the best."""
    order = np.argsort(mos, kind="stable")
    places = np.linspace(0, len(order) - 1, min(number, len(order)))
    return order[places.round().astype(int)].tolist()


def _add_map_images(
    page: Page,
    scored_set: ScoredSet,
    model: QualityModel,
    images: Sequence[int],
    image_maps: Sequence[maps.ImageMaps],
    levels: Mapping[str, Sequence[int]],
) -> None:
    level_of = {position: level for level, members in levels.items() for position in members}
    better = model.description["higher_is_better"]
    shown = [k for k, image_map in enumerate(image_maps) if image_map.map is not None]
    pictures, darkest, brightest = zip(*[maps.coloured(image_maps[k], better) for k in shown])
    fields = {
        "MOS": [float(scored_set.mos[images[k]]) for k in shown],
        "score": [image_maps[k].score for k in shown],
        # What the darkest and the brightest colour of each map stand for.
        "dark": darkest,
        "bright": brightest,
        "level": [level_of[k] for k in shown],
    }
    names = [scored_set.names[images[k]] for k in shown]
    page.images("maps", names, fields, [picture.copy for picture in pictures])


def _panels(image_maps: Sequence[maps.ImageMaps], levels: Sequence[Sequence[int]]) -> list[list]:
    """Panels (title, names of the bars, means by level, half widths of intervals) of bars."""
    panels = []
    # Only the fusion `attention` weighs the stages.
    if image_maps[0].stages is not None:
        means = _means([image_map.stages for image_map in image_maps], levels)
        panels.append(["what attention weighs each stage", STAGES, *means])
    means = _means([image_map.spread for image_map in image_maps], levels)
    return [
        *panels,
        ["spread of the generated weights within an image", LAYERS, *means],
        [
            "spread of each weight between images, of all weights' spread",
            LAYERS,
            _spread_between_images(image_maps, levels),
            None,
        ],
    ]


def _means(
    values: Iterable[np.ndarray], levels: Sequence[Sequence[int]]
) -> tuple[list[list[float]], list[list[float]]]:
    """Means of each level's images, and half the widths of their 95 % intervals (Student's t)."""
    stacked = np.stack(list(values))
    parts = [stacked[level] for level in levels]
    return [part.mean(0).tolist() for part in parts], list(map(_half_width, parts))


def _half_width(values: np.ndarray) -> list[float]:
    if len(values) == 1:
        # One image has no spread that could be seen.
        return (0 * values[0]).tolist()
    return (scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)).tolist()


def _spread_between_images(
    image_maps: Sequence[maps.ImageMaps], levels: Sequence[Sequence[int]]
) -> list[list[float]]:
    """For each level and layer, how far a weight varies between images.

    It is the standard deviation over the level's images, averaged over the layer's weights, in
    parts of the standard deviation of all weights of all images.
    """
    weights = [image_map.weights for image_map in image_maps]
    layers = [np.stack(layer_of_images) for layer_of_images in zip(*weights)]
    spreads = []
    for level in levels:
        spreads.append([float(layer[level].std(0).mean() / layer.std()) for layer in layers])
    return spreads
