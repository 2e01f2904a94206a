from argparse import Namespace

import pytest
import torch

from hyperiqa.training import flags
from hyperiqa.training.optimizers import OPTIMIZERS, moving_average, optimizer_for, set_rates
from hyperiqa.training.schedules import Rates

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
