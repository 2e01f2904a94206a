"""The solver of Swin Transformer runs: how its backbones go by name in a run's name."""

from HyperIQASolver import HyperIQASolver


class HyperIQASolverSwin(HyperIQASolver):
    default_backbone, default_name = "swin_tiny_patch4_window7_224", "swin"
    always_names_alpha = True
