"""The solver of Swin Transformer runs: how its backbones go by name in a run's name."""

from HyperIQASolver import HyperIQASolver


class HyperIQASolverSwin(HyperIQASolver):
    """A run of a Swin Transformer; its name says the ranking loss's alpha even where it is 0."""

    default_backbone = "swin_tiny_patch4_window7_224"
    default_name = "swin"
    always_names_alpha = True
