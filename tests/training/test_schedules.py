import itertools
import math
from argparse import Namespace

import pytest
import torch
from helpers import fill_by_recipe, recipe_images

from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.resnet import ResNetBackbone
from hyperiqa.training import schedules
from hyperiqa.training.losses import QualityLoss
from hyperiqa.training.optimizers import optimizer_for
from hyperiqa.training.schedules import SCHEDULES, Rates

LR, RATIO = 2e-5, 10
COMBINATIONS = [
    c
    for n in range(4)
    for c in itertools.combinations(("filter", "backbone_lr", "optimizer_state"), n)
]


def make_schedule(name, lr, lr_ratio, epochs, fixes=(), milestones=None, plateau_patience=2):
    more = Namespace(training_fixes=fixes, milestones=milestones, plateau_patience=plateau_patience)
    return SCHEDULES[name](Namespace(lr=lr, lr_ratio=lr_ratio, epochs=epochs, **vars(more)))


def of_epoch(schedule, epoch, weights, previous):
    """As the solver asks for it."""
    adam = Namespace(optimizer="adam", weight_decay=5e-4, clip_grad=None)
    return optimizer_for(
        adam, schedule.rates(epoch), weights, None if schedule.makes_new(epoch) else previous
    )


def a_run(schedule, epochs, steps_per_epoch=3):
    """Per epoch: (head lr or None, backbone lr, whether the head moved, Adam's step count before the epoch)."""
    head, backbone = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    optimizer, seen = None, []
    for epoch in range(1, epochs + 1):
        optimizer = of_epoch(schedule, epoch, {"head": [head], "backbone": [backbone]}, optimizer)
        state = optimizer.state.get(backbone, {})
        before, lrs = (
            head.detach().clone(),
            {group["name"]: group["lr"] for group in optimizer.param_groups},
        )
        count = int(state["step"]) if state else 0
        for _ in range(steps_per_epoch):
            optimizer.zero_grad()
            (head.sum() * backbone.sum()).backward()
            optimizer.step()
        seen.append((lrs.get("head"), lrs["backbone"], not torch.equal(before, head), count))
    return seen


@pytest.mark.parametrize("fixes", COMBINATIONS, ids=lambda c: "+".join(c) or "none")
def test_step_exactly_per_epoch(fixes):
    """The published procedure, written out for 14 epochs: rates, who is trained, Adam's step count."""
    head_lrs = [2e-4] * 7 + [2e-5] * 3 + [2e-6] * 3 + [2e-7]
    backbone_lrs = [2e-5] * 7 + [2e-6] * 6 + [2e-7] if "backbone_lr" in fixes else [2e-5] * 14
    trained = "filter" in fixes or "optimizer_state" in fixes
    seen = a_run(make_schedule("step", LR, RATIO, 14, fixes), 14)
    for epoch, (head_lr, backbone_lr, head_moved, count) in enumerate(seen, 1):
        assert backbone_lr == pytest.approx(backbone_lrs[epoch - 1], rel=1e-12)
        assert head_moved == (epoch == 1 or trained)
        assert head_lr == (pytest.approx(head_lrs[epoch - 1], rel=1e-12) if head_moved else None)
        assert count == (3 * (epoch - 1) if "optimizer_state" in fixes else 0)


def torchs(make, epochs, seen=None):
    """Rates of head and backbone that a scheduler of torch gives, epoch by epoch; seen: what it is told after each."""
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    adam = torch.optim.Adam(
        [{"params": parameters[:1], "lr": LR * RATIO}, {"params": parameters[1:], "lr": LR}]
    )
    scheduler, rates = make(adam), []
    for n in range(epochs):
        rates.append([group["lr"] for group in adam.param_groups])
        adam.step()
        scheduler.step(*([seen[n]] if seen else []))
    return rates


def as_rows(schedule, epochs, **more):
    found = [schedule.rates(epoch, **more) for epoch in range(1, epochs + 1)]
    return [pytest.approx([rates.head, rates.backbone], rel=1e-9) for rates in found]


@pytest.mark.parametrize(("given", "milestones"), [(None, [6, 8]), ([2, 3, 9], [2, 3, 9])])
def test_multistep_is_torchs(given, milestones):
    def theirs(adam):
        return torch.optim.lr_scheduler.MultiStepLR(adam, milestones)

    assert torchs(theirs, 10) == as_rows(
        make_schedule("multistep", LR, RATIO, 10, milestones=given), 10
    )


@pytest.mark.parametrize("patience", [0, 2])
def test_plateau_is_torchs(patience):
    srcc = [0.1, 0.4, 0.4, 0.3, 0.2, 0.5, math.nan, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]

    def theirs(adam):
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        return plateau(
            adam,
            mode="max",
            factor=0.1,
            patience=patience,
            threshold=0,
            threshold_mode="abs",
            eps=0,
        )

    ours = make_schedule("plateau", LR, RATIO, 14, plateau_patience=patience)
    assert torchs(theirs, 14, srcc) == as_rows(ours, 14, history=srcc)
    assert len({ours.rates(epoch, 0.5, srcc[: epoch - 1]).head for epoch in range(1, 15)}) > 2


def test_cosine_by_step_is_torchs_with_a_step_for_each_batch():
    ours, steps = make_schedule("cosine_step", LR, RATIO, 4), 5

    def theirs(adam):
        return torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=4 * steps, eta_min=1e-6)

    found = [vars(ours.rates(1 + k // steps, k % steps / steps)) for k in range(4 * steps)]
    assert torchs(theirs, 4 * steps) == [
        pytest.approx([r["head"], r["backbone"]], rel=1e-9) for r in found
    ]


def test_a_warm_up_rises_by_steps_to_what_the_schedule_says():
    plain = make_schedule("multistep", LR, RATIO, 10, milestones=[4])
    warm = schedules.Warmup(plain, 2)

    def theirs(adam):
        return torch.optim.lr_scheduler.LinearLR(adam, 0.01, 1.0, total_iters=2 * 5)

    rises = [vars(warm.rates(1 + k // 5, k % 5 / 5)) for k in range(12)]
    assert torchs(theirs, 12) == [
        pytest.approx([r["head"], r["backbone"]], rel=1e-9) for r in rises
    ]
    assert all(warm.rates(epoch) == plain.rates(epoch) for epoch in range(3, 11))


def test_cosine_is_torchs_cosine_annealing():
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    adam = torch.optim.Adam(
        [{"params": parameters[:1], "lr": LR * RATIO}, {"params": parameters[1:], "lr": LR}]
    )
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=16, eta_min=1e-6)
    ours = make_schedule("cosine", LR, RATIO, 16)
    for epoch in range(1, 18):
        expected = [group["lr"] for group in adam.param_groups]
        assert [ours.rates(epoch).head, ours.rates(epoch).backbone] == pytest.approx(
            expected, rel=1e-9
        )
        adam.step()
        theirs.step()
    assert str(ours) == "CosineAnnealingLR (T_max=16, eta_min=1e-06)"


@pytest.mark.parametrize("name", ["none", "cosine"])
def test_other_schedules_keep_one_adam(name):
    assert [row[2:] for row in a_run(make_schedule(name, LR, RATIO, 4), 4)] == [
        (True, 3 * e) for e in range(4)
    ]
    assert make_schedule("none", LR, RATIO, 4).rates(4) == Rates(LR * RATIO, LR)


def test_rates_as_the_log_shows_them():
    assert str(Rates(1.98e-4, 1.99e-5)) == "HyperNet=1.98e-04, Backbone=1.99e-05"
    assert str(Rates(None, 2e-5)) == "HyperNet=frozen, Backbone=2.00e-05"


# Measured on the public implementation: 13 epochs of two batches, ResNet-50, weights by recipe, L1.
GOLDEN = {
    "none": [
        51.3678,
        51.1568,
        39.294,
        43.9212,
        38.2363,
        42.8963,
        37.1278,
        42.0248,
        36.3448,
        41.4368,
        35.7478,
        40.9116,
        35.211,
        40.4625,
        34.714,
        40.059,
        34.2228,
        39.6678,
        33.7553,
        39.367,
        33.3485,
        39.0245,
        32.9242,
        38.7108,
        32.4905,
        38.4254,
    ],
    "backbone_lr": [
        51.3678,
        51.1568,
        39.294,
        43.9212,
        38.2363,
        42.8963,
        37.1278,
        42.0248,
        36.3448,
        41.4368,
        35.7478,
        40.9116,
        35.211,
        40.4625,
        34.714,
        40.0257,
        34.0444,
        39.6897,
        33.539,
        39.4146,
        33.1603,
        39.1906,
        32.8768,
        39.0072,
        32.6445,
        38.8553,
    ],
    "filter": [51.3678, 51.1568, 39.294, 35.9732, 25.3004, 19.9934],
    "optimizer_state": [51.3678, 51.1568, 39.294, 37.2133, 26.9452, 23.6349],
    "filter+backbone_lr": [51.3678, 51.1568, 39.294, 35.9732, 25.3004, 19.9934],
    "optimizer_state+backbone_lr": [51.3678, 51.1568, 39.294, 37.2133, 26.9452, 23.6349],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_trajectory(name):
    """Losses of the public code's `step` training, batch by batch (the head's training on is chaotic: six only)."""
    fixes = () if name == "none" else name.split("+")
    schedule, criterion = make_schedule("step", LR, RATIO, 13, fixes), QualityLoss()
    batches = [
        (recipe_images(4, 100 + i), {"mos": torch.tensor([20.0, 40, 60, 80]) + 5 * i})
        for i in (0, 1)
    ]
    model = fill_by_recipe(HyperNet(ResNetBackbone("resnet50"))).train()
    optimizer, losses = None, []
    for epoch in range(1, len(GOLDEN[name]) // 2 + 1):
        optimizer = of_epoch(schedule, epoch, model.parameter_groups(), optimizer)
        for images, batch in batches:
            loss = criterion(model(images), batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses == pytest.approx(GOLDEN[name], rel=0.004 if len(losses) == 26 else 0.01)
