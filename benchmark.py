"""Compare the speed of this code with the published procedure, phase by phase.

Both run on the same files. With --model, measure instead what models cost:
parameters, operations, latency and memory, as papers print them.
docs/performance.md says how all of it is measured.

  python benchmark.py                  # 113 generated images, Swin-T
  python benchmark.py --backbone resnet --train_patch_num 4
  python benchmark.py --dataset_path koniq-10k --spaq_path spaq-test \\
      --train_patch_num 20 --plain_steps 60
  python benchmark.py --step 20 --processes 1 2 --batch_size 32
  python benchmark.py --model resnet50 checkpoints/NAME --latex costs.tex
  python benchmark.py --model swin_tiny_patch4_window7_224+concat
  python benchmark.py --score                  # photographs a second
  python benchmark.py --score photos --model checkpoints/NAME model.xml
  python benchmark.py --score --peer pyiqa     # HyperIQA there and here"""

import argparse
import importlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from hyperiqa.base import command_line, errors, files, launching
from hyperiqa.runs.tables import text_table
from hyperiqa.scoring import cost_tables, image_sources

BACKBONES = {"swin": "swin_tiny_patch4_window7_224", "resnet": "resnet50"}
# Phase -> unit; of what is counted per second, more is better.
PHASES = {
    "first start": "s",
    "second start": "s",
    "training": "patches/s",
    "compute only": "patches/s",
    "testing koniq-10k": "images/s",
    "testing spaq": "images/s",
    "whole epoch": "s",
    "peak memory": "MiB",
    "peak GPU memory": "MiB",
}
# Measurement -> all flags that it takes.
FLAGS_OF = {
    "model": {"model", "patch_size", "device", "latex", "json"},
    "score": {"score", "model", "peer", "images", "repeats", "device", "json"},
}
# Flag -> the flag with whose measurement alone it means something.
NEEDED = {"peer": "score", "processes": "step", "patch_size": "model", "latex": "model"}
SCORED_MODELS = ["tf_efficientnet_lite0", *BACKBONES.values()]
# The sizes of photographs that --score generates, and how many of each there are at most.
PHOTOGRAPHS = {(512, 384): 113, (1024, 768): 113, (4000, 3000): 30}


def parse_flags() -> argparse.Namespace:
    """The flags, checked together. Raises UserError naming every mistake."""
    flags = command_line.Flags(__doc__)
    flags.value(
        "--backbone",
        None,
        "Swin-T or ResNet-50 (default: swin; with --step: both)",
        choices=list(BACKBONES),
    )
    flags.count(
        "--images",
        113,
        "generate N images, split in the proportions of KonIQ-10k and SPAQ",
        least=10,
    )
    flags.path("--dataset_path", None, "a KonIQ-10k folder to use instead of generated images")
    flags.path("--spaq_path", None, "the SPAQ folder that goes with --dataset_path")
    flags.count("--train_patch_num", 2, "training patches per image")
    flags.count("--test_patch_num", 20, "test patches per image")
    flags.batch_size(96, "training patches per step")
    flags.device()
    flags.value(
        "--precision", "auto", "precision of this code's training", choices=["auto", "fp32", "bf16"]
    )
    flags.switch("--compile", "compile", True, "compile this code's training step")
    flags.switch(
        "--no_deterministic",
        "no_deterministic",
        True,
        "let cuDNN choose the fastest kernels for this code",
    )
    flags.count("--repeats", 3, "how often each procedure runs; medians are shown")
    flags.count(
        "--plain_steps",
        None,
        "run the published procedure on at most N steps and N test images per set",
    )
    _flags_of_other_measurements(flags)
    flags.output("--json", "write all measurements to this file")
    return flags.parse(None, contradictions)


def _flags_of_other_measurements(flags: command_line.Flags) -> None:
    flags.count(
        "--step",
        None,
        "measure instead where the time of a training step goes, over N steps",
    )
    flags.value(
        "--processes",
        [1],
        "with --step: how many processes share a step; several numbers are compared",
        nargs="+",
        type=int,
        metavar="N",
    )
    flags.value(
        "--model",
        None,
        "measure instead what models cost: NAME of a backbone, NAME+FUSION, NAME+mlp, or a "
        "checkpoint",
        nargs="+",
        metavar="MODEL",
    )
    flags.count("--patch_size", 224, "with --model NAME: side of a patch in pixels", least=32)
    flags.output("--latex", "with --model: write the table in LaTeX")
    flags.value(
        "--score",
        None,
        "measure instead how many photographs a second are scored, those of FOLDER or generated "
        "ones of three sizes; --model names other models, also .onnx and .xml",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FOLDER",
    )
    flags.value(
        "--peer",
        None,
        "with --score: compare with the HyperIQA of this package, both on the CPU",
        choices=["pyiqa"],
    )


def contradictions(flags: argparse.Namespace, given: command_line.Given) -> Iterator[str]:
    """Yield a message for each combination of flags that does not fit together."""
    if bool(flags.dataset_path) != bool(flags.spaq_path):
        yield "--dataset_path and --spaq_path: expected both or none"
    measurement = "score" if flags.score else "model"
    unfit = set(given) - FLAGS_OF[measurement]
    if getattr(flags, measurement) and unfit:
        others = ", ".join(f"--{name}" for name in sorted(unfit))
        yield f"--{measurement} cannot be combined with {others}"
    for name, needed in NEEDED.items():
        if name in given and not getattr(flags, needed):
            yield f"--{name} needs --{needed}"
    if flags.peer:
        yield errors.not_installed(f"--peer {flags.peer}", flags.peer)
    if min(flags.processes) < 1:
        yield f"--processes {min(flags.processes)}: expected whole numbers of at least 1"


def main() -> None:
    """Measure as the flags say, each measurement in a process of its own."""
    if sys.argv[1:2] == ["--child"]:
        measure(argparse.Namespace(**json.loads(sys.argv[2])))
        return
    flags = parse_flags()
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        scratch = Path(folder)
        if not flags.score and not flags.model and flags.dataset_path is None:
            print(f"Making {errors.counted(flags.images, 'image')} …", flush=True)
            published().make_images(scratch, flags.images)
            flags.dataset_path = scratch / "koniq-10k"
            flags.spaq_path = scratch / "spaq-test"
        if flags.score:
            show_scoring(flags, scratch)
        elif flags.model:
            show_costs(flags)
        elif flags.step:
            show_steps(flags, scratch)
        else:
            show_phases(flags, scratch)


def published() -> Any:
    """The module with the published procedure, which is kept with the tests."""
    sys.path.insert(0, str(files.HERE / "tests"))
    return importlib.import_module("published")


# What a child process does.


def measure(flags: argparse.Namespace) -> None:
    """Measure one thing and print the result as JSON, in a process of its own.

    Its peak memory is then the peak of this one measurement.

    flags: as `run_child` hands them on. `flags.child` says what is measured: "model", "step",
    "plain" (the published procedure) or "ours".
    """
    # Only this process imports torch; the one that checks the flags and starts it does not wait.
    from hyperiqa.base.device import choose_device
    from hyperiqa.datasets.readers import READERS
    from hyperiqa.scoring import costs, throughput
    from hyperiqa.training import processes

    device = choose_device(flags.device)
    if flags.child == "model":
        show_measured(costs.measure_model(flags.model, flags.patch_size, device), {}, device)
        return
    if flags.child in ("score", "peer"):
        show_measured(throughput.measure(flags, device), {}, device)
        return
    backbone = BACKBONES[flags.backbone]
    koniq = READERS["koniq-10k"](Path(flags.dataset_path)).read()
    if flags.child == "step":
        with processes.process_group():
            times = costs.measure_step(flags, backbone, koniq)
            if processes.rank() == 0:
                show_measured(times, {}, device)
        return
    spaq = READERS["spaq"](Path(flags.spaq_path)).read_all_as_test()
    if flags.child == "plain":
        model = costs.build_model(backbone, device)
        phases = published().measure_plain(flags, koniq, spaq, model, costs.timed)
    else:
        phases = costs.measure_phases(flags, backbone, koniq, spaq, device)
    counts = {
        "train": len(koniq.split("train")),
        "test": len(koniq.split("test")),
        "spaq": len(spaq.records),
    }
    # With --plain_steps a whole epoch is never run, so it is computed from the speeds.
    phases["whole epoch"] = (
        counts["train"] * flags.train_patch_num / phases["training"]
        + counts["test"] / phases["testing koniq-10k"]
        + counts["spaq"] / phases["testing spaq"]
    )
    show_measured(phases, counts, device)


def show_measured(measured: dict[str, Any], counts: Mapping[str, int], device) -> None:
    """Print what a child process measured, with its own peak memory, for its parent."""
    import torch

    measured["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = errors.counted(torch.get_num_threads(), "CPU thread")
    if device.type == "cuda":
        measured["peak GPU memory"] = torch.cuda.max_memory_allocated(device) / 2**20
        name = torch.cuda.get_device_name(device)
    report = {"found": measured, "counts": counts, "device": name, "torch": torch.__version__}
    print(json.dumps(report))


# What the parent process does.


def run_child(
    flags: argparse.Namespace, child: str, process_count: int = 1, **changes: Any
) -> dict[str, Any]:
    """Measure in a new process, or in several that torchrun starts, and return what they print.

    child: what is measured, as of `measure`. changes: flags that have other values there.
    Raises UserError where the measurement fails.
    """
    words: list[str] = []
    environment = dict(os.environ)
    if process_count > 1:
        words += f"-m torch.distributed.run --standalone --nproc_per_node {process_count}".split()
        # Processes with as many threads as there are cores would take each other's.
        threads = max(1, (os.cpu_count() or 1) // process_count)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    # The flags are checked: the child takes them as they are.
    child_flags = json.dumps({**vars(flags), "child": child, **changes}, default=str)
    process = launching.start_program(
        [*words, __file__, "--child", child_flags], environment, subprocess.PIPE
    )
    try:
        output, _ = process.communicate()
    finally:
        launching.end_programs([process])
    # The child has already shown the user's mistake.
    if process.returncode == 2:
        raise SystemExit(2)
    if process.returncode:
        raise errors.UserError(f"the measurement of {child} failed, see above")
    return json.loads(output.splitlines()[-1])


def show_phases(flags: argparse.Namespace, scratch: Path) -> None:
    """Measure both procedures, phase by phase, and print them side by side."""
    flags.backbone = flags.backbone or "swin"
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for repeat in range(flags.repeats):
        for procedure, measured in runs.items():
            print(f"Measuring {procedure}, {repeat + 1} of {flags.repeats} …", flush=True)
            # A cache of its own: each first start is one without decoded images.
            child = run_child(flags, procedure, cache_dir=scratch / f"cache{repeat}")
            measured.append(child["found"])
    medians: dict[str, dict[str, float]] = {}
    for procedure, measured in runs.items():
        medians[procedure] = {
            phase: statistics.median(map(itemgetter(phase), measured)) for phase in measured[0]
        }
    counts = ", ".join(f"{number} {part}" for part, number in child["counts"].items())
    print(
        f"\n{flags.backbone}, {_machine(child)}, precision {flags.precision}, {counts} images, "
        f"{flags.train_patch_num} train and "
        f"{errors.counted(flags.test_patch_num, 'test patch', 'test patches')}, "
        f"medians of {flags.repeats}\n"
    )
    print("\n".join(phase_table(medians["plain"], medians["ours"])))
    if flags.json:
        settings = {name: str(value) for name, value in vars(flags).items()}
        report = {"settings": settings, **child, "runs": runs, "medians": medians}
        files.write_whole(flags.json, json.dumps(report, indent=1))


def _machine(child: Mapping[str, Any]) -> str:
    return f"{child['device']}, torch {child['torch']}"


def phase_table(plain: Mapping[str, float], fast: Mapping[str, float]) -> list[str]:
    """Lines that compare the published procedure (plain) with this code (fast), phase by phase."""
    rule = "-" * 64
    lines = [f"{'phase':<20}{'plain':>12}{'ours':>12}  {'unit':<10}{'ratio':>8}", rule]
    for phase, unit in PHASES.items():
        before = plain.get(phase)
        after = fast.get(phase)
        if after is None:
            continue
        # The plain procedure has no batch at hand: its "compute only" is not measured.
        before_text = ""
        ratio_text = ""
        if before is not None:
            ratio = before / after if unit == "s" else after / before
            before_text = f"{before:.4g}"
            ratio_text = f"{ratio:>8.2f}"
        lines.append(f"{phase:<20}{before_text:>12}{after:>12.4g}  {unit:<10}{ratio_text}")
    share = f"training / compute only: {fast['training'] / fast['compute only']:.3f}"
    return [*lines, rule, f"{share}   (memory: ours / plain, less is better)"]


def show_steps(flags: argparse.Namespace, scratch: Path) -> None:
    """Measure where a training step's time goes, and print a row for each number of processes."""
    backbones = [flags.backbone] if flags.backbone else list(BACKBONES)
    rows = []
    children = []
    for backbone, process_count in itertools.product(backbones, flags.processes):
        print(
            f"Measuring {backbone}, {errors.counted(process_count, 'process', 'processes')} …",
            file=sys.stderr,
            flush=True,
        )
        child = run_child(
            flags, "step", process_count, backbone=backbone, cache_dir=scratch / "cache"
        )
        children.append(child)
        rows.append(cost_tables.step_row(backbone, process_count, child["found"]))
    settings = f"{_machine(child)}, precision {flags.precision}, batch {flags.batch_size}"
    show_table(flags, settings, cost_tables.STEP_HEADER, rows, children)


def show_table(
    flags: argparse.Namespace,
    settings: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    report: object,
) -> None:
    """Print the settings and the table of a measurement; the report is what --json writes."""
    print(f"\n{settings}\n")
    print(text_table(header, rows, width=160))
    if flags.json:
        files.write_whole(flags.json, json.dumps(report, indent=1))


def photographs(flags: argparse.Namespace, scratch: Path) -> dict[str, Path]:
    """Title -> folder of the photographs of --score."""
    if flags.score != Path():
        # Whether there are any, before the work.
        image_sources.find_images([str(flags.score)])
        return {flags.score.name: flags.score}
    print("Making photographs …", file=sys.stderr, flush=True)
    folders = {f"{width}x{height}": scratch / f"{width}x{height}" for width, height in PHOTOGRAPHS}
    for folder, (size, number) in zip(folders.values(), PHOTOGRAPHS.items(), strict=True):
        # A few different ones; more are copies, which decoding does not notice.
        contents = [published().jpeg(size, seed) for seed in range(4)]
        for i in range(min(flags.images, number)):
            files.write_whole(folder / f"{i:04}.jpg", contents[i % len(contents)])
    return folders


def show_scoring(flags: argparse.Namespace, scratch: Path) -> None:
    """Measure how many photographs a second are scored, and print a row for each model and size."""
    folders = photographs(flags, scratch)
    rows = []
    if flags.peer:
        child = run_child(
            flags,
            "peer",
            model=flags.model or [BACKBONES["resnet"]],
            # pyiqa takes seconds for each photograph of this size, and minutes for larger ones.
            folder=folders.get("1024x768", flags.score),
        )
        header = ["HyperIQA", "photographs/s", "times pyiqa's"]
        rates = child["found"]["rates"]
        slowest = rates["pyiqa, 25 crops"]
        rows = [[name, f"{rate:.3g}", f"{rate / slowest:.3g}"] for name, rate in rates.items()]
    else:
        header = cost_tables.SCORE_HEADER
        for model, title in itertools.product(flags.model or SCORED_MODELS, folders):
            print(f"Measuring {model}, {title} …", file=sys.stderr, flush=True)
            child = run_child(flags, "score", model=model, folder=folders[title])
            rows.append(cost_tables.score_row(model, title, child["found"]))
    show_table(flags, _machine(child), header, rows, [dict(zip(header, row)) for row in rows])


def show_costs(flags: argparse.Namespace) -> None:
    """Measure what models cost, and print them as one table."""
    children = {}
    rows = []
    for name in flags.model:
        print(f"Measuring {name} …", file=sys.stderr, flush=True)
        child = run_child(flags, "model", model=name)
        children[name] = child
        rows += cost_tables.cost_rows(name, child["found"])
    header = cost_tables.cost_header(child["found"])
    show_table(flags, f"{_machine(child)}, fp32, one patch per image", header, rows, children)
    if flags.latex:
        files.write_whole(flags.latex, cost_tables.latex_table(header, rows))


if __name__ == "__main__":
    command_line.run_tool(main)
