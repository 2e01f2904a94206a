"""Search a grid of settings: one training run per combination, and at the end the table, best setting first.

python search.py train_swin.py --ranking_loss_alpha 0.1 0.3 0.5 --ranking_loss_margin 0.3 0.5 -- --epochs 5
python search.py train_swin.py --lr 1e-5 2e-5 --seeds 3 --jobs 2 --gpus 0,1 --plot grid.png -- --dataset koniq-10k
python search.py train_resnet.py --lr_ratio 5 10 20 --dry_run -- --lr_scheduler step

Any flag of the training script with several values is searched; what follows `--` goes to every run. The same
command after an interruption trains what is missing: a run's name is made of its settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from comparing import plots, runs
from comparing.runs import Entry, Measure
from options import Parser, UserError, run_tool

VALUED = ("--jobs", "--gpus", "--seeds", "--log_dir", "--plot", "--metric")
SWITCHES = ("--dry_run", "--help", "-h")
# Where things go and how fast, not what is computed: the same run with other values is not repeated.
PLACES = ("--log_dir", "--checkpoint_dir", "--workers", "--cache_dir")


@dataclass
class Job:
    """One run: its name, the settings that tell it from the others, and all flags of its command but --run_name."""

    name: str
    settings: dict[str, str]
    flags: list[str]

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        return tuple((flag, value) for flag, value in self.settings.items() if flag != "--seed")


@dataclass
class Child:
    """A run under way in one of the slots."""

    job: Job
    slot: int
    process: subprocess.Popen
    output: Path


# ---------------------------------------------------------------------------------------- command line
def split(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """The command's words -> (search's own, searched flag -> its values, what goes to every run)."""
    words = list(words)
    common = words[words.index("--") + 1 :] if "--" in words else []
    words = words[: words.index("--")] if "--" in words else words
    own: list[str] = []
    grid: dict[str, list[str]] = {}
    values = own
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in SWITCHES or flag in VALUED:
            own.append(word)
            values = own
        elif word.startswith("--"):
            if flag in grid:
                raise UserError(f"{flag}: given twice; expected all its values after one {flag}")
            values = grid[flag] = [value] if equals else []
        else:
            values.append(word)
    return own, grid, common


def parse(words: Sequence[str]):
    """(options, grid, common flags), checked. Raises UserError."""
    own, grid, common = split(words)
    parser = Parser(__doc__)
    parser.add_argument("script", type=Path, help="train_swin.py or train_resnet.py")
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="repeat each setting with K seeds")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one, or one per GPU of --gpus)")
    parser.add_argument("--gpus", metavar="LIST", help="GPUs to spread the runs over, such as 0,1")
    parser.add_argument("--log_dir", type=Path, default=Path("logs"), metavar="PATH", help="where the logs go")
    parser.add_argument("--metric", default="srcc", choices=runs.METRICS, help="what the settings are ranked by")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="one searched flag: a line; two: a heat map")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(own)
    given = {word.split("=")[0] for word in common if word.startswith("--")}
    problems = [f"{flag}: expected values to search" for flag, values in grid.items() if not values]
    problems += [f"{flag}: given both as a searched flag and after --" for flag in grid if flag in given]
    problems += [f"{flag}: search.py sets it itself" for flag in ("--run_name", "--resume") if flag in {*given, *grid}]
    problems += ["--log_dir: expected before --"] if "--log_dir" in given else []
    problems += ["--seeds: contradicts a searched --seed"] if options.seeds > 1 and "--seed" in grid else []
    for flag, value in (("--seeds", options.seeds), ("--jobs", options.jobs)):
        if value is not None and value < 1:
            problems.append(f"{flag} {value}: expected at least 1")
    if options.gpus is not None and not re.fullmatch(r"\d+(,\d+)*", options.gpus):
        problems.append(f"--gpus {options.gpus}: expected numbers such as 0,1")
    if not options.script.is_file():
        problems.append(f"{options.script}: no such script")
    if options.plot and len([flag for flag in grid if len(grid[flag]) > 1]) not in (1, 2):
        problems.append("--plot: expected one or two flags with several values")
    if problems:
        raise UserError("; ".join(problems))
    if options.plot:
        plots.check_picture(options.plot)
    return options, grid, common


def plan(script: Path, grid: dict[str, list[str]], seeds: int, common: list[str], log_dir: Path) -> list[Job]:
    """The runs of the grid, seeds innermost. A name holds the settings and a digest of everything else that counts."""
    axes = dict(grid)
    if "--seed" not in grid:
        base = _value_of(common, "--seed", "42")
        if not base.isdecimal():
            raise UserError(f"--seed {base}: expected a whole number of at least 0")
        common = _without(common, ("--seed",))
        axes["--seed"] = [str(int(base) + k) for k in range(seeds)]
    digest = hashlib.sha256("\0".join([script.name, *_without(common, PLACES)]).encode()).hexdigest()[:8]
    jobs = []
    for values in itertools.product(*(dict.fromkeys(v) for v in axes.values())):
        settings = dict(zip(axes, values))
        readable = "_".join(f"{flag.lstrip('-')}={value}" for flag, value in settings.items())
        safe = re.sub(r"[^\w.+=-]", "-", readable)[:100]
        if safe != readable:
            safe += "_" + hashlib.sha256(readable.encode()).hexdigest()[:8]
        flags = [word for pair in settings.items() for word in pair]
        name = f"search_{safe}_{digest}"
        jobs.append(Job(name, settings, [*flags, *common, "--log_dir", str(log_dir)]))
    return jobs


def _value_of(flags: Sequence[str], name: str, default: str) -> str:
    for word, following in zip(flags, [*flags[1:], ""]):
        if word == name:
            return following
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return default


def _without(flags: Sequence[str], names: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for word in flags:
        if word.startswith("--"):
            skip = word.split("=")[0] in names
        if not skip:
            kept.append(word)
    return kept


# -------------------------------------------------------------------------------------------- the runs
def finished(job: Job, log_dir: Path) -> bool:
    """Whether the job's run came to its end."""
    try:
        return runs.read_runs(log_dir / f"{job.name}.jsonl")[-1].status in runs.DONE
    except UserError:
        return False


def start(command: Sequence[str], job: Job, slot: int, slots: int, gpus: Sequence[str], log_dir: Path) -> Child:
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    elif slots > 1:
        # Every run would otherwise take all cores for itself.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots)))
    log_dir.mkdir(parents=True, exist_ok=True)
    output = log_dir / f"{job.name}.output"
    with output.open("wb") as file:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the runs once.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    return Child(job, slot, process, output)


def last_error(output: Path) -> str:
    """The last line that says why a run failed: its `error: …`, else whatever it printed last."""
    text = output.read_bytes()[-20_000:].decode("utf-8", "replace")
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no output")


def end(children: Sequence[Child], patience: float = 10) -> None:
    """Interrupt the runs, so that they write their last records, and kill what is left after `patience` seconds."""
    try:
        for child in children:
            child.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + patience
        for child in children:
            child.process.wait(max(0.1, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)  # its loaders' processes too
        child.process.wait()
        child.output.unlink(missing_ok=True)


def run_all(options, jobs: Sequence[Job]) -> list[str]:
    """Run every job; returns what failed, in words. Ends the children on any way out."""
    gpus = options.gpus.split(",") if options.gpus else []
    slots = options.jobs or len(gpus) or 1
    waiting, free, children, failures = list(jobs), list(range(slots)), [], []
    with tqdm(total=len(jobs), desc="Search", unit="run") as bar:

        def show(changed: bool) -> None:
            # The clock ticks on a terminal; in a file every refresh is a line.
            text = f"{len(children)} running, {len(failures)} failed"
            bar.set_postfix_str(text, refresh=changed or sys.stderr.isatty())

        try:
            while waiting or children:
                while waiting and free:
                    job = waiting.pop(0)
                    command = [
                        sys.executable,
                        str(options.script),
                        *job.flags,
                        *("--run_name", job.name, "--resume", "auto"),
                    ]
                    children.append(start(command, job, free.pop(0), slots, gpus, options.log_dir))
                    show(changed=True)
                show(changed=False)
                time.sleep(0.2)
                for child in [c for c in children if c.process.poll() is not None]:
                    children.remove(child)
                    free.append(child.slot)
                    bar.update()
                    if child.process.returncode == 0:
                        child.output.unlink()
                    else:
                        failures.append(f"{child.job.name}: {last_error(child.output)} (all of it: {child.output})")
                        bar.write(f"failed: {child.job.name}", file=sys.stderr)
                    show(changed=True)
        finally:
            end(children)
    return failures


# ------------------------------------------------------------------------------------------ the result
def entries_of(jobs: Sequence[Job], log_dir: Path) -> list[Entry]:
    """The finished runs, the seeds and rounds of a setting in one entry named after it."""
    found: dict[tuple, list[runs.Run]] = {}
    for job in jobs:
        if finished(job, log_dir):
            found.setdefault(job.setting, []).extend(runs.read_runs(log_dir / f"{job.name}.jsonl"))
    return [
        Entry(" ".join(f"{flag.lstrip('-')}={value}" for flag, value in setting) or of_it[0].name, tuple(of_it))
        for setting, of_it in found.items()
    ]


def draw(path: Path, grid: dict[str, list[str]], entries: Sequence[Entry], measure: Measure) -> None:
    """The figure over the searched flags that have several values."""
    axes = [(flag.lstrip("-"), list(dict.fromkeys(values))) for flag, values in grid.items() if len(values) > 1]
    fixed = {flag.lstrip("-"): values[0] for flag, values in grid.items()}
    estimates = {entry.name: measure.estimate(entry) for entry in entries}

    def at(*values: str) -> runs.Estimate:
        setting = fixed | {name: value for (name, _), value in zip(axes, values)}
        return estimates.get(" ".join(f"{n}={v}" for n, v in setting.items()), runs.Estimate(float("nan")))

    cells = [at(*values) for values in itertools.product(*(values for _, values in axes))]
    figures = np.array([cell.value for cell in cells]).reshape([len(values) for _, values in axes])
    bounds = np.array([(cell.low, cell.high) for cell in cells]) if len(axes) == 1 else None
    plots.draw_grid(path, measure.metric, axes, figures, bounds, measure.higher_is_better)


def report(options, grid: dict[str, list[str]], jobs: Sequence[Job]) -> None:
    entries = entries_of(jobs, options.log_dir)
    if not entries:
        return
    measure = Measure(options.metric)
    measure.draw_together(entries)
    entries = runs.ranked(entries, measure)
    header, rows = runs.table(entries, measure, grouped=True)
    short = plots.short_names([row[0] for row in rows], plots.room_for_names(header, rows, 100))
    print(plots.text_table(header, [[short[row[0]], *row[1:]] for row in rows]))
    print("".join(f"\n  {brief} = {name}" for name, brief in short.items() if brief != name))
    if len(entries) > 1:
        print(f"Is a difference real? python compare_logs.py {options.log_dir} --group --pairs")
    if options.plot:
        draw(options.plot, grid, entries, measure)


def main() -> int:
    sys.stdout.reconfigure(errors="replace")
    options, grid, common = parse(sys.argv[1:])
    jobs = plan(options.script, grid, options.seeds, common, options.log_dir)
    missing = [job for job in jobs if not finished(job, options.log_dir)]
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
        done = sum(finished(job, options.log_dir) for job in jobs)
        print(
            f"\ninterrupted: {done} of {len(jobs)} runs finished; the same command goes on from there", file=sys.stderr
        )
        return 130
    report(options, grid, jobs)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    run_tool(main)
