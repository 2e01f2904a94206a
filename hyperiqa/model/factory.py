"""From names to untrained models.

Only this module knows which family a backbone's name belongs to.
"""

import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hyperiqa.base.errors import UserError
from hyperiqa.model import resnet, swin, timm_encoder
from hyperiqa.model.backbone import Backbone
from hyperiqa.model.hypernet import HyperNet, QualityNet
from hyperiqa.model.mlp import MlpNet
from hyperiqa.model.pretrained import load_backbone_weights

HEADS: dict[str, type[QualityNet]] = {"hyper": HyperNet, "mlp": MlpNet}
# The settings that shape a model, in addition to those of its backbone.
CHOICES = ("head", *HyperNet.choices, *MlpNet.choices)

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


def build_backbone(
    name: str,
    pretrained: bool = False,
    patch_size: int = 224,
    weights: Path | None = None,
    drop_path: float | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build the backbone of that name for square patches of that side in pixels.

    Its weights are random, or ImageNet's (pretrained), or read from the state dict in the file
    `weights`.

    drop_path: the share of images for which the last block is left out while training; for earlier
        blocks, it rises linearly from 0. None stands for the encoder's own default.
    architecture: the architecture of a model of a hub, as a checkpoint's description keeps it.

    Raises UserError if there is no such backbone, or if it has no such weights.
    """
    downloaded = pretrained and weights is None
    try:
        if name in RESNETS:
            backbone: Backbone = resnet.ResNetBackbone(name, downloaded, drop_path)
        elif name.startswith("swin"):
            backbone = swin.SwinBackbone(name, downloaded, patch_size, drop_path)
        else:
            backbone = timm_encoder.TimmBackbone(
                name, downloaded, patch_size, drop_path, architecture
            )
    except OSError as problem:
        raise UserError(
            f"the pretrained weights of {name} cannot be downloaded ({problem}); "
            "give --backbone_weights PATH or --no_pretrained, or run train_timm.py without "
            "--backbone, which needs no download"
        ) from None
    if weights is not None:
        load_backbone_weights(backbone, weights)
    return backbone


def with_head(backbone: Backbone, choices: Mapping) -> QualityNet:
    """The model with the choices of a run's settings or of a checkpoint's description.

    A missing choice takes its default.
    """
    head = HEADS[choices.get("head", "hyper")]
    names = {"dropout", *head.choices} & choices.keys()
    return head(backbone, **{name: choices[name] for name in names})


def new_model(options: Namespace) -> QualityNet:
    """The model that a run's flags ask for.

    The backbone has pretrained or given weights, and everything else is untrained.
    """
    return with_head(
        build_backbone(
            options.backbone,
            options.pretrained,
            options.patch_size,
            options.backbone_weights,
            options.drop_path,
        ),
        vars(options),
    )


def build(description: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> QualityNet:
    """The untrained model that a checkpoint's description names.

    state: the checkpoint's tensors, if there are any. A model with a much larger encoder than they
    can fill is not built. Raises UserError if there is no such model.
    """
    if architecture := description.get("architecture"):
        parameters = math.inf if state is None else sum(map(torch.numel, state.values()))
        timm_encoder.check_architecture(description["backbone"], architecture, parameters)
    try:
        backbone = build_backbone(
            description["backbone"],
            patch_size=description.get("patch_size", 224),
            drop_path=description.get("drop_path"),
            architecture=description.get("architecture"),
        )
        net = with_head(backbone, description)
    # A newer program's description may name a head, or a part of one, that this one lacks.
    except (KeyError, ValueError):
        choices = ", ".join(
            f"{name} {description[name]}" for name in CHOICES if name in description
        )
        raise UserError(
            f"the checkpoint's backbone {description['backbone']} with {choices} is unknown here"
        ) from None
    # The pixels are normalised as in training, even if the encoder's own mean and std have changed.
    if "mean" in description and "std" in description:
        backbone.set_normalisation(description["mean"], description["std"])
    return net
