"""The choices of a training run, and a covering array of them: few runs in which every two choices of two axes meet."""

import itertools
import random

from hyperiqa.training import flags as choices

# Axis -> level -> its flags; the first level is the default.
AXES = {
    "backbone": {
        name: ["--backbone", name]
        for name in ("test_convnext", "resnet18", "swin_nano", "test_efficientnet", "test_vit")
    },
    "encoder": {
        "whole": [],
        "frozen": ["--freeze_backbone"],
        "stored": ["--freeze_backbone", "--fixed_crops"],
        "lora": ["--lora", 2, "--lora_targets", "qkv", "fc1", "--lora_alpha", 4],
    },
    "head": {"hyper": [], "mlp": ["--head", "mlp"]},
    "fusion": {name: ["--fusion", name] for name in choices.FUSIONS},
    "hyper": {name: ["--hyper", name] for name in choices.HYPERS},
    "dropout": {"0": [], "0.2": ["--dropout", 0.2]},
    "drop_path": {"own": [], "0.3": ["--drop_path", 0.3]},
    "label_noise": {"0": [], "1.5": ["--label_noise", 1.5]},
    "mixing": {
        "no": [],
        "mixup": ["--mixup", 0.4],
        "cutmix": ["--cutmix", 1],
        "both": ["--mixup", 0.4, "--cutmix", 1],
    },
    "loss": {
        **{name: ["--loss", name] for name in choices.LOSSES},
        "votes": ["--loss", "fidelity", "--fidelity_sigma", "votes"],
    },
    "ranking": {"0": [], "0.3": ["--ranking_loss_alpha", 0.3]},
    "contrastive": {"0": [], "0.5": ["--contrastive_weight", 0.5]},
    "augment": {
        "hflip": [],
        "none": ["--augment", "none"],
        "turns": ["--augment", "vflip", "rot90"],
        "all": ["--augment", *(name for name in choices.AUGMENTATIONS if name != "none")],
    },
    "optimizer": {
        **{name: ["--optimizer", name] for name in choices.OPTIMIZERS},
        "adam": [],
        "sgd": ["--optimizer", "sgd", "--lr", 1e-7],
    },
    "clip_grad": {"no": [], "1": ["--clip_grad", 1]},
    "schedule": {
        "plateau": ["--lr_scheduler", "plateau", "--plateau_patience", 0],
        **{name: ["--lr_scheduler", name] for name in choices.SCHEDULES if name != "plateau"},
        "fixed step": ["--lr_scheduler", "step", "--training_fixes", "all"],
    },
    "warmup": {"0": [], "2": ["--warmup_epochs", 2]},
    "frozen_until": {"0": [], "1": ["--frozen_until", 1]},
    "layer_decay": {"no": [], "0.7": ["--layer_decay", 0.7]},
    "ema": {"0": [], "0.9": ["--ema", 0.9]},
    "grad_checkpointing": {"no": [], "yes": ["--grad_checkpointing"]},
    "accumulate": {"1": [], "3": ["--accumulate", 3]},
    "teacher": {"no": [], "yes": ["--teacher", "TEACHER"]},
}
# What the program refuses together.
REFUSED = [
    (
        {("encoder", "stored")},
        {
            *(("fusion", name) for name in choices.WHOLE_MAPS),
            ("augment", "turns"),
            ("augment", "all"),
            ("mixing", "mixup"),
            ("mixing", "cutmix"),
            ("mixing", "both"),
            ("teacher", "yes"),
        },
    ),
    (
        {("encoder", "stored"), ("encoder", "frozen")},
        {("drop_path", "0.3"), ("contrastive", "0.5"), ("grad_checkpointing", "yes")},
    ),
    # Their batch norms train, unless the encoder is frozen.
    ({("backbone", "resnet18"), ("backbone", "test_efficientnet")}, {("accumulate", "3")}),
    (
        {("head", "mlp")},
        {
            *(("fusion", name) for name in choices.FUSIONS if name != "none"),
            ("hyper", "transformer"),
        },
    ),
    (
        {("encoder", "lora")},
        {
            # They have no linear layers of these names.
            ("backbone", "test_convnext"),
            ("backbone", "resnet18"),
            ("backbone", "test_efficientnet"),
            ("schedule", "step"),
            ("schedule", "fixed step"),
        },
    ),
    ({("schedule", "step"), ("schedule", "fixed step")}, {("warmup", "2")}),
    ({("loss", "votes")}, {("mixing", "mixup"), ("mixing", "cutmix"), ("mixing", "both")}),
    (
        {("frozen_until", "1"), ("layer_decay", "0.7")},
        {
            *(("encoder", name) for name in ("stored", "frozen", "lora")),
            *(("schedule", name) for name in ("step", "fixed step")),
        },
    ),
]
BANNED = {frozenset(pair) for ones, others in REFUSED for pair in itertools.product(ones, others)}


def all_pairs():
    """Every pair of levels of two axes that the program takes."""
    pairs = set()
    for a, b in itertools.combinations(AXES, 2):
        pairs |= {frozenset({(a, x), (b, y)}) for x, y in itertools.product(AXES[a], AXES[b])}
    return pairs - BANNED


def pairs_of(row):
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def covering_array(seed=4, tries=30):
    """Rows {axis: level} that hold all pairs together; each the best of some that were filled greedily."""
    rng, left, rows = random.Random(seed), all_pairs(), []
    while left:
        rows.append(
            max(
                (_filled(rng, left) for _ in range(tries)),
                key=lambda row: len(pairs_of(row) & left),
            )
        )
        left -= pairs_of(rows[-1])
    return rows


def _filled(rng, left):
    (a, x), (b, y) = rng.choice(sorted(map(sorted, left)))
    row, axes = {a: x, b: y}, [axis for axis in AXES if axis not in (a, b)]
    rng.shuffle(axes)
    for axis in axes:
        allowed = [
            level
            for level in AXES[axis]
            if not any(frozenset({(axis, level), have}) in BANNED for have in row.items())
        ]
        rng.shuffle(allowed)
        row[axis] = max(
            allowed,
            key=lambda level: sum(frozenset({(axis, level), have}) in left for have in row.items()),
        )
    return {axis: row[axis] for axis in AXES}


def flags_of(row, teacher):
    flags = [flag for axis, level in row.items() for flag in AXES[axis][level]]
    if (row["encoder"], row["head"], row["schedule"]) == ("frozen", "mlp", "step"):
        # Without it nothing would train from the second epoch on, which is refused.
        flags += ["--training_fixes", "filter"]
    return [teacher if flag == "TEACHER" else flag for flag in flags]
