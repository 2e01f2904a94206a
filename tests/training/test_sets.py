"""Several data sets in one training: how their scores meet and part again, which patches, which tests."""

import csv
import json
import re
import statistics

import numpy as np
import pytest
import torch
from helpers import write_images, write_koniq
from PIL import Image

import compare_logs
import evaluate
import report
from hyperiqa import __main__
from hyperiqa.base.errors import UserError
from hyperiqa.datasets.names import EPOCH_KEYS, RESERVED
from hyperiqa.scoring import quality_model
from hyperiqa.stats import metrics
from hyperiqa.training.epoch_batches import train_batches
from hyperiqa.training.log import RunLog
from hyperiqa.training.options import figure_settings
from hyperiqa.training.sets import RunData
from HyperIQASolver import HyperIQASolver


def write_csv(folder, name, scores, seed):
    """A table of images with these training and test scores, in a folder of its own."""
    names = {
        part: [f"{name}_{part}_{i}.png" for i in range(len(own))] for part, own in scores.items()
    }
    for k, listed in enumerate(names.values()):
        write_images(folder / name, listed, (90, 80), seed + k)
    with (folder / name / "list.csv").open("w", newline="") as file:
        rows = [(i, s, part) for part in names for i, s in zip(names[part], scores[part])]
        csv.writer(file).writerows([("image", "mos", "split"), *rows])
    return folder / name / "list.csv"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """KonIQ's layout (12 + 6 images, 0..100), `bad` of 1..5 with badness (8 + 4), `own` of 0..9 (6 + 5)."""
    root = tmp_path_factory.mktemp("several")
    write_koniq(root / "koniq")
    write_csv(root, "bad", {"train": np.linspace(5, 1, 8), "test": np.linspace(4.5, 1.5, 4)}, 20)
    write_csv(root, "own", {"train": np.linspace(0.5, 9, 6), "test": np.linspace(1, 8, 5)}, 40)
    return root


@pytest.fixture
def several(settings, place):
    def make(*flags, script="resnet"):
        sets = [
            f"koniq-10k={place / 'koniq'}",
            *(f"csv:{name}={place / name / 'list.csv'}" for name in ("bad", "own")),
        ]
        return settings(script, "--dataset", *sets, "--lower_is_better", "bad", "--no_spaq", *flags)

    return make


def opened(options, seed=42):
    data, log = (
        RunData(options, seed),
        RunLog(options.log_dir, options.checkpoint_dir, "data", False),
    )
    data.decode(torch.device("cpu"), log, new=True)
    log.close()
    return data


def run(options):
    solver = HyperIQASolver(options)
    solver.run()
    return solver


def joined(data, epoch=1, seed=42):
    """All training patches of an epoch: batch, and where they lie."""
    batches = train_batches(data, seed, epoch, 10**6)
    return batches[0], batches.patches


@pytest.mark.parametrize("how", ["first", "range"])
def test_scores_meet_on_one_scale_and_part_again(several, how):
    data = opened(several("--mix_scale", how))
    batch, patches = joined(data)
    own = {name: np.array([r.score for r in d.split("train")]) for name, d in data.trained.items()}
    assert list(own) == ["koniq-10k", "bad", "own"] and patches.image.max() == 25
    first = own["koniq-10k"]
    for number, (name, scores) in enumerate(own.items()):
        turned = -1 if name == "bad" else 1
        common = data.scales[name].common(scores)
        if how == "first":
            assert (common.mean(), common.std()) == (
                pytest.approx(first.mean()),
                pytest.approx(first.std()),
            )
        else:  # KonIQ's range is 0..100, a table's that of its training images
            low, high = (0, 100) if name == "koniq-10k" else (scores.min(), scores.max())
            expected = 100 * (scores - low) / (high - low)
            assert np.allclose(common, expected if turned > 0 else 100 - expected)
        assert np.all(np.sign(np.diff(common)) == turned * np.sign(np.diff(scores)))
        assert np.allclose(data.scales[name].own(common), scores, rtol=1e-12)
        trained = np.unique(batch["mos"][batch["set"] == number].numpy())
        assert np.allclose(trained, np.sort(common), rtol=1e-6)
    assert data.common.higher_is_better


def test_patches_are_those_of_their_own_sets_images(several, place):
    """Against each set read alone: every joined patch is the crop of its image at its place."""
    data = opened(several())
    batch, patches = joined(data)
    images = [
        (n, i.cache[i.cache.index[r.path]])
        for n, i in data.images.items()
        for r in i.records("train")
    ]
    for k in range(len(patches)):
        name, image = images[patches.image[k]]
        crop = image[patches.top[k] : patches.top[k] + 64, patches.left[k] : patches.left[k] + 64]
        assert np.array_equal(batch["patches"][k].numpy(), crop)
        assert list(data.trained)[batch["set"][k]] == name
    again, other = joined(data)[1], joined(data, epoch=2)[1]
    assert np.array_equal(again.image, patches.image) and not np.array_equal(
        other.image, patches.image
    )


@pytest.mark.parametrize(
    ("flags", "counts"),
    [
        ((), [24, 16, 12]),
        (("--mix_patches", 1, 5, 10), [12, 40, 60]),
        (("--mix_patches", "balanced"), [17, 17, 17]),
    ],
)
def test_how_many_patches_of_each_set(several, flags, counts):
    data = opened(several(*flags))
    batch, patches = joined(data)
    assert batch["set"].bincount().tolist() == counts
    per_image = np.bincount(patches.image, minlength=26)
    for start, end in ((0, 12), (12, 20), (20, 26)):
        assert np.ptp(per_image[start:end]) <= 1
    if flags[1:] == ("balanced",):  # who gets one more is drawn anew
        assert not np.array_equal(
            per_image, np.bincount(joined(data, epoch=2)[1].image, minlength=26)
        )


def test_a_run_tests_every_set_on_its_own_scale(several, run_main, place, tmp_path):
    solver = run(several("--epochs", 2, "--ranking_loss_alpha", 0.3, "--loss", "fidelity"))
    log = solver.log.path(".log").read_text()
    header = "Test_SRCC\tTest_PLCC\tKONIQ-10K_SRCC\tKONIQ-10K_PLCC\tBAD_SRCC\tBAD_PLCC\tOWN_SRCC\tOWN_PLCC\n"
    assert header in log and "bad: 8 train images, 4 test images\nbad: scores become -" in log
    first, *epochs, end = [
        json.loads(line) for line in solver.log.path(".jsonl").read_text().splitlines()
    ]
    assert first["data"] == {"train": 26, "test": 15, "koniq-10k": 6, "bad": 4, "own": 5}
    assert first["flags"]["dataset"] == "koniq-10k+csv:bad+csv:own" and set(
        first["fingerprint"]
    ) == {
        "koniq-10k",
        "bad",
        "own",
    }
    for epoch in epochs:
        for figure in ("srcc", "plcc"):
            each = [epoch[name][figure] for name in ("koniq-10k", "bad", "own")]
            assert epoch["test"][figure] == pytest.approx(np.mean(each))
    best = max(epochs, key=lambda epoch: epoch["test"]["srcc"])
    rows = list(csv.reader(solver.log.path("_predictions.csv").open()))[1:]
    for name in ("koniq-10k", "bad", "own"):
        mos, score = np.array([[float(row[2]), float(row[3])] for row in rows if row[0] == name]).T
        assert metrics.srcc(score, mos) == pytest.approx(best[name]["srcc"])

    words = (solver.log.log_dir, "--metric", "bad_srcc", "--resamples", 100)
    table = run_main("compare_logs.py", compare_logs.main, *words).stdout
    assert f"{best['bad']['srcc']:.4f} [" in table
    run_main(
        "report.py",
        report.main,
        *words[:3],
        "--output",
        tmp_path / "r.html",
        "--checkpoint_dir",
        "no",
        "--cache_dir",
        tmp_path / "cache",
    )
    page = json.loads(
        re.search(r'id="page">(.*?)</script>', (tmp_path / "r.html").read_text(), re.S)[1]
    )
    assert list(page["sets"]) == ["koniq-10k", "bad", "own"]
    assert page["sections"][-1]["title"] == "Certificates"
    assert "no such file" in page["sections"][-1]["blocks"][0]["lines"][0]

    # evaluate.py gives each set its own scale back, and the same scores; predict.py where it is asked.
    sets = [
        f"koniq-10k={place / 'koniq'}",
        *(f"csv:{name}={place / name / 'list.csv'}" for name in ("bad", "own")),
    ]
    words = [
        solver.log.checkpoints,
        "--datasets",
        *sets,
        "--lower_is_better",
        "bad",
        "--predictions",
        tmp_path / "p.csv",
    ]
    run_main(
        "evaluate.py", evaluate.main, *words, "--cache_dir", tmp_path / "cache", "--resamples", 100
    )
    again = list(csv.reader((tmp_path / "p.csv").open()))[1:]
    assert [row[:2] for row in again] == [row[:2] for row in rows]
    assert np.allclose([float(row[3]) for row in again], [float(row[3]) for row in rows], atol=1e-4)
    model = quality_model.load(solver.log.checkpoints)
    common = model.score(place / "bad" / "bad_test_0.png")
    scale = solver.data.scales["bad"]
    said = run_main(
        "predict.py",
        __main__.main,
        solver.log.checkpoints,
        place / "bad" / "bad_test_0.png",
        "--scale",
        "bad",
    )
    score = float(said.stdout.splitlines()[1].split(",")[1])
    assert score == pytest.approx((common - scale.offset) / scale.factor, abs=1e-3)
    recorded = next(float(row[3]) for row in rows if row[1] == "bad_test_0.png")
    assert score == pytest.approx(recorded, abs=1e-3)
    model.use_scale("csv:bad")
    assert model.description["higher_is_better"] is False and model.description["score_range"] == [
        1,
        5,
    ]
    with pytest.raises(UserError, match="--scale x: the model was trained on koniq-10k, bad, own"):
        model.use_scale("x")


@pytest.mark.parametrize(("flags", "part"), [((), "test"), (("--select_set", "csv:own"), "own")])
@pytest.mark.parametrize("on_val", [False, True])
def test_the_best_epoch_is_that_of_the_mean_or_of_one_set(several, flags, part, on_val):
    more = ("--select_on", "val", "--val_fraction", 0.3, "--label_noise", 1) if on_val else ()
    solver = run(several("--epochs", 3, "--lr", 1e-2, *flags, *more))
    epochs = [
        e
        for e in map(json.loads, solver.log.path(".jsonl").read_text().splitlines())
        if e["type"] == "epoch"
    ]
    part = {"test": "val", "own": "own_val"}[part] if on_val else part
    found = [epoch[part]["srcc"] for epoch in epochs]
    assert solver.state.rounds[0]["best_epoch"] == 1 + found.index(max(found))
    assert ("bad_val" in epochs[0]) == on_val
    check_keys_of_records(solver, on_val)


def check_keys_of_records(solver, on_val):
    """Beside the names of sets there are reserved names alone, which no set can replace."""
    first, epoch, *_, end = map(json.loads, solver.log.path(".jsonl").read_text().splitlines())
    model = quality_model.load(solver.log.checkpoints).description
    sets = {"koniq-10k", "bad", "own"}
    beside_sets = [
        *(first["data"], first["fingerprint"], epoch, epoch["seconds"], end["rounds"][0]),
        *(end["medians"], model["metrics"], model["certificate"]["figures"]),
    ]
    keys = {key for record in beside_sets for key in record}
    parts = sets | ({f"{name}_val" for name in sets} if on_val else set())
    assert parts | {"selection_price"} <= keys and ("votes" in keys) == on_val
    assert keys - parts <= set(RESERVED)
    assert set(epoch) - parts == set(EPOCH_KEYS) - (set() if on_val else {"val"})


BY_VOTES = ("--loss", "fidelity", "--fidelity_sigma", "votes")


def test_the_fidelity_loss_of_votes_needs_votes_in_every_set(settings, place, tmp_path):
    voted = f"koniq-10k={write_koniq(tmp_path / 'koniq-10k', votes=True)}"
    own = f"csv:own={place / 'own' / 'list.csv'}"
    for sets, name in (([f"koniq-10k={place / 'koniq'}"], "koniq-10k"), ([voted, own], "own")):
        options = settings("resnet", "--dataset", *sets, "--no_spaq", *BY_VOTES)
        with pytest.raises(UserError) as raised:
            RunData(options, 42)
        message = f"--fidelity_sigma votes: {name} gives no standard deviations of its votes; "
        assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_votes_of_several_sets_come_to_the_common_scale(settings, tmp_path):
    """kadid-10k of 1..5 is brought to the mean and spread of koniq-10k; so are its deviations."""
    voted = write_koniq(tmp_path / "koniq-10k", votes=True)
    kadid = tmp_path / "kadid"
    rows = [
        (f"I{i:02}_01_0{k}.png", 1 + (i * k) % 5, 0.4 + 0.1 * i)
        for i in range(1, 7)
        for k in (1, 3)
    ]
    write_images(kadid / "images", [name for name, _, _ in rows], (96, 72))
    table = [f"{name},{name[:3]}.png,{mos},{sd}" for name, mos, sd in rows]
    (kadid / "dmos.csv").write_text("\n".join(["dist_img,ref_img,dmos,var", *table]))
    sets = ("--dataset", f"koniq-10k={voted}", f"kadid-10k={kadid}", "--no_spaq")
    data = opened(settings("resnet", *sets, *BY_VOTES, "--val_fraction", 0.3, "--select_on", "val"))
    assert any(
        "takes the standard deviations of the votes of 8 of 8 training" in n for n in data.notes
    )
    batch, patches = joined(data)
    records = [r for images in data.images.values() for r in images.records("train")]
    scores = {
        name: [r.score for r in images.records("train")] for name, images in data.images.items()
    }
    factor = statistics.pstdev(scores["koniq-10k"]) / statistics.pstdev(scores["kadid-10k"])
    sd_of = {name: factor * sd for name, _, sd in rows}
    expected = [sd_of.get(records[i].name, records[i].deviation) for i in patches.image]
    assert batch["sigma"].numpy() == pytest.approx(expected, rel=1e-5)
    # Other votes make another run for this loss alone.
    plain = RunData(settings("resnet", *sets), 42)
    assert "votes" in data.fingerprint and "votes" not in plain.fingerprint


@pytest.mark.parametrize(("flag", "name"), [("--select_set", "own"), ("--lower_is_better", "bad")])
def test_both_spellings_of_a_set_are_the_same_settings(several, flag, name):
    short, long = (figure_settings(several(flag, word)) for word in (name, f"csv:{name}"))
    assert short == long and short[flag.removeprefix("--")]


def test_images_that_one_set_tests_and_another_trains_on_are_refused(
    several, settings, place, tmp_path
):
    """A training image of KonIQ's, as a PNG of other name and size class: the same pixels in another set's test split."""
    twin = tmp_path / "twin"
    write_csv(tmp_path, "twin", {"train": [1, 2, 3], "test": [1, 2]}, 77)
    Image.open(place / "koniq" / "train" / "train_3.jpg").convert("RGB").save(
        twin / "twin_test_1.png"
    )
    sets = (
        "--dataset",
        f"koniq-10k={place / 'koniq'}",
        f"csv={twin / 'list.csv'}",
        "--no_spaq",
        "--epochs",
        1,
    )
    said = "1 image of a test split is another set's training image: csv twin_test_1.png = koniq-10k train_3.jpg"
    with pytest.raises(UserError, match=said):
        run(settings("resnet", *sets))
    solver = run(settings("resnet", *sets, "--allow_overlap"))
    assert said in solver.log.path(".log").read_text()


def test_a_start_and_a_teacher_come_to_the_scale_on_which_the_sets_meet(several, settings, place):
    flags = (
        "--dataset",
        f"csv:bad={place / 'bad' / 'list.csv'}",
        *"--lower_is_better bad --no_spaq --epochs 1".split(),
    )
    start = run(settings("resnet", *flags, "--run_name", "start"))
    solver = HyperIQASolver(
        several(
            "--mix_scale",
            "range",
            "--init",
            start.log.checkpoints,
            "--teacher",
            start.log.checkpoints,
        )
    )
    with solver.opened():
        solver.begin_round(1)
        images = torch.rand(3, 3, 64, 64)
        with torch.no_grad():
            theirs, *ours = (
                m.eval()(images)["scores"]
                for m in (start.round.model, solver.round.model, solver.teacher)
            )
    for scores in ours:  # badness 1..5 becomes quality 100..0
        assert torch.allclose(scores, 125 - 25 * theirs, atol=1e-3)


def test_a_cross_test_of_badness_is_turned(settings, place):
    sets = [f"csv:{name}={place / name / 'list.csv'}" for name in ("bad", "own")]
    flags = (
        "--no_spaq",
        "--dataset",
        f"koniq-10k={place / 'koniq'}",
        "--cross_test",
        *sets,
        "--lower_is_better",
        "bad",
    )
    solver = run(settings("resnet", *flags, "--epochs", 1))
    rows = list(csv.reader(solver.log.path("_predictions.csv").open()))[1:]
    for name, sign in (("bad", -1), ("own", 1)):
        mos, score = np.array([[float(row[2]), float(row[3])] for row in rows if row[0] == name]).T
        assert metrics.srcc(sign * score, mos) == pytest.approx(
            solver.state.rounds[0][name]["srcc"]
        )


def test_a_run_over_several_sets_goes_on_to_the_bit(several):
    class Stops(HyperIQASolver):
        def stop_if_asked(self):
            if self.state.epoch == 2 and self.state.progress.step == 2:
                raise UserError("stopped")

    flags = (
        *"--mix_patches balanced --ranking_loss_alpha 0.3 --label_noise 2".split(),
        *"--checkpoint_minutes 0".split(),
    )
    whole = run(several(*flags, "--run_name", "whole"))
    with pytest.raises(UserError, match="stopped"):
        Stops(several(*flags, "--run_name", "cut")).run()
    again = run(several(*flags, "--run_name", "cut", "--resume", "auto"))
    one, other = (s.log.path("_predictions.csv").read_text() for s in (whole, again))
    assert one == other


def test_stored_features_of_several_sets_train_as_the_pixels_do(several, place):
    """In fp32 to rounding, over two rounds with splits of their own; a run that goes on, to the bit."""

    class Stops(HyperIQASolver):
        def stop_if_asked(self):
            if self.state.round == 2 and self.state.progress.step == 2:
                raise UserError("stopped")

    flags = (
        *"--freeze_backbone --fixed_crops --mix_patches balanced --ranking_loss_alpha 0.3".split(),
        *"--select_on val --val_fraction 0.3 --train_test_num 2 --checkpoint_minutes 0".split(),
        *("--epochs", 1, "--cross_test", f"csv:more={place / 'own' / 'list.csv'}"),
        *("--allow_overlap", "--cache_dir", place / "cache"),
    )
    named = {
        name: several(*flags, "--feature_dtype", dtype, "--run_name", name, script="timm")
        for name, dtype in (("pixels", "none"), ("stored", "fp32"), ("cut", "fp32"))
    }
    pixels, stored = run(named["pixels"]), run(named["stored"])
    scores = [
        np.array(
            [float(row[3]) for row in csv.reader(solver.log.path(name).open()) if row[2] != "mos"]
        )
        for solver in (pixels, stored)
        for name in ("_predictions.csv", "_round2_predictions.csv")
    ]
    assert min(map(np.ptp, scores)) > 1
    assert np.allclose(scores[:2], scores[2:], rtol=1e-5)
    text = stored.log.path(".log").read_text()
    assert all(f"Features of {part}:" in text for part in ("train", "bad", "bad_val", "more"))
    with pytest.raises(UserError, match="stopped"):
        Stops(named["cut"]).run()
    named["cut"].resume = "auto"
    again = run(named["cut"])
    for name in ("_predictions.csv", "_round2_predictions.csv"):
        assert again.log.path(name).read_text() == stored.log.path(name).read_text()


@pytest.mark.parametrize("balanced", [False, True])
def test_fixed_crops_of_several_sets_are_the_same_in_all_epochs(several, balanced):
    data = opened(several("--fixed_crops", *(("--mix_patches", "balanced") if balanced else ())))
    first, *others = (joined(data, epoch=epoch)[1] for epoch in (0, 1, 2))
    for patches in others:
        for name in ("image", "top", "left"):
            assert np.array_equal(getattr(first, name)[patches.row], getattr(patches, name))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--mix_scale", "none"),
            "scores of koniq-10k mean quality, those of bad badness; expected one direction",
        ),
        (
            ("--mix_patches", 1, 2),
            "--mix_patches 1 2: expected a number for each of koniq-10k, csv:bad, csv:own, or bal",
        ),
        (("--select_set", "ow"), "--select_set ow: expected one of koniq-10k, csv:bad, csv:own"),
        (("--dataset_path", "x"), "--dataset_path is for a single set"),
        (
            ("--lower_is_better", "badd"),
            "--lower_is_better badd: expected CSV sets of this run: bad, own",
        ),
        (
            ("--cross_test", "csv:bad=x.csv"),
            "--cross_test csv:bad: the run tests on it anyway",
        ),
    ],
)
def test_mistakes_are_one_line(several, flags, said):
    with pytest.raises(UserError, match=said):
        RunData(several(*flags), 42)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--mix_scale", "range"), "--mix_scale needs several sets"),
        (("--dataset", "csv:koniq-10k=x.csv"), "expected csv:NAME=FILE.csv"),
        (("--dataset", "csv=a.csv", "csv=b.csv"), "--dataset: csv is listed twice"),
        (("--cross_test", "csv:test=x.csv"), "--cross_test csv:test=x.csv: expected csv:NAME=FILE"),
        (
            ("--dataset", "csv:low=a.csv", "--cross_test", "csv:LOW=b.csv"),
            "--cross_test csv:LOW=b.csv: expected a name that csv:low does not have too",
        ),
        (("--dataset", "demo", "spaq"), "--dataset demo can only be trained alone"),
    ],
)
def test_mistakes_of_flags_are_one_line(settings, flags, said):
    with pytest.raises(UserError, match=said):
        settings("resnet", *flags)
