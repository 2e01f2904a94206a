"""The command line of every program here: the parser, flags with the ranges they must keep, and how a program ends."""

import difflib
import errno
import math
import os
import re
import sys
from argparse import SUPPRESS, Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hyperiqa.base.errors import Interrupted, NothingToDo, UserError
from hyperiqa.base.files import exists_or_on_hub
from hyperiqa.base.version import VERSION

Given = Mapping[str, tuple[str, object]]
Range = tuple[
    str, Callable[[Any], object]
]  # what a flag's value must be, in words, and the test of it
POSITIVE: Range = ("a number above 0", lambda x: x > 0)
NOT_NEGATIVE: Range = ("a number of at least 0", lambda x: x >= 0)
SHARE: Range = ("a number from 0 to 1", lambda x: 0 <= x <= 1)


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit code 2, a signal 128 + its number.
    `main` imports torch itself, after this: OpenMP's threads then spin only shortly while they wait, or two trainings
    on one machine would take each other's cores (docs/performance.md). A setting of the user's stays."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
    sys.stdout, sys.stderr = (stream and _Stream(stream) for stream in (sys.stdout, sys.stderr))
    first = os.environ.get("RANK", "0") in ("", "0")
    if not first:  # of several processes one shows what all do
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        sys.exit(main() or 0)
    except UserError as mistake:
        if not (mistake.already_shown if mistake.already_shown is not None else not first):
            print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
    except NothingToDo as done:
        print(done)
        sys.exit(0)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)


class _Stream:
    """Standard output or error with a ? for what it cannot show. Once its reader has gone, what is written is dropped:
    `| head` has seen enough, and a training goes on with its log."""

    def __init__(self, stream: Any):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        self._stream = stream

    def write(self, text: str) -> int:
        self._unbroken(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._unbroken(self._stream.flush)

    def _unbroken(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as problem:
            if problem.errno not in (errno.EPIPE, errno.EIO):  # closed, or its terminal is gone
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Formatter(RawDescriptionHelpFormatter):
    """Each flag's default at the end of its help; the description as it was written."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        said = "default" in text or action.default in (None, SUPPRESS) or action.nargs == 0
        return text if said else text + " (default: %(default)s)"


class _Parser(ArgumentParser):
    """argparse with one-line errors, no abbreviations, and suggestions for misspelt flags."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = self._option_string_actions
            hints = [difflib.get_close_matches(word.split("=")[0], known, n=1) for word in unknown]
            said = (
                f"{word} (did you mean {hint[0]}?)" if hint else word
                for word, hint in zip(unknown, hints)
            )
            raise UserError(f"unknown argument: {', '.join(said)}")
        return options


class _Setting(Action):
    """Stores a value and which flag gave it, so that two flags that contradict each other are noticed."""

    def __call__(self, parser, namespace, values, option_string=None):
        value = self.const if self.nargs == 0 else values
        given = vars(namespace).setdefault("given", {})
        flag, earlier = given.setdefault(self.dest, (option_string, value))
        if flag != option_string and earlier != value:
            raise UserError(f"contradictory flags: {flag} and {option_string}")
        given[self.dest] = (option_string, value)
        setattr(namespace, self.dest, value)


class Flags:
    """The flags of a program, by groups, each with the test that its value must pass; `parse` names every mistake."""

    several = False  # whether torchrun may start it as several processes

    def __init__(self, description: str | None, usage: str = "%(prog)s [flags]"):
        self.parser = _Parser(
            usage=usage, description=description, formatter_class=_Formatter, allow_abbrev=False
        )
        self.parser.add_argument("--version", action="version", version=VERSION)
        self.current: Any = self.parser
        self.checks: list[Callable[[Namespace], str | None]] = []

    def group(self, title: str) -> None:
        self.current = self.parser.add_argument_group(title)

    def words(self, name: str, text: str, **more) -> None:
        """A positional argument."""
        self.parser.add_argument(name, help=text, **more)

    def value(self, name: str, default, text: str, ok: Range | None = None, **more) -> None:
        """A flag with a value; `ok` says what it must be."""
        dest = self.current.add_argument(
            name, default=default, help=text, action=_Setting, **more
        ).dest
        if ok is not None:
            self._check(
                dest, lambda value: None if ok[1](value) else f"{name} {value}: expected {ok[0]}"
            )

    def _check(self, dest: str, problem: Callable[[Any], str | None]) -> None:
        self.checks.append(
            lambda o: None if (value := getattr(o, dest)) is None else problem(value)
        )

    def count(
        self, name: str, default: int | None, text: str, least: int = 1, most: float = math.inf
    ) -> None:
        """A whole number."""
        expected = (
            f"a whole number of at least {least}" if most == math.inf else f"{least} to {most:g}"
        )
        self.value(
            name, default, text, (expected, lambda n: least <= n <= most), type=int, metavar="N"
        )

    def real(self, name: str, default: float | None, text: str, ok: Range) -> None:
        """A finite number."""
        self.value(
            name,
            default,
            text,
            (ok[0], lambda x: math.isfinite(x) and ok[1](x)),
            type=float,
            metavar="X",
        )

    def path(self, name: str, default: Path | None, text: str, metavar: str = "PATH") -> None:
        self.value(name, default, text, type=Path, metavar=metavar)

    def output(self, name: str, text: str, suffixes: Sequence[str] = ()) -> None:
        """A file to write, with one of these suffixes, in a folder that is there."""

        def problem(path: Path) -> str | None:
            if suffixes and path.suffix.lower() not in suffixes:
                return f"{name} {path}: expected a name that ends in {', '.join(suffixes)}"
            if not path.parent.is_dir():
                return f"{name} {path}: no folder {path.parent}"
            return f"{name} {path}: a folder; expected a file" if path.is_dir() else None

        dest = self.current.add_argument(
            name, type=Path, metavar="FILE", help=text, action=_Setting
        ).dest
        self._check(dest, problem)

    def switch(self, name: str, dest: str, const: object, text: str) -> None:
        """A flag without a value that sets `dest` to `const`: a yes or no, or a short form of another flag."""
        self.current.add_argument(
            name, dest=dest, action=_Setting, nargs=0, const=const, default=SUPPRESS, help=text
        )
        if isinstance(const, bool):
            self.parser.set_defaults(**{dest: not const})

    # Flags that several programs have, each declared here alone.
    def checkpoint(self) -> None:
        kinds = "a model file, a run's folder or hf://USER/NAME"
        self.words("checkpoint", kinds, type=Path, metavar="CHECKPOINT")
        wrong = "no such file or folder; expected"
        self._check(
            "checkpoint",
            lambda path: None if exists_or_on_hub(path) else f"{path}: {wrong} {kinds}",
        )

    def device(self) -> None:
        names = "auto, cpu, cuda, cuda:N or mps"  # whether the machine has it is seen later
        known = re.compile(r"auto|cpu|mps|cuda(:\d+)?").fullmatch
        self.value("--device", "auto", names, (names, known), metavar="NAME")

    def workers(
        self, text: str = "processes that cut patches (default: 0 on a CPU, else 4)", least: int = 0
    ) -> None:
        self.count("--workers", None, text, least, 256)

    def batch_size(self, default: int, text: str = "patches per forward pass") -> None:
        self.count("--batch_size", default, text)

    def cache(self) -> None:
        self.path(
            "--cache_dir",
            None,
            "decoded images, which later runs map (default: cache/ beside the scripts)",
        )
        self.switch(
            "--no_cache", "cache", False, "decode into memory, and leave nothing on the disk"
        )
        contradictory = "contradictory flags: --no_cache and --cache_dir"
        self.checks.append(
            lambda options: contradictory if options.cache_dir and not options.cache else None
        )

    def images(self, resize: str) -> None:
        """How images are read; resize: what holds where the flag is not given."""
        text = f"S: shorter side to S; HxW: stretch to height x width; none ({resize})"
        self.value("--resize", None, text, metavar="SIZE")
        self._check("resize", lambda size: size and problem_of(parse_resize, size))

    def skip_bad_images(self) -> None:
        self.switch(
            "--skip_bad_images",
            "skip_bad_images",
            True,
            "drop images that cannot be read instead of stopping",
        )

    def parse(
        self,
        argv: Sequence[str] | None = None,
        problems: Callable[[Namespace, Given], Iterable[str]] = lambda options, given: (),
        prepare: Callable[[Namespace, Given], object] = lambda options, given: None,
    ) -> Namespace:
        """The flags, all checked: ranges first, then the program's own `problems(options, given)`.
        given: the settings that the user gave -> (flag, value). prepare(options, given) fills in what follows from
        other flags, before the checks. Raises UserError naming every mistake."""
        if (processes := os.environ.get("WORLD_SIZE", "1")) not in (
            "",
            "0",
            "1",
        ) and not self.several:
            raise UserError(
                f"WORLD_SIZE is {processes}, as of torchrun; expected one process: each would do it all"
            )
        options = self.parser.parse_args(argv)
        given = vars(options).pop("given", {})
        prepare(options, given)
        found = [problem for check in self.checks if (problem := check(options))]
        if found := [*found, *problems(options, given)]:
            raise UserError("; ".join(found))
        return options


def without_flags(words: Sequence[str], *flags: str) -> list[str]:
    """A command's words without these flags and their values."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word.partition("=")[0] in flags
        kept += [] if dropping else [word]
    return kept


def problem_of(check: Callable[..., object], *values: object) -> str | None:
    """What `check(*values)` has to say against the values, if anything."""
    try:
        check(*values)
    except UserError as mistake:
        return str(mistake)
    return None


def parse_resize(text: str) -> int | tuple[int, int] | None:
    """`"384"` -> 384 (shorter side), `"512x384"` -> (512, 384) (height, width, stretched), `"none"` -> None.
    Raises UserError for anything else, and for sizes below 1."""
    if text == "none":
        return None
    if match := re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text):
        height, width = match.groups()
        return (int(height), int(width)) if width else int(height)
    raise UserError(f"--resize {text}: expected S (shorter side), HxW (height x width) or none")
