"""Contact sheets: the images sorted by score, best first, as one page to look at.

However many images there are, at most `SHOWN` are decoded, one after the other, and only their thumbnails are kept."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.files import write_whole
from reading.images import from_pillow, read_header

SHOWN = 200


@dataclass(frozen=True)
class Cell:
    """An image of the sheet: its rank from 1 (best), path and score."""

    rank: int
    image: str
    score: float

    @property
    def name(self) -> str:
        return printable(Path(self.image).name)


def draw(
    path: Path, title: str, description: dict[str, Any], scores: Sequence[tuple[str, float]],
    failures: Sequence[str] = (), failed: int = 0
) -> None:  # fmt: skip
    """Write the sheet of these (image, score) as HTML. Raises UserError if unwritable.
    description: the model's; failures: lines about images without a score, all or the first of `failed`."""
    cells = chosen(scores, description["higher_is_better"])
    facts = list(_facts(description, scores, len(cells), failed))
    shown = tqdm(cells, "Contact sheet", unit="image", leave=False, dynamic_ncols=True)

    def write(file: BinaryIO) -> None:
        for text in _page(f"Scores by {title}", facts, shown, failures, failed):
            file.write(text.encode())

    write_whole(path, write)


def chosen(scores: Sequence[tuple[str, float]], higher_is_better: bool) -> list[Cell]:
    """Best first; of more than `SHOWN` an even spread over the ranks, the best and the worst among them."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i][1] if higher_is_better else scores[i][1], i))
    ranks = np.linspace(0, len(order) - 1, min(len(order), SHOWN)).round().astype(int)
    return [Cell(int(rank) + 1, *scores[order[rank]]) for rank in ranks]


def _facts(description: dict[str, Any], scores: Sequence, shown: int, failed: int) -> Iterator[str]:
    better = "higher" if description["higher_is_better"] else "lower"
    if scores:
        values = [score for _, score in scores]
        yield f"{len(scores):,} images, scores {min(values):.2f} to {max(values):.2f}"
    else:
        yield "no image has a score"
    low, high = description["score_range"]
    yield f"trained on {description['dataset']}, {low:g} to {high:g}; {better} is better; best first"
    if shown < len(scores):
        yield f"{shown} of {len(scores):,} shown: an even spread over the ranks, the best and the worst among them"
    if failed:
        yield f"{failed:,} images could not be scored"


def thumbnail(image: str, box: tuple[int, int]) -> Image.Image | None:
    """The image, upright, within (width, height); None where it cannot be read any more."""
    try:
        read_header(Path(image))
        with Image.open(image) as opened:
            opened.draft(None, (2 * box[0], 2 * box[1]))  # a JPEG need not be decoded in full
            small = Image.fromarray(from_pillow(opened, exif_rotate=True))
    except Exception:  # it may have gone or changed since it was scored, and decoders raise what they like
        return None
    small.thumbnail(box)
    return small


def printable(text: str) -> str:
    """The text with a ? for each character that no sheet can show: line breaks, bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else "?" for c in text)


def draw_pairs(path: Path, title: str, pairs: Sequence[Sequence[tuple[str, Path]]]) -> None:
    """Write pairs of images (name, path) side by side, as HTML. Raises UserError if unwritable."""

    def write(file: BinaryIO) -> None:
        head = "".join(_head(title, [f"{len(pairs)} pairs, {min(len(pairs), SHOWN)} shown"]))
        file.write(head.replace("<main>", '<main style="grid-template-columns: 1fr 1fr; max-width: 680px">').encode())
        for pair in pairs[:SHOWN]:
            for name, image in pair:
                picture = _embedded(Cell(0, str(image), 0.0))
                file.write(f"<figure>{picture}\n<figcaption>{html.escape(name)}</figcaption></figure>\n".encode())
        file.write(b"</main>\n</body>\n</html>\n")

    write_whole(path, write)


BOX = (320, 240)
STYLE = """
:root { color-scheme: light dark; } body { font: 15px/1.4 system-ui, sans-serif; margin: 24px; }
h1 { font-size: 22px; margin: 0 0 4px; overflow-wrap: anywhere; }
p, li { color: GrayText; margin: 0; overflow-wrap: anywhere; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 20px 14px; margin: 24px 0; }
figure { margin: 0; display: flex; flex-direction: column; justify-content: flex-end; }
img { max-width: 100%; max-height: 240px; width: auto; height: auto; margin: auto auto 0; }
figcaption { margin-top: 4px; color: GrayText; font-size: 13px; overflow-wrap: anywhere; }
figcaption b { color: CanvasText; font-size: 17px; float: left; } figcaption span { float: right; }
figcaption div { clear: both; }
.gone { background: rgb(128 128 128 / 20%); height: 150px; display: grid; place-items: center; color: GrayText; }
"""


def _page(
    title: str, facts: Sequence[str], cells: Sequence[Cell], failures: Sequence[str], failed: int
) -> Iterator[str]:
    """The page in pieces: whole in itself, with the thumbnails in it, for any width of window."""
    yield from _head(title, facts)
    for cell in cells:
        yield f'<figure title="{html.escape(printable(cell.image))}">{_embedded(cell)}\n'
        yield f"<figcaption><b>{cell.score:.2f}</b><span>{cell.rank:,}</span>"
        yield f"<div>{html.escape(cell.name)}</div></figcaption></figure>\n"
    yield "</main>\n"
    if failures:
        yield f"<h2>Without a score: {failed:,}</h2>\n<ul>\n"
        yield from (f"<li>{html.escape(printable(line))}</li>\n" for line in failures)
        yield f"<li>and {failed - len(failures):,} more</li>\n" if failed > len(failures) else ""
        yield "</ul>\n"
    yield "</body>\n</html>\n"


def _head(title: str, facts: Sequence[str]) -> Iterator[str]:
    title = html.escape(printable(title))
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    yield from (f"<p>{html.escape(fact)}</p>\n" for fact in facts)
    yield "<main>\n"


def _embedded(cell: Cell) -> str:
    picture = thumbnail(cell.image, BOX)
    if picture is None:
        return '<div class="gone">cannot be read now</div>'
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    code = base64.b64encode(data.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img alt="{html.escape(cell.name)}" {size} src="data:image/jpeg;base64,{code}">'
