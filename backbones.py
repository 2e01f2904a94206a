"""The backbones by name: the only place that knows which family a name belongs to."""

from __future__ import annotations

from pathlib import Path

import checkpoints
from common.errors import UserError
from models import Backbone, ResNetBackbone
from models_swin import SwinBackbone


def build(name: str, pretrained: bool = False, patch_size: int = 224, weights: Path | None = None) -> Backbone:
    """The backbone of that name, for square patches of that side in pixels.

    It starts from random weights, from ImageNet's (pretrained), or from the state dict in the file `weights`. Raises
    UserError where there is no such backbone, or its weights cannot be had.
    """
    try:
        if name.startswith("resnet"):
            backbone: Backbone = ResNetBackbone(name, pretrained and weights is None)
        else:
            backbone = SwinBackbone(name, pretrained and weights is None, patch_size)
    except OSError as problem:
        raise UserError(
            f"the pretrained weights of {name} cannot be downloaded ({problem}); "
            "give --backbone_weights PATH or --no_pretrained"
        ) from None
    if weights is not None:
        checkpoints.load_backbone_weights(backbone.pretrained_part, weights)
    return backbone
