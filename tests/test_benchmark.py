import json

import published
import pytest
from helpers import write_images
from PIL import Image

import benchmark
from hyperiqa.datasets.readers import READERS
from hyperiqa.scoring.cost_tables import SCORE_HEADER, STEP_PARTS, score_row


def test_generated_images_are_koniq_and_spaq_shaped_and_in_proportion(tmp_path, monkeypatch):
    monkeypatch.setattr(
        published, "PICTURES", 2
    )  # fewer different ones: drawing them is what takes the time
    published.make_images(tmp_path, 20)
    koniq = READERS["koniq-10k"](tmp_path / "koniq-10k").read()
    spaq = READERS["spaq"](tmp_path / "spaq-test").read_all_as_test()
    counts = len(koniq.split("train")), len(koniq.split("test")), len(spaq.records)
    assert counts == (12, 4, 4)  # 7,046 : 2,010 : 2,224
    assert Image.open(koniq.records[0].path).size == (1024, 768)
    assert Image.open(spaq.records[0].path).size == (3264, 2448)
    assert all(5 <= r.score <= 95 for r in koniq.records)


def test_the_table_says_ratios_so_that_more_is_better_but_for_memory():
    plain = {"first start": 10.0, "training": 5.0, "peak memory": 100.0, "compute only": None}
    ours = {"first start": 2.0, "training": 20.0, "compute only": 25.0, "peak memory": 50.0}
    lines = {line[:20].strip(): line.split()[-1] for line in benchmark.phase_table(plain, ours)}
    assert (lines["first start"], lines["training"], lines["peak memory"]) == (
        "5.00",
        "4.00",
        "0.50",
    )
    assert (
        lines["compute only"] == "patches/s"
        and "training / compute only: 0.800" in benchmark.phase_table(plain, ours)[-1]
    )


@pytest.mark.slow
def test_both_procedures_run_and_are_measured(launcher, tmp_path):
    words = [
        *"--backbone resnet --images 10 --repeats 1 --batch_size 4".split(),
        *"--test_patch_num 2".split(),
    ]
    done = launcher.tool("benchmark.py", *words, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["medians"]
    phases = set(benchmark.PHASES) - {"peak GPU memory"}
    assert phases <= set(found["ours"]) and phases - {"compute only"} <= set(found["plain"])
    assert all(value > 0 for medians in found.values() for value in medians.values())


@pytest.mark.parametrize(
    "words",
    [
        ["--images", "3"],
        ["--dataset_path", "x"],
        ["--backbone", "vgg"],
        ["--latex", "x.tex"],
        ["--model", "resnet18", "--images", "30"],
        ["--model", "no_such_net"],
        ["--processes", "2"],
        ["--step", "2", "--processes", "0"],
        ["--step", "2", "--model", "resnet18"],
        ["--model", "resnet18+sum"],
        ["--peer", "pyiqa"],
        ["--score", "--train_patch_num", "3"],
        ["--score", "gone", "--model", "test_vit"],
    ],
)
def test_mistakes_are_one_line(launcher, words):
    done = launcher.tool("benchmark.py", *words)
    said = [line for line in done.stderr.splitlines() if not line.startswith("Measuring ")]
    assert done.returncode == 2 and len(said) == 1 and said[0].startswith("error: ")


def test_a_models_costs_are_a_table_of_its_parts(launcher, tmp_path):
    words = [
        *"--model test_vit+concat --patch_size 64".split(),
        "--latex",
        tmp_path / "c.tex",
        "--json",
        tmp_path / "c.json",
    ]
    done = launcher.tool("benchmark.py", *words)
    assert done.returncode == 0, done.stderr
    header, whole, *parts = done.stdout.splitlines()[3:]
    assert whole.split()[:3] == ["test_vit+concat", "@64", "all"]
    assert [line.split()[0] for line in parts] == ["backbone", "fusion", "hyper", "target"]
    assert float(whole.split()[3]) == pytest.approx(
        sum(float(line.split()[1]) for line in parts), rel=1e-2
    )
    found = json.loads((tmp_path / "c.json").read_text())["test_vit+concat"]["found"]
    assert all(len(times) == 30 and min(times) > 0 for times in found["seconds"].values()) and set(
        found["seconds"]
    ) == {"1", "32"}
    table = (tmp_path / "c.tex").read_text().splitlines()
    assert (
        table[0] == r"\begin{tabular}{llrrrrrr}"
        and table[-1] == r"\end{tabular}"
        and len(table) == 11
    )
    assert all(line.count("&") == 7 and line.endswith(r"\\") for line in table if "&" in line)


@pytest.mark.slow
def test_a_step_of_one_and_of_two_processes_is_measured_part_by_part(launcher, tmp_path):
    words = [
        *"--step 2 --processes 1 2 --backbone resnet --images 10".split(),
        *"--batch_size 6".split(),
    ]
    done = launcher.tool("benchmark.py", *words, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    for processes, child in enumerate(json.loads((tmp_path / "out.json").read_text()), 1):
        found = child["found"]
        assert found["processes"] == processes and all(found[part] > 0 for part in STEP_PARTS)
        assert found["patches"] == pytest.approx(6 / found["whole"])
        # ResNet-50's public count is 4.1 GMACs; the LDA and the hyper network add some.
        flops = found["used"] * processes * found["matrix"] / found["patches"]
        assert 6 * 4.1e9 < flops < 6 * 4.7e9


def test_the_bound_of_scoring_is_that_of_cores_that_decoding_and_forward_pass_share():
    seconds = {"decode": 0.02, "prepare": 0.03, "forward": 0.07, "write": 0.001, "whole": 0.125}
    row = dict(zip(SCORE_HEADER, score_row("m", "p", seconds)))
    # 33.3 are prepared a second, 14.3 pass the model: by hand, 1 / (1/33.3 + 1/14.3) = 10.
    assert (row["decoded/s"], row["forward/s"], row["bound"]) == ("33.3", "14.3", "10")
    assert (row["scored/s"], row["of bound"]) == ("8", "0.80")
    shares = [float(row[f"% {part}"]) for part in ("decode", "resize", "forward", "write")]
    assert shares == [20, 9.9, 69, 0.99]


def test_scoring_is_measured_for_each_model_on_the_users_photographs(launcher, tmp_path):
    write_images(tmp_path / "photos", ["a.jpg", "b.jpg"])
    words = ["--score", tmp_path / "photos", "--model", "test_vit", "--repeats", "1"]
    done = launcher.tool("benchmark.py", *words, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert (row["model"], row["photographs"]) == ("test_vit", "photos")
    assert all(float(row[name]) > 0 for name in ("scored/s", "bound", "of bound", "% forward"))
    assert done.stdout.splitlines()[4].split()[:2] == ["test_vit", "photos"]
