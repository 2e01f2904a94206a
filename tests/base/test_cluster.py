"""Jobs of a cluster, by submitit's executor for this machine."""

import os
import signal
import time
from argparse import Namespace
from pathlib import Path

import pytest
from helpers import write_koniq
from processes import ROOT, assert_same_but_for_stops, results

from hyperiqa.base.cluster import OWN, Cluster, cluster_flags
from hyperiqa.base.command_line import Flags, without_flags
from hyperiqa.base.errors import UserError

pytest.importorskip("submitit")


def options_of(*words) -> Namespace:
    flags = Flags("test")
    cluster_flags(flags)
    return flags.parse([str(word) for word in words])


def test_a_job_runs_the_command_without_the_flags_of_the_cluster():
    words = [
        "train.py",
        "--launcher",
        "slurm",
        "--epochs",
        "3",
        "--nodes=2",
        "--slurm",
        "mem=4G",
        "account=a",
        "--lr",
        "1",
        "--time",
        "2",
    ]
    assert without_flags(words, *OWN) == ["train.py", "--epochs", "3", "--lr", "1"]
    assert without_flags(["train.py", "--slurm", "a=b"], *OWN) == ["train.py"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slurm", "gpu"], "--slurm gpu: expected KEY=VALUE"),
        (["--launcher", "local", "--nodes", 2], "--nodes 2: expected 1 with --launcher local"),
        (["--time", 0], "--time 0.0: expected a number above 0"),
    ],
)
def test_flags_that_make_no_job(words, said):
    with pytest.raises(UserError, match=said):
        options_of(*words)


def test_a_cluster_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match='--launcher slurm: .*"srun"'):
        Cluster(options_of("--launcher", "slurm"), tmp_path)


def test_what_slurm_is_asked_for(tmp_path, monkeypatch):
    """Its own text of a job, read back: what `sbatch` would be given."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--nodes", 2, "--gpus_per_node", 8, "--time", 1.5, "--slurm", "account=iqa", "mem=64G"]
    cluster = Cluster(options_of("--launcher", "slurm", *words), tmp_path / "jobs")
    text = cluster.executor._executor._make_submission_file_text("command", "uid").splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in text if line.startswith("#SBATCH")}
    assert {
        "nodes=2",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "time=90",
        "account=iqa",
        "mem=64G",
        "requeue",
        "signal=USR2@180",
        "open-mode=append",
    } <= asked


def test_a_job_that_is_preempted_goes_on_and_ends_as_if_it_had_not_been(tmp_path, launcher):
    """Two processes of a job are warned within an epoch: the state is saved, the job is queued again, and finishes."""
    write_koniq(tmp_path / "koniq", 13, 6)

    def command(folder, *more):
        return [
            "--dataset_path",
            tmp_path / "koniq",
            *"--no_spaq --no_pretrained --patch_size 64 --resize 72".split(),
            *"--train_patch_num 3 --batch_size 6 --epochs 4 --precision fp32".split(),
            *"--backbone resnet18".split(),
            "--log_dir",
            folder / "logs",
            "--checkpoint_dir",
            folder / "ck",
            "--cache_dir",
            tmp_path / "cache",
            "--run_name",
            "r",
            *more,
        ]

    assert launcher.run("train_resnet.py", command(tmp_path / "whole"), world=2)[0] == [0, 0]
    folder = tmp_path / "stopped"
    cluster = Cluster(
        options_of("--launcher", "local", "--gpus_per_node", 2, "--time", 0.2),
        folder / "logs" / "jobs",
    )
    job = cluster.submit(
        "r", [str(word) for word in (ROOT / "train_resnet.py", *command(folder))]
    ).job

    def wait_for(so, seconds=600):
        end = time.monotonic() + seconds
        while not so():
            assert time.monotonic() < end, (job.stdout(), job.stderr())
            time.sleep(0.05)

    log = folder / "logs" / "r.log"
    wait_for(lambda: log.exists() and "New best model" in log.read_text())
    # To each task, as Slurm does.
    for task in Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split():
        os.kill(int(task), signal.SIGUSR2)
    wait_for(job.paths.result_pickle.exists)
    job.wait()
    assert job.exception() is None
    said = Path(job.paths.stdout).read_text()
    assert (
        "this job is preempted" in Path(job.paths.stderr).read_text() + said
        and "Resuming r: round 1, epoch" in said
    )
    assert_same_but_for_stops(results(folder), results(tmp_path / "whole"))
