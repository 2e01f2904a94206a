import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats

import report
from hyperiqa.datasets.records import Record
from hyperiqa.images.decode import load_image
from hyperiqa.pages import scored_sets
from hyperiqa.stats import metrics
from hyperiqa.training.run_files import read_predictions
from HyperIQASolver_swin import HyperIQASolverSwin

pytest.importorskip("plotly")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Two runs of different fusions on tiny sets: the folder of logs and checkpoints, and the data."""
    import conftest
    from helpers import write_koniq, write_spaq

    from hyperiqa.training.options import train_options

    place = tmp_path_factory.mktemp("ran")
    koniq, spaq = write_koniq(place / "koniq", 12, 24, (110, 90)), write_spaq(place / "spaq", 10)
    tiny = [
        *"--no_pretrained --patch_size 64 --resize 72 --train_patch_num 2".split(),
        *"--batch_size 8 --epochs 2 --lr 1e-3 --precision fp32".split(),
        "--dataset_path",
        koniq,
        "--spaq_path",
        spaq,
        "--log_dir",
        place / "logs",
        "--checkpoint_dir",
        place / "checkpoints",
        "--cache_dir",
        place / "cache",
    ]
    for name, more in (("attention", ["--fusion", "attention"]), ("none", [])):
        words = [str(word) for word in (*tiny, "--run_name", name, *more)]
        HyperIQASolverSwin(train_options(words, "test", conftest.SCRIPTS["swin"])).run()
    return place


def content(path):
    return json.loads(re.search(r'id="page">(.*?)</script>', path.read_text(), re.S)[1])


def predictions(place, run, dataset="koniq-10k"):
    return {
        image: (mos, score)
        for name, image, mos, score in read_predictions(place / "logs" / f"{run}_predictions.csv")
        if name == dataset
    }


def test_a_run_on_a_page(ran, run_main, tmp_path, browse):
    out = run_main(
        "report.py",
        report.main,
        ran / "logs" / "attention.jsonl",
        "--output",
        tmp_path / "r.html",
        "--maps",
        10,
        "--cache_dir",
        ran / "cache",
    ).stdout
    assert out.startswith(f"{tmp_path / 'r.html'} (") and len(out.splitlines()) == 1
    page = browse(tmp_path / "r.html")
    titles = [
        "Runs",
        "Curves",
        "Figures of the standards",
        "koniq-10k",
        "spaq",
        "Where the model looks",
        "Certificates",
    ]
    assert (
        page.locator("h1").inner_text() == "attention"
        and page.locator("h2").all_inner_texts() == titles
    )
    assert page.locator("nav a").all_inner_texts() == titles
    own = predictions(ran, "attention")
    records = [
        json.loads(line) for line in (ran / "logs" / "attention.jsonl").read_text().splitlines()
    ]
    best = max((r for r in records if r["type"] == "epoch"), key=lambda r: r["test"]["srcc"])
    assert f"{best['test']['srcc']:.4f}" in page.locator("table").first.inner_text()
    # Hovering shows the image that the point is of, with its figures.
    page.locator("#s3 .area").first.scroll_into_view_if_needed()
    page.wait_for_selector("#s3 .points path", state="attached")
    for point in (
        page.locator("#s3 .plots figure").first.locator(".points path").nth(i) for i in (0, 7)
    ):
        point.hover(force=True)
        page.wait_for_selector("#card:not([hidden])")
        lines = page.locator("#card").inner_text().splitlines()
        shown = dict(line.split(": ") for line in lines[1:])
        mos, score = own[lines[0]]
        assert float(shown["MOS"].replace("−", "-")) == pytest.approx(mos, abs=0.006)
        assert float(shown["score"].replace("−", "-")) == pytest.approx(score, abs=0.006)
        assert page.locator("#card img").get_attribute("alt") == lines[0]
    # By keyboard the same, from the lowest score to the highest.
    page.mouse.move(1, 1)
    page.locator("#s3 .area").first.focus()
    page.keyboard.press("End")
    page.wait_for_timeout(300)
    assert page.locator("#card b").inner_text() == max(own, key=lambda image: own[image][1])
    page.keyboard.press("Home")
    page.wait_for_timeout(300)
    assert page.locator("#card b").inner_text() == min(own, key=lambda image: own[image][1])
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()
    # A table is sorted by a click on a head, and says so.
    head = page.locator("#s3 th button", has_text="SRCC with the error")
    head.click()
    assert page.locator("#s3 th[aria-sort]").get_attribute("aria-sort") == "descending"
    cells = page.locator("#s3 table tbody tr td:nth-child(2)").all_inner_texts()
    assert len(cells) == 5 and cells[-1] == "–"  # all are of one size
    values = [float(cell.split()[0].replace("−", "-")) for cell in cells[:-1]]
    assert values == sorted(values, reverse=True)


def test_errors_crops_and_measures_of_each_image(ran, run_main, tmp_path):
    """Against scipy's fit, Pillow's pixels and plain formulas."""
    words = [
        ran / "logs" / "none.jsonl",
        "--output",
        tmp_path / "r.html",
        "--cache_dir",
        ran / "cache",
    ]
    run_main("report.py", report.main, *words)
    found, own = content(tmp_path / "r.html")["sets"]["koniq-10k"], predictions(ran, "none")
    assert found["names"] == sorted(own)
    mos, score = np.array([own[name] for name in found["names"]]).T
    fit = metrics.fit_logistic(score, mos)
    expected = (score if fit is None else metrics.logistic(fit, score)) - mos
    assert np.array(found["fields"]["error"]) == pytest.approx(expected, abs=1e-4)
    for i, name in enumerate(found["names"]):
        [[left, top, width, height]] = found["crops"][i]
        pixels = load_image(ran / "koniq" / "test" / name, "72", 64).astype(float)
        high, wide = pixels.shape[:2]
        assert (width, height) == (
            pytest.approx(6400 / wide, abs=0.01),
            pytest.approx(6400 / high, abs=0.01),
        )
        assert left == pytest.approx((100 - width) / 2, abs=1) and top == pytest.approx(
            (100 - height) / 2, abs=1
        )
        grey = pixels @ [0.299, 0.587, 0.114]
        fields = {field: values[i] for field, values in found["fields"].items()}
        assert fields["brightness"] == pytest.approx(grey.mean(), rel=1e-4) and fields[
            "contrast"
        ] == pytest.approx(grey.std(), rel=1e-4)
        inner = (
            grey[:-2, 1:-1]
            + grey[2:, 1:-1]
            + grey[1:-1, :-2]
            + grey[1:-1, 2:]
            - 4 * grey[1:-1, 1:-1]
        )
        assert fields["sharpness"] == pytest.approx(
            np.log10(inner.var()), abs=0.05
        )  # but for the edges
        rg, yb = (
            pixels[..., 0] - pixels[..., 1],
            (pixels[..., 0] + pixels[..., 1]) / 2 - pixels[..., 2],
        )
        colour = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        assert fields["colourfulness"] == pytest.approx(colour, rel=1e-3)
        assert fields["megapixels"] == pytest.approx(110 * 90 / 1e6)
    table = next(
        block
        for section in content(tmp_path / "r.html")["sections"]
        if section["title"] == "koniq-10k"
        for block in section["blocks"]
        if block.get("label") == "Errors and simple measures"
    )
    for name, of_error, of_size in table["rows"]:
        values = found["fields"][name]
        for cell, each in ((of_error, expected), (of_size, abs(expected))):
            rho = (
                scipy.stats.spearmanr(each, values).statistic
                if len(set(values)) > 1
                else float("nan")
            )
            assert (
                cell == "–"
                if np.isnan(rho)
                else float(cell.split()[0]) == pytest.approx(rho, abs=6e-5)
            )


def test_two_runs_beside_each_other(ran, run_main, tmp_path, browse):
    run_main("report.py", report.main, ran / "logs", "--output", tmp_path / "r.html", "--no_images")
    page = browse(tmp_path / "r.html", 390, scheme="dark")
    assert {"Differences in SRCC", "Settings that differ"} <= set(
        page.locator("h2").all_inner_texts()
    )
    assert re.search(
        "no evidence of a difference|is better than|is worse than",
        page.locator("li").first.inner_text(),
    )
    assert "cannot be seen with 24 images" in page.locator("li").first.inner_text()
    assert (
        "attention"
        in page.locator("section", has_text="Settings that differ")
        .locator("table")
        .first.inner_text()
    )
    assert (
        page.evaluate("document.documentElement.scrollWidth") <= 390
    )  # on a phone only tables scroll sideways
    # Each run has a colour and a marker of its own, in the curves and in the clouds.
    page.locator(".plots").first.scroll_into_view_if_needed()
    page.wait_for_selector(".legendtext")
    looks = page.evaluate(
        """[...document.querySelectorAll(".area")].find(a => a.data).data.map(t => [t.marker.color, t.marker.symbol])"""
    )
    assert len(looks) == 2 and all(len(set(column)) == 2 for column in zip(*looks))
    assert page.locator("img").count() == 0
    # A reader who switches to light gets it at once.
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(500)
    assert (
        page.evaluate(
            """[...document.querySelectorAll(".area")].find(a => a.data).layout.font.color"""
        )
        == "#1d2126"
    )


def test_kinds_and_contents_have_figures():
    records = [
        Record(f"{i}.png", None, float(i), "test", f"c{i % 2}", "blur" if i < 6 else "noise")
        for i in range(12)
    ]
    mos = np.array([r.score for r in records])
    scores = mos + np.array([3.0, -3, 2, -2, 1, 4, 0, 0, 1, 0, 2, -1])
    tested = scored_sets.ScoredSet("set", [r.name for r in records], mos, {"run": scores}, records)
    errors = tested.errors("run")
    for what, first in (("kind", "blur"), ("group", "c0")):
        own = np.array([getattr(r, what) == first for r in records])
        name, images, mean, srcc, bias, rmse = scored_sets._figures_by(
            tested, what, {"run": errors}
        )["rows"][0]
        assert (name, images, mean) == (first, own.sum(), mos[own].mean())
        assert srcc == pytest.approx(scipy.stats.spearmanr(scores[own], mos[own]).statistic)
        assert (bias, rmse) == (
            pytest.approx(errors[own].mean()),
            pytest.approx(np.sqrt((errors[own] ** 2).mean())),
        )


def test_a_run_under_way_is_followed(ran, tmp_path, browse):
    """The page is renewed after an epoch, the open one follows, and both rest once the run has ended."""
    lines = (ran / "logs" / "none.jsonl").read_text().splitlines(keepends=True)
    begun, first, rest = (
        lines[0],
        *([line for line in lines if '"type": "epoch"' in line][:1]),
        lines[1:],
    )
    (tmp_path / "under.jsonl").write_text(begun + first)
    words = [tmp_path / "under.jsonl", "--follow", "--no_images", "--output", tmp_path / "r.html"]
    process = subprocess.Popen(
        [sys.executable, report.__file__, *words], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    _wait(lambda: (tmp_path / "r.html").exists())
    page = browse(tmp_path / "r.html")
    assert (
        "1/1" in page.locator("table").first.inner_text()
        and content(tmp_path / "r.html")["reload"] >= 3
    )
    (tmp_path / "under.jsonl").write_text(
        "".join([begun, *[line for line in rest if '"type": "end"' not in line]])
    )
    _wait(lambda: "2" in page.locator("table tbody td").nth(2).inner_text().split("/")[1], page)
    (tmp_path / "under.jsonl").write_text("".join(lines))
    assert process.wait(60) == 0
    _wait(lambda: "finished" in page.locator("table").first.inner_text(), page)
    assert content(tmp_path / "r.html")["reload"] == 0


def _wait(condition, page=None):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(200) if page else time.sleep(0.1)


def test_sets_that_have_gone_leave_the_figures(ran, run_main, tmp_path):
    (ran / "koniq").rename(tmp_path / "moved")
    scored_sets.decode_sets.cache_clear()  # this process has seen the set where it was
    try:
        words = [ran / "logs" / "none.jsonl", "--output", tmp_path / "r.html"]
        words += ["--cache_dir", tmp_path / "cache"]
        out = run_main("report.py", report.main, *words).stdout
        assert "without pictures: koniq-10k: no folder" in out
        found = content(tmp_path / "r.html")
        assert (
            found["sets"]["koniq-10k"]["pictures"] == [-1] * 24
            and "brightness" not in found["sets"]["koniq-10k"]["fields"]
        )
        run_main("report.py", report.main, *words, "--datasets", f"koniq-10k={tmp_path / 'moved'}")
        assert "brightness" in content(tmp_path / "r.html")["sets"]["koniq-10k"]["fields"]
    finally:
        (tmp_path / "moved").rename(ran / "koniq")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.jsonl"], "no.jsonl: no such file or folder"),
        (["{logs}", "--output", "x.png"], "--output x.png: expected a name that ends in .html"),
        (["{logs}", "--datasets", "spaq"], "--datasets spaq: expected NAME=PATH"),
        (["{logs}", "--maps", "5", "--no_images"], "contradictory flags: --maps and --no_images"),
        (["{logs}", "--against", "z"], "--against z: no such run; expected one of attention, none"),
    ],
)
def test_mistakes(ran, run_main, words, said):
    words = [word.format(logs=ran / "logs") for word in words]
    assert run_main("report.py", report.main, *words, code=2).stderr == f"error: {said}\n"
