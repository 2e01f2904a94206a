"""Exact resume over all choices: every row of a covering array, killed within an epoch and taken up again, is compared bit
for bit with the same run undisturbed. By default a dozen rows; `--runslow` runs all."""

import itertools
import signal

import covering
import pytest
from helpers import save_teacher, write_koniq
from processes import assert_same_results, results

from hyperiqa.model import fusion, hyper
from hyperiqa.training import augmentations, losses, optimizers, schedules

ROWS = covering.covering_array()
IN_CI = range(0, len(ROWS), -(-len(ROWS) // 12))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("choices")
    write_koniq(root / "koniq", 12, 6, votes=True)
    save_teacher(root / "teacher.pkl")
    return root


def command(place, row, folder):
    """Three epochs of three steps, the last one smaller; the state is saved after each."""
    return [
        "--dataset_path",
        place / "koniq",
        *"--no_spaq --no_pretrained --patch_size 64 --resize 72".split(),
        *"--train_patch_num 2 --batch_size 9 --epochs 3 --lr 1e-3".split(),
        *"--precision fp32".split(),
        "--log_dir",
        folder / "logs",
        "--checkpoint_dir",
        folder / "checkpoints",
        "--cache_dir",
        place / "cache",
        *"--checkpoint_minutes 0 --resume auto".split(),
        *covering.flags_of(row, place / "teacher.pkl"),
    ]


def rows():
    return [
        pytest.param(n, id=f"row{n}", marks=() if n in IN_CI else pytest.mark.slow)
        for n in range(len(ROWS))
    ]


@pytest.mark.parametrize("n", rows())
def test_killed_within_an_epoch_and_taken_up_again_nothing_differs(launcher, place, tmp_path, n):
    row, step = ROWS[n], (2, 3, 5, 6, 8, 9)[n % 6]
    whole, cut = (command(place, row, tmp_path / name) for name in ("whole", "cut"))
    code, _, errors = launcher.run("train_timm.py", whole)
    assert code == 0 and errors == [], (row, errors)
    kill = ["hyperiqa.training.engine:EpochProgress.add", step, signal.SIGKILL]
    assert launcher.run("train_timm.py", cut, kill=kill)[0] == -signal.SIGKILL
    code, out, errors = launcher.run("train_timm.py", cut)
    assert (
        code == 0 and errors == [] and f"epoch {(step - 1) // 3 + 1}, step {(step - 1) % 3}" in out
    ), (
        row,
        out,
        errors,
    )
    assert_same_results(results(tmp_path / "cut"), results(tmp_path / "whole"))


def test_every_two_choices_meet_in_some_row():
    """Counted plainly, over the axes' own dictionaries."""
    choices = {
        "fusion": fusion.FUSIONS,
        "hyper": hyper.HYPERS,
        "loss": [*losses.LOSSES, "votes"],
        "optimizer": optimizers.OPTIMIZERS,
    }
    assert all(set(covering.AXES[axis]) == set(named) for axis, named in choices.items())
    assert set(schedules.SCHEDULES) < {*covering.AXES["schedule"]}
    assert set(augmentations.AUGMENTATIONS) == {*covering.AXES["augment"]["all"][1:]}
    met, refused = set(), 0
    for row in ROWS:
        met |= {tuple(sorted(pair)) for pair in itertools.combinations(row.items(), 2)}
    for a, b in itertools.combinations(covering.AXES, 2):
        for x, y in itertools.product(covering.AXES[a], covering.AXES[b]):
            if tuple(sorted([(a, x), (b, y)])) not in met:
                refused += 1
                assert frozenset({(a, x), (b, y)}) in covering.BANNED
    assert refused == len(covering.BANNED) and len(ROWS) < 70
