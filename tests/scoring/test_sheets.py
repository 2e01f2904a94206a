import base64
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from scoring import sheets

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

UP = {"dataset": "koniq-10k", "score_range": [0.0, 100.0], "higher_is_better": True}
DOWN = {**UP, "higher_is_better": False}
COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


@pytest.fixture
def coloured(tmp_path):
    """(path, score) of plain colours in four shapes; best first: blue, red, black, green."""
    shapes = {"red": (400, 300), "green": (90, 600), "blue": (900, 60), "black": (40, 30)}
    for name, size in shapes.items():
        Image.new("RGB", size, name).save(tmp_path / f"{name}.png")
    marks = {"red": 60.254, "green": 8.5, "blue": 71.0, "black": 33.3}
    return [(str(tmp_path / f"{name}.png"), mark) for name, mark in marks.items()]


class Page(HTMLParser):
    """What is on a page: [(tag, attributes)], and the text within each tag."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # well nested

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def images(self):
        for tag, attrs in self.tags:
            if tag == "img":
                kind, code = attrs["src"].split(",")
                assert kind == "data:image/jpeg;base64"
                yield Image.open(io.BytesIO(base64.b64decode(code))), attrs


@pytest.mark.parametrize(("description", "order"), [(UP, "blue red black green"), (DOWN, "green black red blue")])
def test_a_page_shows_the_images_best_first(tmp_path, coloured, description, order):
    sheets.draw(tmp_path / "s.html", "model & co", description, coloured)
    page = Page(tmp_path / "s.html")
    assert not page.open and [tag for tag, _ in page.tags].count("img") == 4
    for (image, attrs), name in zip(page.images(), order.split(), strict=True):
        assert np.abs(np.asarray(image.convert("RGB"))[image.height // 2, image.width // 2] - np.array(COLOURS[name], float)).max() < 6  # fmt: skip
        assert attrs["alt"] == f"{name}.png" and (attrs["width"], attrs["height"]) == (
            str(image.width),
            str(image.height),
        )
    sizes = {attrs["alt"]: image.size for image, attrs in page.images()}
    # Within 320x240, in their own proportions, and never blown up.
    assert sizes == {"red.png": (320, 240), "green.png": (36, 240), "blue.png": (320, 21), "black.png": (40, 30)}
    marks = {"blue": "71.00", "red": "60.25", "black": "33.30", "green": "8.50"}
    assert page.texts["b"] == [marks[name] for name in order.split()]
    assert page.texts["span"] == ["1", "2", "3", "4"]
    assert page.texts["title"] == page.texts["h1"] == ["Scores by model & co"]
    better = "higher" if description is UP else "lower"
    assert page.texts["p"] == [
        "4 images, scores 8.50 to 71.00",
        f"trained on koniq-10k, 0 to 100; {better} is better; best first",
    ]
    outside = [value for _, attrs in page.tags for value in attrs.values() if value and ("//" in value[:9])]
    assert not outside and "url(" not in sheets.STYLE  # readable without a network


def test_of_many_images_an_even_spread_is_shown(tmp_path):
    images = []
    for i in range(1001):
        images.append((str(tmp_path / f"{i}.png"), (i * 37) % 1001 / 10))
    Image.new("RGB", (8, 6)).save(images[0][0])
    for image, _ in images[1:]:
        os.link(images[0][0], image)
    cells = sheets.chosen(images, True)
    ranks = [cell.rank for cell in cells]
    assert len(cells) == 200 and ranks[0] == 1 and ranks[-1] == 1001
    assert set(np.diff(ranks)) == {5, 6} and all(cell.score == pytest.approx((1001 - cell.rank) / 10) for cell in cells)
    assert [cell.rank for cell in sheets.chosen(images[:200], False)] == list(range(1, 201))
    sheets.draw(tmp_path / "s.html", "model", UP, images)
    page = Page(tmp_path / "s.html")
    assert len(list(page.images())) == 200 and page.texts["span"][-1] == "1,001"
    assert page.texts["p"][2] == "200 of 1,001 shown: an even spread over the ranks, the best and the worst among them"


def test_odd_names_and_lost_images(tmp_path):
    names = ["<b>&.png", 'say "x".png', "two\nlines.png", os.fsdecode(b"latin\xe9.png"), "山" * 40 + ".png", "lost.png"]
    images = [(str(tmp_path / name), float(50 - i)) for i, name in enumerate(names)]
    for image, _ in images[:-1]:
        Image.new("RGB", (30, 20), "red").save(image)
    sheets.draw(tmp_path / "s.html", "m\n<x>", UP, images, ["a<b.jpg (no image)", "c.jpg (empty)"], 7)
    page = Page(tmp_path / "s.html")
    shown = ["<b>&.png", 'say "x".png', "two?lines.png", "latin?.png", "山" * 40 + ".png", "lost.png"]
    assert [text for text in page.texts["div"] if text.strip()] == [*shown[:-1], "cannot be read now", "lost.png"]
    assert len(list(page.images())) == 5
    assert page.texts["li"] == ["a<b.jpg (no image)", "c.jpg (empty)", "and 5 more"]
    assert page.texts["h2"] == ["Without a score: 7"] and page.texts["title"] == ["Scores by m?<x>"]
    for image, _ in page.images():
        assert np.abs(np.asarray(image, float) - (255, 0, 0)).max() < 6


def test_a_sheet_without_images_says_so(tmp_path):
    sheets.draw(tmp_path / "s.html", "model", UP, [], ["a.jpg (empty)"], 1)
    page = Page(tmp_path / "s.html")
    assert page.texts["p"][0] == "no image has a score" and not list(page.images())
    assert page.texts["li"] == ["a.jpg (empty)"]


def test_thumbnails_are_upright_and_of_any_kind(tmp_path):
    image, exif = Image.new("RGB", (400, 200), "blue"), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((200, 400), 65535, np.uint16)).save(tmp_path / "deep.png")
    assert sheets.thumbnail(str(tmp_path / "turned.jpg"), (100, 100)).size == (50, 100)
    assert sheets.thumbnail(str(tmp_path / "cmyk.jpg"), (100, 100)).getpixel((50, 25))[2] > 240
    assert sheets.thumbnail(str(tmp_path / "deep.png"), (100, 100)).getpixel((50, 25)) == (255, 255, 255)
    assert sheets.thumbnail(str(tmp_path), (100, 100)) is None


def test_a_sheet_that_cannot_be_written_is_named(tmp_path, coloured):
    with pytest.raises(UserError, match="s.html: cannot be written"):
        sheets.draw(tmp_path / "black.png" / "s.html", "model", UP, coloured)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
@pytest.mark.parametrize("width", [500, 1600])
def test_a_browser_shows_pictures_in_their_own_shape(tmp_path, width):
    """As laid out by a real browser: neither squeezed, nor larger than they are, nor wider than their column."""
    scores = []
    for i, size in enumerate([(640, 480), (480, 640), (900, 200), (200, 900), (100, 80), (640, 480)]):
        Image.new("RGB", size, (40 * i, 90, 120)).save(tmp_path / f"{i}.png")
        scores.append((str(tmp_path / f"{i}.png"), float(i)))
    sheets.draw(tmp_path / "a.html", "m", UP, scores)
    measure = """<script>document.title = JSON.stringify([...document.images].map(i => { const r = i.getBoundingClientRect();
    return [r.width, r.height, i.naturalWidth, i.naturalHeight, i.parentElement.clientWidth] }))</script></body>"""
    (tmp_path / "measured.html").write_text((tmp_path / "a.html").read_text().replace("</body>", measure))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--dump-dom", (tmp_path / "measured.html").as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown = json.loads(re.search("<title>(.*?)</title>", page)[1])
    assert len(shown) == 6
    for across, down, natural_width, natural_height, column in shown:
        assert across / down == pytest.approx(natural_width / natural_height, rel=0.02)
        assert across <= min(natural_width, column) + 0.5 and down <= natural_height + 0.5
