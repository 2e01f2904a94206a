"""How far a picture of the demo is from its pristine scene, as one score that stands in for raters.

It is GMSD, a full-reference measure: Xue, Zhang, Mou and Bovik, "Gradient Magnitude Similarity
Deviation: A Highly Efficient Perceptual Image Quality Index", IEEE Transactions on Image Processing
2014. It looks at brightness alone, so that a colour cast costs little.
"""

import numpy as np
from scipy import ndimage

# The constant of the paper, for grey levels of 0..255.
CONSTANT = 170.0


def quality(scene: np.ndarray, picture: np.ndarray) -> float:
    """The score of a picture: 100 · (1 − √(GMSD / 0.3)), at least 0; the scene itself has 100.

    It follows from these two pictures alone, so that scores are comparable between all kinds of
    distortion. The square root spreads the scores evenly. Both are luma (H, W), float32 of 0..255.
    """
    # The heaviest noise and the strongest compression reach 0.3.
    return 100 * (1 - min(gmsd(scene, picture) / 0.3, 1) ** 0.5)


def gmsd(scene: np.ndarray, picture: np.ndarray) -> float:
    """Gradient magnitude similarity deviation: 0 for equal pictures, at most 0.5.

    Both are luma (H, W), float32 of 0..255, of even height and width.
    """
    first = _gradient(scene)
    second = _gradient(picture)
    similarity = (2 * first * second + CONSTANT) / (first**2 + second**2 + CONSTANT)
    return float(similarity.std(dtype=np.float64))


def _gradient(grey: np.ndarray) -> np.ndarray:
    # The length of the gradient at half the size; the picture is black beyond its border.
    half = (grey[::2, ::2] + grey[1::2, ::2] + grey[::2, 1::2] + grey[1::2, 1::2]) / 4
    down, across = (ndimage.prewitt(half, axis, mode="constant") / 3 for axis in (0, 1))
    return np.hypot(down, across)
