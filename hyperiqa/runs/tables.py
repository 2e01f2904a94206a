"""How comparisons are shown: tables of text. Everything here gets plain names; nothing knows what a run is."""

import itertools
import re
from collections.abc import Sequence


def short_names(names: Sequence[str], width: int) -> dict[str, str]:
    """Each name in at most `width` characters and still unlike the others.
    Long names lose dates that tell none apart, then the words that all names share, then their middles."""
    undated = [re.sub(r"_\d{8}_\d{6}(?=$|_)", "", name) for name in names]
    shared = (
        set.intersection(*(set(re.split("[_ ]", name)) for name in names))
        if len(names) > 1
        else set()
    )
    short: dict[str, str] = {}
    for name, plain in zip(names, undated):
        text = plain if len(name) > width and undated.count(plain) == 1 else name
        if len(text) > width:
            words = ["…" if word in shared else word for word in re.split("[_ ]", text)]
            kept = [
                word for word, before in zip(words, ["", *words]) if word != "…" or before != "…"
            ]
            text = "_".join(kept).replace("_…", "…").replace("…_", "…").lstrip("…")
        if len(text) > width:
            head = (width - 1) // 3  # what tells runs apart comes late in their names
            text = re.sub("…+", "…", text[:head] + "…" + text[len(text) - (width - 1 - head) :])
        ends = itertools.chain([""], map("~{}".format, itertools.count(2)))
        tried = (text[: width - len(end)] + end for end in ends)
        short[name] = next(text for text in tried if text not in short.values())
    return short


def room_for_names(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    """Characters left for the first column of a `text_table` of this width, 12 at least."""
    widths = [max(map(len, [*title.split("\n"), *cells])) for title, *cells in zip(header, *rows)]
    return max(12, min(width // 2, width - sum(widths[1:]) - len(widths[1:])))


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 100) -> str:
    """A table: first column left, others right, headers of two lines at most; beyond `width` in more blocks."""
    widths = [max(map(len, [*title.split("\n"), *cells])) for title, *cells in zip(header, *rows)]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    blocks: list[list[int]] = [[]]
    for i in range(1, len(header)):
        used = widths[0] + sum(gap + widths[k] for k in blocks[-1])
        if blocks[-1] and used + gap + widths[i] > width:
            blocks.append([])
        blocks[-1].append(i)

    def line(cells: Sequence[str], block: Sequence[int]) -> str:
        numbers = "".join(" " * gap + cells[i].rjust(widths[i]) for i in block)
        return (cells[0].ljust(widths[0]) + numbers).rstrip()

    upper, lower = zip(*(title.rpartition("\n")[::2] for title in header))
    lines = []
    for block in blocks:
        lines += [line(upper, block)] if any(upper[i] for i in block) else []
        lines += [line(lower, block), *(line(row, block) for row in rows)]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as GitHub's markdown, names in full."""
    lines = [
        [title.replace("\n", " ") for title in header],
        ["---"] + ["---:"] * (len(header) - 1),
        *rows,
    ]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
