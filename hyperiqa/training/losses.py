"""Training losses: from the outputs and the batch to named parts; `loss` is what is minimised.

`LOSSES` are the losses that fit a score to its MOS: functions of scores and MOS (N,), in score
units, to a scalar.
"""

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.special import log_ndtr

# Width of a step from one rank to the next, in standard deviations of the batch's MOS.
SOFT_RANK = 0.1


def ranking_loss(scores: Tensor, mos: Tensor, margin: float) -> Tensor:
    """The mean of max(0, margin - sign(mos_i - mos_j) * (scores_i - scores_j)).

    It is taken over the pairs i < j of scores and MOS (N,) with different MOS; 0, still
    differentiable, where there is no such pair.
    """
    order = (mos[:, None] - mos[None, :]).sign()
    hinge = F.relu(margin - order * (scores[:, None] - scores[None, :]))
    # Both sums count each pair twice. Masking, unlike indexing, keeps shapes fixed: the host need
    # not wait for them.
    different = order != 0
    return (hinge * different).sum() / different.sum().clamp(min=1)


def plcc_loss(scores: Tensor, mos: Tensor) -> Tensor:
    """(1 - PLCC) / 2, from 0 to 1; 1/2 where the PLCC is undefined.

    It determines the scores up to a linear map only.
    """
    return (1 - F.cosine_similarity(scores - scores.mean(), mos - mos.mean(), dim=0)) / 2


def srcc_loss(scores: Tensor, mos: Tensor) -> Tensor:
    """(1 - SRCC) / 2 with soft ranks of the scores: rank_i = 1/2 + sum_j sigmoid((s_i - s_j) / t).

    Qin, Liu & Li, "A general approximation framework for direct optimization of information
    retrieval measures", Information Retrieval 2010, equation 9; t is `SOFT_RANK` standard
    deviations of the MOS. Ranks are exact as t falls, ties averaged.
    """
    step = (SOFT_RANK * mos.std(correction=0)).clamp(min=torch.finfo(mos.dtype).tiny)
    # Constants such as the 1/2 are left out: a PLCC does not see them.
    ranks = torch.sigmoid((scores[:, None] - scores[None, :]) / step).sum(1)
    return plcc_loss(ranks, (mos[:, None] - mos[None, :]).sign().sum(1))


def fidelity_loss(scores: Tensor, mos: Tensor, sigma: Tensor | None = None) -> Tensor:
    """1 - sqrt(p q) - sqrt((1 - p) (1 - q)), from 0 to 1, averaged over all pairs.

    Tsai et al., "FRank: a ranking method with fidelity loss", SIGIR 2007, equation 6. p and q are
    the probabilities that the first image is preferred, by the MOS and by the scores. They are
    Thurstone's (1927): the normal distribution of the difference over its standard deviation. 0,
    still differentiable, where all MOS are equal.

    sigma: the standard deviation of the opinions of each image (N,), above 0. The difference of two
    has the variance sigma_i^2 + sigma_j^2 (Zhang et al., "Uncertainty-aware blind image quality
    assessment in the laboratory and wild", IEEE TIP 2021; there the model has a sigma of its own,
    here that of the opinions serves the scores too). None: the standard deviation of the batch's
    MOS for all images (case V).
    """
    spread = mos.std(correction=0)
    scale = 2**0.5 * torch.where(spread > 0, spread, 1)
    if sigma is not None:
        scale = torch.hypot(sigma[:, None], sigma[None, :])
    mos_difference = (mos[:, None] - mos[None, :]) / scale
    score_difference = (scores[:, None] - scores[None, :]) / scale
    # In logarithms: a square root of a probability that underflows has no gradient.
    root_pq = torch.exp((log_ndtr(mos_difference) + log_ndtr(score_difference)) / 2)
    root_rest = torch.exp((log_ndtr(-mos_difference) + log_ndtr(-score_difference)) / 2)
    pairs = (1 - root_pq - root_rest).triu(1).sum() / max(len(mos) * (len(mos) - 1) // 2, 1)
    return pairs * (spread > 0)


def rank_n_contrast(features: Tensor, mos: Tensor) -> Tensor:
    """The Rank-N-Contrast loss of features (N, C) and MOS (N,).

    Zha et al., "Rank-N-Contrast: learning continuous representations for regression", NeurIPS 2023,
    equation 2. For each anchor i and other image j: j is to be closer to i than all images k whose
    MOS lie at least as far from i's, by the softmax of -|v_i - v_k| / t over these k. Takes N^3
    floats; 0 for one image.
    """
    n = len(mos)
    mos_distance = (mos[:, None] - mos[None, :]).abs()
    is_pair = ~torch.eye(n, dtype=torch.bool, device=mos.device)
    # Matrix products would be faster, but too coarse for features that nearly agree.
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    # The paper's temperature t is 2.
    likeness = -distance / 2
    # (i, j, k): whether k lies at least as far from i as j does.
    farther = (mos_distance[:, None, :] >= mos_distance[:, :, None]) & is_pair[:, None, :]
    # Finite, not infinite, where nothing is farther: there is no other image then, and nothing is
    # summed.
    among = torch.where(farther, likeness[:, None, :], torch.finfo(likeness.dtype).min).logsumexp(2)
    return ((among - likeness) * is_pair).sum() / max(n * (n - 1), 1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "l1": F.l1_loss,
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
    "plcc": plcc_loss,
    "srcc": srcc_loss,
    "fidelity": fidelity_loss,
}
# Losses that no rising linear map of the scores changes.
SCALELESS = ("plcc", "srcc")


def within_sets(loss: Callable[..., Tensor], sets: Tensor | None, *values: Tensor) -> Tensor:
    """A loss of values (N, …), such as the model's outputs and the MOS, within each data set.

    Returns the mean over the sets, weighted by their numbers of patches. sets: the number of each
    patch's set (N,); None: all patches are of one set.
    """
    if sets is None:
        return loss(*values)
    masks = [sets == number for number in sets.unique()]
    sums = [loss(*(value[mask] for value in values)) * mask.sum() for mask in masks]
    return torch.stack(sums).sum() / len(sets)


@dataclass(frozen=True)
class QualityLoss:
    """The training loss: a fit to the MOS, and up to three further parts.

    `form="convex"`: (1 - alpha) * fit + alpha * ranking loss; `"additive"`: fit + alpha * ranking
    loss. The fit is one of `LOSSES`. `contrastive` times Rank-N-Contrast and `distill` times the L1
    distance to a teacher's scores are added. A weight of 0 switches its part off. alpha is from 0
    to 1; the margin is in score units.

    It is called with the model's outputs (`scores` (N,), `features` (N, C)) and a batch that has
    `mos` (N,). Where the images are of several data sets, the batch also has `set` (N,), and images
    are compared only within their set; for distillation it has `teacher` (N,), and for the
    fidelity loss by votes `sigma` (N,). The result is `loss`, then the parts (`l1`; `rank`,
    `contrastive`, `distill`), as scalar tensors in fp32.
    """

    alpha: float = 0.0
    margin: float = 0.5
    form: str = "convex"
    fit: str = "l1"
    contrastive: float = 0.0
    distill: float = 0.0

    def __call__(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        scores = outputs["scores"].float()
        mos = batch["mos"].float()
        sets = batch.get("set")
        # These losses compare images, which must be of one data set.
        compared = sets if self.fit in (*SCALELESS, "fidelity") else None
        spreads = [batch["sigma"].float()] if "sigma" in batch else []
        fit = within_sets(LOSSES[self.fit], compared, scores, mos, *spreads)
        loss = fit
        # A part must not be called like a figure.
        parts = {f"{self.fit}_loss" if self.fit in SCALELESS else self.fit: fit}
        if self.alpha:
            parts["rank"] = within_sets(
                partial(ranking_loss, margin=self.margin), sets, scores, mos
            )
            fit_weight = 1.0 - self.alpha if self.form == "convex" else 1.0
            loss = fit_weight * fit + self.alpha * parts["rank"]
        if self.contrastive:
            parts["contrastive"] = within_sets(
                rank_n_contrast, sets, outputs["features"].float(), mos
            )
            loss = loss + self.contrastive * parts["contrastive"]
        if self.distill:
            parts["distill"] = F.l1_loss(scores, batch["teacher"].float())
            loss = loss + self.distill * parts["distill"]
        return {"loss": loss, **parts}

    def __str__(self) -> str:
        """What the log says of the loss; "" for plain L1."""
        scaleless = "This loss leaves the scale of the scores open: it only compares images"
        ranking = f"alpha={self.alpha:g}, margin={self.margin:g}, form={self.form}"
        distance = "on the distance to the teacher's scores"
        lines = [
            (self.fit != "l1", f"Loss: {self.fit}"),
            (self.fit in SCALELESS, scaleless),
            (self.alpha, f"Ranking loss enabled: {ranking}"),
            (self.contrastive, f"Rank-N-Contrast on the features: weight {self.contrastive:g}"),
            (self.distill, f"Distillation: weight {self.distill:g} {distance}"),
        ]
        return "\n".join(line for is_said, line in lines if is_said)


def make_criterion(options: Namespace) -> QualityLoss:
    """The loss that a run's flags describe."""
    return QualityLoss(
        alpha=options.ranking_loss_alpha,
        margin=options.ranking_loss_margin,
        form=options.ranking_loss_form,
        fit=options.loss,
        contrastive=options.contrastive_weight,
        distill=options.distill_weight if options.teacher else 0.0,
    )
