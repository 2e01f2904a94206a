"""What the train scripts do: check the flags, then train here, or as a job of a cluster."""

import sys
from collections.abc import Callable

from hyperiqa.base.cluster import submitted
from hyperiqa.base.command_line import with_recipes
from hyperiqa.base.signals import StopSignals
from hyperiqa.training.flags import Script
from hyperiqa.training.options import train_options
from hyperiqa.training.read_sets import read_sets


def launch(description: str | None, script: Script, load_solver: Callable[[], type]) -> None:
    """Run a train script.

    description: the text of its `--help`.
    load_solver(): imports the class of the run and returns it.
    """
    # The hint to go on, jobs and certificates read the words there: they must not need the files.
    sys.argv[1:], recipes = with_recipes(sys.argv[1:])
    options = train_options(None, description, script)
    options.recipes = recipes
    if submitted(options):
        return
    with StopSignals():
        # A mistake in the sets is reported before torch is imported, which takes seconds.
        sets = read_sets(options, options.seed)
        from hyperiqa.training import processes

        solver_class = load_solver()
    with processes.process_group():
        solver_class(options, sets).run()
