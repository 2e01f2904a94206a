"""The settings of a training run: its flags parsed, completed and checked.

Also the part of the settings that a run's figures depend on: runs are compared and resumed by it.
All is checked before torch is imported. Nothing here knows a backbone or a data set: the train
scripts hand over the names.
"""

import argparse
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from hyperiqa.base import command_line, errors, parser, plain_values, schema
from hyperiqa.datasets.names import parse_set_names, reader_name, record_name, set_named
from hyperiqa.model.description import SETTINGS
from hyperiqa.training import contradictions, flags, run_files

# Where no flag says otherwise, the checkpoint of --init decides these.
DECIDED_BY_INIT = ("backbone", "patch_size", "head", "fusion", "hyper", "pool")


def train_options(
    argv: Sequence[str] | None, description: str | None, script: flags.Script, checked: bool = True
) -> argparse.Namespace:
    """Parse and check the flags of a train script.

    Returns the settings under their canonical names, aliases folded in. They include:
    `trained`: name -> path of each training set, None for its default place;
    `dataset`: the names of the training sets, joined by "+";
    `cross_test`: name -> path of each cross test; None instead: SPAQ, where it is found;
    `mix_resize`, `cross_resize`: name -> `--resize` of each set;
    `demo_defaults`: the flags with values that the demo brought;
    `recipes`: the files that flags came from, as `launch` fills it in.
    checked: whether flags must go together and the files that they name must be there.
    Raises UserError, which names every problem at once.
    """
    options = flags.train_flags(description, script).parse(
        argv,
        problems=functools.partial(_problems, script=script, checked=checked),
        complete=functools.partial(_complete, script=script),
    )
    options.training_fixes = parse_fixes(options.training_fixes)
    return options


def _complete(
    options: argparse.Namespace, given: command_line.Given, script: flags.Script
) -> Iterator[str]:
    """Fill in what follows from other flags; yields the mistakes found on the way."""
    options.mix_resize = {}
    # Without names, --lower_is_better means all CSV sets.
    if options.lower_is_better == []:
        options.lower_is_better = True
    elif options.lower_is_better:
        # However a set is spelt, the settings are the same.
        options.lower_is_better = [record_name(word) for word in options.lower_is_better]
    yield from _read_training_sets(options, given, script)
    # The digests of the weights become known when the models are read.
    vars(options).update(init_digest=None, teacher_digest=None, recipes=[])
    usual = dict(vars(options))
    _apply_demo_defaults(options, given, script)
    options.backbone = _full_name(options.backbone, script)
    yield from _read_cross_tests(options, script)
    options.resize = options.resize or script.datasets[reader_name(next(iter(options.trained)))]
    # In one order and each once: the same augmentations are the same settings.
    options.augment = [name for name in flags.AUGMENTATIONS if name in options.augment]
    _yield_to_given(options, given, usual)


def _full_name(name: str | None, script: flags.Script) -> str | None:
    """The one backbone of the script that begins with this name, else the name itself."""
    matches = [full for full in script.backbones if name and full.startswith(name)]
    return matches[0] if len(matches) == 1 and name not in matches else name


def _yield_to_given(
    options: argparse.Namespace, given: command_line.Given, usual: Mapping[str, Any]
) -> None:
    """Take back those of the demo's defaults that contradict what the user gave.

    usual: the settings as they were before the demo brought its defaults.
    """
    for name, value in list(options.demo_defaults.items()):
        before = list(contradictions.contradictions(options, given))
        setattr(options, name, usual[name])
        if len(list(contradictions.contradictions(options, given))) < len(before):
            del options.demo_defaults[name]
        else:
            setattr(options, name, value)


def _problems(
    options: argparse.Namespace, given: command_line.Given, script: flags.Script, checked: bool
) -> Iterator[str]:
    if checked:
        yield from contradictions.contradictions(options, given)
    if mistake := command_line.problem_of(parse_fixes, options.training_fixes):
        yield mistake
    name = options.backbone
    # Without a name, the checkpoint of --init decides.
    if not name or name in script.backbones:
        return
    matches = [full for full in script.backbones if full.startswith(name)]
    prefix = script.any_backbone
    if matches and prefix != "":
        yield f"--backbone {name}: expected one of {', '.join(matches)}"
    elif prefix is None or not name.startswith(prefix):
        others = f", or another timm model with a name that begins with {prefix}" if prefix else ""
        yield (
            f"--backbone {name}: expected one of {', '.join(script.backbones)}{others}"
            f"{parser.did_you_mean(name, script.backbones)}"
        )


def _apply_demo_defaults(
    options: argparse.Namespace, given: command_line.Given, script: flags.Script
) -> None:
    """Give the flags that neither the user nor --init decides the defaults of the demo."""
    defaults = dict(script.demo) if options.dataset == "demo" else {}
    if options.init:
        for name in DECIDED_BY_INIT:
            defaults.pop(name, None)
            if name not in given:
                setattr(options, name, None)
    # Weights for the backbone are pretrained weights, so the demo must not switch those off.
    if "backbone_weights" in given:
        defaults.pop("pretrained", None)
    # An encoder of random weights has everything to learn.
    if not options.pretrained:
        defaults.pop("freeze_backbone", None)
    options.demo_defaults = {name: value for name, value in defaults.items() if name not in given}
    vars(options).update(options.demo_defaults)


def _read_training_sets(
    options: argparse.Namespace, given: command_line.Given, script: flags.Script
) -> Iterator[str]:
    """Make `trained` and `dataset` out of --dataset and --dataset_path; yields the mistakes."""
    words = options.dataset
    if options.dataset_path and len(words) == 1 and "=" not in words[0]:
        words = [f"{words[0]}={options.dataset_path}"]
    elif options.dataset_path:
        yield (
            "--dataset_path is for a single set without a path of its own; "
            "for several sets: --dataset NAME=PATH NAME=PATH"
        )
    # After a mistake the default set stands in, so that the other flags are checked all the same.
    options.trained = {"koniq-10k": None}
    if words == ["csv"]:
        yield (
            "--dataset csv needs --dataset_path FILE.csv "
            "(columns image,mos and optional split,group)"
        )
    else:
        try:
            options.trained = parse_set_names("--dataset", words, script.datasets)
        except errors.UserError as mistake:
            yield str(mistake)
    options.dataset = "+".join(options.trained)
    if len(options.trained) > 1:
        yield from _complete_mixing(options, script)
        return
    yield from (
        f"--{name} needs several sets: --dataset NAME=PATH NAME=PATH"
        for name in ("mix_scale", "mix_patches", "select_set")
        if name in given
    )
    options.dataset_path = next(iter(options.trained.values()))


def _complete_mixing(options: argparse.Namespace, script: flags.Script) -> Iterator[str]:
    set_names = ", ".join(options.trained)
    selected = set_named(options.select_set, options.trained)
    counts = options.mix_patches or ["balanced"]
    are_numbers = all(re.fullmatch(r"[1-9]\d*", count) for count in counts)
    yield from contradictions.broken(
        [
            (
                "demo" in options.trained,
                "--dataset demo can only be trained alone: it has its own cross test and defaults",
            ),
            (
                options.select_set is not None and selected is None,
                f"--select_set {options.select_set}: expected one of {set_names}",
            ),
            (
                counts != ["balanced"]
                and not (are_numbers and len(counts) == len(options.trained)),
                f"--mix_patches {' '.join(counts)}: "
                f"expected a number for each of {set_names}, or balanced",
            ),
        ]
    )
    options.select_set = selected
    options.mix_scale = options.mix_scale or flags.MIX_SCALES[0]
    options.mix_resize = {
        name: options.resize or script.datasets[reader_name(name)] for name in options.trained
    }
    # The run's record then tells the place of every set.
    options.dataset_path = options.trained


def _read_cross_tests(options: argparse.Namespace, script: flags.Script) -> Iterator[str]:
    """Fold --spaq_path and --no_spaq into `cross_test`; yields the mistakes.

    `cross_test` becomes name -> path, a path being None for a set's default place. It becomes None
    as a whole where no flag says anything: SPAQ is then tested if it lies in its default place.
    """
    spaq = vars(options).pop("spaq")
    spaq_path = vars(options).pop("spaq_path")
    cross_test: Any = {} if not spaq or "spaq" in options.trained else None
    if options.cross_test is not None:
        # The demo's images are made on first use, for the demo's own training.
        testable = [name for name in script.datasets if name != "demo"]
        try:
            cross_test = parse_set_names(
                "--cross_test", options.cross_test, testable, options.trained
            )
        except errors.UserError as mistake:
            yield str(mistake)
    listed = cross_test or {}
    yield from contradictions.broken(
        [
            (spaq_path and not spaq, "contradictory flags: --no_spaq and --spaq_path"),
            (
                spaq_path and "spaq" in options.trained,
                "--dataset spaq takes its folder from --dataset_path, not --spaq_path",
            ),
            (
                "spaq" in listed and not spaq,
                "contradictory flags: --cross_test spaq and --no_spaq",
            ),
            # Without a path of its own, `--cross_test spaq` takes the one of --spaq_path.
            (
                spaq and spaq_path and listed.get("spaq"),
                "contradictory flags: --cross_test spaq and --spaq_path",
            ),
            *(
                (name in options.trained, f"--cross_test {name}: the run tests on it anyway")
                for name in listed
            ),
        ]
    )
    if spaq_path:
        cross_test = {**listed, "spaq": spaq_path}
    options.cross_test = cross_test
    # An explicit --resize is for all sets; without it, each set has its own.
    set_names = ["spaq"] if cross_test is None else cross_test
    options.cross_resize = {
        record_name(name): options.resize or script.datasets.get(reader_name(name), "384")
        for name in set_names
    }


def parse_fixes(text: str) -> tuple[str, ...]:
    """The names out of `FIXES` that `--training_fixes` lists.

    `none` is no fix, `all` is optimizer_state,backbone_lr, which imply filter. Raises UserError.
    """
    if text == "none":
        return ()
    names = ["optimizer_state", "backbone_lr"] if text == "all" else text.split(",")
    if not set(names) <= set(flags.FIXES):
        raise errors.UserError(
            f"--training_fixes {text}: expected all, none or a comma list of "
            f"{', '.join(flags.FIXES)}"
        )
    return tuple(name for name in flags.FIXES if name in names)


@functools.cache
def default_settings() -> dict[str, Any]:
    """The settings of a command without flags: the defaults, under their canonical names."""
    return vars(
        train_options([], None, flags.Script(("",), {"koniq-10k": "384", "spaq": "384"}, {}))
    )


def default_run_name(
    options: argparse.Namespace, backbone: str, short: str, alpha_too: bool
) -> str:
    """A run's name where the user gives none: its choices and the time.

    backbone: the one that the name calls `short`; others appear under their own name.
    alpha_too: whether an alpha of 0 is named as well.
    """
    defaults = default_settings()
    alpha = f"ranking_alpha{options.ranking_loss_alpha:g}"
    parts = [
        short if options.backbone == backbone else options.backbone,
        {"none": "", "concat": "multiscale"}.get(options.fusion, options.fusion),
        # These choices are named where they are not the default.
        *(
            getattr(options, setting)
            for setting in ("head", "hyper", "loss", "optimizer")
            if getattr(options, setting) != defaults[setting]
        ),
        alpha if options.ranking_loss_alpha or alpha_too else "",
        datetime.now().strftime("%Y%m%d_%H%M%S"),
    ]
    # A model of the Hub, hf-hub:USER/NAME, must not open a folder.
    return re.sub(r"[^\w.+=-]", "-", "_".join(filter(None, parts)))


def figure_settings(options: argparse.Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run's figures depend on, as JSON values in the form of this version.

    A setting that the run of an older version lacks counts as its default: that is what it did.
    """
    settings = dict(options if isinstance(options, Mapping) else vars(options))
    # Before 0.8, SPAQ was the only cross test.
    if "cross_resize" not in settings and "spaq" in settings:
        tested = settings["spaq"] and settings["dataset"] != "spaq"
        settings["cross_resize"] = {"spaq": settings["spaq_resize"]} if tested else {}
    return plain_values.to_json_value(
        {
            name: settings.get(name, default)
            for name, default in default_settings().items()
            if name not in run_files.NOT_FIGURES
        }
    )


def settings_again(description: Mapping[str, Any], **places: Any) -> argparse.Namespace:
    """The settings of the run that made a model, from the model's description.

    places: settings that the description does not hold, such as paths. Raises UserError where a
    setting is not of its kind.
    """
    if problem := schema.mismatch(description, schema.Fields({}, SETTINGS, schema.PLAIN)):
        raise errors.UserError(f"the settings of the run are damaged: {problem}")
    return argparse.Namespace(**{**default_settings(), **figure_settings(description), **places})
