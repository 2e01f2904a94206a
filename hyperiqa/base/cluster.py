"""Commands as jobs of a cluster, through submitit: on Slurm, or on this machine to try it.

A cluster sends a signal before the time limit, or before another job takes the place. The command
is then asked to stop, which it does with its state saved, and the job is queued again with
`--resume auto`.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperiqa.base import command_line, errors

# The flags of `cluster_flags`, which a job must not pass on to the command that it runs.
OWN = ("--launcher", "--nodes", "--gpus_per_node", "--time", "--slurm")


def cluster_flags(flags: command_line.Flags) -> None:
    """Add the flags of the programs that start jobs."""
    flags.group("cluster")
    flags.value(
        "--launcher",
        None,
        "run the command as a job: on a Slurm cluster, or on this machine to try it",
        choices=("slurm", "local"),
    )
    flags.count("--nodes", 1, "machines for a job")
    flags.count("--gpus_per_node", 1, "GPUs of each machine, with one process for each", most=64)
    flags.real(
        "--time", 24, "hours after which a job is stopped and queued again", command_line.POSITIVE
    )
    flags.value(
        "--slurm",
        [],
        "further options of the cluster, such as partition=gpu account=iqa mem=64G",
        nargs="+",
        metavar="KEY=VALUE",
    )
    flags.checks.append(_mistake)


def _mistake(options: Namespace) -> str | None:
    for word in options.slurm:
        if "=" not in word:
            return f"--slurm {word}: expected KEY=VALUE"
    if options.launcher == "local" and options.nodes > 1:
        return f"--nodes {options.nodes}: expected 1 with --launcher local, which is this machine"
    return None


@dataclass
class Command:
    """The command of a job: each of the job's processes calls it.

    words: the script and its flags.
    requeued: whether an earlier job of the same command was stopped, so that this one resumes.
    follows: the number of the process with which a job of this machine ends; None: with none.

    Before the job must end, submitit calls `checkpoint` for the command to queue next.
    """

    words: list[str]
    requeued: bool = False
    follows: int | None = None

    def __call__(self) -> None:
        import submitit

        environment = submitit.JobEnvironment()
        if environment.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(
                set_cuda_visible_devices=False, overwrite=True
            )
        words = list(self.words)
        # Slurm itself queues a job again when a node fails, without a call of `checkpoint`.
        restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        if (self.requeued or restarted) and "--resume" not in words:
            words += ["--resume", "auto"]
        # The cluster's signal may reach the program too, and would kill it. A child process
        # inherits that a signal is ignored.
        warning = environment._usr_sig()
        previous_handler = signal.signal(warning, signal.SIG_IGN)
        self.process = subprocess.Popen([sys.executable, "-u", *words])
        signal.signal(warning, previous_handler)
        # Not wait(): a signal handler that calls `checkpoint` in the middle of it could not wait.
        while self.process.poll() is None:
            time.sleep(0.2)
            if self.follows is not None:
                try:
                    os.kill(self.follows, 0)
                except ProcessLookupError:
                    self.process.send_signal(signal.SIGINT)
                    self.follows = None
        exit_code = self.process.returncode
        if exit_code not in (0, 128 + signal.SIGTERM):
            raise RuntimeError(f"exit code {exit_code}: {shlex.join(words)}")

    def checkpoint(self) -> Any:
        """Stop the program, which saves its state, and return the submission that resumes it."""
        import submitit

        self.process.terminate()
        # The loop of `__call__` may have taken the exit code just before.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process.pid, 0)
        return submitit.helpers.DelayedSubmission(Command(self.words, True, self.follows))


class Submitted:
    """A submitted job with the interface of subprocess.Popen: `poll` and `returncode`.

    output: the file of the job's stderr.
    """

    def __init__(self, job: Any):
        self.job = job
        self.output = Path(job.paths.stderr)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, 0 or 1; None while the job waits or runs."""
        if self.returncode is None and self.job.done():
            self.returncode = 0 if self.job.exception() is None else 1
        return self.returncode

    def cancel(self) -> None:
        self.job.cancel(check=False)


class Cluster:
    """The place that jobs are submitted to, chosen by `--launcher`.

    folder: where the jobs' files go. waits: whether this process waits for the jobs: those of this
    machine then end with it. Raises UserError where there is no such cluster here.
    """

    def __init__(self, options: Namespace, folder: Path, waits: bool = False):
        try:
            import cloudpickle
            import submitit
        except ImportError:
            raise errors.UserError(f"--launcher {options.launcher}: pip install submitit") from None
        self.options = options
        self.follows = os.getpid() if waits and options.launcher == "local" else None
        # A job may begin in another folder, where it could not import this module.
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        try:
            self.executor: Any = submitit.AutoExecutor(folder, cluster=options.launcher)
        except RuntimeError as problem:
            raise errors.UserError(
                f"--launcher {options.launcher}: {errors.reason_of(problem)}"
            ) from None
        self.executor.update_parameters(
            nodes=options.nodes,
            tasks_per_node=options.gpus_per_node,
            gpus_per_node=options.gpus_per_node,
            timeout_min=max(1, round(60 * options.time)),
            # How long before the time limit the signal comes; to write a state takes seconds.
            slurm_signal_delay_s=180,
            slurm_additional_parameters={
                "requeue": True,
                **dict(word.split("=", 1) for word in options.slurm),
            },
        )

    def submit(self, name: str, words: list[str]) -> Submitted:
        """Submit a job that runs the script with its flags. Raises UserError."""
        self.executor.update_parameters(name=name)
        try:
            return Submitted(self.executor.submit(Command(words, follows=self.follows)))
        except (OSError, RuntimeError) as problem:
            raise errors.UserError(
                f"--launcher {self.options.launcher}: {errors.reason_of(problem)}"
            ) from None


def submitted(options: Namespace) -> bool:
    """Submit this process's command as a job where the flags ask for one.

    Prints where the job writes its output, and returns whether a job was submitted.
    """
    if options.launcher is None:
        return False
    cluster = Cluster(options, options.log_dir / "jobs")
    job = cluster.submit(
        options.run_name or Path(sys.argv[0]).stem, command_line.without_flags(sys.argv, *OWN)
    ).job
    print(f"Job {job.job_id} writes its output to {job.paths.stdout} and {job.paths.stderr.name}")
    return True
