import base64
import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from hyperiqa.base.errors import UserError
from hyperiqa.pages.page import draw_pairs, draw_scores, thumbnail
from hyperiqa.scoring.meaning import Meaning
from hyperiqa.stats.calibration import Calibration

UP = {"dataset": "koniq-10k", "score_range": [0.0, 100.0], "higher_is_better": True}
DOWN = {**UP, "higher_is_better": False}


@pytest.fixture
def coloured(tmp_path):
    """(path, score) of plain colours in four shapes; best first: blue, red, black, green."""
    shapes = {"red": (400, 300), "green": (90, 600), "blue": (900, 60), "black": (40, 30)}
    for name, size in shapes.items():
        Image.new("RGB", size, name).save(tmp_path / f"{name}.png")
    marks = {"red": 60.254, "green": 8.5, "blue": 71.0, "black": 33.3}
    return [(str(tmp_path / f"{name}.png"), mark) for name, mark in marks.items()]


def data(path, name):
    return json.loads(re.search(f'id="{name}">(.*?)</script>', path.read_text(), re.S)[1])


def captions(page, selector="figcaption b"):
    return page.locator(selector).all_inner_texts()


def test_a_file_holds_all_that_it_shows(tmp_path, coloured):
    draw_scores(tmp_path / "s.html", "model & </script>", UP, coloured)
    text = (tmp_path / "s.html").read_text()
    assert (
        "<title>Scores by model &amp; &lt;/script&gt;</title>" in text
        and text.count("</script>") == 3
    )
    assert not re.search(
        r"""(src|href)=["']?(?!#)|url\(|https?://""", text.replace('{href: "#" + id}', "")
    )
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(code))).size
        for code in data(tmp_path / "s.html", "pictures")
    ]
    # Within 320x240, in their own proportions, and never blown up.
    assert sizes == [(320, 240), (36, 240), (320, 21), (40, 30)]
    assert data(tmp_path / "s.html", "page")["facts"] == [
        "4 images, scores 8.50 to 71.00",
        "scale of the scores: 0..100, higher is better (koniq-10k)",
    ]


@pytest.mark.parametrize(
    ("description", "order"), [(UP, "blue red black green"), (DOWN, "green black red blue")]
)
def test_a_browser_shows_the_images_best_first(tmp_path, coloured, browse, description, order):
    draw_scores(tmp_path / "s.html", "model", description, coloured)
    page = browse(tmp_path / "s.html")
    marks = {"blue": "71", "red": "60.25", "black": "33.3", "green": "8.5"}
    assert captions(page) == [marks[name] for name in order.split()]
    assert [
        alt.split(".")[0] for alt in page.locator("img").evaluate_all("all => all.map(i => i.alt)")
    ] == order.split()
    assert page.locator("h1").inner_text() == "Scores by model"
    colours = page.locator(
        "img"
    ).evaluate_all("""all => all.map(image => {
        const canvas = document.createElement("canvas"), brush = canvas.getContext("2d");
        brush.drawImage(image, 0, 0); return [...brush.getImageData(5, 5, 1, 1).data].slice(0, 3) })""")
    named = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
    for colour, name in zip(colours, order.split(), strict=True):
        assert np.abs(np.array(colour) - named[name]).max() < 8


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_a_bar_shows_the_interval_of_the_opinion(tmp_path, coloured, browse, width, scheme):
    scores = np.linspace(10, 70, 60)
    opinions = scores / 20 + 1 + np.random.default_rng(0).normal(0, 0.2, 60)
    entry = {
        **Calibration.of(scores, opinions).plain(),
        "which": "test images",
        "model_scale": False,
        "score_range": [1.0, 5.0],
        "higher_is_better": True,
    }
    meaning = Meaning({**UP, "calibration": {"kadid-10k": entry}}, above=3.0)
    draw_scores(tmp_path / "s.html", "model", UP, coloured, meaning=meaning)
    page = browse(tmp_path / "s.html", width=width, scheme=scheme)
    assert captions(page, "#facts p")[-1] == (
        "Percentiles, 90 % intervals and probabilities rest on 60 images of kadid-10k (test images)."
    )
    tracks = page.locator(".interval").evaluate_all(
        "all => all.map(bar => [bar, bar.firstChild].map(n => n.getBoundingClientRect().toJSON()))"
    )
    by_score = sorted(dict(coloured).values(), reverse=True)
    assert len(tracks) == len(by_score)
    for (track, bar), score in zip(tracks, by_score, strict=True):
        explained = meaning.of(score)
        shares = [(end - 1) / 4 for end in (explained.low, explained.high)]
        ends = [(bar[side] - track["left"]) / track["width"] for side in ("left", "right")]
        assert ends == pytest.approx(shares, abs=0.03)
    text = page.locator("figcaption").first.inner_text()
    best = meaning.of(by_score[0])
    ends = [float(end) for end in re.search(r"MOS (\S+) to (\S+)", text).groups()]
    assert ends == pytest.approx([best.low, best.high], abs=1e-4)
    assert "keep yes" in text and "percentile 100" in text and "the calibration knows" in text
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Sorted by the interval's end, as by any other field.
    page.get_by_label("sorted by").select_option("low")
    assert float(captions(page)[0]) == pytest.approx(best.low, abs=1e-4)


def test_the_images_are_sorted_and_filtered(tmp_path, coloured, browse):
    draw_scores(tmp_path / "s.html", "model", UP, coloured)
    page = browse(tmp_path / "s.html")
    page.get_by_role("button", name="descending").click()
    assert captions(page) == ["8.5", "33.3", "60.25", "71"]
    page.get_by_label("at least").first.fill("30")
    page.get_by_label("at most").first.fill("60.3")
    assert captions(page) == ["33.3", "60.25"] and page.locator("output").inner_text() == "2 of 4"
    page.get_by_label("name contains").first.fill("RED")
    assert captions(page) == ["60.25"]
    page.get_by_label("at most").first.fill("40")
    assert captions(page) == [] and page.locator("output").inner_text() == "0 of 4"


def test_ten_thousand_images_do_not_choke_a_browser(tmp_path, coloured, browse):
    many = [(coloured[i % 4][0], float(np.sin(i))) for i in range(10_000)]
    draw_scores(tmp_path / "s.html", "model", UP, many)
    page = browse(tmp_path / "s.html")
    assert page.locator("output").inner_text() == "10,000 of 10,000"
    assert page.locator("figure").count() < 300  # the rest comes as it is scrolled to
    for _ in range(40):
        page.mouse.wheel(0, 3000)
    page.wait_for_timeout(300)
    shown = [float(text.replace("−", "-")) for text in captions(page)]
    assert len(shown) > 300 and shown == sorted(shown, reverse=True)
    page.get_by_label("at most").first.fill("-0.9999")
    wanted = sum(score <= -0.9999 for _, score in many)
    assert page.locator("output").inner_text() == f"{wanted} of 10,000" and page.locator(
        "figure"
    ).count() == min(wanted, 60)


def test_odd_names_and_lost_images(tmp_path, browse):
    names = [
        "<b>&.png",
        'say "x".png',
        "two\nlines.png",
        os.fsdecode(b"latin\xe9.png"),
        "山" * 40 + ".png",
        "lost.png",
    ]
    images = [(str(tmp_path / name), float(50 - i)) for i, name in enumerate(names)]
    for image, _ in images[:-1]:
        Image.new("RGB", (30, 20), "red").save(image)
    draw_scores(
        tmp_path / "s.html", "m\n<x>", UP, images, ["a<b.jpg (no image)", "c.jpg (empty)"], 7
    )
    page = browse(tmp_path / "s.html")
    shown = [
        "<b>&.png",
        'say "x".png',
        r"two\nlines.png",
        r"latin\udce9.png",
        "山" * 40 + ".png",
        "lost.png",
    ]
    assert page.locator("figure").evaluate_all("all => all.map(f => f.title)") == shown
    assert page.locator("img").count() == 5 and captions(page, ".gone") == ["cannot be read now"]
    assert captions(page, "li") == ["a<b.jpg (no image)", "c.jpg (empty)", "and 5 more"]
    assert captions(page, "h2") == ["Without a score: 7"] and page.title() == r"Scores by m\n<x>"


def test_a_page_without_images_says_so(tmp_path, browse):
    draw_scores(tmp_path / "s.html", "model", UP, [], ["a.jpg (empty)"], 1)
    page = browse(tmp_path / "s.html")
    assert captions(page, "#facts p")[0] == "no image has a score" and captions(page, "li") == [
        "a.jpg (empty)"
    ]


def test_thumbnails_are_upright_and_of_any_kind(tmp_path):
    image, exif = Image.new("RGB", (400, 200), "blue"), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((200, 400), 65535, np.uint16)).save(tmp_path / "deep.png")
    assert thumbnail(str(tmp_path / "turned.jpg")).size == (200, 400)
    assert thumbnail(str(tmp_path / "cmyk.jpg")).getpixel((50, 25))[2] > 240
    assert thumbnail(str(tmp_path / "deep.png")).getpixel((50, 25)) == (255, 255, 255)
    assert thumbnail(str(tmp_path)) is None


def test_a_page_that_cannot_be_written_is_named(tmp_path, coloured):
    with pytest.raises(UserError, match="s.html: cannot be written"):
        draw_scores(tmp_path / "black.png" / "s.html", "model", UP, coloured)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1600, "light")])
def test_a_browser_shows_pictures_in_their_own_shape(tmp_path, browse, width, scheme):
    """Neither squeezed, nor larger than they are, nor wider than their column; and the page is no wider than a phone."""
    scores = []
    for i, size in enumerate(
        [(640, 480), (480, 640), (900, 200), (200, 900), (100, 80), (640, 480)]
    ):
        Image.new("RGB", size, (40 * i, 90, 120)).save(tmp_path / f"{i}.png")
        scores.append((str(tmp_path / f"{i}.png"), float(i)))
    draw_scores(tmp_path / "a.html", "m", UP, scores)
    page = browse(tmp_path / "a.html", width, scheme=scheme)
    shown = page.locator(
        "img"
    ).evaluate_all("""all => all.map(i => { const r = i.getBoundingClientRect();
        return [r.width, r.height, i.naturalWidth, i.naturalHeight, i.closest("figure").clientWidth] })""")
    assert len(shown) == 6
    for across, down, natural_width, natural_height, column in shown:
        assert across / down == pytest.approx(natural_width / natural_height, rel=0.03)
        assert across <= min(natural_width, column) + 0.5 and down <= natural_height + 0.5
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 200) == (scheme == "dark")


def test_pairs_stand_side_by_side(tmp_path, coloured, browse):
    pairs = [[(f"test {i}", coloured[i][0]), (f"train {i}", coloured[i][0])] for i in range(3)]
    draw_pairs(tmp_path / "p.html", "Twins", pairs)
    page = browse(tmp_path / "p.html", 400)
    places = page.locator("figure").evaluate_all(
        "all => all.map(f => [f.offsetLeft, f.offsetTop + f.offsetHeight])"
    )
    assert page.locator("figure").evaluate_all("all => all.map(f => f.title)") == [
        name for pair in pairs for name, _ in pair
    ]
    for (left, bottom), (right, other) in zip(places[::2], places[1::2]):
        assert left < right and bottom == other


def test_no_name_changes_how_the_page_is_parsed(tmp_path):
    """By the HTML standard, `<!--` and `<script` within a script hide its end."""
    names = ["<!--<script>.jpg", "</script><script>alert(1)<.jpg", "a&amp;\u2028.jpg", "\ud800.jpg"]
    draw_scores(tmp_path / "s.html", "<!--<script>", UP, [(name, 1.0) for name in names])
    text = (tmp_path / "s.html").read_text()
    assert not set("<>&\u2028") & set(re.search('id="page">(.*?)</script>', text, re.S)[1])
    # Whatever JSON.parse gives, the page shows as text.
    shown = data(tmp_path / "s.html", "page")["sets"]["scored"]["names"]
    assert shown == [*names[:2], r"a&amp;\u2028.jpg", r"\ud800.jpg"]
    assert "<title>Scores by &lt;!--&lt;script&gt;</title>" in text
