"""What all models share, and HyperIQA: per image, a network generates the weights of another one.

Su et al., "Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network", CVPR
2020. The target network scores the image. The map of the model, with the file of each part:

    images (N, 3, H, W), normalised as the backbone asks
      |
    backbone (backbone.py, resnet.py, swin.py, timm_encoder.py):
      |      four stage maps (N, C_i, H/4..H/32, W/4..W/32)
      |
      +--> LDA (backbone.py): target_in_vec (N, 224), what the target network sees --------+
      |                                                                                    |
      +--> fusion (fusion.py):                (N, C, 7, 7)                                 |
             -> hyper network (hyper.py):     (N, 112, 7, 7)                               |
             -> generators (fc1 .. fc5 here): weights and biases of five layers per image -+
                                                                                           |
    target network 224-112-56-28-14-1 (target_net.py) <------------------------------------+
      -> scores (N,), on the training set's own scale

Parameter names are those of the public implementation, so checkpoints travel both ways.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from hyperiqa.model.backbone import LDA_POOLS, Backbone
from hyperiqa.model.fusion import FUSIONS, GRID, Fusion, StageMaps, pool_to, stage_map
from hyperiqa.model.hyper import HYPER_CHANNELS, HYPERS
from hyperiqa.model.target_net import TARGET_SIZES, TargetNet


class QualityNet(nn.Module):
    """Base of the models: images (N, 3, H, W) -> `scores` (N,) and pooled `features` (N, C).

    The scores are on the scale of the MOS that the model was trained on. In place of images, a
    model also takes the averaged stage maps of a frozen encoder, which `pack` makes one tensor of,
    and `unpack` maps again. A subclass sets `choices` and `last_layer`.

    reads: (stage, side) of the averaged stage maps that the model reads, also repeatedly.
    parts: other modules, each saved under its own `place`.
    """

    # The settings that shape the head. Dropout does not.
    choices: tuple[str, ...] = ()
    # The names of the modules that end in the score; the last one has its bias.
    last_layer: tuple[str, ...]
    # What an `mlp` head reads of the encoder.
    pool: str | None = None

    def __init__(self, backbone: Backbone, reads: Sequence[tuple[int, int]], **parts: Any):
        super().__init__()
        # These parts are saved under names of the public code, which differ from choice to choice,
        # such as `res` and `swin`. Properties find them by these names.
        self.places = {"backbone": backbone.prefix} | {n: p.place for n, p in parts.items()}
        for place, part in zip(self.places.values(), (backbone, *parts.values())):
            self.add_module(place, part)
        # (stage, side) of each averaged stage map -> its number of values. A dictionary drops
        # repetitions and keeps the order, which `pack` depends on. The class token, number 4, is as
        # wide as the last stage.
        self.pools = {
            (stage, side): backbone.channels[min(stage, 3)] * side**2 for stage, side in reads
        }

    @property
    def backbone(self) -> Backbone:
        return getattr(self, self.places["backbone"])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """`backbone`: its trained parameters, with those of its LDA; `head`: all others.

        Low-rank adapters within the encoder are in `head`: parametrizations beside the encoder's
        own weights, which torch calls `original` then.
        """
        prefix = f"{self.places['backbone']}."
        groups: dict[str, list[nn.Parameter]] = {"head": [], "backbone": []}
        for name, parameter in self.named_parameters():
            is_adapter = ".parametrizations." in name and not name.endswith(".original")
            if is_adapter or not name.startswith(prefix):
                groups["head"].append(parameter)
            elif parameter.requires_grad:
                groups["backbone"].append(parameter)
        return groups

    def pack(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Whole stage maps -> (N, F): everything that the model reads from them."""
        return torch.cat([pool_to(maps[stage], side).flatten(1) for stage, side in self.pools], 1)

    def unpack(self, packed: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
        """(N, F) in any precision -> averaged stage maps in fp32."""
        parts = zip(self.pools, packed.float().split(list(self.pools.values()), 1))
        return {pool: part.unflatten(1, (-1, pool[1], pool[1])) for pool, part in parts}

    def rescale(self, factor: float, offset: float) -> None:
        """Turn every score into factor·score + offset, by changing the last layer alone."""
        layers: list[Any] = [self.get_submodule(name) for name in self.last_layer]
        with torch.no_grad():
            for parameter in nn.ModuleList(layers).parameters():
                parameter.mul_(factor)
            layers[-1].bias.add_(offset)

    def stage_maps(self, images: torch.Tensor | StageMaps) -> StageMaps:
        """The backbone's maps of images. Stage maps in place of images stay as they are."""
        return self.backbone.stage_maps(images) if isinstance(images, torch.Tensor) else images


class HyperNet(QualityNet):
    """The model of HyperIQA. Its `features` are the mean of the last stage map.

    The two halves are public: `target_weights(images)` makes the input of `target_net`.
    """

    choices = ("fusion", "hyper")
    last_layer = ("fc5w_fc", "fc5b_fc")

    def __init__(
        self, backbone: Backbone, fusion: str = "none", hyper: str = "conv", dropout: float = 0.0
    ):
        fuse = FUSIONS[fusion](backbone.channels)
        body = HYPERS[hyper](backbone.channels, fuse.out_channels, backbone.hidden)
        super().__init__(backbone, (*LDA_POOLS, *fuse.pools, *body.pools), fuse=fuse, body=body)
        # The generators turn the hyper network's map into the target network's weights.
        for i, (n_in, n_out) in enumerate(pairwise(TARGET_SIZES[:-1]), 1):
            # The 7x7 values of each output channel together are the layer's weight matrix.
            channels = n_in * n_out // GRID**2
            self.add_module(f"fc{i}w_conv", nn.Conv2d(HYPER_CHANNELS, channels, 3, padding=1))
            self.add_module(f"fc{i}b_fc", nn.Linear(HYPER_CHANNELS, n_out))
        self.fc5w_fc = nn.Linear(HYPER_CHANNELS, TARGET_SIZES[-2])
        self.fc5b_fc = nn.Linear(HYPER_CHANNELS, 1)
        for name, module in self.named_children():
            if name.startswith("fc"):
                nn.init.kaiming_normal_(module.get_parameter("weight"))
        # Before the generators and in the target network, as SMART-IQA.
        self.dropout = nn.Dropout(dropout)
        self.target_net = TargetNet(dropout)

    @property
    def fuse(self) -> Fusion:
        return getattr(self, self.places["fuse"])

    @property
    def body(self) -> Any:
        return getattr(self, self.places["body"])

    def target_weights(self, images: torch.Tensor | StageMaps) -> dict[str, torch.Tensor]:
        """Images (N, 3, H, W) -> the target network's input and weights, under the public keys."""
        maps = self.stage_maps(images)
        weights = {"target_in_vec": self.backbone.target_in_vec(maps)[:, :, None, None]}
        hyper = self.dropout(self.body(maps, self.fuse(maps)))
        for i, (n_in, n_out) in enumerate(pairwise(TARGET_SIZES[:-1]), 1):
            matrices = getattr(self, f"fc{i}w_conv")(hyper)
            weights[f"target_fc{i}w"] = matrices.reshape(-1, n_out, n_in, 1, 1)
        # Biases and the last layer set the score's level: in bf16 a score of 80 has steps of 0.5.
        with torch.autocast(hyper.device.type, enabled=False):
            pooled = hyper.float().mean((2, 3))
            for i in range(1, len(TARGET_SIZES)):
                weights[f"target_fc{i}b"] = getattr(self, f"fc{i}b_fc")(pooled)
            weights["target_fc5w"] = self.fc5w_fc(pooled)[:, None, :, None, None]
        return weights

    def forward(self, images: torch.Tensor | StageMaps) -> dict[str, torch.Tensor]:
        maps = self.stage_maps(images)
        # Before the scores: gradients meet in the order of the graph, and their sum rounds by it.
        features = pool_to(stage_map(maps, 3, 1), 1).flatten(1)
        return {"scores": self.target_net(self.target_weights(maps)), "features": features}
