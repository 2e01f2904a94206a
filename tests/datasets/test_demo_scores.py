"""The demo's full-reference measure, against figures of another implementation."""

import numpy as np
import pytest

from hyperiqa.datasets.demo_scores import gmsd, quality

y, x = np.mgrid[:96, :128]
SCENE = 128 + 60 * np.sin(x / 5) + 50 * np.sin(y / 9 + x / 23)
PICTURES = {
    "darker": (0.6 * SCENE, 0.017206),
    "flatter": (128 + 0.3 * (SCENE - 128), 0.111129),
    "stepped": (64 * np.floor(SCENE / 64) + 32, 0.247296),
    "shifted": (np.roll(SCENE, 3, 1), 0.120162),
}


def luma_of(pixels: np.ndarray) -> np.ndarray:
    return pixels.clip(0, 255).astype(np.float32)


@pytest.mark.parametrize(("picture", "golden"), PICTURES.values(), ids=PICTURES)
def test_gmsd_is_that_of_piq(picture, golden):
    """piq 0.8.0, `gmsd(picture, scene)` of these pictures as (1, 1, 96, 128) in float64."""
    assert gmsd(luma_of(SCENE), luma_of(picture)) == pytest.approx(golden, abs=2e-6)


def test_the_score_is_the_formula_of_the_docstring():
    scene = luma_of(SCENE)
    assert quality(scene, scene) == 100
    picture, golden = PICTURES["flatter"]
    assert quality(scene, luma_of(picture)) == pytest.approx(
        100 - 100 * (golden / 0.3) ** 0.5, abs=1e-3
    )
    # A deviation of more than 0.3 has no score below 0.
    halves = np.where(x < 64, SCENE, 255 - SCENE[:, ::-1])
    checks = luma_of(255 * ((x // 8 + y // 8) % 2))
    assert 0 <= quality(checks, luma_of(halves)) < 30
