"""The backbones by name: the only place that knows which family a name belongs to."""

from pathlib import Path

import checkpoints
from common.errors import UserError
from models import Backbone, ResNetBackbone
from models_swin import SwinBackbone


def build(name: str, pretrained: bool = False, patch_size: int = 224, weights: Path | None = None) -> Backbone:
    """The backbone of that name, for square patches of that side in pixels.
    It starts from random weights, from ImageNet's (pretrained), or from the state dict in the file `weights`. Raises
    UserError where there is no such backbone, or its weights cannot be had."""
    downloaded = pretrained and weights is None
    resnet = name.startswith("resnet")
    try:
        backbone = ResNetBackbone(name, downloaded) if resnet else SwinBackbone(name, downloaded, patch_size)
    except OSError as problem:
        advice = "give --backbone_weights PATH or --no_pretrained"
        raise UserError(f"the pretrained weights of {name} cannot be downloaded ({problem}); {advice}") from None
    if weights is not None:
        checkpoints.load_backbone_weights(backbone.pretrained_part, weights)
    return backbone
