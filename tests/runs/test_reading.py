import csv
import json
import math
import re

import numpy as np
import pytest

from hyperiqa.base.errors import UserError
from hyperiqa.runs import measures, reading, runs_table, tables
from hyperiqa.stats import intervals, metrics

IMAGES, CROSS = 60, 40


def write_files(
    folder,
    name,
    seed=42,
    epochs=(0.5, 0.3, 0.4),
    end="finished",
    rounds=1,
    sign=1,
    predictions=True,
    **flags,
):
    """Write a run as the solver leaves it into the folder; returns its jsonl's path."""
    folder.mkdir(exist_ok=True)
    run = {
        "type": "run",
        "flags": {
            "backbone": "swin_nano",
            "dataset": "koniq-10k",
            "seed": seed,
            "ranking_loss_alpha": 0.3,
        }
        | {
            "train_test_num": rounds,
            "run_name": name,
            "log_dir": str(folder),
            "epochs": len(epochs),
        }
        | flags,
        "device": "cpu",
        "precision": "fp32",
        "versions": {"commit": "0123456789"},
        "data": {"train": 160, "test": IMAGES, "spaq": CROSS},
    }
    records, chosen = [run], []
    for number in range(1, rounds + 1):
        # The opinions are the images', the predictions the run's.
        opinions, random = (
            np.random.default_rng(1),
            np.random.default_rng([seed, number, len(name)]),
        )
        mos, cross = opinions.uniform(0, 100, IMAGES), opinions.uniform(0, 100, CROSS)
        best = None
        for epoch, noise in enumerate(epochs, 1):
            score = mos + 100 * noise * random.normal(size=IMAGES)
            on_cross = sign * (cross + 100 * noise * random.normal(size=CROSS))
            figures = {
                "test": {"srcc": metrics.srcc(score, mos), "plcc": metrics.plcc(score, mos)},
                "spaq": {
                    "srcc": metrics.srcc(sign * on_cross, cross),
                    "plcc": metrics.plcc(sign * on_cross, cross),
                },
            }
            train = {"loss": 9.0 - epoch, "srcc": epoch / 10, "plcc": None}
            seconds = {"train": 60.0, "test": 30.0}
            records.append(
                {"type": "epoch", "round": number, "epoch": epoch, "train": train} | figures
            )
            records[-1]["seconds"] = seconds
            if best is None or figures["test"]["srcc"] > best[0]:
                best = figures["test"]["srcc"], epoch, score, on_cross
        if best is None:
            continue
        chosen.append({"round": number, "seed": seed + number - 1, "best_epoch": best[1]})
        ending = "_predictions.csv" if number == 1 else f"_round{number}_predictions.csv"
        if predictions:
            with (folder / (name + ending)).open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["dataset", "image", "mos", "score"])
                for dataset, scores, opinion in (
                    ("koniq-10k", best[2], mos),
                    ("spaq", best[3], cross),
                ):
                    rows = zip(opinion.tolist(), scores.tolist())
                    writer.writerows(
                        (dataset, f"{i:03}.jpg", m, s) for i, (m, s) in enumerate(rows)
                    )
    if end:
        records.append({"type": "end", "status": end, "rounds": chosen, "medians": {}})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def write_run(tmp_path):
    return lambda name, *args, **more: write_files(tmp_path / "logs", name, *args, **more)


def entry(run):
    return measures.Entry(run.name, (run,))


def test_a_jsonl_as_a_run(write_run):
    (run,) = reading.read_runs(write_run("a"))
    assert (run.name, run.backbone, run.best, run.status) == ("a", "swin_nano", 2, "finished")
    assert sorted(run.epochs) == [1, 2, 3]
    assert run.minutes == pytest.approx(1.5)
    assert (run.epoch("best"), run.epoch("last"), run.epoch("1"), run.epoch("9")) == (2, 3, 1, 0)
    assert math.isnan(run.figure("train", "plcc", 1))
    assert run.figure("train", "srcc", 3) == 0.3
    assert "log_dir" not in run.settings
    assert run.settings["precision"] == "fp32"


def test_a_loss_of_three_parts_is_read_whole(write_run):
    path = write_run("a")
    path.write_text(
        path.read_text().replace(
            '"loss": 8.0', '"loss": 8.0, "l1": 7.0, "rank": 0.5, "huber": 0.25'
        )
    )
    (run,) = reading.read_runs(path)
    assert [run.figure("train", part, 1) for part in ("loss", "l1", "rank", "huber")] == [
        8.0,
        7.0,
        0.5,
        0.25,
    ]


def test_rounds_are_runs_with_their_own_seeds_and_predictions(write_run):
    first, second = reading.read_runs(write_run("a", rounds=2))
    assert (first.name, second.name) == ("a_round1", "a_round2")
    assert (first.settings["seed"], second.settings["seed"]) == ("42", "43")
    assert second.predictions.name == "a_round2_predictions.csv"
    assert second.scores("test") is not None
    assert not np.array_equal(first.scores("test").score, second.scores("test").score)


def test_a_run_without_its_end(write_run):
    path = write_run("a", end=None)
    (run,) = reading.read_runs(path)
    assert (run.status, run.best) == (reading.UNDER_WAY, 2)
    with path.open("a") as file:
        file.write('{"type": "epoch", "round": 1, "ep')
    assert len(reading.read_runs(path)[0].epochs) == 3


def test_a_resumed_run_is_judged_by_its_last_record(write_run):
    path = write_run("a", end="interrupted")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0], lines[3]]) + "\n")
    assert reading.read_runs(path)[0].status == reading.UNDER_WAY
    path.write_text(
        "\n".join([*lines, lines[0], lines[3], lines[-1].replace("interrupted", "finished")]) + "\n"
    )
    (run,) = reading.read_runs(path)
    assert (run.status, len(run.epochs)) == ("finished", 3)


def test_best_epoch_follows_the_validation_set_where_there_is_one(write_run):
    path = write_run("a", end=None, predictions=False)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record, value in zip(records[1:], (None, 0.1, 0.7)):
        record["val"] = {"srcc": value, "plcc": value}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert reading.read_runs(path)[0].best == 3


def test_undefined_figures_are_no_best_epoch(write_run):
    path = write_run("a", end=None, predictions=False)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[1:]:
        record["test"] = {"srcc": None, "plcc": None}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (run,) = reading.read_runs(path)
    assert run.best == 3
    assert math.isnan(measures.Measure().estimate(entry(run)).value)


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "not a run's records"),
        ("{}\n{}\n", "line 1"),
        ("[1]\n", "not a run"),
        ("\x00\x01\nx\n", "line 1"),
    ],
)
def test_damaged_files_are_named_and_skipped(write_run, content, said):
    good = write_run("good")
    bad = good.with_name("bad.jsonl")
    bad.write_text(content)
    found, problems = reading.find([good.parent])
    assert [run.name for run in found] == ["good"]
    assert len(problems) == 1
    assert "bad.jsonl" in problems[0]
    assert said in problems[0]


@pytest.mark.parametrize(
    ("kind", "change", "line"),
    [
        ("epoch", {"test": "x"}, "test: expected named fields, found 'x'"),
        ("epoch", {"test": {"srcc": "x"}}, "test.srcc: expected a number, or null, found 'x'"),
        ("epoch", {"spaq": {"srcc": []}}, r"spaq: expected figures, found \{'srcc': \[\]\}"),
        ("epoch", {"epoch": -1}, "epoch: expected a whole number from 0 to 1000000000, found -1"),
        ("epoch", {"round": "1"}, "round: expected a whole number"),
        ("epoch", {"seconds": {"train": None}}, "seconds.train: expected a number of at least 0"),
        ("run", {"flags": None}, "flags: expected named fields, found None"),
        ("run", {"flags": {"seed": "x"}}, "flags.seed: expected a whole number of at least 0|from"),
        ("run", {"versions": 1}, "versions: expected named fields, found 1"),
        ("run", {"data": []}, r"data: expected named fields, found \[\]"),
        ("end", {"rounds": {}}, "rounds: expected a list"),
        ("end", {"rounds": [{"best_epoch": 1}]}, r"rounds\[0\].round: missing"),
        ("end", {"status": ["x"]}, r"status: expected a text, found \['x'\]"),
    ],
)
def test_a_damaged_record_is_named_by_its_field_and_costs_no_other_run(
    write_run, kind, change, line
):
    good = write_run("good")
    bad = write_run("bad")
    records = [json.loads(text) for text in bad.read_text().splitlines()]
    damaged = [r | change if r["type"] == kind else r for r in records]
    bad.write_text("".join(json.dumps(record) + "\n" for record in damaged))
    bad.with_suffix(".log").unlink(missing_ok=True)
    runs, problems = reading.find([good.parent])
    assert [run.name for run in runs] == ["good"]
    assert re.search(rf"bad.jsonl: line \d+ is no record of a run: {line}", problems[0])


def test_binary_file_and_empty_folder_are_named(write_run, tmp_path):
    path = write_run("a")
    path.write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    found, problems = reading.find([path, tmp_path / "empty"])
    assert found == []
    assert len(problems) == 2
    assert any("a.jsonl: cannot be read: 'utf-8' codec" in problem for problem in problems)


def test_each_run_once_and_the_plain_log_where_the_jsonl_is_damaged(write_run):
    path = write_run("a")
    log = path.with_suffix(".log")
    log.write_text(
        "Run: a\nSettings: seed=1\nEpoch\tTrain_Loss\tTrain_SRCC\tTest_SRCC\tTest_PLCC\n1\t5.0\t0.1\t0.2\t0.3\n"
    )
    assert [run.path for run in reading.find([log, path, path.parent])[0]] == [path]
    path.write_text("")
    (run,), problems = reading.find([path.parent])
    assert run.path == log
    assert "read a.log instead" in problems[0]


def test_the_plain_log_alone_gives_the_row_of_the_jsonl(write_run):
    path = write_run("a", predictions=False)
    (run,) = reading.read_runs(path)
    rows = [
        f"{n}\t{e['train']['loss']:.3f}\t{e['train']['srcc']:.4f}\tnan"
        + "".join(
            f"\t{e[part][name]:.4f}" for part in ("test", "spaq") for name in ("srcc", "plcc")
        )
        for n, e in run.epochs.items()
    ]
    header = (
        "Epoch Train_Loss Train_SRCC Train_PLCC Test_SRCC Test_PLCC SPAQ_SRCC SPAQ_PLCC".replace(
            " ", "\t"
        )
    )
    flags = json.loads(path.read_text().splitlines()[0])["flags"]
    settings = "Settings: " + " ".join(f"{name}={value}" for name, value in flags.items())
    counts = f"koniq-10k: 160 train images, {IMAGES} test images\nSPAQ cross test: {CROSS} images"
    precision = "Precision: training fp32 (as asked for), scoring fp32"
    text = [
        "Run: a",
        settings,
        "Device: cpu",
        precision,
        counts,
        header,
        *rows,
        "Median test of 1 round: SRCC 0.5",
    ]
    path.with_suffix(".log").write_text("\n".join(text) + "\n")
    path.unlink()
    (plain,) = reading.find([path.parent])[0]
    measure = measures.Measure()
    header, ((*row, minutes, status),) = runs_table.table([entry(run)], measure)
    _, ((*plain_row, plain_minutes, plain_status),) = runs_table.table([entry(plain)], measure)
    assert plain_row == row
    assert "~[" in row[4]
    assert (status, plain_status) == ("finished", "finished")
    assert (minutes, plain_minutes) == ("1.5", "–")
    assert plain.settings | {"code": "0123456"} == run.settings


def test_interval_from_predictions_holds_the_recorded_figure(write_run):
    (run,) = reading.read_runs(write_run("a"))
    for metric in (*metrics.FIGURES, *(f"spaq_{name}" for name in metrics.FIGURES)):
        found = measures.Measure(metric, resamples=500).estimate(entry(run))
        assert not found.approximate
        assert found.low < found.value < found.high
    assert measures.Measure().value(run) == run.figure("test", "srcc", 2)
    score, mos = (values for values in (run.scores("test").score, run.scores("test").mos))
    assert metrics.srcc(score, mos) == pytest.approx(run.figure("test", "srcc", 2), abs=1e-6)
    assert measures.Measure("krcc").value(run) == metrics.krcc(score, mos)


def test_other_epochs_have_the_approximate_interval(write_run):
    (run,) = reading.read_runs(write_run("a"))
    found = measures.Measure(epoch="3").estimate(entry(run))
    assert found.approximate
    assert (found.low, found.high) == intervals.bonett_wright(run.figure("test", "srcc", 3), IMAGES)
    assert math.isnan(measures.Measure("krcc", epoch="3").estimate(entry(run)).value)
    assert math.isnan(measures.Measure(epoch="7").estimate(entry(run)).value)


def test_the_whole_release_of_spaq_is_a_cross_test_too(write_run):
    path = write_run("a")
    predictions = path.with_name("a_predictions.csv")
    predictions.write_text(predictions.read_text().replace("\nspaq,", "\nspaq-official,"))
    (run,) = reading.read_runs(path)
    assert len(run.scores("spaq").keys) == CROSS and len(run.scores("test").keys) == IMAGES


def test_scores_of_badness_are_turned_for_spaq(write_run):
    (run,) = reading.read_runs(write_run("a", sign=-1, lower_is_better=True))
    assert run.figure("spaq", "srcc", 2) > 0.3
    scores = run.scores("spaq")
    assert metrics.srcc(scores.score, scores.mos) == pytest.approx(
        run.figure("spaq", "srcc", 2), abs=1e-6
    )
    found = measures.Measure("spaq_srcc", resamples=300).estimate(entry(run))
    assert 0 < found.low < found.value < found.high


def test_predictions_of_another_epoch_are_left_out_and_named(write_run):
    path = write_run("a")
    predictions = path.with_name("a_predictions.csv")
    lines = predictions.read_text().splitlines()
    predictions.write_text(
        "\n".join([lines[0], *(line + "1e2" for line in lines[1:20]), *lines[20:]]) + "\n"
    )
    (run,), problems = reading.find([path])
    assert "not that of epoch 2" in problems[0]
    assert measures.Measure().estimate(entry(run)).approximate
    predictions.write_text("image,score\n")
    assert "expected the columns" in reading.find([path])[1][0]
    predictions.write_text("\n".join([*lines[:4], "koniq-10k,x.jpg,12"]))
    with pytest.raises(UserError, match="line 5"):
        reading.read_predictions(predictions)


def test_images_of_one_name_are_told_apart_by_their_order(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("dataset,image,mos,score\nx,1.jpg,10,1\nx,1.jpg,20,2\nx,0.jpg,30,3\n")
    scores = reading.read_predictions(file)["x"]
    assert scores.keys == (("0.jpg", 0), ("1.jpg", 0), ("1.jpg", 1))
    assert scores.mos.tolist() == [30, 10, 20]
    assert scores.on([("1.jpg", 1)])[0].tolist() == [2]


def test_groups_are_equal_settings_with_different_seeds(write_run):
    for seed in (1, 2, 3):
        write_run(f"weak{seed}", seed)
        write_run(f"strong{seed}", seed, epochs=(0.4, 0.2), ranking_loss_alpha=0.5)
    write_run("again", 3)
    path = write_run("broken", 4, end="interrupted")
    groups, notes = measures.group(reading.find([path.parent])[0])
    assert sorted(len(group.runs) for group in groups) == [3, 3]
    assert sorted(sorted(group.name.split()) for group in groups) == [
        ["epochs=2", "ranking_loss_alpha=0.5"],
        ["epochs=3", "ranking_loss_alpha=0.3"],
    ]
    assert any("broken: interrupted" in note for note in notes)
    assert any("seed 3 once more" in note for note in notes)
    measure = measures.Measure(resamples=300)
    best = measures.ranked(groups, measure)[0]
    assert "ranking_loss_alpha=0.5" in best.name
    found, values = measure.estimate(best), [measure.value(run) for run in best.runs]
    assert found.value == pytest.approx(np.mean(values))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert found.low < found.value < found.high


def test_rounds_of_a_public_log_are_a_group_of_their_own(tmp_path):
    for name in ("a", "b"):
        rows = "".join(f"Round {r}\n1\t5.0\t0.8\t0.9{r}\t0.9\n" for r in (1, 2))
        text = (
            "Epoch\tTrain_Loss\tTrain_SRCC\tTest_SRCC\tTest_PLCC\n"
            + rows
            + "Testing median SRCC 0.9\n"
        )
        (tmp_path / f"{name}.log").write_text(text)
    groups, _ = measures.group(reading.find([tmp_path])[0])
    assert [len(group.runs) for group in groups] == [2, 2]
    found = measures.Measure().estimate(groups[0])
    assert found.value == pytest.approx(0.915)
    assert found.approximate


def test_only_settings_known_to_differ_are_shown(write_run, tmp_path):
    a, b = write_run("a"), write_run("b", ranking_loss_alpha=0.5, lr=1e-5)
    log = tmp_path / "swin_20251215_181606.log"
    log.write_text(
        "Backbone: Swin Transformer Tiny\nEpoch\tTrain_Loss\tTrain_SRCC\tTest_SRCC\tTest_PLCC\n1\t5\t0.1\t0.2\t0.3\n"
    )
    found = [entry(run) for path in (a, b, log) for run in reading.read_runs(path)]
    header, rows = runs_table.settings_table(found[:2])
    assert header == ["run", "ranking_loss_alpha"]
    assert [row[1:] for row in rows] == [["0.3"], ["0.5"]]
    header, rows = runs_table.settings_table(found)
    assert header == ["run", "backbone", "ranking_loss_alpha", "code"]
    assert rows[2][1:] == ["swin_tiny_patch4_window7_224", "0", "public"]


def test_margin_without_a_ranking_loss_is_no_setting(write_run):
    (run,) = reading.read_runs(
        write_run("a", ranking_loss_alpha=0.0, ranking_loss_margin=0.5, training_fixes=[])
    )
    assert "ranking_loss_margin" not in run.settings
    assert run.settings["training_fixes"] == "none"


def test_ranking_puts_the_better_first_and_the_unknown_last(write_run):
    paths = [
        write_run("noisy", epochs=(0.9,)),
        write_run("clean", epochs=(0.1,)),
        write_run("none", epochs=()),
    ]
    found = [entry(run) for path in paths for run in reading.read_runs(path)]
    for metric in ("srcc", "rmse"):
        names = [e.name for e in measures.ranked(found, measures.Measure(metric, resamples=100))]
        assert names == ["clean", "noisy", "none"]


def test_logistic_fit_changes_plcc_and_is_of_predictions_alone(write_run):
    (run,) = reading.read_runs(write_run("a"))
    scores = run.scores("test")
    fitted = measures.Measure("plcc", logistic=True, resamples=300)
    assert fitted.value(run) == metrics.plcc(metrics.fitted(scores.score, scores.mos), scores.mos)
    assert math.isnan(measures.Measure("plcc", logistic=True, epoch="3").value(run))
    assert measures.Measure("srcc", logistic=True).value(run) == run.figure("test", "srcc", 2)
    header, (row,) = runs_table.table([entry(run)], fitted)
    assert row[5].startswith(f"{fitted.value(run):.4f} [")


@pytest.mark.parametrize(
    "estimate, text",
    [
        (intervals.Estimate(math.nan), "–"),
        (intervals.Estimate(0.92051), "0.9205"),
        (intervals.Estimate(0.9205, 0.91234, 0.928), "0.9205 [.912 .928]"),
        (intervals.Estimate(0.0567, -0.2271, 0.3301, True), "0.0567 ~[-.227 .330]"),
        (intervals.Estimate(10.1234, 9.5, 10.75), "10.1234 [9.500 10.750]"),
        (intervals.Estimate(0.9205, 0.91, 0.93, False, 0.0012), "0.9205 ±.0012 [.910 .930]"),
        (intervals.Estimate(0.9998, 0.99, 0.99996), "0.9998 [.990 1.000]"),
    ],
)
def test_how_a_figure_is_shown(estimate, text):
    assert tables.estimate_text(estimate) == text
