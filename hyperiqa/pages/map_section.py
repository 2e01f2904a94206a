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
    mapped = {position for level in levels.values() for position in _examples(level)}
    cache = scored_set.images.cache
    image_maps = []
    for position, image in enumerate(tqdm(images, "Where it looks", unit="image", leave=False)):
        pixels = cache[cache.index[scored_set.records[image].path]]
        image_maps.append(maps.map_image(model, pixels, position in mapped))

    _add_map_images(page, scored_set, model, images, image_maps, levels)
    lines = [
        f"{len(image_maps)} images of {scored_set.title}, in {len(levels)} levels of their "
        "opinions; bars: 95 % of the mean.",
        "Maps: scores of a dense grid of patches; dark is worse, bright is better, scored as said "
        "below each.",
    ]
    panels = _panels(image_maps, list(levels.values()))
    page.section(
        "Where the model looks",
        block("text", lines=lines),
        block("levels", levels=list(levels), panels=panels),
        block("gallery", set="maps", by="MOS", most=4, down=False),
    )


def _spread_over_opinions(mos: np.ndarray, number: int) -> list[int]:
    """At most `number` images, at even steps from the worst opinion to the best."""
    order = np.argsort(mos, kind="stable")
    places = np.linspace(0, len(order) - 1, min(number, len(order)))
    return order[places.round().astype(int)].tolist()


def _examples(level: Sequence[int]) -> Sequence[int]:
    """MAPS members of a level of quality, at even steps."""
    return level[:: max(1, len(level) // MAPS)][:MAPS]


def _add_map_images(
    page: Page,
    scored_set: ScoredSet,
    model: QualityModel,
    images: Sequence[int],
    image_maps: Sequence[maps.ImageMaps],
    levels: Mapping[str, Sequence[int]],
) -> None:
    """Give the page the images that have a map, with the map laid over each."""
    level_of = {position: level for level, members in levels.items() for position in members}
    fields: dict[str, list] = {"MOS": [], "score": [], "dark": [], "bright": [], "level": []}
    names = []
    sources = []
    for position, image_map in enumerate(image_maps):
        if image_map.map is None:
            continue
        picture, dark, bright = maps.coloured(image_map, model.description["higher_is_better"])
        names.append(scored_set.names[images[position]])
        sources.append(picture.copy)
        fields["MOS"].append(float(scored_set.mos[images[position]]))
        fields["score"].append(image_map.score)
        # What the darkest and the brightest colour of this map stand for.
        fields["dark"].append(dark)
        fields["bright"].append(bright)
        fields["level"].append(level_of[position])
    page.images("maps", names, fields, sources)


def _panels(image_maps: Sequence[maps.ImageMaps], levels: Sequence[Sequence[int]]) -> list[list]:
    """Panels (title, names of the bars, means by level, half widths of intervals) of bars."""
    panels = []
    # Only the fusion `attention` weighs the stages.
    if image_maps[0].stages is not None:
        stages = [image_map.stages for image_map in image_maps]
        panels.append(["what attention weighs each stage", STAGES, *_means(stages, levels)])
    spreads = [image_map.spread for image_map in image_maps]
    title = "spread of the generated weights within an image"
    panels.append([title, LAYERS, *_means(spreads, levels)])
    between = _spread_between_images(image_maps, levels)
    title = "spread of each weight between images, of all weights' spread"
    panels.append([title, LAYERS, between, None])
    return panels


def _means(
    values: Iterable[np.ndarray], levels: Sequence[Sequence[int]]
) -> tuple[list[list[float]], list[list[float]]]:
    """Means of each level's images, and half the widths of their 95 % intervals (Student's t)."""
    stacked = np.stack(list(values))
    means = []
    half_widths = []
    for level in levels:
        members = stacked[level]
        means.append(members.mean(0).tolist())
        if len(members) > 1:
            quantile = scipy.stats.t.ppf(0.975, len(members) - 1)
            half_widths.append((quantile * scipy.stats.sem(members)).tolist())
        else:
            # One image has no spread to be told.
            half_widths.append((0 * members[0]).tolist())
    return means, half_widths


def _spread_between_images(
    image_maps: Sequence[maps.ImageMaps], levels: Sequence[Sequence[int]]
) -> list[list[float]]:
    """For each level and layer, how far a weight varies between images.

    It is the standard deviation over the level's images, averaged over the layer's weights, in
    parts of the standard deviation of all weights of all images.
    """
    layers = []
    for layer in range(len(LAYERS)):
        layers.append(np.stack([image_map.weights[layer] for image_map in image_maps]))
    spreads = []
    for level in levels:
        spreads.append([float(layer[level].std(0).mean() / layer.std()) for layer in layers])
    return spreads
