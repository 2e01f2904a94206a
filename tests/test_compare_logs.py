import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_reading import write_files

import compare_logs
from hyperiqa.runs import differences, measures, reading
from hyperiqa.stats import intervals, metrics, resampling, standards

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = """Training and testing on koniq-10k dataset for 1 rounds...
KonIQ-10k: 7046 train images, 2010 test images
Epoch\tTrain_Loss\tTrain_SRCC\tTest_SRCC\tTest_PLCC\tSPAQ_SRCC\tSPAQ_PLCC
\rTesting:  50%|█████     | 20100/40200 [02:00<02:00, 100.0batch/s]\rTesting: 100%|█████| 40200/40200 [04:00<00:00, 100.0batch/s]
{rows}"""
SWIN = "1\t4.850\t\t0.8823\t\t0.9193\t\t0.9346\t0.8621\t0.8603\n3\t2.482\t\t0.9690\t\t0.9205\t\t0.9334\t0.8546\t0.8497\n"
RESNET = "1\t5.477\t\t0.8613\t\t0.9000\t\t0.9191\t\t0.8575\t\t0.8540\n2\t3.750\t\t0.9339\t\t0.8994\t\t0.9157\t\t0.8516\t\t0.8434\n"


@pytest.fixture
def tool(run_main):
    def run(*words, code=0):
        return run_main("compare_logs.py", compare_logs.main, *words, code=code)

    return run


@pytest.fixture
def public(tmp_path):
    for name, rows in (
        ("swin_multiscale_ranking_alpha0_20251217_103941", SWIN),
        ("resnet50_20251215_191130", RESNET),
    ):
        (tmp_path / f"{name}.log").write_text(PUBLIC.format(rows=rows))
    return tmp_path


@pytest.fixture
def logs(tmp_path):
    folder = tmp_path / "logs"
    for seed in (1, 2, 3):
        write_files(folder, f"noisy_{seed}", seed, epochs=(0.8, 0.6))
        write_files(folder, f"clean_{seed}", seed, epochs=(0.3, 0.15), ranking_loss_alpha=0.5)
    return folder


def test_two_public_logs_are_compared_unasked(tool, public):
    out = tool(public).stdout
    first, second = (
        line for line in out.splitlines() if line.startswith(("swin", "resnet")) and "/2" in line
    )
    assert (
        first.split()[2:]
        == "3/2 0.9690 0.9205 ~[.912 .928] 0.9334 0.8546 0.8497 4.0 cut off".split()
    )
    assert (
        second.split()[2:]
        == "1/2 0.8613 0.9000 ~[.890 .909] 0.9191 0.8575 0.8540 4.0 cut off".split()
    )
    assert "is better than resnet50: +0.0205 [+0.0079, +0.0333], p = 0.0014" in " ".join(
        out.split()
    )
    assert "approximate" in out
    assert "Bonett & Wright 2000" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "\033" not in out


def test_differences_within_the_noise_are_called_that(tool, public):
    (public / "resnet50_20251215_191130.log").write_text(
        PUBLIC.format(rows=SWIN.replace("0.9205", "0.9184"))
    )
    out = " ".join(tool(public).stdout.split())
    assert "no evidence of a difference: +0.0012" in out  # its best epoch is now 0.9193


def test_torch_is_not_imported():
    code = "import sys, compare_logs, search; print(sorted({'torch', 'timm', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_json_holds_what_the_bootstrap_says(tool, logs):
    whole = json.loads(tool(logs, "--json", "--against", "noisy_1", "--resamples", 1000).stdout)
    assert [row["run"][:5] for row in whole["runs"]] == ["clean"] * 3 + ["noisy"] * 3
    assert len(whole["comparisons"]) == 5
    pair = next(c for c in whole["comparisons"] if c["a"] == "clean_2")
    one, other = (reading.read_runs(logs / f"{name}.jsonl")[0] for name in ("clean_2", "noisy_1"))
    a, b = one.scores("test"), other.scores("test")
    draws = resampling.bootstrap("srcc", np.stack([a.score, b.score]), a.mos, 1000)
    expected = intervals.paired_difference(0, draws[:, 0], draws[:, 1])
    assert (pair["low"], pair["high"], pair["p"]) == pytest.approx(
        (expected.low, expected.high, expected.p)
    )
    assert pair["value"] == pytest.approx(
        metrics.srcc(a.score, a.mos) - metrics.srcc(b.score, b.mos)
    )
    assert (pair["method"], pair["images"]) == ("images, paired", 60)
    corrected = intervals.holm([c["p"] for c in whole["comparisons"]])
    assert [c["p_corrected"] for c in whole["comparisons"]] == pytest.approx(corrected)


def test_csv_and_markdown(tool, logs, tmp_path):
    out = tool(logs, "--markdown", "--csv", tmp_path / "t.csv", "--resamples", 200).stdout
    assert out.splitlines()[0].startswith("| run | backbone | best/ epochs |")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    run = reading.read_runs(logs / f"{rows[0]['run']}.jsonl")[0]
    assert float(rows[0]["test_srcc"]) == run.figure("test", "srcc", run.best)
    assert float(rows[0]["low"]) < float(rows[0]["value"]) < float(rows[0]["high"])
    assert rows[0]["setting_ranking_loss_alpha"] == "0.5"


def test_groups_of_seeds(tool, logs):
    out = tool(logs, "--group", "--pairs", "--resamples", 1000).stdout
    assert "ranking_loss_alpha=0.5 is better than ranking_loss_alpha=0.3: +" in " ".join(
        out.split()
    )
    assert "±" in out
    whole = json.loads(tool(logs, "--group", "--json", "--resamples", 1000).stdout)
    (pair,) = whole["comparisons"]
    assert pair["method"] == "seeds and images"
    assert pair["low"] > 0


def test_sorting(tool, logs):
    def names(*flags):
        return [
            row["run"]
            for row in json.loads(tool(logs, "--json", "--resamples", 100, *flags).stdout)["runs"]
        ]

    assert names("--metric", "rmse")[0].startswith("clean")
    assert names("--epoch", "1", "--sort", "spaq_srcc")[0].startswith("clean")


def test_every_cross_test_has_its_columns_and_can_be_the_metric(tool, logs):
    for name in ("clean_1", "noisy_1"):
        path = logs / f"{name}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for number, record in enumerate(records[1:-1], 1):
            record["kadid-10k"] = {"srcc": number / 8 + (name == "noisy_1") / 4, "plcc": 0.25}
        records[0]["data"]["kadid-10k"] = 90
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = (logs / "clean_1.jsonl", logs / "noisy_1.jsonl", "--metric", "kadid-10k_srcc")
    header, _, *rows = tool(*words, "--markdown").stdout.splitlines()[:4]
    assert "| SPAQ SRCC | SPAQ PLCC | KADID-10K SRCC [95 %] | KADID-10K PLCC |" in header
    assert [row.split(" | ")[0] for row in rows] == ["| noisy_1", "| clean_1"]
    low, high = (f"{bound:.3f}".replace("0.", ".") for bound in intervals.bonett_wright(0.5, 90))
    assert rows[0].split(" | ")[8:10] == [f"0.5000 ~[{low} {high}]", "0.2500"]
    (pair,) = json.loads(tool(*words, "--json").stdout)["comparisons"]
    assert (pair["value"], pair["method"], pair["images"]) == (0.25, "number of images", 90)


def test_unfinished_and_damaged_files(tool, logs):
    write_files(logs, "dead", end=None)
    (logs / "broken.jsonl").write_text("{")
    (logs / "pip.log").write_text("nothing")
    done = tool(logs, "--resamples", 100)
    assert "running?: the records have no end" in done.stdout
    assert len([line for line in done.stderr.splitlines() if line.startswith("skipped: ")]) == 2


@pytest.mark.parametrize(
    "words, said",
    [
        (["no/such/folder"], "no/such/folder: no such file or folder"),
        (["{logs}", "--against", "zebra"], "--against zebra: no such run; expected one of"),
        (["{logs}", "--against", "noisy"], "3 runs match"),
        (["{logs}", "--epoch", "first"], "expected best, last or a number"),
        (["{logs}", "--resamples", "5"], "at least 100"),
        (
            ["{logs}", "--metric", "psnr"],
            "--metric psnr: expected [SET_]FIGURE, FIGURE one of srcc, plcc, krcc, rmse",
        ),
        (["{logs}", "--csv", "no/x.csv"], "--csv no/x.csv: no folder no"),
        (["{logs}", "--makrdown"], "did you mean --markdown"),
        (["{empty}"], "expected logs"),
    ],
)
def test_mistakes_end_in_one_line(tool, logs, tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    done = tool(*(word.format(logs=logs, empty=tmp_path / "empty") for word in words), code=2)
    assert said in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def entry(path):
    (run,) = reading.read_runs(path)
    return measures.Entry(run.name, (run,))


def shift(path, edit):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *map(edit, lines[1:])]) + "\n")


def test_different_images_or_opinions_are_refused(logs):
    measure = measures.Measure(resamples=100)
    shift(logs / "noisy_1_predictions.csv", lambda line: line.replace("koniq-10k,0", "koniq-10k,x"))
    found = differences.compare(
        measure, entry(logs / "noisy_1.jsonl"), entry(logs / "clean_1.jsonl")
    )
    assert found.refused == "only 0 images in both predictions files; expected at least 30"
    scaled = logs / "noisy_2_predictions.csv"
    shift(scaled, lambda line: re.sub(r"(.*,.*),(.*),(.*)", r"\1,1\2,\3", line))
    found = differences.compare(
        measure, entry(logs / "noisy_2.jsonl"), entry(logs / "clean_1.jsonl")
    )
    assert found.refused == "60 of 60 common images have different MOS"
    write_files(logs, "other", dataset="livec")
    found = differences.compare(measure, entry(logs / "other.jsonl"), entry(logs / "clean_1.jsonl"))
    assert "different data sets" in found.refused


def test_images_that_only_one_run_has_are_left_out(logs):
    some = logs / "noisy_1_predictions.csv"
    shift(some, lambda line: line.replace("koniq-10k,00", "koniq-10k,y"))
    a, b = entry(logs / "noisy_1.jsonl"), entry(logs / "clean_1.jsonl")
    found = differences.compare(measures.Measure(resamples=100), a, b)
    assert found.images == 50
    score_a, score_b = a.runs[0].scores("test"), b.runs[0].scores("test")
    common = [key for key in score_b.keys if not key[0].startswith("00")]
    expected = metrics.srcc(*score_a.on(common)) - metrics.srcc(*score_b.on(common))
    assert found.difference.value == pytest.approx(expected)


def test_lower_rmse_is_better(logs):
    found = differences.compare_all(
        measures.Measure("rmse", resamples=300),
        [(entry(logs / "clean_1.jsonl"), entry(logs / "noisy_1.jsonl"))],
    )
    text = differences.sentence(
        found[0], {"clean_1": "A", "noisy_1": "B"}, 1, higher_is_better=False
    )
    assert text.startswith("A is better than B: −")


def test_the_verdict_follows_the_corrected_p_value(logs):
    a, b = entry(logs / "clean_1.jsonl"), entry(logs / "noisy_1.jsonl")
    found = intervals.Difference(0.004, 0.0002, 0.0078, 0.04)
    names = {"clean_1": "A", "noisy_1": "B"}
    one = differences.Comparison(a, b, "images, paired", 2010, found, corrected=0.04)
    text = differences.sentence(one, names, 1, higher_is_better=True)
    assert text == "A is better than B: +0.0040 [+0.0002, +0.0078], p = 0.04 (2,010 images)"
    many = differences.Comparison(a, b, "images, paired", 2010, found, corrected=0.12)
    text = differences.sentence(many, names, 3, higher_is_better=True)
    expected = "no evidence of a difference: +0.0040 [+0.0002, +0.0078], p = 0.04, corrected 0.12 (2,010 images)"
    assert text == f"A − B: {expected}"


def test_two_runs_of_koniq_size_compare_in_under_ten_seconds(tool, tmp_path):
    random = np.random.default_rng(0)
    mos, spaq = random.uniform(0, 100, 2010), random.uniform(0, 100, 2224)
    for name in ("a", "b"):
        score, cross = mos + 8 * random.normal(size=2010), spaq + 20 * random.normal(size=2224)
        figures = {
            "test": {"srcc": metrics.srcc(score, mos)},
            "spaq": {"srcc": metrics.srcc(cross, spaq)},
        }
        records = [
            {
                "type": "run",
                "flags": {"dataset": "koniq-10k", "seed": 1},
                "data": {"test": 2010, "spaq": 2224},
            },
            {"type": "epoch", "round": 1, "epoch": 1, "train": {}, **figures},
            {"type": "end", "status": "finished", "rounds": []},
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
        with (tmp_path / f"{name}_predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["dataset", "image", "mos", "score"])
            writer.writerows(
                ("koniq-10k", f"{i}.jpg", m, s)
                for i, (m, s) in enumerate(zip(mos.tolist(), score.tolist()))
            )
            writer.writerows(
                ("spaq", f"{i}.jpg", m, s)
                for i, (m, s) in enumerate(zip(spaq.tolist(), cross.tolist()))
            )
    done = subprocess.run(
        [sys.executable, ROOT / "compare_logs.py", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    out = done.stdout
    assert "10000 resamples" in out
    assert "(2,010 images)" in " ".join(out.split())


def write_epochs(folder, name, error=3.0):
    """What the epochs of `write_files`' runs would have left: the errors of the MOS."""
    scores = reading.read_predictions(folder / f"{name}_predictions.csv")["koniq-10k"]
    images = np.array([image for image, _ in scores.keys])
    np.savez(
        folder / f"{name}_epochs.npz",
        test_images=images[::-1],
        test_mos=scores.mos[::-1],
        test_error=np.linspace(error, 2 * error, len(images))[::-1],
        test_scores=scores.score[None, ::-1],
    )


def test_below_every_comparison_which_difference_is_found(tool, logs):
    out = tool(logs, "--against", "noisy_1", "--resamples", 1000).stdout
    said = [line.strip() for line in out.splitlines() if "repetitions" in line]
    assert len(said) == 5
    assert all(
        re.fullmatch(
            r"a difference of 0\.\d{4} is found in 80 of 100 repetitions with 60 images and one seed",
            s,
        )
        for s in said
    )
    grouped = tool(logs, "--group", "--pairs", "--resamples", 1000).stdout
    assert re.search(
        r"difference of 0\.\d{4} is found in 80 of 100 repetitions with 60 images and 3 seeds",
        grouped,
    )
    pair = json.loads(tool(logs, "--json", "--pairs", "--resamples", 1000).stdout)["comparisons"][0]
    assert pair["visible"] > 0


def test_the_standards_figures_and_their_tests(tool, logs):
    out = tool(
        logs / "noisy_1.jsonl", logs / "clean_1.jsonl", "--standards", "--resamples", 500
    ).stdout
    header = next(line for line in out.splitlines() if line.startswith("run") and "RMSE" in line)
    assert header.split()[:3] == ["run", "set", "RMSE"] and "AUC" not in out  # which needs votes
    scores = {
        n: reading.read_predictions(logs / f"{n}_1_predictions.csv")["koniq-10k"]
        for n in ("noisy", "clean")
    }
    expected = {n: standards.measure(s.score, s.mos, None)["rmse"].value for n, s in scores.items()}
    for name, value in expected.items():
        assert re.search(rf"^{name}_1 +test +{value:.4f} \[", out, re.M)
    assert re.search(
        r"^- test RMSE: clean_1 − noisy_1: −\d.*corrected.*; Pitman–Morgan p", out, re.M
    )
    assert re.search(r"^- all sets RMSE: ", out, re.M)
    for name in ("noisy_1", "clean_1"):
        write_epochs(logs, name)
    out = tool(
        logs / "noisy_1.jsonl", logs / "clean_1.jsonl", "--standards", "--resamples", 500
    ).stdout
    error = np.linspace(3, 6, len(scores["clean"].mos))
    found = standards.measure(scores["clean"].score, scores["clean"].mos, error)
    assert all(
        f"{found[name].value:.4f} [" in out
        for name in ("rmse_star", "outlier_ratio", "auc_ds", "accuracy")
    )
    ceiling = intervals.ceiling(scores["clean"].mos, error)["srcc"]
    assert f"a perfect model would reach SRCC {ceiling:.4f}, given the votes of 60 images" in out


def test_the_power_of_more_seeds(tool, logs):
    out = tool(logs, "--power", "clean_2", "--resamples", 1000).stdout
    line = next(line for line in out.splitlines() if line.startswith("1 (images alone): 0."))
    seen = [float(each.split(": ")[1]) for each in line.split("  ")]
    assert len(seen) == 10 and all(a > b for a, b in zip(seen[1:], seen[2:]))
    assert "known from 6" in out and "differ like the other runs here (3)" in out
    alone = tool(logs / "clean_1.jsonl", "--power", "--resamples", 1000).stdout
    assert "errors are taken to correlate by 0.9" in alone and "one seed does not show how" in alone
    assert "no such run" in tool(logs, "--power", "none", code=2).stderr
    (logs / "clean_1_predictions.csv").unlink()
    out = tool(logs / "clean_1.jsonl", "--power", "--standards").stdout
    assert "no power without predictions" in out and "None: they need the predictions" in out


def test_what_choosing_on_the_test_set_adds_is_said(tool, logs):
    path = logs / "clean_1.jsonl"
    path.write_text(
        path.read_text().replace('"best_epoch": 2', '"best_epoch": 2, "selection_price": 0.00123')
    )
    assert (
        "choosing the epoch on the test set inflates the SRCC by about 0.0012\n"
        in tool(path).stdout
    )
    assert "inflates" not in tool(logs / "clean_2.jsonl").stdout
    path.write_text(path.read_text().replace("0.00123", "0.00003"))
    assert "inflates" not in tool(path).stdout


def test_runs_of_one_name_are_told_by_their_folders(tool, logs, tmp_path):
    old = tmp_path / "old"
    write_files(old, "clean_1", 1, epochs=(0.4, 0.2))
    out = tool(logs / "clean_1.jsonl", old).stdout
    found = r"- \S*(logs|old)/clean is (better|worse) than \S*(logs|old)/clean: "
    assert re.search(found, " ".join(out.split())), out
    out = tool(logs, old, "--against", old / "clean_1.jsonl", "--resamples", 100).stdout
    pairs = [line for line in out.splitlines() if line.startswith("- ")]
    assert len(pairs) == 6 and all("old/clean" in " ".join(pair.split()) for pair in pairs)
    said = tool(logs, old, "--against", "clean_1", code=2).stderr
    assert f"2 runs match: {logs}/clean_1, {old}/clean_1" in said


def test_a_setting_is_matched_whole(tool, logs):
    write_files(logs, "plain", 1, epochs=(0.7, 0.5), ranking_loss_alpha=0.0)
    out = tool(logs, "--group", "--against", "alpha=0", "--resamples", 100).stdout
    assert "than default: " in out or "− default: " in out
    said = tool(logs, "--group", "--against", "alpha=0.", "--resamples", 100, code=2).stderr
    assert "no such run" in said


def test_runs_on_different_sets_are_apart(tool, logs):
    write_files(logs, "demo", 4, epochs=(0.2, 0.1), dataset="demo")
    out = tool(logs, "--resamples", 100).stdout
    rows = [line for line in out.splitlines() if re.search(r" \d/2 ", line)]
    assert rows[0].startswith("demo") and "demo (synthetic)" in rows[0]
    assert all("koniq-10k" in row for row in rows[1:])
    figures = [float(re.search(r" (0\.\d{4}) \[", row)[1]) for row in rows[1:]]
    assert figures == sorted(figures, reverse=True)
