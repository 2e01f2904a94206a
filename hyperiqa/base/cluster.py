"""Commands as jobs of a cluster, through submitit: Slurm, or this machine in its place, to try it.

On the signal that comes before the time limit, or before another job takes the place, the command is asked to stop,
which it does with its state saved, and the job is queued again with `--resume auto`."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperiqa.base.command_line import POSITIVE, Flags, without_flags
from hyperiqa.base.errors import UserError, reason_of

LAUNCHERS = ("slurm", "local")
OWN = ("--launcher", "--nodes", "--gpus_per_node", "--time", "--slurm")
SETTINGS = tuple(flag.lstrip("-") for flag in OWN)
SIGNAL_SECONDS = 180  # before the time limit; a state takes seconds to write


def cluster_flags(flags: Flags) -> None:
    """The flags of the programs that start jobs."""
    flags.group("cluster")
    flags.value(
        "--launcher",
        None,
        "run as a job of slurm, or local: as one of this machine",
        choices=LAUNCHERS,
    )
    flags.count("--nodes", 1, "machines of a job")
    flags.count("--gpus_per_node", 1, "GPUs of each, with a process for each", most=64)
    flags.real("--time", 24, "hours until a job is stopped, saved, and queued again", POSITIVE)
    flags.value(
        "--slurm",
        [],
        "what else the cluster asks for, such as partition=gpu account=iqa mem=64G",
        nargs="+",
        metavar="KEY=VALUE",
    )
    flags.checks.append(_problem)


def _problem(options: Namespace) -> str | None:
    if wrong := [word for word in options.slurm if "=" not in word]:
        return f"--slurm {wrong[0]}: expected KEY=VALUE"
    if options.launcher == "local" and options.nodes > 1:
        return f"--nodes {options.nodes}: this machine is one"
    return None


@dataclass
class Command:
    """A program's words; called by each process of a job, and asked by submitit for what is to be queued next."""

    words: list[str]
    again: bool = False

    def __call__(self) -> None:
        import submitit

        environment = submitit.JobEnvironment()
        if environment.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(
                set_cuda_visible_devices=False, overwrite=True
            )
        again = self.again or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        words = [
            *self.words,
            *(["--resume", "auto"] if again and "--resume" not in self.words else []),
        ]
        # The cluster's signal may reach the program too, which would end of it; a child inherits what is ignored.
        warning = environment._usr_sig()
        before = signal.signal(warning, signal.SIG_IGN)
        self.process = subprocess.Popen([sys.executable, "-u", *words])
        signal.signal(warning, before)
        while (
            code := self.process.poll()
        ) is None:  # not wait(): in the middle of it `checkpoint` could not wait too
            time.sleep(0.2)
        if code not in (0, 128 + signal.SIGTERM):
            raise RuntimeError(f"exit code {code}: {shlex.join(words)}")

    def checkpoint(self) -> Any:
        import submitit

        self.process.terminate()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process.pid, 0)
        return submitit.helpers.DelayedSubmission(Command(self.words, again=True))

    def __getstate__(self) -> dict[str, Any]:
        return {"words": self.words, "again": self.again}


class Submitted:
    """A job that was submitted, as a process that was started: `poll` gives its exit code, None as long as it runs."""

    def __init__(self, job: Any):
        self.job, self.output = job, Path(job.paths.stderr)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and self.job.done():
            self.returncode = 0 if self.job.exception() is None else 1
        return self.returncode

    def cancel(self) -> None:
        self.job.cancel(check=False)


class Cluster:
    """Where jobs go, as the flags say. Raises UserError where there is no such place."""

    def __init__(self, options: Namespace, folder: Path):
        try:
            import cloudpickle
            import submitit
        except ImportError:
            raise UserError(f"--launcher {options.launcher}: pip install submitit") from None
        self.options = options
        cloudpickle.register_pickle_by_value(
            sys.modules[__name__]
        )  # a job may begin in another folder
        try:
            self.executor: Any = submitit.AutoExecutor(folder, cluster=options.launcher)
        except RuntimeError as problem:
            raise UserError(f"--launcher {options.launcher}: {reason_of(problem)}") from None
        self.executor.update_parameters(
            nodes=options.nodes,
            tasks_per_node=options.gpus_per_node,
            gpus_per_node=options.gpus_per_node,
            timeout_min=max(1, round(60 * options.time)),
            slurm_signal_delay_s=SIGNAL_SECONDS,
            slurm_additional_parameters={
                "requeue": True,
                **dict(word.split("=", 1) for word in options.slurm),
            },
        )

    def submit(self, name: str, words: Sequence[str]) -> Submitted:
        """A job that runs the script's words. Raises UserError."""
        self.executor.update_parameters(name=name)
        try:
            return Submitted(self.executor.submit(Command(list(words))))
        except (OSError, RuntimeError) as problem:
            raise UserError(f"--launcher {self.options.launcher}: {reason_of(problem)}") from None


def submitted(options: Namespace) -> bool:
    """Whether the program's flags ask for a job, which is then submitted, and said where it writes."""
    if options.launcher is None:
        return False
    name, words = options.run_name or Path(sys.argv[0]).stem, without_flags(sys.argv, *OWN)
    job = Cluster(options, options.log_dir / "jobs").submit(name, words).job
    print(f"Job {job.job_id}: what it says goes to {job.paths.stdout} and {job.paths.stderr.name}")
    return True
