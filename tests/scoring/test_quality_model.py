import io
import threading
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from helpers import fill_by_recipe, jpeg_bytes, picture, recipe_images, save_random_model
from PIL import Image

from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints
from hyperiqa.model.backbone import IMAGENET_MEAN, IMAGENET_STD
from hyperiqa.model.factory import build
from hyperiqa.scoring import quality_model
from hyperiqa.scoring.quality_model import load

TINY = "swin_tiny_patch4_window7_224"
DESCRIPTION = {
    "backbone": "resnet18",
    "fusion": "none",
    "patch_size": 64,
    "resize": "none",
    "exif_rotate": False,
    "dataset": "livec",
    "score_range": [0.0, 100.0],
    "higher_is_better": True,
    "test_crop": "center",
    "test_patch_num": 25,
}
# Of the public implementations, as in test_models.py.
GOLDEN = {
    "resnet50": [-1.61621, -1.57695, -1.48466, -1.48381],
    TINY: [-0.99452, -1.28759, -1.38935, -0.60732],
}


def save(path, **changes):
    return save_random_model(path, {**DESCRIPTION, **changes}, spread=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run") / "best_model_srcc_0.9000_plcc_0.9000.pkl")


@pytest.fixture(scope="module")
def model(saved):
    return load(saved, device="cpu")


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for i, path in enumerate(paths):
        Image.fromarray(picture(seed=i)).save(path)
    return paths


def plain_score(net, image, patch=64, resize=None, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """The field's procedure, step by step: Pillow and torchvision's transforms, one image at a time."""
    steps = [T.Resize(resize)] if resize else []
    steps += [T.CenterCrop(patch), T.ToTensor(), T.Normalize(mean, std)]
    with torch.no_grad():
        return net(T.Compose(steps)(image.convert("RGB"))[None])["scores"].item()


# ------------------------------------------------------------------------------------------------- load
def test_a_checkpoint_brings_its_settings(tmp_path):
    settings = dict(
        backbone="swin_nano",
        fusion="concat",
        resize="80x96",
        test_crop="grid",
        test_patch_num=4,
        higher_is_better=False,
    )
    path = save(tmp_path / "run" / "best_model_srcc_0.5_plcc_0.5.pkl", **settings)
    model = load(path.parent, "cpu")
    assert settings.items() <= model.description.items()
    patches = model.patches(picture())
    assert patches.shape == (4, 64, 64, 3) and patches.dtype == np.uint8
    torch.manual_seed(0)
    assert type(model.net.backbone) is type(build(model.description).backbone)

    overruled = load(path, "cpu", resize="none", crops=1, exif_rotate=True)
    assert overruled.patches(picture()).shape == (1, 64, 64, 3)
    assert overruled.description["exif_rotate"] is True


@pytest.mark.parametrize("name", GOLDEN)
def test_a_file_of_the_public_code_gives_its_scores(tmp_path, name):
    state = fill_by_recipe(
        build({"backbone": name, "fusion": "none", "patch_size": 224})
    ).state_dict()
    state = OrderedDict((f"module.{key}", tensor) for key, tensor in state.items())
    if name == TINY:
        index = torch.zeros(49, 49, dtype=torch.long)
        state["module.swin.backbone.layers_0.blocks.0.attn.relative_position_index"] = index
    torch.save({"state_dict": state}, tmp_path / "public.pkl", _use_new_zipfile_serialization=False)
    model = load(tmp_path / "public.pkl", "cpu")
    assert model.description["described"] is False and model.description["backbone"] == name
    with torch.no_grad():
        assert model.net(recipe_images(4, 0))["scores"].tolist() == pytest.approx(
            GOLDEN[name], abs=1e-3
        )
    assert model.patches(picture(1020, 760)).shape == (1, 224, 224, 3)


def test_mistakes_are_named_before_the_work(saved, tmp_path):
    for flags, message in (
        ({"precision": "fp16"}, "precision fp16: expected fp32 or bf16"),
        ({"crops": 0}, "crops 0: expected at least 1"),
        ({"resize": "big"}, "--resize big: expected S"),
    ):
        with pytest.raises(UserError, match=message):
            load(tmp_path / "is never opened", "cpu", **flags)
    with pytest.raises(UserError, match="nothing.pkl: no such file"):
        load(tmp_path / "nothing.pkl")
    state = torch.load(saved, weights_only=True)
    for change in ({"backbone": "resnet7"}, {"fusion": "sum"}):
        checkpoints.save(tmp_path / "odd.pkl", _described(state, {**DESCRIPTION, **change}))
        unknown = "--backbone resnet7: timm .* has no such model|the checkpoint's backbone resnet18 with fusion sum is unknown"
        with pytest.raises(UserError, match=unknown):
            load(tmp_path / "odd.pkl")
    checkpoints.save(tmp_path / "other.pkl", _described(state, {**DESCRIPTION, "fusion": "concat"}))
    with pytest.raises(
        UserError, match=r"other.pkl: its parameters do not fit .*2 missing \(fusion.conv.weight, "
    ):
        load(tmp_path / "other.pkl")


def _described(state, description):
    state = OrderedDict(state)
    state._metadata = OrderedDict(version=1, hyperiqa={"format": 1, **description})
    return state


def test_nothing_global_changes(saved, photos):
    def settings():
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        return (
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            cudnn.enabled,
            cudnn.benchmark,
            cudnn.deterministic,
            cudnn.allow_tf32,
            matmul.allow_tf32,
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.get_float32_matmul_precision(),
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
        )

    before = settings()
    for precision in ("fp32", "bf16"):
        model = load(saved, "cpu", precision)
        model.score(photos[0])
        scores = model.score_all(photos, batch_size=2, workers=2)
        next(scores)
        assert settings() == before  # also while the stream is open
        list(scores)
    assert settings() == before and not model.net.training


# ------------------------------------------------------------------------------------------------ images
def test_every_form_of_an_image_has_the_same_score(model, tmp_path):
    pixels = picture()
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    expected = model.score(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    read_only = pixels.copy()
    read_only.flags.writeable = False
    forms = [
        str(path),
        Image.open(path),
        Image.fromarray(pixels),
        pixels,
        pixels[..., ::-1].copy()[..., ::-1],
        read_only,
        np.asfortranarray(pixels),
        tensor,
        tensor.contiguous(),
        tensor.float() / 255,
        tensor.double() / 255,
        T.ToTensor()(Image.fromarray(pixels)).requires_grad_(),
    ]
    assert [model.score(form) for form in forms] == [expected] * len(forms)
    assert np.array_equal(pixels, picture())


def test_grey_transparent_and_palette_images(model):
    pixels, image = picture(), Image.fromarray(picture())
    grey = np.array(image.convert("L"))
    expected = model.score(np.repeat(grey[:, :, None], 3, 2))
    forms = (
        Image.fromarray(grey),
        grey,
        torch.from_numpy(grey)[None],
        torch.from_numpy(grey)[None].float() / 255,
    )
    assert [model.score(form) for form in forms] == [expected] * 4
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    assert model.score(Image.fromarray(opaque)) == model.score(pixels)
    invisible = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    assert model.score(Image.fromarray(invisible)) == model.score(np.full_like(pixels, 255))
    palette = image.quantize(16)
    assert model.score(palette) == model.score(palette.convert("RGB"))


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (40, 90), (64, 64), (65, 63), (700, 300)])
def test_images_of_any_size_are_scored_alike_as_file_and_array(model, tmp_path, size):
    image = Image.fromarray(picture()).resize(size)
    image.save(tmp_path / "a.png")
    assert model.patches(image).shape == (1, 64, 64, 3)
    score = model.score(tmp_path / "a.png")
    assert np.isfinite(score) and score == model.score(image) == model.score(np.asarray(image))


def test_the_plain_procedure_gives_the_same_score(saved, model, tmp_path):
    for i, size in enumerate([(120, 90), (121, 95), (64, 64)]):
        image = Image.fromarray(picture(seed=i)).resize(size)
        assert model.score(image) == pytest.approx(plain_score(model.net, image), abs=1e-4)
    image.save(tmp_path / "a.jpg")
    assert model.score(tmp_path / "a.jpg") == pytest.approx(
        plain_score(model.net, Image.open(tmp_path / "a.jpg")), abs=1e-4
    )

    resizing = load(saved, "cpu", resize="72")  # single grey levels may differ from Pillow's
    images = [Image.fromarray(picture(250, 190, seed=i)) for i in range(4)]
    ours, plain = (
        [resizing.score(i) for i in images],
        [plain_score(model.net, i, resize=72) for i in images],
    )
    assert ours == pytest.approx(plain, abs=0.02 * np.ptp(plain))


def test_pixels_are_normalised_as_the_description_says(model, tmp_path):
    own = {"mean": [0.3, 0.5, 0.6], "std": [0.4, 0.2, 0.1]}
    odd, image = load(save(tmp_path / "odd.pkl", **own), "cpu"), Image.fromarray(picture())
    assert odd.score(image) == pytest.approx(plain_score(odd.net, image, **own), abs=1e-4)
    assert abs(odd.score(image) - model.score(image)) > 1e-2  # of the same weights


def test_a_grid_is_the_mean_of_its_crops(saved, model):
    pixels = picture(100, 100)
    by_hand = [model.score(pixels[y : y + 64, x : x + 64]) for y in (0, 36) for x in (0, 36)]
    assert np.ptp(by_hand) > 1e-3
    assert load(saved, "cpu", crops=4).score(pixels) == pytest.approx(np.mean(by_hand), abs=1e-4)


def test_a_run_tested_on_random_crops_scores_on_as_many_on_a_grid(saved, tmp_path):
    model = load(save(tmp_path / "model.pkl", test_crop="random", test_patch_num=4), "cpu")
    pixels = picture(200, 150)
    assert model.score(pixels) == model.score(pixels) == load(saved, "cpu", crops=4).score(pixels)


def test_bf16_is_near_fp32(saved, model):
    fast = load(saved, "cpu", "bf16")
    images = [picture(seed=i) for i in range(3)]
    exact, near = [model.score(i) for i in images], [fast.score(i) for i in images]
    assert near == pytest.approx(exact, abs=0.03) and near != exact


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((90, 120, 3), np.float32),
            r"expected uint8 \(H, W, 3\) or \(H, W\), found float32 \(90, 120, 3\)",
        ),
        (np.zeros((3, 90, 120), np.uint8), r"found uint8 \(3, 90, 120\)"),
        (np.zeros((90, 120, 4), np.uint8), r"found uint8 \(90, 120, 4\)"),
        (np.zeros((90, 0, 3), np.uint8), r"found uint8 \(90, 0, 3\)"),
        (np.zeros(9, np.uint8), r"found uint8 \(9,\)"),
        (np.zeros((1, 200_000, 3), np.uint8), "absurdly large once resized to 12800000x64 pixels"),
        (
            torch.zeros(90, 120, 3),
            r"expected a tensor \(3, H, W\) or \(1, H, W\), found \(90, 120, 3\)",
        ),
        (torch.zeros(2, 3, 90, 120), r"found \(2, 3, 90, 120\)"),
        (torch.zeros(3, 0, 120), r"found \(3, 0, 120\)"),
        (torch.full((3, 90, 120), 255.0), "expected floating values from 0 to 1"),
        (torch.full((3, 90, 120), -0.1), "expected floating values from 0 to 1"),
        (torch.full((3, 90, 120), np.nan), "expected floating values from 0 to 1"),
        (
            torch.zeros(3, 90, 120, dtype=torch.int64),
            "expected a tensor of uint8 or floating values, found torch.int64",
        ),
        ("no/such/file.png", "No such file or directory"),
    ],
)
def test_wrong_arrays_are_refused_with_the_reason(model, image, message):
    with pytest.raises(ValueError, match=message):
        model.score(image)
    assert [s.score for s in model.score_all([image, picture()])] == [None, model.score(picture())]


def test_a_file_that_cannot_be_read_is_named(model):
    with pytest.raises(ValueError, match="^nope.jpg: "):
        model.score("nope.jpg")
    (scored,) = model.score_all(["nope.jpg"])
    assert "nope" not in scored.problem


def test_bytes_are_those_of_an_image_file(model, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes())
    assert model.score(jpeg_bytes()) == model.score(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="^not an image of a format that is read here$"):
        model.score(b"bytes")
    scored = list(model.score_all([b"bytes", b"", jpeg_bytes()]))
    assert [item.problem for item in scored] == [
        "not an image of a format that is read here",
        "the file is empty",
        None,
    ]


def test_what_is_no_image_at_all_is_the_callers_mistake(model):
    for thing in ([1, 2], 7, bytearray(b"bytes")):
        with pytest.raises(TypeError, match=f"expected a path, .* found {type(thing).__name__}"):
            model.score(thing)


def test_a_pil_image_that_breaks_off_is_unreadable(model):
    half = io.BytesIO(jpeg_bytes()[:1500])
    with pytest.raises(ValueError, match="truncated"):
        model.score(Image.open(half))
    (scored,) = model.score_all([Image.open(half)])
    assert scored.score is None and "truncated" in scored.problem


# ------------------------------------------------------------------------------------------------ streams
def test_streams_keep_their_order_and_go_on_after_what_cannot_be_read(
    saved, model, photos, tmp_path
):
    (tmp_path / "text.jpg").write_text("no image")
    stream = [
        photos[0],
        tmp_path / "text.jpg",
        *photos[1:4],
        Image.open(photos[4]),
        tmp_path / "gone.png",
        picture(seed=5),
    ]
    expected = {0: 0, 2: 1, 3: 2, 4: 3, 5: 4, 7: 5}
    for batch_size, workers in ((1, 1), (2, 3), (64, None)):
        found = list(model.score_all(iter(stream), batch_size, workers))
        assert all(scored.image is image for scored, image in zip(found, stream, strict=True))
        for i, scored in enumerate(found):
            if i in expected:
                assert scored.problem is None
                assert scored.score == pytest.approx(model.score(photos[expected[i]]), abs=1e-4)
            else:
                assert scored.score is None and scored.problem
    assert list(model.score_all([])) == []
    grid = load(saved, "cpu", crops=6)
    found = [scored.score for scored in grid.score_all(photos, batch_size=4)]
    assert found == pytest.approx([grid.score(path) for path in photos], abs=1e-4)


def test_streams_are_read_only_a_little_ahead(model):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield picture(seed=0)

    scores = model.score_all(endless(), batch_size=4, workers=2)
    for n in range(1, 30):
        next(scores)
        assert len(taken) <= n + 2 * 4 + 2
    scores.close()


def test_nothing_is_left_running(model, photos, monkeypatch):
    threads = threading.active_count()
    scores = model.score_all(photos * 3, batch_size=2, workers=3)
    next(scores)
    assert threading.active_count() > threads
    scores.close()
    assert threading.active_count() == threads

    def broken_source():
        yield from photos[:3]
        raise OSError("the caller's own")

    with pytest.raises(OSError, match="the caller's own"):
        list(model.score_all(broken_source(), batch_size=2))
    assert threading.active_count() == threads

    def bug(*_):
        raise KeyError("our own")

    monkeypatch.setattr(quality_model, "test_patches", bug)
    with pytest.raises(KeyError):
        list(model.score_all(photos))
    assert threading.active_count() == threads
