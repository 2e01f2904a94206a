"""Checkpoints of other programs: which model their parameter names belong to."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hyperiqa.base.errors import UserError

# Where other code keeps the weights to use, best first: averaged ones (params_ema) before the others.
USUAL_KEYS = ("state_dict", "model", "params_ema", "params", "model_state_dict", "net")


WRAPPERS = re.compile(
    r"^((module|_orig_mod)\.)+"
)  # DataParallel's and torch.compile's, before a public name


# Blocks of the third stage, and whether they are bottlenecks -> torchvision's name.
RESNETS = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
}


# Embedding width and blocks of the third stage -> what timm's name calls it.
SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}


def _unwrapped(path: Path, state: object) -> Mapping[str, torch.Tensor]:
    """The state dict in what a file holds: all of it, or its one entry that is a state dict, whatever its key; of
    several that of a usual key. Raises UserError where there is none, or no way to choose."""
    if _is_state_dict(state):
        return state  # type: ignore[return-value]
    entries = state.items() if isinstance(state, Mapping) else ()
    found = {key: entry for key, entry in entries if _is_state_dict(entry)}
    if not found:
        raise UserError(f"{path}: expected a state dict (parameter name -> tensor)")
    usual = [key for key in USUAL_KEYS if key in found] if len(found) > 1 else list(found)
    if not usual:
        raise UserError(f"{path}: expected one state dict, found {', '.join(map(str, found))}")
    return found[usual[0]]


def _is_state_dict(value: object) -> bool:
    items = value.items() if isinstance(value, Mapping) else ()
    return bool(items) and all(
        isinstance(name, str) and isinstance(found, torch.Tensor) for name, found in items
    )


def _public_description(path: Path, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """How the public code uses a model with these parameters; UserError where it is none that we can build."""

    def blocks(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    backbone, prefix = None, "res"
    if "res.conv1.weight" in state:
        backbone = RESNETS.get((blocks("res.layer3."), "res.layer3.0.conv3.weight" in state))
    elif "swin.backbone.patch_embed.proj.weight" in state:
        prefix, width = "swin", len(state["swin.backbone.patch_embed.proj.weight"])
        size = SWINS.get((width, blocks("swin.backbone.layers_2.blocks.")))
        backbone = size and f"swin_{size}_patch4_window7_224"
    hyper, last = (state.get(name) for name in ("conv1.0.weight", f"{prefix}.lda4_fc.weight"))
    if backbone is None or hyper is None or last is None or min(hyper.ndim, last.ndim) < 2:
        some = ", ".join(list(state)[:3]) or "none"
        wanted = "expected parameters res.*, conv1.* or swin.backbone.*, conv1.*"
        raise UserError(
            f"{path}: not a HyperIQA model with a known backbone: {wanted}; found {some}, …"
        )
    stages = [
        state.get(f"{prefix}.lda{i}_pool.0.weight", last).shape[1:2].numel() for i in (1, 2, 3)
    ]
    stages.append(last.shape[1])
    if hyper.shape[1] not in (last.shape[1], sum(stages)):
        wanted = f"{last.shape[1]}, those of the last stage, or {sum(stages)}, those of all stages"
        raise UserError(
            f"{path}: conv1.0.weight takes {hyper.shape[1]} channels; expected {wanted}"
        )
    fusion = "none" if hyper.shape[1] == last.shape[1] else "direct"
    for name, found in (
        ("concat", "fusion.conv.weight"),
        ("attention", "multiscale_attention.attention_net.0.weight"),
    ):
        fusion = name if found in state else fusion
    return {
        "backbone": backbone,
        "fusion": fusion,
        "patch_size": 224,
        "resize": "512x384",
        "exif_rotate": False,
        "dataset": "koniq-10k",
        "score_range": [0.0, 100.0],
        "higher_is_better": True,
        "test_crop": "center",
        "test_patch_num": 1,
    }
