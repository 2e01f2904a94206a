"""The flags of the train scripts, one line each, their contradictions, and what of them a run's figures depend on.
All is checked before torch is imported. Nothing here knows a backbone or a data set: the scripts hand over names."""

import argparse
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hyperiqa.base.command_line import NOT_NEGATIVE, POSITIVE, SHARE, Flags, Given, Range, called, kind_of, named_sets, problem_of
from hyperiqa.base.cluster import cluster_flags
from hyperiqa.base.errors import UserError, not_installed
from hyperiqa.base.files import is_there
from hyperiqa.training.run_files import NOT_FIGURES, plain, shown

AUGMENTATIONS = ("hflip", "vflip", "rot90", "color", "blur", "none")
FUSIONS = ("none", "concat", "direct", "attention", "fpn", "progressive")
WHOLE_MAPS = ("fpn", "progressive")  # fusions for which averaged stage maps do not do
HYPERS = ("conv", "transformer")
MIX_SCALES = ("first", "range", "none")
FEATURE_DTYPES = ("fp16", "fp32", "none")
LOSSES = ("l1", "mse", "smooth_l1", "plcc", "srcc", "fidelity")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("cosine", "step", "none", "multistep", "plateau", "cosine_step")
FIXES = ("filter", "backbone_lr", "optimizer_state")
CSV_FLAGS = ("image_column", "score_column", "split_column", "group_column", "image_root", "lower_is_better")
IN_RUN_NAME = ("hyper", "loss", "optimizer")  # choices that a run's name says where they are not the default
PART: Range = ("a number from 0 to below 1", lambda x: 0 <= x < 1)


@dataclass(frozen=True)
class Script:
    """What a train script offers: its backbones, the default first; data sets -> their default `--resize`; the defaults
    that `--dataset demo` brings. any_backbone: a prefix that lets other names of timm through."""

    backbones: tuple[str, ...]
    datasets: Mapping[str, str]
    demo: Mapping[str, Any]
    any_backbone: str | None = None


# fmt: off
def csv_flags(flags: Flags) -> None:
    """How a CSV set is read: the flags of `CSV_FLAGS`, for every program that reads one."""
    flags.value("--image_column", "image", "csv: the column of image paths", metavar="NAME")
    flags.value("--score_column", "mos", "csv: the column of scores", metavar="NAME")
    flags.value("--split_column", "split", "csv: the column of train, val and test, if there is one", metavar="NAME")
    flags.value("--group_column", "group", "csv: the column that images of one content share, if there is one",
                metavar="NAME")
    flags.path("--image_root", None, "csv: the folder that image paths start from (default: that of the file)")
    flags.value("--lower_is_better", False, "csv: scores mean badness (DMOS); of several CSV sets these, or all",
                nargs="*", metavar="NAME")


def for_csv_alone(given: Given, csv: str) -> Iterator[str]:
    """What is wrong with flags of a CSV set where there is none; csv: what it takes."""
    yield from (f"--{name} is for {csv}: how the other sets are read is known" for name in CSV_FLAGS if name in given)


def train_flags(description: str | None, script: Script) -> Flags:
    """The flags of a train script. Defaults are the seeds'."""
    flags = Flags(description)
    flags.several = True
    value, count, real, path, switch = flags.value, flags.count, flags.real, flags.path, flags.switch

    flags.group("data")
    value("--dataset", ["koniq-10k"], "training and test sets, of "
          f"{', '.join(script.datasets)}; several CSV sets: csv:NAME=FILE.csv", nargs="+", metavar="NAME[=PATH]")
    path("--dataset_path", None, "of a single set: its folder, of csv its file (default: beside the scripts)")
    value("--mix_scale", None, "how scores of several sets meet: as the first set's mean and spread; by their nominal "
          "range; as they are (default: first)", choices=MIX_SCALES)
    value("--mix_patches", None, "of several sets: patches per image of each, or balanced: as many of each set "
          "(default: --train_patch_num of all)", nargs="+", metavar="N|balanced")
    value("--select_set", None, "of several: by whose SRCC the epoch is chosen (default: their mean)", metavar="NAME")
    switch("--allow_overlap", "allow_overlap", True, "train although a test split shares images with another set")
    value("--cross_test", None, "sets to test on besides (default: spaq, from spaq/ or spaq-test/, if there)",
          nargs="+", metavar="NAME[=PATH]")
    path("--spaq_path", None, "short for --cross_test spaq=PATH")
    switch("--no_spaq", "spaq", False, "no cross test on SPAQ")
    flags.images(resize="default: the data set's own, 384 for KonIQ-10k and SPAQ; the public code: 512x384")
    switch("--exif_rotate", "exif_rotate", True, "turn images as their EXIF orientation says")
    flags.skip_bad_images()
    csv_flags(flags)

    flags.group("patches")
    count("--patch_size", 224, "side of a patch in pixels", least=32)
    count("--train_patch_num", 25, "random crops per training image and epoch")
    switch("--fixed_crops", "fixed_crops", True, "the same crops in all epochs; with --freeze_backbone encoded once")
    value("--feature_dtype", FEATURE_DTYPES[0], "of such features; none: go through the pixels", choices=FEATURE_DTYPES)
    value("--augment", ["hflip"], "of training patches; hflip, vflip: half of them mirrored; rot90: quarter turns; "
          "color: brightness, contrast, saturation; blur: half of them; none: as they are",
          nargs="+", choices=AUGMENTATIONS, metavar="NAME")
    real("--augment_strength", 0.2, "color: at most this share more or less; blur: a sigma of up to 10 X pixels", SHARE)
    count("--test_patch_num", 25, "crops per test image with --test_crop grid or random")
    value("--test_crop", "center", "center (scored once), grid or random", choices=["center", "grid", "random"])
    switch("--test_random_crop", "test_crop", "random", "same as --test_crop random")

    flags.group("model")
    value("--backbone", script.backbones[0], f"one of {', '.join(script.backbones)}", metavar="NAME")
    switch("--no_pretrained", "pretrained", False, "start the backbone from random weights")
    path("--backbone_weights", None, "start the backbone from this file: torchvision's, timm's, or one of our models")
    path("--init", None, "start from this whole trained model, its scores brought to the set's scale")
    switch("--freeze_backbone", "freeze_backbone", True, "leave the encoder as it is; the LDA and the head train")
    value("--fusion", FUSIONS[0], "of the stage maps for the hyper network; direct, attention: as SMART-IQA; fpn: a "
          "feature pyramid; progressive: from the finest to the coarsest", choices=FUSIONS)
    switch("--use_multiscale", "fusion", "concat", "same as --fusion concat")
    switch("--no_multiscale", "fusion", "none", "same as --fusion none")
    value("--hyper", HYPERS[0], "hyper network: three 1x1 convs, or self-attention over all stages", choices=HYPERS)

    flags.group("regularisation")
    real("--dropout", 0.0, "before the generators and after the target network's first three layers: SMART-IQA", PART)
    real("--drop_path", None, "stochastic depth of the encoder (default: its own; Swin 0.1, others none)", PART)
    real("--label_noise", 0.0, "noise on each patch's MOS: X standard errors, or X %% of the score range", NOT_NEGATIVE)
    real("--mixup", 0.0, "Beta parameter of blending each patch and its MOS with another; 0: never", NOT_NEGATIVE)
    real("--cutmix", 0.0, "the same of covering a part of it; with both, half of the patches each", NOT_NEGATIVE)

    flags.group("loss")
    value("--loss", LOSSES[0], "scores to MOS; plcc, srcc, fidelity compare the batch's images", choices=LOSSES)
    real("--ranking_loss_alpha", 0.0, "weight of the pairwise ranking loss; 0: none, 0.3: recommended", SHARE)
    real("--ranking_loss_margin", 0.5, "its margin, in score units", NOT_NEGATIVE)
    value("--ranking_loss_form", "convex", "convex: (1-alpha)*loss + alpha*rank; additive: loss + alpha*rank",
          choices=["convex", "additive"])
    real("--contrastive_weight", 0.0, "weight of Rank-N-Contrast on the encoder's pooled features", NOT_NEGATIVE)
    path("--teacher", None, "learn this trained model's scores of the same patches too: anything that predict.py reads")
    real("--distill_weight", 1.0, "weight of the distance to its scores", POSITIVE)

    flags.group("optimisation")
    real("--lr", 2e-5, "learning rate of the backbone", POSITIVE)
    real("--lr_ratio", 10, "head lr / backbone lr", POSITIVE)
    value("--optimizer", OPTIMIZERS[0], "adamw: no decay of biases and norms; sgd: momentum 0.9", choices=OPTIMIZERS)
    real("--weight_decay", 5e-4, "the optimizer's weight decay", NOT_NEGATIVE)
    real("--clip_grad", None, "scale gradients down to this norm (default: as they are)", POSITIVE)
    flags.batch_size(96, "patches per step (over all processes)")
    count("--epochs", 16, "most epochs per round")
    real("--ema", 0.0, "test and keep a moving average of the weights; each step keeps this share of it; 0: no", PART)
    value("--lr_scheduler", SCHEDULES[0], "step: the published procedure, defects included; multistep, plateau: a "
          "tenth after --milestones, or where the SRCC stays; cosine_step: anew for each step", choices=SCHEDULES)
    switch("--no_lr_scheduler", "lr_scheduler", "none", "same as --lr_scheduler none")
    value("--training_fixes", "none", f"repairs of --lr_scheduler step: comma list of {', '.join(FIXES)}; all; none",
          metavar="LIST")
    value("--milestones", None, "of multistep: epochs after which the rates fall (default: 60 and 85 %% of --epochs)",
          nargs="+", type=int, metavar="N")
    count("--plateau_patience", 2, "of plateau: epochs without a better SRCC before the rates fall", least=0)
    count("--warmup_epochs", 0, "let the rates rise from 1 %%, step by step, for so many epochs", least=0)
    count("--patience", 5, "stop after N epochs without a better SRCC")
    switch("--no_early_stopping", "early_stopping", False, "always run all epochs")
    value("--select_on", "test", "chooses the best epoch; val: official, or --val_fraction", choices=["test", "val"])
    value("--val_fraction", None, "with --select_on val: this share of the training images, whole contents",
          ("a number between 0 and 1", lambda x: 0 < x < 1), type=float, metavar="F")
    count("--train_test_num", 1, "rounds, each with the next seed; medians at the end")
    count("--seed", 42, "seed of the first round", least=0)

    flags.group("hardware")
    flags.device()
    value("--precision", "auto", "of training; auto: bf16 where the hardware has it", choices=["auto", "fp32", "bf16"])
    flags.workers()
    flags.cache()
    value("--cache_device", "auto", "of decoded images; auto: on a GPU if they fit", choices=["auto", "cpu", "cuda"])
    switch("--compile", "compile", True, "torch.compile the model: slower start, faster steps")
    switch("--fused_attention", "fused_attention", True, "Swin: attention by torch's fused kernels, rounded otherwise")
    switch("--no_deterministic", "deterministic", False, "let cuDNN choose faster, non-deterministic kernels")

    flags.group("output")
    path("--log_dir", Path("logs"), "where logs and predictions go")
    path("--checkpoint_dir", Path("checkpoints"), "where models go")
    value("--resume", None, "auto: the newest unfinished run of the same settings; or a last.pt", metavar="auto|PATH")
    real("--checkpoint_minutes", 10, "save last.pt within an epoch this often", NOT_NEGATIVE)
    switch("--tensorboard", "tensorboard", True, "also write the figures as TensorBoard events beside the log")
    value("--run_name", None, "name of the run (default: from backbone, loss and time)", metavar="NAME",
          ok=("letters, digits and _ . + = - alone", lambda name: re.fullmatch(r"[\w.+=-]{1,150}", name)))
    cluster_flags(flags)
    return flags
# fmt: on


def stored_features(o: argparse.Namespace) -> bool:
    """Whether the run looks at stored stage maps of a frozen encoder in place of pixels."""
    return o.freeze_backbone and o.fixed_crops and o.feature_dtype != "none"


def needs_pixels(o: argparse.Namespace) -> Iterator[str]:
    """What is wrong with stored features beside flags that need the pixels, or whole stage maps, in every epoch."""
    wanting = {
        f"--fusion {o.fusion} looks at whole stage maps": o.fusion in WHOLE_MAPS,
        f"--augment {' '.join(o.augment)} is for new patches in each epoch": not {*o.augment} <= {"hflip", "none"},
        "--mixup and --cutmix change the pixels": o.mixup or o.cutmix,
        "--teacher scores the patches": o.teacher,
        "they are of one data set": len(o.trained) > 1,
    }
    for reason, wanted in wanting.items():
        if wanted and stored_features(o):
            yield f"--freeze_backbone --fixed_crops stores averaged features, but {reason}: add --feature_dtype none"


def parse_fixes(text: str) -> tuple[str, ...]:
    """`--training_fixes` -> names out of `FIXES`; `all` = optimizer_state,backbone_lr (they imply filter)."""
    if text == "none":
        return ()
    names = ["optimizer_state", "backbone_lr"] if text == "all" else text.split(",")
    if not set(names) <= set(FIXES):
        raise UserError(f"--training_fixes {text}: expected all, none or a comma list of {', '.join(FIXES)}")
    return tuple(name for name in FIXES if name in names)


def _contradictions(o: argparse.Namespace, given: Given) -> Iterator[str]:
    path = o.resume if o.resume != "auto" else None
    checks = {
        "--training_fixes needs --lr_scheduler step: it repairs that schedule and no other":
            o.training_fixes != "none" and o.lr_scheduler != "step",
        "--milestones needs --lr_scheduler multistep": o.milestones and o.lr_scheduler != "multistep",
        f"--milestones {shown(o.milestones)}: expected rising numbers from 1 to {o.epochs - 1}, below --epochs":
            o.milestones and o.milestones != sorted({n for n in o.milestones if 0 < n < o.epochs}),
        "--plateau_patience needs --lr_scheduler plateau": "plateau_patience" in given and o.lr_scheduler != "plateau",
        "contradictory flags: --warmup_epochs and --lr_scheduler step, the published procedure":
            o.warmup_epochs and o.lr_scheduler == "step",
        f"--warmup_epochs {o.warmup_epochs}: expected fewer than --epochs {o.epochs}":
            o.warmup_epochs and o.warmup_epochs >= o.epochs,
        "contradictory flags: --no_pretrained and --backbone_weights": o.backbone_weights and not o.pretrained,
        "contradictory flags: --init brings its own weights; no --backbone_weights, no --no_pretrained":
            o.init and (o.backbone_weights or "pretrained" in given),
        "--feature_dtype needs --freeze_backbone and --fixed_crops":
            "feature_dtype" in given and not (o.freeze_backbone and o.fixed_crops),
        "contradictory flags: --contrastive_weight trains the encoder, which --freeze_backbone leaves as it is":
            o.contrastive_weight and o.freeze_backbone,
        "contradictory flags: --drop_path and --freeze_backbone, which leaves no path out":
            o.drop_path and o.freeze_backbone,
        "contradictory flags: --no_early_stopping and --patience": not o.early_stopping and "patience" in given,
        "--ranking_loss_margin needs --ranking_loss_alpha above 0":
            "ranking_loss_margin" in given and o.ranking_loss_alpha == 0,
        "contradictory flags: --cache_device cuda and --device cpu": o.cache_device == "cuda" and o.device == "cpu",
        (missing := not_installed("--tensorboard", "tensorboard")): o.tensorboard and missing,
        "--augment_strength needs --augment color or blur":
            "augment_strength" in given and not {"color", "blur"} & {*o.augment},
        "contradictory: --augment none with others": "none" in o.augment and len(o.augment) > 1,
        "--val_fraction needs --select_on val": o.val_fraction is not None and o.select_on != "val",
        "contradictory flags: --resume PATH and --run_name (the run keeps its name)": path and o.run_name is not None,
        f"--resume {path}: no such file; expected auto, a run's last.pt or its folder":
            path and not Path(path).exists(),
        f"--backbone_weights {o.backbone_weights}: no such file":
            o.backbone_weights and not is_there(o.backbone_weights),
        "--distill_weight needs --teacher": "distill_weight" in given and not o.teacher,
        f"--teacher {o.teacher}: no such file or folder": o.teacher and not is_there(o.teacher),
        f"--init {o.init}: no such file or folder": o.init and not is_there(o.init),
    }  # fmt: skip
    yield from (text for text, wrong in checks.items() if wrong)
    names = [*o.trained, *(o.cross_test or ())]
    if not any(name.startswith("csv") for name in names):
        yield from for_csv_alone(given, "--dataset csv")
    elif problem := problem_of(lower_sets, o.lower_is_better, names):
        yield problem
    yield from needs_pixels(o)
    if problem := problem_of(parse_fixes, o.training_fixes):
        yield problem


def lower_sets(flag: bool | list[str], names: Iterable[str]) -> set[str]:
    """The CSV sets of these whose scores mean badness, as `--lower_is_better` says. Raises UserError."""
    csv = {called(name): name for name in names if name.startswith("csv")}
    if isinstance(flag, bool) or not flag:
        return set(csv.values()) if flag is not False else set()
    if unknown := [name for name in flag if name not in csv]:
        raise UserError(f"--lower_is_better {' '.join(unknown)}: expected CSV sets of this run: {', '.join(csv)}")
    return {csv[name] for name in flag}


def _trained_sets(o: argparse.Namespace, script: Script, given: Given) -> Iterator[str]:
    """Make `trained`, name -> path or None for its default place, out of --dataset and --dataset_path, `dataset` the
    names, and of what mixes several sets what holds where it is not given; yields mistakes."""
    words, o.trained = o.dataset, {"koniq-10k": None}
    if o.dataset_path and len(words) == 1 and "=" not in words[0]:
        words = [f"{words[0]}={o.dataset_path}"]
    elif o.dataset_path:
        yield "--dataset_path is of a single set, without a path of its own; several: --dataset NAME=PATH NAME=PATH"
    if words == ["csv"]:
        yield "--dataset csv needs --dataset_path FILE.csv (columns image,mos and optional split,group)"
    else:
        try:
            o.trained = named_sets("--dataset", words, script.datasets)
        except UserError as mistake:
            yield str(mistake)
    several, o.dataset = len(o.trained) > 1, "+".join(o.trained)
    if several and "demo" in o.trained:
        yield "--dataset demo: trained alone, it brings its own cross test and defaults"
    if not several:
        flags = [name for name in ("mix_scale", "mix_patches", "select_set") if name in given]
        yield from (f"--{name} needs several sets: --dataset NAME=PATH NAME=PATH" for name in flags)
        o.dataset_path = next(iter(o.trained.values()))
        return
    o.mix_scale = o.mix_scale or MIX_SCALES[0]
    if o.select_set is not None and o.select_set not in o.trained:
        yield f"--select_set {o.select_set}: expected one of {', '.join(o.trained)}"
    counts = o.mix_patches or ["balanced"]
    numbers = len(counts) == len(o.trained) and all(re.fullmatch(r"[1-9]\d*", count) for count in counts)
    if counts != ["balanced"] and not numbers:
        yield f"--mix_patches {' '.join(counts)}: expected a number for each of {', '.join(o.trained)}, or balanced"
    o.mix_resize = {name: o.resize or script.datasets[kind_of(name)] for name in o.trained}
    o.dataset_path = o.trained  # for the record


def _cross_tests(o: argparse.Namespace, script: Script) -> Iterator[str]:
    """Fold --spaq_path and --no_spaq into `cross_test`: name -> path, None where it is the default; yields mistakes."""
    spaq, spaq_path = vars(o).pop("spaq"), vars(o).pop("spaq_path")
    if not spaq and spaq_path:
        yield "contradictory flags: --no_spaq and --spaq_path"
    if "spaq" in o.trained and spaq_path:
        yield "--dataset spaq takes its folder from --dataset_path, not --spaq_path"
    chosen: dict[str, Path | None] = {} if not spaq or "spaq" in o.trained else None
    if o.cross_test is not None:
        try:
            chosen = named_sets("--cross_test", o.cross_test, [name for name in script.datasets if name != "demo"])
        except UserError as mistake:
            yield str(mistake)
    if chosen and "spaq" in chosen and (not spaq or chosen["spaq"]) and (not spaq or spaq_path):
        yield f"contradictory flags: --cross_test spaq and {'--spaq_path' if spaq else '--no_spaq'}"
    both = [name for name in chosen or () if name in o.trained]
    yield from (f"--cross_test {name}: the run tests on its --dataset anyway" for name in both)
    o.cross_test = {**(chosen or {}), "spaq": spaq_path} if spaq_path else chosen
    # An explicit --resize is for all sets; without, each has its own.
    names = ["spaq"] if o.cross_test is None else list(o.cross_test)
    o.cross_resize = {called(name): o.resize or script.datasets.get(kind_of(name), "384") for name in names}


def train_options(argv: Sequence[str] | None, description: str | None, script: Script) -> argparse.Namespace:
    """Parse and check the flags of a train script.
    Returns the settings under their canonical names (aliases folded in), with `demo_defaults` = the flags whose value
    the demo brought, `trained` = name -> path or None, `dataset` = their names joined by +, `cross_test` = name ->
    path, or None for SPAQ where it is found, `mix_resize` and `cross_resize` = name -> its `--resize`. Raises
    UserError, naming every problem at once."""
    problems: list[str] = []

    def prepare(options: argparse.Namespace, given: Given) -> None:
        asked = {*given, "pretrained"} if "backbone_weights" in given else given
        options.mix_resize = {}
        options.lower_is_better = True if options.lower_is_better == [] else options.lower_is_better
        problems.extend(_trained_sets(options, script, given))
        demo = dict(script.demo) if options.dataset == "demo" else {}
        options.init_digest = options.teacher_digest = None  # of the weights, where they are read
        if options.init:
            for name in ("backbone", "patch_size", "fusion", "hyper"):  # the checkpoint's, which is read later
                demo.pop(name, None)
                vars(options).update({} if name in given else {name: None})
        options.demo_defaults = {name: value for name, value in demo.items() if name not in asked}
        vars(options).update(options.demo_defaults)
        problems.extend(_cross_tests(options, script))
        options.resize = options.resize or script.datasets[kind_of(next(iter(options.trained)))]
        options.augment = [name for name in AUGMENTATIONS if name in options.augment]  # in one order, each once

    def found(options: argparse.Namespace, given: Given) -> Iterator[str]:
        yield from problems
        yield from _contradictions(options, given)
        names, prefix = script.backbones, script.any_backbone
        any_other = prefix is not None and (options.backbone or prefix).startswith(prefix)
        if options.backbone and options.backbone not in names and not any_other:
            more = f" or another timm model named {prefix}…" if prefix else ""
            yield f"--backbone {options.backbone}: expected one of {', '.join(names)}{more}"

    options = train_flags(description, script).parse(argv, found, prepare)
    options.training_fixes = parse_fixes(options.training_fixes)
    return options


@functools.cache
def _defaults() -> dict[str, Any]:
    return vars(train_options([], None, Script(("",), {"koniq-10k": "384", "spaq": "384"}, {})))


def default_run_name(options: argparse.Namespace, backbone: str, short: str, alpha_too: bool) -> str:
    """A run's name where the user gives none: its choices and the time. backbone: one that is called `short`.
    alpha_too: name alpha 0 as well."""
    o, defaults = options, _defaults()
    fusion = {"none": "", "concat": "multiscale"}.get(o.fusion, o.fusion)
    others = [getattr(o, name) for name in IN_RUN_NAME if getattr(o, name) != defaults[name]]
    alpha = f"ranking_alpha{o.ranking_loss_alpha:g}" if o.ranking_loss_alpha or alpha_too else ""
    now = datetime.now().strftime("%Y%m%d_%H%M%S")
    name = "_".join(filter(None, [short if o.backbone == backbone else o.backbone, fusion, *others, alpha, now]))
    return re.sub(r"[^\w.+=-]", "-", name)  # hf-hub:USER/NAME


def figure_settings(options: argparse.Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run's figures depend on, as JSON knows them, in the form of this version.
    What an older version's run does not know counts as its default here: that is what the run did."""
    given = dict(options if isinstance(options, Mapping) else vars(options))
    if "cross_resize" not in given and "spaq" in given:  # before 0.8, SPAQ was the only cross test
        given["cross_resize"] = {"spaq": given["spaq_resize"]} if given["spaq"] and given["dataset"] != "spaq" else {}
    settings = {**_defaults(), **given}
    return plain({name: settings[name] for name in _defaults() if name not in NOT_FIGURES})  # type: ignore[return-value]


def settings_again(description: Mapping[str, Any], **where: Any) -> argparse.Namespace:
    """The flags of a run as a model's description has them; where: what the description does not say, such as paths."""
    return argparse.Namespace(**{**_defaults(), **figure_settings(description), **where})
