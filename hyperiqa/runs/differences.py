"""Two runs, or two settings of several seeds each, compared by the best method for their files.

And which difference more runs like a given one would show.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hyperiqa.base.errors import UserError, counted, first_five
from hyperiqa.runs import measures, reading
from hyperiqa.stats import intervals, resampling, standards

# Correlation of two models' errors, where there is no second run to measure it on.
ALIKE = 0.9


@dataclass(frozen=True)
class Comparison:
    """A pair of entries and the difference A − B.

    corrected: the p-value, corrected for the other comparisons. refused: why the entries cannot be
    compared; "" where they can.
    """

    a: measures.Entry
    b: measures.Entry
    method: str = ""
    images: int = 0
    difference: intervals.Difference | None = None
    corrected: float = float("nan")
    refused: str = ""


def compare(measure: measures.Measure, a: measures.Entry, b: measures.Entry) -> Comparison:
    """The difference of two entries, by the best method that their files allow.

    In this order: paired on the same images, from the numbers of images, from the seeds alone.
    """
    values_a = [measure.value(run) for run in a.runs]
    values_b = [measure.value(run) for run in b.runs]
    if any(math.isnan(value) for value in values_a + values_b):
        source = "the predictions files" if measure.formula is None else "the logs"
        return Comparison(
            a, b, refused=f"no {measure.metric} of epoch {measure.epoch} in {source} of both"
        )
    # The log of the public code may not say what it was tested on, which is no reason against it.
    datasets = {run.settings.get("dataset") for run in a.runs + b.runs} - {None}
    if measure.part == "test" and len(datasets) > 1:
        return Comparison(
            a, b, refused=f"tested on different data sets: {', '.join(sorted(datasets))}"
        )
    if len(a.runs) == len(b.runs) == 1:
        return _compare_runs(measure, a, b)
    keys = measure.common_images(a.runs + b.runs)
    if keys is None:
        difference = intervals.welch_difference(values_a, values_b, measure.figure.scale)
        problem = "seeds without common predictions need at least two on both sides"
        reason = problem if math.isnan(difference.p) else ""
        return Comparison(a, b, "seeds alone", 0, difference, refused=reason)
    draws_a, draws_b = (
        np.stack([measure.draws(run, keys) for run in entry.runs], 1) for entry in (a, b)
    )
    difference = intervals.group_difference(
        values_a, values_b, draws_a, draws_b, measure.figure.scale
    )
    return Comparison(a, b, "seeds and images", len(keys), difference)


def _compare_runs(measure: measures.Measure, a: measures.Entry, b: measures.Entry) -> Comparison:
    run_a, run_b = a.runs[0], b.runs[0]
    scores_a, scores_b = measure.scores(run_a), measure.scores(run_b)
    if scores_a is None or scores_b is None:
        return _compare_by_numbers_of_images(measure, a, b)
    keys = tuple(sorted(set(scores_a.keys) & set(scores_b.keys)))
    reason = _reason_against_pairing(scores_a, scores_b, keys)
    if reason:
        return Comparison(a, b, refused=reason)
    # The recorded figures are of all images.
    subset = None if len(keys) == len(scores_a.keys) == len(scores_b.keys) else keys
    difference = intervals.paired_difference(
        measure.value(run_a, subset) - measure.value(run_b, subset),
        measure.draws(run_a, keys),
        measure.draws(run_b, keys),
        measure.figure.scale,
    )
    return Comparison(a, b, "images, paired", len(keys), difference)


def _compare_by_numbers_of_images(
    measure: measures.Measure, a: measures.Entry, b: measures.Entry
) -> Comparison:
    run_a, run_b = a.runs[0], b.runs[0]
    images_a, images_b = run_a.images.get(measure.part), run_b.images.get(measure.part)
    if measure.formula is None or images_a is None or images_b is None:
        return Comparison(a, b, refused="needs predictions of both")
    difference = intervals.unpaired_difference(
        measure.value(run_a), measure.value(run_b), measure.formula, images_a, images_b
    )
    fewer = min(images_a, images_b)
    problem = f"{counted(fewer, 'image')} without predictions: too few for an interval"
    reason = problem if math.isnan(difference.p) else ""
    return Comparison(a, b, "number of images", fewer, difference, refused=reason)


def _reason_against_pairing(
    scores_a: reading.Scores, scores_b: reading.Scores, keys: tuple[reading.Key, ...]
) -> str:
    # The images that few runs share may be no fair sample of either's set.
    fewer = min(len(scores_a.keys), len(scores_b.keys))
    fewest = max(10, (fewer + 1) // 2)
    if len(keys) < fewest:
        return (
            f"only {counted(len(keys), 'image')} in both predictions files; expected at least "
            f"{fewest}"
        )
    # Other opinions of the same images: another release or another scale.
    unequal = int((np.abs(scores_a.on(keys)[1] - scores_b.on(keys)[1]) > 1e-6).sum())
    if unequal:
        return f"{unequal} of {counted(len(keys), 'common image')} have different MOS"
    return ""


def compare_all(
    measure: measures.Measure, pairs: Sequence[tuple[measures.Entry, measures.Entry]]
) -> list[Comparison]:
    """Compare all pairs, their p-values corrected together (Holm)."""
    comparisons = [compare(measure, a, b) for a, b in pairs]
    # What was refused is no test, and makes the others no less sure.
    p_values = [
        pair.difference.p if pair.difference and not pair.refused else math.nan
        for pair in comparisons
    ]
    return [replace(pair, corrected=p) for pair, p in zip(comparisons, intervals.holm(p_values))]


def sentence(
    comparison: Comparison, names: dict[str, str], tests: int, higher_is_better: bool
) -> str:
    """The verdict in words, with the figures behind it.

    names: entry's name -> the name to show. tests: how many comparisons were made together.
    """
    a, b = names[comparison.a.name], names[comparison.b.name]
    if comparison.refused:
        return f"{a} and {b}: cannot be compared: {comparison.refused}"
    basis = counted(comparison.images, "image") if comparison.images else "seeds alone"
    fewest, most = sorted((len(comparison.a.runs), len(comparison.b.runs)))
    if fewest == 1 < most:
        basis += ", a single seed: less sure than it looks"
    if comparison.difference.approximate:
        basis = f"approximate, {basis}"
    # Of a single test nothing is corrected.
    corrected = comparison.corrected if tests > 1 else None
    figures = f"{difference_text(comparison.difference, corrected)} ({basis})"
    if comparison.corrected >= 1 - intervals.LEVEL:
        return f"{a} − {b}: no evidence of a difference: {figures}"
    is_better = (comparison.difference.value > 0) == higher_is_better
    return f"{a} is {'better' if is_better else 'worse'} than {b}: {figures}"


def detection_limit(comparison: Comparison) -> str:
    """Which difference the comparison would have found most times; "" where that is not known."""
    difference = comparison.difference
    # Of the same predictions twice any difference would be found.
    if difference is None or comparison.refused or not difference.visible >= 0.00005:
        return ""
    fewest = min(len(comparison.a.runs), len(comparison.b.runs))
    images = f"{counted(comparison.images, 'image')} and " if comparison.images else ""
    seeds = "one seed" if fewest == 1 else f"{fewest} seeds"
    return (
        f"a difference of {difference.visible:.4f} is found in 80 of 100 repetitions with "
        f"{images}{seeds}"
    )


def difference_text(difference: intervals.Difference, corrected: float | None) -> str:
    """`+0.0205 [+0.0079, +0.0333], p = 0.0014, corrected 0.0028`; corrected: None leaves it out.

    Without the interval where none is known.
    """
    text = f"{difference.value:+.4f}"
    if not math.isnan(difference.low):
        text += f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    text += f", p {p_text(difference.p)}"
    if corrected is not None:
        text += f", corrected {p_text(corrected).removeprefix('= ')}"
    return text.replace("-", "−")


def p_text(p: float) -> str:
    """A p-value in two digits, with its sign: `= 0.034`, `< 0.0001`."""
    if p < 0.0001:
        return "< 0.0001"
    return f"= {p:.2f}" if p >= 0.1 else f"= {p:.2g}"


def chosen_pairs(
    entries: Sequence[measures.Entry], against: str | None, pairs: bool
) -> list[tuple[measures.Entry, measures.Entry]]:
    """The pairs to compare: each entry with the one called `against`, or all with all.

    Two entries alone are compared anyway.
    """
    if against is not None:
        base = find_entry(against, entries, "--against")
        return [(entry, base) for entry in entries if entry is not base]
    if pairs or len(entries) == 2:
        return list(itertools.combinations(entries, 2))
    return []


def find_entry(name: str, entries: Sequence[measures.Entry], flag: str) -> measures.Entry:
    """The entry of this name, or the only one with these settings or with the name as a part.

    name: of an entry or its run, the path of the run's log, or settings such as `alpha=0.3`.
    Raises UserError, which names the flag.
    """
    name = name.removesuffix(".jsonl").removesuffix(".log")
    short_name = Path(name).name
    # The end of a part is no part of a number: alpha=0 is not in alpha=0.3.
    part = re.compile(re.escape(short_name) + (r"(?![^\W_]|\.\d)" if "=" in name else ""))
    # In this order: `a` is found beside `ab`.
    rules: list[Callable[[measures.Entry], object]] = [
        lambda entry: name in _names(entry),
        lambda entry: short_name in _names(entry),
        lambda entry: all(_has_setting(entry, word) for word in name.split()),
        lambda entry: part.search("\n".join(_names(entry))),
    ]
    matches: list[measures.Entry] = []
    while rules and not matches:
        matches = list(filter(rules.pop(0), entries))
    if len(matches) == 1:
        return matches[0]
    problem = "no such run"
    if matches:
        problem = f"{len(matches)} runs match: {first_five(entry.name for entry in matches)}"
    raise UserError(
        f"{flag} {name}: {problem}; expected one of {first_five(entry.name for entry in entries)}"
    )


def _has_setting(entry: measures.Entry, word: str) -> bool:
    """Whether a word such as `alpha=0.3` is a setting of the entry, whose name may be longer."""
    key, _, value = word.partition("=")
    return any(
        entry.setting(name) == value
        for name in entry.runs[0].settings
        if f"_{name}".endswith(f"_{key}")
    )


def _names(entry: measures.Entry) -> list[str]:
    return [entry.name, *(run.name for run in entry.runs)]


def power(
    entry: measures.Entry, entries: Sequence[measures.Entry], measure: measures.Measure
) -> Iterator[str]:
    """The smallest differences that more runs like this entry's would show, on its images.

    entries: the settings that are known, which tell how much two of them and how much seeds of
    one differ by chance.
    """
    keys = measure.common_images(entry.runs)
    if keys is None or math.isnan(measure.value(entry.runs[0])):
        yield f"{entry.name}: no power without predictions of its best epoch"
        return
    others = [e for e in entries if e is not entry and measure.common_images(e.runs) == keys]
    settings = [entry, *others]
    draws = measure.draws(entry.runs[0], keys)
    other_draws = [measure.draws(run, keys) for setting in others for run in setting.runs]
    pair_note = f"another setting is taken to differ like the other runs here ({len(other_draws)})"
    if not other_draws:
        draws, made_up = _made_up_pair(measure, entry.runs[0], keys).T
        other_draws = [made_up]
        pair_note = f"another setting's errors are taken to correlate by {ALIKE} with this run's"
    scale = measure.figure.scale
    unit = scale.unit(draws)
    # As in a comparison, midway between the two.
    level = float(np.nanmean(draws) + np.median([np.nanmean(other) for other in other_draws])) / 2
    pair = np.median([np.nanvar(draws / unit - other / scale.unit(other)) for other in other_draws])
    seeds = _seeds_of(settings, keys, measure)
    seeds_note = "one seed does not show how seeds spread, and what more of them bring"
    if seeds.freedom:
        count = sum(len(setting.runs) for setting in settings if len(setting.runs) > 1)
        seeds_note = (
            f"seeds spread by {math.sqrt(seeds.spread) * unit:.4f} beyond what images do, "
            f"known from {count}"
        )
    yield (
        f"Smallest difference in {measure.metric} found 80 times in 100, {len(keys):,} images, "
        "by seeds per setting:"
    )
    cells = []
    for count in range(1, 11):
        # What settings have in common stays, however many seeds are averaged. One seed a setting
        # is as sure as its images, whatever seeds do.
        by_images = pair - min(pair, 2 * seeds.by_images) * (1 - 1 / count)
        units = intervals.visible_difference(by_images, seeds, (count, count))
        visible = scale.decline(level, units)
        cells.append(f"{count}{' (images alone)' if count == 1 else ''}: {visible:.4f}")
    yield "  ".join(cells)
    yield f"{entry.name}: {pair_note}; {seeds_note}"


def _seeds_of(
    settings: Sequence[measures.Entry], keys: tuple[reading.Key, ...], measure: measures.Measure
) -> intervals.Seeds:
    return intervals.pooled_seeds(
        [
            (
                [measure.value(run) for run in setting.runs],
                np.stack([measure.draws(run, keys) for run in setting.runs], 1),
            )
            for setting in settings
        ],
        measure.figure.scale,
    )


def _made_up_pair(
    measure: measures.Measure, run: reading.Run, keys: Sequence[reading.Key]
) -> np.ndarray:
    """The figures (B, 2) of a run and of a made-up one on the same resamples.

    The made-up run's errors are as large as this one's, and correlate with them by `ALIKE`.
    """
    score, mos = measure.scores(run).on(keys)
    mapped = standards.monotonic_cubic(score, mos)
    error = mapped - mos
    shuffled = np.random.default_rng(0).permutation(error)
    made_up = mos + ALIKE * error + math.sqrt(1 - ALIKE**2) * shuffled
    return resampling.bootstrap(measure.name, np.stack([mapped, made_up]), mos, measure.resamples)
