"""The ResNet backbone: torchvision's, without its classifier."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from timm.layers import DropPath
from timm.models import checkpoint_seq

from hyperiqa.base.network import check_reachable
from hyperiqa.model.backbone import Backbone


class ResNetBackbone(Backbone):
    """torchvision's resnet18/34/50/101 without its classifier; parameters `res.*`.

    drop_path: the share of images for which the last block is left out while training; for earlier
    blocks, it rises linearly from 0 (stochastic depth, Huang et al., ECCV 2016). None switches it
    off.
    """

    prefix = "res"
    hidden = (1024, 512)
    # The LDA modules have the rate of the top layer.
    layer_patterns = {
        "stem": r"conv1|bn1",
        "blocks": [(r"layer(\d+)\.(\d+)", None), (r"lda", (99999,))],
    }

    def __init__(
        self, name: str = "resnet50", pretrained: bool = False, drop_path: float | None = None
    ):
        super().__init__()
        weights = None
        if pretrained:
            weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
            # If they must be downloaded and cannot be, this raises OSError soon.
            if not Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name).exists():
                check_reachable(weights.url)
        for child, module in torchvision.models.get_model(name, weights=weights).named_children():
            if child not in ("avgpool", "fc"):
                self.add_module(child, module)
        if drop_path:
            blocks = [block for stage in self._stages() for block in stage]
            for n, block in enumerate(blocks):
                # torchvision's blocks have no place for it, so a hook replaces the output of the
                # end of the branch before the block adds its shortcut.
                branch_end = _branch_end(block)
                branch_end.add_module("drop_path", DropPath(drop_path * n / (len(blocks) - 1)))
                branch_end.register_forward_hook(lambda norm, _, output: norm.drop_path(output))
        self.add_lda([_branch_end(stage[-1]).num_features for stage in self._stages()])

    def _stages(self) -> tuple[Any, ...]:
        return (self.layer1, self.layer2, self.layer3, self.layer4)

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        stem: Any = self
        maps = [stem.maxpool(stem.relu(stem.bn1(stem.conv1(images))))]
        for stage in self._stages():
            run = checkpoint_seq if self.grad_checkpointing else torch.nn.Sequential.forward
            maps.append(run(stage, maps[-1]))
        return maps[1:]


def _branch_end(block: Any) -> torch.nn.BatchNorm2d:
    # The batch norm that ends a residual block's branch: of a bottleneck, or of a basic block.
    return block.bn3 if hasattr(block, "bn3") else block.bn2
