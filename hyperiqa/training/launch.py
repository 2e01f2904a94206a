"""What the train scripts do: check the flags, then train here, or as a job of a cluster."""

import pkgutil
import sys

from hyperiqa.base import cluster, command_line, signals
from hyperiqa.training import flags, options as run_options, read_sets


def launch(description: str | None, script: flags.Script, solver: str) -> None:
    """Run a train script.

    description: the text of its `--help`.
    solver: the class of the run as `MODULE:CLASS`, imported only when it is needed.
    """
    # The hint to go on, jobs and certificates read the words there: they must not need the files.
    sys.argv[1:], recipes = command_line.with_recipes(sys.argv[1:])
    options = run_options.train_options(None, description, script)
    options.recipes = recipes
    if cluster.submitted(options):
        return
    with signals.StopSignals():
        # A mistake in the sets is reported before torch is imported, which takes seconds.
        sets = read_sets.read_sets(options, options.seed)
        from hyperiqa.training import processes

        solver_class = pkgutil.resolve_name(solver)
    with processes.process_group():
        solver_class(options, sets).run()
