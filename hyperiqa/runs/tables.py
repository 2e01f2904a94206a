"""How comparisons are shown: figures and tables as text.

Everything here gets plain names, figures and cells; nothing knows what a run is.
"""

import itertools
import math
import re
from collections.abc import Collection, Sequence

from hyperiqa.base.terminal import printable
from hyperiqa.stats.intervals import Estimate

# Percentile intervals of Pearson's correlation are too short below so many images (simulated:
# docs/comparing_runs.md).
FEW_IMAGES = 30
FEW_IMAGES_NOTE = (
    f"PLCC on fewer than {FEW_IMAGES} images: about 90 of 100 such intervals hold the true value, "
    "not 95"
)


def estimate_text(estimate: Estimate) -> str:
    """`0.9205 [.912 .928]`, `~` before an approximate interval, `±` the deviation over seeds."""
    if math.isnan(estimate.value):
        return "–"
    text = f"{estimate.value:.4f}"
    if not math.isnan(estimate.deviation):
        text += f" ±{estimate.deviation:.4f}".replace("0.", ".", 1)
    if math.isnan(estimate.low):
        return text
    sign = "~" if estimate.approximate else ""
    return f"{text} {sign}[{_bound_text(estimate.low)} {_bound_text(estimate.high)}]"


def _bound_text(bound: float) -> str:
    return re.sub(r"^(-?)0\.", r"\1.", f"{bound:.3f}")


def short_names(names: Sequence[str], width: int) -> dict[str, str]:
    """Each name in at most `width` characters and still unlike the others.

    Long names lose dates that tell none apart, then all words but those that tell them from another
    long one, and then their middles.
    """
    undated = [re.sub(r"_\d{8}_\d{6}(?=$|_)", "", name) for name in names]
    texts = {
        name: plain if len(name) > width and undated.count(plain) == 1 else name
        for name, plain in zip(names, undated)
    }
    long = [re.split("[_ ]", text) for text in texts.values() if len(text) > width]
    short: dict[str, str] = {}
    for name, text in texts.items():
        if len(text) > width:
            text = _telling_words(re.split("[_ ]", text), long)
        if len(text) > width:
            # More is kept of the end: what tells runs apart comes late in their names.
            head = (width - 1) // 3
            text = re.sub("…+", "…", text[:head] + "…" + text[len(text) - width + 1 + head :])
        short[name] = _unlike(short.values(), text, width)
    return short


def _telling_words(own: list[str], names: Sequence[list[str]]) -> str:
    """A name's words by which it first differs from another name; all where it differs from none.

    One `…` stands for each row of words that are left out, none at either end.
    """
    words = []
    for place, word in enumerate(own):
        alike = [name for name in names if name[:place] == own[:place]]
        is_same = all(name[place : place + 1] == [word] for name in alike)
        words.append("…" if is_same else word)
    text = re.sub("_?…(_…)*_?", "…", "_".join(words)).strip("…")
    return text or "_".join(own)


def _unlike(taken: Collection[str], text: str, width: int) -> str:
    # ~2, ~3 and so on stand at the end of what is taken.
    endings = itertools.chain([""], (f"~{number}" for number in itertools.count(2)))
    candidates = (text[: width - len(ending)] + ending for ending in endings)
    return next(name for name in candidates if name not in taken)


def names_in_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> dict[str, str]:
    """The `short_names` of a first column that fit into a `text_table` of this width.

    At least 20 characters of each are shown.
    """
    _, *widths = _column_widths(header, rows)
    # Each column stands at least one space from the one before it.
    room = max(20, min(width // 2, width - sum(widths) - len(widths)))
    return short_names([name for name, *_ in rows], room)


def _column_widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, [*title.split("\n"), *cells])) for title, *cells in zip(header, *rows)]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 100) -> str:
    """A table: first column left, others right, headers of two lines at most.

    What goes beyond `width` stands in further blocks below, each with the first column again.
    """
    # No name makes a line of its own.
    rows = [list(map(printable, cells)) for cells in rows]
    widths = _column_widths(header, rows)
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    # Each block is a list of columns, beside the first.
    blocks: list[list[int]] = [[]]
    for column in range(1, len(header)):
        used = widths[0] + sum(gap + widths[earlier] for earlier in blocks[-1])
        if blocks[-1] and used + gap + widths[column] > width:
            blocks.append([])
        blocks[-1].append(column)

    def line(cells: Sequence[str], block: Sequence[int]) -> str:
        numbers = "".join(" " * gap + cells[column].rjust(widths[column]) for column in block)
        return (cells[0].ljust(widths[0]) + numbers).rstrip()

    upper = [title.rpartition("\n")[0] for title in header]
    lower = [title.rpartition("\n")[2] for title in header]
    lines = []
    for block in blocks:
        if any(upper[column] for column in block):
            lines.append(line(upper, block))
        lines += [line(cells, block) for cells in (lower, *rows)]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as GitHub's markdown, names in full."""
    titles = [title.replace("\n", " ") for title in header]
    alignments = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(
        "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |"
        for cells in (titles, alignments, *rows)
    )
