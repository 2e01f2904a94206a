"""Training losses: from the model's outputs and the batch to named parts, `loss` being what is minimised.
`LOSSES` are what a score is fitted to its MOS by: functions of scores and MOS (N,), in score units, to a scalar."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

SOFT_RANK = (
    0.1  # width of a step from one rank to the next, in standard deviations of the batch's MOS
)
CONTRAST_TEMPERATURE = 2.0  # as in Rank-N-Contrast's paper


def ranking_loss(scores: Tensor, mos: Tensor, margin: float) -> Tensor:
    """The mean of max(0, margin - sign(mos_i - mos_j) * (scores_i - scores_j)) over the pairs i < j of scores and MOS
    (N,) with different MOS; 0, still differentiable, where there is no such pair."""
    order = (mos[:, None] - mos[None, :]).sign()
    hinge = F.relu(margin - order * (scores[:, None] - scores[None, :]))
    # Both sums count each pair twice. Masking, unlike indexing, keeps shapes fixed: the host need not wait for them.
    different = order != 0
    return (hinge * different).sum() / different.sum().clamp(min=1)


def plcc_loss(scores: Tensor, mos: Tensor) -> Tensor:
    """(1 - PLCC) / 2, from 0 to 1; 1/2 where the PLCC is undefined. Scores are determined up to a linear map alone."""
    return (1 - F.cosine_similarity(scores - scores.mean(), mos - mos.mean(), dim=0)) / 2


def srcc_loss(scores: Tensor, mos: Tensor) -> Tensor:
    """(1 - SRCC) / 2 with soft ranks of the scores: rank_i = 1/2 + sum_j sigmoid((s_i - s_j) / t). Qin, Liu & Li, "A
    general approximation framework for direct optimization of information retrieval measures", Information Retrieval
    2010, equation 9; t is `SOFT_RANK` standard deviations of the MOS. Ranks are exact as t falls, ties averaged."""
    step = (SOFT_RANK * mos.std(correction=0)).clamp(min=torch.finfo(mos.dtype).tiny)
    ranks = torch.sigmoid((scores[:, None] - scores[None, :]) / step).sum(1)
    return plcc_loss(ranks, (mos[:, None] - mos[None, :]).sign().sum(1))


def fidelity_loss(scores: Tensor, mos: Tensor) -> Tensor:
    """1 - sqrt(p q) - sqrt((1 - p) (1 - q)), from 0 to 1, averaged over all pairs. Tsai et al., "FRank: a ranking
    method with fidelity loss", SIGIR 2007, equation 6. p and q are the probabilities that the first image is preferred,
    by the MOS and by the scores: Thurstone's (1927, case V), the normal distribution of the difference over sqrt(2)
    sigma, sigma being the standard deviation of the batch's MOS. 0, still differentiable, where all MOS are equal."""
    sigma = mos.std(correction=0)
    scale = 2**0.5 * torch.where(sigma > 0, sigma, 1)
    # In logarithms: a square root of a probability that underflows has no gradient.
    d, e = ((x[:, None] - x[None, :]) / scale for x in (mos, scores))
    both = [
        torch.exp((torch.special.log_ndtr(sign * d) + torch.special.log_ndtr(sign * e)) / 2)
        for sign in (1, -1)
    ]
    pairs = (1 - both[0] - both[1]).triu(1).sum() / max(len(mos) * (len(mos) - 1) // 2, 1)
    return pairs * (sigma > 0)


def rank_n_contrast(features: Tensor, mos: Tensor) -> Tensor:
    """Zha et al., "Rank-N-Contrast: learning continuous representations for regression", NeurIPS 2023, equation 2.
    features (N, C), mos (N,). For each anchor i and other image j: j is to be closer to i than all images k whose MOS
    lie at least as far from i's, by the softmax of -|v_i - v_k| / t over these k. Takes N^3 floats; 0 for one image."""
    n, distance = len(mos), (mos[:, None] - mos[None, :]).abs()
    others = ~torch.eye(n, dtype=torch.bool, device=mos.device)
    likeness = (
        -torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        / CONTRAST_TEMPERATURE
    )
    farther = (distance[:, None, :] >= distance[:, :, None]) & others[:, None, :]
    # Finite, not infinite, where nothing is farther: there is no other image then, and nothing is summed.
    among = torch.where(farther, likeness[:, None, :], torch.finfo(likeness.dtype).min).logsumexp(2)
    return ((among - likeness) * others).sum() / max(n * (n - 1), 1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
    "plcc": plcc_loss,
    "srcc": srcc_loss,
    "fidelity": fidelity_loss,
}
SCALELESS = ("plcc", "srcc")  # losses that any rising linear map of the scores leaves as they are
COMPARING = (*SCALELESS, "fidelity")  # losses that compare images, which must be of one data set


def within_sets(
    loss: Callable[[Tensor, Tensor], Tensor], found: Tensor, mos: Tensor, sets: Tensor | None
) -> Tensor:
    """A loss of what the model found (N, …) and the MOS (N,), taken within each data set alone: the mean over the
    sets by their patches. sets: the number of each patch's set (N,); None: all are of one."""
    if sets is None:
        return loss(found, mos)
    own = [sets == number for number in sets.unique()]
    return torch.stack([loss(found[each], mos[each]) * each.sum() for each in own]).sum() / len(mos)


class QualityLoss:
    """(1 - alpha) * fit + alpha * ranking loss (`form="convex"`), or fit + alpha * ranking loss (`"additive"`), fit
    being one of `LOSSES`; plus `contrastive` times Rank-N-Contrast, and `distill` times the L1 distance to a teacher's
    scores. alpha 0..1; a weight of 0 switches its part off; margin in score units. Called with the model's outputs
    (`scores` (N,), `features` (N, C)) and a batch that has `mos` (N,), `set` (N,) where its images are of several data
    sets, which are compared within their own alone, and `teacher` (N,) for distillation; returns
    `loss` first, then its parts (`l1`; `rank`, `contrastive`, `distill`), scalar tensors in fp32."""

    def __init__(
        self,
        alpha: float = 0.0,
        margin: float = 0.5,
        form: str = "convex",
        fit: str = "l1",
        contrastive: float = 0.0,
        distill: float = 0.0,
    ):
        self.alpha, self.margin, self.form, self.fit = alpha, margin, form, fit
        self.contrastive, self.distill = contrastive, distill
        self.part = (
            f"{fit}_loss" if fit in ("plcc", "srcc") else fit
        )  # a part must not be called like a figure

    def __call__(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        scores, mos, sets = outputs["scores"].float(), batch["mos"].float(), batch.get("set")
        loss = fit = within_sets(
            LOSSES[self.fit], scores, mos, sets if self.fit in COMPARING else None
        )
        parts = {self.part: fit}
        if self.alpha:
            parts["rank"] = within_sets(
                partial(ranking_loss, margin=self.margin), scores, mos, sets
            )
            loss = (1.0 - self.alpha if self.form == "convex" else 1.0) * fit + self.alpha * parts[
                "rank"
            ]
        if self.contrastive:
            parts["contrastive"] = within_sets(
                rank_n_contrast, outputs["features"].float(), mos, sets
            )
            loss = loss + self.contrastive * parts["contrastive"]
        if self.distill:
            parts["distill"] = F.l1_loss(scores, batch["teacher"].float())
            loss = loss + self.distill * parts["distill"]
        return {"loss": loss, **parts}

    def __str__(self) -> str:
        """What the log says of it, "" of plain L1."""
        said = {
            f"Loss: {self.fit}": self.fit != "l1",
            "Its scores are on no scale: it compares images alone": self.fit in SCALELESS,
            f"Ranking loss enabled: alpha={self.alpha:g}, margin={self.margin:g}, form={self.form}": self.alpha,
            f"Rank-N-Contrast on the features: weight {self.contrastive:g}": self.contrastive,
            f"Distillation: weight {self.distill:g} on the distance to the teacher's scores": self.distill,
        }
        return "\n".join(line for line, so in said.items() if so)


def make_criterion(options: Namespace) -> QualityLoss:
    """The loss that a run's flags ask for."""
    ranking = options.ranking_loss_alpha, options.ranking_loss_margin, options.ranking_loss_form
    distill = options.distill_weight if options.teacher else 0.0
    return QualityLoss(*ranking, options.loss, options.contrastive_weight, distill)
