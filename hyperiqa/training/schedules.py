"""Learning-rate schedules as pure functions of the epoch, its progress, and the figures so far.

Nothing here remembers anything: a resumed run asks again and gets the same.
"""

import math
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from hyperiqa.base.errors import counted


@dataclass(frozen=True)
class Rates:
    """Learning rates of one epoch; `head` is None where the head is frozen, in no optimizer."""

    head: float | None
    backbone: float

    def times(self, factor: float) -> "Rates":
        return Rates(None if self.head is None else self.head * factor, self.backbone * factor)

    def __str__(self) -> str:
        head = "frozen" if self.head is None else f"{self.head:.2e}"
        return f"HyperNet={head}, Backbone={self.backbone:.2e}"


@dataclass
class Constant:
    """`--lr_scheduler none`: the same rates in every epoch. The base of all schedules."""

    lr: float
    lr_ratio: float
    # Whether an epoch has the same rates in a longer run, so that a finished run can be extended.
    # Without annotation, because it is a fact of the class and no field.
    extendable = True

    def rates(self, epoch: int, done: float = 0.0, history: Sequence[float] = ()) -> Rates:
        """The rates in epoch 1, 2, … when the share `done` (0..1) of its steps is done.

        history: the SRCC of each earlier epoch.
        """
        return Rates(self.lr * self.lr_ratio, self.lr)

    def makes_new(self, epoch: int) -> bool:
        """Whether the epoch starts with a new optimizer: no moments, step count 0."""
        return epoch == 1

    def __str__(self) -> str:
        return "none (constant rates)"


@dataclass
class Cosine(Constant):
    """`--lr_scheduler cosine`: CosineAnnealingLR(T_max=epochs, eta_min), stepped after every epoch.

    Loshchilov & Hutter, SGDR (ICLR 2017), equation 5, without restarts. by_step (`cosine_step`):
    the same cosine, but with a rate for each step of an epoch.
    """

    epochs: int
    eta_min: float = 1e-6
    by_step: bool = False
    extendable = False

    def rates(self, epoch: int, done: float = 0.0, history: Sequence[float] = ()) -> Rates:
        epochs = epoch - 1 + (done if self.by_step else 0)
        factor = (1 + math.cos(math.pi * epochs / self.epochs)) / 2
        first = super().rates(epoch)
        return Rates(
            head=self.eta_min + (first.head - self.eta_min) * factor,
            backbone=self.eta_min + (first.backbone - self.eta_min) * factor,
        )

    def __str__(self) -> str:
        if self.by_step:
            return f"cosine per step (T_max={self.epochs} epochs, eta_min={self.eta_min:g})"
        return f"CosineAnnealingLR (T_max={self.epochs}, eta_min={self.eta_min:g})"


class MultiStep(Constant):
    """`--lr_scheduler multistep`: MultiStepLR(milestones, gamma=0.1).

    milestones None: 60 and 85 % of all epochs.
    """

    def __init__(self, lr: float, lr_ratio: float, epochs: int, milestones: Sequence[int] | None):
        super().__init__(lr, lr_ratio)
        self.extendable = milestones is not None
        self.milestones = milestones or [max(1, round(share * epochs)) for share in (0.6, 0.85)]

    def rates(self, epoch: int, done: float = 0.0, history: Sequence[float] = ()) -> Rates:
        drops = sum(epoch > milestone for milestone in self.milestones)
        return super().rates(epoch).times(0.1**drops)

    def __str__(self) -> str:
        return f"MultiStepLR (milestones={list(self.milestones)}, gamma=0.1)"


@dataclass
class Plateau(Constant):
    """`--lr_scheduler plateau`: ReduceLROnPlateau(mode="max", factor=0.1, patience, threshold=0).

    It watches the SRCC by which the best epoch is chosen: after more than `patience` epochs without
    a better one, the rates fall to a tenth.
    """

    patience: int

    def rates(self, epoch: int, done: float = 0.0, history: Sequence[float] = ()) -> Rates:
        best = -math.inf
        epochs_without_better = 0
        drops = 0
        for srcc in history[: epoch - 1]:
            # An undefined SRCC (nan) is not better, and `max` in this order keeps the best.
            epochs_without_better = 0 if srcc > best else epochs_without_better + 1
            best = max(best, srcc)
            if epochs_without_better > self.patience:
                drops += 1
                epochs_without_better = 0
        return super().rates(epoch).times(0.1**drops)

    def __str__(self) -> str:
        return f"ReduceLROnPlateau (of the SRCC, factor=0.1, patience={self.patience})"


class Warmup(Constant):
    """`--warmup_epochs`: another schedule's rates times a factor that rises to 1.

    It rises linearly, step by step, from 1 % at the first step to 1 after these epochs (Goyal et
    al., "Accurate, large minibatch SGD", 2017, section 2.2).
    """

    def __init__(self, schedule: Constant, epochs: int):
        self.schedule = schedule
        self.epochs = epochs
        self.extendable = schedule.extendable

    def rates(self, epoch: int, done: float = 0.0, history: Sequence[float] = ()) -> Rates:
        share = min((epoch - 1 + done) / self.epochs, 1.0)
        return self.schedule.rates(epoch, done, history).times(0.01 + 0.99 * share)

    def makes_new(self, epoch: int) -> bool:
        return self.schedule.makes_new(epoch)

    def __str__(self) -> str:
        return f"{self.schedule}, after a warm-up of {counted(self.epochs, 'epoch')}"


@dataclass
class Step(Constant):
    """`--lr_scheduler step`: the published HyperIQA procedure, its three defects included.

    After epoch n (t = n - 1) the public code makes a new Adam with head lr lr*ratio/10^(t//6), the
    ratio being 1 once t > 8, and backbone lr `lr`. The iterator of its head is exhausted by then:
    from epoch 2 on no optimizer has the head.

    fixes: `filter` keeps the head in, `backbone_lr` decays the backbone too, `optimizer_state`
    keeps one Adam and does what `filter` does.
    """

    fixes: Collection[str] = ()

    def rates(self, epoch: int, done: float = 0.0, history: Sequence[float] = ()) -> Rates:
        if epoch == 1:
            return super().rates(1)
        # The rates of epoch n + 1 are those that the public code sets after epoch n.
        t = epoch - 2
        decay = 10 ** (t // 6)
        head = self.lr * (self.lr_ratio if t <= 8 else 1) / decay
        backbone = self.lr / decay if "backbone_lr" in self.fixes else self.lr
        is_frozen = {"filter", "optimizer_state"}.isdisjoint(self.fixes)
        return Rates(None if is_frozen else head, backbone)

    def makes_new(self, epoch: int) -> bool:
        return epoch == 1 or "optimizer_state" not in self.fixes

    def __str__(self) -> str:
        fixes = (
            ", ".join(sorted(self.fixes))
            or "none: head frozen and backbone lr constant from epoch 2 on"
        )
        return f"step, the published procedure (training fixes: {fixes})"


# How each is made from the run's flags.
SCHEDULES: dict[str, Callable[[Namespace], Constant]] = {
    "cosine": lambda flags: Cosine(flags.lr, flags.lr_ratio, flags.epochs),
    "step": lambda flags: Step(flags.lr, flags.lr_ratio, flags.training_fixes),
    "none": lambda flags: Constant(flags.lr, flags.lr_ratio),
    "multistep": lambda flags: MultiStep(flags.lr, flags.lr_ratio, flags.epochs, flags.milestones),
    "plateau": lambda flags: Plateau(flags.lr, flags.lr_ratio, flags.plateau_patience),
    "cosine_step": lambda flags: Cosine(flags.lr, flags.lr_ratio, flags.epochs, by_step=True),
}


def make_schedule(options: Namespace) -> Constant:
    """The schedule that `--lr_scheduler` names, made from the flags that it takes.

    `--warmup_epochs` puts a warm-up before it.
    """
    schedule = SCHEDULES[options.lr_scheduler](options)
    return Warmup(schedule, options.warmup_epochs) if options.warmup_epochs else schedule
