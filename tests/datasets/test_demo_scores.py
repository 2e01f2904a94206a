"""The demo's full-reference measures, against figures of another implementation."""

import numpy as np
import pytest

from hyperiqa.datasets.demo_scores import gmsd, halved, ms_ssim, quality, vif

y, x = np.mgrid[:384, :512]
SCENE = 128 + 60 * np.sin(x / 5) + 50 * np.sin(y / 9 + x / 23)
# Each with GMSD of the pictures, and MS-SSIM and VIF of the halved pictures, by piq 0.8.0 in float64
# (`gmsd`, `multi_scale_ssim(kernel_size=7)`, `vif_p`).
PICTURES = {
    "darker": (0.6 * SCENE, 0.017124, 0.872270, 0.850310),
    "flatter": (128 + 0.3 * (SCENE - 128), 0.082994, 0.571730, 0.648187),
    "stepped": (64 * np.floor(SCENE / 64) + 32, 0.249086, 0.984710, 0.459843),
    "shifted": (np.roll(SCENE, 3, 1), 0.122028, 0.902253, 0.215079),
}


def luma_of(pixels: np.ndarray) -> np.ndarray:
    return pixels.clip(0, 255).astype(np.float32)


@pytest.mark.parametrize("picture", PICTURES)
def test_the_measures_are_those_of_piq(picture):
    pixels, *golden = PICTURES[picture]
    pictures = halved(luma_of(SCENE)), halved(luma_of(pixels))
    measured = [measure(*pictures) for measure in (gmsd, ms_ssim, vif)]
    # piq keeps divisors of its VIF away from 0 by other constants.
    assert measured == pytest.approx(golden, abs=5e-5)


def test_the_score_is_the_mean_share_of_pictures_that_are_not_better():
    scene = luma_of(SCENE)
    assert quality(scene, scene) == 100
    # GMSD .0830 lies between .077 (40 %) and .115 (30 %), MS-SSIM below .717 (10 %) and above .27,
    # VIF between .586 (40 %) and .662 (50 %).
    shares = [
        40 - 10 * (0.082994 - 0.077) / (0.115 - 0.077),
        10 * (0.571730 - 0.27) / (0.717 - 0.27),
        40 + 10 * (0.648187 - 0.586) / (0.662 - 0.586),
    ]
    assert quality(scene, luma_of(PICTURES["flatter"][0])) == pytest.approx(
        np.mean(shares), abs=0.01
    )
    checks = luma_of(255 * ((x // 8 + y // 8) % 2))
    assert 0 <= quality(checks, 255 - checks) < 30
