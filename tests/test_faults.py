"""Fault injection on real processes: killed at exact moments, taken up again, compared with an undisturbed run.

`--runslow` runs every moment; by default a third of them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import write_images, write_koniq, write_spaq
from processes import assert_same_results, results

ROOT = Path(__file__).resolve().parent.parent
KILL, INT, TERM = signal.SIGKILL, signal.SIGINT, signal.SIGTERM


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return write_koniq(root / "koniq", 12, 6), write_spaq(root / "spaq", 4)


def flags_for(data, folder, *more):
    koniq, spaq = data
    return [
        "--dataset_path",
        koniq,
        "--spaq_path",
        spaq,
        *"--backbone swin_nano --no_pretrained --patch_size 64 --resize 72".split(),
        *"--train_patch_num 2 --batch_size 8 --epochs 2 --lr 1e-3".split(),
        *"--precision fp32 --ranking_loss_alpha 0.3".split(),
        "--log_dir",
        folder / "logs",
        "--checkpoint_dir",
        folder / "checkpoints",
        "--cache_dir",
        folder / "cache",
        *"--resume auto --checkpoint_minutes 0".split(),
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(launcher, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, out, errors = launcher.run("train_swin.py", flags_for(data, folder))
    assert code == 0 and errors == [] and "Nothing to resume: starting a new run" in out
    return results(folder)


# A run makes 10 batches (3 training, 1 test, 1 SPAQ; twice); each of its 8 saves of the state syncs three files,
# links and renames; the 23 images of the caches are resized in two builds.
MOMENTS = [
    *[
        ("hyperiqa.training.engine:to_model_input", n) for n in range(1, 11)
    ],  # in steps 1-3 and 6-8, in tests 4-5 and 9-10
    *[
        ("os:fsync", n) for n in (1, 2, 3, 4, 9, 14, 15, 16, 17, 20, 26, 28)
    ],  # mid write of states, models, predictions
    *[("pathlib:Path.replace", n) for n in (1, 3, 5, 9, 12, 16)],  # written, not yet in place
    *[("os:link", n) for n in (1, 4, 6)],
    *[
        ("hyperiqa.images.perceptual_hash:perceptual_hash", n) for n in (1, 9, 20)
    ],  # mid cache build
    *[("pathlib:Path.rename", n) for n in (1, 2)],  # cache complete, not yet published
    *[("hyperiqa.training.log:RunLog.line", n) for n in (1, 4, 7, 9, 12)],
    *[("hyperiqa.training.log:RunLog.record", n) for n in (1, 2, 3, 4)],
]
IN_CI = MOMENTS[1::3]


def moments():
    return [
        pytest.param(*m, id=f"{m[0]}-{m[1]}", marks=() if m in IN_CI else pytest.mark.slow)
        for m in MOMENTS
    ]


@pytest.mark.parametrize(("target", "count"), moments())
def test_killed_and_taken_up_again_nothing_differs(
    launcher, data, undisturbed, tmp_path, target, count
):
    flags = flags_for(data, tmp_path)
    code, _, _ = launcher.run("train_swin.py", flags, kill=[target, count, KILL])
    assert code == -KILL, "the moment was never reached"
    code, out, errors = launcher.run("train_swin.py", flags)
    assert code == 0 and errors == [], errors
    assert_same_results(results(tmp_path), undisturbed)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("kind", [INT, TERM])
def test_a_signal_while_the_demo_is_made_leaves_nothing(launcher, tmp_path, kind):
    flags = flags_for((tmp_path, tmp_path), tmp_path)[4:]
    flags += ["--dataset", "demo", "--dataset_path", tmp_path / "demo"]
    kill = ["hyperiqa.datasets.demo_images:_make_all", 1, kind]
    code, out, errors = launcher.run("train_swin.py", flags, kill=kill)
    assert (code, errors) == (128 + kind, [])
    assert out == f"{tmp_path / 'demo'}: drawing 1,056 pictures, once\n"
    assert list(tmp_path.iterdir()) == []


def test_killed_again_and_again(launcher, data, undisturbed, tmp_path):
    flags, codes = flags_for(data, tmp_path), []
    for count in (2, 3, 4, 2, 3):
        codes.append(
            launcher.run(
                "train_swin.py",
                flags,
                kill=["hyperiqa.training.engine:to_model_input", count, KILL],
            )[0]
        )
    code, _, _ = launcher.run("train_swin.py", flags)
    assert set(codes) == {-KILL} and code == 0
    assert_same_results(results(tmp_path), undisturbed)


def test_state_saved_at_epoch_ends_only(launcher, data, undisturbed, tmp_path):
    flags = flags_for(data, tmp_path, "--checkpoint_minutes", 10)
    assert (
        launcher.run(
            "train_swin.py", flags, kill=["hyperiqa.training.engine:to_model_input", 8, KILL]
        )[0]
        == -KILL
    )
    code, out, _ = launcher.run("train_swin.py", flags)
    assert code == 0 and "round 1, epoch 1 done" in out
    assert_same_results(results(tmp_path), undisturbed)


@pytest.mark.parametrize(
    "schedule", [("--lr_scheduler", "step"), ("--lr_scheduler", "step", "--training_fixes", "all")]
)
def test_optimizers_of_the_step_schedule_are_rebuilt(launcher, data, tmp_path, schedule):
    """Rounds, frozen heads, new and continued Adams: killed in round 2, epoch 2."""
    more = (*schedule, "--train_test_num", 2)
    assert launcher.run("train_swin.py", flags_for(data, tmp_path / "a", *more))[0] == 0
    flags = flags_for(data, tmp_path / "b", *more)
    assert (
        launcher.run(
            "train_swin.py", flags, kill=["hyperiqa.training.engine:to_model_input", 17, KILL]
        )[0]
        == -KILL
    )
    code, out, _ = launcher.run("train_swin.py", flags)
    assert code == 0 and "round 2, epoch 2, step 1" in out
    assert_same_results(results(tmp_path / "b"), results(tmp_path / "a"))


@pytest.mark.parametrize("ending", [(INT, 130), (TERM, 143)])
@pytest.mark.parametrize(
    "moment",
    [
        ("hyperiqa.training.engine:to_model_input", 2),
        ("hyperiqa.training.engine:to_model_input", 4),
        ("hyperiqa.images.perceptual_hash:perceptual_hash", 3),
        ("os:fsync", 9),
    ],
)
def test_signals_finish_the_step_and_say_how_to_go_on(
    launcher, data, undisturbed, tmp_path, ending, moment
):
    (signum, code), (target, count) = ending, moment
    flags = flags_for(data, tmp_path)
    found, out, errors = launcher.run("train_swin.py", flags, kill=[target, count, signum])
    assert found == code and errors == []
    (jsonl,) = (tmp_path / "logs").glob("*.jsonl")
    assert json.loads(jsonl.read_text().splitlines()[-1])["status"] == "interrupted"
    command = out.splitlines()[-1]
    assert command.startswith("Go on with: python ") and command.endswith(" --resume auto")
    assert launcher.run("train_swin.py", flags)[0] == 0
    assert_same_results(results(tmp_path), undisturbed)


def test_a_full_disk_is_named_and_loses_nothing(launcher, data, undisturbed, tmp_path):
    """A limit on file sizes stands in for it: the state of 40 MB no longer fits, the logs and the cache do."""
    flags = flags_for(data, tmp_path)
    assert (
        launcher.run(
            "train_swin.py", flags, kill=["hyperiqa.training.engine:to_model_input", 3, KILL]
        )[0]
        == -KILL
    )
    last = next((tmp_path / "checkpoints").rglob("last.pt"))
    before = last.read_bytes()
    code, _, errors = launcher.run("train_swin.py", flags, fsize=5_000_000)
    assert (
        code == 2
        and len(errors) == 1
        and errors[0].startswith(f"error: {last}: cannot be written: ")
    )
    assert last.read_bytes() == before and not list(tmp_path.rglob(".last*"))
    assert launcher.run("train_swin.py", flags)[0] == 0
    assert_same_results(results(tmp_path), undisturbed)


def test_a_full_disk_while_the_cache_is_built(launcher, data, tmp_path):
    code, _, errors = launcher.run("train_swin.py", flags_for(data, tmp_path), fsize=10_000)
    assert code == 2 and len(errors) == 1
    assert (
        "the image cache cannot be written: File too large; give --cache_dir PATH or --no_cache"
        in errors[0]
    )


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "empty"])
def test_a_damaged_state_falls_back_to_the_one_before(
    launcher, data, undisturbed, tmp_path, damage
):
    flags = flags_for(data, tmp_path)
    assert (
        launcher.run(
            "train_swin.py", flags, kill=["hyperiqa.training.engine:to_model_input", 8, KILL]
        )[0]
        == -KILL
    )
    last = next((tmp_path / "checkpoints").rglob("last.pt"))
    content = last.read_bytes()
    last.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "overwritten": b"x" * len(content),
            "empty": b"",
        }[damage]
    )
    code, out, _ = launcher.run("train_swin.py", flags)
    said = "the file is empty" if damage == "empty" else "not a checkpoint of tensors: "
    assert code == 0 and f"last.pt: {said}" in out and "falling back to previous.pt" in out
    assert_same_results(results(tmp_path), undisturbed)


def test_resume_by_path_and_only_with_the_same_settings(launcher, data, undisturbed, tmp_path):
    flags = flags_for(data, tmp_path)
    assert (
        launcher.run(
            "train_swin.py", flags, kill=["hyperiqa.training.engine:to_model_input", 7, KILL]
        )[0]
        == -KILL
    )
    last = next((tmp_path / "checkpoints").rglob("last.pt"))
    at = flags.index("--resume") + 1
    flags[at] = last
    code, _, errors = launcher.run("train_swin.py", [*flags, "--lr", 2e-3, "--batch_size", 9])
    assert (code, errors) == (
        2,
        [
            f"error: --resume {last.parent}: other settings (the run's -> yours): batch_size 8 -> 9; lr 0.001 -> 0.002"
        ],
    )
    assert launcher.run("train_swin.py", [*flags, "--workers", 2])[0] == 0  # changes no figure
    assert_same_results(results(tmp_path), undisturbed)


def test_auto_passes_over_finished_runs_and_other_settings(launcher, data, tmp_path):
    flags = flags_for(data, tmp_path, "--epochs", 1)
    assert launcher.run("train_swin.py", flags)[0] == 0
    assert (
        launcher.run(
            "train_swin.py",
            [*flags, "--seed", 1],
            kill=["hyperiqa.training.engine:to_model_input", 2, KILL],
        )[0]
        == -KILL
    )
    code, out, _ = launcher.run("train_swin.py", flags)
    assert code == 0 and "Nothing to resume: starting a new run" in out
    assert len(list((tmp_path / "logs").glob("*.jsonl"))) == 3


def test_side_by_side_in_shared_folders(data, undisturbed, tmp_path):
    """Two runs started together, with the same settings and folders, each do their own work.

    The later one finds the other's unfinished run, waits for it a little, and must not take it up once it is done.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train_swin.py"), *map(str, flags_for(data, tmp_path))]
    both = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in "ab"
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert (
        len(list((tmp_path / "logs").glob("*.jsonl"))) == 2
        and len(list((tmp_path / "cache").glob("koniq*"))) == 1
    )
    for jsonl in (tmp_path / "logs").glob("*.jsonl"):
        own = tmp_path / "own" / jsonl.stem
        shutil.copytree(tmp_path / "checkpoints" / jsonl.stem, own / "checkpoints" / jsonl.stem)
        (own / "logs").mkdir()
        for path in (tmp_path / "logs").glob(f"{jsonl.stem}[._]*"):
            if not path.stem.removeprefix(jsonl.stem).startswith("_2"):
                shutil.copy(path, own / "logs")
        assert_same_results(results(own), undisturbed)


# ------------------------------------------------------------------------------------------- bad input
def with_koniq(change):
    def make(root, data):
        koniq = shutil.copytree(data[0], root / "koniq")
        change(koniq)
        return ["--dataset_path", koniq, "--no_spaq"]

    return make


def put(name, content):
    def change(root):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)

    return change


def table(text):
    return put("koniq10k_scores_and_distributions.csv", text.encode())


def edit_scores(old, new):
    def change(root):
        path = root / "koniq10k_scores_and_distributions.csv"
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def with_validation_images_elsewhere(root, data):
    flags = with_koniq(
        put("koniq10k_distributions_sets.csv", b"image_name,set\nval_0.jpg,validation\n")
    )(root, data)
    with (root / SCORES).open("a") as file:
        file.write("val_0.jpg,0,3.0,50\n")
    return [*flags, "--select_on", "val"]


def csv_file(text):
    def make(root, data):
        write_images(root / "pictures", ["a.jpg", "b.jpg", "c.jpg"])
        (root / "mine.csv").write_text(text)
        return ["--dataset", "csv", "--dataset_path", root / "mine.csv", "--no_spaq"]

    return make


def plain_flags(*flags):
    return lambda root, data: ["--dataset_path", data[0], "--no_spaq", *flags]


def saved(content):
    """--backbone_weights pointing to a file with this content."""

    def make(root, data):
        (root / "weights.pth").write_bytes(content)
        return ["--dataset_path", data[0], "--no_spaq", "--backbone_weights", root / "weights.pth"]

    return make


LAYOUT = (
    "koniq10k_scores_and_distributions.csv, images in train/+test/, 1024x768/ or 512x384/, and for the official split "
    "koniq_train.json+koniq_test.json or koniq10k_distributions_sets.csv"
)
SCORES = "koniq/koniq10k_scores_and_distributions.csv"
HEAD = "image_name,MOS_zscore\n"
JSON_FORM = 'expected a JSON list of {"image", "score"}; found'
# What is wrong -> (how to make it, the error line; ROOT is the test's folder). Flags are parsed by the real script.
BAD_INPUT = {
    "no data folder": (
        lambda root, data: ["--dataset_path", root / "none"],
        f"koniq-10k: no folder ROOT/none; expected {LAYOUT}"
        "; get it from https://database.mmsp-kn.de/koniq-10k-database.html"
        "; --dataset_path names another place, and --dataset demo needs no data",
    ),
    "no score file": (
        with_koniq(lambda r: (r / "koniq10k_scores_and_distributions.csv").unlink()),
        "koniq-10k: no koniq10k_scores_and_distributions.csv or koniq10k_distributions_sets.csv in ROOT/koniq; expected koniq10k_scores_and_distributions.csv, images in train/+test/, 1024x768/ or 512x384/, and for the official split koniq_train.json+koniq_test.json or koniq10k_distributions_sets.csv",
    ),
    "score file empty": (
        with_koniq(table("")),
        f"ROOT/{SCORES}: no column image_name, MOS_zscore; expected image_name, MOS_zscore, found none",
    ),
    "score file without rows": (
        with_koniq(table(HEAD)),
        "koniq-10k: 18 images of the split have no score in koniq10k_scores_and_distributions.csv: train_0.jpg, train_1.jpg, train_2.jpg, train_3.jpg, train_4.jpg, …",
    ),
    "score column missing": (
        with_koniq(edit_scores("MOS_zscore", "score")),
        f"ROOT/{SCORES}: no column MOS_zscore; expected image_name, MOS_zscore, found image_name, c1, MOS, score",
    ),
    "score file is binary": (
        with_koniq(put("koniq10k_scores_and_distributions.csv", b"\x89\xff\x00\x01")),
        f"ROOT/{SCORES}: not a readable CSV file in UTF-8 or UTF-16: ",
    ),
    "score nan": (
        with_koniq(edit_scores("10.0\n", "nan\n")),
        "koniq-10k: 1 score is not a number: train_0.jpg",
    ),
    "score a word": (
        with_koniq(edit_scores("10.0\n", '"good"\n')),
        "koniq-10k: 1 score is not a number: train_0.jpg",
    ),
    "JSON broken": (
        with_koniq(put("koniq_test.json", b"[{")),
        f"ROOT/koniq/koniq_test.json: {JSON_FORM} JSONDecodeError('Expecting property name enclosed in double quotes: line 1 column 3 (char 2)')",
    ),
    "JSON of other form": (
        with_koniq(put("koniq_test.json", b'[{"img": 1}]')),
        f"ROOT/koniq/koniq_test.json: {JSON_FORM} KeyError('image')",
    ),
    "JSON of other images": (
        with_koniq(put("koniq_test.json", b'[{"image": "../../etc/x.jpg", "score": 1}]')),
        "koniq-10k: 1 image of the split has no score in koniq10k_scores_and_distributions.csv: x.jpg",
    ),
    "JSON empty": (
        with_koniq(put("koniq_test.json", b"[]")),
        "koniq-10k: the test split of ROOT/koniq is empty",
    ),
    "JSON without twin": (
        with_koniq(lambda r: (r / "koniq_train.json").unlink()),
        "koniq-10k: ROOT/koniq/koniq_test.json needs its twin; expected koniq_train.json and koniq_test.json",
    ),
    "images missing": (
        with_koniq(lambda r: (r / "test/test_2.jpg").unlink()),
        "koniq-10k: 1 of 18 images is not in ROOT/koniq/train and ROOT/koniq/test: test_2.jpg",
    ),
    "no image folder": (
        with_koniq(lambda r: (r / "test").rename(r / "tset")),
        "koniq-10k: no images in ROOT/koniq; expected train/+test/ or 1024x768/ or 512x384/ or koniq10k_1024x768/1024x768/ or koniq10k_1024x768/ or 1024x768/1024x768/ or koniq10k_512x384/512x384/ or koniq10k_512x384/ or 512x384/512x384/",
    ),
    "image empty": (
        with_koniq(put("test/test_1.jpg", b"")),
        "1 of 18 images cannot be read: ROOT/koniq/test/test_1.jpg: the file is empty (--skip_bad_images drops them)",
    ),
    "image a text": (
        with_koniq(put("test/test_1.jpg", b"hello")),
        "1 of 18 images cannot be read: ROOT/koniq/test/test_1.jpg: not an image of a format that is read here (--skip_bad_images drops them)",
    ),
    "two bad images": (
        with_koniq(
            lambda r: (put("test/test_1.jpg", b"")(r), put("train/train_3.jpg", b"hello")(r))
        ),
        "2 of 18 images cannot be read: ROOT/koniq/test/test_1.jpg: the file is empty; ROOT/koniq/train/train_3.jpg: not an image of a format that is read here (--skip_bad_images drops them)",
    ),
    "explicit SPAQ missing": (
        lambda root, data: ["--dataset_path", data[0], "--spaq_path", root / "spaq"],
        "spaq: no folder ROOT/spaq; expected spaq_test.json with its images beside it or in TestImage/, or the official release: TestImage/ and Annotations/MOS and Image attribute scores.xlsx",
    ),
    "SPAQ without list": (
        lambda root, data: ["--dataset_path", data[0], "--spaq_path", root],
        "spaq: no spaq_test.json or Annotations/MOS and Image attribute scores.xlsx in ROOT; expected spaq_test.json with its images beside it or in TestImage/, or the official release: TestImage/ and Annotations/MOS and Image attribute scores.xlsx",
    ),
    "no validation images": (
        plain_flags("--select_on", "val"),
        "koniq-10k: KONIQ names no validation images; give --val_fraction F",
    ),
    "validation images not there": (
        with_validation_images_elsewhere,
        "koniq-10k: 1 validation image is not in ROOT/koniq: val_0.jpg; give --val_fraction F to take some of the training images instead",
    ),
    "CSV without column": (
        csv_file("image,score\n"),
        "ROOT/mine.csv: no column mos; expected image, mos, found image, score; --image_column, --score_column, --split_column and --group_column name others",
    ),
    "CSV absolute path": (
        csv_file("image,mos\n/etc/passwd,1\npictures/a.jpg,2\n"),
        "ROOT/mine.csv: 1 image name leaves its folder: /etc/passwd; --image_root FOLDER names another folder",
    ),
    "CSV unknown split": (
        csv_file("image,mos,split\npictures/a.jpg,1,exam\n"),
        "ROOT/mine.csv: column split: expected train, val or test, found 'exam'",
    ),
    "CSV image missing": (
        csv_file("image,mos\npictures/a.jpg,1\npictures/z.jpg,2\n"),
        "ROOT/mine.csv: 1 of 2 images is not in its folder: pictures/z.jpg; --image_root FOLDER names another folder",
    ),
    "CSV listed twice": (
        csv_file(
            "image,mos\npictures/a.jpg,1\npictures/b.jpg,3\npictures/a.jpg,2\npictures/./a.jpg,4\n"
        ),
        "csv: 1 image is listed twice: pictures/a.jpg",
    ),
    "unknown flag": (
        plain_flags("--epoch", "3"),
        "unknown flag --epoch 3 (did you mean --epochs?)",
    ),
    "contradictory flags": (
        plain_flags("--use_multiscale", "--no_multiscale"),
        "contradictory flags: --use_multiscale and --no_multiscale",
    ),
    "several flags wrong": (
        plain_flags("--epochs", "0", "--lr", "-1"),
        "--epochs 0: expected a whole number of at least 1; --lr -1.0: expected a number above 0",
    ),
    "fixes without step": (
        plain_flags("--training_fixes", "all"),
        "--training_fixes needs --lr_scheduler step: it repairs that schedule and no other",
    ),
    "device not there": (
        plain_flags("--device", "cuda:77"),
        f"--device cuda:77: this machine has {torch.cuda.device_count()} CUDA devices",
    ),
    "unknown Swin": (
        plain_flags("--no_pretrained", "--backbone", "swin_nana"),
        "--backbone swin_nana: timm VERSION has no such model",
    ),
    "weights no checkpoint": (saved(b"hello"), "ROOT/weights.pth: not a checkpoint of tensors: "),
    "weights a pickle with code": (
        saved(b"cposix\nsystem\n(S'touch PWNED'\ntR."),
        "ROOT/weights.pth: not a checkpoint of tensors: ",
    ),
    "resume from nowhere": (
        plain_flags("--resume", "none/last.pt"),
        "--resume none/last.pt: no such file; expected auto, the last.pt of a run or its folder",
    ),
    "logs cannot be written": (
        plain_flags("--no_pretrained", "--log_dir", "/proc/logs"),
        "/proc/logs: cannot write logs or checkpoints: No such file or directory",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_error_line(launcher, data, tmp_path, case):
    make, expected = BAD_INPUT[case]
    flags = [*make(tmp_path, data), "--patch_size", 64]
    defaults = {
        "--log_dir": tmp_path / "logs",
        "--checkpoint_dir": tmp_path / "models",
        "--cache_dir": tmp_path / "cache",
    }
    for flag, value in defaults.items():
        flags += [] if flag in flags else [flag, value]
    if not {"--backbone", "--backbone_weights", "--no_pretrained"} & set(flags):
        flags += ["--backbone", "swin_nano", "--no_pretrained"]
    code, _, errors = launcher.run("train_swin.py", flags)
    import timm

    expected = (
        expected.replace("ROOT", str(tmp_path))
        .replace("KONIQ", str(data[0]))
        .replace("VERSION", timm.__version__)
    )
    assert code == 2 and len(errors) == 1
    line = errors[0].removeprefix("error: ")
    assert errors[0].startswith("error: ")
    assert line.startswith(expected) if expected.endswith(": ") else line == expected
    assert not Path("PWNED").exists() and not Path(ROOT, "PWNED").exists()
    assert not list(tmp_path.rglob("last.pt"))


def test_skipped_images_are_counted_and_named(launcher, data, tmp_path):
    koniq = shutil.copytree(data[0], tmp_path / "koniq")
    (koniq / "train" / "train_3.jpg").write_bytes(b"hello")
    flags = flags_for((koniq, data[1]), tmp_path, "--skip_bad_images", "--epochs", 1)
    code, out, _ = launcher.run("train_swin.py", flags)
    assert (
        code == 0
        and f"Skipped: 1 of 22 images cannot be read: {koniq}/train/train_3.jpg: not an image"
        in out
    )
    (jsonl,) = (tmp_path / "logs").glob("*.jsonl")
    records = [json.loads(line) for line in jsonl.read_text().splitlines()]
    skipped = {str(koniq / "train" / "train_3.jpg"): "not an image of a format that is read here"}
    assert [r["images"] for r in records if r["type"] == "skipped"] == [skipped]
    assert "Skipped: 1 of 22 images" in jsonl.with_suffix(".log").read_text()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
    launcher, data, tmp_path
):
    """A learning rate that throws the weights out of all bounds."""
    flags = flags_for(data, tmp_path, "--lr", 1e37, "--lr_scheduler", "none")
    code, _, errors = launcher.run("train_swin.py", flags)
    assert code == 2 and len(errors) == 1
    last = next((tmp_path / "checkpoints").rglob("last.pt"))
    assert errors[0].startswith("error: the loss is ") and "in epoch 1, step 2; " in errors[0]
    assert f"the last good checkpoint is {last}; images of this batch: train_" in errors[0]
    state = torch.load(last, weights_only=True)
    assert state["progress"]["step"] == 1 and all(
        torch.isfinite(p).all() for p in state["progress"]["parts"]
    )


def test_a_console_that_lacks_characters_and_goes_away_ends_no_training(
    data, undisturbed, tmp_path
):
    koniq = tmp_path / "图片"
    koniq.symlink_to(data[0])
    flags = flags_for((koniq, data[1]), tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, ROOT / "train_swin.py", *map(str, flags)]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    first = run.stdout.readline()
    run.stdout.close()
    assert run.wait() == 0 and first.startswith(b"Nothing to resume")
    assert_same_results(results(tmp_path), undisturbed)
    assert f"dataset_path={koniq}" in next((tmp_path / "logs").glob("*.log")).read_text(
        encoding="utf-8"
    )
