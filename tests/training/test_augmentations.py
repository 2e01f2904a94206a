import numpy as np
import pytest
import torch
from helpers import picture
from PIL import Image, ImageEnhance
from scipy import ndimage, stats

from hyperiqa.training import augmentations, flags
from hyperiqa.training.augmentations import AUGMENTATIONS

N, SIDE = 40, 60


@pytest.fixture
def patches():
    return np.stack([picture(SIDE, SIDE, seed) for seed in range(N)])


def drawn(name, strength=0.3, number=N):
    return augmentations.draw({name: strength}, np.random.default_rng(3), number)[name]


def applied(name, patches, values):
    found = augmentations.augmented(
        {"patches": torch.from_numpy(patches), name: torch.from_numpy(values)}
    )
    assert found.dtype == torch.uint8
    return found.numpy()


@pytest.mark.parametrize("name", ["hflip", "vflip", "rot90"])
def test_flips_and_turns_are_numpys(name, patches):
    values = drawn(name)
    how = {
        "hflip": lambda x, v: x[:, ::-1] if v else x,
        "vflip": lambda x, v: x[::-1] if v else x,
        "rot90": np.rot90,
    }
    assert all(
        np.array_equal(a, how[name](b, v))
        for a, b, v in zip(applied(name, patches, values), patches, values)
    )
    many = np.bincount(drawn(name, number=8000).astype(int)) / 8000
    assert np.allclose(many, 1 / len(many), atol=0.03) and len(many) == (
        4 if name == "rot90" else 2
    )


def test_color_is_pillows(patches):
    """Brightness, contrast and saturation one after the other, each within a grey level or two of Pillow's."""
    factors = drawn("color")
    assert factors.min() > 0.7 and factors.max() < 1.3 and factors.std(0).min() > 0.1
    for ours, pixels, row in zip(applied("color", patches, factors), patches, factors):
        image = Image.fromarray(pixels)
        for kind, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), row
        ):
            image = kind(image).enhance(float(factor))
        assert np.abs(ours.astype(int) - np.asarray(image)).max() <= 4


def test_blur_is_scipys(patches):
    sigmas = drawn("blur")
    assert 0.3 < (sigmas > 0).mean() < 0.7 and sigmas.max() < 3
    for ours, pixels, sigma in zip(applied("blur", patches, sigmas), patches, sigmas):
        if sigma == 0:
            assert np.array_equal(ours, pixels)
        elif sigma > 0.5:  # below, the two sample the Gaussian differently
            radius = int(np.ceil(3 * sigma))
            theirs = [
                ndimage.gaussian_filter(
                    pixels[:, :, c].astype(float), sigma, mode="mirror", radius=radius
                )
                for c in range(3)
            ]
            assert np.abs(ours - np.stack(theirs, 2)).max() <= 0.51


def test_a_stronger_augmentation_changes_more(patches):
    for name in ("color", "blur"):
        changes = [
            np.abs(applied(name, patches, drawn(name, s)) - patches.astype(float)).mean()
            for s in (0, 0.1, 0.4)
        ]
        assert changes[0] == 0 and changes[1] < changes[2]


def test_what_is_drawn_for_one_does_not_depend_on_the_order_of_names():
    one = augmentations.draw({"blur": 0.2, "hflip": 1.0}, np.random.default_rng(1), N)
    other = augmentations.draw({"hflip": 1.0, "blur": 0.2}, np.random.default_rng(1), N)
    assert list(one) == list(other) == ["hflip", "blur"]
    assert all(np.array_equal(one[name], other[name]) for name in one)
    # hflip comes first, so that it is what it is without the others.
    assert np.array_equal(
        one["hflip"], augmentations.draw({"hflip": 1.0}, np.random.default_rng(1), N)["hflip"]
    )


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_keeps_of_the_mos_what_it_keeps_of_the_pixels(mixup, cutmix):
    """Patches of one grey level each, equal to their MOS: the mean of what comes out is the mixed MOS."""
    number = 400
    drawn = augmentations.draw_mixing(np.random.default_rng(0), number, mixup, cutmix, 32)
    mos = np.random.default_rng(1).uniform(0, 100, number).astype(np.float32)
    images = torch.from_numpy(mos)[:, None, None, None].expand(-1, 3, 32, 32)
    found = augmentations.mixed(
        images, {name: torch.from_numpy(each) for name, each in drawn.items()}
    )
    assert torch.allclose(
        found.mean((1, 2, 3)), torch.from_numpy(augmentations.trained_mos(mos, drawn)), atol=1e-3
    )
    cut = drawn["blend"] == 1
    assert cut.mean() == pytest.approx(cutmix and (0.5 if mixup else 1), abs=0.1)
    for i in range(number):  # each as its paper has it: pixel by pixel, with the patch before
        expected, other = np.full((32, 32), mos[i]), mos[i - 1]
        top, bottom, left, right = drawn["box"][i]
        expected[top:bottom, left:right] = other
        if not cut[i]:
            expected = drawn["share"][i] * mos[i] + (1 - drawn["share"][i]) * other
        assert np.allclose(found[i].numpy(), expected, atol=1e-3)
    if not cut.all():
        assert stats.kstest(drawn["share"][~cut], stats.beta(mixup, mixup).cdf).pvalue > 1e-3


def test_a_cut_box_covers_what_beta_says_where_it_lies_inside():
    drawn = augmentations.draw_mixing(np.random.default_rng(0), 4000, 0, 1.0, 1000)
    top, bottom, left, right = drawn["box"].T
    inside = (top > 0) & (left > 0) & (bottom < 1000) & (right < 1000)
    assert (
        np.allclose((bottom - top)[inside], (right - left)[inside], atol=1) and inside.sum() > 500
    )
    assert augmentations.draw_mixing(np.random.default_rng(0), 5, 0, 0, 32) == {}


def test_choices_are_those_of_the_flag():
    assert (*AUGMENTATIONS, "none") == flags.AUGMENTATIONS
