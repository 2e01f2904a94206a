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
        "Summary",
        "Settings",
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
    assert f"{best['test']['srcc']:.4f}" in page.locator("#s0 dl").inner_text()
    # Hovering shows the image that the point is of, with its figures.
    page.locator("#s4 .area").first.scroll_into_view_if_needed()
    page.wait_for_selector("#s4 .points path", state="attached")
    for point in (
        page.locator("#s4 .plots figure").first.locator(".points path").nth(i) for i in (0, 7)
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
    page.locator("#s4 .area").first.focus()
    page.keyboard.press("End")
    page.wait_for_timeout(300)
    assert page.locator("#card b").inner_text() == max(own, key=lambda image: own[image][1])
    page.keyboard.press("Home")
    page.wait_for_timeout(300)
    assert page.locator("#card b").inner_text() == min(own, key=lambda image: own[image][1])
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()
    # A card of the smallest errors says which figure is small, and the score behind the error.
    card = page.locator("#s4 .gallery").nth(1).locator("figcaption").first.inner_text()
    assert "largest" not in card and card.splitlines()[1] == "absolute error"
    shown = dict(line.rsplit(" ", 1) for line in card.splitlines()[3:])
    values = {title: float(text.replace("−", "-")) for title, text in shown.items()}
    assert list(values) == ["MOS", "score", "mapped score", "error"]
    assert values["mapped score"] - values["MOS"] == pytest.approx(values["error"], abs=0.011)
    assert abs(values["error"]) == float(card.splitlines()[0])
    # A table is sorted by a click on a head, and says so.
    head = page.locator("#s4 th button", has_text="SRCC with the error")
    head.click()
    assert page.locator("#s4 th[aria-sort]").get_attribute("aria-sort") == "descending"
    cells = page.locator("#s4 table tbody tr td:nth-child(2)").all_inner_texts()
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
    assert np.array(found["fields"]["absolute error"]) == pytest.approx(abs(expected), abs=1e-4)
    assert ("mapped score" in found["fields"]) == (fit is not None)
    if fit is not None:
        mapped = np.array(found["fields"]["mapped score"])
        assert mapped == pytest.approx(metrics.logistic(fit, score), abs=1e-4)
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
    assert "in 80 of 100 repetitions with 24 images" in page.locator("li").first.inner_text()
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
    font_colour = """[...document.querySelectorAll(".area")].find(a => a.data).layout.font.color"""
    for _ in range(40):
        if page.evaluate(font_colour) == "#1d2126":
            break
        page.wait_for_timeout(250)
    assert page.evaluate(font_colour) == "#1d2126"


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
        "1/1" in page.locator("dl").first.inner_text()
        and content(tmp_path / "r.html")["reload"] >= 3
    )
    (tmp_path / "under.jsonl").write_text(
        "".join([begun, *[line for line in rest if '"type": "end"' not in line]])
    )
    _wait(lambda: "/2" in page.locator("dl").first.inner_text(), page)
    (tmp_path / "under.jsonl").write_text("".join(lines))
    assert process.wait(60) == 0
    _wait(lambda: "finished" in page.locator("dl").first.inner_text(), page)
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


def test_a_demo_that_has_gone_is_not_made_anew(ran, run_main, tmp_path):
    demo = tmp_path / "demo"
    folder = copied(ran, tmp_path / "l", {"none": "d"}, dataset="demo", dataset_path=str(demo))
    words = [folder / "d.jsonl", "--output", tmp_path / "r.html"]
    out = run_main("report.py", report.main, *words).stdout
    assert f"without pictures: {demo}: the files of the demo are gone" in out
    assert not demo.exists() and "demo (synthetic)" in content(tmp_path / "r.html")["sets"]


def copied(ran, folder, names, **flags):
    """Logs of the runs under other names (run -> name), with these flags in their records."""
    folder.mkdir()
    for run, name in names.items():
        for end in (".jsonl", "_predictions.csv"):
            text = (ran / "logs" / f"{run}{end}").read_text()
            if end == ".jsonl":
                first, rest = text.split("\n", 1)
                record = json.loads(first)
                record["flags"] |= flags
                text = f"{json.dumps(record)}\n{rest}"
            (folder / f"{name}{end}").write_text(text)
    return folder


@pytest.mark.parametrize("beside_the_demo", [False, True])
def test_a_cross_test_that_no_flag_named_is_where_the_run_found_it(
    ran, run_main, tmp_path, monkeypatch, beside_the_demo
):
    """SPAQ beside the scripts, or the demo's own; and where --datasets says, once it has moved."""
    place = tmp_path / ("demo" if beside_the_demo else "scripts")
    place.mkdir()
    flags = {"cross_test": None}
    if beside_the_demo:
        (place / "koniq-10k").symlink_to(ran / "koniq")
        flags |= {"dataset": "demo", "dataset_path": str(place)}
    spaq = place / "spaq-test"
    spaq.symlink_to(ran / "spaq")
    monkeypatch.setattr("hyperiqa.base.files.HERE", tmp_path / "scripts")
    logs = copied(ran, tmp_path / "logs", {"none": "none"}, **flags)
    words = [logs, "--output", tmp_path / "r.html", "--cache_dir", ran / "cache"]

    def pictures():
        scored_sets.decode_sets.cache_clear()
        out = run_main("report.py", report.main, *words).stdout
        title = "demo spaq (synthetic)" if beside_the_demo else "spaq"
        return content(tmp_path / "r.html")["sets"][title]["pictures"], out

    assert pictures()[0] == list(range(24, 34))
    spaq.unlink()
    missing, out = pictures()
    assert missing == [-1] * 10 and "without pictures: spaq: no folder" in out
    words += ["--datasets", f"spaq={ran / 'spaq'}"]
    found, out = pictures()
    assert found == list(range(24, 34)) and len(out.splitlines()) == 1


LONG = {
    "none": "swin_tiny_patch4_window7_224_multiscale_ranking_alpha0.3_20251215_220614",
    "attention": "swin_tiny_patch4_window7_224_attention_ranking_alpha0.3_20251216_101010",
}


def scroll_through(page):
    """Come by everything once, as a reader does: plots are drawn when they come near."""
    for y in range(0, page.evaluate("document.documentElement.scrollHeight"), 700):
        page.evaluate(f"scrollTo(0, {y})")
        page.wait_for_timeout(40)


@pytest.mark.parametrize("runs", [1, 2])
def test_pages_of_long_names_fit_every_window(ran, run_main, tmp_path, browse, runs):
    logs = copied(ran, tmp_path / "logs", dict(list(LONG.items())[:runs]))
    words = [logs, "--output", tmp_path / "r.html", "--no_images"]
    run_main("report.py", report.main, *words)
    page = browse(tmp_path / "r.html", 375)
    scroll_through(page)
    for width in (320, 375, 768, 1280, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    # At 1280 pixels no table needs to be scrolled: an interval may stand below its figure.
    page.set_viewport_size({"width": 1280, "height": 800})
    wide = page.locator(".wide").evaluate_all(
        "all => all.filter(w => w.scrollWidth > w.clientWidth).map(w => w.ariaLabel)"
    )
    assert wide == []
    table = page.locator("[aria-label='Figures of the standards']")
    assert re.search(r"\d \[\S+ \S+\]", table.inner_text())
    # Sets without pictures have no boxes where pictures would be.
    assert page.locator("figcaption", has_text="absolute error").count() > 0
    assert page.locator(".gone").count() == 0
    # A plot's legend has the short names, which are not cut off on a phone.
    page.set_viewport_size({"width": 375, "height": 800})
    page.wait_for_timeout(300)
    ends = page.locator(".legendtext").evaluate_all(
        "all => all.map(text => text.getBoundingClientRect().right)"
    )
    assert all(end <= 375 for end in ends) and bool(ends)


def test_the_tool_bar_of_a_plot_covers_no_point(ran, run_main, tmp_path, browse):
    words = [ran / "logs", "--output", tmp_path / "r.html", "--no_images"]
    run_main("report.py", report.main, *words)
    for width in (1280, 375):
        page = browse(tmp_path / "r.html", width)
        area = page.locator(".area").first
        area.scroll_into_view_if_needed()
        page.wait_for_selector(".modebar-btn", state="attached")
        area.hover()
        page.wait_for_timeout(300)
        boxes = area.evaluate("""area => {
            const edges = (node) => { const r = node.getBoundingClientRect();
                return [r.left, r.right, r.top, r.bottom]; };
            const marked = ".points path, .nsewdrag, .legendtext";
            return [edges(area.querySelector(".modebar-group").parentNode),
                ...[...area.querySelectorAll(marked)].map(edges)]; }""")
        left, right, top, bottom = boxes[0]
        assert right - left > 10 and bottom - top > 50 and len(boxes) > 5
        for other in boxes[1:]:
            assert other[1] <= left or other[0] >= right or other[3] <= top or other[2] >= bottom


def luminance(rgb):
    """Relative luminance of a colour 0..255 (WCAG 2.2)."""
    share = np.array(rgb) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_points_and_texts_stand_out_from_the_page(ran, run_main, tmp_path, browse, scheme):
    """By the contrast that WCAG 2.2 asks for: 3 of graphics, 4.5 of text."""
    words = [ran / "logs" / "none.jsonl", "--output", tmp_path / "r.html", "--no_images"]
    run_main("report.py", report.main, *words)
    page = browse(tmp_path / "r.html", scheme=scheme)
    area = page.locator("#s4 .area").first
    area.scroll_into_view_if_needed()
    page.wait_for_selector("#s4 .points path", state="attached")
    colours = page.evaluate("""() => {
        const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
        const point = document.querySelector("#s4 .points path");
        let opacity = 1;
        for (let node = point; node.parentNode; node = node.parentNode) {
            opacity *= getComputedStyle(node).opacity;
        }
        const colour = (node) => numbers(getComputedStyle(node).color);
        return {back: numbers(getComputedStyle(document.body).backgroundColor),
            point: [...numbers(getComputedStyle(point).fill), opacity],
            texts: ["p", "dt", "dd", "figcaption", "a", "summary", "h2"].map(
                (tag) => colour(document.querySelector(tag)))}; }""")
    back = np.array(colours["back"])

    def contrast(colour):
        low, high = sorted([luminance(colour), luminance(back)])
        return (high + 0.05) / (low + 0.05)

    *fill, opacity = colours["point"]
    assert contrast(opacity * np.array(fill[:3]) + (1 - opacity) * back) >= 3
    assert all(contrast(colour) >= 4.5 for colour in colours["texts"])


def test_keys_go_through_every_kind_of_plot(ran, run_main, tmp_path, browse):
    """Bars and bins too, by x, and past runs that wait in the legend; a browser complains of nothing."""
    words = [ran / "logs", "--output", tmp_path / "r.html", "--no_images"]
    run_main("report.py", report.main, *words)
    page = browse(tmp_path / "r.html")
    scroll_through(page)
    histogram = page.locator("figure", has_text="errors").locator(".area").last
    histogram.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    histogram.focus()
    counts, middles = [], []
    for _ in range(40):
        page.keyboard.press("ArrowRight")
        lines = dict(
            line.split(": ") for line in page.locator("#card").inner_text().splitlines()[1:]
        )
        middles.append(float(lines["error"].replace("−", "-")))
        counts.append(int(lines["images"]))
    steps = np.diff(middles)
    bins = 1 + int((steps > 0).sum())
    # Every bin once, and then the last one again; their counts are of all images.
    assert bins > 3 and (steps[: bins - 1] > 0).all() and (steps[bins - 1 :] == 0).all()
    assert sum(counts[:bins]) == 10
    name = page.locator("#card b").inner_text()
    for key in ("ArrowUp", "ArrowDown", "End", "Home", "PageDown"):
        page.keyboard.press(key)
        assert page.locator("#card b").inner_text() == name and page.locator("#ring").is_visible()
    curve = page.locator(".area").first
    curve.focus()
    names = []
    for key in ("Home", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
        names.append(page.locator("#card b").inner_text())
    assert names[0] == names[2] != names[1]


def test_a_single_run_begins_with_its_summary_and_its_settings(ran, run_main, tmp_path, browse):
    words = [ran / "logs" / "attention.jsonl", "--output", tmp_path / "r.html", "--no_images"]
    run_main("report.py", report.main, *words)
    page = browse(tmp_path / "r.html", 375)
    facts = page.locator("#s0 dl").inner_text().splitlines()
    shown = dict(zip(facts[::2], facts[1::2]))
    assert shown["status"] == "finished" and shown["images"] == "train 12, test 24, spaq 10"
    assert re.fullmatch(r"-?\d\.\d{4} \[\S+ \S+\]", shown["test SRCC [95 %]"])
    facts = page.locator("#s1 > dl").inner_text().splitlines()
    chosen = dict(zip(facts[::2], facts[1::2]))
    assert chosen["fusion"] == "attention" and chosen["lr"] == "0.001" and chosen["resize"] == "72"
    assert "weight_decay" not in chosen  # as it is by default
    page.locator("summary").click()
    assert "weight_decay\n0.0005" in page.locator("details dl").inner_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.jsonl"], "no.jsonl: no such file or folder"),
        (["{logs}", "--output", "x.png"], "--output x.png: expected a name that ends in .html"),
        (["{logs}", "--datasets", "spaq"], "--datasets spaq: expected NAME=PATH"),
        (["{logs}", "--maps", "5", "--no_images"], "contradictory flags: --maps and --no_images"),
        (
            ["{logs}", "--datasets", "spak=x"],
            "--datasets spak: no set of these runs; expected one of koniq-10k, spaq",
        ),
        (["{logs}", "--against", "z"], "--against z: no such run; expected one of attention, none"),
    ],
)
def test_mistakes(ran, run_main, words, said):
    words = [word.format(logs=ran / "logs") for word in words]
    assert run_main("report.py", report.main, *words, code=2).stderr == f"error: {said}\n"
