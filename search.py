"""Train with every combination of some settings, and rank them in a table.

  python search.py train_swin.py --lr 1e-5 2e-5 --dropout 0 0.4 -- --epochs 5
  python search.py train_swin.py --lr 1e-5 2e-5 --seeds 3 --jobs 2 --gpus 0,1
  python search.py train_swin.py --lr 1e-5 2e-5 --launcher slurm --time 8
  python search.py --each train_timm.py --loss l1 mse plcc --ema 0 0.99 \\
      --augment hflip "hflip blur" -- --epochs 5

Any flag of the training script can have several values. What follows `--` goes
to every run. The same command goes on after an interruption, and several
machines that share a folder share the work."""

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

from hyperiqa.base import cluster, command_line, errors, files, launching
from hyperiqa.runs import measures, reading, runs_table, tables

# All flags of this script; every other flag before `--` is searched.
SEARCH_FLAGS = (
    *"--each --jobs --gpus --seeds --log_dir --metric --dry_run --help -h".split(),
    *cluster.OWN,
)
Child = subprocess.Popen | cluster.Submitted


@dataclass
class Job:
    """One run.

    settings: what tells it from the others. flags: all flags of its command but --run_name.
    """

    name: str
    settings: dict[str, str]
    flags: list[str]
    log_dir: Path

    def file(self, ending: str) -> Path:
        return self.log_dir / f"{self.name}{ending}"


def settings_text(settings: Mapping[str, str], between: str = " ") -> str:
    """`lr=1e-5 fusion=none`: settings in words."""
    return between.join(f"{flag.lstrip('-')}={value}" for flag, value in settings.items())


def split(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """The command's words -> (search.py's own, searched flag -> values, what goes to every run)."""
    separator = [*words, "--"].index("--")
    search_words: list[str] = []
    grid: dict[str, list[str]] = {}
    # Where the values of the last flag go.
    values = search_words
    for word in words[:separator]:
        flag, equals, value = word.partition("=")
        if flag in SEARCH_FLAGS:
            search_words.append(word)
            values = search_words
        elif word.startswith("--"):
            if flag in grid:
                raise errors.UserError(
                    f"{flag}: given twice; expected all its values after one {flag}"
                )
            values = [value] if equals else []
            grid[flag] = values
        else:
            values.append(word)
    return search_words, grid, command_line.with_recipes(words[separator + 1 :])[0]


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, list[str]], list[str]]:
    """(options, grid, common flags), checked. Raises UserError."""
    search_words, grid, common = split(words)
    flags = command_line.Flags(__doc__)
    flags.words("script", "training script, such as train_swin.py", type=Path)
    flags.switch(
        "--each",
        "each",
        True,
        "change one flag at a time, and keep the others at their first values",
    )
    flags.count("--seeds", 1, "number of seeds with which each setting is trained")
    flags.count(
        "--jobs", None, "number of runs at a time (default: one, or one for each GPU of --gpus)"
    )
    flags.value(
        "--gpus",
        None,
        "GPUs on which the runs are spread, such as 0,1",
        ("numbers such as 0,1", re.compile(r"\d+(,\d+)*").fullmatch),
        metavar="LIST",
    )
    flags.path("--log_dir", Path("logs"), "folder for the logs")
    flags.value("--metric", "srcc", "figure by which the settings are ranked", measures.FIGURE)
    flags.switch("--dry_run", "dry_run", True, "print the commands without running them")
    cluster.cluster_flags(flags)
    options = flags.parse(search_words, lambda options, given: _problems(options, grid, common))
    return options, grid, common


def _problems(
    options: argparse.Namespace, grid: Mapping[str, list[str]], common: Sequence[str]
) -> Iterator[str]:
    given_to_all = {word.split("=")[0] for word in common if word.startswith("--")}
    yield from (f"{flag}: expected values to search" for flag in grid if not grid[flag])
    yield from (
        f"{flag}: given both as a searched flag and after --"
        for flag in grid
        if flag in given_to_all
    )
    if options.gpus and options.launcher:
        yield "contradictory flags: --gpus and --launcher: the cluster chooses the GPUs"
    for flag in ("--run_name", "--resume"):
        if flag in given_to_all or flag in grid:
            yield f"{flag}: search.py sets it itself"
    if "--log_dir" in given_to_all:
        yield "--log_dir: expected before --"
    if options.seeds > 1 and "--seed" in grid:
        yield "--seeds: contradicts a searched --seed"
    if not files.can_write(options.log_dir / ".search"):
        yield f"--log_dir {options.log_dir}: cannot be written there"
    if not options.script.is_file():
        yield f"{options.script}: no such script"


def plan(options: argparse.Namespace, grid: dict[str, list[str]], common: list[str]) -> list[Job]:
    """The runs of the grid, seeds innermost.

    A run's name holds its settings and a digest of everything else that changes its figures.
    """
    axes = {flag: list(dict.fromkeys(values)) for flag, values in grid.items()}
    seeds = axes.pop("--seed", None)
    if seeds is None:
        seeds = _seeds(options, common)
        common = command_line.without_flags(common, "--seed")
    # What a run has where it changes nothing.
    base: dict[str, str] = {}
    if options.each:
        base = {flag: values[0] for flag, values in axes.items()}
        changes: list[dict[str, str]] = [{}]
        changes += [{flag: value} for flag, values in axes.items() for value in values[1:]]
    else:
        changes = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    # Where things go and how fast changes no figure: the same run with other values of these flags
    # is not repeated.
    everything_else = command_line.without_flags(
        common, "--log_dir", "--checkpoint_dir", "--workers", "--cache_dir"
    ) + list(itertools.chain(*base.items()))
    digest = _digest("\0".join([options.script.name, *everything_else]))
    jobs = []
    for change, seed in itertools.product(changes, seeds):
        settings = {**change, "--seed": seed}
        words = [[flag, *shlex.split(value)] for flag, value in {**base, **settings}.items()]
        jobs.append(
            Job(
                name=f"search_{_file_name(settings)}_{digest}",
                settings=settings,
                flags=[*itertools.chain(*words), *common, "--log_dir", str(options.log_dir)],
                log_dir=options.log_dir,
            )
        )
    return jobs


def _seeds(options: argparse.Namespace, common: Sequence[str]) -> list[str]:
    # They count up from the seed that goes to every run.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # 42 is the training script's own default.
    parser.add_argument("--seed", nargs="?", const="", default="42")
    first = parser.parse_known_args(common)[0].seed
    if not first.isdecimal():
        raise errors.UserError(f"--seed {first}: expected a whole number of at least 0")
    return [str(int(first) + k) for k in range(options.seeds)]


def _file_name(settings: Mapping[str, str]) -> str:
    readable = settings_text(settings, "_")
    safe = re.sub(r"[^\w.+=-]", "-", readable)[:100]
    return safe if safe == readable else f"{safe}_{_digest(readable)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def finished(job: Job) -> list[reading.Run]:
    """The rounds of the job's run, if it came to its end."""
    try:
        rounds = reading.read_runs(job.file(".jsonl"))
    except errors.UserError:
        return []
    return rounds if rounds[-1].status in reading.DONE else []


class Turns:
    """Which of several searches of one folder runs a job.

    It is the one that holds the job's lock, which dies with its process.
    """

    def __init__(self, jobs: Sequence[Job]):
        self.waiting = list(jobs)
        self.elsewhere: list[Job] = []
        self.looked = time.monotonic()
        self.held: dict[str, FileLock] = {}

    @property
    def remaining(self) -> int:
        return len(self.waiting) + len(self.elsewhere)

    def next(self) -> Job | None:
        """A job to run now; None where others have all that is left, or nothing is left."""
        # What others ran may be finished, or they may have gone: every three seconds a look at it.
        if time.monotonic() - self.looked > 3:
            self.waiting += [job for job in self.elsewhere if not finished(job)]
            self.elsewhere = []
            self.looked = time.monotonic()
        while self.waiting:
            job = self.waiting.pop(0)
            path = job.log_dir / ".search" / f"{job.name}.lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self.elsewhere.append(job)
                continue
            # Another search may have finished it since this one began.
            if not finished(job):
                self.held[job.name] = lock
                return job
            lock.release()
        return None


class Search:
    """Runs jobs, some at a time, until all are done here or by other searches."""

    def __init__(self, options: argparse.Namespace, jobs: Sequence[Job]):
        self.options = options
        self.cluster = (
            cluster.Cluster(options, options.log_dir / "jobs", waits=True)
            if options.launcher
            else None
        )
        gpus = (options.gpus or "").count(",") + 1
        # A cluster has a queue of its own, which takes all jobs at once.
        self.slots = options.jobs or (len(jobs) if self.cluster else gpus)
        self.turns = Turns(jobs)
        # By the slots that they take.
        self.children: dict[int, tuple[Job, Child]] = {}
        self.failures: list[str] = []
        # In a file every refresh would be a line.
        self.bar = tqdm(total=len(jobs), desc="Search", unit="run", disable=None)

    def run(self) -> list[str]:
        """Run every job; return what failed, in words. Ends the children on any way out."""
        with self.bar:
            try:
                while self.turns.remaining or self.children:
                    self._start_children()
                    self._show()
                    time.sleep(0.2)
                    self._take_ended()
                self._show()
            finally:
                self._end_children()
        return self.failures

    def _start_children(self) -> None:
        for slot in sorted(set(range(self.slots)) - set(self.children)):
            job = self.turns.next()
            if job is None:
                break
            self.children[slot] = job, self._launch(job, slot)

    def _launch(self, job: Job, slot: int) -> Child:
        words = [str(self.options.script), *job.flags, "--run_name", job.name, "--resume", "auto"]
        if self.cluster is not None:
            return self.cluster.submit(job.name, words)
        environment = dict(os.environ)
        if self.options.gpus:
            gpus = self.options.gpus.split(",")
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        elif self.slots > 1:
            # Runs side by side share the cores.
            threads = max(1, (os.cpu_count() or 1) // self.slots)
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        with job.file(".output").open("wb") as output:
            return launching.start_program(words, environment, output, output)

    def _show(self) -> None:
        done = self.bar.total - self.turns.remaining - len(self.children)
        self.bar.update(done - self.bar.n)
        counts = [f"{len(self.children)} running", f"{len(self.failures)} failed"]
        if self.turns.elsewhere:
            counts.insert(1, f"{len(self.turns.elsewhere)} elsewhere")
        self.bar.set_postfix_str(", ".join(counts))

    def _take_ended(self) -> None:
        ended = [slot for slot, (_, child) in self.children.items() if child.poll() is not None]
        for slot in ended:
            job, child = self.children.pop(slot)
            self.turns.held.pop(job.name).release()
            problem = failure(job, child)
            if problem:
                self.failures.append(problem)
                self.bar.write(f"failed: {job.name}", file=sys.stderr)
            if self.bar.disable:
                left = self.turns.remaining + len(self.children)
                print(f"{job.name} ended, {errors.counted(left, 'run')} left", file=sys.stderr)

    def _end_children(self) -> None:
        launching.end_programs(
            [
                child
                for _, child in self.children.values()
                if not isinstance(child, cluster.Submitted)
            ]
        )
        for job, child in self.children.values():
            if isinstance(child, cluster.Submitted):
                child.cancel()
            job.file(".output").unlink(missing_ok=True)


def failure(job: Job, child: Child) -> str | None:
    """Why a run that has ended failed, if it did."""
    output = child.output if isinstance(child, cluster.Submitted) else job.file(".output")
    if child.returncode:
        return f"{job.name}: {launching.last_error(output)} (all of it: {output})"
    # What a run has shown stands in its log too; a cluster's files are left to the cluster.
    if not isinstance(child, cluster.Submitted):
        output.unlink()
    return None


def report(options: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Print the table of the finished runs.

    The seeds and rounds of a setting are one entry, which is named after the setting.
    """
    runs: dict[str, list[reading.Run]] = {}
    for job in jobs:
        if rounds := finished(job):
            settings = {flag: value for flag, value in job.settings.items() if flag != "--seed"}
            runs.setdefault(settings_text(settings) or "default", []).extend(rounds)
    if not runs:
        return
    entries = [measures.Entry(name, tuple(seeds)) for name, seeds in runs.items()]
    measure = measures.Measure(options.metric)
    measure.draw_together(entries)
    entries = measures.ranked(entries, measure)
    header, rows = runs_table.table(entries, measure, grouped=True)
    short_names = tables.names_in_table(header, rows, 100)
    print(tables.text_table(header, [[short_names[name], *cells] for name, *cells in rows]))
    print("".join(f"\n  {short} = {name}" for name, short in short_names.items() if short != name))
    if len(entries) > 1:
        print(f"Is a difference real? python compare_logs.py {options.log_dir} --group --pairs")


def main() -> int:
    options, grid, common = parse(sys.argv[1:])
    jobs = plan(options, grid, common)
    if options.dry_run:
        for job in jobs:
            command = ["python", str(options.script), *job.flags, "--run_name", job.name]
            print(shlex.join(command) + ("  # finished" if finished(job) else ""))
        return 0
    missing = [job for job in jobs if not finished(job)]
    print(f"{errors.counted(len(jobs), 'run')}, {len(jobs) - len(missing)} finished already")
    # A shell starts background jobs deaf to SIGINT, and so their children; a batch system ends its
    # jobs with SIGTERM. The runs must not outlive the search either way.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.default_int_handler)
    try:
        failures = Search(options, missing).run() if missing else []
    except KeyboardInterrupt:
        count = sum(bool(finished(job)) for job in jobs)
        print(
            f"\ninterrupted: {count} of {errors.counted(len(jobs), 'run')} finished; the same "
            "command goes on from there",
            file=sys.stderr,
        )
        return 130
    report(options, jobs)
    print("".join(f"failed: {failure}\n" for failure in failures), end="", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    command_line.run_tool(main)
