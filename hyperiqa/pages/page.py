"""Pages for a browser, one file each: their pictures, data and script are in them, and nothing is asked of a network.

`page.html` draws them: sections of blocks, light or dark as the system is, for any width of window."""

import base64
import functools
import html
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from tqdm import tqdm

from hyperiqa.base.files import write_whole
from hyperiqa.base.plain_values import to_json_value
from hyperiqa.images.decode import from_pillow, read_header

TEMPLATE = Path(__file__).with_name("page.html")
# Pictures up to that number -> (width, height) within which they are kept: 10,000 make a page of some 30 MB.
BOXES = {300: (320, 240), 3000: (192, 144), 10**9: (128, 96)}
PLOTTED = ("errors", "curves", "levels")
Source = Callable[[], Image.Image | None]


class Page:
    """A title, facts below it, sets of images, and sections of blocks, which `page.html` knows: text, list, facts,
    table, gallery and PLOTTED. reload: seconds after which an open page looks for a newer one; 0: never."""

    def __init__(self, title: str, facts: Sequence[str] = (), reload: float = 0):
        self.sources: list[Source] = []
        self.content: dict[str, Any] = {
            "title": printable(title),
            "facts": list(facts),
            "reload": reload,
        }
        self.content |= {"sets": {}, "sections": []}

    def images(
        self,
        name: str,
        names: Sequence[str],
        fields: Mapping[str, Sequence],
        sources: Sequence[Source],
        crops: Sequence | None = None,
    ) -> None:
        """A set of images that blocks refer to by its name. fields: title -> numbers or text, None where there is none.
        crops: of each its boxes (left, top, width, height) in percent."""
        first = len(self.sources)
        self.sources += sources
        rounded = {
            title: [round(v, 5) if isinstance(v, float) else v for v in each]
            for title, each in fields.items()
        }
        own = {"names": list(map(printable, names)), "fields": rounded, "crops": crops}
        self.content["sets"][name] = own | {
            "pictures": list(range(first, len(self.sources))) or [-1] * len(names)
        }

    def section(self, title: str, *blocks: Mapping[str, Any] | None) -> None:
        """A section of the blocks that are not None; none of it without any."""
        if kept := [block for block in blocks if block]:
            self.content["sections"].append({"title": title, "blocks": kept})

    def write(self, path: Path) -> None:
        """Raises UserError if unwritable."""
        head, tail = TEMPLATE.read_text(encoding="utf-8").split("<!--DATA-->\n")
        head = head.replace("<!--TITLE-->", html.escape(self.content["title"]))

        def write(file: BinaryIO) -> None:
            for text in (
                head,
                *_data("page", [_json(self.content)]),
                *_data("pictures", self._pictures()),
            ):
                file.write(text.encode())
            if any(
                block["kind"] in PLOTTED
                for each in self.content["sections"]
                for block in each["blocks"]
            ):
                from plotly.offline import get_plotlyjs

                file.write(f"<script>{get_plotlyjs()}</script>\n".encode())
            file.write(tail.encode())

        write_whole(path, write)

    def _pictures(self) -> Iterator[str]:
        """The pictures as a JSON list, one after the other: only what they are encoded to is ever in memory."""
        box = next(box for most, box in BOXES.items() if len(self.sources) <= most)
        yield "["
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            encode = _kept if self.content["reload"] else _encoded
            codes = pool.map(partial(encode, box=box), self.sources)
            for i, code in enumerate(
                tqdm(codes, "Pictures", len(self.sources), unit="image", leave=False)
            ):
                yield ("," if i else "") + json.dumps(code)
        yield "]"


def block(kind: str, **content: Any) -> dict[str, Any]:
    return {"kind": kind, **content}


def _json(content: object) -> str:
    """As it may stand within a script: nan is null, and nothing in it ends the script."""
    return json.dumps(to_json_value(content), ensure_ascii=False, separators=(",", ":")).replace(
        "</", "<\\/"
    )


def _data(name: str, pieces: Any) -> Iterator[str]:
    yield f'<script type="application/json" id="{name}">'
    yield from pieces
    yield "</script>\n"


def _encoded(source: Source, box: tuple[int, int]) -> str | None:
    picture = source()
    if picture is None:
        return None
    picture.thumbnail(box)
    picture.save(data := io.BytesIO(), "WEBP", quality=70)
    return base64.b64encode(data.getvalue()).decode()


_kept = functools.cache(_encoded)  # for pages that are written again and again


def thumbnail(image: str) -> Image.Image | None:
    """A picture of the file, upright, of at most 640 x 480 pixels; None where it cannot be read any more."""
    try:
        read_header(Path(image))
        with Image.open(image) as opened:
            opened.draft(None, (640, 480))  # a JPEG need not be decoded in full
            return Image.fromarray(from_pillow(opened, exif_rotate=True))
    except (
        Exception
    ):  # it may have gone or changed since it was scored, and decoders raise what they like
        return None


def printable(text: str) -> str:
    """The text with a ? for each character that no page can show: line breaks, bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else "?" for c in text)


def draw_scores(
    path: Path,
    title: str,
    description: Mapping[str, Any],
    scores: Sequence[tuple[str, float]],
    failures: Sequence[str] = (),
    failed: int = 0,
) -> None:
    """Write a page of these (image, score), to be sorted and filtered. Raises UserError if unwritable.
    description: the model's; failures: lines about images without a score, all or the first of `failed`."""
    page = Page(
        f"Scores by {title}", list(_facts(description, [score for _, score in scores], failed))
    )
    names = [image for image, _ in scores]
    folders = {str(Path(name).parent) for name in names}
    mixed = len({Path(each).is_absolute() for each in folders}) != 1
    below = (
        names
        if mixed
        else [os.path.relpath(name, os.path.commonpath(folders) or ".") for name in names]
    )
    page.images(
        "scored",
        below,
        {"score": [score for _, score in scores]},
        [partial(thumbnail, name) for name in names],
    )
    page.section(
        "", block("gallery", set="scored", by="score", down=description["higher_is_better"])
    )
    more = [f"and {failed - len(failures):,} more"] if failed > len(failures) else []
    lines = [*map(printable, failures), *more]
    page.section(f"Without a score: {failed:,}", block("list", lines=lines) if failures else None)
    page.write(path)


def _facts(description: Mapping[str, Any], scores: Sequence[float], failed: int) -> Iterator[str]:
    better, (low, high) = (
        "higher" if description["higher_is_better"] else "lower",
        description["score_range"],
    )
    span = (
        f"{len(scores):,} images, scores {min(scores):.2f} to {max(scores):.2f}" if scores else ""
    )
    yield span or "no image has a score"
    yield f"trained on {description['dataset']}, {low:g} to {high:g}; {better} is better"
    if failed:
        yield f"{failed:,} images could not be scored"


def draw_pairs(path: Path, title: str, pairs: Sequence[Sequence[tuple[str, Path]]]) -> None:
    """Write pairs of images (name, path) side by side. Raises UserError if unwritable."""
    page, shown = Page(title, [f"{len(pairs):,} pairs"]), [each for pair in pairs for each in pair]
    page.images(
        "pairs",
        [name for name, _ in shown],
        {},
        [partial(thumbnail, str(path)) for _, path in shown],
    )
    page.section("", block("gallery", set="pairs", two=True))
    page.write(path)


@functools.cache
def cached(cache: Any, i: int) -> Source:
    """The picture of an image of the cache, read when it is needed."""
    return lambda: Image.fromarray(cache[i])
