"""The solver of Swin Transformer runs: the backbone it builds, and its name."""

from __future__ import annotations

from HyperIQASolver import HyperIQASolver
from models import Backbone
from models_swin import SwinBackbone


class HyperIQASolverSwin(HyperIQASolver):
    default_backbone, default_name = "swin_tiny_patch4_window7_224", "swin"
    always_names_alpha = True

    def build_backbone(self, pretrained: bool) -> Backbone:
        return SwinBackbone(self.options.backbone, pretrained, self.options.patch_size)
