"""Which flags of the train scripts do not go together: one generator of messages for each subject.

All messages of a command line are shown at once, joined by "; ", in the order of `contradictions`.
Nothing here imports torch, so that a mistake is reported at once.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hyperiqa.base.command_line import Given, problem_of
from hyperiqa.base.errors import not_installed
from hyperiqa.base.files import exists_or_on_hub
from hyperiqa.base.plain_values import to_text
from hyperiqa.base.public_models import no_such_model
from hyperiqa.datasets.names import check_lower_is_better, reader_name
from hyperiqa.training.flags import WHOLE_MAPS, for_csv_alone


def contradictions(options: argparse.Namespace, given: Given) -> Iterator[str]:
    """Yield a message for each contradiction among the flags.

    given: the settings that the user gave, as `Flags.parse` passes them. A default contradicts
    nothing, so several checks ask whether a flag was given and not what its value is.
    """
    yield from _of_schedule(options, given)
    yield from _of_training(options, given)
    yield from _of_images_and_resuming(options, given)
    yield from _of_files(options, given)
    yield from needs_pixels(options)


def _of_schedule(options: argparse.Namespace, given: Given) -> Iterator[str]:
    scheduler = options.lr_scheduler
    if options.training_fixes != "none" and scheduler != "step":
        yield "--training_fixes needs --lr_scheduler step: it repairs that schedule and no other"
    if options.milestones and scheduler != "multistep":
        yield "--milestones needs --lr_scheduler multistep"
    if options.milestones:
        # Rates that fall after the last epoch, or twice after one, are a slip of the user.
        valid_epochs = sorted({n for n in options.milestones if 0 < n < options.epochs})
        if options.milestones != valid_epochs:
            yield (
                f"--milestones {to_text(options.milestones)}: "
                f"expected rising numbers from 1 to {options.epochs - 1}, below --epochs"
            )
    if "plateau_patience" in given and scheduler != "plateau":
        yield "--plateau_patience needs --lr_scheduler plateau"
    if options.warmup_epochs and scheduler == "step":
        yield (
            "contradictory flags: --warmup_epochs and --lr_scheduler step, the published procedure"
        )
    if options.warmup_epochs and options.warmup_epochs >= options.epochs:
        yield (
            f"--warmup_epochs {options.warmup_epochs}: "
            f"expected fewer than --epochs {options.epochs}"
        )


def _of_training(options: argparse.Namespace, given: Given) -> Iterator[str]:
    """The start of the encoder, what a frozen one rules out, early stopping, loss, hardware."""
    if options.backbone_weights and not options.pretrained:
        yield "contradictory flags: --no_pretrained and --backbone_weights"
    if options.init and (options.backbone_weights or "pretrained" in given):
        yield (
            "contradictory flags: --init brings its own weights; "
            "no --backbone_weights, no --no_pretrained"
        )
    if "feature_dtype" in given and not (options.freeze_backbone and options.fixed_crops):
        yield "--feature_dtype needs --freeze_backbone and --fixed_crops"
    if options.contrastive_weight and options.freeze_backbone:
        yield (
            "contradictory flags: --contrastive_weight trains the encoder, "
            "which --freeze_backbone leaves as it is"
        )
    if options.drop_path and options.freeze_backbone:
        yield "contradictory flags: --drop_path and --freeze_backbone, which leaves no path out"
    if not options.early_stopping and "patience" in given:
        yield "contradictory flags: --no_early_stopping and --patience"
    if "ranking_loss_margin" in given and options.ranking_loss_alpha == 0:
        yield "--ranking_loss_margin needs --ranking_loss_alpha above 0"
    if options.cache_device == "cuda" and options.device == "cpu":
        yield "contradictory flags: --cache_device cuda and --device cpu"
    missing_package = not_installed("--tensorboard", "tensorboard")
    if options.tensorboard and missing_package:
        yield missing_package


def _of_images_and_resuming(options: argparse.Namespace, given: Given) -> Iterator[str]:
    if "augment_strength" in given and not {"color", "blur"} & {*options.augment}:
        yield "--augment_strength needs --augment color or blur"
    if "none" in options.augment and len(options.augment) > 1:
        yield "contradictory: --augment none with others"
    if options.val_fraction is not None and options.select_on != "val":
        yield "--val_fraction needs --select_on val"
    if not options.resume or options.resume == "auto":
        return
    if options.run_name is not None:
        yield "contradictory flags: --resume PATH and --run_name (the run keeps its name)"
    if not Path(options.resume).exists():
        yield (
            f"--resume {options.resume}: no such file; expected auto, a run's last.pt or its folder"
        )


def _of_files(options: argparse.Namespace, given: Given) -> Iterator[str]:
    """The models and CSV files that the run reads, as far as can be seen without reading them."""
    if options.backbone_weights and not exists_or_on_hub(options.backbone_weights):
        yield f"--backbone_weights {options.backbone_weights}: no such file"
    if "distill_weight" in given and not options.teacher:
        yield "--distill_weight needs --teacher"
    if options.teacher and not exists_or_on_hub(options.teacher):
        yield f"--teacher {no_such_model(options.teacher)}"
    if options.init and not exists_or_on_hub(options.init):
        yield f"--init {no_such_model(options.init)}"
    set_names = [*options.trained, *(options.cross_test or ())]
    if "csv" not in map(reader_name, set_names):
        yield from for_csv_alone(given, "--dataset csv")
    elif mistake := problem_of(check_lower_is_better, options.lower_is_better, set_names):
        yield mistake


def stored_features(options: argparse.Namespace) -> bool:
    """Whether the run reads stored stage maps of a frozen encoder in place of pixels."""
    return options.freeze_backbone and options.fixed_crops and options.feature_dtype != "none"


def needs_pixels(options: argparse.Namespace) -> Iterator[str]:
    """Yield a message for each reason why stored features do not suffice.

    Some flags need the pixels, or whole stage maps, in every epoch. `--init` may settle such a
    flag only when its checkpoint is read, so the check is made again then.
    """
    if stored_features(options):
        for reason in _reasons_for_pixels(options):
            yield (
                "--freeze_backbone --fixed_crops stores averaged features, "
                f"but {reason}: add --feature_dtype none"
            )


def _reasons_for_pixels(options: argparse.Namespace) -> Iterator[str]:
    if options.fusion in WHOLE_MAPS:
        yield f"--fusion {options.fusion} looks at whole stage maps"
    # hflip is allowed: a fixed crop is mirrored in every epoch or in none.
    if not {*options.augment} <= {"hflip", "none"}:
        yield f"--augment {' '.join(options.augment)} is for new patches in each epoch"
    if options.mixup or options.cutmix:
        yield "--mixup and --cutmix change the pixels"
    if options.teacher:
        yield "--teacher scores the patches"
    if len(options.trained) > 1:
        yield "they are of one data set"
