"""Where a model looks, and what it generates for an image.

That is: its scores all over the image, the stages that its fusion weighs, and the weights of the
target network.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hyperiqa.base.errors import reading_file
from hyperiqa.model import fusion, target_net
from hyperiqa.scoring.quality_model import ImageLike, QualityModel

# Steps of the dense grid to a patch's side: neighbouring patches share 6/7 of their pixels.
STEPS = 7

# The layers of the target network, as their public names count them.
LAYERS = range(1, len(target_net.TARGET_SIZES))

# Colours of Cividis (Nuñez et al., PLOS ONE 2018), which people read alike whether or not they are
# colour-blind: dark is bad, bright is good.
CIVIDIS = np.array(
    [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]]
)

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
        crops.
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


def map_image(model: QualityModel, image: ImageLike, with_map: bool = True) -> ImageMaps:
    """Look at an image through a model; the map takes dozens of forward passes.

    Raises ValueError if the image cannot be read.
    """
    pixels = model.pixels(image)
    patches = model.patches(pixels)
    net = model.net
    stages = None
    with torch.no_grad():
        normalised = net.backbone.normalised(torch.from_numpy(patches).to(model.hardware.device))
        stage_maps = net.backbone.stage_maps(normalised)
        weights = net.target_weights(stage_maps)
        if isinstance(net.fuse, fusion.AttentionFusion):
            stages = net.fuse.weights(stage_maps).mean(0).cpu().numpy()
    layers = [weights[f"target_fc{i}w"].float().mean(0).flatten().cpu().numpy() for i in LAYERS]
    return ImageMaps(
        pixels,
        float(model.score_patches([patches])[0]),
        stages,
        layers,
        quality_map(model, pixels) if with_map else None,
    )


def quality_map(model: QualityModel, pixels: np.ndarray) -> np.ndarray:
    """The scores of a dense grid of patches, spread over the pixels: uint8 (H, W, 3) -> (H, W).

    Each pixel gets the weighted mean of the patches that cover it. A patch weighs more the nearer
    to its middle the pixel lies (a Hann window).
    """
    side = model.description["patch_size"]
    height, width = pixels.shape[:2]
    corners = [(y, x) for y in _grid(height, side) for x in _grid(width, side)]
    scores = model.score_patches([pixels[None, y : y + side, x : x + side] for y, x in corners])
    # A Hann window ends in zeros: without them, every pixel has some weight.
    window = np.hanning(side + 2)[1:-1]
    window = window[:, None] * window
    total = np.zeros((height, width))
    weights = np.zeros((height, width))
    for (y, x), score in zip(corners, scores, strict=True):
        total[y : y + side, x : x + side] += window * score
        weights[y : y + side, x : x + side] += window
    return total / weights


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
    dark = float(image_maps.map.min())
    bright = float(image_maps.map.max())
    # Bright is always the better end.
    if not higher_is_better:
        dark, bright = bright, dark
    # A flat map has no range to divide by.
    share = (image_maps.map - dark) / ((bright - dark) or 1)
    # The image is grey, so that the colours are the map's alone.
    grey = image_maps.pixels.mean(2, keepdims=True)
    overlay = Image.fromarray((0.65 * colours(share) + 0.35 * grey).astype(np.uint8))
    return overlay, dark, bright


def draw(image_maps: ImageMaps, model: QualityModel) -> Image.Image:
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
    sheet_height = below + line_height * (len(lines) + 1)
    sheet = Image.new("RGB", (2 * width + MARGIN, sheet_height), "white")
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
    spread = "  ".join(f"{deviation:.3f}" for deviation in image_maps.spread)
    lines.append(f"spread of generated weights, by layer: {spread}")
    return lines


def write(folder: Path, image: str, image_maps: ImageMaps, model: QualityModel) -> None:
    """Write the picture of `draw` as a PNG into the folder, named after the image's path.

    Raises UserError if it cannot be written.
    """
    # Names have a limit of 255 bytes on most disks, and the end of a path tells most.
    name = re.sub(r"[^\w.-]+", "_", image).strip("_")[-200:]
    path = folder / f"{name}.png"
    with reading_file(path, "cannot be written"):
        draw(image_maps, model).save(path)


def levels(mos: np.ndarray, number: int = 5) -> dict[str, list[int]]:
    """Divide images into levels of quality of equal size: MOS (N,) -> level -> image numbers.

    A level is called by the range of its opinion scores, such as "1.2 to 2.4".
    """
    parts = np.array_split(np.argsort(mos, kind="stable"), min(number, len(mos)))
    return {f"{mos[part].min():.3g} to {mos[part].max():.3g}": part.tolist() for part in parts}
