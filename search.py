"""Search a grid of settings: one training run per combination, and at the end the table, best setting first.

python search.py train_swin.py --ranking_loss_alpha 0.1 0.3 0.5 --ranking_loss_margin 0.3 0.5 -- --epochs 5
python search.py train_swin.py --lr 1e-5 2e-5 --seeds 3 --jobs 2 --gpus 0,1 -- --dataset koniq-10k
python search.py train_swin.py --lr 1e-5 2e-5 --launcher slurm --gpus_per_node 4 --time 8 -- --dataset koniq-10k
python search.py --each train_timm.py --loss l1 mse plcc --ema 0 0.99 --augment hflip "hflip blur" -- --epochs 5

Any flag of the training script with several values is searched; what follows `--` goes to every run. --each changes
one flag at a time. The same command goes on after an interruption; on several machines it shares the work."""

import argparse
import hashlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from hyperiqa.base import cluster
from hyperiqa.base.cluster import Cluster, Submitted, cluster_flags
from hyperiqa.base.command_line import Flags, Given, run_tool, without_flags
from hyperiqa.base.errors import UserError
from hyperiqa.base.launching import end_programs, last_error, start_program
from hyperiqa.runs import measures, reading, runs_table, tables
from hyperiqa.runs.entries import Entry
from hyperiqa.runs.measures import FIGURE, Measure

OWN = (*"--each --jobs --gpus --seeds --log_dir --metric --dry_run --help -h".split(), *cluster.OWN)
LOOK_SECONDS = 3  # between two looks at what other searches run
# Where things go and how fast, not what is computed: the same run with other values is not repeated.
PLACES = ("--log_dir", "--checkpoint_dir", "--workers", "--cache_dir")
Child = subprocess.Popen | Submitted


@dataclass
class Job:
    """One run: its name, the settings that tell it from the others, and all flags of its command but --run_name."""

    name: str
    settings: dict[str, str]
    flags: list[str]
    log_dir: Path

    def file(self, ending: str) -> Path:
        return self.log_dir / f"{self.name}{ending}"


def said(settings: Mapping[str, str], between: str = " ") -> str:
    return between.join(f"{flag.lstrip('-')}={value}" for flag, value in settings.items())


def split(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """The command's words -> (search's own, searched flag -> its values, what goes to every run)."""
    end_of_own = [*words, "--"].index("--")
    own: list[str] = []
    values, grid = own, dict[str, list[str]]()
    for word in words[:end_of_own]:
        flag, equals, value = word.partition("=")
        if flag in OWN:
            own.append(word)
            values = own
        elif word.startswith("--"):
            if flag in grid:
                raise UserError(f"{flag}: given twice; expected all its values after one {flag}")
            values = grid[flag] = [value] if equals else []
        else:
            values.append(word)
    return own, grid, list(words[end_of_own + 1 :])


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, list[str]], list[str]]:
    """(options, grid, common flags), checked. Raises UserError."""
    own, grid, common = split(words)
    given_to_all = {word.split("=")[0] for word in common if word.startswith("--")}

    def problems(options: argparse.Namespace, given: Given) -> Iterator[str]:
        yield from (
            f"{flag}: expected values to search" for flag, values in grid.items() if not values
        )
        yield from (
            f"{flag}: given both as a searched flag and after --"
            for flag in grid
            if flag in given_to_all
        )
        if options.gpus and options.launcher:
            yield "contradictory flags: --gpus and --launcher: the cluster chooses the GPUs"
        taken = (flag for flag in ("--run_name", "--resume") if flag in {*given_to_all, *grid})
        yield from (f"{flag}: search.py sets it itself" for flag in taken)
        if "--log_dir" in given_to_all:
            yield "--log_dir: expected before --"
        if options.seeds > 1 and "--seed" in grid:
            yield "--seeds: contradicts a searched --seed"
        if not options.script.is_file():
            yield f"{options.script}: no such script"

    flags = Flags(__doc__)
    flags.words("script", "train_swin.py, train_resnet.py or train_timm.py", type=Path)
    flags.switch(
        "--each",
        "each",
        True,
        "change one flag at a time: the first value of each flag is its default",
    )
    flags.count("--seeds", 1, "repeat each setting with K seeds")
    flags.count("--jobs", None, "runs at a time (default: one, or one per GPU of --gpus)")
    numbers = ("numbers such as 0,1", lambda text: re.fullmatch(r"\d+(,\d+)*", text))
    flags.value(
        "--gpus", None, "GPUs to spread the runs over, such as 0,1", numbers, metavar="LIST"
    )
    flags.path("--log_dir", Path("logs"), "where the logs go")
    flags.value("--metric", "srcc", "what the settings are ranked by", FIGURE)
    flags.switch("--dry_run", "dry_run", True, "print the commands and stop")
    cluster_flags(flags)
    return flags.parse(own, problems), grid, common


def plan(options: argparse.Namespace, grid: dict[str, list[str]], common: list[str]) -> list[Job]:
    """The runs of the grid, seeds innermost. A name holds the settings and a digest of everything else that counts."""
    axes = {flag: list(dict.fromkeys(values)) for flag, values in grid.items()}
    seeds, base = axes.pop("--seed", None), {}
    if seeds is None:
        following = zip((word.partition("=") for word in common), [*common[1:], ""])
        first = next(
            (
                value if equals else word
                for (flag, equals, value), word in following
                if flag == "--seed"
            ),
            "42",
        )
        if not first.isdecimal():
            raise UserError(f"--seed {first}: expected a whole number of at least 0")
        common = without_flags(common, "--seed")
        seeds = [str(int(first) + k) for k in range(options.seeds)]
    if options.each:
        base = {flag: values[0] for flag, values in axes.items()}
        found: list[dict[str, str]] = [
            {},
            *({flag: value} for flag in axes for value in axes[flag][1:]),
        ]
    else:
        found = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    counts = [options.script.name, *without_flags(common, *PLACES), *itertools.chain(*base.items())]
    digest = hashlib.sha256("\0".join(counts).encode()).hexdigest()[:8]
    jobs = []
    for setting, seed in itertools.product(found, seeds):
        settings = {**setting, "--seed": seed}
        readable = said(settings, "_")
        safe = re.sub(r"[^\w.+=-]", "-", readable)[:100]
        if safe != readable:
            safe += "_" + hashlib.sha256(readable.encode()).hexdigest()[:8]
        searched = [
            word
            for flag, value in {**base, **settings}.items()
            for word in (flag, *shlex.split(value))
        ]
        flags = [*searched, *common, "--log_dir", str(options.log_dir)]
        jobs.append(Job(f"search_{safe}_{digest}", settings, flags, options.log_dir))
    return jobs


def finished(job: Job) -> list[reading.Run]:
    """The rounds of the job's run, if it came to its end."""
    try:
        found = reading.read_runs(job.file(".jsonl"))
    except UserError:
        return []
    return found if found[-1].status in reading.DONE else []


def launch(
    options: argparse.Namespace, cluster: Cluster | None, job: Job, slot: int, slots: int
) -> Child:
    words = [str(options.script), *job.flags, "--run_name", job.name, "--resume", "auto"]
    if cluster is not None:
        return cluster.submit(job.name, words)
    environment = dict(os.environ)
    if options.gpus:
        gpus = options.gpus.split(",")
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    elif slots > 1:
        environment.setdefault(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots))
        )  # not all cores
    return start_program([sys.executable, *words], job.file(".output"), environment)


class Turns:
    """Which of several searches of one folder runs a job: the one that holds its lock, which dies with its process."""

    def __init__(self, jobs: Sequence[Job]):
        self.waiting, self.elsewhere, self.looked = list(jobs), list[Job](), time.monotonic()
        self.held: dict[str, FileLock] = {}

    def next(self) -> Job | None:
        """A job to run now; None where others have all that is left, or nothing is left."""
        if (
            time.monotonic() - self.looked > LOOK_SECONDS
        ):  # what others ran may be finished, or they may have gone
            self.waiting += [job for job in self.elsewhere if not finished(job)]
            self.elsewhere, self.looked = [], time.monotonic()
        while self.waiting:
            job = self.waiting.pop(0)
            place = job.log_dir / ".search" / f"{job.name}.lock"
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                (lock := FileLock(place)).acquire(timeout=0)
            except Timeout:
                self.elsewhere.append(job)
                continue
            if not finished(job):
                self.held[job.name] = lock
                return job
            lock.release()  # meanwhile
        return None


def run_all(options: argparse.Namespace, jobs: Sequence[Job]) -> list[str]:
    """Run every job; returns what failed, in words. Ends the children on any way out."""
    cluster = Cluster(options, options.log_dir / "jobs") if options.launcher else None
    slots = options.jobs or (len(jobs) if cluster else (options.gpus or "").count(",") + 1)
    turns, failures = Turns(jobs), list[str]()
    children: dict[int, tuple[Job, Child]] = {}  # by the slots that they take
    with tqdm(total=len(jobs), desc="Search", unit="run") as bar:

        def show(changed: bool) -> None:
            # The clock ticks on a terminal; in a file every refresh is a line.
            bar.update(
                len(jobs) - len(turns.waiting) - len(turns.elsewhere) - len(children) - bar.n
            )
            elsewhere = f", {len(turns.elsewhere)} elsewhere" if turns.elsewhere else ""
            text = f"{len(children)} running{elsewhere}, {len(failures)} failed"
            bar.set_postfix_str(text, refresh=changed or sys.stderr.isatty())

        try:
            while turns.waiting or turns.elsewhere or children:
                for slot in [slot for slot in range(slots) if slot not in children]:
                    if (job := turns.next()) is None:
                        break
                    children[slot] = job, launch(options, cluster, job, slot, slots)
                    show(changed=True)
                show(changed=False)
                time.sleep(0.2)
                for slot in [
                    slot for slot, (_, child) in children.items() if child.poll() is not None
                ]:
                    job, child = children.pop(slot)
                    turns.held.pop(job.name).release()
                    if problem := failure(job, child):
                        failures.append(problem)
                        bar.write(f"failed: {job.name}", file=sys.stderr)
                    show(changed=True)
            show(changed=False)
        finally:
            for _, child in children.values():
                if isinstance(child, Submitted):
                    child.cancel()
            end_programs(
                [child for _, child in children.values() if not isinstance(child, Submitted)]
            )
            for job, _ in children.values():
                job.file(".output").unlink(missing_ok=True)
    return failures


def failure(job: Job, child: Child) -> str | None:
    """Why a run that has ended failed, if it did."""
    output = child.output if isinstance(child, Submitted) else job.file(".output")
    if child.returncode:
        return f"{job.name}: {last_error(output)} (all of it: {output})"
    if not isinstance(child, Submitted):
        output.unlink()
    return None


def report(options, jobs: Sequence[Job]) -> None:
    """The table of the finished runs: the seeds and rounds of a setting are one entry, named after it."""
    found: dict[str, list[reading.Run]] = {}
    for job in jobs:
        if rounds := finished(job):
            setting = (
                said({flag: value for flag, value in job.settings.items() if flag != "--seed"})
                or "default"
            )
            found.setdefault(setting, []).extend(rounds)
    if not found:
        return
    measure, entries = (
        Measure(options.metric),
        [Entry(setting, tuple(of_it)) for setting, of_it in found.items()],
    )
    measure.draw_together(entries)
    entries = measures.ranked(entries, measure)
    header, rows = runs_table.table(entries, measure, grouped=True)
    short = tables.short_names(
        [entry.name for entry in entries], tables.room_for_names(header, rows, 100)
    )
    print(tables.text_table(header, [[short[name], *cells] for name, *cells in rows]))
    print("".join(f"\n  {brief} = {name}" for name, brief in short.items() if brief != name))
    if len(entries) > 1:
        print(f"Is a difference real? python compare_logs.py {options.log_dir} --group --pairs")


def main() -> int:
    options, grid, common = parse(sys.argv[1:])
    jobs = plan(options, grid, common)
    missing = [job for job in jobs if not finished(job)]
    if options.dry_run:
        for job in jobs:
            command = ["python", str(options.script), *job.flags, "--run_name", job.name]
            print(shlex.join(command) + ("" if job in missing else "  # finished"))
        return 0
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them finished already")
    # A shell starts background jobs deaf to SIGINT, and so their children; a batch system ends its jobs with
    # SIGTERM. The runs must not outlive the search either way.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.default_int_handler)
    try:
        failures = run_all(options, missing) if missing else []
    except KeyboardInterrupt:
        done = f"{sum(bool(finished(job)) for job in jobs)} of {len(jobs)} runs finished"
        print(f"\ninterrupted: {done}; the same command goes on from there", file=sys.stderr)
        return 130
    report(options, jobs)
    print("".join(f"failed: {failure}\n" for failure in failures), end="", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    run_tool(main)
