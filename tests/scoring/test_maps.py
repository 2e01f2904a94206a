import re

import numpy as np
import pytest
import torch
from helpers import write_images
from PIL import Image

from hyperiqa import __main__
from hyperiqa.model import checkpoints
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.swin import SwinBackbone
from hyperiqa.scoring import maps, quality_model

DESCRIPTION = {
    "backbone": "swin_nano",
    "fusion": "attention",
    "patch_size": 64,
    "resize": "none",
    "exif_rotate": False,
    "seed": 7,
    "dataset": "livec",
    "score_range": [0.0, 100.0],
    "higher_is_better": True,
    "test_crop": "center",
    "test_patch_num": 25,
}


@pytest.fixture(scope="module", params=["attention", "none"])
def model(request, tmp_path_factory):
    torch.manual_seed(0)
    net = HyperNet(SwinBackbone("swin_nano", patch_size=64), request.param)
    path = tmp_path_factory.mktemp("model") / "m.pkl"
    checkpoints.save(
        path, checkpoints.portable_state(net, {**DESCRIPTION, "fusion": request.param})
    )
    return quality_model.load(path)


def test_stages_weights_and_score_are_the_models_own(model, tmp_path):
    """Against hooks on the modules that compute them."""
    write_images(tmp_path, ["a.png"], (110, 90))
    seen = {}
    hooks = [
        model.net.fc2w_conv.register_forward_hook(lambda m, i, out: seen.setdefault("fc2w", out))
    ]
    if hasattr(model.net.fuse, "attention_net"):
        hooks.append(
            model.net.fuse.attention_net.register_forward_hook(
                lambda m, i, out: seen.setdefault("stages", out)
            )
        )
    looked = maps.map_image(model, tmp_path / "a.png", with_map=False)
    for hook in hooks:
        hook.remove()
    assert looked.score == model.score(tmp_path / "a.png") and looked.map is None
    assert looked.weights[1] == pytest.approx(seen["fc2w"][0].flatten().numpy(), rel=1e-6)
    assert looked.spread[1] == pytest.approx(float(seen["fc2w"].std(correction=0)), rel=1e-5)
    assert [len(each) for each in looked.weights] == [224 * 112, 112 * 56, 56 * 28, 28 * 14, 14]
    if "stages" in seen:
        wanted = np.exp(seen["stages"][0].numpy()) / np.exp(seen["stages"][0].numpy()).sum()
        assert looked.stages == pytest.approx(
            wanted, rel=1e-5
        ) and looked.stages.sum() == pytest.approx(1)
    else:
        assert looked.stages is None


def test_a_map_is_the_mean_of_the_patches_around_each_pixel(model, monkeypatch):
    """A plain loop over patches and pixels; scores are their patches' means, so that the map follows the image."""
    monkeypatch.setattr(
        model, "score_patches", lambda patches: np.array([each.mean() for each in patches])
    )
    pixels = np.full((80, 150, 3), 40, np.uint8)
    pixels[:, 75:] = 200
    found, window = maps.quality_map(model, pixels), np.hanning(66)[1:-1]
    total, sums = np.zeros((80, 150)), np.zeros((80, 150))
    for top in (0, 8, 16):
        for left in (0, 9, 17, 26, 34, 43, 52, 60, 69, 77, 86):
            for y in range(64):
                for x in range(64):
                    total[top + y, left + x] += (
                        window[y] * window[x] * pixels[top : top + 64, left : left + 64].mean()
                    )
                    sums[top + y, left + x] += window[y] * window[x]
    assert found.shape == (80, 150) and found == pytest.approx(total / sums)
    assert (
        np.all(np.diff(found[40]) >= -1e-9)
        and found[40, 0] == pytest.approx(40)
        and found[40, -1] == pytest.approx(200)
    )


def test_an_image_of_one_patch_has_its_score_everywhere(model):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert maps.quality_map(model, pixels) == pytest.approx(
        np.full((64, 64), model.score(pixels)), abs=1e-4
    )


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_bright_is_better(higher_is_better):
    grid = np.tile(np.linspace(10, 90, 200), (50, 1))
    looked = maps.ImageMaps(np.full((50, 200, 3), 128, np.uint8), 50.0, None, [], grid)
    overlay, dark, bright = maps.coloured(looked, higher_is_better)
    luma = np.asarray(overlay.convert("L"))[25].astype(int)
    assert (luma[-1] > luma[0] + 60) == higher_is_better and (
        luma[0] > luma[-1] + 60
    ) != higher_is_better
    assert (dark, bright) == ((10, 90) if higher_is_better else (90, 10))


@pytest.mark.parametrize(("score", "ends"), [(5.0, (5, 90)), (95.5, (10, 95.5)), (50.0, (10, 90))])
def test_the_scale_of_a_map_takes_in_the_score_of_its_image(score, ends):
    grid = np.tile(np.linspace(10, 90, 200), (50, 1))
    looked = maps.ImageMaps(np.full((50, 200, 3), 128, np.uint8), score, None, [], grid)
    assert maps.coloured(looked, True)[1:] == ends and maps.coloured(looked, False)[:0:-1] == ends


def test_levels_hold_as_many_images_each():
    mos = np.array([5.0, 1, 4, 2, 3, 9, 8, 7, 6, 0])
    assert maps.levels(mos, 5) == {
        "0 to 1": [9, 1],
        "2 to 3": [3, 4],
        "4 to 5": [2, 0],
        "6 to 7": [8, 7],
        "8 to 9": [6, 5],
    }
    assert list(maps.levels(mos[:2])) == ["1 to 1", "5 to 5"]


def test_predict_writes_a_picture_for_each_image(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = HyperNet(SwinBackbone("swin_nano", patch_size=64), "attention")
    checkpoints.save(tmp_path / "m.pkl", checkpoints.portable_state(net, DESCRIPTION))
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos" / "sub", ["a.png"], (110, 90))
    write_images(tmp_path / "photos", ["a.png"], (64, 64))
    assert __main__.main(["m.pkl", "photos", "--map", "maps", "--output", "s.csv"]) == 0
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert [re.sub("[0-9a-f]{16}", "#", name) for name in names] == [
        "photos_a.png-#.png",
        "sub_a.png-#.png",
    ]
    with Image.open(tmp_path / "maps" / names[1]) as image:
        assert image.width == 2 * 110 + 8 and image.height > 90
        assert np.array_equal(
            np.asarray(image)[:90, :110], np.asarray(Image.open("photos/sub/a.png"))
        )


def test_many_crops_and_patches_go_through_the_model_in_batches(model, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    monkeypatch.setitem(model.description, "test_crop", "grid")
    whole = maps.map_image(model, pixels)
    sizes = []
    hook = model.net.backbone.register_forward_pre_hook(lambda module, i: None)
    hook.remove()
    original = model.net.backbone.stage_maps
    monkeypatch.setattr(maps, "SCORE_BATCH", 7)
    monkeypatch.setattr(
        model.net.backbone, "stage_maps", lambda x: sizes.append(len(x)) or original(x)
    )
    parts = maps.map_image(model, pixels)
    # 25 crops: for the weights in batches of at most 7, for the score in one; then the map's.
    assert sizes[:4] == [7, 7, 7, 4] and max(sizes[5:]) == 7
    assert parts.map == pytest.approx(whole.map, rel=1e-4)
    assert parts.stages is None or parts.stages == pytest.approx(whole.stages, rel=1e-4)
    for layer, expected in zip(parts.weights, whole.weights, strict=True):
        assert layer == pytest.approx(expected, abs=1e-5)


def test_an_image_that_is_too_large_for_a_map_is_refused_before_the_first_pass(model, monkeypatch):
    monkeypatch.setattr(maps, "MAX_PIXELS", 100 * 90 - 1)
    passes = []
    monkeypatch.setattr(model.net, "forward", passes.append)
    pixels = np.zeros((90, 100, 3), np.uint8)
    with pytest.raises(ValueError, match="^100x90 pixels; expected at most 8,999 in a map$"):
        maps.map_image(model, pixels)
    assert not passes


def test_colours_do_not_depend_on_the_rows_that_are_drawn_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 40, 3), np.uint8)
    looked = maps.ImageMaps(pixels, 50.0, None, [], rng.uniform(0, 100, (50, 40)))
    whole = np.asarray(maps.coloured(looked, True)[0])
    monkeypatch.setattr(maps, "ROWS", 7)
    assert np.array_equal(np.asarray(maps.coloured(looked, True)[0]), whole)
    share = (looked.map - looked.map.min()) / np.ptp(looked.map)
    plain = 0.65 * maps.colours(share) + 0.35 * pixels.mean(2, keepdims=True)
    assert np.array_equal(whole, plain.astype(np.uint8))
