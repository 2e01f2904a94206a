"""The command line: every flag of the train scripts, defined once and checked before torch is imported.

Nothing here knows a backbone, a data set or a fusion: the scripts hand over the names they offer.
`UserError` is how any floor of the house says that the user, not the program, made a mistake.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import math
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FIXES = ("filter", "backbone_lr", "optimizer_state")


class UserError(Exception):
    """A mistake of the user's: shown as one line `error: …`, exit code 2, without a traceback."""


class Interrupted(BaseException):
    """A signal asked the program to stop, and it has tidied up. Not an Exception: nobody is to swallow it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """While active, SIGINT and SIGTERM raise Interrupted, or, while `deferred`, are noted in `received`.

    The second SIGINT is the system's again and ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False

    def __enter__(self) -> StopSignals:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow it
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: object) -> None:
        self.received = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.deferred:
            raise Interrupted(signum)


def run_tool(main: Callable[[], int | None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit code 2, a signal 128 + its number."""
    try:
        code = main()
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        code = 2
    except Interrupted as stop:
        code = 128 + stop.signum
    sys.exit(code or 0)


def first_five(names: Iterable[object]) -> str:
    """`a, b, c, d, e, …`: enough of a long list for the user to recognise what it is about."""
    names = [str(name) for name in names]
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Each flag's default at the end of its help; the description as it was written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if "default" in text or action.default in (None, argparse.SUPPRESS) or action.nargs == 0:
            return text
        return text + " (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and suggestions for misspelt flags."""

    def __init__(self, description: str):
        super().__init__(
            usage="%(prog)s [flags]", description=description, formatter_class=_Formatter, allow_abbrev=False
        )

    def error(self, message: str) -> None:
        raise UserError(message)

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = list(self._option_string_actions)
            hints = [difflib.get_close_matches(word.split("=")[0], known, n=1) for word in unknown]
            said = (f"{word} (did you mean {hint[0]}?)" if hint else word for word, hint in zip(unknown, hints))
            raise UserError(f"unknown argument: {', '.join(said)}")
        return options


class _Setting(argparse.Action):
    """Stores a value and which flag gave it, so that two flags that contradict each other are noticed."""

    def __call__(self, parser, namespace, values, option_string=None):
        value = self.const if self.nargs == 0 else values
        given = vars(namespace).setdefault("given", {})
        flag, earlier = given.setdefault(self.dest, (option_string, value))
        if flag != option_string and earlier != value:
            raise UserError(f"contradictory flags: {flag} and {option_string}")
        given[self.dest] = (option_string, value)
        setattr(namespace, self.dest, value)


@dataclass
class _Flags:
    """Adds flags to groups of a parser and keeps the ranges that `check` enforces."""

    parser: Parser
    ranges: dict[str, tuple[str, Callable[[float], bool]]] = field(default_factory=dict)

    def group(self, title: str) -> None:
        self.current = self.parser.add_argument_group(title)

    def value(self, name: str, default, text: str, kind=str, ok=None, expected: str = "", **more) -> None:
        """A flag with a value; `ok` is the test that the value must pass, `expected` says it in words."""
        action = self.current.add_argument(name, type=kind, default=default, help=text, action=_Setting, **more)
        if ok is not None:
            self.ranges[action.dest] = (expected, ok)

    def count(self, name: str, default: int, text: str, least: int = 1) -> None:
        at_least = f"a whole number of at least {least}"
        self.value(name, default, text, kind=int, ok=lambda n: n >= least, expected=at_least, metavar="N")

    def real(self, name: str, default: float, text: str, ok, expected: str) -> None:
        def finite(x: float) -> bool:
            return math.isfinite(x) and ok(x)

        self.value(name, default, text, kind=float, ok=finite, expected=expected, metavar="X")

    def switch(self, name: str, dest: str, const, text: str) -> None:
        """A flag without a value that sets `dest` to `const`; the default is the main flag's."""
        self.current.add_argument(
            name, dest=dest, action=_Setting, nargs=0, const=const, default=argparse.SUPPRESS, help=text
        )

    def out_of_range(self, options: argparse.Namespace) -> list[str]:
        problems = []
        for dest, (expected, ok) in self.ranges.items():
            value = getattr(options, dest)
            if value is not None and not ok(value):
                problems.append(f"--{dest} {value}: expected {expected}")
        return problems


def parse_resize(text: str) -> int | tuple[int, int] | None:
    """`"384"` -> 384 (shorter side), `"512x384"` -> (512, 384) (height, width, stretched), `"none"` -> None.

    Raises UserError for anything else, and for sizes below 1.
    """
    if text == "none":
        return None
    if match := re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text):
        height, width = match.groups()
        return (int(height), int(width)) if width else int(height)
    raise UserError(f"--resize {text}: expected S (shorter side), HxW (height x width) or none")


def device_problems(device: str) -> list[str]:
    """What is wrong with `--device`, if anything; whether the machine has the device is seen later."""
    known = re.fullmatch(r"auto|cpu|cuda(:\d+)?", device)
    return [] if known else [f"--device {device}: expected auto, cpu, cuda or cuda:N"]


def parse_fixes(text: str) -> tuple[str, ...]:
    """`--training_fixes` -> names out of `FIXES`; `all` = optimizer_state,backbone_lr (they imply filter)."""
    if text == "none":
        return ()
    names = ["optimizer_state", "backbone_lr"] if text == "all" else text.split(",")
    for name in names:
        if name not in FIXES:
            raise UserError(f"--training_fixes {text}: expected all, none or a comma list of {', '.join(FIXES)}")
    return tuple(name for name in FIXES if name in names)


def build_parser(
    description: str, backbones: tuple[str, ...], datasets: Iterable[str], fusions: tuple[str, ...]
) -> tuple[Parser, _Flags]:
    """The parser of the train scripts. `backbones[0]` is the default backbone, `fusions[0]` the default fusion."""
    parser = Parser(description)
    flags = _Flags(parser)

    flags.group("data")
    flags.value("--dataset", "koniq-10k", "training and test set", choices=list(datasets))
    flags.value(
        "--dataset_path",
        None,
        "its folder (csv: its file; default: a folder of that name beside the scripts)",
        kind=Path,
        metavar="PATH",
    )
    flags.value(
        "--spaq_path",
        None,
        "folder of SPAQ for the cross test (default: spaq/ or spaq-test/, skipped if absent)",
        kind=Path,
        metavar="PATH",
    )
    flags.switch("--no_spaq", "spaq", False, "no cross test on SPAQ")
    flags.value(
        "--resize",
        None,
        "S: shorter side to S; HxW: stretch to height x width (the public code: 512x384); "
        "none (default: the data set's own, 384 for KonIQ-10k and SPAQ)",
        metavar="SIZE",
    )
    flags.switch("--exif_rotate", "exif_rotate", True, "turn images as their EXIF orientation says")
    flags.switch("--skip_bad_images", "skip_bad_images", True, "drop images that cannot be read, instead of stopping")
    flags.switch("--lower_is_better", "lower_is_better", True, "the scores of --dataset csv mean badness (DMOS)")

    flags.group("patches")
    flags.count("--patch_size", 224, "side of a patch in pixels", least=32)
    flags.count("--train_patch_num", 25, "random crops per training image and epoch")
    flags.count("--test_patch_num", 25, "crops per test image with --test_crop grid or random")
    flags.value("--test_crop", "center", "center (scored once), grid or random", choices=["center", "grid", "random"])
    flags.switch("--test_random_crop", "test_crop", "random", "same as --test_crop random")

    flags.group("model")
    flags.value("--backbone", backbones[0], f"one of {', '.join(backbones)}", metavar="NAME")
    flags.switch("--no_pretrained", "pretrained", False, "start the backbone from random weights")
    flags.value(
        "--backbone_weights",
        None,
        "state dict (torchvision's or timm's names) to start the backbone from, instead of a download",
        kind=Path,
        metavar="PATH",
    )
    flags.value("--fusion", fusions[0], "fusion of the stage maps for the hyper network", choices=list(fusions))
    flags.switch("--use_multiscale", "fusion", "concat", "same as --fusion concat")
    flags.switch("--no_multiscale", "fusion", "none", "same as --fusion none")

    flags.group("loss")
    flags.real(
        "--ranking_loss_alpha",
        0.0,
        "weight of the pairwise ranking loss; 0: L1 alone, 0.3: recommended",
        lambda x: 0 <= x <= 1,
        "a number from 0 to 1",
    )
    flags.real("--ranking_loss_margin", 0.5, "its margin, in score units", lambda x: x >= 0, "a number of at least 0")
    flags.value(
        "--ranking_loss_form",
        "convex",
        "convex: (1-alpha)*L1 + alpha*rank; additive: L1 + alpha*rank",
        choices=["convex", "additive"],
    )

    flags.group("optimisation")
    flags.real("--lr", 2e-5, "learning rate of the backbone", lambda x: x > 0, "a number above 0")
    flags.real("--lr_ratio", 10, "head lr / backbone lr", lambda x: x > 0, "a number above 0")
    flags.real("--weight_decay", 5e-4, "Adam's weight decay", lambda x: x >= 0, "a number of at least 0")
    flags.count("--batch_size", 96, "patches per step (over all processes)")
    flags.count("--epochs", 16, "most epochs per round")
    flags.value(
        "--lr_scheduler",
        "cosine",
        "cosine, step (the published procedure, defects included) or none",
        choices=["cosine", "step", "none"],
    )
    flags.switch("--no_lr_scheduler", "lr_scheduler", "none", "same as --lr_scheduler none")
    flags.value(
        "--training_fixes",
        "none",
        f"repairs of --lr_scheduler step: comma list of {', '.join(FIXES)}; all; none",
        metavar="LIST",
    )
    flags.count("--patience", 5, "stop after N epochs without a better SRCC")
    flags.switch("--no_early_stopping", "early_stopping", False, "always run all epochs")
    flags.value(
        "--select_on",
        "test",
        "what early stopping and the best epoch go by; val: the official validation images, or --val_fraction",
        choices=["test", "val"],
    )
    flags.value(
        "--val_fraction",
        None,
        "with --select_on val: this share of the training images, whole contents, instead of official ones",
        kind=float,
        ok=lambda x: 0 < x < 1,
        expected="a number between 0 and 1",
        metavar="F",
    )
    flags.count("--train_test_num", 1, "rounds, each with the next seed; medians at the end")
    flags.count("--seed", 42, "seed of the first round", least=0)

    flags.group("hardware")
    flags.value("--device", "auto", "auto, cpu, cuda or cuda:N", metavar="NAME")
    flags.value(
        "--precision",
        "auto",
        "of training; auto: bf16 where the hardware has it, else fp32 (scoring is always fp32)",
        choices=["auto", "fp32", "bf16"],
    )
    flags.value(
        "--workers",
        None,
        "processes that cut patches; 0: the training process itself (default: 0 on a CPU, else 4)",
        kind=int,
        ok=lambda n: 0 <= n <= 256,
        expected="0 to 256",
        metavar="N",
    )

    flags.value(
        "--cache_dir",
        None,
        "folder of the decoded images, which later runs map instead of decoding (default: cache/ beside the scripts)",
        kind=Path,
        metavar="PATH",
    )
    flags.switch("--no_cache", "cache", False, "decode into memory, and leave nothing on the disk")
    flags.value(
        "--cache_device",
        "auto",
        "where the decoded images lie while training; auto: on the GPU where they fit",
        choices=["auto", "cpu", "cuda"],
    )
    flags.switch("--compile", "compile", True, "torch.compile the model: slower start, faster steps")
    flags.switch("--no_deterministic", "deterministic", False, "let cuDNN choose faster, non-deterministic kernels")

    flags.group("output")
    flags.value("--log_dir", Path("logs"), "where logs and predictions go", kind=Path, metavar="PATH")
    flags.value("--checkpoint_dir", Path("checkpoints"), "where models go", kind=Path, metavar="PATH")
    flags.value(
        "--resume",
        None,
        "auto: go on with the newest unfinished run of the same settings, if there is one; or PATH of its last.pt",
        metavar="auto|PATH",
    )
    flags.real(
        "--checkpoint_minutes",
        10,
        "save last.pt within an epoch this often",
        lambda x: x >= 0,
        "a number of at least 0",
    )
    flags.switch("--tensorboard", "tensorboard", True, "also write the figures as TensorBoard events beside the log")
    flags.value("--run_name", None, "name of the run (default: from backbone, loss and time)", metavar="NAME")
    parser.set_defaults(
        spaq=True,
        pretrained=True,
        early_stopping=True,
        lower_is_better=False,
        cache=True,
        compile=False,
        deterministic=True,
        exif_rotate=False,
        skip_bad_images=False,
        tensorboard=False,
    )
    return parser, flags


def _contradictions(options: argparse.Namespace, given: Mapping[str, tuple[str, object]]) -> list[str]:
    problems = []
    if options.training_fixes != "none" and options.lr_scheduler != "step":
        problems.append("--training_fixes needs --lr_scheduler step: it repairs that schedule and no other")
    if not options.spaq and options.spaq_path:
        problems.append("contradictory flags: --no_spaq and --spaq_path")
    if options.dataset == "spaq" and options.spaq_path:
        problems.append("--dataset spaq takes its folder from --dataset_path, not --spaq_path")
    if options.backbone_weights and not options.pretrained:
        problems.append("contradictory flags: --no_pretrained and --backbone_weights")
    if not options.early_stopping and "patience" in given:
        problems.append("contradictory flags: --no_early_stopping and --patience")
    if options.lower_is_better and options.dataset != "csv":
        problems.append("--lower_is_better is for --dataset csv: the direction of the other sets is known")
    if options.dataset == "csv" and options.dataset_path is None:
        problems.append("--dataset csv needs --dataset_path FILE.csv (columns image,mos and optional split,group)")
    if "ranking_loss_margin" in given and options.ranking_loss_alpha == 0:
        problems.append("--ranking_loss_margin needs --ranking_loss_alpha above 0")
    if not options.cache and options.cache_dir:
        problems.append("contradictory flags: --no_cache and --cache_dir")
    if options.cache_device == "cuda" and options.device == "cpu":
        problems.append("contradictory flags: --cache_device cuda and --device cpu")
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        problems.append("--tensorboard needs the package tensorboard: pip install tensorboard")
    if options.val_fraction is not None and options.select_on != "val":
        problems.append("--val_fraction needs --select_on val")
    if options.resume not in (None, "auto") and options.run_name is not None:
        problems.append("contradictory flags: --resume PATH and --run_name (the run keeps its name)")
    if options.resume not in (None, "auto") and not Path(options.resume).exists():
        problems.append(f"--resume {options.resume}: no such file; expected auto, a run's last.pt or its folder")
    if options.backbone_weights and not options.backbone_weights.is_file():
        problems.append(f"--backbone_weights {options.backbone_weights}: no such file")
    problems += device_problems(options.device)
    if options.run_name is not None and not re.fullmatch(r"[\w.+=-]{1,150}", options.run_name):
        problems.append(f"--run_name {options.run_name!r}: expected letters, digits and _ . + = - alone")
    return problems


# Flags that change where and how fast a run goes, but none of its figures: a resumed run may differ in them.
NOT_FIGURES = frozenset(
    "device workers cache cache_dir cache_device dataset_path spaq_path log_dir checkpoint_dir checkpoint_minutes "
    "run_name resume demo_defaults tensorboard".split()
)


def figure_settings(options: argparse.Namespace | Mapping[str, object]) -> dict[str, object]:
    """The settings that a run's figures depend on."""
    settings = options if isinstance(options, Mapping) else vars(options)
    return {name: value for name, value in settings.items() if name not in NOT_FIGURES}


def train_options(
    argv: list[str] | None,
    description: str,
    backbones: tuple[str, ...],
    any_backbone: str | None,
    fusions: tuple[str, ...],
    datasets: Mapping[str, str],
    demo: Mapping[str, object],
) -> argparse.Namespace:
    """Parse and check the flags of a train script.

    backbones: the names offered, the default first; any_backbone: a prefix that lets other names through.
    datasets: data set name -> its default `--resize`. demo: defaults that `--dataset demo` brings.
    Returns the settings under their canonical names (aliases folded in), with `demo_defaults` = the
    flags whose value the demo brought. Raises UserError, naming every problem at once.
    """
    parser, flags = build_parser(description, backbones, datasets, fusions)
    options = parser.parse_args(argv)
    given = vars(options).pop("given", {})
    brought = {}
    if options.dataset == "demo":
        brought = {name: value for name, value in demo.items() if name not in given}
        if "backbone_weights" in given:
            brought.pop("pretrained", None)
        vars(options).update(brought)
    options.demo_defaults = brought
    options.spaq_resize = options.resize or datasets["spaq"]
    options.resize = options.resize or datasets[options.dataset]
    problems = flags.out_of_range(options) + _contradictions(options, given)
    for convert in (lambda: parse_resize(options.resize), lambda: parse_fixes(options.training_fixes)):
        try:
            convert()
        except UserError as mistake:
            problems.append(str(mistake))
    if options.backbone not in backbones and not (any_backbone and options.backbone.startswith(any_backbone)):
        more = f" or another timm model named {any_backbone}…" if any_backbone else ""
        problems.append(f"--backbone {options.backbone}: expected one of {', '.join(backbones)}{more}")
    if problems:
        raise UserError("; ".join(problems))
    options.training_fixes = parse_fixes(options.training_fixes)
    return options
