"""From names to untrained models: the only place that knows which family a backbone's name belongs to."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperiqa.base.errors import UserError
from hyperiqa.model.backbone import Backbone
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.pretrained import load_backbone_weights
from hyperiqa.model.resnet import ResNetBackbone
from hyperiqa.model.swin import SwinBackbone
from hyperiqa.model.timm_encoder import TimmBackbone

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


def build_backbone(
    name: str,
    pretrained: bool = False,
    patch_size: int = 224,
    weights: Path | None = None,
    drop_path: float | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> Backbone:
    """The backbone of that name, for square patches of that side in pixels, with random weights, ImageNet's
    (pretrained), or those of the state dict in the file `weights`. drop_path: share of images for which a block is left
    out while training, rising linearly to it at the last block; None: the encoder's own. architecture: what a model of
    a hub is, as a description keeps it. Raises UserError where there is no such backbone, or no such weights."""
    downloaded = pretrained and weights is None
    try:
        if name in RESNETS:
            backbone: Backbone = ResNetBackbone(name, downloaded, drop_path)
        elif name.startswith("swin"):
            backbone = SwinBackbone(name, downloaded, patch_size, drop_path)
        else:
            backbone = TimmBackbone(name, downloaded, patch_size, drop_path, architecture)
    except OSError as problem:
        advice = "give --backbone_weights PATH or --no_pretrained"
        raise UserError(
            f"the pretrained weights of {name} cannot be downloaded ({problem}); {advice}"
        ) from None
    if weights is not None:
        load_backbone_weights(backbone, weights)
    return backbone


def hypernet(backbone: Backbone, choices: Mapping) -> HyperNet:
    """The HyperNet of a run's settings or a checkpoint's description; what they do not say takes its default."""
    return HyperNet(
        backbone,
        **{name: choices[name] for name in ("dropout", *HyperNet.choices) if name in choices},
    )


def new_model(options: Namespace) -> HyperNet:
    """The untrained model that a run's flags ask for, with pretrained or given weights for the backbone."""
    o = options
    return hypernet(
        build_backbone(o.backbone, o.pretrained, o.patch_size, o.backbone_weights, o.drop_path),
        vars(o),
    )


def build(description: Mapping[str, Any]) -> HyperNet:
    """The untrained model that a checkpoint's description names. Raises UserError where there is none such."""
    d = description
    try:
        more = {"patch_size": d.get("patch_size", 224), "drop_path": d.get("drop_path")}
        backbone = build_backbone(str(d["backbone"]), **more, architecture=d.get("architecture"))
        net = hypernet(backbone, d)
    except (KeyError, ValueError):
        choices = ", ".join(f"{name} {d[name]}" for name in HyperNet.choices if name in d)
        raise UserError(
            f"the checkpoint's backbone {d['backbone']} with {choices} is unknown here"
        ) from None
    if "mean" in d and "std" in d:
        backbone.set_normalisation(d["mean"], d["std"])
    return net
