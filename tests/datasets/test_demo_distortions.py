"""The distortions of the demo: graded, and none changes the image that it is given."""

import numpy as np
import pytest

from hyperiqa.datasets.demo_distortions import DISTORTIONS, KINDS, PAIRS, distort
from hyperiqa.datasets.demo_scenes import KONIQ, luma, make_scene
from hyperiqa.datasets.demo_scores import quality


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return make_scene(np.random.default_rng(5), KONIQ)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_fall_with_every_level(scene, kind):
    before = scene.copy()
    grey = luma(*np.moveaxis(scene, 2, 0))
    scores = []
    for level in range(6):
        # The same numbers at each level: the strength lies at the same place within it.
        image = distort(scene, kind, level, np.random.default_rng(1))
        assert image.shape == scene.shape and image.dtype == np.uint8
        scores.append(quality(grey, luma(*np.moveaxis(image, 2, 0))))
    assert np.array_equal(scene, before)
    assert scores[0] == 100 and scores[1] > 60
    assert all(better > worse for better, worse in zip(scores, scores[1:]))
    # The measure looks at brightness alone.
    assert scores[5] < (90 if kind == "colour_cast" else 50)


def test_the_strength_varies_within_a_level(scene):
    sizes = {
        distort(scene, "contrast", 3, np.random.default_rng(i)).std().round(2) for i in range(5)
    }
    assert len(sizes) == 5


def test_pairs_are_made_of_the_single_ones():
    assert {part for pair in PAIRS for part in pair.split("-")} < set(DISTORTIONS)
