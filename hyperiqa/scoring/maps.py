"""Where a model looks, and what it generates for an image.

That is: its scores all over the image, the stages that its fusion weighs, and the weights of the
target network.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from hyperiqa.base.files import write_whole
from hyperiqa.model import fusion, hypernet, target_net
from hyperiqa.scoring import image_sources, quality_model
from hyperiqa.training.batches import SCORE_BATCH

# Steps of the dense grid to a patch's side: neighbouring patches share 6/7 of their pixels.
STEPS = 7

# The layers of the target network, as their public names count them.
LAYERS = range(1, len(target_net.TARGET_SIZES))

# Colours of Cividis (Nuñez et al., PLOS ONE 2018), which people read alike whether or not they are
# colour-blind: dark is bad, bright is good.
CIVIDIS = np.array(
    [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]]
)

# The most pixels of an image that has a map: its picture takes some 50 bytes for each of them.
MAX_PIXELS = 50_000_000

# Rows that are coloured at a time: in floats, colours take many times the memory of the picture.
ROWS = 256

# The empty space between and around the parts of a picture, in pixels.
MARGIN = 8


@dataclass(frozen=True)
class ImageMaps:
    """What a model sees in one image.

    pixels: uint8 (H, W, 3), as the model is given them.
    score: of the image's own crops.
    stages: (4,), the weight that `attention` gives each stage, averaged over the crops; None for
        other fusions.
    weights: the generated weights of each layer of the target network, flat, averaged over the
        crops; none of a model without a target network.
    map: (H, W), the score of the patches around each pixel; None if it was not asked for.
    """

    pixels: np.ndarray
    score: float
    stages: np.ndarray | None
    weights: list[np.ndarray]
    map: np.ndarray | None

    @property
    def spread(self) -> np.ndarray:
        """The standard deviation of each layer's weights, (5,)."""
        return np.array([layer.std() for layer in self.weights])


def map_image(
    model: quality_model.QualityModel, image: quality_model.ImageLike, with_map: bool = True
) -> ImageMaps:
    """Look at an image through a model; the map takes dozens of forward passes.

    Raises ValueError if the image cannot be read, or is too large for a map.
    """
    pixels = model.pixels(image)
    # Before any pass: the image's score alone is to be had without its map.
    height, width = pixels.shape[:2]
    if with_map and height * width > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels; expected at most {MAX_PIXELS:,} in a map")
    patches = model.patches(pixels)
    batches = torch.from_numpy(patches).split(SCORE_BATCH)
    parts = [_generated(model, batch) for batch in batches]
    shares = [len(batch) for batch in batches]
    # Each array is averaged over all crops, whose number differs between the batches.
    means = [np.average(arrays, 0, shares).astype(np.float32) for arrays in zip(*parts)]
    return ImageMaps(
        pixels,
        float(model.score_patches([patches])[0]),
        means[len(LAYERS)] if len(means) > len(LAYERS) else None,
        means[: len(LAYERS)],
        quality_map(model, pixels) if with_map else None,
    )


def _generated(model: quality_model.QualityModel, patches: torch.Tensor) -> list[np.ndarray]:
    """Means over patches uint8 (n, P, P, 3): of each layer's generated weights, flat.

    Behind them stands what `attention` gives the four stages, for this fusion alone. A head that
    generates no weights gives an empty list.
    """
    net = model.net
    if not isinstance(net, hypernet.HyperNet):
        return []
    with torch.no_grad():
        stage_maps = net.backbone.stage_maps(
            net.backbone.normalised(patches.to(model.hardware.device))
        )
        weights = net.target_weights(stage_maps)
        means = [weights[f"target_fc{i}w"].float().mean(0).flatten() for i in LAYERS]
        if isinstance(net.fuse, fusion.AttentionFusion):
            means.append(net.fuse.weights(stage_maps).mean(0))
    return [mean.cpu().numpy() for mean in means]


def quality_map(model: quality_model.QualityModel, pixels: np.ndarray) -> np.ndarray:
    """The scores of a dense grid of patches, spread over the pixels: uint8 (H, W, 3) -> (H, W).

    Each pixel gets the weighted mean of the patches that cover it. A patch weighs more the nearer
    to its middle the pixel lies (a Hann window).
    """
    side = model.description["patch_size"]
    height, width = pixels.shape[:2]
    corners = list(itertools.product(_grid(height, side), _grid(width, side)))
    # A Hann window ends in zeros: without them, every pixel has some weight.
    window = np.hanning(side + 2)[1:-1]
    window = window[:, None] * window
    total = np.zeros((height, width))
    weights = np.zeros((height, width))
    # A batch at a time: all patches together have dozens of times the image's pixels.
    for start in range(0, len(corners), SCORE_BATCH):
        batch = corners[start : start + SCORE_BATCH]
        scores = model.score_patches([pixels[None, y : y + side, x : x + side] for y, x in batch])
        for (y, x), score in zip(batch, scores, strict=True):
            total[y : y + side, x : x + side] += window * score
            weights[y : y + side, x : x + side] += window
    return np.divide(total, weights, out=total)


def _grid(length: int, side: int) -> np.ndarray:
    """Where patches begin along one axis: evenly from edge to edge, at most side / STEPS apart."""
    room = length - side
    # Division rounds down; twice negated, it rounds up.
    steps = -(-room * STEPS // side)
    return np.linspace(0, room, 1 + steps).round().astype(int)


def colours(share: np.ndarray) -> np.ndarray:
    """The colours that stand for shares 0..1: any shape -> RGB 0..255 in one more, last axis."""
    return np.stack(
        [np.interp(share, np.linspace(0, 1, len(CIVIDIS)), channel) for channel in CIVIDIS.T], -1
    )


def coloured(image_maps: ImageMaps, higher_is_better: bool) -> tuple[Image.Image, float, float]:
    """The map laid over the image: (picture, score of its darkest colour, of its brightest)."""
    # The image's own score belongs on the scale, which the map's means alone may leave out.
    dark = min(float(image_maps.map.min()), image_maps.score)
    bright = max(float(image_maps.map.max()), image_maps.score)
    # Bright is always the better end.
    if not higher_is_better:
        dark, bright = bright, dark
    # A flat map has no range to divide by.
    extent = (bright - dark) or 1
    overlay = np.empty_like(image_maps.pixels)
    for top in range(0, len(overlay), ROWS):
        rows = slice(top, top + ROWS)
        share = (image_maps.map[rows] - dark) / extent
        # The image is grey, so that the colours are the map's alone.
        grey = image_maps.pixels[rows].mean(2, keepdims=True)
        overlay[rows] = 0.65 * colours(share) + 0.35 * grey
    return Image.fromarray(overlay), dark, bright


def draw(image_maps: ImageMaps, model: quality_model.QualityModel) -> Image.Image:
    """A picture of the image, its map beside it, what the colours mean, and figures below.

    The figures are the score, the weights of the stages and the spread of the generated weights.
    """
    overlay, dark, bright = coloured(image_maps, model.description["higher_is_better"])
    width, height = overlay.size
    lines = _figure_lines(image_maps, model.description["dataset"])
    font_size = max(11, min(20, width // 26))
    font = ImageFont.load_default(font_size)
    line_height = round(1.5 * font_size)
    below = height + MARGIN
    # One line more than those of figures: the legend of the colours.
    size = (2 * width + MARGIN, below + line_height * (len(lines) + 1))
    sheet = Image.new("RGB", size, "white")
    sheet.paste(Image.fromarray(image_maps.pixels), (0, 0))
    sheet.paste(overlay, (width + MARGIN, 0))

    legend_width = width // 3
    legend = colours(np.linspace(0, 1, legend_width))[None].astype(np.uint8)
    text = ImageDraw.Draw(sheet)
    text.text((width, below), f"worse {dark:.2f}", "black", font, anchor="ra")
    sheet.paste(Image.fromarray(np.repeat(legend, font_size, 0)), (width + MARGIN, below))
    text.text((width + 2 * MARGIN + legend_width, below), f"{bright:.2f} better", "black", font)
    for number, line in enumerate(lines, 1):
        text.text((4, below + number * line_height), line, "black", font)
    return sheet


def _figure_lines(image_maps: ImageMaps, dataset: str) -> list[str]:
    lines = [f"score {image_maps.score:.2f} on the scale of {dataset}"]
    if image_maps.stages is not None:
        stages = "  ".join(f"{weight:.2f}" for weight in image_maps.stages)
        lines.append(f"stages, fine to coarse: {stages}")
    if image_maps.weights:
        spread = "  ".join(f"{deviation:.3f}" for deviation in image_maps.spread)
        lines.append(f"spread of generated weights, by layer: {spread}")
    return lines


def write(
    path: Path, image_maps: ImageMaps, model: quality_model.QualityModel, made_with: str
) -> None:
    """Write the picture of `draw` as a PNG that carries the mark of `image_sources`.

    Raises UserError if it cannot be written.
    """
    mark = PngImagePlugin.PngInfo()
    mark.add_text(image_sources.MARK, made_with)
    picture = draw(image_maps, model)
    write_whole(path, lambda file: picture.save(file, "PNG", pnginfo=mark))


def levels(mos: np.ndarray, number: int = 5) -> dict[str, list[int]]:
    """Divide images into levels of quality of equal size: MOS (N,) -> level -> image numbers.

    A level is called by the range of its opinion scores, such as "1.2 to 2.4".
    """
    parts = np.array_split(np.argsort(mos, kind="stable"), min(number, len(mos)))
    return {f"{mos[part].min():.3g} to {mos[part].max():.3g}": part.tolist() for part in parts}
