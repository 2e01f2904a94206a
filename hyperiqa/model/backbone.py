"""The base class of all backbones: an encoder's stage maps, and the LDA modules on top of them.

LDA (local distortion aware) modules turn the stage maps into the target network's input vector. Su
et al., "Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network", CVPR
2020.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from hyperiqa.base.errors import UserError
from hyperiqa.model import fusion, target_net

# The LDA of each of the first three stages: channels after its 1x1 conv, and side after pooling.
LDA_CHANNELS = (16, 32, 64)
LDA_GRIDS = (8, 4, 2)
# The number of features from each of these three. The last stage gives the rest of the target
# network's input.
LDA_WIDTH = 16

# (stage, side) of the averaged stage maps that the LDA reads.
LDA_POOLS = ((0, 8), (1, 4), (2, 2), (3, 1))

# The mean and standard deviation of RGB values 0..1 with which torchvision's and most of timm's
# ImageNet weights were trained.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """An encoder that gives HyperNet four stage maps, together with its LDA modules.

    A subclass sets `prefix` (its name in HyperNet's state dict) and `hidden` (the widths of the
    hyper network's first two convs). It calls `add_lda(channels)` and implements `stage_maps`. If
    an ImageNet state dict fits only a part of it, this part is its attribute `backbone`, and
    `adapted` translates published weights for this part. If its pixels are not normalised like
    ImageNet's, it calls `set_normalisation`.
    """

    prefix: str
    hidden: tuple[int, int]
    mean: torch.Tensor
    std: torch.Tensor
    frozen = False
    # Whether the encoder has a class token, and whether `stage_maps` gives it as a fifth map.
    has_token = False
    gives_token = False
    # Whether the backward pass computes the activations of the encoder's blocks again.
    grad_checkpointing = False
    # The depth of the parameters of `pretrained_part` by their names, as timm's `group_matcher` has
    # it. Names that match nothing, and those with the number 99999, are in the top layer.
    layer_patterns: Any = {}
    # The architecture of a model of a hub, which its name alone does not tell.
    origin: Mapping[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.set_normalisation(IMAGENET_MEAN, IMAGENET_STD)

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and standard deviation of RGB values 0..1 that normalise the pixels."""
        # Plain lists, because a checkpoint's description keeps them.
        self.normalisation = {"mean": list(mean), "std": list(std)}
        # Buffers stay on the device; tensors made for each batch would keep the host waiting. They
        # are not persistent, because the state dict of the public code does not have them.
        for name, value in self.normalisation.items():
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def normalised(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches uint8 (N, P, P, 3) -> fp32 (N, 3, P, P), channels last in memory."""
        return (patches.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    @property
    def described(self) -> dict[str, Any]:
        """What a description keeps, in addition to the name, to rebuild the backbone."""
        return {**self.normalisation, **self.origin}

    @property
    def pretrained_part(self) -> nn.Module:
        """The module that an ImageNet state dict fits: the attribute `backbone`, or `self`."""
        return getattr(self, "backbone", self)

    def adapted(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Published weights under the names and in the shapes of `pretrained_part`."""
        return state

    def add_lda(self, channels: Sequence[int]) -> None:
        """Add the local distortion aware modules for stage maps with these channel counts."""
        self.channels = tuple(channels)
        for i, (c_in, c_out, grid) in enumerate(zip(channels, LDA_CHANNELS, LDA_GRIDS), 1):
            # A Sequential of one: the conv's public name is lda{i}_pool.0.
            self.add_module(f"lda{i}_pool", nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False)))
            self.add_module(f"lda{i}_fc", nn.Linear(c_out * grid * grid, LDA_WIDTH))
        self.lda4_fc = nn.Linear(channels[3], target_net.TARGET_SIZES[0] - 3 * LDA_WIDTH)
        for name, parameter in self.named_parameters():
            if name.startswith("lda") and parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, H, W) -> four maps (N, C_i, H_i, W_i), finest first.

        With `gives_token`, the class token follows as a map (N, C_4, 1, 1).
        """
        raise NotImplementedError

    def encoder_state(self) -> dict[str, torch.Tensor]:
        """The tensors of `pretrained_part`, without the LDA's."""
        return {
            name: tensor
            for name, tensor in self.pretrained_part.state_dict().items()
            if not name.startswith("lda")
        }

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters of the encoder, without the LDA's."""
        return [p for name, p in self.named_parameters() if not name.startswith("lda")]

    def freeze(self, frozen: bool = True) -> None:
        """Freeze the encoder, in eval mode and without gradients. The LDA is still trained.

        frozen: False thaws it again.
        """
        self.frozen = frozen
        for parameter in self.encoder_parameters():
            parameter.requires_grad_(not frozen)

    def rate_scales(self, decay: float) -> dict[nn.Parameter, float]:
        """Parameter of the encoder -> the factor of its learning rate: decay^(layers above it).

        Raises UserError if the encoder does not tell the depth of its parameters.
        """
        layers = group_parameters(self.pretrained_part, self.layer_patterns, return_values=True)
        if len(layers) < 2:
            raise UserError("--layer_decay: this encoder does not tell the depth of its layers")
        top = len(layers) - 1
        depths = {parameter: depth for depth, layer in layers.items() for parameter in layer}
        return {p: decay ** (top - depths[p]) for p in self.encoder_parameters()}

    def save_memory(self, side: int) -> None:
        """Keep only the inputs of the encoder's blocks, and compute the rest again when needed.

        side: side of the training patches in pixels. Raises UserError if that saves less than a
        tenth of what the encoder keeps for the backward pass.
        """
        plain = self._kept_bytes(side)
        # timm's switches, and that of this class. timm's feature extractors, which are ModuleDicts,
        # would keep only the inputs of whole stages.
        switched: list[Any] = [m for m in self.modules() if hasattr(m, "grad_checkpointing")]
        for module in switched:
            module.grad_checkpointing = not isinstance(module, nn.ModuleDict)
        kept = self._kept_bytes(side)
        if kept > 0.9 * plain:
            raise UserError(
                f"--grad_checkpointing saves no memory with this encoder: {plain / 2**20:.1f} MiB "
                f"a patch without it, {kept / 2**20:.1f} with it"
            )

    def _kept_bytes(self, side: int) -> int:
        # What the encoder keeps of a patch for the backward pass.
        weights = {parameter.data_ptr() for parameter in self.parameters()}
        kept: list[torch.Tensor] = []
        # In eval mode, the patch does not change the statistics of batch norms.
        self.eval()
        # No backward pass follows, so nothing is unpacked.
        with torch.autograd.graph.saved_tensors_hooks(kept.append, kept.__getitem__):
            self.stage_maps(torch.zeros(1, 3, side, side))
        sizes = {tensor.data_ptr(): tensor.nbytes for tensor in kept}
        return sum(size for address, size in sizes.items() if address not in weights)

    def fuse_attention(self) -> None:
        """Compute attention by fused kernels. Raises UserError if there is no such choice."""
        raise UserError(
            "--fused_attention is for Swin; timm's other transformers fuse their attention anyway"
        )

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of training or of scoring.

        A frozen encoder stays in eval mode, so that its batch norms and dropout work as in scoring.
        """
        super().train(mode)
        for name, module in self.named_modules():
            # The statistics of a norm are frozen where its weights are.
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
            is_frozen = self.frozen or (is_norm and not module.weight.requires_grad)
            if is_frozen and name and not name.startswith("lda"):
                module.eval()
        return self

    def target_in_vec(self, maps: fusion.StageMaps) -> torch.Tensor:
        """Stage maps -> (N, 224): three times 16 local features and 176 global ones."""
        features = []
        for i, grid in enumerate(LDA_GRIDS, 1):
            # A 1x1 conv and an average commute, so maps that are averaged already give the same.
            reduced = getattr(self, f"lda{i}_pool")(fusion.stage_map(maps, i - 1, grid))
            features.append(getattr(self, f"lda{i}_fc")(fusion.pool_to(reduced, grid).flatten(1)))
        features.append(self.lda4_fc(fusion.pool_to(fusion.stage_map(maps, 3, 1), 1).flatten(1)))
        return torch.cat(features, 1)
