"""The command line of every program: the parser, flags with checked values, and how a program ends.

A program makes a `Flags`, adds its flags by methods such as `count` and `path`, and calls `parse`.
Its `main` runs inside `run_tool`. Nothing here imports torch, so mistakes are reported at once.
"""

import math
import os
import re
import shlex
import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hyperiqa.base import errors, files, parser, public_models, terminal, version

# The settings that the user gave: setting -> (flag, value).
Given = Mapping[str, tuple[str, object]]
# The values that a flag accepts: in words, and as a test of a value.
Range = tuple[str, Callable[[Any], object]]
POSITIVE: Range = ("a number above 0", lambda x: x > 0)
NOT_NEGATIVE: Range = ("a number of at least 0", lambda x: x >= 0)
SHARE: Range = ("a number from 0 to 1", lambda x: 0 <= x <= 1)


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and exit with its code.

    A `UserError` becomes one line on stderr and exit code 2, `NothingToDo` one line on stdout and
    exit code 0, a signal exit code 128 + its number. `main` imports torch itself, because the
    setting of OpenMP counts only before that.
    """
    # By default OpenMP's threads spin for long while they wait, and two trainings on one machine
    # would take each other's cores (docs/performance.md). A setting of the user's stays.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
    # A stream is None where Python was started without a console.
    sys.stdout = sys.stdout and terminal.Stream(sys.stdout)
    sys.stderr = sys.stderr and terminal.Stream(sys.stderr)
    # Several processes do the same work; only the first one shows it.
    is_first = os.environ.get("RANK", "0") in ("", "0")
    if not is_first:
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        sys.exit(main() or 0)
    except errors.UserError as mistake:
        already_shown = not is_first if mistake.already_shown is None else mistake.already_shown
        if not already_shown:
            print(f"error: {terminal.printable(str(mistake))}", file=sys.stderr)
        sys.exit(2)
    except errors.NothingToDo as notice:
        print(terminal.printable(str(notice)))
        sys.exit(0)
    except errors.Interrupted as interruption:
        sys.exit(128 + interruption.signum)


class Flags:
    """The flags of a program, in groups, with the checks that `parse` makes."""

    # Whether torchrun may start the program as several processes.
    several = False

    def __init__(
        self,
        description: str | None,
        usage: str = "%(prog)s [flags]",
        everyday: Collection[str] = (),
    ):
        """everyday: the flags that `--help` shows where there are too many; empty: all of them."""
        # An abbreviation would mean another flag as soon as a later version adds one.
        self.parser = parser.Parser(
            everyday,
            usage=usage,
            description=description,
            formatter_class=parser.Formatter,
            allow_abbrev=False,
        )
        if everyday:
            self.parser.add_argument(
                "-h",
                "--help",
                action=parser.Help,
                nargs="?",
                choices=["all"],
                default=SUPPRESS,
                metavar="all",
                help="show the flags of everyday use; --help all shows every flag",
            )
        self.parser.add_argument(
            "--version",
            action="version",
            version=version.VERSION,
            help="show the version of this program and exit",
        )
        self.current: Any = self.parser
        # Each looks at the parsed flags and returns the user's mistake, or None.
        self.checks: list[Callable[[Namespace], str | None]] = []

    def group(self, title: str) -> None:
        """Begin a group of the help text; the flags that follow belong to it."""
        self.current = self.parser.add_argument_group(title)

    def words(self, name: str, text: str, **more) -> None:
        self.parser.add_argument(name, help=text, **more)

    def value(self, name: str, default, text: str, ok: Range | None = None, **more) -> None:
        """Add a flag with a value.

        ok: the values that it accepts.
        more: further arguments of argparse's `add_argument`.
        """
        action = self.current.add_argument(
            name, default=default, help=text, action=parser.Setting, **more
        )
        if ok is not None:
            expected, accepts = ok
            self.parser.expected[action.dest] = expected
            self._check(
                action.dest,
                lambda value: None if accepts(value) else f"{name} {value}: expected {expected}",
            )

    def _check(self, dest: str, problem: Callable[[Any], str | None]) -> None:
        def check(options: Namespace) -> str | None:
            value = getattr(options, dest)
            return None if value is None else problem(value)

        self.checks.append(check)

    def count(
        self, name: str, default: int | None, text: str, least: int = 1, most: float = math.inf
    ) -> None:
        """Add a flag whose value is a whole number from `least` to `most`."""
        limits = f"from {least} to {most:g}" if most < math.inf else f"of at least {least}"
        self.value(
            name,
            default,
            text,
            (f"a whole number {limits}", lambda number: least <= number <= most),
            type=int,
            metavar="N",
        )

    def real(self, name: str, default: float | None, text: str, ok: Range) -> None:
        """Add a flag whose value is a finite number."""
        expected, accepts = ok
        self.value(
            name,
            default,
            text,
            (expected, lambda number: math.isfinite(number) and accepts(number)),
            type=float,
            metavar="X",
        )

    def path(self, name: str, default: Path | None, text: str, metavar: str = "PATH") -> None:
        self.value(name, default, text, type=Path, metavar=metavar)

    def output(
        self, name: str, text: str, suffixes: Sequence[str] = (), or_folder: bool = False
    ) -> None:
        """Add a flag for a file to write, with one of the suffixes, in a folder that exists.

        or_folder: whether a folder may be written as well.
        """

        def problem(path: Path) -> str | None:
            if suffixes and path.suffix.lower() not in suffixes:
                return f"{name} {path}: expected a name that ends in {', '.join(suffixes)}"
            if not path.parent.is_dir():
                return f"{name} {path}: no folder {path.parent}"
            if path.is_dir() and not or_folder:
                return f"{name} {path}: a folder; expected a file"
            return None if files.can_write(path) else f"{name} {path}: cannot be written there"

        action = self.current.add_argument(
            name, type=Path, metavar="FILE", help=text, action=parser.Setting
        )
        self._check(action.dest, problem)

    def switch(self, name: str, dest: str, const: object, text: str) -> None:
        """Add a flag without a value that sets `dest` to `const`.

        It is a yes or no, or a short form of another flag. A yes or no brings its opposite as the
        default; the short form leaves the default to the other flag.
        """
        self.current.add_argument(
            name,
            dest=dest,
            action=parser.Setting,
            nargs=0,
            const=const,
            default=SUPPRESS,
            help=text,
        )
        if isinstance(const, bool):
            self.parser.set_defaults(**{dest: not const})

    # Flags that several programs share.

    def checkpoint(self, also: bool = False) -> None:
        self.words(
            "checkpoint",
            "a model file, a run's folder, hf://USER/NAME or the name of a public model",
            type=Path,
            metavar="CHECKPOINT",
        )
        self.checks.append(
            lambda options: "; ".join(
                public_models.no_such_model(path)
                for path in [options.checkpoint, *getattr(options, "also", [])]
                if not files.exists_or_on_hub(path)
            )
        )
        if also:
            self.value(
                "--also",
                [],
                "further models: the score is the mean of all models' scores, on the scale of "
                "CHECKPOINT; all words behind the flag are models, so images come before it",
                nargs="+",
                type=Path,
                metavar="CHECKPOINT",
            )

    def device(self) -> None:
        """Add `--device`. Only its form is checked: whether it exists, only torch knows."""
        names = "auto, cpu, cuda, cuda:N or mps"
        self.value(
            "--device",
            "auto",
            f"device to compute on: {names}",
            (names, re.compile(r"auto|cpu|mps|cuda(:\d+)?").fullmatch),
            metavar="NAME",
        )

    def workers(
        self,
        text: str = "processes that cut patches (default: 0 on a CPU, otherwise 4)",
        least: int = 0,
    ) -> None:
        self.count("--workers", None, text, least, 256)

    def batch_size(self, default: int, text: str = "patches that are scored at a time") -> None:
        self.count("--batch_size", default, text)

    def cache(self) -> None:
        self.path(
            "--cache_dir",
            None,
            "folder that keeps decoded images for later runs (default: cache beside the scripts)",
        )
        self.switch(
            "--no_cache",
            "cache",
            False,
            "keep decoded images in memory and write none to the disk",
        )
        self.checks.append(
            lambda options: (
                "contradictory flags: --no_cache and --cache_dir"
                if options.cache_dir and not options.cache
                else None
            )
        )

    def images(self, resize: str) -> None:
        """Add `--resize`; resize: the help's words for what holds where the flag is not given."""
        self.value(
            "--resize",
            None,
            "size of the images in pixels: S scales the shorter side to S, maxS only where it is "
            f"longer, HxW stretches to height H and width W, none keeps the size ({resize})",
            metavar="SIZE",
        )
        # An empty text counts as a flag that is not given.
        self._check("resize", lambda size: problem_of(parse_resize, size) if size else None)

    def skip_bad_images(self) -> None:
        self.switch(
            "--skip_bad_images",
            "skip_bad_images",
            True,
            "leave out images that cannot be read instead of stopping at them",
        )

    def parse(
        self,
        argv: Sequence[str] | None = None,
        problems: Callable[[Namespace, Given], Iterable[str]] = lambda options, given: (),
        complete: Callable[[Namespace, Given], Iterable[str]] = lambda options, given: (),
    ) -> Namespace:
        """Parse and check the flags; one UserError names every mistake.

        argv: the words; None means those of this process.
        problems(options, given): the program's own checks, made after those of the single flags.
        complete(options, given): fills in settings that follow from other flags, before all checks,
            and returns the mistakes that it met, which `problems` then need not name.
        given: the settings that the user gave -> (flag, value).
        """
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes not in ("", "0", "1") and not self.several:
            raise errors.UserError(
                f"WORLD_SIZE is {processes}, which torchrun sets; expected 1, since each of "
                "several processes would do all the work again"
            )
        options = self.parser.read(argv)
        given = vars(options).pop("given", {})
        # All settings are complete before the first check looks at them.
        incomplete = list(complete(options, given))
        mistakes = [*self.parser.mistakes, *(check(options) for check in self.checks)]
        message = "; ".join(filter(None, [*mistakes, *incomplete, *problems(options, given)]))
        if message:
            raise errors.UserError(message)
        return options

    def given(self, words: Sequence[str]) -> Given:
        """The settings that these words give, not checked any further. Raises UserError."""
        options = self.parser.read(words)
        if self.parser.mistakes:
            raise errors.UserError("; ".join(self.parser.mistakes))
        return vars(options).get("given", {})

    def words_of(self, given: Given) -> list[str]:
        """Words that give these settings."""
        words = []
        for flag, value in given.values():
            if self.parser._option_string_actions[flag].nargs == 0:
                words.append(flag)
            elif isinstance(value, list):
                words += [flag, *map(str, value)]
            else:
                words.append(f"{flag}={value}")
        return words


def with_recipes(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command with each `@FILE` replaced by those in the file; the files' names.

    A file holds flags and values, quoted as in a shell, with line breaks anywhere between them, and
    comments after `#`. Raises UserError.
    """
    expanded: list[str] = []
    for word in words:
        if word.startswith("@"):
            with errors.reading_file(Path(word[1:]), "cannot be read", ValueError):
                expanded += shlex.split(Path(word[1:]).read_text("utf-8"), comments=True)
        else:
            expanded.append(word)
    return expanded, [word[1:] for word in words if word.startswith("@")]


def without_flags(words: Sequence[str], *flags: str) -> list[str]:
    """The words of a command without these flags and their values."""
    kept = []
    dropping = False
    for word in words:
        # A flag's values reach to the next flag.
        if word.startswith("--"):
            dropping = word.partition("=")[0] in flags
        if not dropping:
            kept.append(word)
    return kept


def problem_of(check: Callable[..., object], *values: object) -> str | None:
    """The text of the UserError that `check(*values)` raises, or None."""
    try:
        check(*values)
    except errors.UserError as mistake:
        return str(mistake)
    return None


def parse_resize(text: str) -> int | tuple[int, int] | None:
    """Turn the value of `--resize` into the target of a resize.

    `"384"` and `"max384"` -> 384 (length of the shorter side), `"512x384"` -> (512, 384) (height
    and width, stretched), `"none"` -> None. Raises UserError for anything else, and for sizes below
    1.
    """
    if text == "none":
        return None
    match = re.fullmatch(r"(?:max)?([1-9]\d{0,4})|([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise errors.UserError(
            f"--resize {text}: expected S (shorter side), maxS (at most S), "
            "HxW (height x width) or none"
        )
    side, height, width = match.groups()
    return int(side) if side else (int(height), int(width))
