"""Two runs, or two settings with several seeds each, compared by the best method that their files allow."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError, first_five
from hyperiqa.runs.entries import Entry
from hyperiqa.runs.measures import Measure
from hyperiqa.stats import intervals


@dataclass(frozen=True)
class Comparison:
    """A pair of entries; `refused` says why they cannot be compared, else `difference` is A − B."""

    a: Entry
    b: Entry
    method: str = ""
    images: int = 0
    difference: intervals.Difference | None = None
    corrected: float = float("nan")
    refused: str = ""


def compare(measure: Measure, a: Entry, b: Entry) -> Comparison:
    values: Any = [[measure.value(run) for run in entry.runs] for entry in (a, b)]
    if any(math.isnan(value) for value in sum(values, [])):
        source = "the predictions files" if measure.formula is None else "the logs"
        return Comparison(
            a, b, refused=f"no {measure.metric} of epoch {measure.epoch} in {source} of both"
        )
    sets = {run.settings.get("dataset") for run in a.runs + b.runs} - {None}
    if measure.part == "test" and len(sets) > 1:
        return Comparison(a, b, refused=f"tested on different data sets: {', '.join(sorted(sets))}")
    if len(a.runs) == len(b.runs) == 1:
        return _compare_runs(measure, a, b)
    keys = measure.common_images(a.runs + b.runs)
    if keys is None:
        found = intervals.welch_difference(*values)
        refused = (
            "seeds without common predictions need at least two on both sides"
            if math.isnan(found.p)
            else ""
        )
        return Comparison(a, b, "seeds alone", 0, found, refused=refused)
    draws = [np.stack([measure.draws(run, keys) for run in entry.runs], 1) for entry in (a, b)]
    return Comparison(
        a, b, "seeds and images", len(keys), intervals.group_difference(*values, *draws)
    )


def _compare_runs(measure: Measure, a: Entry, b: Entry) -> Comparison:
    run_a, run_b = a.runs[0], b.runs[0]
    scores_a, scores_b = measure.scores(run_a), measure.scores(run_b)
    if scores_a is None or scores_b is None:
        counts = [run.images.get(measure.part) for run in (run_a, run_b)]
        if measure.formula is None or None in counts:
            return Comparison(a, b, refused="needs predictions of both")
        found = intervals.unpaired_difference(
            measure.value(run_a), measure.value(run_b), measure.formula, *counts
        )
        return Comparison(a, b, "number of images", min(counts), found)
    keys = (
        scores_a.keys
        if scores_a.keys == scores_b.keys
        else tuple(sorted({*scores_a.keys} & {*scores_b.keys}))
    )
    fewer = min(len(scores_a.keys), len(scores_b.keys))
    if len(keys) < max(10, fewer / 2):
        return Comparison(
            a, b, refused=f"only {len(keys)} of {fewer} images are in both predictions files"
        )
    if unequal := int((np.abs(scores_a.on(keys)[1] - scores_b.on(keys)[1]) > 1e-6).sum()):
        return Comparison(
            a, b, refused=f"{unequal} of {len(keys)} common images have different MOS"
        )
    subset = None if len(keys) == len(scores_a.keys) == len(scores_b.keys) else keys
    value = measure.value(run_a, subset) - measure.value(run_b, subset)
    found = intervals.paired_difference(
        value, measure.draws(run_a, keys), measure.draws(run_b, keys)
    )
    return Comparison(a, b, "images, paired", len(keys), found)


def compare_all(measure: Measure, pairs: Sequence[tuple[Entry, Entry]]) -> list[Comparison]:
    """All pairs, their p-values corrected together (Holm)."""
    found = [compare(measure, a, b) for a, b in pairs]
    p_values = [c.difference.p if c.difference and not c.refused else float("nan") for c in found]
    return [replace(c, corrected=p) for c, p in zip(found, intervals.holm(p_values))]


def sentence(
    comparison: Comparison, names: dict[str, str], tests: int, higher_is_better: bool
) -> str:
    a, b, found = names[comparison.a.name], names[comparison.b.name], comparison.difference
    if comparison.refused:
        return f"{a} and {b}: cannot be compared: {comparison.refused}"
    basis = f"{comparison.images} images" if comparison.images else "seeds alone"
    fewest, most = sorted((len(comparison.a.runs), len(comparison.b.runs)))
    basis += ", a single seed: less sure than it looks" if fewest == 1 < most else ""
    figures = difference_text(found, comparison.corrected if tests > 1 else None)
    figures = f"{figures} ({'approximate, ' if found.approximate else ''}{basis})"
    if comparison.corrected >= 1 - intervals.LEVEL:
        return f"{a} − {b}: no evidence of a difference: {figures}"
    return f"{a} is {'better' if (found.value > 0) == higher_is_better else 'worse'} than {b}: {figures}"


def cannot_be_seen(comparison: Comparison) -> str:
    """Which differences the comparison could not have shown; "" where that is not known."""
    if not comparison.difference or comparison.refused or math.isnan(comparison.difference.visible):
        return ""
    fewest = min(len(comparison.a.runs), len(comparison.b.runs))
    images = f"{comparison.images:,} images and " if comparison.images else ""
    seeds = "one seed" if fewest == 1 else f"{fewest} seeds"
    return (
        f"differences under {comparison.difference.visible:.4f} cannot be seen with {images}{seeds}"
    )


def difference_text(found: intervals.Difference, corrected: float | None) -> str:
    more = "" if corrected is None else f", corrected {p_text(corrected).removeprefix('= ')}"
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}], p {p_text(found.p)}{more}".replace(
        "-", "−"
    )


def p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2f}" if p >= 0.1 else f"= {p:.2g}"


def chosen_pairs(
    entries: Sequence[Entry], against: str | None, pairs: bool
) -> list[tuple[Entry, Entry]]:
    """Each with the one of that name, or all with all; two alone anyway."""
    if against is not None:
        base = named(against, entries)
        return [(entry, base) for entry in entries if entry is not base]
    return list(itertools.combinations(entries, 2)) if pairs or len(entries) == 2 else []


def named(wanted: str, entries: Sequence[Entry], flag: str = "--against") -> Entry:
    """The entry of this name, or the only one that has it in its name or its runs' names."""
    wanted = Path(wanted).name.removesuffix(".jsonl").removesuffix(".log")
    names = {entry: (entry.name, *(run.name for run in entry.runs)) for entry in entries}
    found = [e for e in entries if wanted in names[e]] or [
        e for e in entries if any(wanted in n for n in names[e])
    ]
    if len(found) == 1:
        return found[0]
    what = (
        f"{len(found)} runs match: {first_five(e.name for e in found)}" if found else "no such run"
    )
    raise UserError(
        f"{flag} {wanted}: {what}; expected one of {first_five(entry.name for entry in entries)}"
    )
