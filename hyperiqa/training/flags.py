"""The table of the train scripts' flags, one entry a flag.

Nothing here imports torch, so that a mistake in the flags is reported at once.
"""

# ruff: noqa: E501  (the rows of the table are wide)

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperiqa.base.cluster import cluster_flags
from hyperiqa.base.command_line import NOT_NEGATIVE, POSITIVE, SHARE, Flags, Given, Range

# The choices of each axis. The files of the axes hold the truth, but they import torch: a test
# compares their dictionaries with these lists.
AUGMENTATIONS = ("hflip", "vflip", "rot90", "color", "blur", "none")
FUSIONS = ("none", "concat", "direct", "attention", "fpn", "progressive")
HYPERS = ("conv", "transformer")
MIX_SCALES = ("first", "range", "none")
FEATURE_DTYPES = ("fp16", "fp32", "none")
LOSSES = ("l1", "mse", "smooth_l1", "plcc", "srcc", "fidelity")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("cosine", "step", "none", "multistep", "plateau", "cosine_step")
FIXES = ("filter", "backbone_lr", "optimizer_state")

# Fusions that look at whole stage maps: the averaged maps of a frozen encoder do not suffice.
WHOLE_MAPS = ("fpn", "progressive")

CSV_FLAGS = (
    "image_column",
    "score_column",
    "split_column",
    "group_column",
    "image_root",
    "lower_is_better",
)

PART: Range = ("a number from 0 to below 1", lambda x: 0 <= x < 1)


@dataclass(frozen=True)
class Script:
    """What a train script offers.

    backbones: names of backbones, the default first.
    datasets: names of data sets, each with its default `--resize`.
    demo: the defaults that `--dataset demo` brings.
    any_backbone: a prefix; other timm models with this prefix are accepted too (None: no others).
    """

    backbones: tuple[str, ...]
    datasets: Mapping[str, str]
    demo: Mapping[str, Any]
    any_backbone: str | None = None


def for_csv_alone(given: Given, csv: str) -> Iterator[str]:
    """Yield a message for each flag of CSV sets that was given although no CSV set is read.

    csv: the flag or word with which a CSV set is chosen.
    """
    for name in CSV_FLAGS:
        if name in given:
            yield f"--{name} is for {csv}: how the other sets are read is known"


def train_flags(description: str | None, script: Script) -> Flags:
    """The flags of a train script, with the defaults of the public code that users compare with."""
    flags = Flags(description)
    flags.several = True
    # The order of the groups is that of --help, and of the mistakes in an error.
    _data_and_model_flags(flags, script)
    _learning_flags(flags)
    _hardware_and_output_flags(flags)
    cluster_flags(flags)
    return flags


# fmt: off
def csv_flags(flags: Flags) -> None:
    """Add the flags of `CSV_FLAGS`, which say how a CSV set is read, to a program that reads one."""
    flags.value("--image_column", "image", "csv: the column of image paths", metavar="NAME")
    flags.value("--score_column", "mos", "csv: the column of scores", metavar="NAME")
    flags.value("--split_column", "split", "csv: the column of train, val and test, if there is one", metavar="NAME")
    flags.value("--group_column", "group", "csv: the column that images of one content share, if there is one",
                metavar="NAME")
    flags.path("--image_root", None, "csv: the folder that image paths start from (default: that of the file)")
    flags.value("--lower_is_better", False, "csv: scores mean badness (DMOS); of several CSV sets these, or all",
                nargs="*", metavar="NAME")


def _data_and_model_flags(flags: Flags, script: Script) -> None:
    flags.group("data")
    flags.value("--dataset", ["koniq-10k"], f"training and test sets, of {', '.join(script.datasets)}; several CSV sets: csv:NAME=FILE.csv",
                nargs="+", metavar="NAME[=PATH]")
    flags.path("--dataset_path", None, "of a single set: its folder, of csv its file (default: beside the scripts)")
    flags.value("--mix_scale", None, "how scores of several sets meet: as the first set's mean and spread; by their nominal "
                "range; as they are (default: first)", choices=MIX_SCALES)
    flags.value("--mix_patches", None, "of several sets: patches per image of each, or balanced: as many of each set "
                "(default: --train_patch_num of all)", nargs="+", metavar="N|balanced")
    flags.value("--select_set", None, "of several: by whose SRCC the epoch is chosen (default: their mean)", metavar="NAME")
    flags.switch("--allow_overlap", "allow_overlap", True, "train although a test split shares images with another set")
    flags.switch("--allow_shared_content", "allow_shared_content", True, "draw a split image by image where a set's list does "
                 "not say which images share content")
    flags.value("--cross_test", None, "sets to test on besides (default: spaq, from spaq/ or spaq-test/, if there)",
                nargs="+", metavar="NAME[=PATH]")
    flags.path("--spaq_path", None, "short for --cross_test spaq=PATH")
    flags.switch("--no_spaq", "spaq", False, "no cross test on SPAQ")
    flags.images(resize="default: the data set's own, 384 for KonIQ-10k and SPAQ; the public code: 512x384")
    flags.switch("--exif_rotate", "exif_rotate", True, "turn images as their EXIF orientation says")
    flags.skip_bad_images()
    csv_flags(flags)

    flags.group("patches")
    flags.count("--patch_size", 224, "side of a patch in pixels", least=32)
    flags.count("--train_patch_num", 25, "random crops per training image and epoch")
    flags.switch("--fixed_crops", "fixed_crops", True, "the same crops in all epochs; with --freeze_backbone encoded once")
    flags.value("--feature_dtype", FEATURE_DTYPES[0], "of such features; none: go through the pixels", choices=FEATURE_DTYPES)
    flags.value("--augment", ["hflip"], "of training patches; hflip, vflip: half of them mirrored; rot90: quarter turns; "
                "color: brightness, contrast, saturation; blur: half of them; none: as they are",
                nargs="+", choices=AUGMENTATIONS, metavar="NAME")
    flags.real("--augment_strength", 0.2, "color: at most this share more or less; blur: a sigma of up to 10 X pixels", SHARE)
    flags.count("--test_patch_num", 25, "crops per test image with --test_crop grid or random")
    flags.value("--test_crop", "center", "center (scored once), grid or random", choices=["center", "grid", "random"])
    flags.switch("--test_random_crop", "test_crop", "random", "same as --test_crop random")

    flags.group("model")
    flags.value("--backbone", script.backbones[0], f"one of {', '.join(script.backbones)}", metavar="NAME")
    flags.switch("--no_pretrained", "pretrained", False, "start the backbone from random weights")
    flags.path("--backbone_weights", None, "start the backbone from this file: torchvision's, timm's, or one of our models")
    flags.path("--init", None, "start from this whole trained model, its scores brought to the set's scale")
    flags.switch("--freeze_backbone", "freeze_backbone", True, "leave the encoder as it is; the LDA and the head train")
    flags.value("--fusion", FUSIONS[0], "of the stage maps for the hyper network; direct, attention: as SMART-IQA; fpn: a "
                "feature pyramid; progressive: from the finest to the coarsest", choices=FUSIONS)
    flags.switch("--use_multiscale", "fusion", "concat", "same as --fusion concat")
    flags.switch("--no_multiscale", "fusion", "none", "same as --fusion none")
    flags.value("--hyper", HYPERS[0], "hyper network: three 1x1 convs, or self-attention over all stages", choices=HYPERS)


def _learning_flags(flags: Flags) -> None:
    flags.group("regularisation")
    flags.real("--dropout", 0.0, "before the generators and after the target network's first three layers: SMART-IQA", PART)
    flags.real("--drop_path", None, "stochastic depth of the encoder (default: its own; Swin 0.1, others none)", PART)
    flags.real("--label_noise", 0.0, "noise on each patch's MOS: X standard errors, or X %% of the score range", NOT_NEGATIVE)
    flags.real("--mixup", 0.0, "Beta parameter of blending each patch and its MOS with another; 0: never", NOT_NEGATIVE)
    flags.real("--cutmix", 0.0, "the same of covering a part of it; with both, half of the patches each", NOT_NEGATIVE)

    flags.group("loss")
    flags.value("--loss", LOSSES[0], "scores to MOS; plcc, srcc, fidelity compare the batch's images", choices=LOSSES)
    flags.real("--ranking_loss_alpha", 0.0, "weight of the pairwise ranking loss; 0: none, 0.3: recommended", SHARE)
    flags.real("--ranking_loss_margin", 0.5, "its margin, in score units", NOT_NEGATIVE)
    flags.value("--ranking_loss_form", "convex", "convex: (1-alpha)*loss + alpha*rank; additive: loss + alpha*rank",
                choices=["convex", "additive"])
    flags.real("--contrastive_weight", 0.0, "weight of Rank-N-Contrast on the encoder's pooled features", NOT_NEGATIVE)
    flags.path("--teacher", None, "learn this trained model's scores of the same patches too: anything that predict.py reads")
    flags.real("--distill_weight", 1.0, "weight of the distance to its scores", POSITIVE)

    flags.group("optimisation")
    flags.real("--lr", 2e-5, "learning rate of the backbone", POSITIVE)
    flags.real("--lr_ratio", 10, "head lr / backbone lr", POSITIVE)
    flags.value("--optimizer", OPTIMIZERS[0], "adamw: no decay of biases and norms; sgd: momentum 0.9", choices=OPTIMIZERS)
    flags.real("--weight_decay", 5e-4, "the optimizer's weight decay", NOT_NEGATIVE)
    flags.real("--clip_grad", None, "scale gradients down to this norm (default: as they are)", POSITIVE)
    flags.batch_size(96, "patches per step (over all processes)")
    flags.count("--epochs", 16, "most epochs per round")
    flags.real("--ema", 0.0, "test and keep a moving average of the weights; each step keeps this share of it; 0: no", PART)
    flags.value("--lr_scheduler", SCHEDULES[0], "step: the published procedure, defects included; multistep, plateau: a "
                "tenth after --milestones, or where the SRCC stays; cosine_step: anew for each step", choices=SCHEDULES)
    flags.switch("--no_lr_scheduler", "lr_scheduler", "none", "same as --lr_scheduler none")
    flags.value("--training_fixes", "none", f"repairs of --lr_scheduler step: comma list of {', '.join(FIXES)}; all; none",
                metavar="LIST")
    flags.value("--milestones", None, "of multistep: epochs after which the rates fall (default: 60 and 85 %% of --epochs)",
                nargs="+", type=int, metavar="N")
    flags.count("--plateau_patience", 2, "of plateau: epochs without a better SRCC before the rates fall", least=0)
    flags.count("--warmup_epochs", 0, "let the rates rise from 1 %%, step by step, for so many epochs", least=0)
    flags.count("--patience", 5, "stop after N epochs without a better SRCC")
    flags.switch("--no_early_stopping", "early_stopping", False, "always run all epochs")
    flags.value("--select_on", "test", "chooses the best epoch; val: official, or --val_fraction", choices=["test", "val"])
    flags.value("--val_fraction", None, "with --select_on val: this share of the training images, whole contents",
                ("a number between 0 and 1", lambda x: 0 < x < 1), type=float, metavar="F")
    flags.count("--train_test_num", 1, "rounds, each with the next seed; medians at the end")
    flags.count("--seed", 42, "seed of the first round", least=0)


def _hardware_and_output_flags(flags: Flags) -> None:
    flags.group("hardware")
    flags.device()
    flags.value("--precision", "auto", "of training; auto: bf16 where the hardware has it", choices=["auto", "fp32", "bf16"])
    flags.workers()
    flags.cache()
    flags.value("--cache_device", "auto", "of decoded images; auto: on a GPU if they fit", choices=["auto", "cpu", "cuda"])
    flags.switch("--compile", "compile", True, "torch.compile the model: slower start, faster steps")
    flags.switch("--fused_attention", "fused_attention", True, "Swin: attention by torch's fused kernels, rounded otherwise")
    flags.switch("--no_deterministic", "deterministic", False, "let cuDNN choose faster, non-deterministic kernels")

    flags.group("output")
    flags.path("--log_dir", Path("logs"), "where logs and predictions go")
    flags.path("--checkpoint_dir", Path("checkpoints"), "where models go")
    flags.value("--resume", None, "auto: the newest unfinished run of the same settings; or a last.pt", metavar="auto|PATH")
    flags.real("--checkpoint_minutes", 10, "save last.pt within an epoch this often", NOT_NEGATIVE)
    flags.switch("--tensorboard", "tensorboard", True, "also write the figures as TensorBoard events beside the log")
    flags.value("--run_name", None, "name of the run (default: from backbone, loss and time)", metavar="NAME",
                ok=("letters, digits and _ . + = - alone", lambda name: re.fullmatch(r"[\w.+=-]{1,150}", name)))
# fmt: on
