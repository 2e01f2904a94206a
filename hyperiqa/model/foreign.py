"""Checkpoints of other programs: finding the state dict, and the model that its names belong to.

Three programs save models that this one reads: the public HyperIQA code, the public code of
SMART-IQA, and pyiqa. Our parameters have the names of the first two. pyiqa has names of its own.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hyperiqa.base.errors import UserError
from hyperiqa.model.backbone import IMAGENET_MEAN, IMAGENET_STD

# Where other code keeps the weights to use, best first: averaged ones (params_ema) before others.
USUAL_KEYS = ("state_dict", "model", "params_ema", "params", "model_state_dict", "net")

# Blocks of the third stage, and whether they are bottlenecks -> torchvision's name.
RESNETS = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
}

# Embedding width and blocks of the third stage -> what timm's name calls it.
SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}

# How the names of pyiqa's HyperNet (pyiqa/archs/hypernet_arch.py) begin -> how ours do. The first
# beginning that fits a name counts, so `res.`, with which others begin too, is the last one.
PYIQA_NAMES = {
    **{f"lda_modules.{i}.0.": f"res.lda{i + 1}_pool.0." for i in range(3)},
    **{f"lda_modules.{i}.3.": f"res.lda{i + 1}_fc." for i in range(3)},
    "lda_modules.3.2.": "res.lda4_fc.",
    **{f"fc_w_modules.{i}.": f"fc{i + 1}w_conv." for i in range(4)},
    "fc_w_modules.4.2.": "fc5w_fc.",
    **{f"fc_b_modules.{i}.2.": f"fc{i + 1}b_fc." for i in range(5)},
    "base_model.": "res.",
}

# The models that pyiqa's HyperNet can hold: its sizes, and how it normalises pixels, are fixed.
PYIQA_MODEL = {
    "backbone": "resnet50",
    "head": "hyper",
    "fusion": "none",
    "hyper": "conv",
    "patch_size": 224,
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
}

# How pyiqa uses it, where that is not as the public code does. pyiqa's grid of crops begins at the
# same corner, but ends before the opposite edges: ours is the nearest that a description can name.
PYIQA_USE = {
    "resize": "none",
    "score_range": [0.0, 1.0],
    "nominal_range": [0.0, 1.0],
    "test_crop": "grid",
    "test_patch_num": 25,
}

StateDict = Mapping[str, torch.Tensor]


def public_name(name: str) -> str:
    """A parameter's name without the prefixes of wrappers around the model."""
    # What DataParallel and torch.compile put before a public name.
    return re.sub(r"^((module|_orig_mod)\.)+", "", name)


def public_names(state: StateDict) -> OrderedDict:
    """A state dict under the public code's names; it may come in wrappers or in pyiqa's layout."""
    renamed = OrderedDict((public_name(name), tensor) for name, tensor in state.items())
    return _renamed(renamed, PYIQA_NAMES) if _is_of_pyiqa(state) else renamed


def pyiqa_content(state: OrderedDict, description: Mapping[str, Any]) -> dict[str, OrderedDict]:
    """What a file of pyiqa's HyperNet holds: the tensors of a model of ours under pyiqa's names.

    state: as `portable_state` gives it; the description in it goes along. Raises UserError where
    the model does not fit pyiqa's HyperNet.
    """
    # Models from before there was a second head or hyper network do not name theirs.
    model = {**PYIQA_MODEL, **description}
    misfits = [f"{name} {model[name]}" for name in PYIQA_MODEL if model[name] != PYIQA_MODEL[name]]
    if misfits:
        expected = ", ".join(f"{name} {value}" for name, value in PYIQA_MODEL.items())
        raise UserError(
            f"--layout pyiqa: pyiqa's HyperNet has {expected}; this model has {', '.join(misfits)}"
        )
    renamed = _renamed(state, {ours: theirs for theirs, ours in PYIQA_NAMES.items()})
    renamed._metadata = state._metadata  # type: ignore[attr-defined]
    return {"params": renamed}


def _is_of_pyiqa(state: StateDict) -> bool:
    return any(public_name(name) == "fc_w_modules.4.2.weight" for name in state)


def _renamed(state: StateDict, beginnings: Mapping[str, str]) -> OrderedDict:
    """The state dict with the beginnings of names replaced; the first one that fits counts."""
    pattern = re.compile(f"^({'|'.join(map(re.escape, beginnings))})")
    return OrderedDict(
        (pattern.sub(lambda match: beginnings[match[0]], name), tensor)
        for name, tensor in state.items()
    )


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
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def describe_public_model(path: Path, content: StateDict) -> dict[str, Any]:
    """The description of a model that the public code or pyiqa saved, as that program uses it.

    content: the state dict as the file `path` has it. The backbone and the fusion are recognised by
    names and shapes of the parameters. Raises UserError, which names the file, where it is no model
    that we can build.
    """
    state = public_names(content)
    prefix, backbone = _recognise_backbone(state)
    first_conv = state.get("conv1.0.weight")
    last_lda = state.get(f"{prefix}.lda4_fc.weight")
    is_complete = backbone is not None and first_conv is not None and last_lda is not None
    if not is_complete or min(first_conv.ndim, last_lda.ndim) < 2:
        first_names = ", ".join(list(content)[:3]) or "none"
        raise UserError(
            f"{path}: not a HyperIQA model with a known backbone: expected parameters res.* or "
            f"swin.backbone.*, or pyiqa's base_model.*, with conv1.*; found {first_names}, …"
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
    } | (PYIQA_USE if _is_of_pyiqa(content) else {})


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
    """The fusion of a model, which has `conv1` and its LDA.

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
