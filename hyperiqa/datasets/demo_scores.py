"""How far a picture of the demo is from its pristine scene, as one score that stands in for raters.

Three full-reference measures share in it, because each of them misjudges other distortions:
- GMSD: Xue, Zhang, Mou and Bovik, "Gradient Magnitude Similarity Deviation: A Highly Efficient
  Perceptual Image Quality Index", IEEE Transactions on Image Processing 2014;
- MS-SSIM: Wang, Simoncelli and Bovik, "Multi-Scale Structural Similarity for Image Quality
  Assessment", Asilomar Conference on Signals, Systems and Computers 2003;
- VIF: Sheikh and Bovik, "Image Information and Visual Quality", IEEE Transactions on Image
  Processing 2006, in its pixel domain.
They look at brightness alone, so that a colour cast costs little.
"""

import numpy as np
from scipy import ndimage

# The values of each measure that 0, 10, …, 100 % of the pictures of seed 7 do not surpass in
# quality: measures with such different scales are averaged as shares.
SHARES = np.linspace(0, 100, 11)
MINUS_GMSD = (-0.3, -0.194, -0.154, -0.115, -0.077, -0.05, -0.033, -0.019, -0.010, -0.003, 0)
MS_SSIM = (0.27, 0.717, 0.908, 0.950, 0.975, 0.987, 0.993, 0.9966, 0.9984, 0.9994, 1)
VIF = (0.07, 0.315, 0.406, 0.496, 0.586, 0.662, 0.732, 0.806, 0.869, 0.959, 1)

# The weights of MS-SSIM's scales, from the finest to the coarsest.
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# The constants of SSIM for grey levels of 0..255; half their sizes in pixels of its windows.
BRIGHTNESS = (0.01 * 255) ** 2
CONTRAST = (0.03 * 255) ** 2
SSIM_RADIUS = 3
VIF_RADII = (8, 4, 2, 1)


def quality(scene: np.ndarray, picture: np.ndarray) -> float:
    """The score of a picture, 0..100; the scene itself has 100.

    Of each measure it takes the share of the demo's pictures that are not better, in percent, and
    averages the three. It follows from these two pictures alone, so that scores are comparable
    between all kinds of distortion. Both are luma (H, W), float32 of 0..255, of at least 256x256.
    """
    scene = halved(scene)
    picture = halved(picture)
    return float(
        np.mean(
            [
                np.interp(-gmsd(scene, picture), MINUS_GMSD, SHARES),
                np.interp(ms_ssim(scene, picture), MS_SSIM, SHARES),
                np.interp(vif(scene, picture), VIF, SHARES),
            ]
        )
    )


def halved(grey: np.ndarray) -> np.ndarray:
    """A picture at half the size: the means of 2x2 pixels."""
    height, width = (side // 2 * 2 for side in grey.shape)
    grey = grey[:height, :width]
    return (grey[::2, ::2] + grey[1::2, ::2] + grey[::2, 1::2] + grey[1::2, 1::2]) / 4


def gmsd(scene: np.ndarray, picture: np.ndarray) -> float:
    """Gradient magnitude similarity deviation: 0 for equal pictures, at most 0.5.

    Both are luma (H, W), float32 of 0..255, already halved, as the measure asks for.
    """
    first = _gradient(scene)
    second = _gradient(picture)
    # The constant of the paper.
    similarity = (2 * first * second + 170) / (first**2 + second**2 + 170)
    return float(similarity.std(dtype=np.float64))


def _gradient(grey: np.ndarray) -> np.ndarray:
    """The length of the gradient; the picture is black beyond its border."""
    down, across = (ndimage.prewitt(grey, axis, mode="constant") / 3 for axis in (0, 1))
    return np.hypot(down, across)


def ms_ssim(scene: np.ndarray, picture: np.ndarray) -> float:
    """Multi-scale structural similarity, 0..1, with windows of 7x7 pixels; 1 for equal pictures."""
    product = 1.0
    for scale, weight in enumerate(SCALES, start=1):
        mean, other_mean, variance, other_variance, covariance = _moments(
            scene, picture, 1.5, SSIM_RADIUS
        )
        similarity = (2 * covariance + CONTRAST) / (variance + other_variance + CONTRAST)
        if scale == len(SCALES):
            similarity *= (2 * mean * other_mean + BRIGHTNESS) / (
                mean**2 + other_mean**2 + BRIGHTNESS
            )
        product *= max(float(similarity.mean(dtype=np.float64)), 0) ** weight
        scene = halved(scene)
        picture = halved(picture)
    return product


def vif(scene: np.ndarray, picture: np.ndarray) -> float:
    """Visual information fidelity: 1 for equal pictures, more where contrast was added."""
    seen = 0.0
    there = 0.0
    for radius in VIF_RADII:
        sigma = (2 * radius + 1) / 5
        if radius < VIF_RADII[0]:
            scene = _smooth(scene, sigma, radius)[::2, ::2]
            picture = _smooth(picture, sigma, radius)[::2, ::2]
        _, _, variance, other_variance, covariance = _moments(scene, picture, sigma, radius)
        gain = np.maximum(covariance / np.maximum(variance, 1e-10), 0)
        noise = np.maximum(other_variance - gain * covariance, 0)
        # Two is the variance of the eye's own noise.
        seen += np.log10(1 + gain**2 * variance / (noise + 2)).sum(dtype=np.float64)
        there += np.log10(1 + variance / 2).sum(dtype=np.float64)
    return float(seen / there)


def _smooth(grey: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """The picture under a Gaussian window, where the window lies within it."""
    return ndimage.gaussian_filter(grey, sigma, radius=radius)[radius:-radius, radius:-radius]


def _moments(
    scene: np.ndarray, picture: np.ndarray, sigma: float, radius: int
) -> tuple[np.ndarray, ...]:
    """Local means of both pictures, their variances and their covariance."""
    mean = _smooth(scene, sigma, radius)
    other_mean = _smooth(picture, sigma, radius)
    return (
        mean,
        other_mean,
        np.maximum(_smooth(scene * scene, sigma, radius) - mean**2, 0),
        np.maximum(_smooth(picture * picture, sigma, radius) - other_mean**2, 0),
        _smooth(scene * picture, sigma, radius) - mean * other_mean,
    )
