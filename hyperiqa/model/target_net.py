"""The target network: small, with weights that the hyper network generates for each image."""

import torch
from torch import nn

# Widths from the input vector to the score.
TARGET_SIZES = (224, 112, 56, 28, 14, 1)


class TargetNet(nn.Module):
    """Scores each image with its own weights: four layers linear+sigmoid, and a linear one.

    `weights` holds `target_in_vec` (N, 224, 1, 1), `target_fc{i}w` (N, out, in, 1, 1) and
    `target_fc{i}b` (N, out), i = 1..5. Returns scores (N,) in fp32. dropout: the share of the first
    three layers' outputs that training leaves out.
    """

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        # This is fp32 even under autocast: in bf16, a score of 80 would have steps of 0.5.
        with torch.autocast(weights["target_in_vec"].device.type, enabled=False):
            x = weights["target_in_vec"].float().flatten(1).unsqueeze(2)
            for i in range(1, len(TARGET_SIZES)):
                weight = weights[f"target_fc{i}w"].float().flatten(2)
                bias = weights[f"target_fc{i}b"].float().unsqueeze(2)
                # One matrix product for the whole batch, though each image has its own weights.
                x = torch.baddbmm(bias, weight, x)
                if i <= 4:
                    x = torch.sigmoid(x)
                if i <= 3:
                    x = self.dropout(x)
            return x.flatten()
