"""The precision that a run trains in: the one that `--precision` names, or the faster one.

Whether bf16 is the faster one on a CPU that has instructions for it differs from CPU to CPU, so
`auto` measures training steps of the run's own model there.
"""

import contextlib
import copy
import json
import time
from argparse import Namespace

import torch
from filelock import FileLock

from hyperiqa.base import device as devices, errors, files
from hyperiqa.model import fusion, hypernet
from hyperiqa.training import certificate, contradictions


def choose_precision(
    options: Namespace, device: torch.device, model: hypernet.QualityNet
) -> tuple[str, str]:
    """The precision in which a model trains on a device, bf16 or fp32, and the reason for it.

    The model stays as it is. Of several processes, one decides for all.
    """
    if options.precision != "auto":
        return options.precision, "as asked for"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        # Ampere (8.0) is the first generation that computes in bf16.
        return "bf16" if major >= 8 else "fp32", f"compute capability {major}.{minor}"
    cpu, has_bf16 = devices.cpu_model()
    if device.type != "cpu" or not has_bf16:
        return "fp32", "no bf16 instructions are known here"
    speeds = kept_speeds(options, model, cpu) if options.cache else measure_speeds(options, model)
    devices.keep_freed_memory.cache_clear()
    devices.map_large_tensors_separately()
    devices.return_freed_memory()
    reason = f"measured {speeds['fp32']:.3g} patches/s in fp32 and {speeds['bf16']:.3g} in bf16"
    # A smaller gain is not worth the rounding.
    return "bf16" if speeds["bf16"] >= 1.1 * speeds["fp32"] else "fp32", reason


def kept_speeds(options: Namespace, model: hypernet.QualityNet, cpu: str) -> dict[str, float]:
    """The result of `measure_speeds`, measured once for each kind of CPU and each model.

    It is kept in the cache folder, unless that cannot be written. cpu: the CPU's name.
    """
    facts = {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "backbone": options.backbone,
        "patch_size": options.patch_size,
        "fusion": options.fusion,
        "hyper": options.hyper,
        # Only where they are set, so that the files of all other runs keep their names.
        **{name: vars(options)[name] for name in ("pool", "lora") if vars(options)[name]},
        "batch_size": options.batch_size,
        "fused_attention": options.fused_attention,
        "freeze_backbone": options.freeze_backbone,
        "stored_features": contradictions.stored_features(options),
    }
    path = (
        options.cache_dir or files.HERE / "cache"
    ) / f"precision_{certificate.json_digest(facts)}.json"
    with contextlib.ExitStack() as stack:
        # Of several runs that start together, as those of a search, one measures for all.
        with contextlib.suppress(OSError):
            stack.enter_context(FileLock(path.with_name(f".{path.name}.lock")))
        # A file that is missing or damaged holds no speeds.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            kept = json.loads(path.read_text(encoding="utf-8"))["patches_per_second"]
            return {name: float(kept[name]) for name in ("fp32", "bf16")}
        speeds = measure_speeds(options, model)
        with contextlib.suppress(errors.UserError):
            files.write_whole(path, json.dumps({**facts, "patches_per_second": speeds}, indent=1))
    return speeds


def measure_speeds(options: Namespace, model: hypernet.QualityNet) -> dict[str, float]:
    """Patches per second of the model's training steps on this CPU, in fp32 and in bf16.

    A copy of the model makes the steps, and the random generators are put back, so that the run
    goes on as if nothing had been measured. It takes up to some 3 s, longer with huge models.
    """
    trained = copy.deepcopy(model).train()
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    # As in a run, whose steps reuse the memory of the steps before.
    devices.keep_freed_memory()
    with torch.random.fork_rng(devices=[]):
        # In short steps, the overhead of the operations would count too much.
        for patches in (2, 4, 8, 16, 32, 64):
            is_long = _step_seconds(options, trained, patches, "fp32") > 0.15
            if is_long or 2 * patches > options.batch_size:
                break
        deadline = time.perf_counter() + 1.5
        # The first step of each precision prepares the later ones, and is not counted.
        while len(seconds["bf16"]) < 2 or time.perf_counter() < deadline:
            for name, steps in seconds.items():
                steps.append(_step_seconds(options, trained, patches, name))
    return {name: patches / min(steps[1:]) for name, steps in seconds.items()}


# Forward and backward, on random patches: the loss and the optimizer compute in fp32 anyway.
def _step_seconds(
    options: Namespace, model: hypernet.QualityNet, patches: int, precision: str
) -> float:
    images: torch.Tensor | fusion.StageMaps = model.backbone.normalised(
        torch.randint(256, (patches, options.patch_size, options.patch_size, 3), dtype=torch.uint8)
    )
    if contradictions.stored_features(options):
        with torch.no_grad():
            images = model.stage_maps(images)
    begun = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        scores = model(images)["scores"]
    scores.float().mean().backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - begun
