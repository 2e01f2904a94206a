"""The Swin Transformer backbone: any Swin of timm (v1, v2, v2-CR, S3), and two small ones.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021.
"""

import re
from typing import Any

import torch
from timm.models.swin_transformer import WindowAttention

from hyperiqa.base.errors import UserError
from hyperiqa.model import backbone, timm_encoder

# Small variants of Swin-T, without ImageNet weights.
OWN_SWINS: dict[str, dict[str, Any]] = {
    # Small enough to train from scratch on two CPU cores.
    "swin_nano": {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (2, 4, 8, 16)},
    # Even smaller, with windows that fit the maps of patches of 128 pixels.
    "swin_pico": {
        "embed_dim": 32,
        "depths": (1, 1, 1, 1),
        "num_heads": (2, 4, 8, 16),
        "window_size": 8,
        "mlp_ratio": 2.0,
    },
}


class SwinBackbone(backbone.Backbone):
    """A timm Swin's stage maps; parameters `swin.backbone.*`, LDA `swin.lda*`.

    patch_size: the side of the patches in pixels, for which the windows are built. drop_path: the
    share of images for which the last block is left out while training; None for timm's default.
    Raises UserError if timm has no such Swin.
    """

    prefix = "swin"
    hidden = (512, 256)
    # timm's own patterns have the names of whole models. Its versions call a stage by two names.
    layer_patterns = {
        "stem": r"absolute_pos_embed|patch_embed",
        "blocks": [
            (r"(?:layers|stages)_(\d+)\.downsample", (0,)),
            (r"(?:layers|stages)_(\d+)\.\w+\.(\d+)", None),
        ],
    }

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        patch_size: int = 224,
        drop_path: float | None = None,
    ):
        super().__init__()
        arguments = dict(OWN_SWINS.get(name, {}))
        if arguments and pretrained:
            raise UserError(f"--backbone {name} has no pretrained weights: add --no_pretrained")
        architecture = "swin_tiny_patch4_window7_224" if arguments else name
        if drop_path is not None:
            arguments["drop_path_rate"] = drop_path
        try:
            self.backbone = timm_encoder.create(
                architecture, pretrained, features_only=True, img_size=patch_size, **arguments
            )
        except UserError as problem:
            raise UserError(f"--backbone {name}: {problem}") from None
        except (AssertionError, ValueError) as problem:
            raise UserError(
                f"--backbone {name} cannot be built for --patch_size {patch_size}: {problem}"
            ) from None
        if name in OWN_SWINS:
            # timm's trunc_normal(0.02) suits widths of hundreds. With 32 channels, the signal would
            # fade from layer to layer.
            for module in self.backbone.modules():
                if isinstance(module, torch.nn.Linear):
                    torch.nn.init.xavier_uniform_(module.weight)
        # The layout is read from the model, never guessed from shapes. It is an enum of strings in
        # timm's feature extractors, and a string in its models.
        self.channels_last = self.backbone.output_fmt == "NHWC"
        self.add_lda(self.backbone.feature_info.channels())

    def fuse_attention(self) -> None:
        """Compute the windows' attention, bias and mask in one fused kernel.

        Raises UserError if timm has no such kernel for these windows.
        """
        windows: list[Any] = [m for m in self.modules() if isinstance(m, WindowAttention)]
        if not windows:
            raise UserError("--fused_attention: expected a Swin of the first version")
        for module in windows:
            module.fused_attn = True

    def adapted(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Published weights under the names of timm's feature extractor.

        It has `layers_0` for the `layers.0` of timm's published files.
        """
        return {re.sub(r"^layers\.", "layers_", name): tensor for name, tensor in state.items()}

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = list(self.backbone(images))
        return [stage.permute(0, 3, 1, 2) for stage in maps] if self.channels_last else maps
