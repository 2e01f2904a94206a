"""The backbones by name: the only place that knows which family a name belongs to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperiqa.model import checkpoints
from hyperiqa.base.errors import UserError
from hyperiqa.model.hypernet import Backbone, ResNetBackbone
from hyperiqa.model.swin import SwinBackbone
from hyperiqa.model.timm_encoder import TimmBackbone

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


def build(
    name: str, pretrained: bool = False, patch_size: int = 224, weights: Path | None = None,
    drop_path: float | None = None, architecture: Mapping[str, Any] | None = None
) -> Backbone:  # fmt: skip
    """The backbone of that name, for square patches of that side in pixels, with random weights, ImageNet's
    (pretrained), or those of the state dict in the file `weights`. drop_path: share of images for which a block is left
    out while training, rising linearly to it at the last block; None: the encoder's own. architecture: what a model of
    a hub is, as a description keeps it. Raises UserError where there is no such backbone, or no such weights."""
    downloaded = pretrained and weights is None
    try:
        if name in RESNETS:
            backbone: Backbone = ResNetBackbone(name, downloaded, drop_path)
        elif name.startswith("swin"):
            backbone = SwinBackbone(name, downloaded, patch_size, drop_path)
        else:
            backbone = TimmBackbone(name, downloaded, patch_size, drop_path, architecture)
    except OSError as problem:
        advice = "give --backbone_weights PATH or --no_pretrained"
        raise UserError(f"the pretrained weights of {name} cannot be downloaded ({problem}); {advice}") from None
    if weights is not None:
        checkpoints.load_backbone_weights(backbone, weights)
    return backbone
