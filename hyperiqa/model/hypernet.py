"""HyperIQA: a hyper network that generates, per image, the weights of the target network that scores it.
Su et al., "Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network", CVPR 2020.

    images (N, 3, H, W), normalised as the backbone asks
      -> backbone: four stage maps (N, C_i, H/4..H/32, W/4..W/32)
           -> LDA: target_in_vec (N, 224), what the target network sees
           -> fusion: (N, C, 7, 7) -> hyper network: (N, 112, 7, 7) -> generators: weights and biases per image
      -> TargetNet 224-112-56-28-14-1 with these weights -> scores (N,), on the training set's own scale
Parameter names are those of the public implementation, so checkpoints travel both ways."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchvision
from timm.layers import DropPath
from torch import nn

from hyperiqa.model.checkpoints import check_reachable
from hyperiqa.base.errors import UserError
from hyperiqa.model.fusion import FUSIONS, GRID, Fusion, StageMaps, at, pool_to
from hyperiqa.model.hyper import HYPER_CHANNELS, HYPERS

TARGET_SIZES = (224, 112, 56, 28, 14, 1)
LDA_CHANNELS, LDA_GRIDS, LDA_WIDTH = (16, 32, 64), (8, 4, 2), 16
LDA_POOLS = ((0, 8), (1, 4), (2, 2), (3, 1))  # (stage, side) of what the LDA looks at
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """What HyperNet asks of a backbone: stage maps, and the LDA that hangs on them under the same names.
    A subclass sets `prefix` (its name in HyperNet's state dict) and `hidden` (widths of the hyper network's first two
    convs), calls `add_lda(channels)` and implements `stage_maps`; where an ImageNet state dict belongs to a part of it,
    that is its `backbone`, and it has `adapted`; where its pixels are not ImageNet's, it calls `set_normalisation`."""

    prefix: str
    hidden: tuple[int, int]
    mean: torch.Tensor
    std: torch.Tensor
    frozen = False

    def __init__(self) -> None:
        super().__init__()
        self.set_normalisation(IMAGENET_MEAN, IMAGENET_STD)

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Mean and standard deviation of RGB values 0..1; kept on the device: making them anew makes the host wait."""
        self.normalisation = {"mean": list(mean), "std": list(std)}  # as a checkpoint's description keeps it
        for name, value in self.normalisation.items():
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def normalised(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches uint8 (N, P, P, 3) -> fp32 (N, 3, P, P), channels last in memory."""
        return (patches.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    @property
    def described(self) -> dict[str, Any]:
        """What a checkpoint's description says of it, beside its name: all that rebuilding it takes."""
        return dict(self.normalisation)

    @property
    def pretrained_part(self) -> nn.Module:
        return getattr(self, "backbone", self)

    def adapted(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights as their authors publish them, under the names and in the shapes of `pretrained_part`."""
        return state

    def add_lda(self, channels: Sequence[int]) -> None:
        """Local distortion aware modules for stage maps with these channel counts."""
        self.channels = tuple(channels)
        for i, (c_in, c_out, grid) in enumerate(zip(channels, LDA_CHANNELS, LDA_GRIDS), 1):
            # A Sequential of one: the conv's public name is lda{i}_pool.0.
            self.add_module(f"lda{i}_pool", nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False)))
            self.add_module(f"lda{i}_fc", nn.Linear(c_out * grid * grid, LDA_WIDTH))
        self.lda4_fc = nn.Linear(channels[3], TARGET_SIZES[0] - 3 * LDA_WIDTH)
        for name, parameter in self.named_parameters():
            if name.startswith("lda") and parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, H, W) -> four maps (N, C_i, H_i, W_i), finest first."""
        raise NotImplementedError

    def encoder_state(self) -> dict[str, torch.Tensor]:
        """The tensors of `pretrained_part`, without the LDA's."""
        return {n: tensor for n, tensor in self.pretrained_part.state_dict().items() if not n.startswith("lda")}

    def freeze(self) -> None:
        """Leave the encoder as it is: in eval mode, without gradients. The LDA goes on training."""
        self.frozen = True
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("lda"))

    def fuse_attention(self) -> None:
        """Compute attention by fused kernels where there is a choice. Raises UserError where there is none."""
        raise UserError("--fused_attention is for Swin; the other transformers of timm have it so already")

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for name, child in self.named_children():
            if self.frozen and not name.startswith("lda"):
                child.eval()
        return self

    def target_in_vec(self, maps: StageMaps) -> torch.Tensor:
        """Stage maps -> (N, 224): three times 16 local features and 176 global ones."""
        features = []
        for i, grid in enumerate(LDA_GRIDS, 1):
            # A 1x1 conv and an average commute: maps that are averaged already come out the same.
            local = pool_to(getattr(self, f"lda{i}_pool")(at(maps, i - 1, grid)), grid)
            features.append(getattr(self, f"lda{i}_fc")(local.flatten(1)))
        return torch.cat([*features, self.lda4_fc(pool_to(at(maps, 3, 1), 1).flatten(1))], 1)


class ResNetBackbone(Backbone):
    """torchvision's resnet18/34/50/101 without its classifier; parameters `res.*`.
    drop_path: stochastic depth (Huang et al., ECCV 2016), rising linearly to it at the last block; None: none."""

    prefix, hidden = "res", (1024, 512)

    def __init__(self, name: str = "resnet50", pretrained: bool = False, drop_path: float | None = None):
        super().__init__()
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"] if pretrained else None
        if weights and not (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).exists():
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
            branch_end.register_forward_hook(lambda own, _, output: own.get_submodule("drop_path")(output))
        # The last block's last batch norm has the stage's width, in basic blocks and in bottlenecks.
        self.add_lda([[m for m in s[-1].modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features for s in stages])

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        own: Any = self
        x = own.maxpool(own.relu(own.bn1(own.conv1(images))))
        return [x := stage(x) for stage in (own.layer1, own.layer2, own.layer3, own.layer4)]


class TargetNet(nn.Module):
    """The small network that scores: four layers linear+sigmoid and a linear one, each image with its own weights.
    `weights` holds `target_in_vec` (N, 224, 1, 1), `target_fc{i}w` (N, out, in, 1, 1) and `target_fc{i}b` (N, out), i =
    1..5. Returns scores (N,) in fp32. dropout: share of the first three layers' outputs that training leaves out."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(weights["target_in_vec"].device.type, enabled=False):
            x = weights["target_in_vec"].float().flatten(1).unsqueeze(2)
            for i in range(1, len(TARGET_SIZES)):
                w = weights[f"target_fc{i}w"].float().flatten(2)
                x = torch.baddbmm(weights[f"target_fc{i}b"].float().unsqueeze(2), w, x)
                if i < len(TARGET_SIZES) - 1:
                    x = torch.sigmoid(x)
                if i <= 3:
                    x = self.dropout(x)
            return x.flatten()


class HyperNet(nn.Module):
    """Images (N, 3, H, W) -> `scores` (N,), on the scale of the MOS it was trained on, and pooled `features` (N, C),
    the mean of the last stage map. The two halves are public: `target_weights(images)` makes what `target_net` takes.
    In place of images it takes a frozen encoder's averaged stage maps: `unpack` of what `pack` made."""

    choices = ("fusion", "hyper")  # settings that shape the model, as dropout does not, beside those of its backbone

    def __init__(self, backbone: Backbone, fusion: str = "none", hyper: str = "conv", dropout: float = 0.0):
        super().__init__()
        fuse = FUSIONS[fusion](backbone.channels)
        body = HYPERS[hyper](backbone.channels, fuse.out_channels, backbone.hidden)
        self.prefix, self.fusion_place, self.body_place = backbone.prefix, fuse.place, body.place
        for place, module in ((backbone.prefix, backbone), (fuse.place, fuse), (body.place, body)):
            self.add_module(place, module)
        for i, (n_in, n_out) in enumerate(pairwise(TARGET_SIZES[:-1]), 1):
            self.add_module(f"fc{i}w_conv", nn.Conv2d(HYPER_CHANNELS, n_in * n_out // GRID**2, 3, padding=1))
            self.add_module(f"fc{i}b_fc", nn.Linear(HYPER_CHANNELS, n_out))
        self.fc5w_fc = nn.Linear(HYPER_CHANNELS, TARGET_SIZES[-2])
        self.fc5b_fc = nn.Linear(HYPER_CHANNELS, 1)
        for name, module in self.named_children():
            if name.startswith("fc"):
                nn.init.kaiming_normal_(module.get_parameter("weight"))
        self.dropout = nn.Dropout(dropout)  # before the generators and in the target network, as SMART-IQA
        self.target_net = TargetNet(dropout)

    @property
    def backbone(self) -> Backbone:
        return getattr(self, self.prefix)

    @property
    def fuse(self) -> Fusion:
        return getattr(self, self.fusion_place)

    @property
    def body(self) -> Any:
        return getattr(self, self.body_place)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """`backbone`: what is trained of it, with its LDA; `head`: everything else."""
        head = [p for name, p in self.named_parameters() if not name.startswith(f"{self.prefix}.")]
        return {"head": head, "backbone": [p for p in self.backbone.parameters() if p.requires_grad]}

    @property
    def pools(self) -> dict[tuple[int, int], int]:
        """(stage, side) of the averaged stage maps that the model looks at -> values of each."""
        sides = dict.fromkeys([*LDA_POOLS, *self.fuse.pools, *self.body.pools])
        return {(stage, side): self.backbone.channels[stage] * side**2 for stage, side in sides}

    def pack(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Whole stage maps -> (N, F): all that the model looks at of them."""
        return torch.cat([pool_to(maps[stage], side).flatten(1) for stage, side in self.pools], 1)

    def unpack(self, packed: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
        """(N, F) of whatever precision -> averaged stage maps in fp32."""
        parts = packed.float().split(list(self.pools.values()), 1)
        return {(stage, side): part.unflatten(1, (-1, side, side)) for (stage, side), part in zip(self.pools, parts)}

    def rescale(self, factor: float, offset: float) -> None:
        """Make every score factor·score + offset: that is a change of the last layer alone."""
        with torch.no_grad():
            for parameter in (*self.fc5w_fc.parameters(), *self.fc5b_fc.parameters()):
                parameter.mul_(factor)
            self.fc5b_fc.bias.add_(offset)

    def stage_maps(self, images: torch.Tensor | StageMaps) -> StageMaps:
        return self.backbone.stage_maps(images) if isinstance(images, torch.Tensor) else images

    def target_weights(self, images: torch.Tensor | StageMaps) -> dict[str, torch.Tensor]:
        """Images (N, 3, H, W) -> the target network's input and weights, under the public keys."""
        maps = self.stage_maps(images)
        weights = {"target_in_vec": self.backbone.target_in_vec(maps)[:, :, None, None]}
        hyper = self.dropout(self.body(maps, self.fuse(maps)))
        for i, (n_in, n_out) in enumerate(pairwise(TARGET_SIZES[:-1]), 1):
            weights[f"target_fc{i}w"] = getattr(self, f"fc{i}w_conv")(hyper).reshape(-1, n_out, n_in, 1, 1)
        # Biases and the last layer set the score's level: in bf16 a score of 80 has steps of 0.5.
        with torch.autocast(hyper.device.type, enabled=False):
            pooled = hyper.float().mean((2, 3))
            for i in range(1, len(TARGET_SIZES) - 1):
                weights[f"target_fc{i}b"] = getattr(self, f"fc{i}b_fc")(pooled)
            weights["target_fc5w"] = self.fc5w_fc(pooled)[:, None, :, None, None]
            weights["target_fc5b"] = self.fc5b_fc(pooled)
        return weights

    def forward(self, images: torch.Tensor | StageMaps) -> dict[str, torch.Tensor]:
        maps = self.stage_maps(images)
        features = pool_to(at(maps, 3, 1), 1).flatten(1)
        return {"scores": self.target_net(self.target_weights(maps)), "features": features}


def hypernet(backbone: Backbone, choices: Mapping) -> HyperNet:
    """The HyperNet of a run's settings or a checkpoint's description; what they do not say takes its default."""
    return HyperNet(backbone, **{name: choices[name] for name in ("dropout", *HyperNet.choices) if name in choices})
