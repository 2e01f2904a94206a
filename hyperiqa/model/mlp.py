"""A multilayer perceptron on the encoder's pooled features, in place of the hyper network.

The layers are those of the baseline head of AGM (Yadav, github.com/drkkgy/NR_IQA_AGM), which
reports high correlations on KonIQ-10k with SigLIP 2: two hidden layers of 512 with ReLU.
"""

import torch
from torch import nn

from hyperiqa.base.errors import UserError
from hyperiqa.model.backbone import Backbone
from hyperiqa.model.fusion import StageMaps, pool_to, stage_map
from hyperiqa.model.hypernet import QualityNet

# What the head reads: (stage, side) of averaged stage maps. Number 4 is the class token.
POOLS = {"token": ((4, 1),), "mean": ((3, 1),), "both": ((4, 1), (3, 1))}


class MlpNet(QualityNet):
    """Pooled features -> layer norm -> two hidden layers -> score.

    The `features` are the class token, or the mean of the last stage map, or both, (N, C) or
    (N, 2C). Of a plain transformer they come from behind its final norm. A pyramid gives its last
    stage as it is. The layer norm brings the features of every encoder to one scale.

    pool: one of POOLS; None stands for the class token where the encoder has one, else the mean.
    dropout: the share of each hidden layer's outputs that training leaves out.

    Raises UserError if the encoder has no class token to read.
    """

    choices = ("pool",)
    last_layer = ("head.7",)

    def __init__(self, backbone: Backbone, pool: str | None = None, dropout: float = 0.0):
        pool = pool or ("token" if backbone.has_token else "mean")
        super().__init__(backbone, POOLS[pool])
        self.pool = pool
        backbone.gives_token = self.pool != "mean"
        if backbone.gives_token and not backbone.has_token:
            raise UserError(f"--pool {pool}: the encoder gives no class token; expected mean")
        # The LDA makes the input of a target network.
        for name in [name for name, _ in backbone.named_children() if name.startswith("lda")]:
            delattr(backbone, name)
        features = sum(self.pools.values())
        self.head = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, 1),
        )

    def forward(self, images: torch.Tensor | StageMaps) -> dict[str, torch.Tensor]:
        maps = self.stage_maps(images)
        features = torch.cat(
            [pool_to(stage_map(maps, *pool), 1).flatten(1) for pool in self.pools], 1
        )
        # In bf16, a score of 80 would have steps of 0.5.
        with torch.autocast(features.device.type, enabled=False):
            return {"scores": self.head(features.float()).flatten(), "features": features}
