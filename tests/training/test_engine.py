import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_images

from hyperiqa.base.device import Hardware
from hyperiqa.images.cache import ImageCache
from hyperiqa.model import factory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.resnet import ResNetBackbone
from hyperiqa.stats import metrics
from hyperiqa.training import engine
from hyperiqa.training.augmentations import augmented
from hyperiqa.training.batches import PatchBatches, make_loader
from hyperiqa.training.losses import QualityLoss
from hyperiqa.training.patches import addressed_seed, test_patches, train_patches

test_patches.__test__ = False
CPU = Hardware(torch.device("cpu"))
ROOT = Path(engine.__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, [f"{i}.jpg" for i in range(9)], (110, 80))
    return ImageCache("set", sorted(folder.iterdir()), "none", 64)


def model_of(seed=0):
    torch.manual_seed(seed)
    return HyperNet(ResNetBackbone("resnet18"))


def batches_of(cache, patches, size):
    return PatchBatches(cache, range(len(cache)), np.linspace(10, 90, len(cache)), patches, size)


def test_train_one_epoch_is_the_plain_loop(cache, monkeypatch):
    batches = batches_of(cache, train_patches(cache.sizes, 64, 2, 1, 1), 8)
    criterion, ours, plain = QualityLoss(0.3), model_of(), model_of()
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-4)
    progress, reseeded = engine.EpochProgress(), []
    monkeypatch.setattr(torch, "manual_seed", reseeded.append)
    result = engine.train_one_epoch(
        ours, criterion, optimizer, make_loader(batches, CPU), CPU, progress
    )
    monkeypatch.undo()

    optimizer, expected, outputs = torch.optim.Adam(plain.parameters(), lr=1e-4), [], []
    for batch in (batches[0], batches[1], batches[2]):
        plain.train()
        optimizer.zero_grad()
        out = plain(plain.backbone.normalised(augmented(batch)))
        parts = criterion(out, batch)
        parts["loss"].backward()
        optimizer.step()
        expected.append([parts[name].item() for name in ("loss", "l1", "rank")])
        outputs += out["scores"].tolist()
    # The last batch holds 2 of the 18 patches and counts as much as the others: the mean is over batches.
    assert [result[name] for name in ("loss", "l1", "rank")] == pytest.approx(
        np.mean(expected, 0).tolist(), rel=1e-6
    )
    scores, mos = torch.cat(progress.scores).tolist(), torch.cat(progress.mos).tolist()
    assert scores == pytest.approx(outputs, abs=1e-6) and len(mos) == 18
    assert {name: result[name] for name in ("srcc", "plcc")} == metrics.recorded(scores, mos)
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), plain.state_dict().values())
    )
    assert reseeded == [int(addressed_seed(1, 1, step).generate_state(1)[0]) for step in range(3)]


@pytest.mark.parametrize("crop", ["center", "grid"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batched_scoring_of_distinct_crops_is_one_at_a_time_scoring_of_all(cache, crop, batch_size):
    """The plain procedure: every image's crops one by one, all 20 centre crops scored though they are one."""
    model = model_of().eval()
    patches = test_patches(cache.sizes, 64, crop, 6)
    scores = engine.score(
        model, make_loader(batches_of(cache, patches, batch_size), CPU), len(cache), CPU
    )
    plain = []
    for i in range(len(cache)):
        places = [(t, x) for n, t, x in zip(patches.image, patches.top, patches.left) if n == i]
        places = places * 20 if crop == "center" else places
        crops = [torch.from_numpy(cache[i][t : t + 64, x : x + 64].copy()) for t, x in places]
        with torch.no_grad():
            one_by_one = [model(model.backbone.normalised(c[None]))["scores"] for c in crops]
        plain.append(np.mean([s.item() for s in one_by_one]))
    assert scores == pytest.approx(plain, abs=1e-3)
    mos = np.linspace(10, 90, len(cache))
    assert metrics.srcc(scores, mos) == pytest.approx(metrics.srcc(plain, mos), abs=1e-4)


def test_scoring_is_fp32_and_leaves_the_model_as_it_was(cache):
    model = model_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = batches_of(cache, test_patches(cache.sizes, 64), 4)
    scores = engine.score(model, make_loader(batches, CPU), len(cache), CPU)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert scores.shape == (9,) and not np.array_equal(
        scores, torch.tensor(scores).bfloat16().double().numpy()
    )


def test_bf16_training_stays_near_fp32(cache):
    """Autocast changes digits, not the course: the first epoch's loss within 2 %."""
    batches = batches_of(cache, train_patches(cache.sizes, 64, 2, 1, 1), 8)
    losses = []
    for bf16 in (False, True):
        model = model_of()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
        hardware, progress = replace(CPU, bf16=bf16), engine.EpochProgress()
        result = engine.train_one_epoch(
            model, QualityLoss(), optimizer, make_loader(batches, CPU), hardware, progress
        )
        losses.append(result["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_freed_memory_is_used_again_instead_of_asked_for_anew():
    code = """
import resource, torch
from hyperiqa.base import device
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24).add_(1)  # 64 MiB: 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
device.keep_freed_memory()
print(sum([faults() for _ in range(40)][20:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) < 2 * 16384  # the heap has grown by then; asked for anew: 20 x 16,384


def test_a_teacher_scores_the_students_patches_in_its_own_way(cache):
    batches = batches_of(cache, train_patches(cache.sizes, 64, 2, 1, 1), 8)
    torch.manual_seed(1)
    teacher = HyperNet(factory.build_backbone("test_vit", patch_size=64)).eval()
    teacher.backbone.set_normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student, seen = model_of(), []
    criterion = QualityLoss(distill=1.0)

    def remembering(outputs, batch):
        seen.append(batch)
        return criterion(outputs, batch)

    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    loader = engine.with_teacher_scores(make_loader(batches, CPU), teacher, CPU)
    figures = engine.train_one_epoch(
        student, remembering, optimizer, loader, CPU, engine.EpochProgress()
    )
    for b, batch in enumerate(seen):
        pixels = batches[b]["patches"].numpy().astype(np.float32)
        for i in np.flatnonzero(batches[b]["hflip"].numpy()):
            pixels[i] = pixels[i][:, ::-1]
        images = (pixels / 255 - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.2, 0.3])
        with torch.no_grad():
            expected = teacher(torch.from_numpy(images).permute(0, 3, 1, 2))["scores"]
        assert torch.allclose(batch["teacher"], expected, atol=1e-5)
    assert len(seen) == len(batches) and figures["distill"] > 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())


def test_stage_maps_go_on_from_the_patch_at_which_a_stopped_run_left_off(cache):
    batches = batches_of(cache, train_patches(cache.sizes, 64, 3, 1, 1), 4)
    model = model_of()
    whole = np.concatenate(list(engine.stage_maps(model, CPU, batches)))
    assert len(whole) == len(batches.patches) > 8
    rest = np.concatenate(list(engine.stage_maps(model, CPU, batches, 8)))
    assert np.array_equal(rest, whole[8:])
