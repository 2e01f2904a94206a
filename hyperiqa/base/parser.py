"""The parser of `command_line.Flags`: argparse that names all mistakes at once, and its help."""

import difflib
import re
import textwrap
from argparse import (
    SUPPRESS,
    Action,
    ArgumentError,
    ArgumentParser,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

from hyperiqa.base.errors import UserError


def typed(value: object) -> str:
    """A default as one types it: `2e-5`, and `hflip vflip` of a list."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(typed, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


class Formatter(RawDescriptionHelpFormatter):
    """Help with each flag's default at the end of its text, and the description as written."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        # A switch takes no value (nargs 0), so its default would mean nothing to the user.
        if action.default in (None, SUPPRESS, []) or action.nargs == 0 or "default" in text:
            return text
        # Not by equality: 0 is a default that is shown.
        return text if action.default is False else f"{text} (default: {typed(action.default)})"

    def _format_args(self, action: Action, default_metavar: str) -> str:
        # argparse says `NAME [NAME ...]`.
        return re.sub(r" \[\S+ \.\.\.\]$", " ...", super()._format_args(action, default_metavar))

    def _format_action_invocation(self, action: Action) -> str:
        return super()._format_action_invocation(action).replace("-h [all], ", "-h, ")


class Parser(ArgumentParser):
    """argparse that gathers all mistakes in `mistakes`, and suggests spellings.

    everyday: the flags that `--help` shows, where not all. expected: setting -> the values that it
    accepts, in words.
    """

    def __init__(self, everyday: Collection[str], **settings: Any):
        super().__init__(add_help=not everyday, **settings)
        self.everyday = everyday
        self.mistakes: list[str] = []
        self.expected: dict[str, str] = {}

    def error(self, message: str) -> NoReturn:
        raise UserError("; ".join([*self.mistakes, message]))

    def read(self, words: Sequence[str] | None) -> Namespace:
        """The options; a flag with a mistake counts as not given."""
        self.mistakes = []
        options, unknown = self.parse_known_args(words)
        # Words behind an unknown flag are most likely its values.
        texts = re.split(r" (?=-)", " ".join(unknown)) if unknown else []
        self.mistakes += map(self._unknown, texts)
        return options

    def _unknown(self, text: str) -> str:
        kind = "unknown flag" if text.startswith("-") else "unexpected argument"
        hint = did_you_mean(re.split("[ =]", text)[0], self._option_string_actions)
        # What was to be a file of flags may be any other file.
        return f"{kind} {textwrap.shorten(text, 80, placeholder=' …')}{hint}"

    def _match_argument(self, action, arg_strings_pattern):
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except ArgumentError:
            # `_get_values` then meets a flag without the values that it needs.
            return 0

    def _get_values(self, action, arg_strings):
        try:
            if arg_strings or action.nargs not in (None, "+"):
                return super()._get_values(action, arg_strings)
        except ArgumentError:
            pass
        self.mistakes.append(self._unaccepted(action, arg_strings))
        # The parser then leaves the setting at its default.
        return SUPPRESS

    def _unaccepted(self, action: Action, words: Sequence[str]) -> str:
        """The message for a flag with words that it does not accept, or without any."""
        hint = ""
        expected = self.expected.get(action.dest, "a value")
        if action.choices:
            words = [word for word in words if word not in action.choices]
            expected = f"one of {', '.join(action.choices)}"
            hint = did_you_mean(" ".join(words), action.choices)
        return f"{' '.join([action.option_strings[-1], *words])}: expected {expected}{hint}"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """` (did you mean WORD?)` with the most similar of the words; "" if none is similar."""
    matches = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    return f" (did you mean {matches[0]}?)" if matches else ""


class Help(Action):
    """`--help` shows the flags of everyday use, `--help all` every flag."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values is None:
            for action in parser._actions:
                if action.option_strings[-1] not in parser.everyday:
                    action.help = SUPPRESS
            parser.epilog = (
                "These are the flags of everyday use; "
                f"--help all shows all {len(parser._actions)} flags."
            )
        parser.print_help()
        parser.exit()


class Setting(Action):
    """Stores a value and the flag that gave it, and notes two flags that contradict each other.

    The same flag twice is no contradiction: the last one counts.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        value = self.const if self.nargs == 0 else values
        given = vars(namespace).setdefault("given", {})
        earlier_flag, earlier_value = given.setdefault(self.dest, (option_string, value))
        if earlier_flag != option_string and earlier_value != value:
            parser.mistakes.append(f"contradictory flags: {earlier_flag} and {option_string}")
        given[self.dest] = (option_string, value)
        setattr(namespace, self.dest, value)
