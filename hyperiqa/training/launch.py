"""What the train scripts do: check the flags, then train here, or as a job of a cluster."""

from collections.abc import Callable

from hyperiqa.base.cluster import submitted
from hyperiqa.training.flags import Script
from hyperiqa.training.options import train_options


def launch(description: str | None, script: Script, load_solver: Callable[[], type]) -> None:
    """Run a train script.

    description: the text of its `--help`.
    load_solver(): imports the class of the run and returns it.
    """
    options = train_options(None, description, script)
    if submitted(options):
        return
    # These import torch, which takes seconds: a mistake in the flags is reported before.
    from hyperiqa.training import processes

    solver_class = load_solver()
    with processes.process_group():
        solver_class(options).run()
