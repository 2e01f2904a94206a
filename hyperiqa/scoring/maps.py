"""Where a model looks: its scores all over an image, which stages its fusion weighs, and the weights it generates."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hyperiqa.base.errors import reading_file
from hyperiqa.model.fusion import AttentionFusion
from hyperiqa.model.target_net import TARGET_SIZES
from hyperiqa.scoring.quality_model import ImageLike, QualityModel

STEPS = 7  # of the dense grid, to a patch's side
LAYERS = range(1, len(TARGET_SIZES))
# Cividis (Nuñez et al., PLOS ONE 2018), which every kind of sight reads alike: dark is bad, bright is good.
CIVIDIS = np.array(
    [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]]
)


@dataclass(frozen=True)
class ImageMaps:
    """pixels: uint8 (H, W, 3), as the model is given them; score: of its own crops; stages: (4,), what `attention`
    weighs each of them, None without it; weights: the generated ones of each layer of the target network, flat, the
    last two averaged over the crops; map: (H, W), of the patches around each pixel, None if it was not asked for."""

    pixels: np.ndarray
    score: float
    stages: np.ndarray | None
    weights: list[np.ndarray]
    map: np.ndarray | None

    @property
    def spread(self) -> np.ndarray:
        """The standard deviation of each layer's weights, (5,)."""
        return np.array([each.std() for each in self.weights])


def map_image(model: QualityModel, image: ImageLike, with_map: bool = True) -> ImageMaps:
    """Raises ValueError where the image cannot be read."""
    pixels, net = model.pixels(image), model.net
    patches, fuse = model.patches(pixels), net.fuse
    with torch.no_grad():
        normalised = net.backbone.normalised(torch.from_numpy(patches).to(model.hardware.device))
        maps = net.backbone.stage_maps(normalised)
        weights = net.target_weights(maps)
        stages = (
            fuse.weights(maps).mean(0).cpu().numpy() if isinstance(fuse, AttentionFusion) else None
        )
    layers = [weights[f"target_fc{i}w"].float().mean(0).flatten().cpu().numpy() for i in LAYERS]
    score = float(model.score_patches([patches])[0])
    return ImageMaps(
        pixels, score, stages, layers, quality_map(model, pixels) if with_map else None
    )


def quality_map(model: QualityModel, pixels: np.ndarray) -> np.ndarray:
    """(H, W): the scores of a dense grid of patches, each pixel's averaged over those that cover it, by how near to
    their middle it lies (a Hann window)."""
    side, (height, width) = model.description["patch_size"], pixels.shape[:2]
    places = [
        np.linspace(0, room, 1 + -(-room * STEPS // side)).round().astype(int)
        for room in (height - side, width - side)
    ]
    corners = [(y, x) for y in places[0] for x in places[1]]
    scores = model.score_patches([pixels[None, y : y + side, x : x + side] for y, x in corners])
    window = np.hanning(side + 2)[1:-1]
    window = window[:, None] * window
    total, sums = np.zeros((2, height, width))
    for (y, x), score in zip(corners, scores, strict=True):
        total[y : y + side, x : x + side] += window * score
        sums[y : y + side, x : x + side] += window
    return total / sums


def colours(share: np.ndarray) -> np.ndarray:
    """Shares 0..1 of any shape -> the colours that stand for them, RGB 0..255 in a last axis."""
    places = np.linspace(0, 1, len(CIVIDIS))
    return np.stack([np.interp(share, places, channel) for channel in CIVIDIS.T], -1)


def coloured(looked: ImageMaps, higher_is_better: bool) -> tuple[Image.Image, float, float]:
    """The map laid over the image, and the scores that its darkest and its brightest colour stand for."""
    low, high = float(looked.map.min()), float(looked.map.max())
    low, high = (low, high) if higher_is_better else (high, low)
    share = (looked.map - low) / ((high - low) or 1)
    grey = looked.pixels.mean(2, keepdims=True)  # so that the colours are the map's alone
    return Image.fromarray((0.65 * colours(share) + 0.35 * grey).astype(np.uint8)), low, high


def drawn(looked: ImageMaps, model: QualityModel) -> Image.Image:
    """The image, its map beside it, what the colours mean, the stages and the spread of the weights."""
    d = model.description
    overlay, low, high = coloured(looked, d["higher_is_better"])
    width, height = overlay.size
    lines = [f"score {looked.score:.2f} on the scale of {d['dataset']}"]
    if looked.stages is not None:
        lines.append(
            "stages, fine to coarse: " + "  ".join(f"{each:.2f}" for each in looked.stages)
        )
    lines.append(
        "spread of generated weights, by layer: "
        + "  ".join(f"{each:.3f}" for each in looked.spread)
    )
    size = max(11, min(20, width // 26))
    font, line = ImageFont.load_default(size), round(1.5 * size)
    sheet = Image.new("RGB", (2 * width + 8, height + line * (len(lines) + 1) + 8), "white")
    sheet.paste(Image.fromarray(looked.pixels), (0, 0))
    sheet.paste(overlay, (width + 8, 0))
    strip = np.repeat(colours(np.linspace(0, 1, width // 3))[None].astype(np.uint8), size, 0)
    draw = ImageDraw.Draw(sheet)
    draw.text((width, height + 8), f"worse {low:.2f}", "black", font, anchor="ra")
    sheet.paste(Image.fromarray(strip), (width + 8, height + 8))
    draw.text((width + 16 + width // 3, height + 8), f"{high:.2f} better", "black", font)
    for k, text in enumerate(lines, 1):
        draw.text((4, height + 8 + k * line), text, "black", font)
    return sheet


def write(folder: Path, image: str, looked: ImageMaps, model: QualityModel) -> None:
    """`drawn` as a PNG named after the image. Raises UserError if unwritable."""
    path = folder / (re.sub(r"[^\w.-]+", "_", image).strip("_")[-200:] + ".png")
    with reading_file(path, "cannot be written"):
        drawn(looked, model).save(path)


def levels(mos: np.ndarray, number: int = 5) -> dict[str, list[int]]:
    """Quality level (its opinions, in words) -> which images are of it: as many in each, by their opinions."""
    parts = np.array_split(np.argsort(mos, kind="stable"), min(number, len(mos)))
    return {f"{mos[part].min():.3g} to {mos[part].max():.3g}": part.tolist() for part in parts}
