"""Verdicts on what a certificate says: whether it is reproduced, differs, or cannot be checked."""

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hyperiqa.base.plain_values import to_json_value

REPRODUCED = "reproduced"
DIFFERS = "differs"
UNCHECKED = "cannot be checked"

# Part -> figure of merit -> [value, low, high].
Figures = Mapping[str, Mapping[str, Sequence[float | None]]]


@dataclass(frozen=True)
class Check:
    """An item of a certificate and the verdict on it.

    note: how exactly it was reproduced, how it differs, or why it cannot be checked.
    """

    item: str
    verdict: str
    note: str = ""


def compare(item: str, certified: object, current: object, otherwise: str = DIFFERS) -> Check:
    """Compare a value of the certificate with what it is now.

    otherwise: the verdict where they are not the same.
    """
    if certified == current:
        return Check(item, REPRODUCED)
    # A value may be long.
    return Check(item, otherwise, f"{reprlib.repr(certified)} -> {reprlib.repr(current)}")


def compare_fields(
    item: str,
    certified: Mapping[str, object],
    current: Mapping[str, object],
    otherwise: str = DIFFERS,
) -> list[Check]:
    """Compare plain values field by field.

    Returns a check for each field that differs, or a single check if all agree. A missing field
    counts as None, and so does nan, which JSON cannot hold.
    """
    checks: list[Check] = []
    for name in sorted({*certified, *current}):
        before = to_json_value(certified.get(name))
        now = to_json_value(current.get(name))
        if isinstance(before, dict) and isinstance(now, dict):
            checks += compare_fields(f"{item}.{name}", before, now, otherwise)
        else:
            checks.append(compare(f"{item}.{name}", before, now, otherwise))
    return [check for check in checks if check.verdict != REPRODUCED] or [Check(item, REPRODUCED)]


def compare_figures(item: str, certified: Figures, current: Figures) -> Iterator[Check]:
    """Compare figures of the certificate with what they are now, those of each part in turn."""
    for part, figures in current.items():
        for name, interval in figures.items():
            before = certified.get(part, {}).get(name, [math.nan])
            yield compare_figure(f"{item}{part} {name.upper()}", before, interval)


def compare_figure(
    item: str, certified: Sequence[float | None], current: Sequence[float | None]
) -> Check:
    """Compare a figure of the certificate with what it is now.

    certified, current: [value, low, high], where low and high bound its interval. An undefined
    number is nan or None.
    """
    # The bootstrap draws the same images again, so that the bounds are compared like the value.
    # numpy turns None into nan.
    before = np.array(certified, dtype=float)
    now = np.array(current, dtype=float)
    item = f"{item} {_figure_text(before)}"
    # Figures are shown with four digits: less than half of the last one is no difference.
    if before.shape != now.shape or not np.allclose(before, now, 0, 5e-5, equal_nan=True):
        return Check(item, DIFFERS, f"now {_figure_text(now)}")
    gap = np.nan_to_num(np.abs(before - now)).max()
    return Check(item, REPRODUCED, "exactly" if gap == 0 else f"to {gap:.1g}")


def _figure_text(figure: np.ndarray) -> str:
    # As `0.9012 [0.8856 0.9143]`.
    value, *bounds = [f"{number:.4f}" for number in figure]
    return f"{value} [{' '.join(bounds)}]"
