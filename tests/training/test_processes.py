"""One run by several processes: the same result as by one, for every choice, and an end for all when one ends."""

import itertools
import json
import math
import signal

import covering
import pytest
from helpers import save_teacher, write_koniq
from processes import assert_same_but_for_stops, results

ROWS = covering.covering_array()
# With and without batch norm, with stochastic depth; what draws at random, and what looks at all images.
SWIN = ["--backbone", "swin_nano", "--lr", 1e-4]
CHOICES = {
    "resnet": [],
    "swin": [*SWIN, "--layer_decay", 0.7],
    "ranking": ["--ranking_loss_alpha", 0.3, "--frozen_until", 1],
    "srcc": [*SWIN, "--loss", "srcc", "--drop_path", 0.3],
    "plcc": ["--loss", "plcc", "--drop_path", 0.3],
    "fidelity": ["--backbone", "test_efficientnet", "--loss", "fidelity"],
    "votes": ["--loss", "fidelity", "--fidelity_sigma", "votes"],
    "contrastive": [*SWIN, "--contrastive_weight", 1, "--fusion", "attention"],
    "drawn": [
        *"--dropout 0.3 --mixup 0.4 --cutmix 1 --label_noise 2".split(),
        *"--augment rot90 blur".split(),
    ],
    "transformer": [*SWIN, "--hyper", "transformer", "--dropout", 0.2, "--ema", 0.9],
    "mlp": ["--backbone", "test_vit", "--head", "mlp", "--pool", "both", "--dropout", 0.2],
    "mse": ["--loss", "mse"],
    "smooth": ["--loss", "smooth_l1"],
    "taught": ["--teacher", "TEACHER", "--clip_grad", 1],
    "step": ["--lr_scheduler", "step"],
    "stored": ["--freeze_backbone", "--fixed_crops"],
    "lora": [*SWIN, "--lora", 2, "--drop_path", 0.3, "--head", "mlp"],
    "parts": [
        *[*SWIN, "--ranking_loss_alpha", 0.3, "--dropout", 0.3, "--mixup", 0.4],
        *["--accumulate", 3, "--grad_checkpointing"],
    ],
    "checkpoints": ["--backbone", "test_efficientnet", "--grad_checkpointing"],
}
SLOW = (
    "checkpoints",
    "mse",
    "smooth",
    "plcc",
    "fidelity",
    "votes",
    "transformer",
    "taught",
    "stored",
    "lora",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Thirteen images: the last batch has fewer rows than there are processes."""
    root = tmp_path_factory.mktemp("distributed")
    write_koniq(root / "koniq", 13, 70, votes=True)
    save_teacher(root / "teacher.pkl")
    return root


def command(place, folder, flags, *more):
    flags = [place / "teacher.pkl" if flag == "TEACHER" else flag for flag in flags]
    flags = [
        *(() if "--backbone" in flags else ("--backbone", "resnet18")),
        *(() if "--lr" in flags else ("--lr", 1e-5)),
        *flags,
    ]
    return [
        "--dataset_path",
        place / "koniq",
        *"--no_spaq --no_pretrained --patch_size 64 --resize 72".split(),
        *"--train_patch_num 2 --batch_size 12 --epochs 3 --precision fp32".split(),
        "--log_dir",
        folder / "logs",
        "--checkpoint_dir",
        folder / "checkpoints",
        "--cache_dir",
        place / "cache",
        *"--checkpoint_minutes 0 --run_name r".split(),
        *flags,
        *more,
    ]


def epochs_of(folder):
    lines = (folder / "logs" / "r.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["type"] == "epoch"]


def losses_apart(found, expected):
    """The largest relative difference of the parts of the training loss, epoch by epoch."""
    return [
        max(
            abs(a["train"][name] - b["train"][name]) / abs(b["train"][name] or 1)
            for name in b["train"]
            if name not in ("srcc", "plcc")
        )
        for a, b in zip(found, expected, strict=True)
    ]


@pytest.fixture(scope="module")
def alone(place, launcher, tmp_path_factory):
    """flags -> the folder of the run by one process."""
    made = {}

    def run(flags, threads=1):
        key = repr((flags, threads))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("alone")
            code, _, errors = launcher.run(
                "train_timm.py", command(place, made[key], flags), threads=threads
            )
            assert code == 0, errors
        return made[key]

    return run


def assert_same_by(world, flags, place, launcher, alone, folder):
    codes, _, errors = launcher.run("train_timm.py", command(place, folder, flags), world=world)
    assert codes == [0] * world, errors
    found, expected = epochs_of(folder), epochs_of(alone(flags))
    apart, limits = losses_apart(found, expected), [1e-5, 1e-3, 1e-3]
    if any(
        a > limit for a, limit in zip(apart, limits)
    ):  # more than rounding? One process is not exact either
        other = losses_apart(epochs_of(alone(flags, threads=2)), expected)
        limits = [max(limit, 3 * noise) for limit, noise in zip(limits, other)]
    print(
        f"{world}: {' '.join(map(str, flags))}:",
        *(f"{each:.1e}" for each in apart),
        "limits",
        *limits,
    )
    assert all(a <= limit for a, limit in zip(apart, limits))
    best = [
        max(each, key=lambda e: e["test"]["srcc"] or -math.inf)["epoch"]
        for each in (found, expected)
    ]
    assert best[0] == best[1]


@pytest.mark.parametrize(
    ("name", "world"),
    [
        pytest.param(
            name,
            world,
            marks=[pytest.mark.slow] if name in SLOW or world != 2 + 2 * (k % 2) else [],
        )
        for (k, name), world in itertools.product(enumerate(CHOICES), (2, 4))
    ],
)
def test_several_processes_train_as_one(name, world, place, launcher, alone, tmp_path):
    assert_same_by(world, CHOICES[name], place, launcher, alone, tmp_path)


def train(place, launcher, folder, world, *more, **fault):
    return launcher.run(
        "train_timm.py", command(place, folder, CHOICES["ranking"], *more), world=world, **fault
    )


def test_a_lost_process_ends_all_and_another_number_goes_on(place, launcher, alone, tmp_path):
    fault = ["hyperiqa.training.optimizers:TrainedModel.after_step", 5, signal.SIGKILL]
    codes, _, errors = train(place, launcher, tmp_path, 4, kill=fault, rank=2)
    # The others learn of it at once: what they wait for at most is a day.
    assert codes[2] == -signal.SIGKILL and [*codes[:2], codes[3]] == [2, 2, 2]
    assert errors == ["error: a process of the run was lost; --resume auto goes on"]
    records = [
        json.loads(line) for line in (tmp_path / "logs" / "r.jsonl").read_text().splitlines()
    ]
    assert records[-1]["status"] == "failed"

    assert train(place, launcher, tmp_path, 2, "--resume", "auto")[0] == [0, 0]
    assert all(
        a < 1e-3 for a in losses_apart(epochs_of(tmp_path), epochs_of(alone(CHOICES["ranking"])))
    )


def test_a_signal_to_one_process_saves_all_and_the_same_number_goes_on_exactly(
    place, launcher, tmp_path
):
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    assert train(place, launcher, whole, 3)[0] == [0, 0, 0]
    fault = ["hyperiqa.training.optimizers:TrainedModel.after_step", 4, signal.SIGTERM]
    codes, output, errors = train(
        place, launcher, folder, 3, "--checkpoint_minutes", 10, kill=fault, rank=2
    )
    assert codes == [128 + signal.SIGTERM] * 3 and errors == []
    assert "Interrupted" in output and "torchrun --nproc_per_node 3" in output
    assert train(place, launcher, folder, 3, "--resume", "auto")[0] == [0, 0, 0]
    assert_same_but_for_stops(results(folder), results(whole))


def test_what_is_wrong_is_said_once(place, launcher, tmp_path):
    """A loss that is not finite, which all see; a folder that the first alone cannot write; a flag."""
    codes, _, errors = train(place, launcher, tmp_path / "a", 2, "--lr", 1e30)
    assert (
        codes == [2, 2]
        and len(errors) == 1
        and errors[0].startswith("error: the loss is nan in epoch 1, step 2;")
    )
    (tmp_path / "file").write_text("")
    codes, _, errors = train(
        place, launcher, tmp_path / "b", 2, "--checkpoint_dir", tmp_path / "file" / "x"
    )
    assert codes == [2, 2] and len(errors) == 1 and "cannot write logs or checkpoints" in errors[0]
    codes, _, errors = train(place, launcher, tmp_path / "c", 2, "--lr", -1)
    assert codes == [2, 2] and errors == ["error: --lr -1.0: expected a number above 0"]


def test_a_full_disk_of_the_first_process_ends_all(place, launcher, tmp_path):
    codes, _, errors = train(place, launcher, tmp_path, 2, fsize=2_000_000)
    assert codes == [2, 2] and len(errors) == 1 and "cannot be written: File too large" in errors[0]


def test_a_bad_image_ends_all(place, launcher, tmp_path):
    write_koniq(tmp_path / "koniq", 6, 4)
    (tmp_path / "koniq" / "train" / "train_3.jpg").write_bytes(b"no image")
    codes, _, errors = train(
        place, launcher, tmp_path, 2, "--dataset_path", tmp_path / "koniq", "--cache_dir", tmp_path
    )
    assert codes == [2, 2] and len(errors) == 1 and "1 of 10 images cannot be read" in errors[0]


def test_every_process_says_what_it_takes(place, launcher, tmp_path):
    assert train(place, launcher, tmp_path, 2, "--epochs", 1, "--frozen_until", 0)[0] == [0, 0]
    (record,) = (
        r
        for r in map(json.loads, (tmp_path / "logs" / "r.jsonl").open())
        if r["type"] == "processes"
    )
    assert [set(each) for each in record["processes"]] == [{"start", "step", "memory"}] * 2
    assert all(50 < each["memory"] < 5000 and 0 < each["step"] < 60 for each in record["processes"])
    assert "Process 1: " in (tmp_path / "logs" / "r.log").read_text()


STOPPED = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
from hyperiqa.base.command_line import run_tool
from hyperiqa.training import processes

processes.PATIENCE = timedelta(seconds=1)
processes.ANSWER_SECONDS = 1

def main():
    with processes.process_group():
        processes.largest_of_all(0)
        if processes.rank() == int(sys.argv[1]):
            if os.fork() == 0:
                time.sleep(8)
                Path("in_time" if Path("ended").exists() else "too_late").touch()
                os.kill(os.getppid(), signal.SIGKILL)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)
        processes.largest_of_all(0)

try:
    run_tool(main)
finally:
    Path("ended").touch()
"""


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_stopped_ends_the_others_in_time(launcher, tmp_path, stopped):
    """Process 0 holds the store of the reasons for an end, where torchrun does not."""
    (tmp_path / "stopped.py").write_text(STOPPED)
    codes, _, errors = launcher.run(tmp_path / "stopped.py", [stopped], world=2, cwd=tmp_path)
    assert (tmp_path / "in_time").exists()
    assert codes == ([-signal.SIGKILL, 2] if stopped == 0 else [2, -signal.SIGKILL])
    assert errors == ["error: a process of the run was lost; --resume auto goes on"]
