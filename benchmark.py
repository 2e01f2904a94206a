"""How much faster than the published procedure? Both, phase by phase, in one run on the same files. And what a model
costs: parameters, operations, latency and memory, as papers print them. docs/performance.md says how it is measured.

    python benchmark.py                                     # 113 generated images, Swin-T
    python benchmark.py --backbone resnet --train_patch_num 4
    python benchmark.py --dataset_path koniq-10k --spaq_path spaq-test --train_patch_num 20 --plain_steps 60
    python benchmark.py --step 20 --processes 1 2 --batch_size 32          # where a training step's time goes
    python benchmark.py --model resnet50 swin_tiny_patch4_window7_224+concat checkpoints/NAME --latex costs.tex"""

import argparse
import functools
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hyperiqa.base.command_line import Flags, Given, run_tool
from hyperiqa.base.errors import UserError
from hyperiqa.base.files import HERE, write_whole
from hyperiqa.runs.tables import text_table

if (
    "--child" in sys.argv
):  # which measures; the parent, which checks the flags and starts it, needs no torch
    import torch

    from hyperiqa.base.device import (
        choose_device,
        choose_hardware,
        keep_freed_memory,
        map_large_tensors_separately,
        set_backends,
    )
    from hyperiqa.datasets.readers import READERS
    from hyperiqa.images.cache import put_on_gpu
    from hyperiqa.model import factory
    from hyperiqa.model.hypernet import HyperNet
    from hyperiqa.scoring import costs, step_times
    from hyperiqa.training import engine, processes
    from hyperiqa.training.batches import DecodedSet
    from hyperiqa.training.loaders import make_loader
    from hyperiqa.training.losses import QualityLoss
    from hyperiqa.training.optimizers import optimizer_for
    from hyperiqa.training.patches import train_patches
    from hyperiqa.training.schedules import Rates

STEP_PARTS = ("data", "forward", "loss", "backward", "optimizer", "records")  # of scoring.steps
LR, WEIGHT_DECAY, PATCH = 2e-5, 5e-4, 224
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


def parse_flags() -> argparse.Namespace:
    flags = Flags(__doc__)
    flags.value(
        "--backbone",
        None,
        "Swin-T or ResNet-50 (default: swin; --step: both)",
        choices=list(BACKBONES),
    )
    flags.count("--images", 113, "generate N images in KonIQ's proportions", least=10)
    flags.path("--dataset_path", None, "a KonIQ-10k folder instead")
    flags.path("--spaq_path", None, "and a SPAQ folder")
    flags.count("--train_patch_num", 2, "train patches per image")
    flags.count("--test_patch_num", 20, "test patches per image")
    flags.batch_size(96, "train patches per step")
    flags.device()
    flags.value("--precision", "auto", "of our training", choices=["auto", "fp32", "bf16"])
    flags.switch("--compile", "compile", True, "torch.compile our training step")
    flags.switch("--no_deterministic", "no_deterministic", True, "let cuDNN choose our kernels")
    flags.count("--repeats", 3, "runs of each; medians are shown")
    flags.count(
        "--plain_steps", None, "measure plain on N training steps and N test images a set at most"
    )
    flags.count(
        "--step",
        None,
        "where the time of a training step goes instead, of N steps, for both backbones",
    )
    flags.value(
        "--processes",
        [1],
        "with --step: how many processes share a step",
        nargs="+",
        type=int,
        metavar="N",
    )
    flags.value(
        "--model",
        None,
        "what these models cost instead: NAME of a backbone, NAME+FUSION, or a checkpoint",
        nargs="+",
        metavar="MODEL",
    )
    flags.count("--patch_size", PATCH, "with --model NAME: side of a patch in pixels", least=32)
    flags.output("--latex", "with --model: write the table for a paper")
    flags.output("--json", "write all measurements")
    flags.value("--child", None, argparse.SUPPRESS, choices=["plain", "ours", "model", "step"])
    flags.path("--cache_dir", None, argparse.SUPPRESS)
    flags.several = "--child" in sys.argv
    return flags.parse(None, contradictions)


def contradictions(o: argparse.Namespace, given: Given) -> Iterator[str]:
    if bool(o.dataset_path) != bool(o.spaq_path):
        yield "--dataset_path and --spaq_path belong together"
    alone = set(given) - {"model", "patch_size", "latex", "json", "device", "child", "cache_dir"}
    if o.model and alone:
        yield f"--model takes no {', '.join(f'--{name}' for name in sorted(alone))}"
    if "processes" in given and not o.step:
        yield "--processes needs --step"
    if min(o.processes) < 1:
        yield f"--processes {min(o.processes)}: expected whole numbers of at least 1"
    yield from (
        f"--{name} needs --model"
        for name in ("patch_size", "latex")
        if name in given and not o.model
    )


def measure_ours(flags: argparse.Namespace, koniq, spaq, device) -> dict[str, float]:
    """What train_swin.py and train_resnet.py do, by the same functions."""
    set_backends(deterministic=not flags.no_deterministic)
    map_large_tensors_separately()
    hardware = choose_hardware(flags.device, flags.precision)[0]

    def start() -> list[DecodedSet]:
        sets = [DecodedSet(data, "384", PATCH, cache_dir=flags.cache_dir) for data in (koniq, spaq)]
        put_on_gpu([each.cache for each in sets], "auto", device)
        return sets

    def train(loader) -> None:
        engine.train_one_epoch(
            trained, QualityLoss(), optimizer, loader, hardware, engine.EpochProgress()
        )

    found = {"first start": costs.timed(start, device)[0]}
    found["second start"], sets = costs.timed(start, device)
    model, optimizer = trained_model(flags.backbone, device)
    trained: Any = torch.compile(model) if flags.compile else model
    patches = functools.partial(
        train_patches, patch_size=PATCH, per_image=flags.train_patch_num, seed=42, epoch=1
    )
    batches = sets[0].batches(koniq.split("train"), flags.batch_size, patches)
    one = hardware.take(batches[0])
    train([one] * (4 if flags.compile or flags.no_deterministic else 1))  # warm-up
    keep_freed_memory()
    found["training"] = (
        len(batches.patches) / costs.timed(lambda: train(make_loader(batches, hardware)), device)[0]
    )
    again = [one] * max(1, min(len(batches), 50))
    found["compute only"] = (
        len(again) * len(one["mos"]) / costs.timed(lambda: train(again), device)[0]
    )
    for each, name in zip(sets, ("testing koniq-10k", "testing spaq")):
        records = each.data.split("test")
        test = functools.partial(
            engine.score_set, model, each, records, ("center", 1), hardware.fp32
        )
        found[name] = len(records) / costs.timed(test, device)[0]
    return found


def measure_step(flags: argparse.Namespace, koniq) -> dict[str, Any]:
    set_backends(deterministic=not flags.no_deterministic)
    map_large_tensors_separately()
    hardware = choose_hardware(processes.device_of_process(flags.device), flags.precision)[0]
    data = DecodedSet(koniq, "384", PATCH, cache_dir=flags.cache_dir)
    put_on_gpu([data.cache], "auto", hardware.device)
    model, optimizer = trained_model(flags.backbone, hardware.device)
    records = koniq.split("train")
    per_image = -(-3 * flags.batch_size // len(records))
    patches = functools.partial(
        train_patches, patch_size=PATCH, per_image=per_image, seed=42, epoch=1
    )
    batches = data.batches(records, flags.batch_size, patches, processes.share())
    return step_times.measure(model, QualityLoss(), optimizer, batches, hardware, flags.step)


def published() -> Any:
    """The published procedure, which lies with the tests, being what this code is compared with."""
    sys.path.insert(0, str(HERE / "tests"))
    return importlib.import_module("published")


def trained_model(backbone: str, device) -> tuple[Any, Any]:
    """The model and its optimizer, as the train scripts have them."""
    model = build_model(backbone, device).to(memory_format=torch.channels_last)
    adam = argparse.Namespace(optimizer="adam", weight_decay=WEIGHT_DECAY, clip_grad=None)
    return model, optimizer_for(adam, Rates(10 * LR, LR), model.parameter_groups())


def build_model(backbone: str, device):
    """The same model for both, with random weights."""
    torch.manual_seed(0)
    return HyperNet(factory.build_backbone(BACKBONES[backbone])).to(device)


def measure(flags: argparse.Namespace) -> None:
    """A child process: measure one of the two and print it as JSON, so that peak memory is its own."""
    device = choose_device(flags.device)
    if flags.child == "model":
        show_measured(costs.measure(flags.model[0], flags.patch_size, device), {}, device)
        return
    koniq = READERS["koniq-10k"](flags.dataset_path).read()
    if flags.child == "step":
        with processes.process_group():
            found = measure_step(flags, koniq)
            if processes.rank() == 0:
                show_measured(found, {}, device)
        return
    spaq = READERS["spaq"](flags.spaq_path).read_all_as_test()
    if flags.child == "plain":
        found = published().measure_plain(
            flags, koniq, spaq, build_model(flags.backbone, device), costs.timed
        )
    else:
        found = measure_ours(flags, koniq, spaq, device)
    train, test, other = len(koniq.split("train")), len(koniq.split("test")), len(spaq.records)
    work = {
        "training": train * flags.train_patch_num,
        "testing koniq-10k": test,
        "testing spaq": other,
    }
    found["whole epoch"] = sum(n / found[phase] for phase, n in work.items())
    show_measured(found, {"train": train, "test": test, "spaq": other}, device)


def show_measured(found: dict[str, Any], counts: dict[str, int], device) -> None:
    """Print what a child process found, with its own peak memory, for its parent."""
    found["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        found["peak GPU memory"] = torch.cuda.max_memory_allocated(device) / 2**20
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        json.dumps({"found": found, "counts": counts, "device": name, "torch": torch.__version__})
    )


def run_child(flags: argparse.Namespace, which: str, cache_dir: Path, processes: int = 1) -> dict:
    several = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        if processes > 1
        else []
    )
    words = [sys.executable, *several, __file__, "--child", which, "--cache_dir", cache_dir]
    for name, value in vars(flags).items():
        of_model = name in ("model", "patch_size", "device")
        unset = value in (None, False) or (not of_model if flags.model else name == "patch_size")
        if (
            name not in ("child", "cache_dir", "json", "latex", "images", "repeats", "processes")
            and not unset
        ):
            words += (
                [f"--{name}"]
                if value is True
                else [f"--{name}", *(value if name == "model" else [value])]
            )
    threads = (
        {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
        if processes > 1
        else {}
    )
    command = [str(word) for word in words]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**threads, **os.environ}
    )
    if done.returncode == 2:  # which said why
        raise SystemExit(2)
    if done.returncode:
        raise UserError(f"the measurement of {which} failed, see above")
    return json.loads(done.stdout.splitlines()[-1])


def table(plain: dict[str, float], ours: dict[str, float]) -> list[str]:
    lines = [f"{'phase':<20}{'plain':>12}{'ours':>12}  {'unit':<10}{'ratio':>8}", "-" * 64]
    for phase, unit in PHASES.items():
        a, b = plain.get(phase), ours.get(phase)
        if b is not None:
            known, ratio = (
                ("", "") if a is None else (f"{a:.4g}", f"{b / a if unit != 's' else a / b:>8.2f}")
            )
            lines.append(f"{phase:<20}{known:>12}{b:>12.4g}  {unit:<10}{ratio}")
    share = f"training / compute only: {ours['training'] / ours['compute only']:.3f}"
    return [*lines, "-" * 64, f"{share}   (memory: ours / plain, less is better)"]


def show_steps(flags: argparse.Namespace, scratch: Path) -> None:
    rows, children = [], []
    for backbone in (flags.backbone,) if flags.backbone else BACKBONES:
        for processes in flags.processes:
            print(f"Measuring {backbone}, {processes} processes …", file=sys.stderr, flush=True)
            one = argparse.Namespace(**{**vars(flags), "backbone": backbone})
            children.append(child := run_child(one, "step", scratch / "cache", processes))
            found = child["found"]
            ms = [f"{1000 * found[part]:.4g}" for part in ("whole", *STEP_PARTS)]
            waits = max(0.0, found["whole"] - sum(found[part] for part in STEP_PARTS[1:5]))
            row = [backbone, str(processes), f"{found['patches']:.4g}", *ms, f"{1000 * waits:.4g}"]
            rows.append(
                [
                    *row,
                    f"{found['matrix'] / 1e12:.3g}",
                    f"{found['used']:.1%}",
                    f"{found['peak memory']:.0f}",
                ]
            )
    header = [
        "backbone",
        "processes",
        "patches/s",
        "ms whole",
        *STEP_PARTS,
        "waits",
        "TFLOP/s",
        "used",
        "MiB",
    ]
    print(
        f"\n{child['device']}, torch {child['torch']}, precision {flags.precision}, batch {flags.batch_size}\n"
    )
    print(text_table(header, rows, width=160))
    if flags.json:
        write_whole(flags.json, json.dumps(children, indent=1))


def show_costs(flags: argparse.Namespace) -> None:
    children = {}
    for name in flags.model:
        print(f"Measuring {name} …", file=sys.stderr, flush=True)
        children[name] = child = run_child(
            argparse.Namespace(**{**vars(flags), "model": [name]}), "model", Path()
        )
    memory, batches = (
        ("GPU MiB" if "peak GPU memory" in child["found"] else "MiB"),
        child["found"]["seconds"],
    )
    header = [
        "model",
        "part",
        "M parameters",
        "GMACs",
        "GFLOP",
        *(f"ms, batch {batch}" for batch in batches),
        memory,
    ]
    rows = [row for name, each in children.items() for row in cost_rows(name, each["found"])]
    print(f"\n{child['device']}, torch {child['torch']}, fp32, one patch per image\n")
    print(text_table(header, rows, width=160))
    if flags.latex:
        write_whole(flags.latex, latex_table(header, rows))
    if flags.json:
        write_whole(flags.json, json.dumps(children, indent=1))


def cost_rows(name: str, found: dict[str, Any]) -> list[list[str]]:
    """The whole model with latency and memory, then its parts, but for those that cost nothing."""
    parameters, macs = (
        {"all": sum(of.values()), **of} for of in (found["parameters"], found["macs"])
    )
    named = [
        n for n in ("all", "backbone", "fusion", "hyper", "target") if parameters[n] or macs[n]
    ]
    counts = ((n, parameters[n] / 1e6, macs[n] / 1e9, 2 * macs[n] / 1e9) for n in named)
    whole, *parts = ([n, *(f"{count:.4g}" for count in each)] for n, *each in counts)
    for times in found["seconds"].values():
        low, median, high = np.percentile(times, (5, 50, 95)) * 1000
        whole.append(f"{median:.4g} ({low:.4g}-{high:.4g})")
    whole.append(f"{found.get('peak GPU memory', found['peak memory']):.0f}")
    return [
        [f"{name} @{found['patch_size']}", *whole],
        *(["", *part, *[""] * (len(whole) - 4)] for part in parts),
    ]


def latex_table(header: list[str], rows: list[list[str]]) -> str:
    """The table for a paper, in the style of booktabs."""
    head, *lines = (" & ".join(cells).replace("_", r"\_") + r" \\" for cells in (header, *rows))
    body = [
        text
        for row, line in zip(rows, lines)
        for text in ([r"\midrule", line] if row[0] else [line])
    ]
    start = [rf"\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}", r"\toprule", head]
    return "\n".join([*start, *body, r"\bottomrule", r"\end{tabular}", ""])


def main() -> None:
    flags = parse_flags()
    if flags.child or flags.model:
        (measure if flags.child else show_costs)(flags)
        return
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as scratch:
        if flags.dataset_path is None:
            print(f"Making {flags.images} images …", flush=True)
            published().make_images(Path(scratch), flags.images)
            flags.dataset_path, flags.spaq_path = (
                Path(scratch, "koniq-10k"),
                Path(scratch, "spaq-test"),
            )
        if flags.step:
            show_steps(flags, Path(scratch))
            return
        flags.backbone = flags.backbone or "swin"
        for repeat in range(flags.repeats):
            for which, measured in runs.items():
                print(f"Measuring {which}, {repeat + 1} of {flags.repeats} …", flush=True)
                child = run_child(flags, which, Path(scratch, f"cache{repeat}"))
                measured.append(child["found"])
    medians = {
        of: {p: statistics.median(run[p] for run in each) for p in each[0]}
        for of, each in runs.items()
    }
    counts = ", ".join(f"{n} {part}" for part, n in child["counts"].items())
    machine = f"{child['device']}, torch {child['torch']}, precision {flags.precision}"
    patches = f"{flags.train_patch_num} train and {flags.test_patch_num} test patches"
    print(
        f"\n{flags.backbone}, {machine}, {counts} images, {patches}, medians of {flags.repeats}\n"
    )
    print("\n".join(table(medians["plain"], medians["ours"])))
    if flags.json:
        settings = {name: str(value) for name, value in vars(flags).items()}
        flags.json.write_text(
            json.dumps({"settings": settings, **child, "runs": runs, "medians": medians}, indent=1)
        )


if __name__ == "__main__":
    run_tool(main)
