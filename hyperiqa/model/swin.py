"""The Swin Transformer backbone: any Swin of timm (v1, v2, v2-CR, S3), and two small ones.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021.
"""

import re
from typing import Any

import torch
from timm.models.swin_transformer import WindowAttention

from hyperiqa.base.errors import UserError
from hyperiqa.model.backbone import Backbone
from hyperiqa.model.timm_encoder import create

# Swin-T with other arguments, for which there are no ImageNet weights.
OWN_SWINS: dict[str, dict[str, Any]] = {
    # Small enough to train from scratch on two CPU cores.
    "swin_nano": {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (2, 4, 8, 16)},
    # Smaller still, for patches of 128 pixels, whose maps its windows fit.
    "swin_pico": {
        "embed_dim": 32,
        "depths": (1, 1, 1, 1),
        "num_heads": (2, 4, 8, 16),
        "window_size": 8,
        "mlp_ratio": 2.0,
    },
}


class SwinBackbone(Backbone):
    """A timm Swin's stage maps; parameters `swin.backbone.*`, LDA `swin.lda*`.

    patch_size: side of the patches in pixels, for which the windows are built. drop_path: share of
    images for which the last block is left out while training; None: timm's. Raises UserError where
    timm has no such Swin.
    """

    prefix = "swin"
    hidden = (512, 256)

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
            self.backbone = create(
                architecture, pretrained, features_only=True, img_size=patch_size, **arguments
            )
        except UserError as problem:
            raise UserError(f"--backbone {name}: {problem}") from None
        except (AssertionError, ValueError) as problem:
            raise UserError(
                f"--backbone {name} cannot be built for --patch_size {patch_size}: {problem}"
            ) from None
        if name in OWN_SWINS:
            # timm's trunc_normal(0.02) suits widths of hundreds; at 32 channels it starves every
            # layer of signal.
            for module in self.backbone.modules():
                if isinstance(module, torch.nn.Linear):
                    torch.nn.init.xavier_uniform_(module.weight)
        # The layout is read from the model, never guessed from shapes. timm's feature extractors
        # give it as an enum of strings, its models as a string.
        self.channels_last = self.backbone.output_fmt == "NHWC"
        self.add_lda(self.backbone.feature_info.channels())

    def fuse_attention(self) -> None:
        """Compute the windows' attention, bias and mask in one fused kernel.

        Raises UserError where timm's windows have none.
        """
        windows: list[Any] = [m for m in self.modules() if isinstance(m, WindowAttention)]
        if not windows:
            raise UserError("--fused_attention: expected a Swin of the first version")
        for module in windows:
            module.fused_attn = True

    def adapted(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Published weights under the names of timm's feature extractor.

        The extractor joins `layers.0` to `layers_0`; timm's published files say `layers.0`.
        """
        return {re.sub(r"^layers\.", "layers_", name): tensor for name, tensor in state.items()}

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = list(self.backbone(images))
        return [stage.permute(0, 3, 1, 2) for stage in maps] if self.channels_last else maps
