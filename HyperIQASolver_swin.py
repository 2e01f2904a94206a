"""The solver of Swin Transformer runs, which differ only in the names of runs."""

from hyperiqa.training.options import default_run_name
from HyperIQASolver import HyperIQASolver


class HyperIQASolverSwin(HyperIQASolver):
    """A run of a Swin Transformer; its name says the ranking loss's alpha even where it is 0."""

    def run_name(self) -> str:
        return default_run_name(
            self.options, "swin_tiny_patch4_window7_224", "swin", alpha_too=True
        )
