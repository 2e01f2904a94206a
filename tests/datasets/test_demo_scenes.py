"""The demo's scenes have the statistics of photographs, and two domains."""

import numpy as np

from hyperiqa.datasets.demo_scenes import KONIQ, SPAQ, luma, make_scene

SEEDS = range(8)


def spectral_slope(grey: np.ndarray) -> float:
    """The exponent a of the amplitude spectrum 1/f^a, between 4 and 96 periods per 384 pixels."""
    square = grey[:384, :384] * np.outer(np.hanning(384), np.hanning(384))
    amplitude = abs(np.fft.fft2(square - square.mean()))
    frequency = np.rint(384 * np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(384)]))).astype(int)
    rings = np.arange(4, 97)
    means = [amplitude[frequency == ring].mean() for ring in rings]
    return -np.polyfit(np.log(rings), np.log(means), 1)[0]


def test_scenes_vary_like_photographs():
    """Field, JOSA A 1987: the amplitudes of natural images fall like 1/f, of single ones like 1/f^0.7 to 1/f^1.6."""
    scenes = [make_scene(np.random.default_rng(seed), KONIQ).astype(float) for seed in SEEDS]
    greys = [luma(*np.moveaxis(scene, 2, 0)) for scene in scenes]
    slopes = [spectral_slope(grey) for grey in greys]
    assert 0.9 < np.mean(slopes) < 1.5 and min(slopes) > 0.5 and max(slopes) < 2
    means = [grey.mean() for grey in greys]
    assert 70 < min(means) < max(means) < 150 and max(means) - min(means) > 20
    assert all(30 < grey.std() < 72 for grey in greys)


def test_the_spaq_like_scenes_are_darker_and_warmer():
    shift = np.mean(
        [
            make_scene(np.random.default_rng(seed), SPAQ).mean((0, 1))
            - make_scene(np.random.default_rng(seed), KONIQ).mean((0, 1))
            for seed in SEEDS[:4]
        ],
        axis=0,
    )
    assert shift.mean() < -8 and shift[0] - shift[2] > 8
