"""The section of a page on where a model looks: maps, weighed stages, and generated weights."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.stats
from PIL import Image
from tqdm import tqdm

from hyperiqa.base.errors import counted
from hyperiqa.pages.page import Page, block
from hyperiqa.pages.scored_sets import ScoredSet
from hyperiqa.scoring import maps, quality_model

MAPS = 4  # in each level of quality
LAYERS = [f"layer {layer}" for layer in maps.LAYERS]


def add_maps(
    page: Page, scored_set: ScoredSet, model: quality_model.QualityModel, number: int
) -> None:
    """Add the section on where the model looks, by levels of quality, to the page.

    `number` images of the set show which stages `attention` weighs and how the generated weights
    spread; MAPS images of each level have a map.
    """
    # At even steps from the worst opinion to the best.
    order = np.argsort(scored_set.mos, kind="stable")
    places = np.linspace(0, len(order) - 1, min(number, len(order)))
    images = order[places.round().astype(int)].tolist()
    # Level -> positions in `images` and in `image_maps`.
    levels = maps.levels(scored_set.mos[images])
    # At even steps within each level.
    mapped = {
        position
        for level in levels.values()
        for position in level[:: max(1, len(level) // MAPS)][:MAPS]
    }
    cache = scored_set.images.cache
    image_maps = []
    # Position -> the map as a picture, and the scores of its darkest and its brightest colour.
    overlays: dict[int, tuple[Image.Image, float, float]] = {}
    bar = tqdm(images, "Where it looks", unit="image", leave=False, disable=None)
    for position, image in enumerate(bar):
        pixels = cache[cache.index[scored_set.records[image].path]]
        with_map = position in mapped and pixels[..., 0].size <= maps.MAX_PIXELS
        image_map = maps.map_image(model, pixels, with_map)
        if with_map:
            overlays[position] = maps.coloured(image_map, model.description["higher_is_better"])
            # A page shows no more pixels than these.
            overlays[position][0].thumbnail((640, 480))
        # The pixels of all images together could fill the memory.
        image_maps.append(dataclasses.replace(image_map, pixels=None, map=None))
    _add_map_images(page, scored_set, images, image_maps, overlays, levels)
    page.section(
        "Where the model looks",
        block(
            "text",
            lines=[
                f"{counted(len(image_maps), 'image')} of {scored_set.title}, in "
                f"{counted(len(levels), 'level')} of opinion; bars: 95 % intervals of the mean.",
                "Maps: scores of a dense grid of patches; dark is worse, bright is better, "
                "scored as said below each.",
            ],
        ),
        block("levels", levels=list(levels), panels=_panels(image_maps, list(levels.values()))),
        block("gallery", set="maps", by=scored_set.opinion, most=4, down=False),
    )


def _add_map_images(
    page: Page,
    scored_set: ScoredSet,
    images: Sequence[int],
    image_maps: Sequence[maps.ImageMaps],
    overlays: Mapping[int, tuple[Image.Image, float, float]],
    levels: Mapping[str, Sequence[int]],
) -> None:
    """Add the gallery's images; `overlays` and `levels` name them by their positions."""
    level_of = {position: level for level, members in levels.items() for position in members}
    fields: dict[str, Sequence] = {
        scored_set.opinion: [float(scored_set.mos[images[k]]) for k in overlays],
        "score": [image_maps[k].score for k in overlays],
        # What the darkest and the brightest colour of each map stand for.
        "dark": [dark for _, dark, _ in overlays.values()],
        "bright": [bright for _, _, bright in overlays.values()],
        "level": [level_of[k] for k in overlays],
    }
    page.images(
        "maps",
        [scored_set.names[images[k]] for k in overlays],
        fields,
        [overlay.copy for overlay, _, _ in overlays.values()],
    )


def _panels(image_maps: Sequence[maps.ImageMaps], levels: Sequence[Sequence[int]]) -> list[list]:
    """Panels (title, names of the bars, means by level, half widths of intervals) of bars."""
    panels = []
    # Only the fusion `attention` weighs the stages.
    if image_maps[0].stages is not None:
        panels.append(
            [
                "what attention weighs each stage",
                [f"stage {stage}" for stage in range(1, 5)],
                *_means([image_map.stages for image_map in image_maps], levels),
            ]
        )
    # Only a hyper network generates weights.
    if not image_maps[0].weights:
        return panels
    return [
        *panels,
        [
            "spread of the generated weights within an image",
            LAYERS,
            *_means([image_map.spread for image_map in image_maps], levels),
        ],
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
    layers = [np.stack(layer) for layer in zip(*(image_map.weights for image_map in image_maps))]
    return [
        [float(layer[level].std(0).mean() / layer.std()) for layer in layers] for level in levels
    ]
