"""The optimizers by name, the optimizer of an epoch, and the average of the weights.

`TrainedModel` holds the two together with the model, as a run saves and restores them.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hyperiqa.model.checkpoints import portable_state
from hyperiqa.training.schedules import Rates

Groups = list[dict[str, Any]]


def _split_by_decay(groups: Groups) -> Iterator[dict[str, Any]]:
    for group in groups:
        yield {**group, "params": [p for p in group["params"] if p.ndim > 1]}
        # Biases and the weights of norms, which have one dimension, do not decay.
        yield {**group, "params": [p for p in group["params"] if p.ndim <= 1], "weight_decay": 0.0}


OPTIMIZERS: dict[str, Callable[[Groups, float], Optimizer]] = {
    "adam": lambda groups, decay: Adam(groups, weight_decay=decay, fused=True),
    "adamw": lambda groups, decay: AdamW(_split_by_decay(groups), weight_decay=decay, fused=True),
    "sgd": lambda groups, decay: SGD(groups, momentum=0.9, weight_decay=decay, fused=True),
}


def _split_by_scale(
    groups: Groups, scales: Mapping[torch.nn.Parameter, float]
) -> Iterator[dict[str, Any]]:
    for group in groups:
        # Parameters that have a scale are apart from all others even if it is 1: a fused SGD needs
        # groups in which either all parameters have been trained before, or none.
        kind_of = {p: (scales.get(p, 1.0), p in scales) for p in group["params"]}
        for kind in sorted({*kind_of.values()}, reverse=True):
            parameters = [p for p in group["params"] if kind_of[p] == kind]
            yield {**group, "params": parameters, "scale": kind[0]}


def set_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Give each of the optimizer's groups the learning rate of its name, times its scale."""
    for group in optimizer.param_groups:
        # The groups of an older version's checkpoint have no scale.
        group["lr"] = getattr(rates, group["name"]) * group.get("scale", 1.0)


def optimizer_for(
    options: Namespace,
    rates: Rates,
    weights: Mapping[str, list[torch.nn.Parameter]],
    previous: Optimizer | None = None,
    scales: Mapping[torch.nn.Parameter, float] = {},
) -> Optimizer:
    """The optimizer of an epoch with these rates: `previous`, or a new one where there is none.

    weights: the parameters of `head` and of `backbone`. A head with the rate None is in no
    optimizer. Steps clip gradients as `--clip_grad` says.
    scales: factors of the learning rates of single parameters; all others have the factor 1.
    """
    for parameter in weights["head"]:
        # The gradients of a frozen head would be computed for nothing.
        parameter.requires_grad_(rates.head is not None)
    if previous is not None:
        set_rates(previous, rates)
        return previous
    trained = [
        {"params": weights[name], "name": name}
        for name, rate in vars(rates).items()
        if rate is not None
    ]
    groups = list(_split_by_scale(trained, scales))
    optimizer = OPTIMIZERS[options.optimizer](groups, options.weight_decay)
    set_rates(optimizer, rates)
    if options.clip_grad is not None:
        parameters = [parameter for group in groups for parameter in group["params"]]

        def clip(*step: object) -> None:
            torch.nn.utils.clip_grad_norm_(parameters, options.clip_grad)

        # A hook, so that the training loop knows nothing of clipping.
        optimizer.register_step_pre_hook(clip)
    return optimizer


def moving_average(model: torch.nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights and statistics.

    Each update keeps the share `decay` of the average so far; the n-th keeps at most (1 + n) / (10
    + n), to forget the first weights soon. Of whole numbers, the newest are taken.
    """

    def update(averages: Any, newest: Any, updates: torch.Tensor | int) -> None:
        if averages[0].is_floating_point():
            share = min(decay, (1 + int(updates)) / (10 + int(updates)))
            get_ema_multi_avg_fn(share)(averages, newest, updates)
        else:
            for average, new in zip(averages, newest):
                average.copy_(new)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


class TrainedModel:
    """A model in training, with the optimizer of its epoch and, with `--ema`, its average.

    tested: the model that is tested and kept.
    """

    def __init__(self, model: Any, options: Namespace):
        self.model = model
        self.options = options
        self.optimizer: Optimizer | None = None
        # Now, before a part of them is frozen: the optimizer has all of them from the start.
        self.weights = model.parameter_groups()
        self.scales: dict[torch.nn.Parameter, float] = {}
        if options.layer_decay:
            self.scales = model.backbone.rate_scales(options.layer_decay)
        elif options.frozen_until:
            self.scales = dict.fromkeys(model.backbone.encoder_parameters(), 1.0)
        self.average: Any = moving_average(model, options.ema) if options.ema else None
        self.tested: Any = self.average.module if options.ema else model

    def begin_epoch(self, epoch: int, rates: Rates, new: bool) -> None:
        """Give the optimizer the epoch's rates; new: replace it by one that remembers nothing.

        With `--frozen_until`, the first epochs train the head alone, and the later ones everything:
        linear probing, then fine-tuning (Kumar et al., ICLR 2022).
        """
        if self.options.frozen_until:
            self.model.backbone.freeze(epoch <= self.options.frozen_until)
        previous = None if new else self.optimizer
        self.optimizer = optimizer_for(self.options, rates, self.weights, previous, self.scales)

    def after_step(self, rates: Rates) -> None:
        """Update the average after a step, and set the rates of the next one."""
        if self.average is not None:
            self.average.update_parameters(self.model)
        set_rates(self.optimizer, rates)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        state = {"model": portable_state(self.model), "optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def restore(self, saved: Mapping[str, Any], epoch: int, rates: Rates) -> None:
        """Go back to what `state` gave, in an epoch of these rates."""
        self.model.load_state_dict(saved["model"])
        # Made anew first: an optimizer's state dict fits only an optimizer of the same groups.
        self.begin_epoch(epoch, rates, new=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
