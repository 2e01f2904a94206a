"""Shards scored as a Ray Data pipeline, by actors that each hold the model.

Ray replaces actors that died. `ShardScorer` does with a shard what it does on one machine.
"""

import argparse
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import hyperiqa
from hyperiqa.base import errors, network, signals
from hyperiqa.scoring import score_run, shards


class Actor:
    """Scores shards. Paths are relative to the folder of the command."""

    def __init__(self, options: argparse.Namespace, folder: str):
        self.options = options
        self.folder = folder
        self.scorer: shards.ShardScorer | None = None

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, list[str]]:
        store = str(batch["item"][0])
        result = {"store": [store], "tally": ["{}"], "problem": [""]}
        # As a result, since Ray shows exceptions with their tracebacks.
        try:
            os.chdir(self.folder)
            self.scorer = self.scorer or shards.ShardScorer(self.options)
            result["tally"] = [json.dumps(asdict(self.scorer.score(store, signals.StopSignals())))]
        except (errors.UserError, OSError) as problem:
            result["problem"] = [errors.reason_of(problem)]
        return result


def score(
    options: argparse.Namespace, stores: Sequence[str]
) -> Iterator[tuple[str, score_run.Tally]]:
    """Score the stores on the cluster of RAY_ADDRESS, else here; yield each with its tally."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # By itself, Ray would join what ran last on this machine, even if it is dead.
    address = os.environ.get("RAY_ADDRESS", "local")
    with errors.reading_file(Path(address), "cannot be reached"):
        network.check_listening(address)
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # The other machines may lack this program.
            runtime_env={"py_modules": [str(Path(hyperiqa.__file__).parent)]},
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    # Of each machine that has any.
    cores = [
        node["Resources"]["CPU"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    ]
    workers = options.engine_workers or len(cores)
    # Ray's own tasks need a tenth of each machine.
    cpus = 0.9 * min(cores) / math.ceil(workers / len(cores))
    options.workers = options.workers or max(1, int(cpus))
    scored = ray.data.from_items(list(stores), override_num_blocks=len(stores)).map_batches(
        Actor,
        fn_constructor_args=(options, str(Path.cwd())),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=cpus,
        num_gpus=options.engine_gpus,
    )
    for row in scored.iter_rows():
        if row["problem"]:
            raise errors.UserError(row["problem"])
        yield row["store"], score_run.Tally(**json.loads(row["tally"]))
