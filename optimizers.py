"""The optimizer that belongs to an epoch, which a resumed run thus rebuilds from the epoch number alone."""

from torch.nn import Parameter
from torch.optim import Adam

from lr_schedules import Constant

Weights = list[Parameter]


def adam_for_epoch(
    schedule: Constant, epoch: int, head: Weights, backbone: Weights, weight_decay: float, previous: Adam | None = None
) -> Adam:
    """The Adam of an epoch: `previous` with this epoch's rates, or a new one where the schedule makes one.
    Groups: head (absent while frozen), backbone. A frozen head also stops asking for gradients: they would be computed
    for nothing. `previous=None` always makes a new one, to load a saved state into."""
    rates = schedule.rates(epoch)
    for parameter in head:
        parameter.requires_grad_(rates.head is not None)
    groups = [{"params": backbone, "lr": rates.backbone, "name": "backbone"}]
    if rates.head is not None:
        groups.insert(0, {"params": head, "lr": rates.head, "name": "head"})
    if previous is None or schedule.makes_new_adam(epoch):
        return Adam(groups, weight_decay=weight_decay, fused=True)
    for group, new in zip(previous.param_groups, groups, strict=True):
        group["lr"] = new["lr"]
    return previous
