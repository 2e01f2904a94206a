import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import save_random_model, score_of, write_images, write_koniq, write_spaq
from PIL import Image
from releases import write_csiq, write_kadid, write_official_spaq
from scipy import optimize, stats

import evaluate
from hyperiqa.base import files
from hyperiqa.base.errors import UserError
from hyperiqa.datasets.readers import READERS
from hyperiqa.datasets.records import Columns
from hyperiqa.images import perceptual_hash
from hyperiqa.model import checkpoints
from hyperiqa.model.description import CERTIFICATE_FORMAT
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.resnet import ResNetBackbone
from hyperiqa.model.swin import SwinBackbone
from hyperiqa.runs import reading
from hyperiqa.scoring import evaluation, quality_model
from hyperiqa.stats import intervals, resampling, standards
from hyperiqa.training import certificate
from hyperiqa.training.run_files import read_records
from HyperIQASolver import HyperIQASolver
from HyperIQASolver_swin import HyperIQASolverSwin

ROOT = Path(__file__).resolve().parent.parent
DESCRIPTION = {
    "backbone": "swin_nano",
    "fusion": "none",
    "patch_size": 64,
    "resize": "72",
    "exif_rotate": False,
    "seed": 7,
    "dataset": "livec",
    "score_range": [0.0, 100.0],
    "higher_is_better": True,
    "test_crop": "center",
    "test_patch_num": 25,
    "run": "a_run",
}


def save_model(path, **description):
    torch.manual_seed(0)
    model = HyperNet(SwinBackbone("swin_nano", patch_size=64), "none")
    checkpoints.save(path, checkpoints.portable_state(model, {**DESCRIPTION, **description}))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "model.pkl")


def read_sets(paths, description, split="auto", resize=None, seed=None):
    columns = vars(Columns())
    settings = Namespace(split=split, resize=resize, seed=seed, lower_is_better=False, **columns)
    return evaluation.read_sets(paths, description, settings)


def redraw(root):
    """Other images than the releases' writers', which are alike in some sets: each set has better and worse ones."""
    folders = {
        path.parent for path in root.rglob("*") if path.suffix.lower() in (".png", ".bmp", ".jpg")
    }
    for seed, folder in enumerate(sorted(folders)):
        names = sorted(path.name for path in folder.iterdir() if path.suffix != ".csv")
        write_images(folder, list(np.random.default_rng(seed).permutation(names)), (80, 70), seed)
    return root


@pytest.fixture(scope="session")
def kadid(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "kadid"
    write_kadid(root)
    return redraw(root)


@pytest.fixture(scope="session")
def csiq(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "csiq"
    write_csiq(root)
    return redraw(root)


@pytest.fixture
def tool(run_main, tmp_path):
    def run(*words, code=0):
        quick = () if "--resamples" in words else ("--resamples", 100)
        place = (
            () if {"--cache_dir", "--no_cache"} & {*words} else ("--cache_dir", tmp_path / "cache")
        )
        return run_main("evaluate.py", evaluate.main, *words, *quick, *place, code=code)

    return run


def scores_and_mos(path, name):
    with path.open(newline="") as file:
        rows = [
            (float(r["score"]), float(r["mos"]))
            for r in csv.DictReader(file)
            if r["dataset"] == name
        ]
    return np.array(rows).T


# ------------------------------------------------------------------------------------- equal to a run's own test
@pytest.mark.parametrize(
    "flags",
    [
        ("swin", "--test_crop", "center"),
        ("swin", "--test_crop", "random", "--test_patch_num", 3),
        ("swin", "--test_crop", "grid", "--test_patch_num", 4, "--use_multiscale"),
        ("resnet", "--resize", "384"),
        ("resnet", "--resize", "80x90"),
    ],
    ids=lambda flags: " ".join(map(str, flags[1:])),
)
def test_a_runs_own_test_comes_out_again(tool, settings, tmp_path, koniq, spaq, flags, capsys):
    options = settings(*flags, "--epochs", 1)
    solver = (HyperIQASolverSwin if flags[0] == "swin" else HyperIQASolver)(options)
    solver.run()
    capsys.readouterr()
    before = {path.name for path in (tmp_path / "cache").glob("spaq*")}
    sets = ("--datasets", f"koniq-10k={koniq}", f"spaq={spaq}")
    out = tool(solver.log.checkpoints, *sets, "--predictions", tmp_path / "p.csv", "--json").stdout
    assert (tmp_path / "p.csv").read_text() == solver.log.path("_predictions.csv").read_text()
    epoch = next(r for r in read_records(solver.log.path(".jsonl")) if r["type"] == "epoch")
    for found, part in zip(json.loads(out)["datasets"], ("test", "spaq")):
        figures = {name: found["figures"][name]["value"] for name in ("srcc", "plcc")}
        assert figures == pytest.approx(epoch[part], abs=1e-12)
    assert {path.name for path in (tmp_path / "cache").glob("spaq*")} == before  # not decoded again


def test_the_random_split_of_a_later_round_is_drawn_again(tool, settings, tmp_path, kadid):
    flags = (
        "--dataset",
        "kadid-10k",
        "--dataset_path",
        kadid,
        *"--train_test_num 2 --epochs 1 --no_spaq".split(),
    )
    solver = HyperIQASolver(settings("resnet", *flags))
    solver.run()
    for folder, ending in (("", "_predictions.csv"), ("round2", "_round2_predictions.csv")):
        sets = ("--datasets", f"kadid-10k={kadid}")
        tool(solver.log.checkpoints / folder, *sets, "--predictions", tmp_path / "p.csv")
        assert (tmp_path / "p.csv").read_text() == solver.log.path(ending).read_text()


# ------------------------------------------------------------------------------------------------- figures
def test_figures_are_scipys_on_the_predictions(tool, model, kadid, tmp_path):
    file = tmp_path / "p.csv"
    out = tool(
        model,
        "--datasets",
        f"kadid-10k={kadid}",
        "--predictions",
        file,
        "--json",
        "--resamples",
        300,
    ).stdout
    (found,) = json.loads(out)["datasets"]
    score, mos = scores_and_mos(file, "kadid-10k")
    assert found["images"] == len(score) == 30
    value = {name: figure["value"] for name, figure in found["figures"].items()}
    assert value["srcc"] == pytest.approx(stats.spearmanr(score, mos).statistic, abs=1e-12)
    assert value["plcc"] == pytest.approx(stats.pearsonr(score, mos).statistic, abs=1e-12)
    assert value["krcc"] == pytest.approx(stats.kendalltau(score, mos).statistic, abs=1e-12)

    def curve(x, b1, b2, b3, b4):
        return b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4)))

    mapped = []
    for ends in ((mos.max(), mos.min()), (mos.min(), mos.max())):
        start = (*ends, score.mean(), score.std())
        parameters, _ = optimize.curve_fit(curve, score, mos, start, maxfev=100_000)
        mapped.append(curve(score, *parameters))
    best = min(mapped, key=lambda x: ((x - mos) ** 2).sum())
    assert value["fitted_rmse"] == pytest.approx(np.sqrt(((best - mos) ** 2).mean()), rel=1e-3)
    assert value["fitted_plcc"] == pytest.approx(stats.pearsonr(best, mos).statistic, rel=1e-3)

    draws = resampling.bootstrap("krcc", score, mos, 300)
    bounds = found["figures"]["krcc"]["low"], found["figures"]["krcc"]["high"]
    assert bounds == pytest.approx(intervals.percentile_interval(draws[:, 0]))
    for figure in found["figures"].values():
        assert figure["low"] < figure["value"] < figure["high"]


def test_comparison_tools_read_the_predictions(tool, model, csiq, koniq, tmp_path):
    sets = ("--datasets", f"csiq={csiq}", f"koniq-10k={koniq}")
    tool(model, *sets, "--predictions", tmp_path / "p.csv")
    found = reading.read_predictions(tmp_path / "p.csv")
    assert {name: len(scores.keys) for name, scores in found.items()} == {
        "csiq": 60,
        "koniq-10k": 6,
    }
    expected = {("test_0.jpg", 0): score_of(0, 6), ("test_5.jpg", 0): score_of(5, 6)}
    mos = dict(zip(found["koniq-10k"].keys, found["koniq-10k"].mos))
    assert {key: mos[key] for key in expected} == expected


@pytest.mark.parametrize(("quality", "sign"), [(True, -1), (False, 1)])
def test_on_a_set_of_dmos_agreement_is_positive(tool, csiq, tmp_path, quality, sign):
    path = save_model(tmp_path / "m.pkl", higher_is_better=quality)
    words = (path, "--datasets", f"csiq={csiq}", "--predictions", tmp_path / "p.csv")
    (found,) = json.loads(tool(*words, "--json").stdout)["datasets"]
    score, mos = scores_and_mos(tmp_path / "p.csv", "csiq")
    assert abs(stats.spearmanr(score, mos).statistic) > 0.01
    value = {name: figure["value"] for name, figure in found["figures"].items()}
    assert value["srcc"] == pytest.approx(stats.spearmanr(sign * score, mos).statistic)
    assert value["plcc"] == pytest.approx(stats.pearsonr(sign * score, mos).statistic)
    assert value["krcc"] == pytest.approx(stats.kendalltau(sign * score, mos).statistic)
    assert found["figures"]["srcc"]["low"] < value["srcc"] < found["figures"]["srcc"]["high"]
    said = "signs turned, because scores and opinions point in opposite directions: csiq\n"
    assert (said in tool(*words).stdout) == (sign < 0)


def test_a_csv_of_dmos_turned_round_gives_the_same_figures(tool, model, koniq, tmp_path):
    found = []
    for turn, flags in ((1, ()), (-1, ("--lower_is_better",))):
        rows = [f"{koniq / 'test' / f'test_{i}.jpg'},{turn * score_of(i, 6)}" for i in range(6)]
        table = koniq / f"turn{turn}.csv"
        table.write_text("image,mos\n" + "\n".join(rows).replace(f"{koniq}/", ""))
        out = tool(model, "--datasets", f"csv={table}", "--json", *flags).stdout
        found.append(json.loads(out)["datasets"][0]["figures"])
    for name, figure in found[0].items():
        assert figure["value"] == pytest.approx(found[1][name]["value"], rel=1e-6)
        if (
            "fitted" not in name
        ):  # six fitted points lie on a step, whose resamples hang on the last digit
            assert figure == pytest.approx(found[1][name], rel=1e-6)


def test_kinds_of_distortion_are_what_a_plain_loop_finds(tool, model, kadid, tmp_path):
    root = tmp_path / "kadid"
    shutil.copytree(kadid, root)
    lines = (root / "dmos.csv").read_text().splitlines()
    alike = [
        re.sub(r",[^,]+,0\.5$", ",3.0,0.5", line) if "_25_" in line else line for line in lines
    ]
    (root / "dmos.csv").write_text("\n".join(alike))
    file = tmp_path / "p.csv"
    words = (model, "--datasets", f"kadid-10k={root}", "--predictions", file)
    (found,) = json.loads(tool(*words, "--json").stdout)["datasets"]
    with file.open(newline="") as rows:
        rows = list(csv.DictReader(rows))
    expected = {}
    for number, kind in (("_01_", "gaussian blur"), ("_09_", "JPEG2000 compression")):
        score, mos = np.array(
            [(float(r["score"]), float(r["mos"])) for r in rows if number in r["image"]]
        ).T
        expected[kind] = (
            10,
            stats.spearmanr(score, mos).statistic,
            stats.pearsonr(score, mos).statistic,
        )
    *kinds, last = [
        (kind["kind"], kind["images"], kind["srcc"], kind["plcc"]) for kind in found["kinds"]
    ]
    assert {kind: figures for kind, *figures in kinds} == {
        k: pytest.approx(list(v)) for k, v in expected.items()
    }
    assert [srcc for _, _, srcc, _ in kinds] == sorted(
        (srcc for _, _, srcc, _ in kinds), reverse=True
    )
    assert last == ("contrast change", 10, None, None)
    text = tool(*words).stdout.splitlines()
    assert text[-1].split() == ["contrast", "change", "10", "–", "–"]
    assert text[-4].split() == ["kadid-10k", "by", "distortion", "images", "SRCC", "PLCC"]


# ----------------------------------------------------------------------------------- which images, which size
@pytest.mark.parametrize(
    ("split", "trained_on", "images", "which"),
    [
        ("auto", "livec", 30, "all"),
        ("auto", "kadid-10k", 6, "random test split, seed 7"),
        ("test", "livec", 6, "random test split, seed 7"),
        ("all", "kadid-10k", 30, "all, its training images among them"),
    ],
)
def test_which_images_of_a_set_without_a_split(kadid, split, trained_on, images, which):
    (test,) = read_sets({"kadid-10k": kadid}, {**DESCRIPTION, "dataset": trained_on}, split)
    assert (len(test.data.records), test.which) == (images, which)
    if images == 6:
        expected = READERS["kadid-10k"](kadid, 7).read().split("test")
        assert test.data.records == expected


@pytest.mark.parametrize(("split", "images"), [("auto", 6), ("test", 6), ("all", 18)])
@pytest.mark.parametrize("trained_on", ["livec", "koniq-10k"])
def test_which_images_of_a_set_that_comes_with_a_split(koniq, split, images, trained_on):
    (test,) = read_sets({"koniq-10k": koniq}, {**DESCRIPTION, "dataset": trained_on}, split)
    assert len(test.data.records) == images
    assert {record.split for record in test.data.records} == {"test"}


def test_a_csv_is_the_training_set_when_its_scores_are(koniq):
    table = koniq / "ten.csv"
    table.write_text("image,mos\n" + "\n".join(f"train/train_{i}.jpg,{i}" for i in range(10)))
    for score_range, images in (([0.0, 9.0], 2), ([0.0, 100.0], 10)):
        about = {**DESCRIPTION, "dataset": "csv", "score_range": score_range}
        (test,) = read_sets({"csv": table}, about)
        assert len(test.data.records) == images


def test_a_split_whose_seed_is_not_known_is_no_guess(kadid):
    about = {name: value for name, value in DESCRIPTION.items() if name != "seed"} | {
        "dataset": "kadid-10k"
    }
    message = "kadid-10k: comes without a split, and the seed of the run's split is not known; give --seed N or --split all"
    with pytest.raises(UserError) as raised:
        read_sets({"kadid-10k": kadid}, about)
    assert str(raised.value) == message
    (test,) = read_sets({"kadid-10k": kadid}, about, seed=3)
    assert test.data.records == READERS["kadid-10k"](kadid, 3).read().split("test")


def test_the_two_sets_of_spaq_share_images(tmp_path, spaq):
    write_official_spaq(tmp_path / "official")
    for path, name, other in (
        (spaq, "spaq", "spaq-official"),
        (tmp_path / "official", "spaq-official", "spaq"),
    ):
        for trained_on in (name, other):
            (test,) = read_sets({"spaq": path}, {**DESCRIPTION, "dataset": trained_on})
            note = f"{name}: shares images with {other}, which the model was trained on"
            assert (note in test.data.notes) == (trained_on == other)
            assert len(test.data.records) == (1 if trained_on == name else 5)


def test_spaq_of_a_model_of_the_demo_is_the_demos(tmp_path):
    write_koniq(tmp_path / "koniq-10k")
    write_spaq(tmp_path / "spaq-test")
    sets = {"spaq": None, "demo": tmp_path}
    tests = read_sets(sets, {**DESCRIPTION, "dataset": "demo"})
    assert [
        (t.data.name, len(t.data.records), t.data.records[0].path.parent.name) for t in tests
    ] == [("spaq", 5, "spaq-test"), ("demo", 6, "test")]
    shutil.rmtree(tmp_path / "spaq-test")
    with pytest.raises(UserError) as raised:
        read_sets(sets, {**DESCRIPTION, "dataset": "demo"})
    assert str(raised.value) == f"spaq: no folder {tmp_path / 'spaq-test'}; spaq=PATH gives it"


def test_every_set_says_which_files_it_is_of(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "HERE", tmp_path)
    write_koniq(tmp_path / "demo" / "koniq-10k")
    write_spaq(tmp_path / "demo" / "spaq-test")
    of_demo = {**DESCRIPTION, "dataset": "demo"}
    # Without the demo beside it, spaq is the real one.
    with pytest.raises(UserError) as raised:
        read_sets({"spaq": None}, of_demo)
    assert str(raised.value) == (
        "spaq: no folder spaq/ or spaq-test/ beside the scripts; spaq=PATH gives it; "
        f"the demo's own, synthetic one is spaq={tmp_path / 'demo' / 'spaq-test'}"
    )
    write_spaq(tmp_path / "spaq-test")
    found = []
    for sets in ({"spaq": None}, {"spaq": tmp_path / "demo" / "spaq-test"}, {"demo": None}):
        (test,) = read_sets(sets, of_demo)
        found.append((test.data.name, test.title, str(test.place.relative_to(tmp_path))))
    assert found == [
        ("spaq", "spaq", "spaq-test"),
        ("spaq", "demo spaq (synthetic)", "demo/spaq-test"),
        ("demo", "demo (synthetic)", "demo/koniq-10k"),
    ]


def test_test_images_like_training_images_are_counted_once(model, tmp_path):
    rows = [f"train/{i}.png,{i},train" for i in range(3)] + [
        "test/0.png,1,test",
        "test/1.png,9,test",
    ]
    plain = Image.fromarray(np.full((80, 90, 3), 90, np.uint8))
    for row in rows:
        path = tmp_path / row.split(",")[0]
        path.parent.mkdir(exist_ok=True)
        plain.save(path)
    (tmp_path / "low.csv").write_text("\n".join(["image,mos,split", *rows]))
    (test,) = read_sets({"csv:low": tmp_path / "low.csv"}, DESCRIPTION)
    loaded = quality_model.load(model)
    looks = [perceptual_hash.perceptual_hash(np.array(plain))] * 3
    hashes = certificate.pack_hashes(list(zip("abc", looks)))
    facts = {"trained": True, "images": {"train": 3}, "looks": hashes}
    certified = {"format": CERTIFICATE_FORMAT, "sets": {"x": facts}}
    loaded.description = {**loaded.description, "certificate": certified}
    evaluation.load_images([test], loaded, None, False)
    assert test.data.notes == [
        "low: 2 of 2 images look like training images: test/0.png ~ x c, test/1.png ~ x c"
    ]


@pytest.mark.parametrize(
    ("trained_on", "trained", "asked", "expected"),
    [
        (
            "koniq-10k",
            "384",
            None,
            {"koniq-10k": "384", "spaq": "384", "csiq": "none", "bid": "512x512"},
        ),
        (
            "koniq-10k",
            "512x384",
            None,
            {"koniq-10k": "512x384", "spaq": "512x384", "csiq": "512x384"},
        ),
        ("csiq", "none", None, {"koniq-10k": "384", "spaq": "384", "csiq": "none"}),
        ("spaq-official", "384", None, {"csiq": "none"}),
        # The names of CSV files are no reader's.
        ("mine", "100", None, {"csiq": "100", "koniq-10k": "100"}),
        ("mine", "384", None, {"csiq": "none", "koniq-10k": "384"}),
        ("bid+mine", "512x512", None, {"csiq": "none", "koniq-10k": "384"}),
        ("koniq-10k", "512x384", "200", {"koniq-10k": "200", "spaq": "200", "csiq": "200"}),
    ],
)
def test_the_size_of_each_set(koniq, spaq, csiq, trained_on, trained, asked, expected, tmp_path):
    about = {**DESCRIPTION, "dataset": trained_on, "resize": trained}
    for name, resize in expected.items():
        if name != "bid":
            path = {"koniq-10k": koniq, "spaq": spaq, "csiq": csiq}[name]
            (test,) = read_sets({name: path}, about, resize=asked)
            assert test.resize == resize
        assert asked or evaluation.default_resize(name, name == trained_on, about) == resize


# --------------------------------------------------------------------------------------------------- mistakes
MISTAKES = {
    "an unknown set": (
        ("--datasets", "kadid"),
        "--datasets kadid: expected NAME or NAME=PATH, NAME one of koniq-10k, ",
    ),
    "a set twice": (("--datasets", "livec", "livec=x"), "--datasets: livec is listed twice"),
    "a csv without its file": (("--datasets", "csv"), "--datasets csv: expected csv=FILE.csv"),
    "a direction without csv": (
        ("--datasets", "livec", "--lower_is_better"),
        "--lower_is_better is for csv: how the other sets are read is known",
    ),
    "numbers out of range": (
        (
            *"--datasets livec --crops 0".split(),
            "--seed",
            -1,
            *"--workers 300 --batch_size 0 --resamples 9".split(),
        ),
        "--seed -1: expected a whole number of at least 0; --crops 0: expected a whole number of at least 1; "
        "--batch_size 0: expected a whole number of at least 1; --workers 300: expected a whole number from 0 to 256; "
        "--resamples 9: expected a whole number of at least 100",
    ),
    "a strange size": (
        ("--datasets", "livec", "--resize", "big"),
        "--resize big: expected S (shorter side), maxS (at most S), HxW (height x width) or none",
    ),
    "a device of another kind": (
        ("--datasets", "livec", "--device", "tpu"),
        "--device tpu: expected auto, cpu, cuda, cuda:N or mps",
    ),
    "two outputs at once": (
        ("--datasets", "livec", "--json", "--markdown"),
        "contradictory flags: --markdown and --json",
    ),
    "two places at once": (
        ("--datasets", "livec", "--no_cache", "--cache_dir", "c"),
        "contradictory flags: --no_cache and --cache_dir",
    ),
    "no place for the output": (
        ("--datasets", "livec", "--csv", "/no/x.csv", "--predictions", "/", "--report", "x.jpg"),
        "--csv /no/x.csv: no folder /no; --predictions /: a folder; expected a file; "
        "--report x.jpg: expected a name that ends in .html",
    ),
    "no sets": ((), "the following arguments are required: --datasets"),
    "a misspelt flag": (
        ("--datasets", "livec", "--resise", "1"),
        "unknown flag --resise 1 (did you mean --resize?)",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_flags_is_one_line(tool, model, case):
    words, message = MISTAKES[case]
    done = tool(model, *words, code=2)
    assert (
        done.stderr.startswith(f"error: {message}")
        and done.stderr.count("\n") == 1
        and not done.stdout
    )


def test_a_missing_checkpoint_is_said_with_the_other_mistakes(tool):
    done = tool("none.pkl", "--datasets", "livec", "--crops", 0, code=2)
    assert done.stderr == (
        "error: none.pkl: no such file or folder; expected a model file, a run's folder, hf://USER/NAME or a public model (koniq, koniq-authors); "
        "--crops 0: expected a whole number of at least 1\n"
    )


def test_flags_are_checked_without_torch():
    code = "import sys, evaluate; print(sorted({'torch', 'timm', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_all_that_is_wrong_with_the_sets_is_said_before_any_work(tool, model, koniq, tmp_path):
    sets = (
        f"koniq-10k={koniq}",
        f"kadid-10k={tmp_path}",
        f"livec={tmp_path / 'none'}",
        f"spaq={tmp_path}",
    )
    done = tool(model, "--datasets", *sets, "--predictions", tmp_path / "p.csv", code=2)
    assert done.stderr == (
        f"error: kadid-10k: no kadid_test.json or dmos.csv in {tmp_path}; expected kadid_test.json or dmos.csv, and "
        f"images in images/ or beside it; livec: no folder {tmp_path / 'none'}; expected Data/AllImages_release.mat, "
        f"Data/AllMOS_release.mat and Images/; spaq: no spaq_test.json or Annotations/MOS and Image attribute "
        f"scores.xlsx in {tmp_path}; expected spaq_test.json with its images beside it or in TestImage/, or the "
        "official release: TestImage/ and Annotations/MOS and Image attribute scores.xlsx\n"
    )
    assert not (tmp_path / "cache").exists() and not (tmp_path / "p.csv").exists()


def test_images_that_cannot_be_read(tool, model, tmp_path):
    root = write_spaq(tmp_path / "spaq")
    (root / "spaq_1.jpg").write_bytes(b"")
    (root / "spaq_3.jpg").write_text("no image")
    words = (model, "--datasets", f"spaq={root}", "--predictions", tmp_path / "p.csv")
    done = tool(*words, code=2)
    reasons = f"{root}/spaq_1.jpg: the file is empty; {root}/spaq_3.jpg: not an image of a format that is read here"
    assert (
        done.last_words
        == f"error: 2 of 5 images cannot be read: {reasons} (--skip_bad_images drops them)\n"
    )
    out = tool(*words, "--skip_bad_images").stdout
    assert f"spaq: 3 images (all) of {root}, resize 72\n" in out
    assert f"spaq: left out: 2 of 5 images cannot be read: {reasons}\n" in out
    assert len(scores_and_mos(tmp_path / "p.csv", "spaq")[0]) == 3


def test_a_set_without_a_readable_image(tool, model, tmp_path):
    root = write_spaq(tmp_path / "spaq", 2)
    for path in root.glob("*.jpg"):
        path.write_bytes(b"")
    done = tool(model, "--datasets", f"spaq={root}", "--skip_bad_images", code=2)
    assert done.last_words == "error: spaq: no readable image is left in the test split\n"


def test_a_checkpoint_of_the_public_code_is_used_as_there(tool, koniq, tmp_path):
    path = tmp_path / "public.pkl"
    torch.save(dict(HyperNet(ResNetBackbone("resnet18"), "none").state_dict()), path)
    done = tool(path, "--datasets", f"koniq-10k={koniq}")
    said = [line for line in done.stderr.splitlines() if line.startswith(str(path))]
    assert said == [
        f"{path} has no description; assumed: resnet18, fusion none, patch 224, resize 512x384, crops 1, "
        "scores of 0..100, higher is better (koniq-10k)"
    ]
    said = f"koniq-10k: 6 images (its test split) of {koniq}, resize 512x384\n"
    assert said in done.stdout
    assert "resnet18, fusion none, trained on koniq-10k, run not known\n" in done.stdout


def test_ctrl_c_leaves_the_predictions_of_the_sets_done(tool, model, koniq, tmp_path):
    write_spaq(tmp_path / "spaq", 300)
    file = tmp_path / "p.csv"

    def interrupt():
        while not file.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    sets = ("--datasets", f"koniq-10k={koniq}", f"spaq={tmp_path / 'spaq'}", "--resize", "72")
    done = tool(model, *sets, "--predictions", file, "--batch_size", 1, code=130)
    thread.join()
    assert done.last_words == "Interrupted\n" and not done.stdout
    assert {name: len(scores.keys) for name, scores in reading.read_predictions(file).items()} == {
        "koniq-10k": 6
    }


# ------------------------------------------------------------------------------------------------------ output
def test_the_table_keeps_to_100_columns_and_says_where_it_comes_from(tool, model, koniq, csiq):
    out = tool(model, "--datasets", f"koniq-10k={koniq}", f"csiq={csiq}").stdout
    lines = out.splitlines()
    # But for the lines with the folders.
    assert max(map(len, lines[6:])) <= 100
    assert lines[:2] == [f"Model: {model}", "swin_nano, fusion none, trained on livec, run a_run"]
    assert lines[2] == "Scored in fp32 on cpu: patches of 64, centre crop"
    assert lines[3].startswith(f"torch {torch.__version__.split('+')[0]}")
    assert lines[4:6] == [
        f"koniq-10k: 6 images (its test split) of {koniq}, resize 72",
        f"csiq: 60 images (all) of {csiq}, resize 72",
    ]
    assert lines[8].split() == ["data", "set", "images", "SRCC", "PLCC", "PLCC", "KRCC", "RMSE"]
    first, below = lines[9], lines[10]
    assert first.startswith("koniq-10k       6 ") and len(first.split()) == 7
    assert below.startswith(" " * 18) and below.count("[") == 5 and len(below) == len(first)


def test_crops_and_precision_are_said_and_used(tool, model, koniq, tmp_path):
    words = (model, "--datasets", f"koniq-10k={koniq}", "--resize", "90", "--predictions")
    one = tool(*words, tmp_path / "1.csv").stdout
    nine = tool(*words, tmp_path / "9.csv", "--crops", 9, "--precision", "bf16").stdout
    assert "fp32 on cpu: patches of 64, centre crop\n" in one
    assert "bf16 on cpu: patches of 64, 9 crops (grid)\n" in nine
    again = tool(
        *words,
        tmp_path / "again.csv",
        "--crops",
        1,
        "--batch_size",
        2,
        "--no_cache",
        "--workers",
        1,
    )
    found = [
        scores_and_mos(tmp_path / f"{name}.csv", "koniq-10k")[0] for name in ("1", "9", "again")
    ]
    assert found[2] == pytest.approx(found[0], abs=1e-4) and again.returncode == 0
    assert found[1] != pytest.approx(found[0], abs=1e-4)


def test_csv_json_and_markdown_agree(tool, model, kadid, csiq, tmp_path):
    words = (model, "--datasets", f"kadid-10k={kadid}", f"csiq={csiq}")
    whole = json.loads(tool(*words, "--json", "--csv", tmp_path / "f.csv").stdout)
    assert (
        whole["checkpoint"] == str(model)
        and whole["model"]["run"] == "a_run"
        and whole["versions"]["torch"]
    )
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dataset"], row["kind"]) for row in rows if not row["kind"]] == [
        ("kadid-10k", ""),
        ("csiq", ""),
    ]
    for row, found in zip([row for row in rows if not row["kind"]], whole["datasets"]):
        assert int(row["images"]) == found["images"] and row["resize"] == found["resize"]
        for name, figure in found["figures"].items():
            assert [float(row[name + ending]) for ending in ("", "_low", "_high")] == list(
                figure.values()
            )
    kinds = [row for row in rows if row["kind"]]
    assert len(kinds) == 3 + 6 and all(row["srcc"] and not row["krcc"] for row in kinds)
    lines = tool(*words, "--markdown").stdout.splitlines()
    assert "| data set | images | SRCC | PLCC | fitted PLCC | KRCC | fitted RMSE |" in lines
    srcc = whole["datasets"][0]["figures"]["srcc"]
    row = next(line for line in lines if line.startswith("| kadid-10k | 30 |"))
    assert row.split(" | ")[2].startswith(f"{srcc['value']:.4f} [")
    assert "| csiq by distortion | images | SRCC | PLCC |" in lines
    assert all(line.startswith(("- ", "| ")) for line in lines if line)


def test_a_constant_model_has_no_figures(tool, koniq, tmp_path):
    torch.manual_seed(0)
    net = HyperNet(SwinBackbone("swin_nano", patch_size=64), "none")
    for name in ("fc5w_fc", "fc5b_fc"):
        for parameter in getattr(net, name).parameters():
            torch.nn.init.zeros_(parameter)
    checkpoints.save(tmp_path / "m.pkl", checkpoints.portable_state(net, DESCRIPTION))
    words = (tmp_path / "m.pkl", "--datasets", f"koniq-10k={koniq}")
    out = tool(*words, "--report", tmp_path / "s.html", "--csv", tmp_path / "f.csv").stdout
    assert "\nkoniq-10k       6     –     –       –     –       –\n" in out
    page = (tmp_path / "s.html").read_text()
    assert "6 images; a_run: SRCC –, PLCC –" in page
    # Nothing can be fitted to constant scores: their errors are of the scores themselves.
    assert '"error":[' in page and '"mapped score":[' not in page
    figures = json.loads(tool(*words, "--json").stdout)["datasets"][0]["figures"]
    assert all(figure == {"value": None, "low": None, "high": None} for figure in figures.values())
    assert (
        (tmp_path / "f.csv")
        .read_text()
        .endswith("koniq-10k,,6,its test split,72" + "," * 15 + f",{koniq}\n")
    )


def test_the_page_has_a_section_for_each_set(
    tool, model, koniq, csiq, kadid, spaq, tmp_path, browse
):
    pytest.importorskip("plotly")
    sets = (f"koniq-10k={koniq}", f"csiq={csiq}", f"kadid-10k={kadid}", f"spaq={spaq}")
    words = (model, "--datasets", *sets, "--report", tmp_path / "s.html")
    found = json.loads(tool(*words, "--json").stdout)["datasets"]
    page = browse(tmp_path / "s.html")
    assert page.locator("h1").inner_text() == "a_run on koniq-10k, csiq, kadid-10k, spaq"
    assert page.locator("h2").all_inner_texts() == ["Figures", *(each["dataset"] for each in found)]
    for number, each in enumerate(found, 1):
        section, figures = (
            page.locator(f"#s{number}"),
            {name: f["value"] for name, f in each["figures"].items()},
        )
        note = section.locator("figcaption").first.inner_text()
        assert (
            f"{each['images']} images; a_run: SRCC {figures['srcc']:.4f}, PLCC {figures['plcc']:.4f}"
            in note
        )
        axis = "score and DMOS" if each["dataset"] == "csiq" else "score and MOS"
        assert section.locator(".plots h3").first.inner_text().startswith(axis)
        # The page is of one model, whose name no head repeats.
        kinds = section.locator("table").first.inner_text() if each["kinds"] else ""
        assert "a_run" not in kinds
        assert all(kind["kind"] in kinds for kind in each["kinds"])


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    """A model of DMOS from 0 to 1, with patches and a size of its own."""
    description = {
        **DESCRIPTION,
        "dataset": "csiq",
        "score_range": [0.1, 0.9],
        "higher_is_better": False,
        "patch_size": 32,
        "resize": "48",
    }
    path = tmp_path_factory.mktemp("model") / "other.pkl"
    return save_random_model(path, description, seed=1)


def test_an_ensembles_figures_are_scipys_on_the_mean_of_its_models_scores(
    tool, model, other_model, kadid, tmp_path
):
    words = ("--datasets", f"kadid-10k={kadid}", "--resamples", 200)
    alone = []
    for path in (model, other_model):
        done = tool(path, *words, "--json", "--predictions", tmp_path / "p.csv")
        figures = json.loads(done.stdout)["datasets"][0]["figures"]
        alone.append((figures, *scores_and_mos(tmp_path / "p.csv", "kadid-10k")))
    together = (model, "--also", other_model, *words)
    done = tool(*together, "--json", "--predictions", tmp_path / "p.csv")
    whole = json.loads(done.stdout)["datasets"][0]
    assert [member["figures"] for member in whole["members"]] == [alone[0][0], alone[1][0]]
    scores, mos = scores_and_mos(tmp_path / "p.csv", "kadid-10k")
    # livec goes from 0 to 100, the DMOS of csiq from 0 to 1.
    plain = (alone[0][1] + 100 * (1 - alone[1][1])) / 2
    np.testing.assert_allclose(scores, plain, atol=1e-3)
    signed = [scores, alone[0][1], -alone[1][1]]
    for name, figure in (("srcc", stats.spearmanr), ("plcc", stats.pearsonr)):
        values = [figure(one, mos)[0] for one in signed]
        best = 1 + int(values[2] > values[1])
        assert whole["figures"][name]["value"] == pytest.approx(values[0], abs=1e-4)
        difference = whole["over_best"][name]
        assert difference["value"] == pytest.approx(values[0] - values[best], abs=1e-4)
        drawn = []
        for counts in resampling.resample_counts(len(mos), 200, seed=0):
            for column in counts.T.astype(int):
                i = np.repeat(np.arange(len(mos)), column)
                drawn.append(figure(scores[i], mos[i])[0] - figure(signed[best][i], mos[i])[0])
        ends = np.percentile(drawn, [2.5, 97.5])
        assert [difference["low"], difference["high"]] == pytest.approx(list(ends), abs=1e-3)
    out = tool(*together).stdout
    lines = out.splitlines()
    assert sum(line.startswith("Model: ") for line in lines) == 2
    assert len([line for line in lines if re.match(r"  \S*(model|other)\.pkl +30 ", line)]) == 2
    text = f"{whole['over_best']['srcc']['value']:+.4f}".replace("-", "−")
    assert f"kadid-10k: SRCC of the ensemble minus the best model's: {text} [" in out


def test_models_that_would_be_tested_on_different_images(tool, model, kadid, tmp_path):
    trained_here = save_model(tmp_path / "kadid.pkl", dataset="kadid-10k")
    words = (model, "--also", trained_here, "--datasets", f"kadid-10k={kadid}")
    assert tool(*words, code=2).stderr == (
        "error: kadid-10k: the models would be tested on different images (all, random test split, seed 7); "
        "expected the same ones, as with --split all, or with --split test and --seed N\n"
    )
    assert "(random test split, seed 7)" in tool(*words, "--split", "test", "--seed", 7).stdout


def test_an_ensemble_has_no_calibration(tool, model, other_model):
    words = ("--also", other_model, "--datasets", "livec", "--calibrate", "c.pkl")
    assert tool(model, *words, code=2).stderr == (
        "error: contradictory flags: --calibrate and --also: a calibration holds for the scores of one model in fp32\n"
    )


def test_predictions_that_cannot_be_written(tool, model, koniq, tmp_path):
    (tmp_path / "f").write_text("")
    done = tool(
        model, "--datasets", f"koniq-10k={koniq}", "--predictions", tmp_path / "f" / "p.csv", code=2
    )
    assert done.stderr.endswith(
        f"error: --predictions {tmp_path / 'f' / 'p.csv'}: no folder {tmp_path / 'f'}\n"
    )


def test_the_standards_figures_and_what_a_perfect_model_would_reach(tool, model, tmp_path):
    root = write_koniq(tmp_path / "koniq", test=12)
    table = root / "koniq10k_scores_and_distributions.csv"
    header, *rows = csv.reader(table.open())
    rows = [[row[0], 100, 1 + float(row[3]) / 25, 2.0, row[3]] for row in rows]
    csv.writer(table.open("w", newline="")).writerows(
        [["image_name", "c_total", "MOS", "SD", "MOS_zscore"], *rows]
    )
    words = (
        model,
        "--datasets",
        f"koniq-10k={root}",
        "--standards",
        "--predictions",
        tmp_path / "p.csv",
    )
    (found,) = json.loads(tool(*words, "--json").stdout)["datasets"]
    score, mos = scores_and_mos(tmp_path / "p.csv", "koniq-10k")
    error = np.full(12, 25 * 2.0 / 10)  # a SD of 2 in 1..5, of a hundred votes
    expected = standards.measure(score, mos, error)
    for name, each in expected.items():
        assert found["standards"][name]["value"] == pytest.approx(
            each.value, rel=1e-6, nan_ok=True
        ) or np.isnan(each.value)
    assert found["ceiling"]["plcc"] == pytest.approx(np.sqrt(1 - 25 / mos.var()))
    text = tool(*words).stdout
    assert "koniq-10k: a perfect model would reach SRCC 0." in text and "RMSE*" in text
    assert "\nITU-T P.1401 and J.149, and Krasula: errors after a monotonic cubic" in text
    plain = f"koniq-10k={write_koniq(tmp_path / 'plain')}"
    (found,) = json.loads(tool(model, "--datasets", plain, "--json").stdout)["datasets"]
    assert found["standards"] == found["ceiling"] == {}
