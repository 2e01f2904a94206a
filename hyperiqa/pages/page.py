"""Pages for a browser: one self-contained file each.

A page's pictures, data, style and script are in the file itself, and it asks no network for
anything. `page.html` with `page.css` is the frame; `page.js` draws sections of blocks into it.
Pages are light or dark as the reader's system is, and fit a window of any width.
"""

import base64
import functools
import html
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from hyperiqa.base import errors, files, plain_values, terminal
from hyperiqa.images.decode import FORMATS, from_pillow, read_header, room_for
from hyperiqa.scoring import meaning as meanings, score_files

FOLDER = Path(__file__).parent
# Most pictures on a page -> (width, height) within which each is kept:
# 10,000 pictures make a page of some 30 MB.
BOXES = {300: (320, 240), 3000: (192, 144), 10**9: (128, 96)}
# Kinds of blocks that need plotly, which is most of a page's bytes.
PLOTTED = ("errors", "curves", "levels")
Source = Callable[[], Image.Image | None]


class Page:
    """A title, facts below it, sets of images, and sections of blocks.

    `page.js` knows the kinds of blocks: text, list, facts, heading, table, gallery and PLOTTED.
    reload: seconds after which an open page looks for a newer one; 0: never.
    """

    def __init__(self, title: str, facts: Sequence[str] = (), reload: float = 0):
        # Read only when the page is written: ten thousand pictures do not fit into memory.
        self.sources: list[Source] = []
        self.content: dict[str, Any] = {
            "title": terminal.printable(title),
            "facts": list(facts),
            "reload": reload,
            "sets": {},
            "sections": [],
        }

    def images(
        self,
        name: str,
        names: Sequence[str],
        fields: Mapping[str, Sequence],
        sources: Sequence[Source],
        crops: Sequence | None = None,
    ) -> None:
        """Add a set of images, to which blocks refer by its name.

        names: of the images.
        fields: title -> a number or text for each image, None where there is none.
        sources: the images' pictures; empty: the set has no pictures.
        crops: for each image the boxes (left, top, width, height) of its crops, in percent of it.
        """
        pictures = [len(self.sources) + i for i in range(len(sources))]
        self.sources += sources
        self.content["sets"][name] = {
            "names": list(map(terminal.printable, names)),
            "fields": {title: list(map(_rounded, values)) for title, values in fields.items()},
            "crops": crops,
            "pictures": pictures or [-1] * len(names),
        }

    def section(self, title: str, *blocks: Mapping[str, Any] | None) -> None:
        """Add a section of the blocks that are not None; without any block there is no section."""
        present_blocks = [block for block in blocks if block]
        if present_blocks:
            self.content["sections"].append({"title": title, "blocks": present_blocks})

    def write(self, path: Path) -> None:
        """Write the page as one file. Raises UserError if unwritable."""
        files.write_whole(path, lambda file: file.writelines(map(str.encode, self._texts())))

    def _texts(self) -> Iterator[str]:
        """The page's text, piece by piece."""
        frame = (FOLDER / "page.html").read_text(encoding="utf-8")
        for name in ("page.css", "page.js"):
            frame = frame.replace(f"/* {name} */\n", (FOLDER / name).read_text(encoding="utf-8"))
        before_data, after_data = frame.split("<!--DATA-->\n")
        before_data = before_data.replace("<!--TITLE-->", html.escape(self.content["title"]))
        # NaN becomes null.
        content = json.dumps(
            plain_values.to_json_value(self.content), ensure_ascii=False, separators=(",", ":")
        )
        # No text in the data ends the script, or begins a comment or another script within it. A
        # file in UTF-8 holds no halves of characters.
        content = re.sub(
            "[<>&\u2028\u2029\ud800-\udfff]",
            lambda match: f"\\u{ord(match[0]):04x}",
            content,
        )
        yield f'{before_data}<script type="application/json" id="page">{content}</script>\n'
        yield '<script type="application/json" id="pictures">'
        yield from self._pictures()
        yield "</script>\n"
        kinds = {
            block["kind"] for section in self.content["sections"] for block in section["blocks"]
        }
        if not kinds.isdisjoint(PLOTTED):
            from plotly.offline import get_plotlyjs

            yield f"<script>{get_plotlyjs()}</script>\n"
        yield after_data

    def _pictures(self) -> Iterator[str]:
        """The pictures as a JSON list, piece by piece: only encoded pictures are ever in memory."""
        number = len(self.sources)
        box = next(box for most_pictures, box in BOXES.items() if number <= most_pictures)
        encode = _encode_once if self.content["reload"] else _encode
        yield "["
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            codes = pool.map(functools.partial(encode, box=box), self.sources)
            bar = tqdm(codes, "Pictures", number, unit="image", leave=False, disable=None)
            for i, code in enumerate(bar):
                yield ("," if i else "") + json.dumps(code)
        yield "]"


def block(kind: str, **content: Any) -> dict[str, Any]:
    """A block of a section, as `page.js` takes it."""
    return {"kind": kind, **content}


def _rounded(value: Any) -> Any:
    """The value, with at most five decimals: more would only make the file larger."""
    return round(value, 5) if isinstance(value, float) else value


def _encode(source: Source, box: tuple[int, int]) -> str | None:
    """The picture as WebP in base64, shrunk to fit into the box; None where it cannot be read."""
    picture = source()
    if picture is None:
        return None
    picture.thumbnail(box)
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=70)
    return base64.b64encode(data.getvalue()).decode()


# For pages that are written again and again, whose sources stay the same objects.
_encode_once = functools.cache(_encode)


def thumbnail(image: str) -> Image.Image | None:
    """The picture of a file, upright, at most 2048 pixels high and wide; None if unreadable."""
    try:
        read_header(Path(image))
        with Image.open(image, formats=FORMATS) as opened:
            opened.draft(None, (640, 480))  # a JPEG need not be decoded in full
            with room_for(opened.width * opened.height):
                picture = Image.fromarray(from_pillow(opened, exif_rotate=True))
                picture.thumbnail((2048, 2048))
                return picture
    # The file may have gone or changed since it was scored, and decoders raise what they like.
    except Exception:
        return None


@functools.cache
def picture_from_cache(cache: Any, i: int) -> Source:
    """The picture of image i of a cache of decoded images, read when it is needed.

    The same image gives the same function, by which `_encode_once` recognises it.
    """
    return lambda: Image.fromarray(cache[i])


def draw_scores(
    path: Path,
    title: str,
    description: Mapping[str, Any],
    scores: Sequence[tuple[str, float]],
    failures: Sequence[str] = (),
    failed: int = 0,
    meaning: meanings.Meaning | None = None,
) -> None:
    """Write a page of images and their scores, to be sorted and filtered.

    description: the model's. scores: (image, score).
    failures: lines about images without a score, all of them or the first of `failed`.
    meaning: explains the scores. Raises UserError if unwritable.
    """
    images = [image for image, _ in scores]
    values = [score for _, score in scores]
    sources = [functools.partial(thumbnail, image) for image in images]
    facts = [
        f"{errors.counted(len(values), 'image')}, scores {min(values):.2f} to {max(values):.2f}"
        if values
        else "no image has a score",
        f"scale of the scores: {score_files.scale_text(description)}",
    ]
    if failed:
        facts.append(f"{errors.counted(failed, 'image')} could not be scored")
    fields: dict[str, Sequence] = {"score": values}
    if meaning:
        facts.append(meaning.about)
        explained = [vars(meaning.of(score)) for score in values]
        for name in ("percentile", "low", "high", "keep", "note"):
            fields[name] = [image_meaning[name] for image_meaning in explained]
    page = Page(f"Scores by {title}", facts)
    page.images("scored", _names_below_common_folder(images), fields, sources)
    page.section(
        "",
        block(
            "gallery",
            set="scored",
            by="score",
            down=description["higher_is_better"],
            scale=meaning and meaning.entry["score_range"],
        ),
    )
    if failures:
        lines = [terminal.printable(failure) for failure in failures]
        if failed > len(failures):
            lines.append(f"and {failed - len(failures):,} more")
        page.section(f"Without a score: {failed:,}", block("list", lines=lines))
    page.write(path)


def _names_below_common_folder(images: Sequence[str]) -> Sequence[str]:
    folders = {str(Path(image).parent) for image in images}
    # Absolute and relative paths have no folder in common that the paths themselves show.
    if len({Path(folder).is_absolute() for folder in folders}) != 1:
        return images
    common_folder = os.path.commonpath(folders) or "."
    return [os.path.relpath(image, common_folder) for image in images]


def draw_pairs(path: Path, title: str, pairs: Sequence[Sequence[tuple[str, Path]]]) -> None:
    """Write a page of pairs of images (name, path). Raises UserError if unwritable."""
    page = Page(title, [errors.counted(len(pairs), "pair")])
    images = [image for pair in pairs for image in pair]
    sources = [functools.partial(thumbnail, str(image_path)) for _, image_path in images]
    page.images("pairs", [name for name, _ in images], {}, sources)
    page.section("", block("gallery", set="pairs", two=True))
    page.write(path)
