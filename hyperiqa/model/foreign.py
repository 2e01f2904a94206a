"""Checkpoints of other programs: finding the state dict, and the model that its names belong to."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hyperiqa.base.errors import UserError

# Where other code keeps the weights to use, best first: averaged ones (params_ema) before others.
USUAL_KEYS = ("state_dict", "model", "params_ema", "params", "model_state_dict", "net")

# What DataParallel and torch.compile put before a public name.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")

# Blocks of the third stage, and whether they are bottlenecks -> torchvision's name.
RESNETS = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
}

# Embedding width and blocks of the third stage -> what timm's name calls it.
SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}

StateDict = Mapping[str, torch.Tensor]


def public_name(name: str) -> str:
    """A parameter's name without the prefixes of wrappers around the model."""
    return WRAPPERS.sub("", name)


def find_state_dict(path: Path, content: Any) -> StateDict:
    """The state dict in the `content` of the file `path`.

    It is all of the content, or its only entry that is a state dict, whatever the key. Of several
    entries it is the one of a usual key. Raises UserError where there is none, or no way to choose.
    """
    if _is_state_dict(content):
        return content
    entries = content.items() if isinstance(content, Mapping) else ()
    candidates = {key: entry for key, entry in entries if _is_state_dict(entry)}
    if not candidates:
        raise UserError(f"{path}: expected a state dict (parameter name -> tensor)")
    for key in USUAL_KEYS if len(candidates) > 1 else candidates:
        if key in candidates:
            return candidates[key]
    raise UserError(f"{path}: expected one state dict, found {', '.join(map(str, candidates))}")


def _is_state_dict(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())


def describe_public_model(path: Path, state: StateDict) -> dict[str, Any]:
    """The description of a model that the public code saved, as that code uses it.

    The backbone and the fusion are recognised by names and shapes of the parameters. Raises
    UserError, which names the file `path`, where it is no model that we can build.
    """
    prefix, backbone = _recognise_backbone(state)
    first_conv = state.get("conv1.0.weight")
    last_lda = state.get(f"{prefix}.lda4_fc.weight")
    is_complete = backbone is not None and first_conv is not None and last_lda is not None
    if not is_complete or min(first_conv.ndim, last_lda.ndim) < 2:
        first_names = ", ".join(list(state)[:3]) or "none"
        raise UserError(
            f"{path}: not a HyperIQA model with a known backbone: expected parameters "
            f"res.*, conv1.* or swin.backbone.*, conv1.*; found {first_names}, …"
        )
    return {
        "backbone": backbone,
        "fusion": _recognise_fusion(path, state, prefix),
        "patch_size": 224,
        "resize": "512x384",
        "exif_rotate": False,
        "dataset": "koniq-10k",
        "score_range": [0.0, 100.0],
        "higher_is_better": True,
        "test_crop": "center",
        "test_patch_num": 1,
    }


def _recognise_backbone(state: StateDict) -> tuple[str, str | None]:
    """(the backbone's prefix, its name); the name is None where it is unknown."""
    if "res.conv1.weight" in state:
        bottlenecks = "res.layer3.0.conv3.weight" in state
        return "res", RESNETS.get((_count_blocks(state, "res.layer3."), bottlenecks))
    if "swin.backbone.patch_embed.proj.weight" in state:
        width = len(state["swin.backbone.patch_embed.proj.weight"])
        size = SWINS.get((width, _count_blocks(state, "swin.backbone.layers_2.blocks.")))
        return "swin", f"swin_{size}_patch4_window7_224" if size else None
    return "res", None


def _count_blocks(state: StateDict, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _recognise_fusion(path: Path, state: StateDict, prefix: str) -> str:
    """The fusion of a model whose `conv1` and LDA are present.

    Raises UserError where `conv1` takes channels that no fusion gives.
    """
    last_lda = state[f"{prefix}.lda4_fc.weight"]
    last_channels = last_lda.shape[1]
    convs = [state.get(f"{prefix}.lda{i}_pool.0.weight", last_lda) for i in (1, 2, 3)]
    # The slice is empty, instead of an IndexError, where a damaged file's tensor is flat.
    all_channels = last_channels + sum(conv.shape[1:2].numel() for conv in convs)
    channels = state["conv1.0.weight"].shape[1]
    if channels not in (last_channels, all_channels):
        raise UserError(
            f"{path}: conv1.0.weight takes {channels} channels; expected {last_channels}, "
            f"those of the last stage, or {all_channels}, those of all stages"
        )
    if "multiscale_attention.attention_net.0.weight" in state:
        return "attention"
    if "fusion.conv.weight" in state:
        return "concat"
    return "none" if channels == last_channels else "direct"
