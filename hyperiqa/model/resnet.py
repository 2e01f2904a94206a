"""The ResNet backbone: torchvision's, without its classifier."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from timm.layers import DropPath
from torch import nn

from hyperiqa.model.backbone import Backbone
from hyperiqa.model.pretrained import check_reachable


class ResNetBackbone(Backbone):
    """torchvision's resnet18/34/50/101 without its classifier; parameters `res.*`.
    drop_path: stochastic depth (Huang et al., ECCV 2016), rising linearly to it at the last block; None: none."""

    prefix, hidden = "res", (1024, 512)

    def __init__(
        self, name: str = "resnet50", pretrained: bool = False, drop_path: float | None = None
    ):
        super().__init__()
        weights = (
            torchvision.models.get_model_weights(name)["IMAGENET1K_V1"] if pretrained else None
        )
        if (
            weights
            and not (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).exists()
        ):
            check_reachable(weights.url)
        resnet = torchvision.models.get_model(name, weights=weights)
        for child, module in resnet.named_children():
            if child not in ("avgpool", "fc"):
                self.add_module(child, module)
        stages: Any = (self.layer1, self.layer2, self.layer3, self.layer4)
        blocks = [block for stage in stages for block in stage]
        for n, block in enumerate(blocks if drop_path else ()):
            branch_end = block.bn3 if hasattr(block, "bn3") else block.bn2
            branch_end.add_module("drop_path", DropPath(drop_path * n / (len(blocks) - 1)))
            branch_end.register_forward_hook(
                lambda own, _, output: own.get_submodule("drop_path")(output)
            )
        # The last block's last batch norm has the stage's width, in basic blocks and in bottlenecks.
        self.add_lda(
            [
                [m for m in s[-1].modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features
                for s in stages
            ]
        )

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        own: Any = self
        x = own.maxpool(own.relu(own.bn1(own.conv1(images))))
        return [x := stage(x) for stage in (own.layer1, own.layer2, own.layer3, own.layer4)]
