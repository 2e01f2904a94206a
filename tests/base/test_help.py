"""`--help` of every command, as a user reads it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import train_resnet
import train_swin
import train_timm
from hyperiqa.base.command_line import with_recipes
from hyperiqa.base.errors import UserError
from hyperiqa.training.flags import EVERYDAY, train_flags
from hyperiqa.training.options import train_options

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {"train_swin": train_swin, "train_resnet": train_resnet, "train_timm": train_timm}
OTHERS = "predict evaluate export certify compare_logs report search benchmark make_demo_dataset"


def shown(capsys, script, *words):
    with pytest.raises(SystemExit) as stopped:
        train_flags(script.__doc__, script.SCRIPT).parse(words)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def check_lines(text):
    assert [line for line in text.splitlines() if len(line) > 80] == []
    defaults = re.findall(r"\(default: ([^)]*)\)", " ".join(text.split()))
    assert [default for default in defaults if re.search(r"\[|\('|False|e-0", default)] == []


@pytest.mark.parametrize("name", TRAINING)
def test_help_shows_the_flags_of_everyday_use_and_help_all_every_flag(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    script = TRAINING[name]
    actions = train_flags(None, script.SCRIPT).parser._actions
    everyday, complete = shown(capsys, script, "--help"), shown(capsys, script, "--help", "all")
    for text, names in ((everyday, EVERYDAY), (complete, {a.option_strings[-1] for a in actions})):
        check_lines(text)
        assert set(re.findall(r"^  (?:-h, )?(--\w+)", text, re.M)) == names
    assert 18 <= len(EVERYDAY) <= 26
    assert f"--help all shows all {len(actions)} flags." in " ".join(everyday.split())
    # Each text is one phrase: it begins small, without a full stop at its end.
    for action in actions:
        assert re.match(r"[a-z]|GPUs", action.help) and action.help[-1] not in ".,;:", action.help


def test_the_other_commands_help_is_as_wide_as_a_terminal():
    script = (
        "import os, runpy, sys\n"
        "os.environ['COLUMNS'] = '80'\n"
        f"for name in {OTHERS.split()}:\n"
        "    sys.argv = [name + '.py', '--help']\n"
        "    try:\n        runpy.run_path(name + '.py', run_name='__main__')\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "assert not {'torch', 'scipy.stats'} & sys.modules.keys(), 'heavy imports'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("usage:") == len(OTHERS.split())
    check_lines(done.stdout)


def test_a_recipe_stands_for_its_words_and_typed_flags_win(tmp_path):
    recipe = tmp_path / "mine.txt"
    recipe.write_text(
        "# it's mine\n\n--lr 1e-3  # high\n--augment hflip vflip\n--dataset 'csv:my set=a b.csv'\n"
    )
    words, recipes = with_recipes([f"@{recipe}", "--lr", "1e-4"])
    expected = ["--lr", "1e-3", "--augment", "hflip", "vflip", "--dataset", "csv:my set=a b.csv"]
    assert (words, recipes) == ([*expected, "--lr", "1e-4"], [str(recipe)])


@pytest.mark.parametrize("content", [None, b"--run_name 'open", b"\xff--lr 1"])
def test_a_recipe_that_cannot_be_read_is_one_line(content, tmp_path):
    recipe = tmp_path / "mine.txt"
    if content is not None:
        recipe.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.txt: cannot be read: .+") as raised:
        with_recipes([f"@{recipe}"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("recipe", "script", "expected"),
    [
        (
            "hyperiqa",
            train_resnet,
            {
                "lr_scheduler": "step",
                "train_test_num": 10,
                "test_crop": "random",
                "epochs": 16,
                "early_stopping": False,
            },
        ),
        (
            "smart_iqa",
            train_swin,
            {"fusion": "attention", "lr": 5e-7, "clip_grad": 1, "batch_size": 32},
        ),
        (
            "smart_iqa_early",
            train_swin,
            {"fusion": "direct", "test_crop": "center", "train_patch_num": 20},
        ),
    ],
)
def test_the_recipes_are_settings_of_their_script(recipe, script, expected):
    words, _ = with_recipes([f"@{ROOT}/recipes/{recipe}.txt"])
    options = vars(train_options(words, None, script.SCRIPT))
    assert {name: options[name] for name in expected} == expected
