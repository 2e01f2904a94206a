import math
import statistics

import pytest
import torch
from scipy import stats

from hyperiqa.training import flags, losses
from hyperiqa.training.losses import LOSSES, QualityLoss, ranking_loss


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
    mos = (
        torch.randint(0, 5, (17,), generator=generator).float()
        if ties
        else torch.rand(17, generator=generator) * 100
    )
    expected = plain_ranking_loss(scores.tolist(), mos.tolist(), margin)
    assert ranking_loss(scores, mos, margin).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [1, 4])
def test_ranking_loss_without_a_pair_is_zero_and_differentiable(n):
    scores = torch.arange(n, dtype=torch.float32, requires_grad=True)
    loss = ranking_loss(scores, torch.full((n,), 50.0), 0.5)
    loss.backward()
    assert loss.item() == 0 and torch.equal(scores.grad, torch.zeros(n))


def test_named_parts_and_both_forms():
    scores, batch = (
        {"scores": torch.tensor([10.0, 30.0, 20.0])},
        {"mos": torch.tensor([12.0, 25.0, 26.0])},
    )
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


def scores_and_mos(n=30):
    torch.manual_seed(0)
    mos = torch.rand(n, dtype=torch.float64) * 100
    mos[3] = mos[4]
    return (0.3 * mos + 10 * torch.randn(n, dtype=torch.float64)).requires_grad_(), mos


def plain_fidelity(scores, mos):
    """Tsai et al.'s equation 6 pair by pair, with Thurstone's probabilities written out."""
    spread = statistics.pstdev(mos)

    def preferred(a, b):
        return statistics.NormalDist(0, math.sqrt(2) * spread).cdf(a - b)

    terms = []
    for i in range(len(mos)):
        for j in range(i):
            p, q = preferred(mos[i], mos[j]), preferred(scores[i], scores[j])
            terms.append(1 - math.sqrt(p * q) - math.sqrt((1 - p) * (1 - q)))
    return sum(terms) / len(terms)


def plain_fidelity_of_votes(scores, mos, sigma):
    """Thurstone's probabilities of two images whose opinions have spreads of their own, by scipy, pair by pair."""
    terms = []
    for i in range(len(mos)):
        for j in range(i):
            spread = math.sqrt(sigma[i] ** 2 + sigma[j] ** 2)
            p = stats.norm.cdf(mos[i] - mos[j], scale=spread)
            q = stats.norm.cdf(scores[i] - scores[j], scale=spread)
            terms.append(1 - math.sqrt(p * q) - math.sqrt((1 - p) * (1 - q)))
    return sum(terms) / len(terms)


def test_the_fidelity_loss_of_votes_is_thurstones():
    scores, mos = scores_and_mos()
    sigma = 5 + 20 * torch.rand(len(mos), dtype=torch.float64)
    expected = plain_fidelity_of_votes(scores.tolist(), mos.tolist(), sigma.tolist())
    assert losses.fidelity_loss(scores, mos, sigma).item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(lambda s: losses.fidelity_loss(s, mos, sigma), scores)
    # It is least where the scores are the MOS, and the batch's own spread is the case of one sigma.
    assert losses.fidelity_loss(mos, mos, sigma).item() == pytest.approx(0, abs=1e-12)
    one = mos.std(correction=0).expand(len(mos))
    assert losses.fidelity_loss(scores, mos, one).item() == pytest.approx(
        losses.fidelity_loss(scores, mos).item()
    )


def test_votes_are_compared_within_their_sets():
    scores, mos = (x.float().detach() for x in scores_and_mos())
    sigma, sets = 5 + mos / 10, torch.arange(len(mos)) % 2
    batch = {"mos": mos, "sigma": sigma, "set": sets}
    loss = QualityLoss(fit="fidelity")({"scores": scores}, batch)["loss"].item()
    parts = [
        plain_fidelity_of_votes(*(x[sets == k].tolist() for x in (scores, mos, sigma)))
        for k in (0, 1)
    ]
    assert loss == pytest.approx(statistics.mean(parts), rel=1e-4)


EXPECTED = {
    "l1": lambda s, m: sum(abs(a - b) for a, b in zip(s, m)) / len(m),
    "mse": lambda s, m: sum((a - b) ** 2 for a, b in zip(s, m)) / len(m),
    "smooth_l1": lambda s, m: (
        sum(abs(a - b) - 0.5 if abs(a - b) > 1 else (a - b) ** 2 / 2 for a, b in zip(s, m)) / len(m)
    ),
    "plcc": lambda s, m: (1 - stats.pearsonr(s, m)[0]) / 2,
    "srcc": lambda s, m: (1 - stats.spearmanr(s, m)[0]) / 2,
    "fidelity": plain_fidelity,
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_its_definition_with_right_gradients(name, monkeypatch):
    scores, mos = scores_and_mos()
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, mos), scores)
    assert torch.autograd.gradcheck(lambda s: ranking_loss(s, mos, 0.5), scores)
    monkeypatch.setattr(losses, "SOFT_RANK", 1e-6)  # hard ranks
    assert LOSSES[name](scores, mos).item() == pytest.approx(
        EXPECTED[name](scores.tolist(), mos.tolist()), rel=1e-9
    )


def test_soft_ranks_by_hand():
    """Three images a tenth of the MOS's spread apart: each rank is a sum of sigmoids of 0, 1 and 2."""
    mos = torch.tensor([10.0, 20.0, 60.0], dtype=torch.float64)
    scores = (
        torch.arange(3, dtype=torch.float64) * losses.SOFT_RANK * statistics.pstdev(mos.tolist())
    )
    one, two = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    ranks = [0.5 + 1 - one + 1 - two, 0.5 + one + 1 - one, 0.5 + one + two]
    assert losses.srcc_loss(scores, mos).item() == pytest.approx(
        (1 - stats.pearsonr(ranks, [1, 2, 3])[0]) / 2
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scores", [[3.0], [3.0, 3.0, 3.0], [1.0, 2.0, 5.0]])
def test_a_batch_that_says_nothing_of_order_breaks_no_loss(name, scores):
    scores = torch.tensor(scores, requires_grad=True)
    loss = LOSSES[name](scores, torch.full((len(scores),), 5.0))
    loss.backward()
    assert loss.isfinite() and scores.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_goes_beside_the_ranking_loss_by_a_name_of_its_own(name):
    scores, mos = (x.float().detach() for x in scores_and_mos())
    parts = QualityLoss(0.3, 0.5, fit=name)({"scores": scores}, {"mos": mos})
    loss, fit, rank = parts.values()
    assert loss.item() == pytest.approx(0.7 * fit.item() + 0.3 * rank.item())
    assert not parts.keys() & {"srcc", "plcc", "krcc", "rmse"} and name in list(parts)[1]


def plain_rank_n_contrast(features, mos):
    """Zha et al.'s equation 2 as it stands, with loops."""
    n, total = len(mos), 0.0
    likeness = [[-math.dist(a, b) / 2 for b in features] for a in features]
    for i in range(n):
        for j in range(n):
            if i != j:
                farther = [
                    k for k in range(n) if k != i and abs(mos[i] - mos[k]) >= abs(mos[i] - mos[j])
                ]
                among = sum(math.exp(likeness[i][k]) for k in farther)
                total -= math.log(math.exp(likeness[i][j]) / among) / (n * (n - 1))
    return total


def test_rank_n_contrast_is_its_definition_with_right_gradients():
    _, mos = scores_and_mos(9)
    features = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    expected = plain_rank_n_contrast(features.tolist(), mos.tolist())
    assert losses.rank_n_contrast(features, mos).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda f: losses.rank_n_contrast(f, mos), features)
    for n in (1, 3):  # a single image; images that are all alike
        same = torch.ones(n, 4, requires_grad=True)
        losses.rank_n_contrast(same, torch.ones(n)).backward()
        assert same.grad.isfinite().all()
    outputs, batch = {"scores": mos + 1, "features": features}, {"mos": mos}
    parts = QualityLoss(0.3, contrastive=0.25)(outputs, batch)
    assert list(parts) == ["loss", "l1", "rank", "contrastive"]
    assert parts["loss"].item() == pytest.approx(
        0.7 + 0.3 * parts["rank"].item() + 0.25 * expected, rel=1e-5
    )


def test_distillation_is_the_distance_to_the_teachers_scores():
    scores, mos, teacher = (torch.tensor(x) for x in ([10.0, 30], [12.0, 25], [11.0, 34]))
    parts = QualityLoss(distill=2.0)({"scores": scores}, {"mos": mos, "teacher": teacher})
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(
        {"loss": 3.5 + 2 * 2.5, "l1": 3.5, "distill": 2.5}
    )


def test_choices_are_those_of_the_flag():
    assert tuple(LOSSES) == flags.LOSSES
