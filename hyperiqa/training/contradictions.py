"""Which flags of the train scripts do not go together: one list of rules for each subject.

All messages of a command line are shown at once, joined by "; ", in the order of `contradictions`.
Nothing here imports torch, so that a mistake is reported at once.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from hyperiqa.base import command_line, errors, files, plain_values, public_models
from hyperiqa.datasets.names import check_lower_is_better, reader_name
from hyperiqa.training.flags import FUSIONS, HYPERS, WHOLE_MAPS, for_csv_alone

# Whether something is wrong, and the message for it.
Rule = tuple[object, str]


def contradictions(options: argparse.Namespace, given: command_line.Given) -> Iterator[str]:
    """Yield a message for each contradiction among the flags.

    given: the settings that the user gave, as `Flags.parse` passes them. A default contradicts
    nothing, so several rules ask whether a flag was given and not what its value is.
    """
    for rules in (
        _of_schedule,
        _of_encoder,
        _of_head_and_adapters,
        _of_training,
        _of_images_and_resuming,
        _of_files,
    ):
        yield from broken(rules(options, given))
    yield from needs_pixels(options)


def broken(rules: Sequence[Rule]) -> Iterator[str]:
    """The messages of the rules that are broken."""
    return (message for is_broken, message in rules if is_broken)


def _of_schedule(options: argparse.Namespace, given: command_line.Given) -> list[Rule]:
    scheduler = options.lr_scheduler
    milestones = options.milestones or []
    # Rates that fall after the last epoch, or twice after one, are a slip of the user.
    valid_epochs = sorted({n for n in milestones if 0 < n < options.epochs})
    return [
        (
            options.training_fixes != "none" and scheduler != "step",
            "--training_fixes needs --lr_scheduler step: it repairs that schedule and no other",
        ),
        (
            milestones and scheduler != "multistep",
            "--milestones needs --lr_scheduler multistep",
        ),
        (
            milestones != valid_epochs,
            f"--milestones {plain_values.to_text(milestones)}: "
            f"expected rising numbers from 1 to {options.epochs - 1}, below --epochs",
        ),
        (
            "plateau_patience" in given and scheduler != "plateau",
            "--plateau_patience needs --lr_scheduler plateau",
        ),
        (
            options.warmup_epochs and scheduler == "step",
            "contradictory flags: --warmup_epochs and --lr_scheduler step, the published procedure",
        ),
        (
            0 < options.epochs <= options.warmup_epochs,
            f"--warmup_epochs {options.warmup_epochs}: "
            f"expected fewer than --epochs {options.epochs}",
        ),
        (
            0 < options.epochs <= options.frozen_until,
            f"--frozen_until {options.frozen_until}: expected fewer than --epochs {options.epochs}",
        ),
        *(
            (
                getattr(options, flag) and is_given,
                f"contradictory flags: --{flag} and {other}",
            )
            for flag in ("frozen_until", "layer_decay")
            for is_given, other in (
                (scheduler == "step", "--lr_scheduler step, the published procedure"),
                (options.freeze_backbone, "--freeze_backbone: the encoder does not train"),
                (options.lora, "--lora: the encoder's own weights do not train"),
            )
        ),
    ]


def _of_encoder(options: argparse.Namespace, given: command_line.Given) -> list[Rule]:
    """The weights that the encoder starts from, and what a frozen one rules out."""
    return [
        (
            options.backbone_weights and not options.pretrained,
            "contradictory flags: --no_pretrained and --backbone_weights",
        ),
        (
            options.init and (options.backbone_weights or "pretrained" in given),
            "contradictory flags: --init brings its own weights, "
            "so it goes with neither --backbone_weights nor --no_pretrained",
        ),
        (
            "feature_dtype" in given and not (options.freeze_backbone and options.fixed_crops),
            "--feature_dtype needs --freeze_backbone and --fixed_crops",
        ),
        (
            options.contrastive_weight and options.freeze_backbone,
            "contradictory flags: --contrastive_weight trains the encoder, "
            "which --freeze_backbone leaves as it is",
        ),
        (
            options.drop_path and options.freeze_backbone,
            "contradictory flags: --drop_path and --freeze_backbone: "
            "an encoder that does not train leaves out no path",
        ),
        (
            options.grad_checkpointing and options.freeze_backbone,
            "contradictory flags: --grad_checkpointing and --freeze_backbone: "
            "an encoder that does not train keeps nothing for the backward pass",
        ),
    ]


def _of_head_and_adapters(options: argparse.Namespace, given: command_line.Given) -> list[Rule]:
    return [
        ("pool" in given and options.head == "hyper", "--pool needs --head mlp"),
        # Where --init decides, they are None.
        *(
            (
                options.head == "mlp" and value not in (None, default),
                f"contradictory flags: --head mlp and --{name} {value}, "
                "which is a part of --head hyper",
            )
            for name, value, default in (
                ("fusion", options.fusion, FUSIONS[0]),
                ("hyper", options.hyper, HYPERS[0]),
            )
        ),
        *(
            (name in given and not options.lora, f"--{name} needs --lora")
            for name in ("lora_targets", "lora_alpha")
        ),
        (
            options.head == "mlp"
            and options.freeze_backbone
            and options.lr_scheduler == "step"
            and options.training_fixes in ("none", "backbone_lr"),
            "contradictory flags: --lr_scheduler step freezes the head from epoch 2 on, so with "
            "--freeze_backbone and --head mlp nothing would train; add --training_fixes filter",
        ),
        (
            options.lora and options.freeze_backbone,
            "contradictory flags: --lora trains adapters in the encoder, "
            "which --freeze_backbone leaves as it is",
        ),
        (
            options.lora and options.lr_scheduler == "step",
            "contradictory flags: --lora and --lr_scheduler step, the published procedure",
        ),
    ]


def _of_training(options: argparse.Namespace, given: command_line.Given) -> list[Rule]:
    """Early stopping, the loss, the parts of a batch, the hardware."""
    missing_package = errors.not_installed("--tensorboard", "tensorboard")
    return [
        (
            not options.early_stopping and "patience" in given,
            "contradictory flags: --no_early_stopping and --patience",
        ),
        (
            "fidelity_sigma" in given and options.loss != "fidelity",
            "--fidelity_sigma needs --loss fidelity",
        ),
        (
            options.fidelity_sigma == "votes" and (options.mixup or options.cutmix),
            "contradictory flags: --fidelity_sigma votes takes the votes of single images, "
            "which --mixup and --cutmix mix",
        ),
        (
            "ranking_loss_margin" in given and options.ranking_loss_alpha == 0,
            "--ranking_loss_margin needs --ranking_loss_alpha above 0",
        ),
        (
            options.cache_device == "cuda" and options.device == "cpu",
            "contradictory flags: --cache_device cuda and --device cpu",
        ),
        (
            options.accumulate > options.batch_size,
            f"--accumulate {options.accumulate}: "
            f"expected at most --batch_size {options.batch_size}",
        ),
        (
            options.compile and (options.grad_checkpointing or options.accumulate > 1),
            "contradictory flags: --compile goes with neither --grad_checkpointing "
            "nor --accumulate",
        ),
        (options.tensorboard and missing_package, missing_package),
    ]


def _of_images_and_resuming(options: argparse.Namespace, given: command_line.Given) -> list[Rule]:
    resumes_path = options.resume and options.resume != "auto"
    return [
        (
            "augment_strength" in given and not {"color", "blur"} & {*options.augment},
            "--augment_strength needs --augment color or blur",
        ),
        (
            "none" in options.augment and len(options.augment) > 1,
            "contradictory flags: --augment none goes with no other augmentation",
        ),
        (
            options.val_fraction is not None and options.select_on != "val",
            "--val_fraction needs --select_on val",
        ),
        (
            resumes_path and options.run_name is not None,
            "contradictory flags: --resume PATH and --run_name: the run keeps its name",
        ),
        (
            resumes_path and not Path(options.resume).exists(),
            f"--resume {options.resume}: no such file; "
            "expected auto, the last.pt of a run or its folder",
        ),
    ]


def _of_files(options: argparse.Namespace, given: command_line.Given) -> list[Rule]:
    """The models and CSV files that the run reads, as far as can be seen without reading them."""
    set_names = [*options.trained, *(options.cross_test or ())]
    reads_csv = "csv" in map(reader_name, set_names)
    mistake = command_line.problem_of(check_lower_is_better, options.lower_is_better, set_names)
    return [
        (
            options.backbone_weights and not files.exists_or_on_hub(options.backbone_weights),
            f"--backbone_weights {options.backbone_weights}: no such file",
        ),
        ("distill_weight" in given and not options.teacher, "--distill_weight needs --teacher"),
        *(
            (
                path and not files.exists_or_on_hub(path),
                f"--{name} {public_models.no_such_model(path)}" if path else "",
            )
            for name, path in (("teacher", options.teacher), ("init", options.init))
        ),
        *((not reads_csv, message) for message in for_csv_alone(given, "--dataset csv")),
        (reads_csv and mistake, mistake or ""),
    ]


def stored_features(options: argparse.Namespace) -> bool:
    """Whether the run reads stored stage maps of a frozen encoder in place of pixels."""
    return options.freeze_backbone and options.fixed_crops and options.feature_dtype != "none"


def needs_pixels(options: argparse.Namespace) -> Iterator[str]:
    """Yield a message for each reason why stored features do not suffice.

    Some flags need the pixels, or whole stage maps, in every epoch. `--init` may settle such a
    flag only when its checkpoint is read, so the check is made again then.
    """
    if not stored_features(options):
        return
    reasons: list[Rule] = [
        (options.fusion in WHOLE_MAPS, f"--fusion {options.fusion} looks at whole stage maps"),
        # hflip is allowed: a fixed crop is mirrored in every epoch or in none.
        (
            not {*options.augment} <= {"hflip", "none"},
            f"--augment {' '.join(options.augment)} is for new patches in each epoch",
        ),
        (options.mixup or options.cutmix, "--mixup and --cutmix change the pixels"),
        (options.teacher, "--teacher scores the patches"),
    ]
    for reason in broken(reasons):
        yield (
            "--freeze_backbone --fixed_crops stores averaged features, "
            f"but {reason}: add --feature_dtype none"
        )
