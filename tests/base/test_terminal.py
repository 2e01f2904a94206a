import io
import sys

import pytest
from tqdm import tqdm

from hyperiqa.base.command_line import Flags
from hyperiqa.base.errors import UserError, first_five
from hyperiqa.base.terminal import Stream, printable

# Clears the screen and claims success, in the ways that terminals know.
STEERING = {
    "\x1b[2J\x1b[32mall reproduced\x1b[0m": r"\x1b[2J\x1b[32mall reproduced\x1b[0m",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b2J": r"\x9b2J",
    "a\rb\x7f\x08": r"a\rb\x7f\x08",
    "photo\u202egpj.exe\u2066": r"photo\u202egpj.exe\u2066",
    "\u2028next": r"\u2028next",
    "latin\udce9.jpg": r"latin\udce9.jpg",
    "täst 山\u200d\xa0.jpg": "täst 山\u200d\xa0.jpg",
}


@pytest.mark.parametrize("text", STEERING)
def test_no_name_steers_the_terminal(text, run_main):
    assert (
        printable(text) == STEERING[text] and printable(f"{text}\n\t") == rf"{STEERING[text]}\n\t"
    )

    def main():
        print(f"a table\twith {text}")
        print(f"two\nlines with {text}", file=sys.stderr)
        raise UserError(f"{text}\nall reproduced: no such file")

    done = run_main("tool", main, code=2)
    assert done.stdout == f"a table\twith {STEERING[text]}\n"
    assert done.stderr == (
        f"two\nlines with {STEERING[text]}\n"
        f"error: {STEERING[text]}\\nall reproduced: no such file\n"
    )
    assert first_five([text + "\n"]) == STEERING[text] + r"\n"


@pytest.mark.parametrize("words", [["--nosuch\x1b[2J"], ["--number", "\x1b[2J"]])
def test_no_argument_steers_the_terminal(words, run_main):
    def main():
        flags = Flags("a tool")
        flags.count("--number", 1, "a number")
        flags.parse(words)

    said = run_main("tool", main, code=2).stderr
    assert said.startswith("error: ") and r"\x1b[2J" in said and "\x1b" not in said


def bars(file):
    """What two bars write, the inner one below the outer one."""
    with tqdm(range(3), "outer", file=file, ncols=60, mininterval=0) as outer:
        for _ in outer:
            for _ in tqdm(range(2), "inner", file=file, ncols=60, leave=False, mininterval=0):
                pass
    return file


def test_bars_are_drawn_as_ever(monkeypatch):
    monkeypatch.setattr("tqdm.std.time", lambda: 1.0)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    plain = bars(io.StringIO()).getvalue()
    assert bars(Stream(io.StringIO())).getvalue() == plain
    assert "\r" in plain and "\x1b[A" in plain


def test_the_text_of_a_bar_steers_nothing():
    file = Stream(io.StringIO())
    with tqdm(range(3), "Decoding \x1b[2J\rall reproduced", file=file, ncols=80) as bar:
        list(bar)
    shown = file.getvalue()
    assert r"Decoding \x1b[2J\rall reproduced:" in shown and "\x1b" not in shown
    assert all(not part or part.startswith(("Decoding", " ")) for part in shown.split("\r"))
