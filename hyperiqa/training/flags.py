"""The table of the train scripts' flags, one entry a flag.

Nothing here imports torch, so that a mistake in the flags is reported at once.
"""

# ruff: noqa: E501  (the rows of the table are wide)

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperiqa.base import cluster, command_line

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

# The flags that `--help` shows; `--help all` shows every flag.
EVERYDAY = frozenset(
    "--help --dataset --dataset_path --cross_test --resize --backbone --no_pretrained --init "
    "--freeze_backbone --fusion --train_patch_num --augment --epochs --batch_size --lr "
    "--lr_scheduler --loss --ranking_loss_alpha --patience --select_on --train_test_num --seed "
    "--run_name --resume --device".split()
)

CSV_FLAGS = (
    "image_column",
    "score_column",
    "split_column",
    "group_column",
    "image_root",
    "lower_is_better",
)

BETWEEN: command_line.Range = ("a number between 0 and 1", lambda x: 0 < x < 1)
PART: command_line.Range = ("a number from 0 to below 1", lambda x: 0 <= x < 1)


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


def for_csv_alone(given: command_line.Given, csv: str) -> list[str]:
    """A message for each flag of CSV sets that was given although no CSV set is read.

    csv: the flag or word with which a CSV set is chosen.
    """
    return [
        f"--{name} is for {csv}: how the other sets are read is known"
        for name in CSV_FLAGS
        if name in given
    ]


def train_flags(description: str | None, script: Script) -> command_line.Flags:
    """The flags of a train script, with the defaults of the public code that users compare with."""
    flags = command_line.Flags(description, everyday=EVERYDAY)
    flags.several = True
    # The order of the groups is that of --help, and of the mistakes in an error.
    _data_flags(flags, script)
    _model_flags(flags, script)
    _learning_flags(flags)
    _loss_flags(flags)
    _output_and_hardware_flags(flags)
    cluster.cluster_flags(flags)
    return flags


# fmt: off
def csv_flags(flags: command_line.Flags) -> None:
    """Add the flags of `CSV_FLAGS`, which say how a CSV set is read, to a program that reads one."""
    flags.group("own images, listed in a CSV file")
    columns = [
        ("--image_column", "image", "CSV column with the paths of the images"),
        ("--score_column", "mos", "CSV column with the scores"),
        ("--split_column", "split", "optional CSV column that says train, val or test"),
        ("--group_column", "group", "optional CSV column with equal values for images of the same content"),
    ]
    for name, usual_name, content in columns:
        flags.value(name, usual_name, f"name of the {content}", metavar="NAME")
    flags.path("--image_root", None, "folder from which the image paths of a CSV file start (default: the file's folder)")
    flags.value("--lower_is_better", False, "lower scores in a CSV file mean better images, as with DMOS; with "
                "several CSV sets name those for which this holds", nargs="*", metavar="NAME")


def _data_flags(flags: command_line.Flags, script: Script) -> None:
    flags.group("data")
    flags.value("--dataset", ["koniq-10k"], f"data set to train and test on: {', '.join(script.datasets)}; to train on "
                "several, list each as NAME, NAME=PATH or csv:NAME=FILE.csv", nargs="+", metavar="NAME[=PATH]")
    flags.path("--dataset_path", None, "folder of the data set, or the file of --dataset csv (default: the folder with the data "
               "set's name beside the scripts)")
    flags.value("--cross_test", None, "other data sets to test on after every epoch (default: spaq, if the folder spaq or "
                "spaq-test lies beside the scripts)", nargs="+", metavar="NAME[=PATH]")
    flags.path("--spaq_path", None, "folder of SPAQ, to test on it; the same as --cross_test spaq=PATH")
    flags.switch("--no_spaq", "spaq", False, "do not test on SPAQ")
    flags.images(resize="default: as usual for the data set, 384 for KonIQ-10k and SPAQ")
    flags.switch("--exif_rotate", "exif_rotate", True, "rotate images as their EXIF orientation says")
    flags.skip_bad_images()
    flags.switch("--allow_shared_content", "allow_shared_content", True, "split a data set at random image by image if it does not "
                 "say which images show the same content")
    csv_flags(flags)

    flags.group("several training sets")
    flags.value("--mix_scale", None, "how the scores of several sets come to one scale: first gives all of them the mean and "
                "spread of the first set, range maps their nominal ranges to 0..100, none leaves them as they are "
                "(default: first)", choices=MIX_SCALES)
    flags.value("--mix_patches", None, "crops per image and epoch, a number for each of several sets; balanced takes equally many "
                "patches from every set (default: --train_patch_num for each)", nargs="+", metavar="N|balanced")
    flags.value("--select_set", None, "the one of several sets on which the best epoch is chosen (default: the mean SRCC of all)",
                metavar="NAME")
    flags.switch("--allow_overlap", "allow_overlap", True, "train even if a set is tested on images that another one trains on")


def _model_flags(flags: command_line.Flags, script: Script) -> None:
    other_models = {None: "", "": " or any other model of timm, such as convnext_tiny"}.get(
        script.any_backbone, f", or another timm model with a name that begins with {script.any_backbone}")
    flags.group("model")
    flags.value("--backbone", script.backbones[0], f"encoder: {', '.join(script.backbones)}{other_models}", metavar="NAME")
    flags.switch("--no_pretrained", "pretrained", False, "start the encoder from random weights, not from pretrained ones")
    flags.path("--backbone_weights", None, "file with the encoder's first weights: of torchvision, of timm, or a model trained here")
    flags.path("--init", None, "trained model to continue from; its scores are brought to the scale of the data set")
    flags.switch("--freeze_backbone", "freeze_backbone", True, "leave the encoder as it is and train the layers behind it")
    flags.value("--head", "hyper", "what scores the encoder's features: the hyper network and its target network, or a multilayer "
                "perceptron with two hidden layers on their mean or on the class token", choices=["hyper", "mlp"])
    flags.value("--pool", None, "what --head mlp reads: the class token, the mean of the last stage, or both (default: the class token "
                "where the encoder has one, else the mean)", choices=["token", "mean", "both"])
    flags.count("--lora", None, "rank of low-rank adapters (LoRA) in the linear layers of a transformer, such as 8; they train while "
                "the encoder's own weights are frozen (default: no adapters)", most=4096)
    flags.value("--lora_targets", ["qkv", "proj"], "linear layers that --lora adapts, by the last part of their names; in most of "
                "timm's transformers qkv, proj, fc1 and fc2", nargs="+", metavar="NAME")
    flags.real("--lora_alpha", None, "strength of the adapters of --lora: their update of the weights is multiplied by this number "
               "over the rank (default: the rank, which makes it 1)", command_line.POSITIVE)
    flags.value("--fusion", FUSIONS[0], "what the hyper network sees of the encoder: none is its last stage; concat, direct, "
                "attention, fpn and progressive merge all stages, direct and attention as SMART-IQA does, fpn as a "
                "feature pyramid, progressive from fine to coarse", choices=FUSIONS)
    flags.switch("--use_multiscale", "fusion", "concat", "the same as --fusion concat")
    flags.switch("--no_multiscale", "fusion", "none", "the same as --fusion none")
    flags.value("--hyper", HYPERS[0], "hyper network: three 1x1 convolutions, or a transformer over all stages of the encoder",
                choices=HYPERS)

    flags.group("patches")
    flags.count("--patch_size", 224, "side of the square patches in pixels, at least 32", least=32)
    flags.count("--train_patch_num", 25, "random crops of each training image per epoch")
    flags.value("--augment", ["hflip"], "random changes of training patches: hflip and vflip mirror half of them, rot90 makes "
                "quarter turns, color changes brightness, contrast and saturation, blur blurs half of them; none leaves "
                "them as they are", nargs="+", choices=AUGMENTATIONS, metavar="NAME")
    flags.real("--augment_strength", 0.2, "strength of --augment color and blur, 0 to 1: colours change by up to this share, "
               "the sigma of the blur is up to ten times it in pixels", command_line.SHARE)
    flags.switch("--fixed_crops", "fixed_crops", True, "take the same crops in all epochs; with --freeze_backbone the encoder then "
                 "sees each of them only once")
    flags.value("--feature_dtype", FEATURE_DTYPES[0], "number format of the features that --freeze_backbone --fixed_crops stores; "
                "none stores nothing and runs the encoder in every epoch", choices=FEATURE_DTYPES)
    flags.value("--test_crop", "center", "where a test image is scored: one crop at its centre, crops on a regular grid, or "
                "random ones that stay the same; several scores are averaged", choices=["center", "grid", "random"])
    flags.count("--test_patch_num", 25, "crops of each test image with --test_crop grid or random")
    flags.switch("--test_random_crop", "test_crop", "random", "the same as --test_crop random")


def _learning_flags(flags: command_line.Flags) -> None:
    flags.group("optimisation")
    flags.count("--epochs", 16, "number of epochs, unless training stops early")
    flags.batch_size(96, "patches per training step, of all processes together")
    flags.count("--accumulate", 1, "parts of a batch that are computed one after the other; the step stays the same, takes longer and "
                "needs less memory")
    flags.real("--lr", 2e-5, "learning rate of the encoder", command_line.POSITIVE)
    flags.real("--lr_ratio", 10, "learning rate of all other layers, as a multiple of --lr", command_line.POSITIVE)
    flags.value("--lr_scheduler", SCHEDULES[0], "course of the learning rates: cosine falls after each epoch, cosine_step after each "
                "step; multistep divides by ten after --milestones, plateau when the SRCC stops rising; step is the "
                "published HyperIQA schedule with its defects; none is constant", choices=SCHEDULES)
    flags.switch("--no_lr_scheduler", "lr_scheduler", "none", "the same as --lr_scheduler none")
    flags.value("--training_fixes", "none", f"repairs of --lr_scheduler step: all, none, or some of {', '.join(FIXES)}, separated by "
                "commas", metavar="LIST")
    flags.value("--milestones", None, "epochs after which --lr_scheduler multistep divides the rates by ten (default: 60 and 85 %% "
                "of --epochs)", nargs="+", type=int, metavar="N")
    flags.count("--plateau_patience", 2, "epochs without a better SRCC that --lr_scheduler plateau lets pass before it divides the "
                "rates by ten", least=0)
    flags.count("--warmup_epochs", 0, "epochs in which the learning rates rise step by step from 1 %% to their full values", least=0)
    flags.count("--frozen_until", 0, "number of first epochs in which the encoder stays as it is while the layers behind it train; "
                "from the next epoch on everything trains", least=0)
    flags.real("--layer_decay", None, "factor between the learning rates of a layer of the encoder and the layer above it, such as 0.75; "
               "the top layer has the rate --lr (default: all layers have it)", BETWEEN)
    flags.value("--optimizer", OPTIMIZERS[0], "optimizer: adamw does not decay biases and norms, sgd has a momentum of 0.9",
                choices=OPTIMIZERS)
    flags.real("--weight_decay", 5e-4, "weight decay of the optimizer", command_line.NOT_NEGATIVE)
    flags.real("--clip_grad", None, "largest norm of the gradients; larger ones are scaled down to it (default: no limit)", command_line.POSITIVE)
    flags.real("--ema", 0.0, "test and save a moving average of the weights, of which each step keeps this share, such as 0.99; "
               "0 turns it off", PART)


def _loss_flags(flags: command_line.Flags) -> None:
    flags.group("loss")
    flags.value("--loss", LOSSES[0], "loss between predicted scores and mean opinion scores (MOS); plcc, srcc and fidelity compare the "
                "images of a batch with each other", choices=LOSSES)
    flags.value("--fidelity_sigma", "batch", "standard deviation of an opinion in --loss fidelity: that of the MOS of "
                "the batch, or of each image's own votes where the data set gives it", choices=["batch", "votes"])
    flags.real("--ranking_loss_alpha", 0.0, "weight of the pairwise ranking loss, from 0 (off) to 1; docs/recipes.md shows what it "
               "changed where we measured it", command_line.SHARE)
    flags.real("--ranking_loss_margin", 0.5, "difference of two scores that the ranking loss asks for, in units of the MOS", command_line.NOT_NEGATIVE)
    flags.value("--ranking_loss_form", "convex", "sum of the losses: convex is (1-alpha)*loss + alpha*ranking, additive is loss + "
                "alpha*ranking", choices=["convex", "additive"])
    flags.real("--contrastive_weight", 0.0, "weight of the Rank-N-Contrast loss on the encoder's features; 0 turns it off", command_line.NOT_NEGATIVE)
    flags.path("--teacher", None, "trained model whose scores of the same patches are learnt beside the MOS; any that predict.py reads")
    flags.real("--distill_weight", 1.0, "weight of the distance to the scores of --teacher", command_line.POSITIVE)

    flags.group("regularisation")
    regularisation = [
        ("--dropout", 0.0, "share of values that dropout sets to 0, from 0 to below 1, before the weight generators and in "
               "the target network, as in SMART-IQA", PART),
        ("--drop_path", None, "share of patches that skip the encoder's last block while it trains, from 0 to below 1; fewer "
               "skip earlier blocks (default: as the encoder has it, 0.1 for Swin)", PART),
        ("--label_noise", 0.0, "random noise on the MOS of each training patch, in standard errors of the MOS, or in %% of the "
               "score range if the set has none", command_line.NOT_NEGATIVE),
        ("--mixup", 0.0, "blend each training patch and its MOS with another in shares from Beta(X, X); 0 turns it off", command_line.NOT_NEGATIVE),
        ("--cutmix", 0.0, "paste a part of another patch into each training patch, its size from Beta(X, X), and mix the MOS "
               "accordingly; with --mixup half of the patches each; 0 turns it off", command_line.NOT_NEGATIVE),
    ]
    for name, default, text, accepted in regularisation:
        flags.real(name, default, text, accepted)

    flags.group("best epoch and rounds")
    flags.count("--patience", 5, "epochs without a better SRCC after which training stops early")
    flags.switch("--no_early_stopping", "early_stopping", False, "run all epochs in any case")
    flags.value("--select_on", "test", "images on which the best epoch is chosen: the test images, as in published results, or "
                "validation images, the data set's own or those of --val_fraction", choices=["test", "val"])
    flags.value("--val_fraction", None, "share of the training images that become validation images for --select_on val; images of "
                "one content stay together (default: the data set's own validation images)",
                BETWEEN, type=float, metavar="X")
    flags.count("--train_test_num", 1, "how often to train and test, each time with the next seed; the log ends with the medians")
    flags.count("--seed", 42, "seed of everything random in the first round", least=0)


def _output_and_hardware_flags(flags: command_line.Flags) -> None:
    flags.group("output")
    flags.value("--run_name", None, "name of the run, of its log and of its folder (default: made of backbone, loss and time)",
                metavar="NAME", ok=("letters, digits and _ . + = - alone", lambda name: re.fullmatch(r"[\w.+=-]{1,150}", name)))
    flags.path("--log_dir", Path("logs"), "folder for logs and predictions")
    flags.path("--checkpoint_dir", Path("checkpoints"), "folder for models and for the states from which runs go on")
    flags.value("--resume", None, "go on with an interrupted run: auto is the newest one with the same settings; else its folder or "
                "its last.pt", metavar="auto|PATH")
    flags.real("--checkpoint_minutes", 10, "minutes after which a state is saved within an epoch", command_line.NOT_NEGATIVE)
    flags.switch("--tensorboard", "tensorboard", True, "also write the figures as TensorBoard events beside the log")

    flags.group("hardware")
    flags.device()
    flags.value("--precision", "auto", "number format of training; auto is bf16 where that is faster here, else fp32",
                choices=["auto", "fp32", "bf16"])
    flags.workers()
    flags.cache()
    flags.value("--cache_device", "auto", "memory that holds the decoded images; auto is the GPU's if they fit into it",
                choices=["auto", "cpu", "cuda"])
    flags.switch("--compile", "compile", True, "compile the model with torch.compile, which starts slower and trains faster")
    flags.switch("--grad_checkpointing", "grad_checkpointing", True, "keep less of the encoder in memory for the backward pass and "
                 "compute it again there; the step stays the same and takes longer")
    flags.switch("--fused_attention", "fused_attention", True, "use torch's fused attention in Swin, which rounds differently")
    flags.switch("--no_deterministic", "deterministic", False, "let cuDNN choose faster kernels, with which results vary a little")
# fmt: on
