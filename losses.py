"""Training losses: from the model's outputs and the batch to named parts, `loss` being what is minimised."""

from argparse import Namespace
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor


def ranking_loss(scores: Tensor, mos: Tensor, margin: float) -> Tensor:
    """Pairwise margin ranking loss of a batch.
    scores, mos: (N,). The mean of max(0, margin - sign(mos_i - mos_j) * (scores_i - scores_j)) over the pairs i < j
    with different MOS; 0, still differentiable, where there is no such pair."""
    order = (mos[:, None] - mos[None, :]).sign()
    hinge = F.relu(margin - order * (scores[:, None] - scores[None, :]))
    # The matrix is symmetric with an empty diagonal: both sums count each pair twice. Masking, unlike indexing, keeps
    # the shapes fixed, so that the host need not wait for the device.
    different = order != 0
    return (hinge * different).sum() / different.sum().clamp(min=1)


class QualityLoss:
    """(1 - alpha) * L1 + alpha * ranking loss (`form="convex"`), or L1 + alpha * ranking loss (`"additive"`).
    alpha 0..1, 0 switches ranking off; margin in score units. Called with the model's outputs (`scores` (N,)) and a
    batch that has `mos` (N,); returns `loss` first, then `l1` and, with ranking, `rank`, scalar tensors in fp32."""

    def __init__(self, alpha: float = 0.0, margin: float = 0.5, form: str = "convex"):
        self.alpha, self.margin, self.form = alpha, margin, form
        self.l1_weight = 1.0 - alpha if form == "convex" else 1.0

    def __call__(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores, mos = outputs["scores"].float(), batch["mos"].float()
        l1 = F.l1_loss(scores, mos)
        if not self.alpha:
            return {"loss": l1, "l1": l1}
        rank = ranking_loss(scores, mos, self.margin)
        return {"loss": self.l1_weight * l1 + self.alpha * rank, "l1": l1, "rank": rank}

    def __str__(self) -> str:
        """What the log says of it, "" of plain L1."""
        said = f"Ranking loss enabled: alpha={self.alpha:g}, margin={self.margin:g}, form={self.form}"
        return said if self.alpha else ""


def make_criterion(options: Namespace) -> QualityLoss:
    """The loss that a run's flags ask for."""
    return QualityLoss(options.ranking_loss_alpha, options.ranking_loss_margin, options.ranking_loss_form)
