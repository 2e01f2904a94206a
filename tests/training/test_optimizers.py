import json
from argparse import Namespace

import pytest
import torch
from processes import assert_same_results, results
from timm.optim import param_groups_layer_decay

from hyperiqa.base.errors import UserError
from hyperiqa.model import factory, hypernet
from hyperiqa.training import flags
from hyperiqa.training.optimizers import (
    OPTIMIZERS,
    TrainedModel,
    moving_average,
    optimizer_for,
    set_rates,
)
from hyperiqa.training.schedules import Rates
from HyperIQASolver import HyperIQASolver

LR, DECAY = {"head": 0.1, "backbone": 0.01}, 0.3


def weights():
    torch.manual_seed(0)
    draw = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 2), (3,), (2, 2), (2,))]
    return {"head": draw[:2], "backbone": draw[2:]}


def made(name, groups, clip_grad=None):
    return optimizer_for(
        Namespace(optimizer=name, weight_decay=DECAY, clip_grad=clip_grad), Rates(**LR), groups
    )


def gradients_of(n, p):
    """Of the n-th weight in three steps."""
    return [torch.full_like(p.detach(), 0.5 * n - k + 0.1) for k in range(3)]


def trained(optimizer, groups):
    everything = [p for group in groups.values() for p in group]
    for k in range(3):
        for n, p in enumerate(everything):
            p.grad = gradients_of(n, p)[k]
        optimizer.step()
    return [p.detach() for p in everything]


def plain_adam(p, lr, gradients, coupled, decay):
    """Kingma & Ba's algorithm 1; decay in the gradient, or Loshchilov & Hutter's algorithm 2, apart from it."""
    m = v = torch.zeros_like(p)
    for t, gradient in enumerate(gradients, 1):
        gradient = gradient + decay * p if coupled else gradient
        p = p if coupled else p - lr * decay * p
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        p = p - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return p


def plain_sgd(p, lr, gradients, coupled, decay):
    momentum = torch.zeros_like(p)
    for gradient in gradients:
        momentum = 0.9 * momentum + gradient + decay * p
        p = p - lr * momentum
    return p


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_each_is_its_algorithm_and_adamw_decays_no_biases(name):
    found, plain = (
        trained(made(name, groups := weights()), groups),
        plain_sgd if name == "sgd" else plain_adam,
    )
    for n, (ours, start) in enumerate(
        zip(found, (p.detach() for group in weights().values() for p in group))
    ):
        decay = 0.0 if name == "adamw" and start.ndim == 1 else DECAY
        rate = LR["head" if n < 2 else "backbone"]
        assert torch.allclose(
            ours, plain(start, rate, gradients_of(n, start), name != "adamw", decay), atol=1e-5
        )


def test_clipping_is_of_the_norm_of_all_gradients_together():
    found = trained(made("sgd", groups := weights(), 0.7), groups)
    again = weights()
    plain, everything = made("sgd", again), [p for group in again.values() for p in group]
    for k in range(3):
        norm = sum(gradients_of(n, p)[k].square().sum() for n, p in enumerate(everything)).sqrt()
        for n, p in enumerate(everything):
            p.grad = gradients_of(n, p)[k] * min(1.0, 0.7 / norm)
        plain.step()
    assert all(torch.allclose(ours, p, atol=1e-5) for ours, p in zip(found, everything))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates_reach_every_group_and_a_head_without_one_is_left_alone(name):
    optimizer = made(name, weights())
    set_rates(optimizer, Rates(3.0, 2.0))
    assert {(g["name"], g["lr"]) for g in optimizer.param_groups} == {
        ("head", 3.0),
        ("backbone", 2.0),
    }
    # The groups of a checkpoint of version 0.8 have no scale.
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["scale"]
    optimizer.load_state_dict(saved)
    set_rates(optimizer, Rates(4.0, 1.0))
    assert {(g["name"], g["lr"]) for g in optimizer.param_groups} == {
        ("head", 4.0),
        ("backbone", 1.0),
    }
    groups = weights()
    frozen = optimizer_for(
        Namespace(optimizer=name, weight_decay=DECAY, clip_grad=None), Rates(None, 2.0), groups
    )
    assert {g["name"] for g in frozen.param_groups} == {"backbone"}
    assert not any(p.requires_grad for p in groups["head"])


def test_the_moving_average_is_the_plain_one_of_weights_and_statistics():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    model.register_buffer("table", torch.arange(4) + 5)
    average, expected = moving_average(model, 0.5), None
    for n in range(12):
        for tensor in model.state_dict().values():
            tensor.copy_(tensor * 0.7 + n if tensor.is_floating_point() else tensor)
        model[1].num_batches_tracked += 1
        average.update_parameters(model)
        new = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        kept = min(0.5, (1 + n) / (10 + n))
        expected = (
            {
                k: kept * expected[k] + (1 - kept) * v if v.is_floating_point() else v
                for k, v in new.items()
            }
            if n
            else new
        )
    found = average.module.state_dict()
    assert all(torch.allclose(found[name], tensor) for name, tensor in expected.items())
    assert found["table"].tolist() == [5, 6, 7, 8] and found["1.num_batches_tracked"] == 12


def test_choices_are_those_of_the_flag():
    assert tuple(OPTIMIZERS) == flags.OPTIMIZERS


def rates_of(optimizer, model):
    """Name of each trained parameter -> (learning rate, weight decay)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def of_depth(backbone, name="adamw", layer_decay=0.7):
    model = hypernet.HyperNet(factory.build_backbone(backbone))
    options = {"optimizer": name, "weight_decay": DECAY, "layer_decay": layer_decay, "ema": 0}
    trained = TrainedModel(model, Namespace(**options, clip_grad=None, frozen_until=0))
    trained.begin_epoch(1, Rates(**LR), new=True)
    return model, trained.optimizer


def test_rates_fall_with_the_depth_as_timms_own_function_has_it():
    model, optimizer = of_depth("vit_tiny_patch16_224")
    encoder = model.backbone.backbone
    timms = param_groups_layer_decay(encoder, DECAY, layer_decay=0.7)
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    expected = {names[p]: 0.01 * group["lr_scale"] for group in timms for p in group["params"]}
    found = rates_of(optimizer, model)
    assert len(found) == len(list(model.parameters()))
    plain = rates_of(made("adamw", model.parameter_groups()), model)
    for name, (rate, decay) in found.items():
        wanted = expected.get(name.removeprefix("timm.backbone."), plain[name][0])
        assert rate == pytest.approx(wanted, rel=1e-12) and decay == plain[name][1]
    assert found["timm.backbone.blocks.10.attn.qkv.weight"][0] == pytest.approx(0.007)
    assert found["timm.backbone.pos_embed"][0] == pytest.approx(0.01 * 0.7**12)
    # The next epoch's rates keep the scales.
    set_rates(optimizer, Rates(3.0, 1.0))
    again = rates_of(optimizer, model)
    assert all(
        again[name][0] == pytest.approx(100 * rate)
        for name, (rate, _) in found.items()
        if name.startswith("timm.")
    )


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        (
            "resnet18",
            [
                "res.conv1.weight",
                *(f"res.layer{s}.{b}.conv1.weight" for s in (1, 2, 3, 4) for b in (0, 1)),
            ],
        ),
        (
            "swin_nano",
            [
                "swin.backbone.patch_embed.proj.weight",
                *(f"swin.backbone.layers_{s}.blocks.0.norm1.weight" for s in (0, 1, 2)),
                "swin.backbone.layers_2.blocks.1.norm1.weight",
                "swin.backbone.layers_3.downsample.norm.weight",
            ],
        ),
    ],
)
def test_encoders_without_timms_patterns_have_their_blocks_as_layers(backbone, layers):
    model, optimizer = of_depth(backbone, "sgd", 0.5)
    found = rates_of(optimizer, model)
    for above, name in enumerate(reversed(layers)):
        assert found[name][0] == 0.01 * 0.5**above
    assert all(rate == 0.01 for name, (rate, _) in found.items() if ".lda" in name)


def test_an_encoder_that_does_not_tell_its_depth_is_refused():
    model = hypernet.HyperNet(factory.build_backbone("resnet18"))
    model.backbone.layer_patterns = {}
    with pytest.raises(UserError, match="--layer_decay: this encoder does not tell the depth"):
        model.backbone.rate_scales(0.7)


# Images that are few and small, and all that must be remembered across the border.
SMALL = (
    *"--backbone test_efficientnet --lr_scheduler none --ema 0.5 --optimizer adamw".split(),
    *"--no_spaq --train_patch_num 1 --run_name r".split(),
)
THAWED = (*SMALL, *"--frozen_until 1 --layer_decay 0.8".split())


class Watched(HyperIQASolver):
    """Keeps what the model is before each epoch."""

    def begin_epoch(self, epoch):
        state = self.round.model.state_dict()
        self.before = [*getattr(self, "before", ()), {k: v.clone() for k, v in state.items()}]
        super().begin_epoch(epoch)


class Stops(HyperIQASolver):
    """Stops at the beginning of an epoch, or after a step of it."""

    place: tuple[int, int]

    def begin_epoch(self, epoch):
        if (epoch, 0) == self.place:
            raise UserError("stopped")
        super().begin_epoch(epoch)

    def stop_if_asked(self):
        if (self.state.epoch, self.state.progress.step) == self.place:
            self.save()
            raise UserError("stopped")


@pytest.fixture
def run(settings, tmp_path):
    def run(name, *more, solver=HyperIQASolver):
        folders = (
            "--log_dir",
            tmp_path / name / "logs",
            "--checkpoint_dir",
            tmp_path / name / "checkpoints",
        )
        solver = solver(settings("timm", *more, *folders))
        solver.run()
        return solver

    return run


def first_epoch(solver):
    records = map(json.loads, solver.log.path(".jsonl").read_text().splitlines())
    record = next(record for record in records if record["type"] == "epoch")
    return {part: record[part] for part in ("train", "test")}


def test_the_head_trains_first_as_with_a_frozen_encoder_and_then_everything(run):
    """The encoder has batch norms, which do not move either while it is frozen."""
    thawed = run("thawed", *THAWED, solver=Watched)
    frozen = run("frozen", *SMALL, "--freeze_backbone", solver=Watched)
    assert first_epoch(thawed) == first_epoch(frozen)
    for ours, theirs in zip(thawed.before, frozen.before, strict=True):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    start, border = thawed.before
    end = thawed.round.model.state_dict()
    for name in end:
        is_frozen = name.startswith("timm.backbone.")
        assert torch.equal(start[name], border[name]) == is_frozen, name
        assert not torch.equal(border[name], end[name]), name
    assert "Encoder: frozen until the end of epoch 1\n" in thawed.log.path(".log").read_text()


def test_sgd_takes_the_encoder_in_after_the_frozen_epochs(run):
    """Its momentum then exists for some of the parameters only: no fused step takes both kinds."""
    flags = "--frozen_until 1 --optimizer sgd --lr 1e-5".split()
    solver = run("sgd", *SMALL, *flags, solver=Watched)
    border = solver.before[1]
    end = solver.round.model.state_dict()
    kernels = [name for name in end if name.startswith("timm.backbone.") and end[name].ndim == 4]
    assert kernels
    assert not any(torch.equal(border[name], end[name]) for name in kernels)


def test_a_run_goes_on_to_the_bit_before_at_and_after_the_end_of_the_frozen_epochs(run, tmp_path):
    run("whole", *THAWED)
    for place in ((1, 1), (2, 0), (2, 1)):
        stopped = type("StopsThere", (Stops,), {"place": place})
        name = "cut{}{}".format(*place)
        with pytest.raises(UserError, match="stopped"):
            run(name, *THAWED, solver=stopped)
        run(name, *THAWED[: THAWED.index("--run_name")], *THAWED[-4:], "--resume", "auto")
        assert_same_results(results(tmp_path / name), results(tmp_path / "whole"))
