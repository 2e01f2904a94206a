"""The flags of the train scripts, one line each, their contradictions, and what of them a run's figures depend on.
All is checked before torch is imported. Nothing here knows a backbone or a data set: the scripts hand over names."""

import argparse
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hyperiqa.base.command_line import Given, problem_of
from hyperiqa.base.errors import UserError, not_installed
from hyperiqa.base.files import exists_or_on_hub
from hyperiqa.base.plain_values import to_json_value, to_text
from hyperiqa.datasets.names import lower_is_better_sets, parse_set_names, reader_name, record_name
from hyperiqa.training.flags import (
    AUGMENTATIONS,
    FIXES,
    MIX_SCALES,
    WHOLE_MAPS,
    Script,
    for_csv_alone,
    train_flags,
)
from hyperiqa.training.run_files import NOT_FIGURES

IN_RUN_NAME = (
    "hyper",
    "loss",
    "optimizer",
)  # choices that a run's name says where they are not the default


def stored_features(o: argparse.Namespace) -> bool:
    """Whether the run looks at stored stage maps of a frozen encoder in place of pixels."""
    return o.freeze_backbone and o.fixed_crops and o.feature_dtype != "none"


def needs_pixels(o: argparse.Namespace) -> Iterator[str]:
    """What is wrong with stored features beside flags that need the pixels, or whole stage maps, in every epoch."""
    wanting = {
        f"--fusion {o.fusion} looks at whole stage maps": o.fusion in WHOLE_MAPS,
        f"--augment {' '.join(o.augment)} is for new patches in each epoch": not {*o.augment}
        <= {"hflip", "none"},
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
        raise UserError(
            f"--training_fixes {text}: expected all, none or a comma list of {', '.join(FIXES)}"
        )
    return tuple(name for name in FIXES if name in names)


def _contradictions(o: argparse.Namespace, given: Given) -> Iterator[str]:
    path = o.resume if o.resume != "auto" else None
    checks = {
        "--training_fixes needs --lr_scheduler step: it repairs that schedule and no other": o.training_fixes
        != "none"
        and o.lr_scheduler != "step",
        "--milestones needs --lr_scheduler multistep": o.milestones
        and o.lr_scheduler != "multistep",
        f"--milestones {to_text(o.milestones)}: expected rising numbers from 1 to {o.epochs - 1}, below --epochs": o.milestones
        and o.milestones != sorted({n for n in o.milestones if 0 < n < o.epochs}),
        "--plateau_patience needs --lr_scheduler plateau": "plateau_patience" in given
        and o.lr_scheduler != "plateau",
        "contradictory flags: --warmup_epochs and --lr_scheduler step, the published procedure": o.warmup_epochs
        and o.lr_scheduler == "step",
        f"--warmup_epochs {o.warmup_epochs}: expected fewer than --epochs {o.epochs}": o.warmup_epochs
        and o.warmup_epochs >= o.epochs,
        "contradictory flags: --no_pretrained and --backbone_weights": o.backbone_weights
        and not o.pretrained,
        "contradictory flags: --init brings its own weights; no --backbone_weights, no --no_pretrained": o.init
        and (o.backbone_weights or "pretrained" in given),
        "--feature_dtype needs --freeze_backbone and --fixed_crops": "feature_dtype" in given
        and not (o.freeze_backbone and o.fixed_crops),
        "contradictory flags: --contrastive_weight trains the encoder, which --freeze_backbone leaves as it is": o.contrastive_weight
        and o.freeze_backbone,
        "contradictory flags: --drop_path and --freeze_backbone, which leaves no path out": o.drop_path
        and o.freeze_backbone,
        "contradictory flags: --no_early_stopping and --patience": not o.early_stopping
        and "patience" in given,
        "--ranking_loss_margin needs --ranking_loss_alpha above 0": "ranking_loss_margin" in given
        and o.ranking_loss_alpha == 0,
        "contradictory flags: --cache_device cuda and --device cpu": o.cache_device == "cuda"
        and o.device == "cpu",
        (missing := not_installed("--tensorboard", "tensorboard")): o.tensorboard and missing,
        "--augment_strength needs --augment color or blur": "augment_strength" in given
        and not {"color", "blur"} & {*o.augment},
        "contradictory: --augment none with others": "none" in o.augment and len(o.augment) > 1,
        "--val_fraction needs --select_on val": o.val_fraction is not None and o.select_on != "val",
        "contradictory flags: --resume PATH and --run_name (the run keeps its name)": path
        and o.run_name is not None,
        f"--resume {path}: no such file; expected auto, a run's last.pt or its folder": path
        and not Path(path).exists(),
        f"--backbone_weights {o.backbone_weights}: no such file": o.backbone_weights
        and not exists_or_on_hub(o.backbone_weights),
        "--distill_weight needs --teacher": "distill_weight" in given and not o.teacher,
        f"--teacher {o.teacher}: no such file or folder": o.teacher
        and not exists_or_on_hub(o.teacher),
        f"--init {o.init}: no such file or folder": o.init and not exists_or_on_hub(o.init),
    }
    yield from (text for text, wrong in checks.items() if wrong)
    names = [*o.trained, *(o.cross_test or ())]
    if not any(name.startswith("csv") for name in names):
        yield from for_csv_alone(given, "--dataset csv")
    elif problem := problem_of(lower_is_better_sets, o.lower_is_better, names):
        yield problem
    yield from needs_pixels(o)
    if problem := problem_of(parse_fixes, o.training_fixes):
        yield problem


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
            o.trained = parse_set_names("--dataset", words, script.datasets)
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
    numbers = len(counts) == len(o.trained) and all(
        re.fullmatch(r"[1-9]\d*", count) for count in counts
    )
    if counts != ["balanced"] and not numbers:
        yield f"--mix_patches {' '.join(counts)}: expected a number for each of {', '.join(o.trained)}, or balanced"
    o.mix_resize = {name: o.resize or script.datasets[reader_name(name)] for name in o.trained}
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
            chosen = parse_set_names(
                "--cross_test", o.cross_test, [name for name in script.datasets if name != "demo"]
            )
        except UserError as mistake:
            yield str(mistake)
    if chosen and "spaq" in chosen and (not spaq or chosen["spaq"]) and (not spaq or spaq_path):
        yield f"contradictory flags: --cross_test spaq and {'--spaq_path' if spaq else '--no_spaq'}"
    both = [name for name in chosen or () if name in o.trained]
    yield from (f"--cross_test {name}: the run tests on its --dataset anyway" for name in both)
    o.cross_test = {**(chosen or {}), "spaq": spaq_path} if spaq_path else chosen
    # An explicit --resize is for all sets; without, each has its own.
    names = ["spaq"] if o.cross_test is None else list(o.cross_test)
    o.cross_resize = {
        record_name(name): o.resize or script.datasets.get(reader_name(name), "384")
        for name in names
    }


def train_options(
    argv: Sequence[str] | None, description: str | None, script: Script
) -> argparse.Namespace:
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
            for name in (
                "backbone",
                "patch_size",
                "fusion",
                "hyper",
            ):  # the checkpoint's, which is read later
                demo.pop(name, None)
                vars(options).update({} if name in given else {name: None})
        options.demo_defaults = {name: value for name, value in demo.items() if name not in asked}
        vars(options).update(options.demo_defaults)
        problems.extend(_cross_tests(options, script))
        options.resize = options.resize or script.datasets[reader_name(next(iter(options.trained)))]
        options.augment = [
            name for name in AUGMENTATIONS if name in options.augment
        ]  # in one order, each once

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


def default_run_name(
    options: argparse.Namespace, backbone: str, short: str, alpha_too: bool
) -> str:
    """A run's name where the user gives none: its choices and the time. backbone: one that is called `short`.
    alpha_too: name alpha 0 as well."""
    o, defaults = options, _defaults()
    fusion = {"none": "", "concat": "multiscale"}.get(o.fusion, o.fusion)
    others = [getattr(o, name) for name in IN_RUN_NAME if getattr(o, name) != defaults[name]]
    alpha = f"ranking_alpha{o.ranking_loss_alpha:g}" if o.ranking_loss_alpha or alpha_too else ""
    now = datetime.now().strftime("%Y%m%d_%H%M%S")
    name = "_".join(
        filter(None, [short if o.backbone == backbone else o.backbone, fusion, *others, alpha, now])
    )
    return re.sub(r"[^\w.+=-]", "-", name)  # hf-hub:USER/NAME


def figure_settings(options: argparse.Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run's figures depend on, as JSON knows them, in the form of this version.
    What an older version's run does not know counts as its default here: that is what the run did."""
    given = dict(options if isinstance(options, Mapping) else vars(options))
    if "cross_resize" not in given and "spaq" in given:  # before 0.8, SPAQ was the only cross test
        given["cross_resize"] = (
            {"spaq": given["spaq_resize"]} if given["spaq"] and given["dataset"] != "spaq" else {}
        )
    settings = {**_defaults(), **given}
    return to_json_value({name: settings[name] for name in _defaults() if name not in NOT_FIGURES})  # type: ignore[return-value]


def settings_again(description: Mapping[str, Any], **where: Any) -> argparse.Namespace:
    """The flags of a run as a model's description has them; where: what the description does not say, such as paths."""
    return argparse.Namespace(**{**_defaults(), **figure_settings(description), **where})
