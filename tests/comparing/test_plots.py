import sys
from pathlib import Path

import numpy as np
import pytest

import metrics
from common.errors import UserError
from comparing import plots

LONG = [f"swin_multiscale_ranking_alpha{a}_20261122_1{s}000" for a in (0, 0.3) for s in (42, 43)]


@pytest.mark.parametrize("width", [12, 16, 20, 30, 60])
def test_short_names_fit_and_stay_apart(width):
    for names in (LONG, [f"{'x' * 40}{i}{'y' * 40}" for i in range(12)], ["a", "b"]):
        short = plots.short_names(names, width)
        assert list(short) == names
        assert all(len(text) <= width for text in short.values())
        assert len(set(short.values())) == len(names)


def test_short_names_keep_what_tells_runs_apart():
    assert plots.short_names(["resnet50_20251215_191130", "b"], 12)["resnet50_20251215_191130"] == "resnet50"
    # The same setting at two times: the date must stay.
    twice = ["resnet50_20251215_191130", "resnet50_20251215_220614"]
    assert set(plots.short_names(twice, 12).values()) == {"191130", "220614"}
    settings = ["ranking_loss_alpha=0.1 ranking_loss_margin=0.3", "ranking_loss_alpha=0.5 ranking_loss_margin=0.3"]
    assert plots.short_names(settings, 20)[settings[0]].startswith("alpha=0.1")


HEADER = ["run", "best/\nepochs", "SRCC [95 %]", "status"]
ROWS = [["swin_tiny", "3/10", "0.9205 [.912 .928]", "finished"], ["resnet50", "1/2", "0.9000", "cut off"]]


def test_text_table_lines_up():
    lines = plots.text_table(HEADER, ROWS, 100).splitlines()
    assert lines == [
        "            best/",
        "run        epochs         SRCC [95 %]    status",
        "swin_tiny    3/10  0.9205 [.912 .928]  finished",
        "resnet50      1/2              0.9000   cut off",
    ]


def test_text_table_keeps_its_width_by_further_blocks():
    text = plots.text_table(HEADER, ROWS, 40)
    assert max(map(len, text.splitlines())) <= 40
    for cell in sum(ROWS, []):
        assert cell in text


def test_markdown_table():
    text = plots.markdown_table(HEADER, [["a|b", "1", "2", "3"]])
    assert text.splitlines() == [
        "| run | best/ epochs | SRCC [95 %] | status |",
        "| --- | ---: | ---: | ---: |",
        "| a\\|b | 1 | 2 | 3 |",
    ]


def test_labels_are_moved_apart_and_stay_inside():
    for heights in ([0.5] * 10, np.linspace(0, 0.2, 10), [0.9, 0.95, 1.0, 1.0], [0.1, 0.9]):
        places = plots._apart(np.array(heights), 0.05)
        assert (np.diff(places) >= 0.05 - 1e-12).all()
        assert places.max() <= 1
        assert places.min() >= 0
    assert plots._apart(np.array([0.1, 0.9]), 0.05).tolist() == [0.1, 0.9]


def test_missing_matplotlib_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plots.drawing_problem("--scatter") == "--scatter needs matplotlib: pip install matplotlib"


def written(path: Path) -> bytes:
    content = path.read_bytes()
    assert len(content) > 5000
    return content


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def test_curves_of_ten_runs(matplotlib, tmp_path):
    runs = [
        plots.Curve(
            f"run{k}", [1, 2, 3], {"test SRCC": [0.1 * k, 0.2, float("nan")], "SPAQ SRCC": [float("nan")] * 3}, 2
        )
        for k in range(10)
    ]
    runs.append(plots.Curve("without epochs", [], {}, 0))
    plots.draw_curves(tmp_path / "x.svg", runs, ["test SRCC", "SPAQ SRCC", "train SRCC"])
    svg = written(tmp_path / "x.svg").decode()
    # Text is drawn as paths, with the text itself in a comment.
    for text in ("test SRCC", "run9", "not in these logs", "without epochs", "large open marker: best epoch"):
        assert f"<!-- {text} -->" in svg


def test_styles_of_many_runs_differ():
    styles = [tuple(style.values()) for style in plots._styles(30)]
    assert len(set(styles)) == 30


def test_scatter_names_the_ten_worst(matplotlib, tmp_path):
    random = np.random.default_rng(0)
    mos = random.uniform(0, 100, 80)
    score = mos + random.normal(size=80)
    score[:10] += 30
    names = [f"image_{i}.jpg" for i in range(80)]
    cloud = plots.Cloud("koniq-10k", score, mos, names, lambda x: x)
    plots.draw_scatter(tmp_path / "x.svg", "a run", [cloud, plots.Cloud("SPAQ", score, mos, names)], ["SRCC 0.9", "-"])
    svg = written(tmp_path / "x.svg").decode()
    assert "<!-- koniq-10k: SRCC 0.9 -->" in svg
    assert all(svg.count(f"<!-- image_{i}.jpg -->") == 2 for i in range(10))
    assert sum(svg.count(f"<!-- {name} -->") for name in names) == 20


def test_a_cloud_of_scores_that_fall_as_the_opinions_rise():
    score = np.linspace(0, 100, 50)
    dmos = 1 - metrics.logistic((0.9, 0.1, 50, 12), score)
    cloud, caption = plots.fitted_cloud("csiq", score, dmos, ["x"] * 50, sign=-1, opinion="DMOS")
    assert cloud.fit(score) == pytest.approx(dmos, abs=1e-4) and cloud.opinion == "DMOS"
    assert caption == f"50 images, SRCC 1.0000, PLCC {-metrics.plcc(score, dmos):.4f}, 1.0000 fitted"
    cloud, caption = plots.fitted_cloud("csiq", score[:4], dmos[:4], ["x"] * 4)
    assert cloud.fit is None and caption.startswith("4 images, SRCC -1.0000, PLCC -") and "fitted" not in caption


def test_a_picture_that_cannot_be_written_is_named(matplotlib, tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        plots.draw_curves(tmp_path / "x.png", [plots.Curve("a", [1], {"test SRCC": [0.5]}, 1)], ["test SRCC"])
