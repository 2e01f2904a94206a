import os
import resource
import shutil
import signal
import statistics
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from helpers import picture, score_of, write_images, write_koniq
from PIL import Image
from scipy import stats

from hyperiqa.base.device import Hardware
from hyperiqa.base.errors import UserError
from hyperiqa.images.cache import ImageCache
from hyperiqa.model.backbone import Backbone
from hyperiqa.training import augmentations, batches, engine
from hyperiqa.training.augmentations import draw_mixing, mixed
from hyperiqa.training.batches import PatchBatches, fitting_workers, make_loader
from hyperiqa.training.epoch_batches import train_batches
from hyperiqa.training.log import RunLog
from hyperiqa.training.patches import test_patches, train_patches
from hyperiqa.training.sets import RunData

test_patches.__test__ = False  # its name is the field's, not pytest's


SIZES = np.array([[384, 512], [512, 384], [224, 600], [300, 301]])


def test_train_patches_are_a_function_of_seed_and_epoch():
    def drawn(*address):
        patches = train_patches(SIZES, 224, 5, *address)
        return np.stack([patches.image, patches.top, patches.left, patches.drawn["hflip"]])

    assert np.array_equal(drawn(42, 3), drawn(42, 3))
    for other in ((42, 4), (43, 3), (3, 42)):
        assert not np.array_equal(drawn(42, 3), drawn(*other))


def test_augmentations_change_neither_order_nor_crops():
    plain, flipped = (
        train_patches(SIZES, 224, 5, 1, 1, augment) for augment in ({"none": 1}, {"hflip": 1})
    )
    assert plain.drawn == {} and flipped.drawn["hflip"].shape == (20,)
    for name in ("image", "top", "left"):
        assert np.array_equal(getattr(plain, name), getattr(flipped, name))


def test_fixed_crops_are_the_same_in_every_epoch_in_another_order():
    first, second = (train_patches(SIZES, 224, 5, 7, epoch, fixed=True) for epoch in (1, 2))
    rows = [
        sorted(
            zip(
                p.row.tolist(),
                p.image.tolist(),
                p.top.tolist(),
                p.left.tolist(),
                p.drawn["hflip"].tolist(),
            )
        )
        for p in (first, second)
    ]
    assert rows[0] == rows[1] and [row[0] for row in rows[0]] == list(range(20))
    assert first.row.tolist() != second.row.tolist() and (first.address, second.address) == (
        (7, 1),
        (7, 2),
    )
    base = train_patches(SIZES, 224, 5, 7, 0, fixed=True)
    assert base.top[first.row].tolist() == first.top.tolist()
    assert (
        len(
            {
                p.digest()
                for p in (base, first, second, train_patches(SIZES, 224, 5, 8, 0, fixed=True))
            }
        )
        == 4
    )
    # Of one distribution with crops that are drawn anew: no image is short of crops.
    assert np.bincount(first.image).tolist() == [5] * 4


def test_train_patches_cover_each_image_evenly_and_stay_inside():
    patches = train_patches(SIZES, 224, 500, 1, 1)
    assert np.bincount(patches.image).tolist() == [500] * 4
    room = SIZES[patches.image] - 224
    assert (patches.top >= 0).all() and (patches.top <= room[:, 0]).all()
    assert (patches.left >= 0).all() and (patches.left <= room[:, 1]).all()
    wide = patches.image == 0
    assert (
        patches.top[wide].max() > 150 and patches.left[wide].max() > 270
    )  # the last rows and columns are reached
    assert patches.top[wide].mean() == pytest.approx(80, abs=8) and patches.drawn[
        "hflip"
    ].mean() == pytest.approx(0.5, abs=0.05)
    assert (patches.image[:20] != np.sort(patches.image[:20])).any()  # images are shuffled together


def test_center_crop_is_torchvisions():
    pixels = torch.arange(301 * 300).reshape(1, 301, 300)
    patches = test_patches(np.array([[301, 300]]), 224)
    expected = T.CenterCrop(224)(pixels)
    assert torch.equal(
        pixels[:, patches.top[0] : patches.top[0] + 224, patches.left[0] : patches.left[0] + 224],
        expected,
    )


def test_grid_and_random_crops():
    grid = test_patches(np.array([[384, 512]]), 224, "grid", 25)
    assert sorted(set(grid.top)) == [0, 40, 80, 120, 160] and sorted(set(grid.left)) == [
        0,
        72,
        144,
        216,
        288,
    ]
    assert len(test_patches(np.array([[384, 512]]), 224, "grid", 6)) == 6
    assert (
        len(set(test_patches(np.array([[384, 512]]), 224, "grid", 6).left)) == 3
    )  # 2 rows, 3 columns
    narrow = test_patches(np.array([[224, 230]]), 224, "grid", 25)
    assert set(narrow.top) == {0} and len(narrow) == len(set(narrow.left))  # coinciding crops once
    one, again = (test_patches(SIZES, 224, "random", 20) for _ in range(2))
    assert np.array_equal(one.top, again.top) and np.bincount(one.image).tolist() == [20] * 4
    assert len(set(zip(one.top[:20], one.left[:20]))) > 15
    assert len(test_patches(SIZES, 224, "center", 25)) == 4


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", ["a.jpg", "b.jpg"], (80, 60))
    write_images(tmp_path / "images", ["c.png", "small.png"], (40, 100), seed=5)
    return sorted((tmp_path / "images").iterdir())


def batches_of(cache, batch_size=8, per_image=5):
    patches = train_patches(cache.sizes, 48, per_image, 1, 1)
    return PatchBatches(
        cache, range(len(cache)), [float(10 * i) for i in range(len(cache))], patches, batch_size
    )


def on_cpu(workers=0):
    return Hardware(torch.device("cpu"), workers=workers)


def test_batches_are_the_patches_in_order_whatever_cuts_them(images, tmp_path):
    memory, mapped = (
        ImageCache("set", images, "50", 48),
        ImageCache("set", images, "50", 48, tmp_path / "cache"),
    )
    moved = ImageCache("set", images, "50", 48)
    moved.to_gpu(torch.device("cpu"))  # the path that crops on the device the images lie on
    expected = batches_of(memory)
    plain = []
    for k in range(20):
        i, top, left = (
            int(v[k]) for v in (expected.patches.image, expected.patches.top, expected.patches.left)
        )
        plain.append(memory[i][top : top + 48, left : left + 48])
    for cache, workers in ((memory, 0), (memory, 2), (mapped, 0), (mapped, 1), (moved, 0)):
        loaded = list(make_loader(batches_of(cache), on_cpu(workers)))
        assert [len(b["patches"]) for b in loaded] == [8, 8, 4]
        assert np.array_equal(torch.cat([b["patches"] for b in loaded]).numpy(), np.stack(plain))
        assert np.array_equal(
            torch.cat([b["image"] for b in loaded]).numpy(), expected.patches.image
        )
        assert torch.equal(
            torch.cat([b["mos"] for b in loaded]), 10.0 * torch.cat([b["image"] for b in loaded])
        )
    tail = list(make_loader(batches_of(memory), on_cpu(), start=2))
    assert len(tail) == 1 and np.array_equal(tail[0]["patches"].numpy(), np.stack(plain[16:]))


def test_model_input_is_torchvisions_totensor_flip_and_normalize():
    pixels = np.stack([picture(60, 60, seed) for seed in range(4)])
    flip = torch.tensor([True, False, True, False])
    found = Backbone().normalised(
        augmentations.augmented({"patches": torch.from_numpy(pixels), "hflip": flip})
    )
    normalise = T.Compose([T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    for image, flipped, result in zip(pixels, flip, found):
        image = Image.fromarray(image)
        expected = normalise(image.transpose(Image.FLIP_LEFT_RIGHT) if flipped else image)
        assert torch.allclose(result, expected, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_no_more_workers_than_their_batches_have_room_for():
    free = shutil.disk_usage(batches.SHARED_MEMORY).free
    for workers in (0, 1, 4, 7):
        # Two batches each and one in use, in nine tenths of what is free: a byte less fits, a byte more does not.
        largest = int(0.9 * free / (2 * workers + 1))
        assert fitting_workers(workers, largest - 2**20) == (workers, "")
        if workers:
            fewer, why = fitting_workers(workers, largest + 2**20)
            assert fewer == workers - 1
            assert why.startswith(
                f"--workers {workers}: there is room for {fewer}, as /dev/shm has "
            ) and why.endswith("MiB free")


class Failing(torch.utils.data.Dataset):
    """A batch that ends its process, or never comes."""

    on_device, bytes = False, 0

    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 1

    def __getitem__(self, b):
        self.fail()


def no_more_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"died \(DataLoader worker "),
        (lambda: time.sleep(60), r"gave nothing \(DataLoader timed out after 1 seconds\)"),
        (no_more_files, r"opened too many files \(Caught OSError in DataLoader worker process 0"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_one_line(monkeypatch, fail, said):
    monkeypatch.setattr(batches, "WORKER_SECONDS", 1)
    loader = make_loader(Failing(fail), Hardware(torch.device("cpu"), workers=1))
    with pytest.raises(
        UserError, match=f"a process that cuts patches {said}.*--resume auto goes on"
    ):
        engine.score(torch.nn.Identity(), loader, 1, Hardware(torch.device("cpu")))


@pytest.fixture
def training(settings):
    """training(*flags)(epoch): the batch of all patches of an epoch, and where they lie, of a run with these flags."""

    def of_a_run(*flags):
        options = settings("resnet", "--no_spaq", "--batch_size", 10**6, *flags)
        data, log = (
            RunData(options, 42),
            RunLog(options.log_dir, options.checkpoint_dir, "data", False),
        )
        data.decode(torch.device("cpu"), log, new=True)
        log.close()
        return lambda epoch: (
            (batches := train_batches(data, 42, epoch, options.batch_size))[0],
            batches.patches,
        )

    return of_a_run


@pytest.mark.parametrize("votes", [False, True])
def test_label_noise_is_gaussian_of_the_stated_width_and_moves_nothing_else(
    training, tmp_path, votes
):
    root = write_koniq(tmp_path / "koniq-10k")
    if votes:  # SD 0.2 of 1..5 and 4·(i+1) votes, on a scale of 20 per step
        scores = {f"train_{i}.jpg": score_of(i, 12) for i in range(12)} | {
            f"test_{i}.jpg": score_of(i, 6) for i in range(6)
        }
        rows = [
            f"{name},{4 * (k + 1)},{s / 20},0.2,{s}" for k, (name, s) in enumerate(scores.items())
        ]
        (root / "koniq10k_scores_and_distributions.csv").write_text(
            "\n".join(["image_name,c_total,MOS,SD,MOS_zscore", *rows])
        )
    flags = ("--train_patch_num", 300, "--dataset_path", root)
    noisy, plain = training(*flags, "--label_noise", 2), training(*flags)
    (batch, patches), (same, there) = noisy(1), plain(1)
    assert torch.equal(batch["patches"], same["patches"]) and np.array_equal(
        patches.image, there.image
    )
    noise = (batch["mos"] - same["mos"]).numpy()
    for i in range(12):
        expected = 2 * 20 * 0.2 / (4 * (i + 1)) ** 0.5 if votes else 2.0  # of 0..100
        assert stats.kstest(noise[patches.image == i] / expected, "norm").pvalue > 1e-3
    assert torch.equal(noisy(1)[0]["mos"], batch["mos"]) and not torch.equal(
        noisy(2)[0]["mos"] - plain(2)[0]["mos"], torch.from_numpy(noise)
    )


def test_a_batch_brings_the_standard_deviations_of_its_images_votes(training, tmp_path):
    """On the scale of the MOS; an image without votes has the root mean square of the others."""
    root = write_koniq(tmp_path / "koniq-10k", votes=True)
    path = root / "koniq10k_scores_and_distributions.csv"
    rows = path.read_text().splitlines()
    assert rows[1].endswith(",0.5,100") and rows[2].endswith(",0.6,100")
    rows[1] = rows[1].replace(",0.5,100", ",?,100")
    rows[2] = rows[2].replace(",0.6,100", ",0,100")
    path.write_text("\n".join(rows))
    by_votes = ("--loss", "fidelity", "--fidelity_sigma", "votes")
    batch, patches = training(*by_votes, "--dataset_path", root)(1)
    expected = [20 * (0.5 + 0.1 * (i % 4)) for i in range(12)]
    expected[:2] = [statistics.mean(x * x for x in expected[2:]) ** 0.5] * 2
    assert batch["sigma"].numpy() == pytest.approx([expected[i] for i in patches.image])
    plain, there = training("--dataset_path", root)(1)
    assert np.array_equal(patches.image, there.image) and "sigma" not in plain
    assert torch.equal(plain["mos"], batch["mos"])
    # All processes have those of the whole batch, also in front of stored features.
    features = torch.arange(len(patches))[:, None]
    stored = PatchBatches(None, range(12), [0.0] * 12, patches, 10**6, features, (1, 3))[0]
    assert torch.equal(stored["sigma"], batch["sigma"]) and len(stored["features"]) < len(patches)


def test_the_shares_of_several_processes_are_the_rows_of_the_batch(images):
    """Each takes every so many-th, as many as the others; what they are mixed with comes after them."""
    cache = ImageCache("set", images, "50", 48)
    patches = train_patches(cache.sizes, 48, 5, 1, 1, {"hflip": 1.0, "rot90": 1.0})
    mixing = draw_mixing(np.random.default_rng(1), len(patches), 0.4, 1.0, 48)
    patches = replace(patches, drawn={**patches.drawn, **mixing, "set": patches.image % 2})
    mos = [float(10 * i) for i in range(len(cache))]
    whole = PatchBatches(cache, range(len(cache)), mos, patches, 7)
    for b, batch in enumerate(whole[b] for b in range(len(whole))):
        number = len(batch["mos"])  # 7, 7, 6
        for rank in range(4):
            own = PatchBatches(cache, range(len(cache)), mos, patches, 7, share=(rank, 4))[b]
            rows = [min(row, number - 1) for row in (rank, rank + 4)]
            seen = rows + [row - 1 for row in rows]
            assert own["seed"] == batch["seed"] and len(own["blend"]) == 2
            for name in ("mos", "image", "set"):
                assert torch.equal(own[name], batch[name])
            for name in ("patches", "hflip", "rot90"):
                assert torch.equal(own[name], batch[name][seen])
            for name in ("blend", "box"):
                assert torch.equal(own[name], batch[name][rows])
            mixed_whole = mixed(batch["patches"].permute(0, 3, 1, 2).float(), batch)
            assert torch.equal(
                mixed(own["patches"].permute(0, 3, 1, 2).float(), own), mixed_whole[rows]
            )
