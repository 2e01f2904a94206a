"""Figures of merit of image quality assessment: agreement of predicted scores with opinion scores.

Every function takes two sequences of N numbers (prediction, MOS) and returns a float. Where the figure
is undefined (fewer than two images, constant or non-finite predictions) it returns nan and never warns.
"""

from __future__ import annotations

import numpy as np
from scipy import stats


def _defined(prediction, mos) -> tuple[np.ndarray, np.ndarray] | None:
    prediction, mos = np.asarray(prediction, np.float64), np.asarray(mos, np.float64)
    if prediction.shape != mos.shape or prediction.ndim != 1:
        raise ValueError(f"expected two vectors of one length, found {prediction.shape} and {mos.shape}")
    if len(mos) < 2 or not (np.isfinite(prediction).all() and np.isfinite(mos).all()):
        return None
    return None if np.ptp(prediction) == 0 or np.ptp(mos) == 0 else (prediction, mos)


def plcc(prediction, mos) -> float:
    """Pearson's linear correlation, -1..1, without a fitted nonlinearity."""
    pair = _defined(prediction, mos)
    if pair is None:
        return float("nan")
    x, y = (v - v.mean() for v in pair)
    # Scaled first: the squares of tiny or huge scores must not leave the range of a double.
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def srcc(prediction, mos) -> float:
    """Spearman's rank correlation, -1..1; ties get their mean rank (as scipy.stats.spearmanr)."""
    pair = _defined(prediction, mos)
    if pair is None:
        return float("nan")
    return plcc(*(stats.rankdata(v) for v in pair))
