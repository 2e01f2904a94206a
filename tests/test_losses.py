import math

import pytest
import torch

from losses import QualityLoss, ranking_loss


def plain_ranking_loss(scores, mos, margin):
    """The definition, pair by pair."""
    terms = []
    for i in range(len(mos)):
        for j in range(i + 1, len(mos)):
            if mos[i] != mos[j]:
                sign = math.copysign(1, mos[i] - mos[j])
                terms.append(max(0.0, margin - sign * (scores[i] - scores[j])))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 20.0])
@pytest.mark.parametrize("ties", [False, True])
def test_ranking_loss_is_the_mean_over_pairs_with_different_mos(margin, ties):
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(17, generator=generator) * 10
    mos = torch.randint(0, 5, (17,), generator=generator).float() if ties else torch.rand(17, generator=generator) * 100
    expected = plain_ranking_loss(scores.tolist(), mos.tolist(), margin)
    assert ranking_loss(scores, mos, margin).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [1, 4])
def test_ranking_loss_without_a_pair_is_zero_and_differentiable(n):
    scores = torch.arange(n, dtype=torch.float32, requires_grad=True)
    loss = ranking_loss(scores, torch.full((n,), 50.0), 0.5)
    loss.backward()
    assert loss.item() == 0 and torch.equal(scores.grad, torch.zeros(n))


def test_named_parts_and_both_forms():
    scores, batch = {"scores": torch.tensor([10.0, 30.0, 20.0])}, {"mos": torch.tensor([12.0, 25.0, 26.0])}
    l1, rank = (2 + 5 + 6) / 3, plain_ranking_loss([10, 30, 20], [12, 25, 26], 0.5)
    convex = QualityLoss(0.3, 0.5)(scores, batch)
    additive = QualityLoss(0.3, 0.5, "additive")(scores, batch)
    assert convex["l1"].item() == pytest.approx(l1) and convex["rank"].item() == pytest.approx(rank)
    assert convex["loss"].item() == pytest.approx(0.7 * l1 + 0.3 * rank)
    assert additive["loss"].item() == pytest.approx(l1 + 0.3 * rank)
    plain = QualityLoss()(scores, batch)
    assert set(plain) == {"loss", "l1"} and plain["loss"].item() == pytest.approx(l1)


def test_loss_is_taken_in_fp32():
    scores = {"scores": torch.tensor([80.2], dtype=torch.bfloat16)}
    assert QualityLoss(0.3)(scores, {"mos": torch.tensor([80.0])})["loss"].dtype == torch.float32
