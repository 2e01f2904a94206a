"""How comparisons are shown: tables of text, and pictures (matplotlib, imported only when one is asked for).

Everything here gets plain names and numbers; nothing knows what a run is."""

import importlib.util
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import metrics
from common.errors import reading

PICTURES = (".png", ".svg", ".pdf")


def short_names(names: Sequence[str], width: int) -> dict[str, str]:
    """Each name in at most `width` characters and still unlike the others.
    Long names lose dates that tell none apart, then the words that all names share, then their middles."""
    undated = [re.sub(r"_\d{8}_\d{6}(?=$|_)", "", name) for name in names]
    shared = set.intersection(*(set(re.split("[_ ]", name)) for name in names)) if len(names) > 1 else set()
    short: dict[str, str] = {}
    for name, plain in zip(names, undated):
        text = plain if len(name) > width and undated.count(plain) == 1 else name
        if len(text) > width:
            words = ["…" if word in shared else word for word in re.split("[_ ]", text)]
            kept = [word for word, before in zip(words, ["", *words]) if word != "…" or before != "…"]
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
    """A table in `width` characters: first column left, others right; a header may have two lines.
    Columns that don't fit go into a further block."""
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
    lines = [[title.replace("\n", " ") for title in header], ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


@dataclass(frozen=True)
class Curve:
    """A run over its epochs: epochs (E,), panel title -> figures (E,) with nan where undefined; best: an epoch or 0."""

    name: str
    epochs: Sequence[int]
    figures: Mapping[str, Sequence[float]]
    best: int


@dataclass(frozen=True)
class Cloud:
    """Predictions on one set: scores and MOS (N,), images' names (N,); fit: score -> fitted MOS, or None."""

    title: str
    score: np.ndarray
    mos: np.ndarray
    images: Sequence[str]
    fit: Callable | None = None
    opinion: str = "MOS"  # what the set calls its scores


def fitted_cloud(
    title: str, score: np.ndarray, mos: np.ndarray, images: Sequence[str], sign: int = 1, opinion: str = "MOS"
) -> tuple[Cloud, str]:
    """The cloud with its fitted logistic, and its figures in words; sign -1: scores that ought to fall as MOS rise."""
    signed = sign * score
    fit = metrics.fit_logistic(signed, mos)
    curve = None if fit is None else lambda x: metrics.logistic(fit, sign * x)
    fitted = "" if curve is None else f", {metrics.plcc(curve(score), mos):.4f} fitted"
    caption = f"{len(images)} images, SRCC {metrics.srcc(signed, mos):.4f}, PLCC {metrics.plcc(signed, mos):.4f}"
    return Cloud(title, score, mos, images, curve, opinion), caption + fitted


def drawing_problem(flag: str) -> str | None:
    """What keeps a picture from being drawn, if anything."""
    return None if importlib.util.find_spec("matplotlib") else f"{flag} needs matplotlib: pip install matplotlib"


def _save(figure, path: Path) -> None:
    with reading(path, "cannot be written"):
        figure.savefig(path, dpi=150)


def _panels(count: int, columns: int, width: float, height: float, below: float = 0.0):
    """A figure and its `count` panels, each of that size in inches; below: room beneath them all."""
    # A Figure of its own, not pyplot's: no window system is looked for and nothing global is kept.
    from matplotlib.figure import Figure

    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows + below), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _styles(count: int) -> list[dict[str, object]]:
    """Line styles that stay apart in print: eight colours (Okabe & Ito's, for every kind of sight) times dashes."""
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#9A8C00")
    dashes, markers = ("-", "--", ":", "-."), "osD^vPX*"
    style = lambda i: (colours[i % 8], dashes[i // 8 % 4], markers[(i + i // 8) % 8])  # noqa: E731
    return [dict(zip(("color", "linestyle", "marker"), style(i))) for i in range(count)]


def draw_curves(path: Path, curves: Sequence[Curve], titles: Sequence[str]) -> None:
    """One panel per title, two beside each other; a ring marks each best epoch. Raises UserError if unwritable."""
    from matplotlib.ticker import MaxNLocator

    figure, panels = _panels(len(titles), 2, 5.5, 3.6, 0.22 * len(curves) + 0.6)
    short = short_names([curve.name for curve in curves], 90)
    for panel, title in zip(panels, titles):
        for curve, style in zip(curves, _styles(len(curves))):
            values = np.array(curve.figures.get(title, [np.nan] * len(curve.epochs)), dtype=float)
            panel.plot(curve.epochs, values, lw=1.4, markersize=3, **style, label=short[curve.name])
            if curve.best in curve.epochs:
                ring = style | {"linestyle": "none", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.8}
                panel.plot([curve.best], [values[list(curve.epochs).index(curve.best)]], **ring)
        panel.set(title=title, xlabel="epoch")
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if not any(np.isfinite(curve.figures.get(title, np.nan)).any() for curve in curves):
            panel.text(0.5, 0.5, "not in these logs", ha="center", va="center", transform=panel.transAxes, color="grey")
    look = dict(ncols=1 if len(curves) < 5 else 2, fontsize=8, title_fontsize=8, handlelength=4)
    labels = panels[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", title="large open marker: best epoch", **look)
    _save(figure, path)


def draw_scatter(path: Path, title: str, clouds: Sequence[Cloud], captions: Sequence[str]) -> None:
    """Predicted score against MOS, one panel per set, with the fitted curve and the ten worst images named.
    Worst: furthest from the fitted curve (from the MOS where nothing could be fitted). Their names stand beside
    the panel, near their points but apart."""
    figure, panels = _panels(len(clouds), min(len(clouds), 2 if len(clouds) < 5 else 3), 8.2, 6)
    figure.suptitle(title)
    line = {"arrowstyle": "-", "lw": 0.5, "color": "#D55E00", "relpos": (0, 0.5)}
    for panel, cloud, caption in zip(panels, clouds, captions):
        fitted = cloud.fit(cloud.score) if cloud.fit else cloud.score
        worst = np.argsort(-np.abs(fitted - cloud.mos), kind="stable")[:10]
        panel.scatter(cloud.score, cloud.mos, s=9, alpha=0.45, linewidths=0, color="#0072B2", rasterized=True)
        panel.scatter(cloud.score[worst], cloud.mos[worst], s=26, facecolors="none", edgecolors="#D55E00")
        if cloud.fit:
            grid = np.linspace(cloud.score.min(), cloud.score.max(), 200)
            panel.plot(grid, cloud.fit(grid), color="black", lw=1.6, label="fitted logistic")
            rises = cloud.fit(grid[-1]) >= cloud.fit(grid[0])
            panel.legend(loc="upper left" if rises else "upper right", fontsize=8)
        by_height = worst[np.argsort(cloud.mos[worst], kind="stable")]
        low, high = panel.get_ylim()
        for image, height in zip(by_height, _apart((cloud.mos[by_height] - low) / (high - low), 0.045)):
            name, point = str(cloud.images[image]), (cloud.score[image], cloud.mos[image])
            text = name if len(name) <= 32 else "…" + name[-31:]
            look = dict(arrowprops=line, textcoords="axes fraction", fontsize=8, va="center")
            panel.annotate(text, point, xytext=(1.04, height), **look)
        panel.set(xlabel="predicted score", ylabel=cloud.opinion)
        panel.set_title(f"{cloud.title}: {caption}", fontsize=10)
        panel.grid(alpha=0.3)
    _save(figure, path)


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Ascending heights within 0..1, moved as little as needed to be `gap` apart: pushed up, then back down."""
    raised = list(itertools.accumulate(heights, lambda below, height: max(height, below + gap)))
    lowered = itertools.accumulate(np.minimum(raised, 1.0)[::-1], lambda above, height: min(height, above - gap))
    return np.array(list(lowered))[::-1]
