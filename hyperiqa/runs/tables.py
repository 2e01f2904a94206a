"""How comparisons are shown: figures and tables as text.

Everything here gets plain names, figures and cells; nothing knows what a run is.
"""

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

    Long names lose dates that tell none apart, then the words that all names share, then their
    middles.
    """
    undated = [re.sub(r"_\d{8}_\d{6}(?=$|_)", "", name) for name in names]
    shared: set[str] = set()
    if len(names) > 1:
        shared = set.intersection(*(set(re.split("[_ ]", name)) for name in names))
    short: dict[str, str] = {}
    for name, plain in zip(names, undated):
        text = name
        if len(text) > width and undated.count(plain) == 1:
            text = plain
        if len(text) > width:
            text = _without_words(text, shared)
        if len(text) > width:
            text = _without_middle(text, width)
        short[name] = _unlike(short.values(), text, width)
    return short


def _without_words(text: str, shared: Collection[str]) -> str:
    # One `…` stands for each row of shared words, none at the beginning.
    kept: list[str] = []
    for word in re.split("[_ ]", text):
        shown = "…" if word in shared else word
        if shown != "…" or kept[-1:] != ["…"]:
            kept.append(shown)
    return "_".join(kept).replace("_…", "…").replace("…_", "…").lstrip("…")


def _without_middle(text: str, width: int) -> str:
    # More is kept of the end: what tells runs apart comes late in their names.
    head = (width - 1) // 3
    return re.sub("…+", "…", text[:head] + "…" + text[len(text) - width + 1 + head :])


def _unlike(taken: Collection[str], text: str, width: int) -> str:
    # ~2, ~3 and so on stand at the end of what is taken.
    unique = text[:width]
    number = 2
    while unique in taken:
        end = f"~{number}"
        unique = text[: width - len(end)] + end
        number += 1
    return unique


def room_for_names(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    """Characters left for the first column of a `text_table` of this width, 12 at least."""
    _, *widths = _column_widths(header, rows)
    # Each column stands at least one space from the one before it.
    return max(12, min(width // 2, width - sum(widths) - len(widths)))


def _column_widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    columns = ([*title.split("\n"), *cells] for title, *cells in zip(header, *rows))
    return [max(map(len, texts)) for texts in columns]


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
    lines = []
    for cells in (titles, alignments, *rows):
        lines.append(
            "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |"
        )
    return "\n".join(lines)
