"""Low-rank adapters in the linear layers of a frozen encoder.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. A layer's weights become
W + (alpha / rank) * B A, with the encoder's own W frozen. `merge` makes ordinary layers of them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints, description, factory, pretrained

# What the description of an adapter tells about it.
SETTINGS = {"lora", "lora_targets", "lora_alpha", "lora_base"}


class LowRank(nn.Module):
    """Weights (out, in) -> the weights with a low-rank update, which is 0 at first.

    alpha: None for the rank. A (rank, in) begins as in the code of the authors.
    """

    def __init__(self, weight: torch.Tensor, rank: int, alpha: float | None):
        super().__init__()
        self.scale = (alpha or rank) / rank
        self.lora_A = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.lora_B = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.lora_A, math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        # Small updates would be lost in the eight bits of bf16.
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.lora_B @ self.lora_A)


def adapt(backbone: Any, settings: Mapping[str, Any]) -> None:
    """Freeze the encoder of a `Backbone` and give its linear layers adapters.

    The LDA is still trained, and so are the encoder's dropout and its drop path still used.

    settings: `lora`, the rank; `lora_targets`, the last parts of the layers' names; `lora_alpha`.
    Raises UserError if the encoder has no layers of these names.
    """
    layers = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("lda")
    }
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in layers)
    if unknown := [target for target in settings["lora_targets"] if target not in kinds]:
        raise UserError(
            f"--lora: the encoder has no linear layers named {' and '.join(unknown)}; its linear "
            f"layers, for --lora_targets: {', '.join(kinds) or 'none'}"
        )
    for parameter in backbone.encoder_parameters():
        parameter.requires_grad_(False)
    for name, layer in layers.items():
        if name.rpartition(".")[2] in settings["lora_targets"]:
            low_rank = LowRank(layer.weight, settings["lora"], settings["lora_alpha"])
            nn.utils.parametrize.register_parametrization(layer, "weight", low_rank)


def merge(net: nn.Module) -> nn.Module:
    """Turn the adapted layers into ordinary ones with the same weights; returns the model."""
    for module in net.modules():
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            adapted = type(module)
            # Removing an adapter changes the class, which a copy shares with its original.
            module.__class__ = type(adapted.__name__, adapted.__bases__, dict(vars(adapted)))
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    return net


def base_digest(backbone: Any) -> str:
    """The fingerprint of the encoder's own weights, which is the same with and without adapters."""
    return checkpoints.digest(
        {
            name.replace("parametrizations.weight.original", "weight"): tensor
            for name, tensor in backbone.encoder_state().items()
            if checkpoints.ADAPTER not in name and not name.endswith(checkpoints.IDLE)
        }
    )


def trained_state(net: Any) -> dict[str, torch.Tensor]:
    """The tensors of an adapted model that a run changes: adapters, LDA and head."""
    prefix = f"{net.backbone.prefix}."
    return {
        name: tensor
        for name, tensor in net.state_dict().items()
        if not name.startswith(prefix)
        or name.startswith(f"{prefix}lda")
        or checkpoints.ADAPTER in name
    }


def load_merged(path: Path, base: Path) -> tuple[Any, dict[str, Any]]:
    """(merged model, its description) of an adapter file and a file with the encoder's weights.

    base: as `--backbone_weights` takes it. Raises UserError if the two do not belong together.
    """
    state, facts = checkpoints.read_state(path)
    is_described = isinstance(facts, Mapping) and facts.keys() >= SETTINGS and facts["lora"]
    if not (is_described and any(checkpoints.ADAPTER in name for name in state)):
        raise UserError(f"{path}: expected the …_adapter.safetensors of a run with --lora")
    if problem := description.problem_of_description(facts):
        raise UserError(f"{path}: {problem}")
    net = factory.build(facts)
    pretrained.load_backbone_weights(net.backbone, base)
    digest = base_digest(net.backbone)
    if digest != facts["lora_base"]:
        raise UserError(
            f"--base {base}: expected the encoder that the adapter was trained on "
            f"(weights {facts['lora_base']}), found another one (weights {digest})"
        )
    adapt(net.backbone, facts)
    checkpoints.fill(net, {**net.state_dict(), **state}, path)
    return merge(net), {**facts, "described": True}
