"""A step in parts, and one that computes its activations again, against the plain step of the same model."""

import pytest
import torch

from hyperiqa.base.errors import UserError
from hyperiqa.model import factory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.training import whole_batch
from hyperiqa.training.losses import LOSSES, QualityLoss

ROWS = 7
ALL_PARTS = {"alpha": 0.3, "contrastive": 0.5, "distill": 1.0}


@pytest.fixture(autouse=True)
def plain_steps_afterwards():
    yield
    whole_batch.prepare(model_of("test_vit", 32))


def model_of(name, side):
    """With everything that draws at random in a step."""
    torch.manual_seed(0)
    net = HyperNet(factory.build_backbone(name, patch_size=side, drop_path=0.3), dropout=0.2)
    return net.to(memory_format=torch.channels_last).train()


def batch_of(side):
    """Images that differ enough for scores that differ: of others, a PLCC would be mere rounding."""
    torch.manual_seed(1)
    images = torch.randn(ROWS, 3, side, side) + 2 * torch.randn(ROWS, 3, 1, 1)
    values = {name: 100 * torch.rand(ROWS) for name in ("mos", "teacher")}
    return images.contiguous(memory_format=torch.channels_last), values


def step(model, parts, images, batch, criterion):
    """The loss and the gradients; models that are compared see the same draws."""
    whole_batch.prepare(model, parts)
    torch.manual_seed(2)
    whole_batch.begin_step(ROWS)
    model.zero_grad()
    loss = criterion(whole_batch.outputs_of(model, images), batch)["loss"]
    whole_batch.backward(loss)
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("name", "side"), [("vit_tiny_patch16_224", 32), ("swin_nano", 64)])
def test_parts_and_recomputation_leave_the_gradients_of_every_loss(name, side):
    images, batch = batch_of(side)
    plain, saving = model_of(name, side), model_of(name, side)
    saving.backbone.save_memory(side)
    saving.train()
    for fit in LOSSES:
        criterion = QualityLoss(fit=fit, **(ALL_PARTS if fit == "fidelity" else {}))
        loss, gradients = step(plain, 1, images, batch, criterion)
        largest = max(g.abs().max() for g in gradients.values() if g is not None)
        in_parts, found = step(saving, 3, images, batch, criterion)
        # In correlations of scores that are near to each other, rounding counts more.
        tolerance = 5e-6 if fit in ("plcc", "srcc") else 1e-6
        assert in_parts == pytest.approx(loss, rel=1e-6)
        assert_near(gradients, found, tolerance * largest)
    # The same operations on the same rows: the same bits.
    assert_near(gradients, step(saving, 1, images, batch, criterion)[1], 0)


def assert_near(expected, found, tolerance):
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None
        else:
            assert (gradient - found[name]).abs().max() <= tolerance, name


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet"])
def test_statistics_of_batch_norms_move_once_in_a_recomputed_step(name):
    images, batch = batch_of(64)
    states = []
    for saves in (False, True):
        model = model_of(name, 64)
        if saves:
            model.backbone.save_memory(64)
            model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        before = model.state_dict()[next(n for n in model.state_dict() if "running" in n)].clone()
        step(model, 1, images, batch, QualityLoss())
        optimizer.step()
        states.append(model.state_dict())
        assert any("running" in n and not torch.equal(t, before) for n, t in states[-1].items())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_stored_features_are_cut_like_images():
    images, batch = batch_of(64)
    model = model_of("resnet18", 64)
    model.backbone.freeze()
    model.train()
    whole_batch.check_parts(model, 3)
    with torch.no_grad():
        maps = model.unpack(model.pack(model.backbone.stage_maps(images)))
    _, expected = step(model, 1, maps, batch, QualityLoss())
    largest = max(g.abs().max() for g in expected.values() if g is not None)
    expected = {name: g if g is None else g.clone() for name, g in expected.items()}
    assert_near(expected, step(model, 3, maps, batch, QualityLoss())[1], 1e-6 * largest)


def test_what_saves_no_memory_or_needs_the_whole_batch_is_refused():
    with pytest.raises(UserError, match="--grad_checkpointing saves no memory with this encoder"):
        factory.build_backbone("coat_lite_tiny", patch_size=64).save_memory(64)
    with pytest.raises(UserError, match="--accumulate 3: batch norms that train"):
        whole_batch.check_parts(model_of("resnet18", 64), 3)
